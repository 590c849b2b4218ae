"""Data sets of one file per image."""
