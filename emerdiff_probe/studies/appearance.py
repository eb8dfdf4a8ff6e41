"""Studies of what correspondences follow and what they miss: changed appearance, small parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.ndimage import label
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, Scene, counterfactual_pair, draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import cluster, mask_embeddings, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.sites import Site, list_sites
from emerdiff_probe.studies.features import by_cell, majority_label
from emerdiff_probe.studies.study import (
    Axis,
    Cell,
    Direction,
    Measure,
    Measured,
    Study,
    Subject,
    probed_block,
)
from emerdiff_probe.studies.truth import Truth, one_truth, require_scenes, scene_of

OTHER_SCENE = "another scene"
"""The null model of `counterfactual`: nothing is held fixed."""
OTHER_SEED = 700_000
CELL_BINS = {"under 1/4": 0.25, "1/4 to 1": 1.0, "1 to 4": 4.0, "4 to 16": 16.0, "over 16": np.inf}
"""Areas of regions in grid cells of the configured site, by their upper bound."""
ALIKE = {
    "same_part": Measure("cells whose nearest feature in the changed scene lies in the same part", "%",
                         higher_is_better=True),
    "same_part_by_colour": Measure("the same for the cell of nearest mean colour", "%"),
    "same_part_by_chance": Measure("the same for a random cell", "%"),
    "same_place": Measure("cells whose nearest feature lies within one cell of the same place", "%"),
    "clusters": Measure("adjusted Rand index of the clusters of both scenes", "", higher_is_better=True),
    "carried": Measure("majority mIoU in the changed scene of masks carried over by their embeddings", "%",
                       "confusion", True),
    "maps": Measure("correlation of the difference maps of the same masks in both scenes", "",
                    higher_is_better=True),
}  # fmt: skip
"""How alike two scenes are to the model."""


def counterfactual(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Questions 7 and 2: the same scene with its colours, light, texture or style changed."""
    require_scenes("counterfactual", data)
    factors = ("palette", "style") if quick else ("palette", "light", "texture", "style")
    values = (*factors, OTHER_SCENE)

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        scene = scene_of(subject.sample)
        before = _SeenScene(scene, subject.probed, config)
        maps = before.maps(before.coarse)
        measured: dict[Cell, Measured] = {}
        for factor in values:
            changed = changed_scene(scene, factor)
            after = _SeenScene(changed, config.probe(model, changed.image, start=subject.start), config)
            measured[(factor,)] = before.compare(after) | {
                "maps": float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1]
                                       for a, b in zip(maps, after.maps(before.coarse), strict=True)])),
            }  # fmt: skip
        return measured

    def beyond(factor: str, measure: str, claim: str) -> Direction:
        return Direction(claim, measure, {"factor": factor}, {"factor": OTHER_SCENE})

    return Study(
        name="counterfactual",
        question="When colours, texture or style change, do correspondences follow meaning or appearance?",
        axes={"factor": Axis(values, "", "what is changed; everything else is held fixed")},
        measures=ALIKE,
        config=config,
        measure=measure,
        together=("factor",),
        start=config.start,
        directions=tuple(
            beyond(factor, measure, f"{name} survive a change of {factor}: more alike than in {OTHER_SCENE}")
            for factor in factors
            for measure, name in (("same_part", "matches"), ("maps", "difference maps"))
        ),
    )  # fmt: skip


def changed_scene(scene: Scene, factor: str) -> Scene:
    """The same scene with one factor changed; another one for `OTHER_SCENE`."""
    height, width = scene.parts.shape
    if factor == OTHER_SCENE:
        return draw_scene(OTHER_SEED + scene.seed, height=height, width=width)
    return counterfactual_pair(scene.seed, factor, height=height, width=width, factors=scene.factors)[1]


