"""Ours beside other ways to serve many adapters: `python -m loadtest peers --help`."""
