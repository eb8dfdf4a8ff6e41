"""Unconditional diffusion by a U-Net: in pixel space (DDPM), or on the latents of a VQ-VAE (latent diffusion)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.noise_schedule import make_ddim
from emerdiff_probe.models.probe_model import Conditioning, Pass, ProbeModel
from emerdiff_probe.models.schedules import DiffusionSchedule
from emerdiff_probe.models.unet import coarsest_unet_blocks, read_timesteps, unet_addresses


class UnconditionalModel(ProbeModel):
    """A pipeline with a `UNet2DModel`, such as google/ddpm-* and CompVis/ldm-celebahq-256; it takes no prompt.

    Where there is no autoencoder, latents are pixels.

    Raises:
        ModelError: a U-Net that wants classes, embeds time otherwise, or takes more than its latents.
    """

    component: ClassVar[str] = "unet"
    equal_rows: ClassVar[bool] = True

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        config = self.denoiser.config
        if self.denoiser.class_embedding is not None:
            kind = config.class_embed_type or f"{config.num_class_embeds} classes"
            raise ModelError(f"{name}: the denoiser is told a class ({kind}); accepted: a UNet2DModel told nothing")
        if config.time_embedding_type != "positional":
            raise ModelError(
                f"{name}: the denoiser embeds its timestep as {config.time_embedding_type!r}, as score-based models "
                "do; accepted: 'positional'"
            )
        channels = 3 if self.autoencoder is None else self.autoencoder.config.latent_channels
        if config.in_channels != channels or not isinstance(config.sample_size, int):
            raise ModelError(
                f"{name}: the denoiser takes {config.in_channels} channels of {config.sample_size}; accepted: "
                f"{channels} channels of one side"
            )
        self.scheduler = make_ddim(pipeline.scheduler, name)

    @property
    def family(self) -> str:
        """Either "ddpm", in pixel space, or "ldm", on latents."""
        return "ddpm" if self.autoencoder is None else "ldm"

    @property
    def levels(self) -> int:
        """Levels of the U-Net."""
        return len(self.denoiser.config.block_out_channels)

    def schedule(self, steps: int) -> DiffusionSchedule:
        """As in `ProbeModel`; 1 to 999 steps."""
        return DiffusionSchedule(self.scheduler, steps)

    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: nothing.

        Raises:
            InputError: a prompt.
        """
        if prompt:
            raise InputError(f"prompt {prompt!r}: {self.name} is unconditional; accepted: the empty prompt")
        return Conditioning(torch.zeros(1, 0, 0, device=self.device), {})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        return self.denoiser(latents.to(self.dtype), timestep, return_dict=False)[0].float()

    def read_pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        """As in `ProbeModel`."""
        latents: Tensor = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        return Pass(read_timesteps(timestep, len(latents)), (latents.shape[2], latents.shape[3]))

    def denoiser_row_bytes(self, latent_height: int, latent_width: int) -> int:
        """As in `ProbeModel`: of the widest layers and the skips that wait."""
        return 48 * self.denoiser.config.block_out_channels[0] * latent_height * latent_width * self.dtype.itemsize

    def coarsest_blocks(self, levels: int) -> tuple[str, ...]:
        """As in `ProbeModel`: downwards, the middle, upwards."""
        return coarsest_unet_blocks(self.denoiser, levels)

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        return unet_addresses(self.denoiser)
