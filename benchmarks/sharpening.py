"""What sharpening is worth: EmerDiff's difference maps and bilinear masks read off in every way, beside superpixels.

    python -m benchmarks.sharpening --data world:200,first=700000 --clusters 12
    python -m benchmarks.sharpening --data folder:PHOTOS --model FOLDER --clusters 10

Majority protocol; intervals by bootstrap over images, gains on the same images. Difference maps are kept in the store,
so that a run that was stopped goes on and another reading takes seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from tqdm.auto import tqdm

from benchmarks.scores import Statistic, difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.methods.catalogue import METHODS
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import boundary_f, majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.sharpen import SHARPENINGS, read_labels

PLAIN = "emerdiff + none"
"""What everything is compared with: the paper's reading."""
COLOURS = ("slic", "felzenszwalb")
"""Rivals that see nothing but the picture, in as many segments."""


class Seen(NamedTuple):
    """A picture for rivals without a model."""

    image: np.ndarray


Reading = Callable[[np.ndarray, Arrays], np.ndarray]
"""Labels of a picture from what is kept of it."""


def read_off(source: str, sharpen: str, image: np.ndarray, held: Arrays) -> np.ndarray:
    """Labels from difference maps ("emerdiff") or from low-resolution masks ("bilinear")."""
    masks = torch.from_numpy(held["maps"]).float() if source == "emerdiff" else one_hot_masks(held["coarse"])
    return read_labels(masks.float(), image, sharpen)[0]  # type: ignore[arg-type]


def superpixels(name: str, sharpen: str | None, image: np.ndarray, held: Arrays) -> np.ndarray:
    """Labels of a rival that sees colours alone, in as many segments as there are masks."""
    labels = METHODS[name].segment(Seen(image), len(held["maps"]))  # type: ignore[arg-type]
    if sharpen is None:
        return labels
    return read_labels(one_hot_masks(np.unique(labels, return_inverse=True)[1]).float(), image, sharpen)[0]  # type: ignore[arg-type]


def all_readings() -> dict[str, Reading]:
    """Every reading by name."""
    pairs = [(source, sharpen) for source in ("emerdiff", "bilinear") for sharpen in SHARPENINGS]
    readings: dict[str, Reading] = {
        f"{source} + {sharpen}": partial(read_off, source, sharpen) for source, sharpen in pairs
    }
    for name in COLOURS:
        readings |= {name: partial(superpixels, name, None), f"{name} + wls": partial(superpixels, name, "wls")}
    return readings


def maps_of(model: ProbeModel, config: EmerDiffConfig, image: np.ndarray) -> Arrays:
    """Difference maps and low-resolution masks of a picture."""
    found = segment(model, image, config)
    return {"maps": found.difference_maps.astype(np.float16), "coarse": found.low_resolution_masks.astype(np.int32)}


def score(labels: np.ndarray, sample: Sample, classes: int) -> tuple[np.ndarray, float]:
    """Confusion under the majority protocol, and the benchmark's boundary F."""
    truth = sample.truth()
    confusion = majority_confusion(labels, truth, classes, ignore_index=IGNORED)
    return confusion, boundary_f(labels, truth, ignore_index=IGNORED)


def mean(values: Sequence[float]) -> Statistic:
    """The mean over images, in percent."""
    return lambda weights: 100 * weights @ np.array(values) / weights.sum(-1)


def report(scores: Mapping[str, Sequence[tuple[np.ndarray, float]]], seconds: Mapping[str, float]) -> pd.DataFrame:
    """One row a reading: mIoU and boundary F with their gains over `PLAIN`, and seconds an image."""
    count = len(scores[PLAIN])
    overlap = {name: miou([confusion for confusion, _ in each]) for name, each in scores.items()}
    border = {name: mean([boundary for _, boundary in each]) for name, each in scores.items()}
    rows = []
    for name in scores:
        row: dict[str, object] = {"reading": name}
        for figure, statistics in (("miou", overlap), ("boundary_f", border)):
            gain = rounded(bootstrap(difference(statistics[name], statistics[PLAIN]), count), "gain")
            row |= {figure: round(float(statistics[name](np.ones((1, count)))[0]), 2)}
            row |= {f"{figure}_{part}": value for part, value in gain.items()}
        rows.append(row | {"seconds": round(seconds[name], 3)})
    return pd.DataFrame(rows)


def main(
    data: Annotated[str, typer.Option(help="Labelled pictures, as `evaluate` takes them.")] = "world:24,first=700000",
    model: Annotated[str, typer.Option(help="'pocket', a hub id, or a local folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    strength: Annotated[float | None, typer.Option(help="Of the modulation; the model's own by default.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Exact mode in the place of the fast one.")] = False,
    every: Annotated[int, typer.Option(help="Take every so many-th picture.")] = 1,
    device: Annotated[str | None, typer.Option()] = None,
    store: Annotated[Path, typer.Option(help="Where difference maps are kept.")] = Path("out/sharpening"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    probed = load_model(model, device=device, dtype="float32")
    samples = open_data(data, side=probed.native_size)[::every]
    make = EmerDiffConfig.for_model if exact else EmerDiffConfig.fast
    given = {"clusters": clusters, "sharpen": "none"} | ({} if strength is None else {"strength": strength})
    config = make(probed, **given)
    folder = folder_of(store, config.to_dict(), probed.fingerprint, samples.name)
    readings = all_readings()
    scores: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in readings}
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for sample in tqdm(samples, desc="images"):
        image = sample.pixels()
        held = kept(folder / f"{sample.name}.safetensors", partial(maps_of, probed, config, image))
        for name, reading in readings.items():
            began = time.perf_counter()
            labels = reading(image, held)
            seconds[name].append(time.perf_counter() - began)
            scores[name].append(score(labels, sample, len(samples.classes)))
    table = report(scores, {name: float(np.median(each)) for name, each in seconds.items()})
    print(f"majority protocol, {len(samples)} images of {samples.name}, K = {clusters}, {probed!r}\n")
    print(f"{table.to_string(index=False)}\n")
    print(json.dumps({"clusters": clusters, "images": len(samples), "rows": table.to_dict("records")}))


if __name__ == "__main__":
    typer.run(main)
