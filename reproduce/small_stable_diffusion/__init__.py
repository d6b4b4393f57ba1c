"""Stable Diffusion end to end on a CPU."""
