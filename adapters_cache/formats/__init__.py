"""Checkpoint formats: one file per format, each giving a `Checkpoint`."""
