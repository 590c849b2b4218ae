"""Condensation objectives by name, and what a method of one's own extends."""

from .protocol import Method, Network, Reading, Scope, Views
from .registry import METHODS, build_method, find_method

__all__ = [
    "METHODS",
    "Method",
    "Network",
    "Reading",
    "Scope",
    "Views",
    "build_method",
    "find_method",
]
