"""Whether a finer clustering helps once its masks are merged by alike responses, beside as few masks from the start.

    python -m benchmarks.merging --data world:24,first=700000 --clusters 12
    python -m benchmarks.merging --data folder:PHOTOGRAPHS,ignore=various --every 5 --model photo --clusters 10

Fast mode, labels sharpened, majority protocol, the same number of segments in every row: `--over` masks cut to K along
the tree of their difference maps (`Segmentation.tree`), and the K largest connected pieces of K / 2 masks, all other
pixels given to the nearest. Intervals by bootstrap over images, gains over K masks on the same images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.ndimage import distance_transform_edt
from skimage.measure import label as connected
from tqdm.auto import tqdm

from benchmarks.scores import difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.segmentation.segment import segment


def largest_pieces(labels: np.ndarray, count: int) -> np.ndarray:
    """The largest connected pieces of segments; every other pixel takes the piece that is nearest.

    Args:
        labels: (height, width) integers.
        count: how many pieces are left, at most.

    Returns:
        (height, width) integers, 0 … count - 1.
    """
    pieces = connected(labels + 1, connectivity=1, background=0) - 1
    sizes = np.bincount(pieces.ravel())
    held = np.argsort(-sizes, kind="stable")[:count]
    numbers = np.full(len(sizes), -1)
    numbers[held] = np.arange(len(held))
    found = numbers[pieces]
    nearest = distance_transform_edt(found < 0, return_distances=False, return_indices=True)
    result: np.ndarray = found[tuple(nearest)]
    return result


def measure(model: ProbeModel, sample: Sample, clusters: int, over: int, classes: int) -> Arrays:
    """Confusions (class, class) of one image, by row of the table."""
    truth, pixels = sample.truth(), sample.pixels()

    def found(count: int) -> Segmentation:
        return segment(model, pixels, EmerDiffConfig.fast(model, clusters=count))

    many = found(over)
    labels = {
        f"{clusters} masks": found(clusters).labels,
        f"{over} masks cut to {clusters}": many.tree.cut(min(clusters, many.masks)),
        f"pieces of {clusters // 2} masks": largest_pieces(found(clusters // 2).labels, clusters),
    }
    return {name: majority_confusion(one, truth, classes, ignore_index=IGNORED) for name, one in labels.items()}


def main(
    data: Annotated[str, typer.Option(help="Labelled data, as `evaluate` takes it.")] = "world:24,first=700000",
    every: Annotated[int, typer.Option(help="Every so many of its images.")] = 1,
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Segments of every row.")] = 12,
    over: Annotated[int, typer.Option(help="Masks that are merged.")] = 40,
    store: Annotated[Path, typer.Option(help="Where finished images are kept.")] = Path("out/merging"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    probed = load_model(model, device="cpu")
    samples = open_data(data, side=probed.native_size)[::every]
    folder = folder_of(store, probed.fingerprint, samples.identity(), clusters, over)
    records = [
        kept(
            folder / f"{sample.name}.safetensors",
            lambda sample=sample: measure(probed, sample, clusters, over, len(samples.classes)),  # type: ignore[misc]
        )
        for sample in tqdm(samples, desc="images")
    ]
    rows = summarise(records, f"{clusters} masks")
    print(f"fast mode, sharpened, {probed.name}, {len(records)} images of {data}\n")
    print(f"{pd.DataFrame(rows).to_string(index=False)}\n")
    print(json.dumps({"rows": rows}))


def summarise(records: Sequence[Mapping[str, np.ndarray]], reference: str) -> list[dict[str, object]]:
    """MIoU of every row and its gain over one of them, percent."""
    figures = {name: miou([record[name] for record in records]) for name in records[0]}
    rows: list[dict[str, object]] = []
    for name in (reference, *(name for name in figures if name != reference)):
        row: dict[str, object] = {"labels": name, **rounded(bootstrap(figures[name], len(records)))}
        if name != reference:
            gain = bootstrap(difference(figures[name], figures[reference]), len(records))
            row |= {f"gain {key}": value for key, value in rounded(gain).items()}
        rows.append(row)
    return rows


if __name__ == "__main__":
    typer.run(main)
