"""`ProbeModel`: a diffusers pipeline behind the one contract that everything else asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from einops import rearrange
from torch import Tensor, nn

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.batching import rows_that_fit, run_in_batches

MAX_DECODES = {"cpu": 1, "mps": 8, "cuda": 16}
"""Images that the autoencoder decodes at once, at most; on a CPU two would no longer fit its caches."""
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
VOLATILE = {"dtype", "torch_dtype", "transformers_version", "architectures"}
Family = Literal["pocket", "sd1", "sd2", "sdxl"]


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told besides latent and timestep: the embedded prompt, one row a batch element.

    Attributes:
        hidden_states: (batch, token, channel) text embeddings.
        added: further conditions by name, each (batch, channel); Stable Diffusion XL's pooled text and sizes.
    """

    hidden_states: Tensor
    added: Mapping[str, Tensor]

    def expand(self, batch: int) -> Conditioning:
        """The same condition for every one of `batch` rows, in the memory of one; needs a conditioning of one row."""
        return Conditioning(
            self.hidden_states.expand(batch, -1, -1),
            {name: value.expand(batch, -1) for name, value in self.added.items()},
        )

    def __add__(self, other: Conditioning) -> Conditioning:
        """Rows of `self`, then rows of `other`."""
        return Conditioning(
            torch.cat([self.hidden_states, other.hidden_states]),
            {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()},
        )


