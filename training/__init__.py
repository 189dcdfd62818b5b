"""Offline: make adapters with the modules that serve them. The server never imports this package."""
