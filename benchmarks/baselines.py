"""Segmenters that need no model, and the scores of label maps; a module that worker processes can import."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from skimage.segmentation import slic
from sklearn.cluster import KMeans

from emerdiff_probe.evaluation.metrics import boundary_f, majority_confusion
from emerdiff_probe.pocket.world import PART_NAMES, Scene, draw_scene

BASELINES = ("rgb k-means", "coordinate k-means", "slic")

Labels = dict[tuple[str, int], np.ndarray]
"""Label maps by method and number of clusters."""


def baseline_labels(scene: Scene, counts: Sequence[int]) -> Labels:
    """Label maps of the methods that need no model."""
    labels: Labels = {}
    height, width = scene.parts.shape
    for count in counts:
        pixels = scene.image.reshape(-1, 3).astype(np.float32)
        rgb = KMeans(count, n_init=1, random_state=0).fit_predict(pixels)
        labels["rgb k-means", count] = rgb.reshape(height, width)
        labels["coordinate k-means", count] = coordinate_labels(height, width, count)
        labels["slic", count] = slic(scene.image, n_segments=count, start_label=0)
    return labels


@lru_cache
def coordinate_labels(height: int, width: int, count: int) -> np.ndarray:
    """K-means on pixel coordinates, the same for every scene."""
    coordinates = np.indices((height, width), np.float32).reshape(2, -1).T
    return KMeans(count, n_init=1, random_state=0).fit_predict(coordinates).reshape(height, width)


def score(labels: Labels, scene: Scene) -> dict[str, np.ndarray]:
    """Confusion matrix and boundary F-score of every label map, by "method/clusters/figure"."""
    scores: dict[str, np.ndarray] = {}
    for (method, count), predicted in labels.items():
        confusion = majority_confusion(predicted, scene.parts, len(PART_NAMES))
        scores[f"{method}/{count}/confusion"] = confusion.astype(np.uint32)
        scores[f"{method}/{count}/boundary"] = np.array(boundary_f(predicted, scene.parts))
    return scores


def score_baselines(seed: int, counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of all baselines on the scene of one seed."""
    scene = draw_scene(seed)
    return score(baseline_labels(scene, counts), scene)
