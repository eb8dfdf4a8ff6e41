"""Evaluation protocols: how segments come to have classes, and scores that always name the one they were taken by.

    images = [overlaps(segmentation.labels, sample.labels, len(classes), ignore_index=IGNORED) for ...]
    print(evaluate(images, Majority()))

Numbers of different protocols cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import Interval, bootstrap
from emerdiff_probe.metrics.overlaps import (
    Overlap,
    assigned_confusion,
    majority,
    tallied_accuracy,
    tallied_iou,
    tallies,
)

Metric = Literal["mIoU", "pixel accuracy"]
METRICS: dict[Metric, Callable[[np.ndarray], np.ndarray]] = {"mIoU": tallied_iou, "pixel accuracy": tallied_accuracy}


class Matching(Protocol):
    """A protocol: gives the segments of all images of a data set their classes."""

    @property
    def name(self) -> str:
        """What it is called beside every figure."""

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """For every image (segment,) classes, -1 for a segment that stays without."""


@dataclass(frozen=True)
class Majority:
    """Every segment takes the class that has most pixels in it: an oracle that knows the truth."""

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        return "majority (oracle)"

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """The majority class of every segment."""
        return [majority(overlap) for overlap in images]


@dataclass(frozen=True)
class HungarianPerImage:
    """Segments and classes are paired anew in every image so that most pixels are right, as DiffSeg and DiffCut do.

    Where an image has more segments than classes, those left over have no class: all their pixels are misses, though
    false positives of no class (DiffCut counts the same). Do not compare with figures of one matching a data set.
    """

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        return "Hungarian per image"

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """The pairing of every image."""
        return [_pair(overlap.counts) for overlap in images]


@dataclass(frozen=True)
class HungarianPerDataset:
    """The traditional protocol (STEGO): cluster numbers that hold for all images, paired with classes once.

    Clusters beyond the number of classes stay without a class and their pixels are misses; classes without a cluster
    score 0.

    Attributes:
        clusters: None where segments carry such numbers already. Else segments get them by k-means into so many
            clusters over the embeddings of all segments of all images.
        seed: of k-means.
    """

    clusters: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 1:
            raise InputError(f"{self.clusters} clusters; accepted: 1 or more, or None")

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        made = "" if self.clusters is None else f", {self.clusters} clusters of mask embeddings"
        return f"Hungarian once per data set (traditional{made})"

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """The one pairing, looked up in every image."""
        if self.clusters is not None:
            images = shared_segments(images, self.clusters, seed=self.seed)
        numbers = np.unique(np.concatenate([overlap.segments for overlap in images]))
        total = np.zeros((images[0].classes, len(numbers)), np.int64)
        columns = [np.searchsorted(numbers, overlap.segments) for overlap in images]
        for overlap, own in zip(images, columns, strict=True):
            np.add.at(total.T, own, overlap.counts.T)
        paired = _pair(total)
        return [paired[own] for own in columns]


def _pair(counts: np.ndarray) -> np.ndarray:
    """Segments (segment,) paired with classes so that most pixels are right; -1 where no pixel would be.

    Segments go in the order of their counts and not of their numbers, so that a tie never depends on the numbering.
    """
    order = np.lexsort(counts[::-1])
    rows, columns = linear_sum_assignment(counts[:, order], maximize=True)
    segments, shared = order[columns], counts[rows, order[columns]] > 0
    paired = np.full(counts.shape[1], -1)
    paired[segments[shared]] = rows[shared]
    return paired


def shared_segments(images: Sequence[Overlap], clusters: int, *, seed: int = 0) -> list[Overlap]:
    """Give segments numbers that hold for the whole data set, by k-means over the embeddings of all of them.

    Args:
        images: overlaps with embeddings.
        clusters: number of clusters, up to the number of segments.
        seed: of k-means.

    Raises:
        InputError: an image without embeddings, embeddings that are not finite, or more clusters than segments.
    """
    embeddings = np.concatenate([_embeddings(overlap) for overlap in images])
    if not 1 <= clusters <= len(embeddings):
        raise InputError(f"{clusters} clusters of {len(embeddings)} segments; accepted: 1 to {len(embeddings)}")
    labels = KMeans(clusters, n_init="auto", random_state=seed).fit_predict(embeddings)
    ends = np.cumsum([len(overlap.segments) for overlap in images])[:-1]
    # two segments of an image may share a number: counts stay one column a segment
    return [replace(image, segments=own) for image, own in zip(images, np.split(labels, ends), strict=True)]


def _embeddings(overlap: Overlap) -> np.ndarray:
    if overlap.embeddings is None:
        raise InputError("an image without embeddings; accepted: one for every segment, see overlaps(embeddings=)")
    if not np.isfinite(overlap.embeddings).all():
        raise InputError("the embeddings hold NaN or infinite values; accepted: finite ones")
    return overlap.embeddings


@dataclass(frozen=True, eq=False)
class NearestConcept:
    """The modified protocol of EmerDiff (section 4): every segment takes the class of the nearest concept embedding.

    Attributes:
        concepts: (class, channel) from `concept_embeddings`; rows of NaN are classes that no segment takes.
        distance: "euclidean" or "cosine"; the choice is ours, not the paper's.
    """

    concepts: np.ndarray
    distance: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        if self.distance not in {"euclidean", "cosine"}:
            raise InputError(f"distance {self.distance!r}; accepted: 'euclidean', 'cosine'")
        if self.concepts.ndim != 2 or not np.isfinite(self.concepts).all(1).any():
            raise InputError(
                f"concepts of shape {self.concepts.shape}; accepted: (class, channel), one or more without NaN"
            )

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        return f"modified (nearest concept embedding, {self.distance})"

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """The class of the nearest concept for every segment."""
        known = np.flatnonzero(np.isfinite(self.concepts).all(1))
        assigned = []
        for overlap in images:
            embeddings = _embeddings(overlap)
            if embeddings.shape[1:] != self.concepts.shape[1:] or overlap.classes != len(self.concepts):
                raise InputError(
                    f"embeddings of {embeddings.shape[1]} channels and {overlap.classes} classes; accepted: "
                    f"{self.concepts.shape[1]} channels and {len(self.concepts)} classes, as the concepts have"
                )
            if not len(embeddings):  # every pixel of the image is ignored
                assigned.append(np.zeros(0, int))
                continue
            nearest = pairwise_distances_argmin(embeddings, self.concepts[known], metric=self.distance)
            assigned.append(known[nearest])
        return assigned


@dataclass(frozen=True)
class OpenVocabulary:
    """Predicted labels are classes already, named by their words; nothing is matched.

    Attributes:
        unnamed: label of what was given no class, whose pixels are misses; None for no such label.
    """

    unnamed: int | None = None

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        return "open vocabulary"

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        """The labels themselves."""
        assigned = []
        for overlap in images:
            labels = overlap.segments.astype(np.int64)
            unnamed = labels == self.unnamed if self.unnamed is not None else np.zeros(len(labels), bool)
            wrong = labels[~unnamed & ((labels < 0) | (labels >= overlap.classes))]
            if wrong.size:
                accepted = f"0 to {overlap.classes - 1}" + ("" if self.unnamed is None else f", {self.unnamed}")
                raise InputError(f"predicted labels {', '.join(map(str, wrong[:8]))}; accepted: classes {accepted}")
            assigned.append(np.where(unnamed, -1, labels))
        return assigned


@dataclass(frozen=True)
class Supervised(OpenVocabulary):
    """Predicted labels are the classes that a segmenter was trained on; nothing is matched."""

    @property
    def name(self) -> str:
        """What it is called beside every figure."""
        return "supervised (classes as trained)"


class Judged(NamedTuple):
    """What a method has in every image of a data set, and the protocol that it is scored by."""

    images: Sequence[Overlap]
    protocol: Matching


@dataclass(frozen=True, eq=False)
class _Assigned:
    """A protocol whose classes are known already."""

    name: str
    classes: Sequence[np.ndarray]

    def assign(self, images: Sequence[Overlap]) -> list[np.ndarray]:
        return list(self.classes)


def judge(images: Sequence[Overlap], protocol: Matching) -> Judged:
    """Give segments their classes once, for any number of scores and comparisons."""
    return Judged(images, _Assigned(protocol.name, protocol.assign(images)))


@dataclass(frozen=True)
class Score:
    """A figure with its 95% interval that never goes without its protocol.

    Attributes:
        metric: what was measured.
        value, low, high: the figure and its interval over images.
        protocol: the name of the protocol.
        images: how many images it was taken over.
    """

    metric: str
    value: float
    low: float
    high: float
    protocol: str
    images: int

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.4f} [{self.low:.4f}, {self.high:.4f}], protocol: {self.protocol}, "
            f"{self.images} image{'s' * (self.images != 1)}"
        )


def confusions(images: Sequence[Overlap], protocol: Matching) -> list[np.ndarray]:
    """Confusion of every image under a protocol, each (class, class + 1): see `assigned_confusion`.

    Raises:
        InputError: no images, images with different numbers of classes, or as the protocol says.
    """
    return list(_confusions(images, protocol))


def total_confusion(images: Sequence[Overlap], protocol: Matching) -> np.ndarray:
    """The one confusion matrix (class, class + 1) over all images that `evaluate` scores.

    Raises:
        InputError: as `confusions`.
    """
    each = _confusions(images, protocol)
    total = next(each).copy()
    for confusion in each:
        total += confusion
    return total


def _confusions(images: Sequence[Overlap], protocol: Matching) -> Iterator[np.ndarray]:
    """One after the other, so that those of many classes are never held together."""
    counts = {overlap.classes for overlap in images}
    if len(counts) != 1:
        raise InputError(f"images with {sorted(counts) or 'no'} classes; accepted: one or more images, one class list")
    for overlap, assigned in zip(images, protocol.assign(images), strict=True):
        yield assigned_confusion(overlap, assigned)


def evaluate(
    images: Sequence[Overlap], protocol: Matching, metric: Metric = "mIoU", *, draws: int = 2000, seed: int = 0
) -> Score:
    """Score a data set under a protocol, from one confusion matrix over all images.

    The interval is over images; what the protocol learns from the whole data set (a matching, concepts) is held
    fixed in it. Intervals are "basic" ones: see `bootstrap`.

    Args:
        images: overlaps of every image.
        protocol: how segments get classes.
        metric: "mIoU" or "pixel accuracy", in 0 … 1.
        draws, seed: of the bootstrap.

    Raises:
        InputError: an unknown metric, or as `confusions` does.
    """
    statistic = _statistic(images, protocol, metric)
    interval = bootstrap(statistic, len(images), draws=draws, seed=seed, method="basic", within=(0, 1))
    return _score(metric, interval, protocol.name, len(images))


def compare(
    first: Sequence[Overlap],
    second: Sequence[Overlap],
    protocol: Matching,
    metric: Metric = "mIoU",
    *,
    second_protocol: Matching | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Score:
    """How much higher the first of two methods scores on the same images, with a paired interval.

    Args:
        first, second: overlaps of every image, in one order.
        protocol: how segments get classes.
        metric: "mIoU" or "pixel accuracy", in 0 … 1.
        second_protocol: for the second method, where a protocol has learnt something from a method's own features;
            of the same name.
        draws, seed: of the bootstrap.

    Raises:
        InputError: images that differ in their truth, protocols that differ, or as in `evaluate`.
    """
    pair = Judged(first, protocol), Judged(second, second_protocol or protocol)
    return average_difference([pair], metric, draws=draws, seed=seed)


def average_difference(
    pairs: Sequence[tuple[Judged, Judged]], metric: Metric = "mIoU", *, draws: int = 2000, seed: int = 0
) -> Score:
    """How much higher the first of each pair scores, averaged over pairs on the same images, with a paired interval.

    Args:
        pairs: such as two methods with each of several numbers of segments.
        metric, draws, seed: as in `compare`.

    Raises:
        InputError: no pairs, images that differ in number or truth, protocols that differ, or as in `evaluate`.
    """
    everything = [judged for pair in pairs for judged in pair]
    names = sorted({judged.protocol.name for judged in everything})
    if len(names) != 1:
        raise InputError(f"protocols {' and '.join(map(repr, names)) or 'of nothing'} compared; accepted: one protocol")
    first = everything[0].images
    for images, _ in everything[1:]:
        if len(first) != len(images):
            raise InputError(f"{len(first)} images against {len(images)}; accepted: the same images")
        for place, (one, two) in enumerate(zip(first, images, strict=True)):
            if not np.array_equal(one.counts.sum(1), two.counts.sum(1)):
                raise InputError(f"image {place}: pixels of the classes differ; accepted: the same images in one order")
    statistics = [tuple(_statistic(*judged, metric) for judged in pair) for pair in pairs]
    interval = bootstrap(
        lambda weights: np.mean([ours(weights) - theirs(weights) for ours, theirs in statistics], axis=0),
        len(first),
        draws=draws,
        seed=seed,
    )
    return _score(f"{metric} difference", interval, names[0], len(first))


def average(metric: str, values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Score:
    """Mean over images of a figure that needs no classes, such as `boundary_f` or `covering`.

    For the difference of two methods give the differences image by image: that is the paired comparison.

    Args:
        metric: what the figure is.
        values: (image,), one an image.
        draws, seed: of the bootstrap.

    Raises:
        InputError: no values, or values that are not finite.
    """
    figures = np.asarray(values, float)
    if not figures.size or not np.isfinite(figures).all():
        raise InputError(f"{figures.size} values of {metric}; accepted: one or more, all finite")
    interval = bootstrap(lambda weights: weights @ figures / weights.sum(-1), len(figures), draws=draws, seed=seed)
    return _score(metric, interval, "no matching, mean over images", len(figures))


def _statistic(images: Sequence[Overlap], protocol: Matching, metric: Metric) -> Callable[[np.ndarray], np.ndarray]:
    """A metric as a function of how often each image was drawn: (draw, image) -> (draw,)."""
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}; accepted: {', '.join(METRICS)}")
    tally = np.stack([tallies(confusion) for confusion in _confusions(images, protocol)]).astype(np.float64)
    return lambda weights: METRICS[metric](np.tensordot(weights.astype(np.float64), tally, 1))


def _score(metric: str, interval: Interval, protocol: str, images: int) -> Score:
    return Score(metric, *interval, protocol, images)


def region_sums(features: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over labelled regions of features that are bilinearly upsampled to the pixels of one image.

    The upsampled features are never made: their sum over a region is a weighted sum over the grid.

    Args:
        features: (grid_height, grid_width, channel).
        labels: (height, width) integers; regions are 0 … count - 1, every other label is left out.
        count: number of regions, such as of classes.

    Returns:
        Sums (region, channel) float64 and numbers of pixels (region,) int64. Add those of all images of a data set
        up for `concept_embeddings`; of one image, sums / pixels[:, None] are the mean embeddings of its segments.

    Raises:
        InputError: other shapes, or NaN in the features.
    """
    if features.ndim != 3 or labels.ndim != 2:
        raise InputError(
            f"features of shape {features.shape}, labels of shape {labels.shape}; accepted: (grid_height, grid_width, "
            "channel) and (height, width)"
        )
    if not np.isfinite(features).all():
        raise InputError("the features hold NaN or infinite values: the denoiser overflowed; use float32")
    rows, columns = (_upsampling(*sizes) for sizes in zip(features.shape[:2], labels.shape, strict=True))
    sums, pixels = np.zeros((count, features.shape[2])), np.zeros(count, np.int64)
    regions, sizes = np.unique(labels[(labels >= 0) & (labels < count)], return_counts=True)
    if len(regions):
        inside = (labels == region for region in regions)
        weights = np.stack([rows.T @ each.astype(np.float64) @ columns for each in inside])  # (region, height, width)
        sums[regions] = np.tensordot(weights, features.astype(np.float64), 2)
        pixels[regions] = sizes
    return sums, pixels


def _upsampling(cells: int, pixels: int) -> np.ndarray:
    """Weights of the cells of a row in its bilinearly upsampled pixels, (pixel, cell)."""
    upsampled = torch.nn.functional.interpolate(
        torch.eye(cells, dtype=torch.float64)[None], size=pixels, mode="linear", align_corners=False
    )
    return upsampled[0].T.numpy()


def concept_embeddings(sums: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Mean pixel embedding of every class (EmerDiff, section 4): sums (class, channel) over pixels (class,).

    Returns:
        (class, channel); NaN for classes without a pixel.
    """
    return np.where(pixels[:, None] > 0, sums / np.maximum(pixels, 1)[:, None], np.nan)
