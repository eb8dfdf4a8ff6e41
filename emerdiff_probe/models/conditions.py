"""What a U-Net pipeline asks to be told besides latent, timestep and text: nothing that we leave out in silence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from emerdiff_probe.errors import ModelError

NEEDED = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")
"""Components without which a U-Net pipeline cannot be probed."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""Components that say nothing to the denoiser where a text encoder does; they are not loaded."""
SECOND = ("tokenizer_2", "text_encoder_2")


def require_known_conditions(
    denoiser: Mapping[str, Any], components: Mapping[str, Any], settings: Mapping[str, Any], name: str
) -> None:
    """Refuse a U-Net pipeline whose denoiser must be told more than a text, or less.

    Args:
        denoiser: configuration of the `UNet2DConditionModel`.
        components: of the pipeline, by name; None where one is not there. Only whether they are None is asked.
        settings: of the pipeline itself.
        name: of the model, for messages.

    Raises:
        ModelError: a component is missing or not known, a condition that we do not tell, or a size that is no square.
    """
    for reason in _unserved(denoiser, settings):  # first, as it says best what the model is
        raise ModelError(f"{name}: {reason}; accepted: a U-Net that is told latents, timestep and text alone")
    missing = [part for part in NEEDED if components.get(part) is None]
    if missing:
        image = " (it is told an image, as image variations are)" if components.get("image_encoder") is not None else ""
        raise ModelError(f"{name}: the pipeline has no {', no '.join(missing)}{image}; accepted: {', '.join(NEEDED)}")
    known = {*NEEDED, *UNUSED, *SECOND}
    strange = sorted(part for part, value in components.items() if value is not None and part not in known)
    if strange:
        raise ModelError(f"{name}: the pipeline also has {', '.join(strange)}; accepted: {', '.join(sorted(known))}")
    find_sample_size(denoiser, name)


