"""Benchmarks: what is timed, what it is compared with, and the results."""