class _SeenScene:
    """A scene as a model sees it: its features, its low-resolution masks, and how it answers to any masks."""

    def __init__(self, scene: Scene, probed: ProbedImage, config: EmerDiffConfig) -> None:
        self.scene, self.probed, self.config = scene, probed, config
        sites, timesteps = find_feature_sites(probed.model, config), config.features.timesteps
        self.cells = probed.grid(sites)
        self.features = probed.features(sites, timesteps)
        self.coarse = probed.low_resolution_masks(sites, config.given_clusters, timesteps)
        self.parts = majority_label(scene.parts, self.cells)
        self.colours = by_cell(scene.image, self.cells).mean(1)

    def maps(self, coarse: np.ndarray) -> np.ndarray:
        """Difference maps (mask, height, width) of low-resolution masks, its own or another scene's."""
        modulation = resolve_modulation(self.probed.model, self.config)
        return self.probed.difference_maps(coarse, modulation, smoothing=self.config.smoothing).numpy()

    def compare(self, other: _SeenScene) -> dict[str, float | np.ndarray]:
        """The measures of `ALIKE`, from this scene to another, but for the maps'."""
        matched = nearest(self.features, other.features)
        closest = nearest_colour(self.colours, other.colours)
        carried = nearest(other.features, mask_embeddings(self.features, self.coarse)).reshape(self.cells)
        truth = other.scene.parts
        return {
            "same_part": 100 * float(np.mean(other.parts[matched] == self.parts)),
            "same_part_by_colour": 100 * float(np.mean(other.parts[closest] == self.parts)),
            "same_part_by_chance": 100 * float(np.mean(other.parts[None] == self.parts[:, None])),
            "same_place": 100 * float(np.mean(_distance(matched, self.cells) <= 1)),
            "clusters": float(adjusted_rand_score(self.coarse.ravel(), other.coarse.ravel())),
            "carried": majority_confusion(upsampled(carried, *truth.shape), truth, len(PART_NAMES)),
        }


def nearest(features: Tensor, others: Tensor) -> np.ndarray:
    """For every row of features (row, channel) the row of others (other, channel) with the highest cosine."""
    unit, other = (torch.nn.functional.normalize(values, dim=1) for values in (features, others))
    return (unit @ other.T).argmax(1).numpy()


