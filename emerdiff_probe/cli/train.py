"""`emerdiff-probe train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm.auto import tqdm

from emerdiff_probe.cli.options import DeviceOption, app


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, losses, sample grids and the pipeline.")],
    world: Annotated[bool, typer.Option("--world", help="Train on drawn scenes.")] = False,
    images: Annotated[Path | None, typer.Option(help="Train on a folder of images of any size.")] = None,
    captions: Annotated[Path | None, typer.Option(help="JSON file {image name: caption}.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time budget.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoiser steps.")] = None,
    autoencoder_minutes: Annotated[
        float | None,
        typer.Option(
            help="Of the autoencoder; 30% of --minutes by default; 0 keeps the one of --init or --autoencoder-from."
        ),
    ] = None,
    denoiser_minutes: Annotated[
        float | None, typer.Option(help="Of the denoiser, with encoding; 70% of --minutes by default.")
    ] = None,
    scenes: Annotated[int | None, typer.Option(help="Pictures at most.")] = None,
    learning_rate: Annotated[float, typer.Option(max=1000, help="Of the denoiser, at its peak.")] = 4e-4,
    optimizer: Annotated[
        str, typer.Option(help="Of the denoiser: muon (its matrices; adamw for the rest) or adamw.")
    ] = "adamw",
    init: Annotated[str | None, typer.Option(help="Start from 'pocket', 'photo' or a pipeline folder.")] = None,
    autoencoder_from: Annotated[
        str | None, typer.Option(help="Take the autoencoder alone from 'pocket', 'photo' or a pipeline folder.")
    ] = None,
    mirror: Annotated[bool, typer.Option(help="Train on mirror images too.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in OUT stopped.")] = False,
    batch: Annotated[int | None, typer.Option(help="Denoiser batch size.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and noise.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Train a pocket model; killed at any moment it loses at most a few minutes, and --resume goes on."""
    from emerdiff_probe.pocket.train import TrainConfig
    from emerdiff_probe.pocket.train import train as run

    if minutes is None and steps is None and denoiser_minutes is None:
        minutes = 60.0
    config = TrainConfig(
        out=out,
        world=world,
        images=images,
        captions=captions,
        minutes=minutes,
        steps=steps,
        autoencoder_minutes=autoencoder_minutes,
        denoiser_minutes=denoiser_minutes,
        scenes=scenes,
        learning_rate=learning_rate,
        optimizer=optimizer,
        init=init,
        autoencoder_from=autoencoder_from,
        mirror=mirror,
        resume=resume,
        batch=batch,
        seed=seed,
        device=device,
    )
    print(run(config, report=tqdm.write))
