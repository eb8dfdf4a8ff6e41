"""The embedded world with ground truth and the small diffusion model trained on it."""
