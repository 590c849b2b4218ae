"""Benchmarks: what is timed, what it is compared with, the results."""
