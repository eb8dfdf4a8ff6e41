"""`emerdiff-probe segment`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from emerdiff_probe.cli.options import DeviceOption, FastOption, ModelOption, PrecisionOption, app, require_folder
from emerdiff_probe.errors import InputError


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
    from emerdiff_probe.models.loading import load_model
    from emerdiff_probe.segmentation.configuration import EmerDiffConfig
    from emerdiff_probe.segmentation.result import is_finished, require_replaceable
    from emerdiff_probe.segmentation.segment import segment_all

    names = _folder_names(images)
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
    require_folder(out)
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


class Placement(StrEnum):
    """Where the offset is added."""

    after = "after"
    before = "before"


def _integer_or_name(text: str | None) -> int | str | None:
    try:
        return text if text is None else int(text)
    except ValueError:
        return text


def _folder_names(images: list[Path]) -> list[str]:
    """The name of each image's result folder: its file name without suffix, which must not repeat."""
    names = [image.stem for image in images]
    for name in names:
        if names.count(name) > 1:
            same = ", ".join(str(image) for image in images if image.stem == name)
            raise InputError(f"{same} would all be written to {name}; accepted: images with different names")
    return names
