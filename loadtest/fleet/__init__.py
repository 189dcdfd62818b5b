"""Thousands of adapters on one base: where they are, what a look-up costs, and who goes when there is no room."""
