"""Packed files, written and read with FFCV."""
