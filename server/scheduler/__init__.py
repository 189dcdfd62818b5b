"""Stage 4: choose which samples run next."""
