"""Modules that the whole package may import; they import nothing of it."""

from . import requirements as requirements
