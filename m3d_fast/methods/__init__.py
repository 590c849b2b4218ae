"""Condensation objectives by name, and what a method of one's own extends."""

from .protocol import Method, Network, Objective, Reading, Scope, Views
from .registry import METHODS, TERMS, add_terms, build_method, find_method

__all__ = [
    "METHODS",
    "TERMS",
    "Method",
    "Network",
    "Objective",
    "Reading",
    "Scope",
    "Views",
    "add_terms",
    "build_method",
    "find_method",
]
