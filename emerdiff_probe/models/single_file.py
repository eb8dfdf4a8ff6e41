"""Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL, as A1111 and ComfyUI keep them; no hub is asked.

Everything is read off the file: the shapes of its tensors give the configuration, and CLIP's vocabulary comes with this
package. diffusers' own functions convert the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.clip_vocabulary import make_clip_tokenizer
from emerdiff_probe.models.conditions import require_own_latents
from emerdiff_probe.models.folders import named_errors
from emerdiff_probe.models.weights import BUFFERS, Shapes, read_shapes, require_tensors

Kind = Literal["sd1", "sd2", "sdxl"]
DENOISER, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
TEXTS: dict[Kind, tuple[str, ...]] = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
"""Where each kind keeps its text encoders; "….model." is OpenCLIP's format."""
SPARE = re.compile(
    r"^(model_ema\.|(sqrt_|log_)?(one_minus_)?(recip_?m?1?_?)?alphas_cumprod|posterior_|betas$|lvlb_weights|logvar$"
    r"|sqrt_recipm1_|log_one_minus_|denoiser\.sigmas$|v_pred$|ztsnr$|first_stage_model\.loss\.)"
    r"|logit_scale$|position_ids$|attn_mask$"
)
"""Tensors beside the networks: tables of the noise schedule, averages kept for training, marks of the trainer."""
OTHERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "lora_": "a LoRA: load the model that it is for, with lora=",
    "emb_params": "a textual inversion: load the model that it is for, with embeddings=",
    "clip_l": "a textual inversion: load the model that it is for, with embeddings=",
    "control_model.": "a ControlNet",
    "down_blocks.": "one part of a diffusers folder: give the folder",
    "edm_": "a model trained with EDM's noise",
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL, which is told an aesthetic score",
}
CHECKPOINTS = "checkpoints of Stable Diffusion 1.x, 2.x and XL with denoiser, autoencoder and text encoders in one file"
NORM_GROUPS = 32
HEAD = 64
"""Channels of an attention head, but in the denoiser of Stable Diffusion 1.x, which has eight heads everywhere."""


class _Part(NamedTuple):
    name: str
    module: nn.Module
    """On the meta device."""
    prefix: str
    """Of its tensors in the file."""


