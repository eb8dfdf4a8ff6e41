"""PixArt-alpha and -sigma, and class-conditional DiT: blocks of one stream, with DDPM's noise schedule."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.noise_schedule import make_ddim
from emerdiff_probe.models.probe_model import Conditioning
from emerdiff_probe.models.schedules import DiffusionSchedule
from emerdiff_probe.models.transformer import (
    TransformerModel,
    block_address,
    blocks,
    feedforward_address,
    layer_addresses,
    require_channels,
)


class StreamModel(TransformerModel):
    """A transformer of `BasicTransformerBlock`s: self-attention, and cross-attention where it takes a text."""

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_channels(self)
        self.scheduler = make_ddim(pipeline.scheduler, name)

    def schedule(self, steps: int) -> DiffusionSchedule:
        """As in `ProbeModel`; 1 to 999 steps."""
        return DiffusionSchedule(self.scheduler, steps)

    def without_variance(self, output: Tensor) -> Tensor:
        """The predicted noise, without the channels of a learned variance."""
        return output[:, : self.latent_channels].float()

    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""
        for path, block in blocks(self.denoiser, "transformer_blocks"):
            yield from layer_addresses("single", self.patch, "self", f"{path}.attn1", block.attn1)
            if block.attn2 is not None:
                yield from layer_addresses("single", self.patch, "cross", f"{path}.attn2", block.attn2)
            yield feedforward_address("single", self.patch, f"{path}.ff", self.width)
            yield block_address("single", self.patch, path, self.width)


class PixArtModel(StreamModel):
    """A pipeline with a `PixArtTransformer2DModel`; alpha at 1024 pixels is told the size of its image."""

    @property
    def family(self) -> str:
        """Always "pixart"."""
        return "pixart"

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: T5's tokens and which of them are the text's."""
        hidden, mask, _, _ = self.pipeline.encode_prompt(prompt, False, device=self.device)
        added = {"encoder_attention_mask": mask}
        if self.denoiser.use_additional_conditions:
            added["resolution"] = torch.tensor([[height, width]], dtype=self.dtype, device=self.device)
            added["aspect_ratio"] = torch.tensor([[height / width]], dtype=self.dtype, device=self.device)
        return Conditioning(hidden.to(self.dtype), added)

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        told = torch.as_tensor(timestep, device=self.device)
        output = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=condition.hidden_states,
            encoder_attention_mask=condition.added["encoder_attention_mask"],
            timestep=told.expand(len(latents)) if told.ndim == 0 else told,
            added_cond_kwargs={name: condition.added.get(name) for name in ("resolution", "aspect_ratio")},
            return_dict=False,
        )
        return self.without_variance(output[0])


class DiTModel(StreamModel):
    """A pipeline with a `DiTTransformer2DModel` (Peebles and Xie 2023): classes in the place of texts, squares only."""

    @property
    def family(self) -> str:
        """Always "dit"."""
        return "dit"

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The native square, whatever the image: the denoiser takes no other shape."""
        return self.native_size, self.native_size

    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`: a class's name or number; the empty prompt is the class of none.

        Raises:
            InputError: no such class.
        """
        nothing = int(self.denoiser.config.num_embeds_ada_norm)
        labels = getattr(self.pipeline, "labels", {})
        if not prompt:
            label = nothing
        elif prompt in labels:
            label = int(labels[prompt])
        elif prompt.isdecimal() and int(prompt) < nothing:
            label = int(prompt)
        else:
            raise InputError(
                f"prompt {prompt!r}: {self.name} takes classes; accepted: one of its {len(labels)} names, a number "
                f"below {nothing}, or nothing"
            )
        none = torch.zeros(1, 0, 0, dtype=self.dtype, device=self.device)
        return Conditioning(none, {"class_labels": torch.tensor([[label]], device=self.device)})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`.

        Raises:
            InputError: latents that are no square.
        """
        if latents.shape[-2] != latents.shape[-1]:
            raise InputError(f"latents of {latents.shape[-2]} x {latents.shape[-1]}: {self.name} takes squares only")
        told = torch.as_tensor(timestep, device=self.device)
        output = self.denoiser(
            latents.to(self.dtype),
            timestep=told.expand(len(latents)) if told.ndim == 0 else told,
            class_labels=condition.added["class_labels"][:, 0],
            return_dict=False,
        )
        return self.without_variance(output[0])
