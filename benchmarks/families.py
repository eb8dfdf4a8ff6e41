"""Every family of models at small widths with random weights: the topology, conditions and noise schedule published.

`python -m benchmarks.families OUT` writes one diffusers folder a family, which `load_model` and any other tool opens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    CogView4Transformer2DModel,
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
    IFPipeline,
    LCMScheduler,
    LDMPipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
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


def sana(*, side: int = 4, layers: int = 3) -> DiffusionPipeline:
    """Sana 1.6B at 1024 pixels: linear self-attention, latents of 32 channels a thirty-second of the image."""
    torch.manual_seed(0)
    sentences, _ = t5()
    text = Gemma2Model(
        Gemma2Config(
            vocab_size=len(sentences),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            pad_token_id=0,
        )
    )
    levels = 6
    return SanaPipeline(
        tokenizer=sentences,
        text_encoder=text,
        vae=AutoencoderDC(
            latent_channels=32,
            attention_head_dim=4,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=(32,) * levels,
            decoder_block_out_channels=(32,) * levels,
            encoder_layers_per_block=(1,) * levels,
            decoder_layers_per_block=(1,) * levels,
            encoder_qkv_multiscales=((),) * levels,
            decoder_qkv_multiscales=((),) * levels,
            scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            sample_size=side,
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
        ),
        scheduler=DPMSolverMultistepScheduler(
            flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True, beta_schedule="linear"
        ),
    )


def auraflow(*, side: int = 16, layers: int = 2, singles: int = 2) -> DiffusionPipeline:
    """AuraFlow: blocks of two streams, then of one sequence; a shift of 1.73."""
    torch.manual_seed(0)
    sentences, _ = t5()
    settings = UMT5Config(vocab_size=len(sentences), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return AuraFlowPipeline(
        tokenizer=sentences,
        text_encoder=UMT5EncoderModel(settings),
        vae=autoencoder(latents=4, scaling_factor=0.13025),
        transformer=AuraFlowTransformer2DModel(
            sample_size=side,
            num_mmdit_layers=layers,
            num_single_dit_layers=singles,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pos_embed_max_size=side**2,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
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
    "sana": sana,
    "auraflow": auraflow,
    "ddpm": ddpm,
    "ldm": ldm,
}
"""A pipeline of every family beside Stable Diffusion's U-Nets, by name."""
PUBLISHED: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": partial(sd3, side=128, layers=24),
    "sd3.5-medium": partial(sd35_medium, side=128, layers=24),
    "sd3.5-large": partial(sd35_large, side=128, layers=38),
    "flux-dev": partial(flux, side=128, layers=19, singles=38),
    "flux-schnell": partial(flux, side=128, layers=19, singles=38, distilled=False),
    "pixart-alpha": partial(pixart, side=128, layers=28),
    "pixart-sigma": partial(pixart_sigma, side=128, layers=28),
    "dit": partial(dit, side=32, layers=28),
    "sana": partial(sana, side=32, layers=20),
    "auraflow": partial(auraflow, side=64, layers=4, singles=32),
    "ddpm": ddpm,
    "ldm": partial(ldm, side=64),
}
"""The same at their published depth and grid; for lists of sites, too large to run in a test."""


def changed(module: Any, **settings: Any) -> Any:
    """A module like this one with other settings and fresh weights."""
    kept = {key: value for key, value in module.config.items() if not key.startswith("_")}
    return type(module)(**{**kept, **settings})


def inpainting_flux() -> DiffusionPipeline:
    """Flux.1 Fill, whose denoiser also takes a mask and the masked image."""
    made = flux()
    made.transformer = changed(made.transformer, in_channels=384)
    return made


def sana_sprint() -> DiffusionPipeline:
    """Sana Sprint, distilled to a few steps of a schedule of its own."""
    made = sana()
    made.transformer = changed(made.transformer, guidance_embeds=True)
    made.scheduler = SCMScheduler()
    return made


def pixart_lcm() -> DiffusionPipeline:
    """PixArt-LCM, distilled to a few steps."""
    made = pixart()
    made.scheduler = LCMScheduler()
    return made


def lumina2() -> DiffusionPipeline:
    """Lumina 2, in whose batches text and image have no fixed places."""
    made = sd3()
    made.transformer = Lumina2Transformer2DModel(
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        axes_dim_rope=(4, 4, 4),
        cap_feat_dim=8,
    )
    return made


def cogview4() -> DiffusionPipeline:
    """CogView 4."""
    made = sd3()
    made.transformer = CogView4Transformer2DModel(num_layers=1, num_attention_heads=2, text_embed_dim=8)
    return made


def deepfloyd_if() -> DiffusionPipeline:
    """DeepFloyd IF, stage I: pixels and a text, and a denoiser that projects the text itself."""
    torch.manual_seed(0)
    sentences, text = t5()
    return IFPipeline(
        tokenizer=sentences,
        text_encoder=text,
        unet=UNet2DConditionModel(
            sample_size=64,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=8,
            encoder_hid_dim=2 * TEXT_WIDTH,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
        ),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def class_conditional_pixels() -> DiffusionPipeline:
    """A U-Net on pixels that is told one of ten classes."""
    made = ddpm()
    made.unet = changed(made.unet, num_class_embeds=10)
    return made


REFUSED: dict[str, Callable[[], DiffusionPipeline]] = {
    "Flux.1 Fill": inpainting_flux,
    "Sana Sprint": sana_sprint,
    "PixArt-LCM": pixart_lcm,
    "Lumina 2": lumina2,
    "CogView 4": cogview4,
    "DeepFloyd IF, stage I": deepfloyd_if,
    "class-conditional U-Net on pixels": class_conditional_pixels,
}
"""Pipelines that no family serves, each refused at load by what it is."""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, build in SMALL.items():
        build().save_pretrained(place / name, safe_serialization=True)
        print(place / name)
