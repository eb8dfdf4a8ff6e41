"""Rivals that need no model: superpixels of scikit-image, k-means of colours, k-means of coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar

import numpy as np
from skimage.segmentation import felzenszwalb, slic
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from emerdiff_probe.arrays import number_in_order
from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.interface import Counts, Pictured, check_count, require_count
from emerdiff_probe.reading.features import k_means_seed

SCALES = (1e-2, 1e6)
"""Bounds of the search for Felzenszwalb's scale."""


@dataclass(frozen=True)
class RgbKMeans:
    """K-means of the colours of pixels.

    Attributes:
        restarts: runs of k-means, of which the best is kept.
        seed: of k-means.

    Raises:
        InputError: a value out of range.
    """

    restarts: int = 1
    seed: int = 0
    name: ClassVar[str] = "rgb k-means"
    counts: ClassVar[Counts] = "given"
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_k_means(self)

    def segment(self, probed: Pictured, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; an image with fewer colours has fewer labels."""
        count = require_count(self, clusters)
        height, width, _ = probed.image.shape
        _require_pixels(count, height, width)
        pixels = probed.image.reshape(-1, 3).astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct colours than K: documented above
            labels = KMeans(count, n_init=self.restarts, random_state=k_means_seed(self.seed)).fit_predict(pixels)
        return labels.reshape(height, width)


@dataclass(frozen=True)
class CoordinateKMeans:
    """K-means of the coordinates of pixels: the same compact tiles for every image of one size.

    Attributes:
        restarts: runs of k-means, of which the best is kept.
        seed: of k-means.

    Raises:
        InputError: a value out of range.
    """

    restarts: int = 1
    seed: int = 0
    name: ClassVar[str] = "coordinate k-means"
    counts: ClassVar[Counts] = "given"
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_k_means(self)

    def segment(self, probed: Pictured, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; only the size of the image counts."""
        count = require_count(self, clusters)
        height, width, _ = probed.image.shape
        _require_pixels(count, height, width)
        return _tiles(height, width, count, self.restarts, self.seed).copy()


@lru_cache
def _tiles(height: int, width: int, count: int, restarts: int, seed: int) -> np.ndarray:
    coordinates = np.indices((height, width), np.float32).reshape(2, -1).T
    return (
        KMeans(count, n_init=restarts, random_state=k_means_seed(seed)).fit_predict(coordinates).reshape(height, width)
    )


@dataclass(frozen=True)
class Slic:
    """SLIC superpixels (Achanta et al. 2012), by scikit-image, which often gives half the number that it is told.

    So that rivals are compared at equal numbers, the number that it is told is searched as `Felzenszwalb`'s scale is.

    Attributes:
        compactness: weight of nearness in space against nearness in colour, above 0.
        smoothing: standard deviation in pixels of a Gaussian over the image before, 0 or more.
        evaluations: halvings of the search.

    Raises:
        InputError: a value out of range.
    """

    compactness: float = 10.0
    smoothing: float = 0.0
    evaluations: int = 16
    name: ClassVar[str] = "slic"
    counts: ClassVar[Counts] = "given"
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("compactness", is_positive(self.compactness), "a finite number above 0"),
                ("smoothing", self.smoothing == 0 or is_positive(self.smoothing), "a finite number, 0 or more"),
                ("evaluations", is_integer(self.evaluations, 1), "an integer, 1 or more"),
            ],
        )

    def segment(self, probed: Pictured, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; the number is only approached."""
        count = require_count(self, clusters)
        height, width, _ = probed.image.shape
        _require_pixels(count, height, width)

        @cache  # the search ends among few integers
        def told(number: int) -> np.ndarray:
            return slic(
                probed.image, n_segments=number, compactness=self.compactness, sigma=self.smoothing, start_label=0
            )

        pixels = height * width
        return _searched(lambda size: told(round(pixels / size)), (1, pixels), count, self.evaluations)


@dataclass(frozen=True)
class Felzenszwalb:
    """Graph-based segmentation (Felzenszwalb and Huttenlocher 2004), by scikit-image.

    The method has a scale and no number of segments: where one is asked for, the scale is searched by halving an
    interval, and the result with the nearest number is kept, the coarser one of two equally near.

    Attributes:
        scale: larger gives larger segments; used where no number is asked for.
        smoothing: standard deviation in pixels of a Gaussian over the image before, 0 or more.
        smallest: pixels of the smallest segment, smaller ones are merged; None is a 300th of the image, without which
            specks use up the number asked for.
        evaluations: how many scales the search tries at most.

    Raises:
        InputError: a value out of range.
    """

    scale: float = 100.0
    smoothing: float = 0.8
    smallest: int | None = None
    evaluations: int = 16
    name: ClassVar[str] = "felzenszwalb"
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("scale", is_positive(self.scale), "a finite number above 0"),
                ("smoothing", self.smoothing == 0 or is_positive(self.smoothing), "a finite number, 0 or more"),
                ("smallest", self.smallest is None or is_integer(self.smallest, 1), "an integer, 1 or more, or None"),
                ("evaluations", is_integer(self.evaluations, 1), "an integer, 1 or more"),
            ],
        )

    def segment(self, probed: Pictured, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; the number is only approached."""
        count = check_count(self, clusters)
        if count is None:
            return self._at(probed.image, self.scale)
        _require_pixels(count, *probed.image.shape[:2])
        return _searched(lambda scale: self._at(probed.image, scale), SCALES, count, self.evaluations)

    def _at(self, image: np.ndarray, scale: float) -> np.ndarray:
        smallest = self.smallest or max(1, image.shape[0] * image.shape[1] // 300)
        return number_in_order(felzenszwalb(image, scale=scale, sigma=self.smoothing, min_size=smallest))


def _searched(
    at: Callable[[float], np.ndarray], bounds: tuple[float, float], wanted: int, evaluations: int
) -> np.ndarray:
    """Labels whose number is nearest to the one wanted, the coarser of two equally near.

    Args:
        at: labels at a size of segments, fewer at larger ones, by and large.
        bounds: of the size, above 0; the interval of its logarithms is halved.
        wanted: number of labels.
        evaluations: how many sizes are tried at most.
    """
    low, high = np.log(bounds)
    best: np.ndarray | None = None
    nearest = 0
    for _ in range(evaluations):
        middle = (low + high) / 2
        labels = at(float(np.exp(middle)))
        found = len(np.unique(labels))
        if best is None or _nearer(found, nearest, wanted):
            best, nearest = labels, found
        if found == wanted:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    assert best is not None
    return best


def _nearer(found: int, before: int, wanted: int) -> bool:
    return (abs(found - wanted), found) < (abs(before - wanted), before)


def _require_k_means(segmenter: RgbKMeans | CoordinateKMeans) -> None:
    require(
        segmenter,
        [
            ("restarts", is_integer(segmenter.restarts, 1), "an integer, 1 or more"),
            ("seed", is_integer(segmenter.seed, 0), "an integer, 0 or more"),
        ],
    )


def _require_pixels(count: int, height: int, width: int) -> None:
    if count > height * width:
        raise InputError(f"{count} clusters of {height} x {width} pixels; accepted: 1 to {height * width}")
