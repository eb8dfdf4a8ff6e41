"""The command line `emerdiff-probe`: one subcommand a verb, no logic of its own."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from emerdiff_probe.errors import InputError, ProbeError

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


class Placement(StrEnum):
    """Where the offset is added."""

    after = "after"
    before = "before"


class Shape(StrEnum):
    """What becomes of the proportions of an image."""

    keep = "keep"
    crop = "crop"
    squash = "squash"


@app.command()
def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: ModelOption = "pocket",
    clusters: Annotated[
        str | None, typer.Option(help="Number of masks K; or 'auto', or the name of a criterion that finds it.")
    ] = None,
    feature_timestep: Annotated[int | None, typer.Option(help="Timestep of the clustered features, t_f.")] = None,
    feature_draws: Annotated[int | None, typer.Option(help="Draws of noise that features are averaged over.")] = None,
    feature_layer: Annotated[
        str | None, typer.Option(help="Site whose features are clustered, by its name in `emerdiff-probe layers`.")
    ] = None,
    modulate_at: Annotated[int | None, typer.Option(help="Timestep of the modulation, t_m.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler's grid, on which timesteps lie.")] = None,
    strength: Annotated[float | None, typer.Option(help="Strength of the modulation, lambda.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="Attention layer to modulate, by the name of any of its sites.")
    ] = None,
    placement: Annotated[Placement | None, typer.Option(help="Offset after or before the output projection.")] = None,
    no_injection: Annotated[bool, typer.Option("--no-injection", help="Do not inject attention.")] = False,
    fast: FastOption = False,
    smoothing: Annotated[float | None, typer.Option(help="Gaussian over difference maps, pixels.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text for the denoiser; empty by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the inversion and of k-means.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the results, a subfolder an image.")] = Path("out"),
) -> None:
    """Segment images by EmerDiff; settings that are not given are the best known ones for the model.

    Images whose folder holds the same result already are left out, so that an interrupted run goes on.
    """
    from emerdiff_probe.models import load_model
    from emerdiff_probe.segmentation import EmerDiffConfig, is_finished, require_replaceable, segment_all

    names = _folder_names(images)
    given: dict[str, Any] = {
        "clusters": _integer_or_name(clusters),
        "feature_timestep": feature_timestep,
        "feature_draws": feature_draws,
        "feature_site": feature_layer,
        "modulate_at": modulate_at,
        "steps": steps,
        "strength": strength,
        "layer": layer,
        "placement": None if placement is None else placement.value,
        "injection": () if no_injection else None,
        "smoothing": smoothing,
        "prompt": prompt,
        "seed": seed,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    EmerDiffConfig(**changes)  # refuses values out of range before a model is loaded
    _require_folder(out)
    for name in names:
        require_replaceable(out / name)
    probed = load_model(model, device=device, dtype=precision)
    config = (EmerDiffConfig.fast if fast else EmerDiffConfig.for_model)(probed, **changes)
    left = {}
    for name, image in zip(names, images, strict=True):
        if is_finished(out / name, probed, image, config):
            print(f"{out / name}: finished before")
        else:
            left[name] = image
    results = segment_all(probed, list(left.values()), config, progress=sys.stderr.isatty())
    for name, result in zip(left, results, strict=True):
        folder = result.save(out / name)
        print(f"{folder}: {result.masks} masks in {sum(result.seconds.values()):.1f} s")


@app.command()
def layers(model: ModelOption = "pocket", device: DeviceOption = None) -> None:
    """Print the table of sites: every tensor of the denoiser that can be read, clustered or changed."""
    from emerdiff_probe.layers import list_sites
    from emerdiff_probe.models import load_model

    print(list_sites(load_model(model, device=device)))


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which study; a name that does not exist lists them all.")],
    images: Annotated[int, typer.Option(help="Number of drawn scenes.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; training begins at 1,000,000.")] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the Zarr group; out/studies/NAME by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small grid.")] = False,
    fast: FastOption = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Refuse a store that is there already.")] = False,
    clusters: Annotated[int | None, typer.Option(help="Number of masks K.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="Timestep of the modulation, on that grid.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Share images among so many workers of Ray, here or where RAY_ADDRESS says.")
    ] = None,
    model: ModelOption = "pocket",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Run a study over drawn scenes; interrupted at any moment it goes on where it stopped.

    Prints a table with 95% intervals, what the paper reports beside it, and as the last line one JSON object.
    """
    from emerdiff_probe.models import load_model
    from emerdiff_probe.segmentation import EmerDiffConfig
    from emerdiff_probe.studies.catalogue import STUDIES, make_study
    from emerdiff_probe.studies.run import run_study, world_scenes

    if name not in STUDIES:
        raise InputError(f"no study {name!r}; accepted: {', '.join(STUDIES)}")
    given: dict[str, Any] = {"clusters": clusters, "steps": steps, "modulate_at": modulate_at}
    changes = {key: value for key, value in given.items() if value is not None}
    EmerDiffConfig(**changes)  # refuses values out of range before a model is loaded
    folder = store or Path("out") / "studies" / name
    _require_folder(folder)
    probed = load_model(model, device=device, dtype=precision)
    settings = (EmerDiffConfig.fast if fast else EmerDiffConfig.for_model)(probed, **changes)
    made = make_study(name, probed, settings, quick=quick)
    scenes = world_scenes(probed, images, seed)
    result = run_study(
        probed, made, scenes, store=folder, resume=not no_resume, workers=workers, progress=sys.stderr.isatty()
    )
    print(result)
    print(json.dumps({"store": str(folder), "computed": result.computed, "reused": result.reused}))


