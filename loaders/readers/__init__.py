"""Data sets whose files hold the pixels of many images."""
