"""Flux: blocks of two streams, then blocks that hold text and image in one sequence, with flow matching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from einops import rearrange
from torch import Tensor

from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.probe_model import Conditioning, Pass
from emerdiff_probe.models.sd3 import rows_of
from emerdiff_probe.models.transformer import (
    FlowModel,
    block_address,
    blocks,
    feedforward_address,
    joint_addresses,
    mixed_addresses,
    require_channels,
)
from emerdiff_probe.models.unet import read_timesteps


class FluxModel(FlowModel):
    """A pipeline with a `FluxTransformer2DModel`.

    Its latents are packed by 2 x 2 for the denoiser. In blocks of one stream, "joint" attention's "heads" are what it
    gathers, and its "output" is what the block's one projection gives of them and of the feed-forward layer together.
    A distilled model is told its guidance scale; there is no pass of the empty prompt then.
    """

    timestep_scale = 1000.0
    even_sigmas = True

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_channels(self, packed=4)

    @property
    def family(self) -> str:
        """Always "flux"."""
        return "flux"

    @property
    def patch(self) -> int:
        """Latent cells a patch, along one side."""
        return 2

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, before they are packed."""
        return int(self.denoiser.config.in_channels) // 4

    @property
    def latent_side(self) -> int:
        """Latent cells along a side of the pipeline's default square; the denoiser itself knows of none."""
        return int(self.pipeline.default_sample_size)

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: T5's tokens and CLIP's pooled text; a distilled model is told a guidance of 1."""
        hidden, pooled, _ = self.pipeline.encode_prompt(prompt, None, device=self.device)
        added = {"pooled_projections": pooled.to(self.dtype)}
        if self.denoiser.config.guidance_embeds:
            added["guidance"] = torch.ones(1, 1, device=self.device)
        return Conditioning(hidden.to(self.dtype), added)

    def conditionings(
        self, prompt: str, height: int, width: int, guidance: float
    ) -> tuple[Conditioning, Conditioning | None]:
        """As in `ProbeModel`; a distilled model is told the scale, in one pass."""
        if not self.denoiser.config.guidance_embeds:
            return super().conditionings(prompt, height, width, guidance)
        plain = self.embed(prompt, height, width)
        told = {**plain.added, "guidance": torch.full((1, 1), float(guidance), device=self.device)}
        return Conditioning(plain.hidden_states, told), None

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        guidance = condition.added.get("guidance")
        tokens = condition.hidden_states.shape[1]
        output = self.denoiser(
            hidden_states=rearrange(latents.to(self.dtype), "batch c (h p) (w q) -> batch (h w) (c p q)", p=2, q=2),
            timestep=rows_of(timestep, latents) / 1000,
            guidance=None if guidance is None else guidance[:, 0],
            pooled_projections=condition.added["pooled_projections"],
            encoder_hidden_states=condition.hidden_states,
            txt_ids=torch.zeros(tokens, 3, device=self.device, dtype=self.dtype),
            img_ids=positions(rows, columns).to(self.device, self.dtype),
            return_dict=False,
        )
        return rearrange(output[0].float(), "batch (h w) (c p q) -> batch c (h p) (w q)", h=rows, w=columns, p=2, q=2)

    def read_pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        """As in `ProbeModel`; the size is read from the positions of the packed latents."""
        packed: Tensor = args[0] if args else kwargs["hidden_states"]
        places = kwargs["img_ids"].reshape(-1, 3)
        rows, columns = (int(places[:, axis].max()) + 1 for axis in (1, 2))
        return Pass(read_timesteps(kwargs["timestep"], len(packed), self.timestep_scale), (2 * rows, 2 * columns))

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        for path, block in blocks(self.denoiser, "transformer_blocks"):
            yield from joint_addresses(2, f"{path}.attn", block.attn)
            yield feedforward_address("double", 2, f"{path}.ff", self.width)
            yield block_address("double", 2, path, self.width, item=1)
        for path, _ in blocks(self.denoiser, "single_transformer_blocks"):
            layer = f"{path}.attn"
            yield from mixed_addresses(2, layer, self.width, (layer, "output"), (f"{path}.proj_out", "output"))
            yield block_address("single", 2, path, self.width, item=1)


def positions(rows: int, columns: int) -> Tensor:
    """Row and column of every packed latent, (cell, 3), as Flux is told them."""
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)
    return grid.reshape(-1, 3)
