"""`emerdiff-probe evaluate`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
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
from emerdiff_probe.files import require_writable


class Shape(StrEnum):
    """What becomes of the proportions of an image."""

    keep = "keep"
    crop = "crop"
    squash = "squash"


@app.command()
@take_model
@take_settings(but=("clusters",), lists=True)
def evaluate(
    model: GivenModel,
    settings: GivenSettings,
    data: Annotated[
        str,
        typer.Option(
            help="world:COUNT, or folder:PATH, ade20k:PATH, coco-stuff:PATH, voc:PATH, context:PATH, cityscapes:PATH, "
            "camvid:PATH, bsds500:PATH; then options such as ,first=1000. Or a folder with a dataset.toml."
        ),
    ] = "world:200",
    method: Annotated[
        str,
        typer.Option(
            help="Names with commas, or 'all' that need no training. 'maskclip' and 'cross-attention' name classes: by "
            "themselves, or inside segments, as in 'maskclip + emerdiff'. 'predictions:NAME=FOLDER' are label maps of "
            "another tool, called as the images are (.png, .tif, .npy, .npz)."
        ),
    ] = "all",
    protocol: Annotated[
        str, typer.Option(help="majority, hungarian-per-image, hungarian-per-dataset, concept; several with commas.")
    ] = "majority",
    clusters: Annotated[
        str, typer.Option(help="Numbers of segments with commas; 'auto' is what a method finds itself.")
    ] = "8,12,20",
    store: Annotated[Path, typer.Option(help="Folder of the records, the tables and the gallery.")] = Path(
        "out/evaluation"
    ),
    train_on: Annotated[
        str, typer.Option(help="What linear-probe and unet are trained on, written as --data.")
    ] = "world:200,first=500000",
    clip: Annotated[str, typer.Option(help="For maskclip: 'pocket', a hub id or a local folder.")] = "pocket",
    names: Annotated[
        Path | None,
        typer.Option(help="File with phrases for the classes, a class a line; they stand for themselves."),
    ] = None,
    side: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Shorter side in pixels that methods get; the image's own.")
    ] = None,
    shape: Annotated[Shape, typer.Option(help="Keep proportions, crop to a square, or squash into one.")] = Shape.keep,
    workers: WorkersOption = None,
) -> None:
    """Score EmerDiff and its rivals on one inverted image each; interrupted at any moment it goes on where it stopped.

    Settings take several values (`--strength 1,10,100 --layer "up16.*"`): every combination is a row of EmerDiff in one
    store. Prints Markdown tables with protocols and 95% intervals, writes a gallery, and ends with one JSON object.
    Images that cannot be read, or that a method fails on, are reported, skipped and counted.
    """
    from emerdiff_probe.data.resizing import Resizing
    from emerdiff_probe.data.sources import open_data
    from emerdiff_probe.evaluation.gallery import write_gallery
    from emerdiff_probe.evaluation.report import make_report, require_protocols
    from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
    from emerdiff_probe.methods.catalogue import find_methods, vary
    from emerdiff_probe.methods.naming import Words
    from emerdiff_probe.runs.store import require_local

    protocols = split_list(protocol)
    require_protocols(protocols)
    require_writable(require_local(store))
    probed = model.load()
    images = open_data(data, side=probed.native_size)
    for note in images.notes:
        print(f"{images.name}: {note}", file=sys.stderr)
    methods = find_methods(
        split_list(method),
        lambda: open_data(train_on, side=probed.native_size),
        Words(images, names, clip, probed.device),
    )
    varied = vary(methods, settings.variants(probed))
    shared = settings.shared_config(probed)
    evaluation = Evaluation(varied, _counts(clusters), shared, Resizing(side, shape.value))
    result = run_evaluation(probed, images, evaluation, store=store, workers=workers, progress=sys.stderr.isatty())
    report = make_report(result, protocols)
    gallery = write_gallery(result, report, store / "gallery.html")
    tables = report.save(store / "tables")
    print(f"{report}\n\n{gallery}: all methods side by side, on images from the best to the worst")
    print(f"{tables[0].parent}: these tables as Markdown, CSV (unrounded) and LaTeX")
    print(json.dumps(report.to_json()))


def _counts(text: str) -> tuple[int | None, ...]:
    """Numbers of segments; None for "auto"."""
    try:
        return tuple(None if part == "auto" else int(part) for part in split_list(text))
    except ValueError as error:
        raise InputError(f"clusters {text!r}; accepted: integers from 1 and 'auto', with commas") from error
