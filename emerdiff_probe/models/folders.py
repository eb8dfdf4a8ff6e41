"""A diffusers pipeline folder: its index, checked, and its components, each loaded one to one and nothing run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.conditions import UNUSED, require_known_conditions, require_own_latents
from emerdiff_probe.models.families import find_family
from emerdiff_probe.models.noise_schedule import make_ddim
from emerdiff_probe.models.weights import (
    choose_variant,
    find_weights,
    read_shapes,
    require_all_loaded,
    require_component_weights,
)

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
"""What an index may name, beside modules of `diffusers.pipelines`."""
LOADABLE = (ModelMixin, SchedulerMixin, PreTrainedModel, PreTrainedTokenizerBase)


@dataclass(frozen=True)
class PipelineIndex:
    """What a `model_index.json` says.

    Attributes:
        pipeline: class of the pipeline.
        components: class of each component, None where there is none; those that are not used are left out.
        unused: names of components that the folder has and that are not loaded, such as a safety checker.
        settings: everything else, such as `requires_aesthetics_score`.
    """

    pipeline: type[DiffusionPipeline]
    components: Mapping[str, type | None]
    unused: frozenset[str]
    settings: Mapping[str, Any]

    @property
    def models(self) -> dict[str, type]:
        """Classes of the components that have weights."""
        return {
            name: kind
            for name, kind in self.components.items()
            if kind is not None and issubclass(kind, (ModelMixin, PreTrainedModel))
        }


def read_json(file: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        ModelError: no such file, no JSON, or another value than an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({str(error)[:200]}); accepted: an object") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: holds {json.dumps(value)[:40]}; accepted: an object")
    return value


def read_index(folder: Path) -> PipelineIndex:
    """The checked index of a pipeline folder. Only classes of diffusers and transformers are named by it.

    Raises:
        ModelError: no index, or one that asks for code of its own or for what neither library has.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise ModelError(f"{folder}: no model_index.json in it, so it is no diffusers pipeline folder")
    index = read_json(file)
    named = index.get("_class_name")
    pipeline = getattr(diffusers, named, None) if isinstance(named, str) else None
    if not isinstance(pipeline, type) or not issubclass(pipeline, DiffusionPipeline):
        raise ModelError(
            f"{file}: the pipeline is {json.dumps(named)[:80]}; accepted: the name of one in diffusers "
            f"{diffusers.__version__}, none with code of its own"
        )
    components: dict[str, type | None] = {}
    settings: dict[str, Any] = {}
    unused = {name for name in UNUSED if index.get(name) not in (None, [None, None])}
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED:
            continue
        if not isinstance(value, list):
            settings[name] = value
            continue
        components[name] = None if value == [None, None] else _find_class(value, f"{file}: {name}")
    return PipelineIndex(pipeline, components, frozenset(unused), settings)


def _find_class(value: list[Any], where: str) -> type:
    library, named = (*value, None, None)[:2]
    found = None
    if isinstance(library, str) and isinstance(named, str):
        module = LIBRARIES.get(library, getattr(diffusers.pipelines, library, None))
        found = getattr(module, named, None) if isinstance(module, ModuleType) else None
    if len(value) != 2 or not isinstance(found, type) or not issubclass(found, LOADABLE):
        raise ModelError(
            f"{where} is {json.dumps(value)[:80]}; accepted: library and class of a model, scheduler or tokenizer in "
            "diffusers or transformers, none with code of its own"
        )
    return found


