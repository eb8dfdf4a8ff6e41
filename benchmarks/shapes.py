"""Models to measure: loaded as always, or Stable Diffusion v1.4's exact architecture with random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.architecture import build_tokenizer

SD14_SHAPE = "sd14-shape"


def load(name: str, device: str | None, dtype: str | None, size: int | None) -> ProbeModel:
    """A model by name; `size` in pixels is the native size of a model without weights, 512 when None."""
    source = stable_diffusion_shape(size or 512) if name == SD14_SHAPE else name
    return load_model(source, device=device, dtype=dtype)


def stable_diffusion_shape(size: int = 512) -> StableDiffusionPipeline:
    """Stable Diffusion v1.4 as its published configuration says, with random weights; `size` is its native one.

    Every layer has its true width, so that a pass costs what it costs with the trained weights.
    """
    torch.manual_seed(0)
    tokenizer = build_tokenizer([], max_tokens=77)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=size,
            force_upcast=False,
        ),
        unet=UNet2DConditionModel(
            sample_size=size // 8,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                vocab_size=49408,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
