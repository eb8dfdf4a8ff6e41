"""Tiny real pipelines of every family, built from configuration with random weights in milliseconds."""

from copy import deepcopy
from functools import cache

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from emerdiff_probe.pocket.architecture import Architecture, Parts
from emerdiff_probe.pocket.clip import ClipArchitecture

ARCHITECTURE = Architecture(
    image_size=64,
    latent_channels=4,
    autoencoder_channels=(8, 8, 8),
    denoiser_channels=(16, 16, 32),
    denoiser_heads=(2, 2, 2),
    text_width=32,
    text_layers=1,
    text_heads=2,
    max_tokens=16,
)
"""Latents of 16 x 16."""


def parts(architecture=ARCHITECTURE, seed=0):
    made = Parts.build(architecture, ["red", "car"], seed=seed)
    made.autoencoder.register_to_config(scaling_factor=1.0)
    torch.manual_seed(seed)
    made.denoiser = UNet2DConditionModel(  # cross-attention at 16 x 16, 8 x 8 and 4 x 4
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    return made


def pocket(prediction_type="epsilon", seed=0):
    made = parts(seed=seed)
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config, prediction_type=prediction_type)
    return made.pipeline()


@cache
def _shared():
    """Parts that others have their words and schedule from; read only."""
    return parts()


def words():
    """A tokenizer of one's own."""
    return deepcopy(_shared().tokenizer)


def autoencoder(levels):
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def text_settings(tokenizer, width):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def stable_diffusion(*, sample_size, channels, levels, groups, heads, cross_width, prediction_type, linear=False):
    """Blocks as in Stable Diffusion 1.4 and 2.1: cross-attention in the three finer of four levels."""
    tokenizer = words()
    torch.manual_seed(0)
    denoiser = UNet2DConditionModel(
        sample_size=sample_size,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=2,
        cross_attention_dim=cross_width,
        attention_head_dim=heads,
        norm_num_groups=groups,
        use_linear_projection=linear,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(levels),
        unet=denoiser,
        text_encoder=CLIPTextModel(text_settings(tokenizer, cross_width)),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler.from_config(_shared().scheduler.config, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd1():
    """The topology of Stable Diffusion v1.4 at its native 512 pixels, narrow."""
    return stable_diffusion(
        sample_size=64,
        channels=(32, 64, 64, 64),
        levels=4,
        groups=16,
        heads=8,
        cross_width=32,
        prediction_type="epsilon",
    )


def sd2():
    """The topology of Stable Diffusion v2.1 (v-prediction, linear projections, wide text), small and narrow."""
    return stable_diffusion(
        sample_size=16,
        channels=(16, 16, 32, 32),
        levels=2,
        groups=8,
        heads=(2, 2, 4, 4),
        cross_width=1024,
        prediction_type="v_prediction",
        linear=True,
    )


def sdxl():
    """The topology of Stable Diffusion XL, small, narrow and with fewer transformer blocks a layer."""
    tokenizer = words()
    torch.manual_seed(0)
    denoiser = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 16, 32),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        norm_num_groups=8,
    )
    settings = text_settings(tokenizer, 32)
    return StableDiffusionXLPipeline(
        vae=autoencoder(2),
        unet=denoiser,
        text_encoder=CLIPTextModel(settings),
        text_encoder_2=CLIPTextModelWithProjection(settings),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=DDIMScheduler.from_config(_shared().scheduler.config),
        add_watermarker=False,
    )


def picture(height=64, width=64, seed=0):
    """Smooth random colours, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 64
    waves = [np.sin(rng.uniform(2, 9) * rows + rng.uniform(2, 9) * columns + rng.uniform(0, 6)) for _ in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, -1)).astype(np.uint8)


def hooks_of(module):
    """Every hook that the module or a part of it holds."""
    registries = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    )
    return [hook for part in module.modules() for name in registries for hook in getattr(part, name).values()]


def state_of(module):
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def clip(seed=0):
    """A CLIP model and its tokenizer: 32 x 32 pixels in patches of 8, two words."""
    architecture = ClipArchitecture(
        image_size=32,
        patch_size=8,
        width=16,
        layers=3,
        heads=2,
        text_width=16,
        text_layers=1,
        text_heads=2,
        projection=12,
        max_tokens=16,
    )
    return architecture.build(["red", "car"], seed=seed)
