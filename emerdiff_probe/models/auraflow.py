"""AuraFlow: a few blocks of two streams, then many that hold text and image in one sequence, with flow matching."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.probe_model import Conditioning
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


class AuraFlowModel(FlowModel):
    """A pipeline with an `AuraFlowTransformer2DModel`; its text's tokens begin with eight that were learned."""

    timestep_scale = 1000.0

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_channels(self)

    @property
    def family(self) -> str:
        """Always "auraflow"."""
        return "auraflow"

    @property
    def largest_side(self) -> int | None:
        """Pixels along a side for which there are positions."""
        return math.isqrt(self.denoiser.config.pos_embed_max_size) * self.multiple

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: T5's tokens, zeros where the text has ended."""
        hidden, _, _, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, device=self.device)
        return Conditioning(hidden.to(self.dtype), {})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        output = self.denoiser(
            latents.to(self.dtype).contiguous(),
            encoder_hidden_states=condition.hidden_states,
            timestep=rows_of(timestep, latents) / 1000,
            return_dict=False,
        )
        return output[0].float()

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        for path, block in blocks(self.denoiser, "joint_transformer_blocks"):
            yield from joint_addresses(self.patch, f"{path}.attn", block.attn)
            yield feedforward_address("double", self.patch, f"{path}.ff", self.width)
            yield block_address("double", self.patch, path, self.width, item=1)
        for path, _ in blocks(self.denoiser, "single_transformer_blocks"):
            layer = f"{path}.attn"
            where = f"{layer}.to_out.0"
            yield from mixed_addresses(self.patch, layer, self.width, (where, "input"), (where, "output"))
            yield feedforward_address("single", self.patch, f"{path}.ff", self.width, tokens="image")
            yield block_address("single", self.patch, path, self.width, tokens="image")
