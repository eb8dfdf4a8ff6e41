"""Metrics of label maps against ground truth, and intervals by bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from sklearn.metrics.cluster import contingency_matrix

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import borders


class Interval(NamedTuple):
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def majority_confusion(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Confusion of one image when every predicted segment takes its majority class (the oracle protocol).

    Args:
        predicted: (height, width) integers, any numbering.
        truth: (height, width) integers in 0 … classes - 1.
        classes: number of classes.

    Returns:
        (class, class) int64 pixel counts, true class by row, assigned class by column. Add up those of all images
        of a data set before taking a score.

    Raises:
        InputError: shapes differ, or a class out of range.
    """
    if predicted.shape != truth.shape or truth.size == 0:
        raise InputError(f"labels of shape {predicted.shape} against truth of shape {truth.shape}; accepted: one shape")
    if int(truth.min()) < 0 or int(truth.max()) >= classes:
        raise InputError(f"classes {truth.min()} to {truth.max()} in the truth; accepted: 0 to {classes - 1}")
    present = np.unique(truth)
    counts = contingency_matrix(truth.ravel(), predicted.ravel())  # (class present, segment)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion.T, present[counts.argmax(0)], _scatter(counts, present, classes))
    return confusion


def _scatter(counts: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Counts (class present, segment) as (segment, class)."""
    full = np.zeros((counts.shape[1], classes), np.int64)
    full[:, present] = counts.T
    return full


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean intersection over union, in 0 … 1, over the classes that occur in the truth.

    Args:
        confusion: (..., class, class), true class by row.

    Returns:
        (...) floats.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    truth, assigned = confusion.sum(-1), confusion.sum(-2)
    union = truth + assigned - hits
    occurs = truth > 0
    scores = np.where(occurs, hits / np.maximum(union, 1), 0)
    return scores.sum(-1) / np.maximum(occurs.sum(-1), 1)


def boundary_f(predicted: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> float:
    """Boundary F-score of one image: harmonic mean of boundary precision and recall, in 0 … 1.

    Args:
        predicted, truth: (height, width) integers.
        tolerance: pixels within which two boundaries agree.

    Returns:
        1 where neither has a boundary, 0 where only one has.
    """
    ours, theirs = borders(predicted), borders(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (distance_transform_edt(~theirs)[ours] <= tolerance).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= tolerance).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], images: int, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """A figure of a set of images with its 95% percentile interval by bootstrap over the images.

    Compare two methods by a statistic that is their difference: both then see the same images in every draw.

    Args:
        statistic: takes weights (draw, image), how often each image was drawn, and gives one figure a draw.
        images: number of images.
        draws: of the bootstrap.
        seed: of the draws.
    """
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    low, high = np.percentile(statistic(weights), [2.5, 97.5])
    return Interval(float(statistic(np.ones((1, images), int))[0]), float(low), float(high))
