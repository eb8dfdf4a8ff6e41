"""Metrics of label maps against ground truth, and intervals by bootstrap over images.

Everything that depends on which pixels a segment shares with which class is read off one table an image (`overlaps`).
Confusion matrices of images are added up before a score is taken: there is one for a whole data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from skimage import metrics as skimage_metrics
from skimage.morphology import thin
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from emerdiff_probe.arrays import find_borders
from emerdiff_probe.errors import InputError

BOUNDARY_PIXELS = 640 * 480
"""Of larger maps `boundary_f` reads a part of the rows and columns."""


@dataclass(frozen=True, eq=False)
class Overlap:
    """What matching segments to classes needs to know of one image.

    Attributes:
        segments: (segment,) the numbers of the segments in the prediction, ascending.
        counts: (class, segment) int64, pixels that each class of the truth shares with each segment.
        embeddings: (segment, channel), the embedding of each segment, for protocols that ask for it; else None.
    """

    segments: np.ndarray
    counts: np.ndarray
    embeddings: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts)


def overlaps(
    predicted: np.ndarray,
    truth: np.ndarray,
    classes: int,
    *,
    ignore_index: int | None = None,
    embeddings: np.ndarray | None = None,
) -> Overlap:
    """Count the pixels that classes and segments of one image share.

    Args:
        predicted: (height, width) integers, any numbering.
        truth: (height, width) integers in 0 … classes - 1, or `ignore_index`.
        classes: number of classes.
        ignore_index: label of the truth that is not counted, whatever was predicted there.
        embeddings: (segment, channel), row i that of the segment numbered i; None for none.

    Raises:
        InputError: shapes differ, labels that are no integers, a class out of range, a segment without embedding.
    """
    ours, theirs = _counted_pixels(predicted, truth, ignore_index)
    if theirs.size and (int(theirs.min()) < 0 or int(theirs.max()) >= classes):
        ignored = "" if ignore_index is None else f", and {ignore_index} for what is ignored"
        raise InputError(
            f"classes {theirs.min()} to {theirs.max()} in the truth; accepted: 0 to {classes - 1}{ignored}"
        )
    segments = np.unique(ours)
    counts = np.zeros((classes, len(segments)), np.int64)
    if theirs.size:
        counts[np.unique(theirs)] = contingency_matrix(theirs, ours)
    if embeddings is None:
        return Overlap(segments, counts)
    if segments.size and (int(segments[0]) < 0 or int(segments[-1]) >= len(embeddings)):
        raise InputError(
            f"segments {segments[0]} to {segments[-1]} with {len(embeddings)} embeddings; accepted: one embedding a "
            "segment, segments numbered from 0"
        )
    return Overlap(segments, counts, np.asarray(embeddings)[segments])


def _counted_pixels(
    predicted: np.ndarray, truth: np.ndarray, ignore_index: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of all pixels that are not ignored, (pixel,) each."""
    if predicted.shape != truth.shape or truth.size == 0:
        raise InputError(f"labels of shape {predicted.shape} against truth of shape {truth.shape}; accepted: one shape")
    for name, labels in (("labels", predicted), ("truth", truth)):
        if labels.dtype.kind not in "biu":
            raise InputError(f"{name} of {labels.dtype}; accepted: integers")
    if ignore_index is None:
        return predicted.ravel(), truth.ravel()
    counted = truth != ignore_index
    return predicted[counted], truth[counted]


def assigned_confusion(overlap: Overlap, assigned: np.ndarray) -> np.ndarray:
    """Confusion of one image whose segments were assigned to classes.

    Args:
        overlap: of the image.
        assigned: (segment,) a class for every segment, or -1 for none.

    Returns:
        (class, class + 1) int64 pixel counts, true class by row, assigned class by column. The last column holds
        pixels of segments without a class: misses of their true class and wrong pixels, never dropped.
    """
    confusion = np.zeros((overlap.classes, overlap.classes + 1), np.int64)
    np.add.at(confusion.T, assigned, overlap.counts.T)  # -1 is the last column
    return confusion


def majority_confusion(
    predicted: np.ndarray, truth: np.ndarray, classes: int, *, ignore_index: int | None = None
) -> np.ndarray:
    """Confusion of one image when every predicted segment takes its majority class (the oracle protocol).

    Args:
        predicted: (height, width) integers, any numbering.
        truth: (height, width) integers in 0 … classes - 1, or `ignore_index`.
        classes: number of classes.
        ignore_index: label of the truth that is not counted.

    Returns:
        (class, class) int64 pixel counts, true class by row, assigned class by column. Add up those of all images
        of a data set before taking a score.

    Raises:
        InputError: shapes differ, labels that are no integers, or a class out of range.
    """
    overlap = overlaps(predicted, truth, classes, ignore_index=ignore_index)
    return assigned_confusion(overlap, majority(overlap))[:, :-1]


def majority(overlap: Overlap) -> np.ndarray:
    """The class that has most pixels in every segment, the lowest of equals: (segment,)."""
    return overlap.counts.argmax(0)


