"""Text-to-image diffusion with Stable Diffusion's parts."""
