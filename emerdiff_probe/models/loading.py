"""Loading a model: the one that ships, a hub id, a folder, or a pipeline that is already built."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from torch import nn

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.additions import add_embedding, fuse_lora, split_addition
from emerdiff_probe.models.conditions import (
    find_parts,
    require_fitting_parts,
    require_known_conditions,
    require_plain_state,
)
from emerdiff_probe.models.families import wrap
from emerdiff_probe.models.folders import load_folder
from emerdiff_probe.models.hub import fetch_folder
from emerdiff_probe.models.probe_model import COMPONENTS, MAX_DECODES, ProbeModel
from emerdiff_probe.models.single_file import load_single_file
from emerdiff_probe.models.weights import PICKLE_SUFFIXES, require_finite

_POCKET = Path(__file__).parents[1] / "pocket"
SHIPPED: Mapping[str, Path] = MappingProxyType({"pocket": _POCKET / "weights", "photo": _POCKET / "photo_weights"})
"""Folders of the models that ship, by name: one of drawn scenes, one of street photographs."""


def load_model(
    source: str | Path | DiffusionPipeline = "pocket",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    family: str | None = None,
    lora: Sequence[str | Path] = (),
    embeddings: Sequence[str | Path] = (),
) -> ProbeModel:
    """Load a model to probe.

    Args:
        source: "pocket" or "photo" (small models of drawn scenes and of street photographs that ship with the
            package), a hub id such as "CompVis/stable-diffusion-v1-4" or "id@revision", a local diffusers folder, a
            single-file checkpoint of Stable Diffusion (`.safetensors`), or a pipeline that is already built. A pipeline
            stays as it is: the model gets networks of its own, in the memory of the pipeline's weights where device,
            precision and order agree. Load it again after changing it.
        device: defaults to a given pipeline's own, else to CUDA, then MPS, then CPU, whichever is there.
        dtype: float32, float16 or bfloat16; defaults to a given pipeline's own, else to float16 on CUDA and float32
            elsewhere. An autoencoder that asks for it (Stable Diffusion XL's) runs in float32.
        variant: of the weights, such as "fp16"; found by itself where a folder has no other.
        revision: branch, tag or commit of a model on the hub.
        family: whose settings are the defaults ("pocket", "sd1", "sd2" or "sdxl" for a U-Net); known by the model's
            structure where it is not said.
        lora: LoRA files to fuse into the weights, each "PATH" or "PATH:scale".
        embeddings: textual inversions, each "PATH" or "PATH:word"; prompts use the word.

    Raises:
        ModelError: unknown model, pickled weights, weights that do not fit or hold NaN, no U-Net or autoencoder inside,
            a noise schedule or a condition that is not served; the message names it.
        InputError: a device, precision, revision or family that is not there, or a scale that is no number.
    """
    for text in map(str, (*lora, *embeddings)):
        split_addition(text)  # is there, before a model is loaded
    if isinstance(source, DiffusionPipeline):
        name = str(getattr(source.config, "_name_or_path", "") or type(source).__name__)
        _require_served(source, name)
        place = find_device(source.device if device is None else device)
        precision = None if dtype is None else _precision(dtype, place)
        pipeline = own_copy(source)
    else:
        place = find_device(device)
        precision = _precision(dtype, place)
        name = str(source)
        with quiet_loading():
            pipeline = _load_pipeline(name, precision, variant, revision)
        _require_served(pipeline, name)
    with quiet_loading():
        for text in map(str, lora):
            fuse_lora(pipeline, text)
        for text in map(str, embeddings):
            add_embedding(pipeline, text)
    name = " + ".join([name, *(text.rsplit("/", 1)[-1] for text in map(str, [*lora, *embeddings]))])
    model = wrap(pipeline, name)
    if family is not None:
        accepted = model.families or (model.family,)
        if family not in accepted:
            raise InputError(f"family {family!r} for {name}; accepted: {', '.join(accepted)}")
        model.told_family = family
    with quiet_loading():
        _move(pipeline, place, precision)
    require_finite({part: getattr(pipeline, part, None) for part in COMPONENTS}, name)
    for component in (model.denoiser, model.autoencoder):
        if component is not None:
            component.to(memory_format=torch.channels_last)  # what the fast convolution kernels take
    pipeline.set_progress_bar_config(disable=True)
    return model


def _require_served(pipeline: DiffusionPipeline, name: str) -> None:
    require_plain_state(pipeline, name)
    if isinstance(getattr(pipeline, "unet", None), UNet2DConditionModel):
        require_known_conditions(pipeline.unet.config, find_parts(pipeline), pipeline.config, name)
        require_fitting_parts(pipeline, name)


def own_copy(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with networks of its own, so that moving, converting or hooking them leaves the given one alone.

    Weights are not copied: they share memory until one side converts its own.
    """
    other = copy.copy(pipeline)
    for name, component in find_parts(pipeline).items():
        if isinstance(component, nn.Module):
            shared: dict[int, Any] = {
                id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
                for parameter in component.parameters()
            }
            shared |= {id(buffer): buffer.detach() for buffer in component.buffers()}
            setattr(other, name, copy.deepcopy(component, shared).eval())
    return other


def _move(pipeline: DiffusionPipeline, device: torch.device, dtype: torch.dtype | None) -> None:
    for part in find_parts(pipeline).values():
        if isinstance(part, nn.Module):
            # An autoencoder that overflows in half precision says so; by way of it, its digits would be lost.
            upcast = isinstance(part, ModelMixin) and part.config.get("force_upcast")
            part.to(device=device, dtype=torch.float32 if upcast else dtype)


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device named, or the fastest that is there: CUDA, MPS, else the CPU.

    Raises:
        InputError: the device cannot be used here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); accepted: cpu, cuda, mps") from error
    if place.type not in MAX_DECODES:
        raise InputError(f"device {str(device)!r}; accepted: cpu, cuda, mps")
    return place


