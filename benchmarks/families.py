"""Every family of models at small widths with random weights: the topology, conditions and noise schedule published.

`python -m benchmarks.families OUT` writes one diffusers folder a family, which `load_model` and any other tool opens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from emerdiff_probe.pocket.architecture import build_tokenizer

WORDS = ("red", "car")
TEXT_WIDTH = 32
"""Channels of CLIP's text; T5's are twice as many."""


def autoencoder(*, latents: int, levels: int = 4, **scaling: float) -> AutoencoderKL:
    """An `AutoencoderKL` of so many latent channels and levels, eight channels wide."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latents,
        mid_block_add_attention=False,
        force_upcast=False,
        **scaling,
    )


def clip_settings(tokenizer: Any) -> CLIPTextConfig:
    """Settings of a CLIP text encoder of one layer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    """A T5 tokenizer that knows two words, and its encoder of one layer."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*special, *((f"▁{word}", -1.0) for word in WORDS)], extra_ids=0)
    settings = T5Config(vocab_size=len(tokenizer), d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return tokenizer, T5EncoderModel(settings)


def sd3(*, side: int = 16, layers: int = 3, dual: tuple[int, ...] = (), norm: str | None = None) -> DiffusionPipeline:
    """Stable Diffusion 3 medium, whose last block gives up its text; a shift of 3."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS, max_tokens=16)
    sentences, text = t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=side,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=3 * side // 2,
            dual_attention_layers=dual,
            qk_norm=norm,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(
            latents=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=CLIPTextModelWithProjection(clip_settings(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_settings(tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=text,
        tokenizer_3=sentences,
    )


def sd35_medium(*, side: int = 16, layers: int = 3) -> DiffusionPipeline:
    """Stable Diffusion 3.5 medium: normalised heads, and dual attention in the first half of its blocks."""
    return sd3(side=side, layers=layers, dual=tuple(range((layers + 2) // 2)), norm="rms_norm")


def sd35_large(*, side: int = 16, layers: int = 3) -> DiffusionPipeline:
    """Stable Diffusion 3.5 large: normalised heads, without dual attention."""
    return sd3(side=side, layers=layers, norm="rms_norm")


def flux(*, side: int = 16, layers: int = 2, singles: int = 2, distilled: bool = True) -> DiffusionPipeline:
    """Flux.1 dev (a guidance embedding, a shift that depends on the size), or schnell (neither)."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(WORDS, max_tokens=16)
    sentences, text = t5()
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled, base_shift=0.5, max_shift=1.15
        ),
        vae=autoencoder(
            latents=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=CLIPTextModel(clip_settings(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=text,
        tokenizer_2=sentences,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=layers,
            num_single_layers=singles,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    made.default_sample_size = side
    return made


def flux_schnell(*, side: int = 16) -> DiffusionPipeline:
    """Flux.1 schnell."""
    return flux(side=side, distilled=False)


def pixart(*, side: int = 16, layers: int = 3, sigma: bool = False) -> DiffusionPipeline:
    """PixArt-alpha, which learned variances and at 1024 pixels is told the image's size; or -sigma."""
    torch.manual_seed(0)
    sentences, text = t5()
    kind = PixArtSigmaPipeline if sigma else PixArtAlphaPipeline
    return kind(
        tokenizer=sentences,
        text_encoder=text,
        vae=autoencoder(latents=4, scaling_factor=0.13025 if sigma else 0.18215),
        transformer=PixArtTransformer2DModel(
            sample_size=side,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            caption_channels=2 * TEXT_WIDTH,
            use_additional_conditions=None if not sigma else False,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_sigma(*, side: int = 16, layers: int = 3) -> DiffusionPipeline:
    """PixArt-sigma."""
    return pixart(side=side, layers=layers, sigma=True)


def dit(*, side: int = 16, layers: int = 3) -> DiffusionPipeline:
    """DiT-XL/2 of ImageNet: a thousand classes and none, learned variances."""
    torch.manual_seed(0)
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            sample_size=side,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        ),
        vae=autoencoder(latents=4, scaling_factor=0.18215),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
        id2label={207: "golden retriever, retriever", 1: "goldfish"},
    )


def ddpm(*, side: int = 32) -> DiffusionPipeline:
    """google/ddpm-cifar10-32: pixels, no conditions, self-attention at the second of four levels."""
    torch.manual_seed(0)
    return DDPMPipeline(
        unet=UNet2DModel(
            sample_size=side,
            in_channels=3,
            out_channels=3,
            center_input_sample=False,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=2,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            norm_num_groups=4,
        ),
        scheduler=DDPMScheduler(clip_sample=True),
    )


def ldm(*, side: int = 16) -> DiffusionPipeline:
    """CompVis/ldm-celebahq-256: a U-Net without conditions on the latents of a VQ-VAE."""
    torch.manual_seed(0)
    return LDMPipeline(
        vqvae=VQModel(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8,) * 3,
            latent_channels=3,
            num_vq_embeddings=64,
            norm_num_groups=4,
            scaling_factor=1.0,
        ),
        unet=UNet2DModel(
            sample_size=side,
            in_channels=3,
            out_channels=3,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            attention_head_dim=8,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False),
    )


SMALL: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": sd3,
    "sd3.5-medium": sd35_medium,
    "sd3.5-large": sd35_large,
    "flux-dev": flux,
    "flux-schnell": flux_schnell,
    "pixart-alpha": pixart,
    "pixart-sigma": pixart_sigma,
    "dit": dit,
    "ddpm": ddpm,
    "ldm": ldm,
}
"""A pipeline of every family beside Stable Diffusion's U-Nets, by name."""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, build in SMALL.items():
        build().save_pretrained(place / name, safe_serialization=True)
        print(place / name)