def _unserved(denoiser: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Reasons why a denoiser cannot be told all that it was trained with."""
    if denoiser.get("class_embed_type") is not None or denoiser.get("num_class_embeds") is not None:
        kind = denoiser.get("class_embed_type") or f"{denoiser['num_class_embeds']} classes"
        yield f"the denoiser is told a class or an image embedding ({kind}), as unCLIP's and upscaling ones are"
    if denoiser.get("encoder_hid_dim_type") is not None or denoiser.get("encoder_hid_dim") is not None:
        kind = denoiser.get("encoder_hid_dim_type") or "text_proj"
        yield f"the denoiser projects its own conditions ({kind}), as IP-Adapter, Kandinsky, Kolors and IF do"
    if denoiser.get("time_cond_proj_dim") is not None:
        yield "the denoiser is told a guidance scale (time_cond_proj_dim), as latent consistency models are"
    if "gated" in str(denoiser.get("attention_type")):
        yield f"the denoiser has {denoiser['attention_type']} attention to boxes, as GLIGEN"
    if settings.get("requires_aesthetics_score"):
        yield "the denoiser is told an aesthetic score, as the refiner of Stable Diffusion XL"
    embedding = denoiser.get("addition_embed_type")
    if embedding not in (None, "text_time"):
        yield f"the denoiser is told {embedding!r} besides its text"
    if denoiser.get("out_channels") != denoiser.get("in_channels") and denoiser.get("in_channels") in (3, 4, 16):
        yield f"the denoiser makes {denoiser.get('out_channels')} channels of {denoiser.get('in_channels')}"


def find_sample_size(denoiser: Mapping[str, Any], name: str) -> int:
    """Side of the square latents that a denoiser was trained on.

    Args:
        denoiser: its configuration.
        name: of the model, for messages.

    Raises:
        ModelError: none is given, or a rectangle.
    """
    given = denoiser.get("sample_size")
    sides = given if isinstance(given, (list, tuple)) else [given]
    if not sides or len(set(map(str, sides))) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise ModelError(
            f"{name}: sample_size {given!r} of the denoiser; accepted: one whole number above 0, or the same one twice"
        )
    return int(sides[0])


def require_own_latents(denoiser: Mapping[str, Any], autoencoder: Mapping[str, Any], name: str) -> None:
    """Refuse a denoiser that takes more than latents, or other ones than its autoencoder's.

    Args:
        denoiser, autoencoder: their configurations.
        name: of the model, for messages.

    Raises:
        ModelError: both numbers of channels.
    """
    if denoiser.get("in_channels") != autoencoder.get("latent_channels"):
        raise ModelError(
            f"{name}: the denoiser takes {denoiser.get('in_channels')} channels, as for inpainting, depth or upscaling;"
            f" accepted: the {autoencoder.get('latent_channels')} of its autoencoder's latents"
        )


def require_fitting_parts(pipeline: Any, name: str) -> None:
    """Refuse a U-Net pipeline in which one part does not give what the next one takes.

    Args:
        pipeline: with its modules loaded; its conditions are known (`require_known_conditions`).
        name: of the model, for messages.

    Raises:
        ModelError: text of another width than the denoiser takes, six sizes that do not fit (the refiner's five), or an
            autoencoder of other than three colours or with scaling that is not ours.
    """
    denoiser, autoencoder = pipeline.unet.config, pipeline.vae.config
    for key in ("scaling_factor", "shift_factor"):
        value = autoencoder.get(key)
        needed = key == "scaling_factor"
        if value is None and not needed:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value) or (needed and value <= 0):
            raise ModelError(
                f"{name}: {key} {value!r} of the autoencoder; accepted: a finite number{' above 0' if needed else ''}"
            )
    for key in ("latents_mean", "latents_std"):
        if autoencoder.get(key) is not None:
            raise ModelError(f"{name}: the autoencoder has {key}, one number a channel; accepted: a scaling_factor")
    colours = (autoencoder.get("in_channels"), autoencoder.get("out_channels"))
    if colours != (3, 3):
        raise ModelError(f"{name}: the autoencoder takes and makes {colours} channels; accepted: 3 and 3, colours")
    second: Any = getattr(pipeline, "text_encoder_2", None)
    encoders = [pipeline.text_encoder] + ([second] if second is not None else [])
    width = sum(int(encoder.config.hidden_size) for encoder in encoders)
    takes = denoiser.get("cross_attention_dim")
    accepted = set(takes) if isinstance(takes, (list, tuple)) else {takes}
    if accepted != {width}:
        raise ModelError(
            f"{name}: the text encoder gives {width} channels, the denoiser takes {takes}; accepted: equal"
        )
    for tokenizer, encoder in zip((pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)), encoders, strict=False):
        _require_fitting_tokenizer(tokenizer, encoder.config, name)
    timed = denoiser.get("addition_embed_type") == "text_time"
    if timed != (second is not None):
        raise ModelError(
            f"{name}: addition_embed_type {denoiser.get('addition_embed_type')!r} with "
            f"{len(encoders)} text encoder{'s' if second is not None else ''}; accepted: 'text_time' with two, None "
            "with one"
        )
    if timed:
        pooled = int(second.config.projection_dim)
        told = (denoiser["projection_class_embeddings_input_dim"] - pooled) / denoiser["addition_time_embed_dim"]
        if told != 6:
            raise ModelError(
                f"{name}: the denoiser is told {told:g} numbers besides its text, as the refiner of Stable Diffusion "
                "XL; accepted: 6 (size, crop and target size)"
            )


def _require_fitting_tokenizer(tokenizer: Any, encoder: Any, name: str) -> None:
    words, known = len(tokenizer), int(encoder.vocab_size)
    longest, places = tokenizer.model_max_length, int(encoder.max_position_embeddings)
    if not isinstance(encoder.eos_token_id, int):
        raise ModelError(f"{name}: eos_token_id {encoder.eos_token_id!r} of a text encoder; accepted: a whole number")
    if words > known or not isinstance(longest, int) or not 3 <= longest <= places:
        raise ModelError(
            f"{name}: a tokenizer of {words} tokens, texts of up to {longest}, for a text encoder of {known} tokens, "
            f"up to {places}; accepted: a tokenizer with no more of either"
        )


def find_parts(pipeline: Any) -> dict[str, Any]:
    """Components of a pipeline by name, None where one is not there, whatever state the pipeline is in."""
    named = {part for part, value in pipeline.config.items() if isinstance(value, (list, tuple)) and part[0] != "_"}
    return {part: getattr(pipeline, part, None) for part in sorted(named | {*NEEDED, *UNUSED, *SECOND})}


def require_plain_state(pipeline: Any, name: str) -> None:
    """Refuse what was switched on in a pipeline that is already built and that its weights do not show.

    Raises:
        ModelError: offloading, an adapter that is not fused, or a quantized part; the message says how to undo
            it.
    """
    for part, module in find_parts(pipeline).items():
        for reason in _switched_on(module) if isinstance(module, nn.Module) else ():
            raise ModelError(f"{name}: {part} {reason}")


def _switched_on(module: nn.Module) -> Iterator[str]:
    if getattr(module, "is_quantized", False) or getattr(module, "quantization_method", None) is not None:
        yield "is quantized; accepted: float32, float16 or bfloat16 weights"
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        registry = getattr(part, "_diffusers_hook", None)
        if hook is not None or (registry is not None and registry.hooks):
            yield (
                "is offloaded or hooked by another library; accepted: a pipeline before enable_model_cpu_offload(), "
                "enable_sequential_cpu_offload(), enable_group_offload() or enable_layerwise_casting(), or after "
                "remove_all_hooks()"
            )
        if hasattr(part, "lora_A") and hasattr(part, "base_layer"):
            yield (
                "has LoRA layers beside its weights; fuse them first (pipeline.fuse_lora(), then "
                "pipeline.unload_lora_weights()), or give the file as lora="
            )
        if "IPAdapter" in type(getattr(part, "processor", None)).__name__:
            yield "has an IP-Adapter; accepted: a pipeline after unload_ip_adapter()"
