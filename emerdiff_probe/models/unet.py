"""Stable Diffusion 1.x, 2.x, XL and the pocket model: a U-Net with cross-attention on the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.addresses import Address, Kind, Part, Stage
from emerdiff_probe.models.autoencoders import accepted_autoencoders
from emerdiff_probe.models.conditions import find_sample_size, require_own_latents
from emerdiff_probe.models.noise_schedule import make_ddim
from emerdiff_probe.models.probe_model import Conditioning, Pass, ProbeModel
from emerdiff_probe.models.schedules import DiffusionSchedule


class UNetModel(ProbeModel):
    """A latent diffusion model with a `UNet2DConditionModel`.

    Its family is "pocket", "sd1", "sd2" or "sdxl". Its `scheduler` is a `DDIMScheduler` on the model's own noise
    schedule, with the paper's grid ("leading" spacing, offset 1: 981, …, 281, …, 21, 1 for 50 steps).

    Raises:
        ModelError: no autoencoder, or a denoiser that takes more than its latents.
    """

    component: ClassVar[str] = "unet"
    equal_rows: ClassVar[bool] = True
    families: ClassVar[tuple[str, ...]] = ("pocket", "sd1", "sd2", "sdxl")

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        if self.autoencoder is None:
            raise ModelError(f"{name}: the autoencoder is NoneType; accepted: {accepted_autoencoders()}")
        require_own_latents(self.denoiser.config, self.autoencoder.config, name)
        self.scheduler = make_ddim(pipeline.scheduler, name)

    @property
    def family(self) -> str:
        """Which known model this is: as it was said, else by its structure.

        Stable Diffusion 1.x is known by the width of its text or by its size: there are copies for 256 pixels.
        """
        if self.told_family is not None:
            return self.told_family
        if self.denoiser.config.addition_embed_type == "text_time":
            return "sdxl"
        width = self.denoiser.config.cross_attention_dim
        if width == 1024:
            return "sd2"
        return "sd1" if width == 768 or self.native_size >= 512 else "pocket"

    @property
    def latent_side(self) -> int:
        """Latent cells along a side of the native square."""
        return find_sample_size(self.denoiser.config, self.name)

    @property
    def levels(self) -> int:
        """Levels of the U-Net."""
        return len(self.denoiser.config.block_out_channels)

    def schedule(self, steps: int) -> DiffusionSchedule:
        """As in `ProbeModel`; 1 to 999 steps."""
        return DiffusionSchedule(self.scheduler, steps)

    @torch.no_grad()
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """As in `ProbeModel`; the empty prompt of Stable Diffusion XL is zeros where its pipeline asks for that."""
        if self.denoiser.config.addition_embed_type == "text_time":
            embedding, _, pooled, _ = self.pipeline.encode_prompt(
                prompt, device=self.device, do_classifier_free_guidance=False
            )
            if not prompt and self.pipeline.config.get("force_zeros_for_empty_prompt"):
                embedding, pooled = torch.zeros_like(embedding), torch.zeros_like(pooled)
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype, device=self.device)
            return Conditioning(embedding.to(self.dtype), {"text_embeds": pooled.to(self.dtype), "time_ids": sizes})
        embedding, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return Conditioning(embedding.to(self.dtype), {})

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """As in `ProbeModel`."""
        output = self.denoiser(
            latents.to(self.dtype),
            timestep,
            encoder_hidden_states=condition.hidden_states,
            added_cond_kwargs=dict(condition.added),
            return_dict=False,
        )
        return output[0].float()

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


def coarsest_unet_blocks(denoiser: Any, levels: int) -> tuple[str, ...]:
    """Paths of the blocks of a U-Net's coarsest levels: downwards, the middle, upwards."""
    if levels == 0:
        return ()
    down, up = len(denoiser.down_blocks), len(denoiser.up_blocks)
    middle = ["mid_block"] if denoiser.mid_block is not None else []
    return (
        *(f"down_blocks.{i}" for i in range(down - levels, down)),
        *middle,
        *(f"up_blocks.{i}" for i in range(min(levels, up))),
    )


def read_timesteps(timestep: int | float | Tensor, rows: int, scale: float = 1.0) -> tuple[int, ...]:
    """The integer timestep of every row, from the denoiser's argument, of which `scale` times is on 0 to 1000."""
    values = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
    rounded = [round(scale * value) for value in values]
    return tuple(rounded if len(rounded) == rows else rounded * rows)


def unet_addresses(denoiser: Any) -> Iterator[Address]:
    """Every tensor of a U-Net of diffusers that has a site, in the order of execution."""
    scale = 1
    for i, block in enumerate(denoiser.down_blocks):
        yield from _layer_addresses("down", scale, f"down_blocks.{i}", block)
        scale *= 2 if block.downsamplers is not None else 1
        yield Address("down", scale, "block", "output", f"down_blocks.{i}", block.resnets[-1].out_channels)
    if (block := denoiser.mid_block) is not None:
        yield from _layer_addresses("mid", scale, "mid_block", block)
        yield Address("mid", scale, "block", "output", "mid_block", block.resnets[-1].out_channels)
    for i, block in enumerate(denoiser.up_blocks):
        yield from _layer_addresses("up", scale, f"up_blocks.{i}", block)
        scale //= 2 if block.upsamplers is not None else 1
        yield Address("up", scale, "block", "output", f"up_blocks.{i}", block.resnets[-1].out_channels)


def _layer_addresses(stage: Stage, scale: int, block_path: str, block: Any) -> Iterator[Address]:
    attentions = getattr(block, "attentions", ())
    for i, resnet in enumerate(block.resnets):
        yield Address(stage, scale, "resnet", "output", f"{block_path}.resnets.{i}", resnet.out_channels)
        if i < len(attentions) and attentions[i] is not None:
            yield from transformer_addresses(stage, scale, f"{block_path}.attentions.{i}", attentions[i])


def transformer_addresses(stage: Stage, scale: int, path: str, transformer: nn.Module) -> Iterator[Address]:
    """Tensors of the attention and feed-forward layers inside a module, in the order in which it holds them."""
    for name, module in transformer.named_modules():
        module_path = f"{path}.{name}" if name else path
        if isinstance(module, Attention):
            kind: Kind = "cross" if module.is_cross_attention else "self"
            yield from attention_addresses(stage, scale, kind, module_path, module)
        elif isinstance(module, FeedForward):
            yield Address(stage, scale, "feedforward", "output", module_path, module.net[-1].out_features)


def attention_addresses(stage: Stage, scale: int, kind: Kind, path: str, attention: Any) -> Iterator[Address]:
    """The five tensors of an attention layer."""
    parts: tuple[tuple[Part, str], ...] = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"))
    for part, projection in parts:
        channels = attention.get_submodule(projection).out_features
        yield Address(stage, scale, kind, part, f"{path}.{projection}", channels, layer=path)
    output = attention.to_out[0]
    yield Address(stage, scale, kind, "heads", f"{path}.to_out.0", output.in_features, "input", layer=path)
    # A layer that adds its own input gives more than its output projection does.
    after = f"{path}.to_out.0" if attention.residual_connection else path
    yield Address(stage, scale, kind, "output", after, output.out_features, layer=path)