def _precision(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    accepted = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, str) and dtype in accepted:
        return accepted[dtype]
    if dtype in accepted.values():
        return dtype  # type: ignore[return-value]
    raise InputError(f"precision {dtype!r}; accepted: {', '.join(accepted)}")


def _load_pipeline(name: str, dtype: torch.dtype, variant: str | None, revision: str | None) -> DiffusionPipeline:
    file = Path(name).expanduser()
    if name in SHIPPED or file.suffix.lower() != ".safetensors" or not file.is_file():
        return load_folder(find_folder(name, revision, variant), dtype, variant)
    if variant is not None or revision is not None:
        raise InputError(
            f"variant {variant!r}, revision {revision!r} of the file {file}; accepted: None, it is one file"
        )
    return load_single_file(file, dtype)


def find_folder(name: str, revision: str | None, variant: str | None, shipped: Mapping[str, Path] = SHIPPED) -> Path:
    """The folder of a model, fetched from the hub where its name is no place here.

    Args:
        name: of one that ships, a path, a hub id or "id@revision".
        revision: of a model on the hub.
        variant: of the weights that are fetched.
        shipped: folders of those that ship, by name.

    Raises:
        ModelError: as `find_source` and `hub.fetch_folder`.
        InputError: a revision of what lies here, or two of them.
    """
    place = find_source(name, shipped)
    if place is not None:
        if revision is not None:
            raise InputError(f"revision {revision!r} of {place}; accepted: revisions of models on the hub")
        return place
    identifier, _, given = name.partition("@")
    if given and revision is not None and revision != given:
        raise InputError(f"model {name!r} with revision {revision!r}; accepted: one revision")
    return fetch_folder(identifier, given or revision, variant)


def find_source(name: str, shipped: Mapping[str, Path] = SHIPPED) -> Path | None:
    """Where a model lies here; None for the id of one on the hub.

    Args:
        name: of one that ships, a path or an id.
        shipped: folders of those that ship, by name.

    Raises:
        ModelError: a path at which nothing is, or a file.
    """
    path = shipped[name] if name in shipped else Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ModelError(f"{path}: pickled weights can run code when opened and are refused; accepted: safetensors")
        raise ModelError(f"{path}: a file; accepted: a folder")
    local = path.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    if local or name in shipped or path.suffix.lower() in {*PICKLE_SUFFIXES, ".safetensors", ".json"}:
        names = ", ".join(map(repr, shipped))
        raise ModelError(f"{path}: no such model folder or file; accepted: {names}, a path or a hub id")
    return None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading and saving print no progress bars and no warnings; the libraries' settings come back afterwards."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
