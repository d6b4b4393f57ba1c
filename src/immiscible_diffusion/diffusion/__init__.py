"""Paths between data and noise, losses and samplers."""
