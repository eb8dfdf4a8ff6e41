"""`emerdiff-probe train-clip`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm.auto import tqdm

from emerdiff_probe.cli.options import DeviceOption, app


@app.command()
def train_clip(
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, losses and the model.")],
    images: Annotated[Path | None, typer.Option(help="Train on a folder of images, not on drawn scenes.")] = None,
    captions: Annotated[Path | None, typer.Option(help="JSON file {image name: caption}, with --images.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    scenes: Annotated[int, typer.Option(help="Pictures at most.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in OUT stopped.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Train a pocket CLIP by captions, for naming segments; killed at any moment, --resume goes on."""
    from emerdiff_probe.pocket.clip import ClipTrainConfig
    from emerdiff_probe.pocket.clip import train_clip as run

    if minutes is None and steps is None:
        minutes = 20.0
    config = ClipTrainConfig(
        out=out,
        images=images,
        captions=captions,
        minutes=minutes,
        steps=steps,
        scenes=scenes,
        batch=batch,
        resume=resume,
        seed=seed,
        device=device,
    )
    print(run(config, report=tqdm.write))
