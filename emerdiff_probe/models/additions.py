"""What users add to a model: LoRA files, fused into its weights, and textual inversions, new words of prompts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.weights import PICKLE_SUFFIXES

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "base_model.model.": "unet",
}
"""Part of the pipeline by the beginning of a tensor's name: kohya's, then diffusers' and peft's."""
ENDINGS = re.compile(
    r"(?:[._]lora(?:_linear_layer)?\.|\.lora_)(?P<role>down|up|A|B)(?:\.default)?\.weight$|\.(?P<alpha>alpha)$"
)
ROLES = {"A": "down", "B": "up"}


@dataclass
class _Layer:
    """One layer's part of a LoRA: weight + scale alpha / rank up down."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def change(self, weight: Tensor, alpha: float | None, where: str) -> Tensor:
        """What is added to a weight (output, input, ...) at scale 1, float32."""
        if not {"down", "up"} <= self.tensors.keys():
            raise ModelError(f"{where}: only {', '.join(sorted(self.tensors))}; accepted: down and up")
        down, up = (self.tensors[role].float().flatten(1) for role in ("down", "up"))
        if up.shape[0] != weight.shape[0] or down.shape[1] != weight[0].numel() or up.shape[1] != down.shape[0]:
            raise ModelError(
                f"{where}: up {tuple(self.tensors['up'].shape)} and down {tuple(self.tensors['down'].shape)} for a "
                f"weight {tuple(weight.shape)}; accepted: a LoRA of the same model"
            )
        rank = down.shape[0]
        told = float(self.tensors["alpha"]) if "alpha" in self.tensors else alpha
        return (up @ down).reshape(weight.shape) * ((rank if told is None else told) / rank)


def split_addition(text: str) -> tuple[Path, str | None]:
    """A path and what stands behind its last colon, None where the whole text is a file.

    Raises:
        ModelError: no such file, or none of safetensors.
    """
    path, tail = Path(text).expanduser(), None
    if not path.is_file() and ":" in text:
        head, _, tail = text.rpartition(":")
        path = Path(head).expanduser()
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(f"{path}: pickled weights can run code when opened and are refused; accepted: safetensors")
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise ModelError(f"{text}: no such safetensors file; accepted: PATH, or PATH:VALUE")
    return path, tail


def fuse_lora(pipeline: DiffusionPipeline, text: str) -> None:
    """Add a LoRA to the weights of a pipeline: W + scale (alpha / rank) up down (Hu et al. 2021, equation 3).

    The sum is made in float32; the pipeline gets new weights, and those that it had are left as they are.

    Args:
        pipeline: with networks of its own.
        text: "PATH" or "PATH:scale"; kohya's names, those of Stability's code, diffusers' or peft's.

    Raises:
        ModelError: no such file, tensors that are no LoRA's (LoHa, LoKr, DoRA), or that fit no layer.
        InputError: a scale that is no finite number.
    """
    file, tail = split_addition(text)
    try:
        scale = 1.0 if tail is None else float(tail)
    except ValueError:
        scale = float("nan")
    if not abs(scale) < float("inf"):
        raise InputError(f"lora {text!r}: scale {tail!r}; accepted: a finite number behind the last colon")
    tensors, notes = _read(file)
    alphas = _read_alphas(notes, file)
    known = dict(_known_layers(pipeline))
    layers: dict[tuple[str, str], _Layer] = {}
    for name, tensor in tensors.items():
        part, path, role = _locate(name, known, file)
        layers.setdefault((part, path), _Layer()).tensors[role] = tensor
    for (part, path), layer in layers.items():
        module: Any = getattr(pipeline, part).get_submodule(path)
        weight = module.weight.detach()
        added = layer.change(weight, alphas.get(part), f"{file}: {part}.{path}").to(weight.device)
        module.weight = nn.Parameter((weight.float() + scale * added).to(weight.dtype), requires_grad=False)


def _read(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            notes = opened.metadata() or {}
        return load_file(file), notes
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"{file}: cannot be read as safetensors ({str(error)[:200]}); accepted: a whole file"
        ) from error


