"""Stable Diffusion 3 and 3.5: two streams that attend to both (MM-DiT, Esser et al. 2024), with flow matching."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.probe_model import Conditioning
from emerdiff_probe.models.transformer import (
    FlowModel,
    block_address,
    blocks,
    feedforward_address,
    joint_addresses,
    layer_addresses,
    require_channels,
)


class SD3Model(FlowModel):
    """A pipeline with an `SD3Transformer2DModel`; dual attention (of 3.5 medium) is "self" beside "joint"."""

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_channels(self)

    @property
    def family(self) -> str:
        """Always "sd3"."""
        return "sd3"

    @property
    def largest_side(self) -> int | None:
        """Pixels along a side for which there are positions."""
        return int(self.denoiser.config.pos_embed_max_size) * self.multiple

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: the tokens of all text encoders, and the pooled text."""
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(hidden.to(self.dtype), {"pooled_projections": pooled.to(self.dtype)})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        output = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=rows_of(timestep, latents),
            encoder_hidden_states=condition.hidden_states,
            pooled_projections=condition.added["pooled_projections"],
            return_dict=False,
        )
        return output[0].float()

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        for path, block in blocks(self.denoiser, "transformer_blocks"):
            yield from joint_addresses(self.patch, f"{path}.attn", block.attn, text_first=True)
            if block.attn2 is not None:
                yield from layer_addresses("double", self.patch, "self", f"{path}.attn2", block.attn2)
            yield feedforward_address("double", self.patch, f"{path}.ff", self.width)
            yield block_address("double", self.patch, path, self.width, item=1)


def rows_of(timestep: int | float | Tensor, latents: Tensor) -> Tensor:
    """A timestep as one float32 for every row of latents."""
    told = torch.as_tensor(timestep, dtype=torch.float32, device=latents.device)
    return told.expand(len(latents)) if told.ndim == 0 else told
