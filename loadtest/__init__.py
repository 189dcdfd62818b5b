"""Benchmarks: `python -m loadtest --help`."""
