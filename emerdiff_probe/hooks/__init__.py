"""Reading and editing the denoiser's tensors while it runs."""