def tallies(confusion: np.ndarray) -> np.ndarray:
    """All that pixel scores need of a confusion matrix: hits, true pixels and assigned pixels of every class.

    Args:
        confusion: (..., class, class) or (..., class, class + 1), true class by row; a last column without class.

    Returns:
        (..., 3, class), which adds up over images as the matrices do.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([hits, confusion.sum(-1), confusion.sum(-2)[..., : confusion.shape[-2]]], axis=-2)


def tallied_iou(tally: np.ndarray) -> np.ndarray:
    """Mean intersection over union from `tallies` (..., 3, class): see `mean_iou`."""
    hits, truth, assigned = np.moveaxis(tally, -2, 0)
    occurs = truth > 0
    scores = hits / np.where(occurs, truth + assigned - hits, 1) * occurs
    return scores.sum(-1) / np.maximum(occurs.sum(-1), 1)


def tallied_accuracy(tally: np.ndarray) -> np.ndarray:
    """Share of right pixels from `tallies` (..., 3, class): see `pixel_accuracy`."""
    hits, truth = tally[..., 0, :].sum(-1), tally[..., 1, :].sum(-1)
    return hits / np.where(truth > 0, truth, 1)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean intersection over union, in 0 … 1, over the classes that occur in the truth.

    A class that does not occur in the truth has no score of its own, even where it was predicted: those pixels count
    against the classes that are there.

    Args:
        confusion: (..., class, class) or (..., class, class + 1), true class by row; a last column without class.

    Returns:
        (...) floats; 0 where no pixel was counted.
    """
    return tallied_iou(tallies(confusion))


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, whose mean over the classes that have one is `mean_iou`.

    Args:
        confusion: as in `mean_iou`.

    Returns:
        (..., class) floats in 0 … 1; NaN for a class that does not occur in the truth.
    """
    hits, truth, assigned = np.moveaxis(tallies(confusion), -2, 0)
    return np.where(truth > 0, hits / np.where(truth > 0, truth + assigned - hits, 1), np.nan)


def pixel_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of the counted pixels that have their true class, in 0 … 1; arguments and result as in `mean_iou`."""
    return tallied_accuracy(tallies(confusion))


