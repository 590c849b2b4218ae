"""Run methods and coresets under one protocol, and compare them in one table."""