class ProbeModel:
    """A latent diffusion model with a U-Net denoiser, ready to be probed.

    Attributes:
        name: what it was loaded from.
        family: "pocket", "sd1", "sd2" or "sdxl"; the paper's settings differ between them.
        denoiser: the `UNet2DConditionModel`.
        scheduler: a `DDIMScheduler` on the model's own noise schedule, with the paper's grid ("leading" spacing,
            offset 1: 981, …, 281, …, 21, 1 for 50 steps).
        device, dtype: where and in which precision the denoiser runs; latents and pixels are float32 outside it.
    """

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        denoiser = getattr(pipeline, "unet", None)
        if hasattr(denoiser, "_orig_mod"):
            raise ModelError(
                f"{name}: the denoiser is compiled, so hooks would be bypassed; put the original module back first: "
                "pipeline.unet = pipeline.unet._orig_mod"
            )
        if not isinstance(denoiser, diffusers.UNet2DConditionModel):
            raise ModelError(
                f"{name}: the denoiser is {type(denoiser).__name__}; accepted: pipelines with a "
                "UNet2DConditionModel (Stable Diffusion 1.x, 2.x, XL, the pocket model)"
            )
        autoencoder = getattr(pipeline, "vae", None)
        if not isinstance(autoencoder, diffusers.AutoencoderKL):
            raise ModelError(
                f"{name}: the autoencoder is {type(autoencoder).__name__}; accepted: pipelines with an AutoencoderKL"
            )
        if denoiser.config.in_channels != autoencoder.config.latent_channels:
            raise ModelError(
                f"{name}: the denoiser takes {denoiser.config.in_channels} channels, as for inpainting, depth or "
                f"upscaling; accepted: the {autoencoder.config.latent_channels} of its autoencoder's latents"
            )
        self.pipeline = pipeline
        self.name = name
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config,
            timestep_spacing="leading",
            steps_offset=1,
            clip_sample=False,
            thresholding=False,
            set_alpha_to_one=False,
            rescale_betas_zero_snr=False,
        )

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser."""
        return self.denoiser.dtype

    @cached_property
    def family(self) -> Family:
        """Which known model this is, by its structure."""
        if self.denoiser.config.addition_embed_type == "text_time":
            return "sdxl"
        if self.denoiser.config.cross_attention_dim == 1024:
            return "sd2"
        return "sd1" if self.native_size >= 512 else "pocket"

    @cached_property
    def factor(self) -> int:
        """Pixels a latent cell, along one side."""
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @cached_property
    def native_size(self) -> int:
        """Side in pixels of the square images that the model was trained on."""
        return int(self.denoiser.config.sample_size) * self.factor

    @cached_property
    def multiple(self) -> int:
        """Image sides must be a multiple of this many pixels, so that every layer's grid is whole."""
        return self.factor * 2 ** (len(self.denoiser.config.block_out_channels) - 1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the configuration or with the weights; computed anew each time.

        Every tensor enters by its name, shape and up to 64 evenly spaced values, so that it stays cheap for
        models of gigabytes.
        """
        digest = hashlib.sha256(json.dumps(_settings(self.scheduler), sort_keys=True, default=str).encode())
        parts = [getattr(self.pipeline, name, None) for name in COMPONENTS]
        for component in (part for part in parts if isinstance(part, nn.Module)):
            digest.update(json.dumps(_settings(component), sort_keys=True, default=str).encode())
            for name, tensor in sorted(component.state_dict().items()):
                places = torch.arange(0, tensor.numel(), max(1, tensor.numel() // 64), device=tensor.device)[:64]
                picked = tensor.take(places).float().cpu().numpy()  # flattening would copy what is channels last
                digest.update(f"{name}{tuple(tensor.shape)}".encode() + picked.tobytes())
        return digest.hexdigest()[:16]

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to process an image at: shorter side the native size, both sides whole multiples."""
        scale = self.native_size / min(height, width)
        sides = [max(1, round(side * scale / self.multiple)) * self.multiple for side in (height, width)]
        return sides[0], sides[1]

    def to_tensor(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """An 8-bit RGB image as the model takes it.

        Args:
            image: (height, width, 3) uint8.
            size: height and width to resize to, bilinear with antialiasing; as it is when None.

        Returns:
            (1, 3, height, width) float32 in [-1, 1], on the model's device.
        """
        tensor = rearrange(torch.from_numpy(image).float(), "height width c -> 1 c height width")
        tensor = tensor.to(self.device) / 127.5 - 1
        if size is None or size == tuple(image.shape[:2]):
            return tensor
        return nn.functional.interpolate(tensor, size=size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to latents, the mode of the autoencoder's distribution.

        Args:
            images: (batch, 3, height, width) in [-1, 1]; sides multiples of `multiple`.

        Returns:
            (batch, channel, latent_height, latent_width) float32, scaled to about unit variance.

        Raises:
            InputError: another shape, or NaN.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.multiple for side in images.shape[2:]):
            raise InputError(
                f"images of shape {tuple(images.shape)}; accepted: (batch, 3, height, width) with sides that "
                f"are multiples of {self.multiple}"
            )
        if not torch.isfinite(images).all():
            raise InputError("the images hold NaN or infinite values")
        config = self.autoencoder.config
        latents = self.autoencoder.encode(images.to(self.device, self.autoencoder.dtype)).latent_dist.mode().float()
        return (latents - (config.shift_factor or 0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, channel, latent_height, latent_width) to images (batch, 3, height, width).

        Any number of them: they run in batches that fit the device. Pixel values are float32, about [-1, 1], and not
        clipped: differences between them stay linear.
        """
        config, dtype = self.autoencoder.config, self.autoencoder.dtype
        scaled = (latents / config.scaling_factor + (config.shift_factor or 0)).to(self.device, dtype)
        pixels = scaled.shape[2] * scaled.shape[3] * self.factor**2
        row_bytes = 4 * config.block_out_channels[min(1, len(config.block_out_channels) - 1)] * pixels * dtype.itemsize
        size = rows_that_fit(self.device, row_bytes, MAX_DECODES[self.device.type])
        return run_in_batches(lambda rows: self.autoencoder.decode(rows).sample.float(), scaled, size)

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """Embed one prompt, as one row.

        Args:
            prompt: the text; the empty one is the paper's choice, and zeros where the pipeline asks for that.
            height, width: of the image in pixels; Stable Diffusion XL is told them.
        """
        if self.family == "sdxl":
            embedding, _, pooled, _ = self.pipeline.encode_prompt(
                prompt, device=self.device, do_classifier_free_guidance=False
            )
            if not prompt and self.pipeline.config.get("force_zeros_for_empty_prompt"):
                embedding, pooled = torch.zeros_like(embedding), torch.zeros_like(pooled)
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device)
            return Conditioning(embedding.to(self.dtype), {"text_embeds": pooled.to(self.dtype), "time_ids": sizes})
        embedding, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return Conditioning(embedding.to(self.dtype), {})

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.denoiser.parameters())
        return (
            f"ProbeModel({self.name!r}, family={self.family!r}, {count / 1e6:.1f} M parameters in the denoiser, "
            f"native size {self.native_size}, {self.dtype} on {self.device})"
        )


def _settings(component: Any) -> dict[str, Any]:
    """A component's configuration, without where it was loaded from and by which version."""
    config = component.config
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in settings.items() if not key.startswith("_") and key not in VOLATILE}
