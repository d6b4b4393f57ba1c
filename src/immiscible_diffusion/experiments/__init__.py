"""Comparisons of couplings."""
