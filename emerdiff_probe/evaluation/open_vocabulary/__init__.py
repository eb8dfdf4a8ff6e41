"""Naming segments with words: by MaskCLIP, by the denoiser's own cross-attention, and finding a concept by its name."""
