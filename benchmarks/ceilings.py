"""What limits mIoU: the grid, the number of masks, what the masks hold, or where they end.

    python -m benchmarks.ceilings --data world:24,first=700000 --clusters 12
    python -m benchmarks.ceilings --data folder:PHOTOGRAPHS --every 5 --model FOLDER --clusters 10

Every row but ours is told something by the truth: it says what would be gained if that were solved. Majority protocol;
intervals by bootstrap over images, against `OURS` on the same images. Masks are kept in the store of
`benchmarks.features`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from skimage.measure import label as connected
from tqdm.auto import tqdm

from benchmarks.features import CANDIDATES, Picture, confusion_of, report
from benchmarks.store import folder_of, kept
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.features import cluster, one_hot_masks, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.sharpen import read_labels

OURS = "masks, bilinear"


def class_shares(truth: np.ndarray, classes: int, grid: tuple[int, int]) -> np.ndarray:
    """Of every cell the shares of the classes in it, zeros where it knows none: (cell, class)."""
    known = torch.nn.functional.one_hot(
        torch.from_numpy(np.where(truth == IGNORED, classes, truth)).long(), classes + 1
    )
    planes = known[..., :classes].permute(2, 0, 1)[None].float()
    return torch.nn.functional.adaptive_avg_pool2d(planes, grid)[0].flatten(1).T.numpy()


def regions_of(truth: np.ndarray) -> np.ndarray:
    """Connected pieces of one class, numbered from 0: (height, width)."""
    return np.asarray(connected(truth - truth.min() + 1)) - 1


def take_regions(labels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Every region wholly under the label that fills most of it: labels with perfect borders."""
    counts = np.zeros((regions.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (regions, labels), 1)
    return counts.argmax(1)[regions]


def ceilings(coarse: np.ndarray, image: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Labels (height, width) of a picture by each way, from its low-resolution masks."""
    grid = (coarse.shape[0], coarse.shape[1])
    height, width = truth.shape
    shares, regions = class_shares(truth, classes, grid), regions_of(truth)
    majority = shares.argmax(1).reshape(grid)
    best = cluster(torch.from_numpy(shares), int(coarse.max()) + 1, grid)
    ours = upsampled(coarse, height, width)
    return {
        OURS: ours,
        "masks, nearest": upsampled(coarse, height, width, mode="nearest"),
        "masks, sharpened": read_labels(one_hot_masks(coarse), image, "wls")[0].astype(np.int64),
        "masks, true borders": take_regions(ours, regions),
        "k-means of the cells' true classes, bilinear": upsampled(best, height, width),
        "the cells' true majority, nearest": upsampled(majority, height, width, mode="nearest"),
        "the cells' true majority, bilinear": upsampled(majority, height, width),
        "the cells' true majority, sharpened": read_labels(one_hot_masks(majority), image, "wls")[0].astype(np.int64),
        "the cells' true majority, true borders": take_regions(upsampled(majority, height, width), regions),
    }


def main(
    data: Annotated[str, typer.Option(help="Labelled pictures, as `evaluate` takes them.")] = "world:24,first=700000",
    model: Annotated[str, typer.Option(help="'pocket', a hub id, or a local folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    every: Annotated[int, typer.Option(help="Take every so many-th picture.")] = 1,
    candidate: Annotated[str, typer.Option(help="Whose masks, of `benchmarks.features`.")] = "stage",
    store: Annotated[Path, typer.Option(help="Where masks are kept.")] = Path("out/features"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    probed = load_model(model, dtype="float32")
    samples = open_data(data, side=probed.native_size)[::every]
    config, features = EmerDiffConfig.fast(probed, clusters=clusters), CANDIDATES[candidate]
    identity = probed.fingerprint, samples.name, clusters, config.inversion.steps, config.seed, features._asdict()
    folder = folder_of(store, *identity)
    confusions: dict[str, list[np.ndarray]] = {}
    for sample in tqdm(samples, desc="images"):
        image, classes = sample.pixels(), len(samples.classes)
        picture = Picture(probed, config, image)
        held = kept(folder / f"{sample.name}.safetensors", partial(picture.masks, features, clusters))
        for name, labels in ceilings(held["coarse"], image, sample.truth(), classes).items():
            confusions.setdefault(name, []).append(confusion_of(labels, sample, classes))
    table = report(confusions, OURS)
    print(f"majority protocol, {len(samples)} images of {samples.name}, K = {clusters}, {probed!r}\n")
    print(f"{table.to_string(index=False)}\n")
    print(json.dumps({"clusters": clusters, "images": len(samples), "rows": table.to_dict("records")}))


if __name__ == "__main__":
    typer.run(main)