def nearest_colour(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For every row of colours (row, 3) the row of others (other, 3) that is least far away."""
    return cdist(colours, others).argmin(1)


def _distance(matched: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cells between every cell and the one that it was matched with, the longer of both axes."""
    here, there = np.unravel_index(np.arange(len(matched)), grid), np.unravel_index(matched, grid)
    return np.maximum(abs(here[0] - there[0]), abs(here[1] - there[1]))


def small_parts(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Question 6: how much of parts of each size is found, and which remedies bring more back."""
    truth = Truth.of(data)
    truth.require_classes("small_parts")
    sites, modulation = find_feature_sites(model, config), resolve_modulation(model, config)
    fine = finer_site(model, config)
    remedies = ["none", "twice the clusters", "re-clustering", "larger input"] + ["finer layer"] * (fine is not None)
    if quick:
        remedies = ["none", "twice the clusters"]

    def labels_of(remedy: str, subject: Subject) -> np.ndarray:
        probed, shape, timesteps = subject.probed, subject.image.shape[:2], config.features.timesteps
        if remedy == "none":
            return subject.segments
        if remedy == "twice the clusters":
            return subject.segment({"clusters": 2 * config.given_clusters})
        if remedy == "finer layer":
            assert fine is not None
            return upsampled(probed.low_resolution_masks(fine, config.given_clusters, timesteps), *shape)
        if remedy == "larger input":
            probed = config.probe(model, subject.image, start=subject.start, scale=2)
        coarse = probed.low_resolution_masks(sites, config.given_clusters, timesteps)
        if remedy == "re-clustering":
            coarse = reclustered(probed.features(sites, timesteps), coarse, seed=config.seed)
        smoothing = config.smoothing * (2 if remedy == "larger input" else 1)
        maps = probed.difference_maps(coarse, modulation, smoothing=smoothing)
        return read_labels(enlarge(maps, shape, antialias=True), subject.image, config.sharpen)[0]

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        labels, known = labels_of(str(unit["remedy"]), subject), one_truth(subject.sample)
        rows, columns = subject.probed.grid(sites)
        recalls = recall_by_area(labels, known, known.size / (rows * columns))
        everything = truth.measure_score("emerdiff", labels, subject.sample)
        return {(name,): {"recall": 100 * recall, "regions": float(count), **everything}
                for name, (recall, count) in recalls.items()}  # fmt: skip

    def against(remedy: str, area: str) -> Direction:
        return Direction(f"{remedy} finds more of parts of {area} cells than none", "recall",
                         {"remedy": remedy, "area": area}, {"remedy": "none", "area": area})  # fmt: skip

    return Study(
        name="small_parts",
        question="Where are small parts lost, and what brings them back?",
        axes={
            "remedy": Axis(tuple(remedies), "", "what is changed"),
            "area": Axis(tuple(CELL_BINS), "cells", "area of a region of one part, in grid cells"),
        },
        measures={
            "recall": Measure("pixels of regions of this area whose segment's majority part is theirs", "%",
                              higher_is_better=True),
            "regions": Measure("regions of this area an image"),
            **truth.score("emerdiff", "EmerDiff over all areas"),
        },
        config=config,
        measure=measure,
        together=("area",),
        start=config.start,
        directions=tuple(against(remedy, area) for remedy in remedies[1:] for area in ("1/4 to 1", "1 to 4")),
    )  # fmt: skip


def finer_site(model: ProbeModel, config: EmerDiffConfig) -> Site | None:
    """The first cross-attention query of the same stage at twice the probed resolution, else the last resnet there."""
    block = probed_block(model, config)
    finer = [site for site in list_sites(model, stage=block["stage"]) if site.resolution == 2 * block["resolution"]]
    queries = [site for site in finer if site.kind == "cross" and site.part == "query"]
    resnets = [site for site in finer if site.kind == "resnet"]
    return queries[0] if queries else resnets[-1] if resnets else None


def reclustered(features: Tensor, low_resolution_masks: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Every mask split in two by k-means inside it, away from what all of its cells share.

    Args:
        features: (cell, channel).
        low_resolution_masks: (grid_height, grid_width) labels.
        seed: of k-means.

    Returns:
        (grid_height, grid_width) labels, up to twice as many; masks of one cell stay whole.
    """
    finer = np.empty_like(low_resolution_masks).ravel()
    flat, used = low_resolution_masks.ravel(), 0
    for mask in np.unique(flat):
        inside = np.flatnonzero(flat == mask)
        halves = cluster(features[inside], min(2, len(inside)), (1, len(inside)), seed=seed).ravel()
        finer[inside] = used + halves
        used += int(halves.max()) + 1
    return finer.reshape(low_resolution_masks.shape)


def recall_by_area(labels: np.ndarray, truth: np.ndarray, cell_pixels: float) -> dict[str, tuple[float, int]]:
    """Mean recall of connected regions of one class, and their number, by `CELL_BINS`; NaN where there is none.

    Args:
        labels: (height, width) segments from 0; each counts as the class that fills most of it.
        truth: (height, width) classes or `IGNORED`.
        cell_pixels: of one grid cell.
    """
    known, classes = truth != IGNORED, int(truth.max()) + 1
    table = np.bincount(labels[known].astype(np.int64) * classes + truth[known],
                        minlength=(int(labels.max()) + 1) * classes).reshape(-1, classes)  # fmt: skip
    correct = (table.argmax(1)[labels] == truth) & known
    recalls: dict[str, list[float]] = {name: [] for name in CELL_BINS}
    for part in np.unique(truth[known]):
        regions, count = label(truth == part)
        areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
        hits = np.bincount(regions.ravel(), correct.ravel(), count + 1)[1:]
        for area, hit in zip(areas, hits, strict=True):
            name = next(name for name, bound in CELL_BINS.items() if area / cell_pixels <= bound)
            recalls[name].append(hit / area)
    return {name: (float(np.mean(found)) if found else float("nan"), len(found)) for name, found in recalls.items()}
