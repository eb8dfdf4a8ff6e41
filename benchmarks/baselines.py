"""Segmenters that need no model, and the scores of label maps; a module that worker processes can import."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emerdiff_probe.evaluation.metrics import boundary_f, majority_confusion
from emerdiff_probe.evaluation.rivals.colour import CoordinateKMeans, RgbKMeans, Slic
from emerdiff_probe.pocket.world import PART_NAMES, Scene, draw_scene

SEGMENTERS = (RgbKMeans(), CoordinateKMeans(), Slic())
BASELINES = tuple(segmenter.name for segmenter in SEGMENTERS)

Labels = dict[tuple[str, int], np.ndarray]
"""Label maps by method and number of clusters."""


def baseline_labels(scene: Scene, counts: Sequence[int]) -> Labels:
    """Label maps of the methods that need no model."""
    return {(segmenter.name, count): segmenter.segment(scene, count) for count in counts for segmenter in SEGMENTERS}


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
