"""Paths between image and noise: inversion, and the one denoising loop."""
