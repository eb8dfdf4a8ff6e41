"""`emerdiff-probe segment`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from emerdiff_probe.cli.options import DeviceOption, FastOption, ModelOption, PrecisionOption, app, split_list
from emerdiff_probe.errors import InputError


@app.command()
def segment(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders with images, patterns such as 'photos/*.jpg', or @FILE with one of these a line."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="In the place of files, a data set as `evaluate` takes it.")] = None,
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
    maps: Annotated[bool, typer.Option("--maps", help="Keep difference maps, float16, at the working size.")] = False,
    formats: Annotated[
        str, typer.Option("--format", help="Besides png, with commas: coco, csv, npz, zarr; one file for all images.")
    ] = "png",
    vocabulary: Annotated[
        Path | None, typer.Option(help="File of classes, one a line: segments in --format are named by MaskCLIP.")
    ] = None,
    clip: Annotated[str, typer.Option(help="For --vocabulary: 'pocket', a hub id or a local folder.")] = "pocket",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be used.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Share images among so many workers of Ray, here or where RAY_ADDRESS says.")
    ] = None,
) -> None:
    """Segment images by EmerDiff; settings that are not given are the best known ones for the model.

    Images whose folder holds the same result already, whole, are left out, so that an interrupted run goes on. Images
    that cannot be used are reported, counted and skipped. The exit code is 0 when at least one image has a result in
    the end, and 2 when none has, or when --strict stopped.
    """
    from emerdiff_probe.batch import list_pictures, load_batch, require_places, segment_pictures
    from emerdiff_probe.data.lists import list_some
    from emerdiff_probe.data.sources import open_data
    from emerdiff_probe.files import require_writable
    from emerdiff_probe.models.clip import load_clip
    from emerdiff_probe.models.loading import load_model
    from emerdiff_probe.naming.maskclip import MaskClip
    from emerdiff_probe.naming.vocabulary import Vocabulary
    from emerdiff_probe.segmentation.configuration import EmerDiffConfig
    from emerdiff_probe.segmentation.export import export, require_formats

    if (data is None) == (not images):
        raise InputError(f"{len(images or ())} images and data {data!r}; accepted: one of both")
    asked = split_list(formats)
    require_formats(asked)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    pictures = None if data is not None else list_pictures(images or ())
    given: dict[str, Any] = {
        "clusters": _integer_or_name(clusters),
        "feature_timesteps": feature_timestep,
        "feature_draws": feature_draws,
        "feature_sites": feature_layer,
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
    EmerDiffConfig().change(**changes)  # refuses values out of range before a model is loaded
    require_writable(out)
    if pictures is not None:  # before a model is loaded; others are looked at when they are known
        require_places(out, pictures.names)
    probed = load_model(model, device=device, dtype=precision)
    config = (EmerDiffConfig.fast if fast else EmerDiffConfig.for_model)(probed, **changes)
    source = open_data(data, side=probed.native_size) if pictures is None and data is not None else pictures
    assert source is not None
    for note in source.notes:
        print(note, file=sys.stderr)
    batch = segment_pictures(
        probed, source, config, out, workers=workers, maps=maps, strict=strict, progress=sys.stderr.isatty()
    )
    if batch.skipped:
        print(f"{len(batch.skipped)} of {len(source)} images skipped: {list_some(batch.skipped)}", file=sys.stderr)
    if set(asked) != {"png"}:
        named = None if words is None else MaskClip(load_clip(clip, device=probed.device), words)
        results = load_batch(batch)
        for path in export(
            ((name, result, named(result.image).names(result.labels) if named else {}) for name, result in results),
            out,
            asked,
        ):
            print(path)


class Placement(StrEnum):
    """Where the offset is added."""

    after = "after"
    before = "before"


def _integer_or_name(text: str | None) -> int | str | None:
    try:
        return text if text is None else int(text)
    except ValueError:
        return text
