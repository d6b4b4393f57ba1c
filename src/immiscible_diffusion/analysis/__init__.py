"""How mixed data are at each noise level, and what a coupling changes: exact where possible."""
