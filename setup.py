"""What is installed is declared in pyproject.toml."""

from setuptools import setup

setup()