def load_single_file(file: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline in a checkpoint. What can be refused is, from the header alone, before weights are read.

    Args:
        file: of safetensors.
        dtype: of the weights; the autoencoder of Stable Diffusion XL is kept in float32.

    Raises:
        ModelError: another kind of model, tensors that are missing or have no place, or a prediction that the file does
            not tell.
    """
    shapes = read_shapes([file])
    with safe_open(file, "pt") as opened:
        notes = opened.metadata() or {}
    kind = _find_kind(shapes, file)
    prediction = _find_prediction(kind, shapes, notes, file)
    with named_errors(file, CHECKPOINTS):
        parts = _build_empty(kind, shapes, prediction)
        empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        converted = {part.name: _convert(part, empty) for part in parts}
    for part in parts:
        expected = {name: tuple(tensor.shape) for name, tensor in part.module.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in converted[part.name].items()}
        require_tensors(expected, found, f"{file}: {part.name}")
    require_tensors({}, dict.fromkeys(_unused(empty, converted, parts), ()), str(file))
    modules = {part.name: part.module for part in parts}
    require_own_latents(modules["unet"].config, modules["vae"].config, str(file))  # type: ignore[arg-type]
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr="ztsnr" in shapes,
    )
    with named_errors(file, CHECKPOINTS):
        weights = load_file(file)
        _require_schedule(weights, scheduler, file)
        for part in parts:
            _fill(part, weights, dtype)
        del weights
        return _assemble(kind, modules, scheduler, file)


def _find_kind(shapes: Shapes, file: Path) -> Kind:
    for mark in ("edm_", "control_model."):
        if any(name.startswith(mark) for name in shapes):
            raise ModelError(f"{file}: {OTHERS[mark]}; accepted: {CHECKPOINTS}")
    for kind, prefixes in TEXTS.items():
        wanted = (DENOISER, AUTOENCODER, *prefixes)
        if all(any(name.startswith(prefix) for name in shapes) for prefix in wanted):
            return kind
    hints = [hint for mark, hint in OTHERS.items() if any(mark in name for name in shapes)]
    absent = [prefix for prefix in (DENOISER, AUTOENCODER) if not any(name.startswith(prefix) for name in shapes)]
    reason = hints[0] if hints else f"without {', '.join(absent) or 'a text encoder that is known'}"
    raise ModelError(f"{file}: {reason}; accepted: {CHECKPOINTS}, or a diffusers folder")


def _find_prediction(kind: Kind, shapes: Shapes, notes: Mapping[str, str], file: Path) -> str:
    """What the denoiser predicts: by a mark, the file's notes or the `.yaml` beside it; Stable Diffusion 2 has both."""
    names = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
    if "v_pred" in shapes:
        return "v_prediction"
    noted = notes.get("modelspec.prediction_type")
    yaml = file.with_suffix(".yaml")
    if noted is None and yaml.is_file():
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", yaml.read_text(errors="replace"), re.MULTILINE)
        noted = found[1] if found else "epsilon"  # as in CompVis' code, where nothing is said
    if noted is None and kind != "sd2":
        return "epsilon"
    if noted not in names:
        raise ModelError(
            f"{file}: what the denoiser predicts is {noted!r}; accepted: epsilon or v, said by "
            f"modelspec.prediction_type in the file or by parameterization in {yaml.name} beside it"
        )
    return names[noted]


def _build_empty(kind: Kind, shapes: Shapes, prediction: str) -> list[_Part]:
    with torch.device("meta"):
        if kind == "sdxl":
            first, second = TEXTS["sdxl"]
            texts = [
                _Part("text_encoder", CLIPTextModel(_text_settings(shapes, f"{first}text_model.")), first),
                _Part("text_encoder_2", CLIPTextModelWithProjection(_open_clip_settings(shapes, second)), second),
            ]
        elif kind == "sd2":
            prefix = TEXTS["sd2"][0]
            texts = [_Part("text_encoder", CLIPTextModel(_open_clip_settings(shapes, prefix, skipped=1)), prefix)]
        else:
            prefix = TEXTS["sd1"][0]
            texts = [_Part("text_encoder", CLIPTextModel(_text_settings(shapes, f"{prefix}text_model.")), prefix)]
        pooled = shapes[f"{TEXTS['sdxl'][1]}text_projection"][1] if kind == "sdxl" else None
        side = 128 if kind == "sdxl" else 96 if kind == "sd2" and prediction == "v_prediction" else 64
        denoiser = UNet2DConditionModel(**_denoiser_settings(shapes, kind, pooled), sample_size=side)
        autoencoder = AutoencoderKL(**_autoencoder_settings(shapes, kind))
    return [*texts, _Part("vae", autoencoder, AUTOENCODER), _Part("unet", denoiser, DENOISER)]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand in the place of the pattern's group."""
    found = {match[1] for match in map(re.compile(pattern).match, shapes) if match}
    return len(found)


def _denoiser_settings(shapes: Shapes, kind: Kind, pooled: int | None) -> dict[str, Any]:
    blocks = f"{DENOISER}input_blocks."
    channels: list[int] = []
    depths: list[int] = []
    resnets: list[int] = []
    width = 0
    for i in range(1, _count(shapes, rf"{re.escape(blocks)}(\d+)\.")):
        resnet = f"{blocks}{i}.0.out_layers.3.weight"
        if resnet not in shapes:
            channels.append(width)
            continue
        if len(resnets) == len(channels):
            resnets.append(0)
            depths.append(_count(shapes, rf"{re.escape(blocks)}{i}\.1\.transformer_blocks\.(\d+)\."))
        resnets[-1] += 1
        width = shapes[resnet][0]
    channels.append(width)
    middle = _count(shapes, rf"{re.escape(DENOISER)}middle_block\.1\.transformer_blocks\.(\d+)\.")
    crossed = [depth > 0 for depth in depths]
    query = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    projection = next(name for name in shapes if name.startswith(DENOISER) and name.endswith("1.proj_in.weight"))
    settings: dict[str, Any] = {
        "in_channels": shapes[f"{blocks}0.0.weight"][1],
        "out_channels": shapes[f"{DENOISER}out.2.weight"][0],
        "block_out_channels": tuple(channels),
        "layers_per_block": resnets[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed),
        "up_block_types": tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossed)),
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), depths[-1] or middle or 1),
        "cross_attention_dim": shapes[query][1],
        "use_linear_projection": len(shapes[projection]) == 2,
        "attention_head_dim": 8 if kind == "sd1" else tuple(max(1, width // HEAD) for width in channels),
        "norm_num_groups": NORM_GROUPS,
    }
    if kind == "sdxl" and pooled is not None:
        told = shapes[f"{DENOISER}label_emb.0.0.weight"][1]
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (told - pooled) // 6,
            "projection_class_embeddings_input_dim": told,
        }
    return settings