def load_folder(folder: Path, dtype: torch.dtype, variant: str | None = None) -> DiffusionPipeline:
    """The pipeline in a folder. What can be refused is, before weights are read.

    Args:
        folder: with a `model_index.json`.
        dtype: of the weights; an autoencoder that asks for float32 (`force_upcast`) is read in it.
        variant: such as "fp16"; found by itself where there is nothing else.

    Raises:
        ModelError: a folder that is none, code of its own, pickled weights, weights that do not fit, a noise schedule
            or a condition that is not served.
    """
    index = read_index(folder)
    models = index.models
    chosen = {name: choose_variant(_names(folder / name), variant, str(folder / name)) for name in models}
    for name, kept in chosen.items():
        read_shapes(find_weights(folder / name, kept))  # all files are there and whole
    if variant is not None and variant not in chosen.values():
        raise ModelError(f"{folder}: no component has weights of variant {variant!r}; accepted: one that is there")
    empty = require_served(folder, index)
    for name, module in empty.items():
        require_component_weights(module, folder / name, chosen[name])
    loaded: dict[str, Any] = {
        name: _load(kind, folder / name)
        for name, kind in index.components.items()
        if kind is not None and name not in models
    }
    for name, kind in sorted(models.items(), key=lambda entry: entry[0] in empty):  # the large ones last
        upcast = name in empty and empty[name].config.get("force_upcast")
        loaded[name] = _load_weights(kind, folder / name, chosen[name], torch.float32 if upcast else dtype)
    return _assemble(index, folder, {**loaded, **dict.fromkeys(UNUSED)})


def require_served(folder: Path, index: PipelineIndex) -> dict[str, Any]:
    """Refuse a pipeline by its configurations alone; weights need not be there yet.

    Args:
        folder: with the configurations of all components.
        index: of it.

    Returns:
        diffusers' models by name, on the meta device.

    Raises:
        ModelError: no family serves it, a noise schedule or a condition that is not served, or a part that is missing.
    """
    empty = {
        name: _build_empty(kind, folder / name) for name, kind in index.models.items() if issubclass(kind, ModelMixin)
    }
    find_family(empty, str(folder))
    denoiser, autoencoder = empty.get("unet"), empty.get("vae")
    if isinstance(denoiser, diffusers.UNet2DConditionModel):
        present = {**index.components, **dict.fromkeys(index.unused, True)}
        require_known_conditions(denoiser.config, present, index.settings, str(folder))
        if (scheduler := index.components.get("scheduler")) is not None:
            make_ddim(_load(scheduler, folder / "scheduler"), str(folder))
        if isinstance(autoencoder, diffusers.AutoencoderKL):
            require_own_latents(denoiser.config, autoencoder.config, str(folder))
    optional = {*index.pipeline._optional_components, *UNUSED}
    for name, kind in index.components.items():
        if kind is None and name not in optional:
            raise ModelError(
                f"{folder}: the pipeline has no {name}; accepted: a {index.pipeline.__name__} with all its parts"
            )
    return empty


@contextmanager
def named_errors(where: Path, accepted: str = "what diffusers' save_pretrained wrote") -> Iterator[None]:
    """Whatever a library raises while it reads a file of a stranger becomes a ModelError that names the file."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the libraries check little: AttributeError, IndexError, ImportError, …
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"{where}: cannot be loaded ({reason}); accepted: {accepted}") from error


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, though model_index.json names it")
    return [file.name for file in folder.iterdir()]


def _load(kind: type, folder: Path) -> Any:
    """A scheduler or tokenizer."""
    with named_errors(folder):
        return kind.from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]


def _build_empty(kind: type[ModelMixin], folder: Path) -> Any:
    config = read_json(folder / "config.json")
    if config.get("quantization_config") is not None:
        raise ModelError(f"{folder}: quantized weights; accepted: float32, float16 or bfloat16")
    with named_errors(folder / "config.json"), torch.device("meta"):
        return kind.from_config(config)


def _load_weights(kind: type, folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {"variant": variant, "dtype": dtype, "use_safetensors": True, "local_files_only": True}
    if issubclass(kind, PreTrainedModel):
        settings["ignore_mismatched_sizes"] = True  # so that they are in the report, which is refused
    with named_errors(folder):
        module, report = kind.from_pretrained(  # type: ignore[attr-defined]
            folder, output_loading_info=True, **settings
        )
    require_all_loaded(report, str(folder))
    return module


def _assemble(index: PipelineIndex, folder: Path, components: Mapping[str, Any]) -> DiffusionPipeline:
    expected, _ = index.pipeline._get_signature_keys(index.pipeline)
    with named_errors(folder):
        return index.pipeline.from_pretrained(
            folder, local_files_only=True, **{name: value for name, value in components.items() if name in expected}
        )