@app.command()
def evaluate(
    data: Annotated[
        str,
        typer.Option(
            help="world:COUNT, or folder:PATH, ade20k:PATH, coco-stuff:PATH, voc:PATH, context:PATH, cityscapes:PATH, "
            "camvid:PATH, bsds500:PATH; then options such as ,first=1000."
        ),
    ] = "world:200",
    method: Annotated[
        str,
        typer.Option(
            help="Names with commas, or 'all' that need no training. 'maskclip' and 'cross-attention' name classes: by "
            "themselves, or inside segments, as in 'maskclip + emerdiff'."
        ),
    ] = "all",
    protocol: Annotated[
        str, typer.Option(help="majority, hungarian-per-image, hungarian-per-dataset, concept; several with commas.")
    ] = "majority",
    clusters: Annotated[
        str, typer.Option(help="Numbers of segments with commas; 'auto' is what a method finds itself.")
    ] = "8,12,20",
    store: Annotated[Path, typer.Option(help="Folder of the records and of the gallery.")] = Path("out/evaluation"),
    train_on: Annotated[
        str, typer.Option(help="What linear-probe and unet are trained on, written as --data.")
    ] = "world:200,first=500000",
    clip: Annotated[str, typer.Option(help="For maskclip: 'pocket', a hub id or a local folder.")] = "pocket",
    names: Annotated[
        Path | None,
        typer.Option(help="File with phrases for the classes, a class a line; they stand for themselves."),
    ] = None,
    side: Annotated[int | None, typer.Option(help="Shorter side in pixels that methods get; the image's own.")] = None,
    shape: Annotated[Shape, typer.Option(help="Keep proportions, crop to a square, or squash into one.")] = Shape.keep,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="Timestep of the modulation, on that grid.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the inversion and of k-means.")] = None,
    model: ModelOption = "pocket",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Score EmerDiff and its rivals on one inverted image each; interrupted at any moment it goes on where it stopped.

    Prints Markdown tables with protocols and 95% intervals, writes a gallery page, and ends with one JSON object.
    Images that cannot be read, or that a method fails on, are reported, skipped and counted.
    """
    from emerdiff_probe.evaluation.gallery import write_gallery
    from emerdiff_probe.evaluation.methods import find_methods
    from emerdiff_probe.evaluation.open_vocabulary.naming import Words
    from emerdiff_probe.evaluation.report import make_report, require_protocols
    from emerdiff_probe.evaluation.resizing import Resizing
    from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
    from emerdiff_probe.evaluation.sources import open_data
    from emerdiff_probe.models import load_model
    from emerdiff_probe.segmentation import EmerDiffConfig

    given: dict[str, Any] = {"steps": steps, "modulate_at": modulate_at, "seed": seed}
    changes = {key: value for key, value in given.items() if value is not None}
    EmerDiffConfig(**changes)  # refuses values out of range before a model is loaded
    protocols = _listed(protocol)
    require_protocols(protocols)
    _require_folder(store)
    probed = load_model(model, device=device, dtype=precision)
    images = open_data(data, side=probed.native_size)
    methods = find_methods(
        _listed(method),
        lambda: open_data(train_on, side=probed.native_size),
        Words(images, names, clip, probed.device),
    )
    evaluation = Evaluation(
        methods, _counts(clusters), EmerDiffConfig.for_model(probed, **changes), Resizing(side, shape.value)
    )
    result = run_evaluation(probed, images, evaluation, store=store, progress=sys.stderr.isatty())
    report = make_report(result, protocols)
    gallery = write_gallery(result, report, store / "gallery.html")
    print(f"{report}\n\n{gallery}: best, median and worst images")
    print(json.dumps(report.to_json()))


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
    learning_rate: Annotated[float, typer.Option(help="Of the denoiser, at its peak.")] = 4e-4,
    init: Annotated[str | None, typer.Option(help="Start from 'pocket' or a pipeline folder.")] = None,
    autoencoder_from: Annotated[
        str | None, typer.Option(help="Take the autoencoder alone from 'pocket' or a pipeline folder.")
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
        init=init,
        autoencoder_from=autoencoder_from,
        mirror=mirror,
        resume=resume,
        batch=batch,
        seed=seed,
        device=device,
    )
    print(run(config, report=tqdm.write))


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


def _integer_or_name(text: str | None) -> int | str | None:
    try:
        return text if text is None else int(text)
    except ValueError:
        return text


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _counts(text: str) -> tuple[int | None, ...]:
    """Numbers of segments; None for "auto"."""
    try:
        return tuple(None if part == "auto" else int(part) for part in _listed(text))
    except ValueError as error:
        raise InputError(f"clusters {text!r}; accepted: integers from 1 and 'auto', with commas") from error


def _folder_names(images: list[Path]) -> list[str]:
    """The name of each image's result folder: its file name without suffix, which must not repeat."""
    names = [image.stem for image in images]
    for name in names:
        if names.count(name) > 1:
            same = ", ".join(str(image) for image in images if image.stem == name)
            raise InputError(f"{same} would all be written to {name}; accepted: images with different names")
    return names


def _require_folder(folder: Path) -> None:
    """Refuse a place for results that is, or lies below, a file."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{folder}: {existing} is a file; accepted: a folder, there already or not")


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input or a place that cannot be written, 130 for Ctrl-C.

    Finished results are kept.
    """
    try:
        app(standalone_mode=True)
    except (ProbeError, OSError) as error:
        print(f"emerdiff-probe: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("emerdiff-probe: interrupted; finished results are kept", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
