"""A tiny Stable Diffusion pipeline from local images, in minutes on a CPU."""
