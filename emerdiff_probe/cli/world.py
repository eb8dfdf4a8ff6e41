"""`emerdiff-probe world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emerdiff_probe.cli.options import app


@app.command()
def world(
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; the others follow.")] = 0,
    height: Annotated[int, typer.Option(help="Pixels.")] = 256,
    width: Annotated[int, typer.Option(help="Pixels.")] = 256,
) -> None:
    """Write drawn scenes with their ground truth: NAME.png, NAME.parts.png, NAME.objects.png, captions.json."""
    from emerdiff_probe.pocket.world import write_world

    write_world(out, count, seed, height=height, width=width)
    print(f"{out}: {count} scenes of {height} x {width} pixels")
