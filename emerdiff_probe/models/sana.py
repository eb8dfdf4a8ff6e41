"""Sana: linear self-attention and cross-attention on latents a thirty-second of the image, with flow matching."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.probe_model import Conditioning
from emerdiff_probe.models.sd3 import rows_of
from emerdiff_probe.models.transformer import (
    FlowModel,
    block_address,
    blocks,
    feedforward_address,
    layer_addresses,
    require_channels,
)


class SanaModel(FlowModel):
    """A pipeline with a `SanaTransformer2DModel`.

    Self-attention is "linear": ReLU(Q) (ReLU(K)^T V) without a softmax, so that there are no probabilities to inject.
    A prompt is told below the pipeline's own instruction to its language model; the empty one alone.

    Raises:
        ModelError: a distilled model (Sprint), which is told a guidance scale.
    """

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_channels(self)
        if self.denoiser.config.guidance_embeds:
            raise ModelError(f"{name}: the denoiser is told a guidance scale, as Sana Sprint; accepted: Sana")
        self.timestep_scale = 1 / self.denoiser.config.timestep_scale

    @property
    def family(self) -> str:
        """Always "sana"."""
        return "sana"

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: the language model's tokens, and which of them are the text's."""
        told = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        hidden, mask, _, _ = self.pipeline.encode_prompt(
            prompt, False, device=self.device, complex_human_instruction=told if prompt else None
        )
        return Conditioning(hidden.to(self.dtype), {"encoder_attention_mask": mask})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        output = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=condition.hidden_states,
            encoder_attention_mask=condition.added["encoder_attention_mask"],
            timestep=rows_of(timestep, latents) * self.denoiser.config.timestep_scale,
            return_dict=False,
        )
        return output[0].float()

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        for path, block in blocks(self.denoiser, "transformer_blocks"):
            yield from layer_addresses("single", self.patch, "linear", f"{path}.attn1", block.attn1)
            yield from layer_addresses("single", self.patch, "cross", f"{path}.attn2", block.attn2)
            yield feedforward_address("single", self.patch, f"{path}.ff", self.width)
            yield block_address("single", self.patch, path, self.width)
