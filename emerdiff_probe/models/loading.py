"""Loading a model: the one that ships, a hub id, a folder, or a pipeline that is already built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.families import wrap
from emerdiff_probe.models.probe_model import COMPONENTS, MAX_DECODES, ProbeModel

POCKET_FOLDER = Path(__file__).parents[1] / "pocket" / "weights"
PICKLE_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def load_model(
    source: str | Path | DiffusionPipeline = "pocket",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
) -> ProbeModel:
    """Load a model to probe.

    Args:
        source: "pocket" (ships with the package), a hub id such as "CompVis/stable-diffusion-v1-4", a local
            diffusers folder, or a pipeline that is already built. A pipeline stays as it is: the model gets networks of
            its own, in the memory of the pipeline's weights where device, precision and order agree. Load it again
            after changing it.
        device: defaults to a given pipeline's own, else to CUDA, then MPS, then CPU, whichever is there.
        dtype: float32, float16 or bfloat16; defaults to a given pipeline's own, else to float16 on CUDA and float32
            elsewhere. An autoencoder that asks for it (Stable Diffusion XL's) runs in float32.

    Raises:
        ModelError: unknown model, pickled weights, NaN in the weights, no U-Net or autoencoder inside, or a U-Net that
            takes more than latents.
        InputError: a device or precision that is not there.
    """
    if isinstance(source, DiffusionPipeline):
        place = find_device(source.device if device is None else device)
        precision = None if dtype is None else _precision(dtype, place)
        pipeline, name = own_copy(source), str(getattr(source.config, "_name_or_path", "") or type(source).__name__)
    else:
        place = find_device(device)
        precision = _precision(dtype, place)
        name = str(source)
        pipeline = _load_pipeline(name, precision)
    _require_finite(pipeline, name)
    model = wrap(pipeline, name)
    with quiet_loading():
        pipeline.to(place, precision)
    if model.autoencoder is not None and model.autoencoder.config.force_upcast:
        model.autoencoder.to(torch.float32)
    for component in (model.denoiser, model.autoencoder):
        if component is not None:
            component.to(memory_format=torch.channels_last)  # what the fast convolution kernels take
    pipeline.set_progress_bar_config(disable=True)
    return model


def own_copy(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with networks of its own, so that moving, converting or hooking them leaves the given one alone.

    Weights are not copied: they share memory until one side converts its own.
    """
    other = copy.copy(pipeline)
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            shared: dict[int, Any] = {
                id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
                for parameter in component.parameters()
            }
            shared |= {id(buffer): buffer.detach() for buffer in component.buffers()}
            setattr(other, name, copy.deepcopy(component, shared).eval())
    return other


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


def _load_pipeline(name: str, dtype: torch.dtype) -> DiffusionPipeline:
    folder = POCKET_FOLDER if name == "pocket" else Path(name)
    if folder.is_dir():
        _require_safetensors(folder)
    elif name == "pocket" or folder.is_absolute() or name.startswith("."):
        raise ModelError(f"{folder}: no such model folder")
    try:
        return _from_pretrained(str(folder) if folder.is_dir() else name, dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"cannot load model {name!r}; accepted: 'pocket', a local diffusers folder with safetensors weights, "
            f"or a hub id such as 'CompVis/stable-diffusion-v1-4' where the hub is reachable ({reason})"
        ) from error


def _from_pretrained(location: str, dtype: torch.dtype) -> DiffusionPipeline:
    with quiet_loading():  # a missing safety checker is on purpose here
        return DiffusionPipeline.from_pretrained(location, use_safetensors=True, dtype=dtype, safety_checker=None)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading prints no progress bars and no warnings; the libraries' settings come back afterwards."""
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


def _require_safetensors(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder}: no model_index.json in it, so it is no diffusers pipeline folder")
    for component in COMPONENTS:
        files = list((folder / component).glob("*")) if (folder / component).is_dir() else []
        pickled = [file for file in files if file.suffix in PICKLE_SUFFIXES]
        if pickled and not any(file.suffix == ".safetensors" for file in files):
            raise ModelError(
                f"{pickled[0]}: pickled weights can run code when opened and are refused; accepted: safetensors "
                "(load it once where you trust it, then save_pretrained(..., safe_serialization=True))"
            )


def _require_finite(pipeline: DiffusionPipeline, name: str) -> None:
    for component in COMPONENTS:
        module = getattr(pipeline, component, None)
        if not isinstance(module, nn.Module):
            continue
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ModelError(f"{name}: the weights hold NaN or infinite values, first in {component}.{key}")
