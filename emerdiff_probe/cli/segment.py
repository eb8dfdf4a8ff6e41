"""`emerdiff-probe segment`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from emerdiff_probe.cli.models import GivenModel, take_model
from emerdiff_probe.cli.options import (
    GivenSettings,
    WorkersOption,
    app,
    split_list,
    take_settings,
)
from emerdiff_probe.errors import InputError


@app.command()
@take_model
@take_settings()
def segment(
    model: GivenModel,
    settings: GivenSettings,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders with images, patterns such as 'photos/*.jpg', or @FILE with one of these a line."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="In the place of files, a data set as `evaluate` takes it.")] = None,
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
    workers: WorkersOption = None,
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
    from emerdiff_probe.naming.maskclip import MaskClip
    from emerdiff_probe.naming.vocabulary import Vocabulary
    from emerdiff_probe.segmentation.export import export, require_formats

    if (data is None) == (not images):
        raise InputError(f"{len(images or ())} images and data {data!r}; accepted: one of both")
    asked = split_list(formats)
    require_formats(asked)
    words = None if vocabulary is None else Vocabulary.read(vocabulary)
    pictures = None if data is not None else list_pictures(images or ())
    require_writable(out)
    if pictures is not None:  # before a model is loaded; others are looked at when they are known
        require_places(out, pictures.names)
    probed = model.load()
    config = settings.config(probed)
    source = open_data(data, side=probed.native_size) if pictures is None and data is not None else pictures
    assert source is not None
    for note in source.notes:
        print(note, file=sys.stderr)
    batch = segment_pictures(
        probed, source, config, out, workers=workers, maps=maps, strict=strict, progress=sys.stderr.isatty()
    )
    if batch.skipped:
        print(f"{len(batch.skipped)} of {len(source)} images skipped: {list_some(batch.skipped)}", file=sys.stderr)
    if batch.note:
        print(batch.note, file=sys.stderr)
    if set(asked) != {"png"}:
        named = None if words is None else MaskClip(load_clip(clip, device=probed.device), words)
        results = load_batch(batch)
        for path in export(
            ((name, result, named(result.image).names(result.labels) if named else {}) for name, result in results),
            out,
            asked,
        ):
            print(path)