def _autoencoder_settings(shapes: Shapes, kind: Kind) -> dict[str, Any]:
    levels = _count(shapes, rf"{re.escape(AUTOENCODER)}encoder\.down\.(\d+)\.")
    return {
        "block_out_channels": tuple(
            shapes[f"{AUTOENCODER}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)
        ),
        "layers_per_block": _count(shapes, rf"{re.escape(AUTOENCODER)}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": shapes[f"{AUTOENCODER}decoder.conv_in.weight"][1],
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": 0.13025 if kind == "sdxl" else 0.18215,
        "force_upcast": kind == "sdxl",
    }


def _text_settings(shapes: Shapes, prefix: str) -> CLIPTextConfig:
    """Of OpenAI's CLIP, in transformers' own names."""
    words, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=_count(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        num_attention_heads=width // HEAD,
        max_position_embeddings=shapes[f"{prefix}embeddings.position_embedding.weight"][0],
        projection_dim=width,
        hidden_act="quick_gelu",
        **_ends(words),
    )


def _open_clip_settings(shapes: Shapes, prefix: str, *, skipped: int = 0) -> CLIPTextConfig:
    """Of OpenCLIP; Stable Diffusion 2 reads its text before the last block."""
    words, width = shapes[f"{prefix}token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=_count(shapes, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.") - skipped,
        num_attention_heads=width // HEAD,
        max_position_embeddings=shapes[f"{prefix}positional_embedding"][0],
        projection_dim=shapes[f"{prefix}text_projection"][1],
        hidden_act="gelu",
        **_ends(words),
    )


def _ends(words: int) -> dict[str, int]:
    return {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}


def _convert(part: _Part, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one part under the names of its module."""
    own = {name: tensor for name, tensor in weights.items() if name.startswith(part.prefix) and not SPARE.search(name)}
    module: Any = part.module
    if part.name == "unet":
        return convert_ldm_unet_checkpoint(own, module.config)
    if part.name == "vae":
        return convert_ldm_vae_checkpoint(own, module.config)
    if part.prefix.endswith(".model."):
        last = f"{part.prefix}transformer.resblocks.{module.config.num_hidden_layers}."
        converted = convert_open_clip_checkpoint(
            module, {name: tensor for name, tensor in own.items() if not name.startswith(last)}, prefix=part.prefix
        )
    else:
        converted = convert_ldm_clip_checkpoint(own)
    known = module.state_dict().keys()
    named = {name if name in known else name.removeprefix("text_model."): value for name, value in converted.items()}
    if "text_projection.weight" not in known:
        named.pop("text_projection.weight", None)
    return named


def _unused(
    empty: Mapping[str, Tensor], converted: Mapping[str, Mapping[str, Tensor]], parts: Iterable[_Part]
) -> list[str]:
    """Tensors of the file that no part took; what OpenCLIP's conversion copies is known by its prefix."""
    taken = {
        id(tensor if tensor._base is None else tensor._base)
        for values in converted.values()
        for tensor in values.values()
    }
    copied = tuple(part.prefix for part in parts if part.prefix.endswith(".model."))
    return [
        name
        for name, tensor in empty.items()
        if id(tensor) not in taken and not SPARE.search(name) and not (copied and name.startswith(copied))
    ]


def _require_schedule(weights: Mapping[str, Tensor], scheduler: DDIMScheduler, file: Path) -> None:
    own = weights.get("alphas_cumprod")
    if own is None or scheduler.config.rescale_betas_zero_snr:
        return
    if own.shape != scheduler.alphas_cumprod.shape or not torch.allclose(
        own.float(), scheduler.alphas_cumprod, 1e-2, 1e-3
    ):
        raise ModelError(f"{file}: its noise levels (alphas_cumprod) are not Stable Diffusion's; accepted: those")


def _fill(part: _Part, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    module: Any = part.module
    precision = torch.float32 if part.name == "vae" and module.config.force_upcast else dtype
    tensors = {
        name: tensor.to(precision).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in _convert(part, weights).items()
    }
    module.load_state_dict(tensors, strict=True, assign=True)
    for path, buffer in list(module.named_buffers()):
        if buffer.is_meta and BUFFERS.search(path):
            owner, _, name = path.rpartition(".")
            places = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            setattr(module.get_submodule(owner), name, places)
    module.eval()


def _assemble(kind: Kind, modules: Mapping[str, nn.Module], scheduler: DDIMScheduler, file: Path) -> DiffusionPipeline:
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **modules,
            tokenizer=make_clip_tokenizer(),
            tokenizer_2=make_clip_tokenizer("!"),
            scheduler=scheduler,
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        **modules,
        tokenizer=make_clip_tokenizer("!" if kind == "sd2" else "<|endoftext|>"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
