"""One fingerprint of a model: it changes with whatever changes the model's output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

VOLATILE = {"dtype", "torch_dtype", "transformers_version", "architectures", "name_or_path"}
"""Settings that say where and by what a component was loaded, not what it computes."""
IDLE = {"training", "gradient_checkpointing"}
"""Attributes of modules that change no output while nothing is trained."""
PEFT = {"_active_adapter", "_disable_adapters"}
"""Private attributes by which peft's layers know which of their adapters take part."""
SAMPLES = 64


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with whatever changes the output of a model; computed anew each time.

    Of every part its configuration counts; of a network also the type and the settings of every module and attention
    processor (so that adapters, their scales, FreeU and attention slicing count), and its tensors; of a tokenizer the
    tokens that were added to it. A tensor enters by name, shape, evenly spaced values and the sum of its bits, which
    changes with any one value.

    Args:
        parts: networks, the scheduler and tokenizers by name; those that are None are left out.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())

    for name, part in sorted(parts.items()):
        if part is None:
            continue
        add([name, _configuration(part)])
        if hasattr(part, "get_added_vocab"):
            add([len(part), part.get_added_vocab()])
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                processor = getattr(module, "processor", None)
                add([path, *(_type_and_settings(each) for each in (module, processor) if each is not None)])
            for path, tensor in sorted(part.state_dict().items()):
                add([path, *tensor.shape])
                digest.update(_sampled(tensor) + _summed(tensor))
    return digest.hexdigest()[:16]


def _configuration(component: Any) -> dict[str, Any]:
    config = getattr(component, "config", {})
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in settings.items() if not key.startswith("_") and key not in VOLATILE}


def _type_and_settings(owner: object) -> tuple[str, dict[str, Any]]:
    """The type of an object and those of its attributes that are plain values or made of such."""
    return type(owner).__name__, {
        name: value
        for name, value in vars(owner).items()
        if (not name.startswith("_") or name in PEFT) and name not in VOLATILE | IDLE and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple, Mapping)):
        return all(_is_plain(part) for part in _parts(value))
    return value is None or isinstance(value, (bool, int, float, str))


def _parts(value: list | tuple | Mapping) -> Iterator[object]:
    yield from value
    if isinstance(value, Mapping):
        yield from value.values()


def _sampled(tensor: Tensor) -> bytes:
    places = torch.arange(0, tensor.numel(), max(1, tensor.numel() // SAMPLES), device=tensor.device)[:SAMPLES]
    return bytes(tensor.take(places).double().cpu().numpy().tobytes())  # flattening would copy what is channels last


def _summed(tensor: Tensor) -> bytes:
    """The sum of a tensor's bits, as integers that wrap around: neither threads nor order in memory matter."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.view(integers[tensor.dtype.itemsize])
    return int(bits.sum(dtype=bits.dtype)).to_bytes(
        8, "little", signed=True
    )  # in a wider type it takes 90 times as long