def boundary_f(
    predicted: np.ndarray, truth: np.ndarray, tolerance: float = 0.0075, *, ignore_index: int | None = None
) -> float:
    """Boundary F-score of one image as the Berkeley benchmark has it (BSDS; Martin et al. 2004), in 0 … 1.

    Borders are thinned; those of both are matched one to one, as many as can be, within the tolerance; precision is the
    share of ours that is matched, recall that of theirs, and the score their harmonic mean.

    Args:
        predicted, truth: (height, width) integers. Of maps of more than `BOUNDARY_PIXELS` pixels every second, or
            third, … row and column is read: the tolerance is a share of the size, and time is bounded.
        tolerance: how far apart two pixels that match may be, as a share of the image's diagonal, 0 or more.
        ignore_index: label of the truth that is not counted: between two pixels one of which has it is no boundary,
            neither ours nor theirs. Data sets that ignore a band around every object keep few boundaries.

    Returns:
        1 where neither has a boundary, 0 where only one has.

    Raises:
        InputError: shapes differ, labels that are no integers, or a tolerance below 0.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance {tolerance!r}; accepted: a share of the diagonal, 0 or more")
    _counted_pixels(predicted, truth, ignore_index)
    stride = math.ceil(math.sqrt(truth.size / BOUNDARY_PIXELS))
    predicted, truth = predicted[::stride, ::stride], truth[::stride, ::stride]
    counted = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
    ours, theirs = thin(find_borders(predicted, counted)), thin(find_borders(truth, counted))
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    matched = _matched_pixels(ours, theirs, tolerance * math.hypot(*truth.shape))
    return 2 * matched / int(ours.sum() + theirs.sum())


def _matched_pixels(ours: np.ndarray, theirs: np.ndarray, distance: float) -> int:
    """How many pixels of two masks (height, width) bool can be paired one to one, no two farther apart than this.

    As the flow through a network with an edge for every possible pair: on borders SciPy's Dinic takes a tenth of the
    time of its bipartite matching, or less, for the same number.
    """
    reach = math.floor(distance)
    down, right = np.indices((2 * reach + 1, 2 * reach + 1)).reshape(2, -1) - reach
    squares = down**2 + right**2
    nearest_first = np.argsort(squares, kind="stable")[: int((squares <= distance**2).sum())]
    number = np.full([side + 2 * reach for side in theirs.shape], -1)
    rows, columns = np.nonzero(theirs)
    number[rows + reach, columns + reach] = np.arange(len(rows))
    y, x = (places[:, None] + reach for places in np.nonzero(ours))
    near = number[y + down[nearest_first], x + right[nearest_first]]
    pixel, place = np.nonzero(near >= 0)
    first, last = len(y) + len(rows), len(y) + len(rows) + 1
    starts = np.concatenate([pixel, np.full(len(y), first), len(y) + np.arange(len(rows))])
    ends = np.concatenate([len(y) + near[pixel, place], np.arange(len(y)), np.full(len(rows), last)])
    network = csr_array((np.ones(len(starts), np.int32), (starts, ends)), shape=(last + 1, last + 1))
    return int(maximum_flow(network, first, last, method="dinic").flow_value)


def adjusted_rand(predicted: np.ndarray, truth: np.ndarray, *, ignore_index: int | None = None) -> float:
    """Adjusted Rand index of one image (Hubert and Arabie 1985): pairs of pixels that both maps treat alike.

    Args:
        predicted, truth: (height, width) integers, any numbering.
        ignore_index: label of the truth that is not counted. Unlike in scikit-image, no label is by default.

    Returns:
        1 for the same partition, about 0 for unrelated ones, at least -0.5.

    Raises:
        InputError: shapes differ, labels that are no integers, or no pixel that counts.
    """
    ours, theirs = _some_pixels(predicted, truth, ignore_index)
    return float(adjusted_rand_score(theirs, ours))


def consensus(partitions: Sequence[np.ndarray]) -> np.ndarray:
    """Mean adjusted Rand index of every label map of one image with all the others.

    Which of many features to cluster can be told by it without labels: what most of them agree on is in the image.

    Args:
        partitions: (height, width) integers each, any numbering and any sizes; they are compared at the largest size,
            by nearest neighbour.

    Returns:
        (partition,) as `adjusted_rand`; NaN where there is but one.
    """
    if len(partitions) < 2:
        return np.full(len(partitions), np.nan)
    height, width = max((labels.shape for labels in partitions), key=math.prod)
    flat = []
    for labels in partitions:
        rows, columns = (
            (2 * np.arange(large) + 1) * small // (2 * large)
            for large, small in zip((height, width), labels.shape, strict=True)
        )
        flat.append(np.unique(labels[np.ix_(rows, columns)], return_inverse=True)[1].ravel())
    sizes = [int(labels.max()) + 1 for labels in flat]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    pixels = np.arange(height * width)
    belongs = np.zeros((height * width, sum(sizes)), np.float32)
    for labels, start in zip(flat, starts, strict=True):
        belongs[pixels, start + labels] = 1
    # A row of pairs of pixels that both treat alike at a time: one product gives a map's tables with all the others.
    alike = np.empty((len(flat), len(flat)))
    for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        table = (belongs[:, start : start + size].T @ belongs).astype(np.float64)
        alike[row] = np.add.reduceat((table * (table - 1) / 2).sum(0), starts)
    own = np.diagonal(alike)
    expected = np.outer(own, own) / max(len(pixels) * (len(pixels) - 1) / 2, 1)
    most = (own[:, None] + own) / 2
    same = most == expected  # one segment each, or every pixel its own
    found = np.where(same, 1.0, (alike - expected) / np.where(same, 1, most - expected))
    return (found.sum(1) - np.diagonal(found)) / (len(flat) - 1)


class Variation(NamedTuple):
    """Variation of information in bits, 0 for the same partition: what was split and what was merged."""

    split: float
    """Entropy of the prediction given the truth: over-segmentation."""
    merged: float
    """Entropy of the truth given the prediction: under-segmentation."""

    @property
    def total(self) -> float:
        """The variation of information."""
        return self.split + self.merged


def variation_of_information(predicted: np.ndarray, truth: np.ndarray, *, ignore_index: int | None = None) -> Variation:
    """Variation of information of one image (Meila 2007), arguments and errors as in `adjusted_rand`."""
    ours, theirs = _some_pixels(predicted, truth, ignore_index)
    ours, theirs = (np.unique(labels, return_inverse=True)[1] for labels in (ours, theirs))  # its table is dense
    split, merged = skimage_metrics.variation_of_information(theirs, ours)
    return Variation(float(max(split, 0)), float(max(merged, 0)))


def covering(predicted: np.ndarray, truth: np.ndarray, *, ignore_index: int | None = None) -> float:
    """Segmentation covering of one image (Arbelaez et al. 2011, equation 8), in 0 … 1.

    The mean over the regions of the truth, weighted by their size, of the intersection over union with the best
    segment. A region is a label, connected or not. Arguments and errors as in `adjusted_rand`.
    """
    ours, theirs = _some_pixels(predicted, truth, ignore_index)
    shared = contingency_matrix(theirs, ours)
    sizes = shared.sum(1, keepdims=True)
    best = (shared / (sizes + shared.sum(0) - shared)).max(1)
    return float(best @ sizes[:, 0] / sizes.sum())


def _some_pixels(predicted: np.ndarray, truth: np.ndarray, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = _counted_pixels(predicted, truth, ignore_index)
    if not theirs.size:
        raise InputError(f"every pixel of the truth has the ignored label {ignore_index}; accepted: one that counts")
    return ours, theirs
