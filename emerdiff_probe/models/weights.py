"""Safetensors files of a component: which ones to read, and whether they hold all of its tensors and no others."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from emerdiff_probe.errors import ModelError

STEMS = ("diffusion_pytorch_model", "model")
"""Of diffusers and of transformers."""
PICKLE_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
PRECISIONS = ("fp32", "fp16", "bf16")
"""Variants that are the same weights in another precision: taken by themselves where there is no plain file."""
BUFFERS = re.compile(r"(^|\.)position_ids$")
"""Saved by old releases of transformers, and worked out by newer ones."""
SHOWN = 3

Shapes = dict[str, tuple[int, ...]]


def read_shapes(files: Iterable[Path]) -> Shapes:
    """Shapes of every tensor in safetensors files, by name; only their headers are read.

    Raises:
        ModelError: a file that is missing, truncated or none of safetensors, or a name that is in two of them.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{file}: cannot be read as safetensors ({reason}); accepted: a whole file") from error
        twice = sorted(shapes.keys() & found.keys())
        if twice:
            raise ModelError(f"{file}: tensor {twice[0]!r} is also in another file of the same model")
        shapes |= found
    return shapes


def find_variants(files: Iterable[str]) -> set[str]:
    """Variants that a component's file names offer; "" is the plain one."""
    pattern = re.compile(
        rf"^(?:{'|'.join(STEMS)})(?:\.safetensors\.index(?:\.(?P<sharded>[^.]+))?\.json"
        r"|(?:-\d+-of-\d+)?(?:\.(?P<plain>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors)$"
    )
    matches = [pattern.match(file) for file in files]
    return {(match["sharded"] or match["plain"] or "") for match in matches if match}


def choose_variant(files: Iterable[str], asked: str | None, where: str) -> str | None:
    """The variant of a component to read: None for the plain files.

    Args:
        files: names of the files in the component's folder.
        asked: by the user; a component that lacks it is read in what it has, as in diffusers.
        where: the folder, for messages.

    Raises:
        ModelError: only pickled weights, no weights, or none but variants that have to be asked for.
    """
    names = sorted(files)
    offered = find_variants(names)
    if asked is not None and asked in offered:
        return asked
    if "" in offered:
        return None
    for variant in PRECISIONS:
        if variant in offered:
            return variant
    if offered:
        raise ModelError(
            f"{where}: weights in the variants {', '.join(sorted(offered))}; accepted: variant= one of them"
        )
    pickled = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if pickled:
        raise ModelError(
            f"{where}/{pickled[0]}: pickled weights can run code when opened and are refused; accepted: safetensors "
            "(load it once where you trust it, then save_pretrained(..., safe_serialization=True))"
        )
    raise ModelError(f"{where}: no weights in it; accepted: {' or '.join(f'{stem}.safetensors' for stem in STEMS)}")


def find_weights(folder: Path, variant: str | None) -> list[Path]:
    """Safetensors files of a component in one variant; several where it is sharded.

    Raises:
        ModelError: no such files, or an index that is none.
    """
    middle = f".{variant}" if variant else ""
    for stem in STEMS:
        for name in (f"{stem}.safetensors.index{middle}.json", f"{stem}{middle}.safetensors.index.json"):
            if (folder / name).is_file():
                return [folder / shard for shard in _read_shards(folder / name)]
        if (folder / f"{stem}{middle}.safetensors").is_file():
            return [folder / f"{stem}{middle}.safetensors"]
    raise ModelError(f"{folder}: no safetensors weights{f' of variant {variant}' if variant else ''} in it")


def _read_shards(index: Path) -> list[str]:
    try:
        mapping = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(mapping.values()))
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError("no shards, or shards in other folders")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{index}: no index of shards ({error}); accepted: a weight_map from tensor to file"
        ) from error
    return shards


def require_tensors(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], where: str, ignored: Iterable[str] = ()
) -> None:
    """Refuse weights that lack a tensor, hold one too many, or one of another shape.

    Args:
        expected: shapes of the model's own tensors, by name.
        found: shapes of the tensors in the files.
        where: the component, for messages.
        ignored: patterns of names that may be in the files although the model has no use for them.

    Raises:
        ModelError: names up to three of each.
    """
    patterns = [*map(re.compile, ignored), BUFFERS]
    missing = sorted(expected.keys() - found.keys())
    unused = sorted(
        name for name in found.keys() - expected.keys() if not any(pattern.search(name) for pattern in patterns)
    )
    other = sorted(name for name in expected.keys() & found.keys() if tuple(expected[name]) != tuple(found[name]))
    faults = []
    if missing:
        faults.append(f"{len(missing)} tensors of the model are not in it: {_some(missing)}")
    if unused:
        faults.append(f"{len(unused)} tensors in it have no place in the model: {_some(unused)}")
    if other:
        shapes = [f"{name} {tuple(found[name])} for {tuple(expected[name])}" for name in other]
        faults.append(f"{len(other)} tensors have another shape: {_some(shapes)}")
    if faults:
        raise ModelError(f"{where}: {'; '.join(faults)}; accepted: weights that fit their config.json one to one")


def require_component_weights(module: Any, folder: Path, variant: str | None) -> None:
    """Compare a diffusers model on the meta device with its files; no weights are read.

    Raises:
        ModelError: as in `require_tensors`.
    """
    shapes = OrderedDict(read_shapes(find_weights(folder, variant)))
    module._fix_state_dict_keys_on_load(shapes)  # names of 2022 in the autoencoders of Stable Diffusion 1.x
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    require_tensors(expected, shapes, str(folder), module._keys_to_ignore_on_load_unexpected or ())


def require_all_loaded(report: Mapping[str, Any], where: str) -> None:
    """Refuse a transformers model that was not loaded one to one.

    Args:
        report: what `from_pretrained(..., output_loading_info=True)` gives beside the model.
        where: its folder, for messages.

    Raises:
        ModelError: as in `require_tensors`.
    """
    other = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in report.get("mismatched_keys", ())}
    missing = set(report["missing_keys"]) - other.keys()
    expected: Shapes = {**dict.fromkeys(missing, ()), **{name: ours for name, (_, ours) in other.items()}}
    found: Shapes = {**dict.fromkeys(report["unexpected_keys"], ()), **{name: own for name, (own, _) in other.items()}}
    require_tensors(expected, found, where)


def require_finite(modules: Mapping[str, Any], name: str) -> None:
    """Refuse weights that hold NaN or infinite values.

    Args:
        modules: components by name; those that are no `torch.nn.Module` are passed over.
        name: of the model, for messages.

    Raises:
        ModelError: names the first such tensor.
    """
    for component, module in modules.items():
        if not isinstance(module, torch.nn.Module):
            continue
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                hint = ""
                if tensor.dtype == torch.float16:
                    hint = "; in float16 values above 65,504 are infinite: accepted: bfloat16 or float32"
                raise ModelError(f"{name}: the weights hold NaN or infinite values, first in {component}.{key}{hint}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
