"""The command line itself, and what several verbs ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emerdiff_probe.errors import InputError

app = typer.Typer(
    name="emerdiff-probe",
    help="Find out what a pretrained diffusion model knows about the pixels it paints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


ModelOption = Annotated[
    str, typer.Option("--model", help="'pocket', a hub id such as CompVis/stable-diffusion-v1-4, or a local folder.")
]


DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the fastest that is there by default.")]


FastOption = Annotated[bool, typer.Option("--fast", help="Several times as fast, by approximations.")]


PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="float32, float16 or bfloat16; float16 on CUDA, else float32.")
]


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a text with commas, without the spaces around them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def require_folder(folder: Path) -> None:
    """Refuse a place for results that is, or lies below, a file."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{folder}: {existing} is a file; accepted: a folder, there already or not")