def _read_alphas(notes: Mapping[str, str], file: Path) -> dict[str, float]:
    """Alpha of every part, as diffusers notes peft's settings; kohya's files hold one a layer."""
    try:
        settings = json.loads(notes.get("lora_adapter_metadata", "{}"))
        alphas = {}
        for key, value in settings.items():
            part, _, name = key.rpartition(".")
            if name in ("alpha_pattern", "use_dora", "use_rslora", "lora_bias") and value:
                raise ModelError(f"{file}: a LoRA with {name}; accepted: one alpha, plain LoRA")
            if name == "lora_alpha":
                alphas[part or "unet"] = float(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: its notes (lora_adapter_metadata) cannot be read ({error})") from error
    return alphas


def _locate(name: str, known: Mapping[tuple[str, str], str], file: Path) -> tuple[str, str, str]:
    """Part, path of the layer and role ("down", "up" or "alpha") of a tensor."""
    ending = ENDINGS.search(name)
    if ending is None:
        raise ModelError(
            f"{file}: {name} is no tensor of a LoRA; accepted: lora_down or lora_A, lora_up or lora_B, and alpha (no "
            "LoHa, LoKr or DoRA)"
        )
    stem = name[: ending.start()]
    prefix = next((prefix for prefix in PREFIXES if stem.startswith(prefix)), "")
    part = PREFIXES.get(prefix, "unet")
    flat = _flatten(stem.removeprefix(prefix))
    for spelt in (flat, _flatten_old(flat)):
        if (part, spelt) in known:
            role = ending["alpha"] or ROLES.get(ending["role"], ending["role"])
            return part, known[part, spelt], role
    raise ModelError(f"{file}: {name} fits no layer of the model's {part}; accepted: a LoRA of the same kind of model")


def _flatten(path: str) -> str:
    return path.replace(".", "_")


def _flatten_old(flat: str) -> str:
    """The name of a layer as diffusers' attention processors of 2023 had it, in today's words."""
    flat = re.sub(r"_to_out$", "_to_out_0", flat.replace("_processor_", "_"))
    return re.sub(r"self_attn_to_(q|k|v|out)(_0)?$", r"self_attn_\1_proj", flat)


def _known_layers(pipeline: DiffusionPipeline) -> Iterator[tuple[tuple[str, str], str]]:
    """((part, flat name), path) of every layer that a LoRA may change, under every name that it goes by."""
    for part in dict.fromkeys(PREFIXES.values()):
        module: Any = getattr(pipeline, part, None)
        if not isinstance(module, nn.Module):
            continue
        for path, layer in module.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            names = [path]
            if part.startswith("text_encoder"):
                names = [path, f"text_model.{path}", path.removeprefix("text_model.")]
            elif part == "unet":
                names = [path, *_stability_names(path, int(pipeline.unet.config.layers_per_block) + 1)]
            for name in names:
                yield (part, _flatten(name)), path


def _stability_names(path: str, per_level: int) -> Iterator[str]:
    """Names of a U-Net's layer in Stability's code, which kohya's LoRA files of Stable Diffusion XL use."""
    tops = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if path in tops:
        yield tops[path]
    resnet = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", path):
        way, level, kind, i, rest = match.groups()
        block = per_level * int(level) + int(i) + (way == "down")
        inside = resnet.get(rest, rest)
        yield f"{'input' if way == 'down' else 'output'}_blocks.{block}.{int(kind == 'attentions')}.{inside}"
    elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", path):
        kind, i, rest = match.groups()
        yield f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{resnet.get(rest, rest)}"
    elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
        yield f"input_blocks.{per_level * (int(match[1]) + 1)}.0.op"
    elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
        for place in (1, 2):
            yield f"output_blocks.{per_level * (int(match[1]) + 1) - 1}.{place}.conv"


def add_embedding(pipeline: DiffusionPipeline, text: str) -> str:
    """Teach a pipeline a word by a textual inversion (Gal et al. 2022); prompts use it as it is written.

    Args:
        pipeline: with networks of its own; its tokenizers are copied.
        text: "PATH" or "PATH:word"; without a word it is the one in the file (diffusers), else the file's name (A1111).

    Returns:
        The word.

    Raises:
        ModelError: no such file, no textual inversion, one for another width of text, or a word that is known already.
    """
    file, word = split_addition(text)
    if not hasattr(pipeline, "load_textual_inversion"):
        raise ModelError(
            f"{file}: a {type(pipeline).__name__} takes no textual inversion; accepted: Stable Diffusion 1 to XL"
        )
    tensors, _ = _read(file)
    names = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    if len(tensors) == 1 and not tensors.keys() & names.keys():
        ((key, tensor),) = tensors.items()
        wanted = {"text_encoder": tensor}
        word = word or (file.stem if key == "emb_params" else key)
    elif tensors and tensors.keys() <= names.keys():
        wanted = {names[key]: tensor for key, tensor in tensors.items()}
    else:
        raise ModelError(
            f"{file}: tensors {', '.join(sorted(tensors)[:3])}; accepted: a textual inversion, one tensor or clip_l "
            "and clip_g"
        )
    word = word or file.stem
    encoders = {name for name in names.values() if getattr(pipeline, name, None) is not None}
    if wanted.keys() != encoders:
        raise ModelError(f"{file}: embeddings for {', '.join(sorted(wanted))}; accepted: {', '.join(sorted(encoders))}")
    for name, tensor in wanted.items():
        encoder = getattr(pipeline, name)
        rows = tensor if tensor.ndim == 2 else tensor[None]
        width = encoder.get_input_embeddings().weight.shape[1]
        if rows.ndim != 2 or rows.shape[1] != width or not torch.isfinite(rows.float()).all():
            raise ModelError(
                f"{file}: an embedding {tuple(tensor.shape)} for words of {width} channels; accepted: equal"
            )
        place = name.replace("text_encoder", "tokenizer")
        tokenizer = copy.deepcopy(getattr(pipeline, place))
        if word in tokenizer.get_vocab() or word.strip() != word or not word:
            raise ModelError(f"{file}: the word {word!r} is known already, or none; accepted: PATH:word with a new one")
        pipeline.load_textual_inversion({word: rows}, token=word, text_encoder=encoder, tokenizer=tokenizer)
        encoder.requires_grad_(False)
        setattr(pipeline, place, tokenizer)
    return word
