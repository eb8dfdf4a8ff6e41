"""Autoencoders of diffusers, each as its pipelines use it: from pixels to scaled latents and back."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import Tensor

from emerdiff_probe.errors import ModelError

ACCEPTED = (diffusers.AutoencoderKL, diffusers.VQModel, diffusers.AutoencoderDC)


def find_autoencoder(pipeline: Any, name: str) -> Any:
    """The pipeline's autoencoder; None where it has none.

    Raises:
        ModelError: one of another kind.
    """
    found = next((part for key in ("vae", "vqvae") if (part := getattr(pipeline, key, None)) is not None), None)
    if found is not None and not isinstance(found, ACCEPTED):
        raise ModelError(f"{name}: the autoencoder is {type(found).__name__}; accepted: {accepted_autoencoders()}")
    return found


def accepted_autoencoders() -> str:
    """What may be one, in words."""
    return ", ".join(sorted(kind.__name__ for kind in ACCEPTED))


def widths(autoencoder: Any) -> tuple[int, ...]:
    """Channels of its decoder's levels, the finest first."""
    config = autoencoder.config
    return tuple(config.get("block_out_channels") or config["decoder_block_out_channels"])


def encode_images(autoencoder: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] to latents of about unit variance, float32; without a draw where they are a distribution."""
    encoded = autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype))
    if isinstance(autoencoder, diffusers.AutoencoderKL):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latent if isinstance(autoencoder, diffusers.AutoencoderDC) else encoded.latents
    config = autoencoder.config
    return (latents.float() - (config.get("shift_factor") or 0)) * config.scaling_factor


def unscale(autoencoder: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder itself has them, in its precision and on its device."""
    config = autoencoder.config
    raw = latents / config.scaling_factor + (config.get("shift_factor") or 0)
    return raw.to(autoencoder.device, autoencoder.dtype)
