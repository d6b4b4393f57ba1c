"""Trains with and without pairing at equal steps."""
