"""Options of every verb that loads a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from emerdiff_probe.models.probe_model import ProbeModel

GROUP = "Model"
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "model": (
        str,
        "pocket",
        "'pocket' (drawn scenes), 'photo' (street photographs), a hub id such as CompVis/stable-diffusion-v1-4 or "
        "ID@REVISION, a folder or a .safetensors file.",
    ),
    "device": (str | None, None, "cpu, cuda or mps; the fastest that is there by default."),
    "precision": (str | None, None, "float32, float16 or bfloat16; float16 on CUDA, else float32."),
    "variant": (str | None, None, "Variant of the weights, such as fp16; found by itself where there is no other."),
    "revision": (str | None, None, "Branch, tag or commit of a model on the hub."),
    "family": (str | None, None, "Whose settings are the defaults; known by the model's structure where not said."),
    "lora": (list[str], [], "LoRA file to add to the weights, PATH or PATH:SCALE; may be given several times."),
    "embedding": (list[str], [], "Textual inversion, PATH or PATH:WORD; may be given several times."),
}


@dataclass(frozen=True)
class GivenModel:
    """What the command line says about the model."""

    model: str = "pocket"
    device: str | None = None
    precision: str | None = None
    variant: str | None = None
    revision: str | None = None
    family: str | None = None
    lora: Sequence[str] = ()
    embedding: Sequence[str] = ()

    def load(self) -> ProbeModel:
        """The model, as `load_model` loads it."""
        from emerdiff_probe.models.loading import load_model

        return load_model(
            self.model,
            device=self.device,
            dtype=self.precision,
            variant=self.variant,
            revision=self.revision,
            family=self.family,
            lora=self.lora,
            embeddings=self.embedding,
        )


def take_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a model; it gets them as `model`, a `GivenModel`."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        model = GivenModel(**{name: arguments.pop(name) for name in OPTIONS})
        command(**arguments, model=model)

    asked = inspect.signature(command, eval_str=True).parameters.values()
    kept = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in asked if each.name != "model"]
    made = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, typer.Option(f"--{name}", help=told, rich_help_panel=GROUP)],
        )
        for name, (kind, default, told) in OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature([*kept, *made])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*kept, *made)}
    return run
