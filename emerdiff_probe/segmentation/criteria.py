"""How many segments an image has: criteria on its features, and one on how masks respond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np
from scipy.linalg import eigvalsh
from scipy.sparse.csgraph import laplacian
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import silhouette_score
from torch import Tensor

from emerdiff_probe.checks import is_integer, is_one_of, is_positive, require, show
from emerdiff_probe.errors import InputError
from emerdiff_probe.reading.features import cluster
from emerdiff_probe.segmentation.ncut import cosine_affinity, recursive_cut
from emerdiff_probe.segmentation.tree import Distance, groups_within, likeness_linkage


class Criterion(Protocol):
    """A rule for the number of segments, a frozen value whose attributes are its parameters.

    It is asked twice: for a number of low-resolution masks before these are modulated, and for masks that are one
    segment after it.
    """

    @property
    def name(self) -> str:
        """For `EmerDiffConfig.clusters`, and for tables."""
        ...

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """Number of low-resolution masks to modulate.

        Args:
            features: (cell, channel), those that will be clustered.
            grid: height and width of their grid.
            seed: of k-means, where it is run.

        Returns:
            1 to the number of cells.

        Raises:
            InputError: NaN in the features, or more masks than cells.
        """
        ...

    def merged(self, difference_maps: Tensor) -> np.ndarray:
        """The segment of every mask.

        Args:
            difference_maps: (mask, height, width).

        Returns:
            (mask,) integers, numbered 0, 1, … in order of first appearance.
        """
        ...


class _BeforeModulation:
    """A criterion that knows the number before anything is modulated: nothing is left to merge."""

    def merged(self, difference_maps: Tensor) -> np.ndarray:
        """As `Criterion.merged`: every mask is a segment."""
        return np.arange(len(difference_maps))


@dataclass(frozen=True)
class Fixed(_BeforeModulation):
    """A number that was given; what `EmerDiffConfig.clusters` is when it is an integer.

    Attributes:
        number: of masks, 1 or more.
    """

    number: int
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        require(self, [("number", is_integer(self.number, 1), "an integer, 1 or more")])

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """As `Criterion.clusters`; more than there are cells are refused where they are clustered."""
        return self.number


@dataclass(frozen=True)
class _Bounded(_BeforeModulation):
    """A criterion on the features.

    Attributes:
        fewest, most: bounds of the number.
    """

    fewest: int = 2
    most: int = 30

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("fewest", is_integer(self.fewest, 1), "an integer, 1 or more"),
                (
                    "most",
                    is_integer(self.fewest, 1) and is_integer(self.most, self.fewest),
                    f"an integer, {show(self.fewest)} or more",
                ),
            ],
        )

    def _bounded(self, number: int, cells: int) -> int:
        return min(max(number, self.fewest), self.most, cells)


@dataclass(frozen=True)
class Eigengap(_Bounded):
    """The largest gap between successive eigenvalues of the features' graph (von Luxburg 2007, section 8.3).

    A graph of K separate parts has K eigenvalues 0 of its normalised Laplacian; where parts are nearly separate, the
    first K eigenvalues are small and the next one is not.

    Attributes:
        fewest, most: bounds of the number.
        alpha: exponent of the cosine affinity, as in DiffCut.
    """

    alpha: float = 10.0
    name: ClassVar[str] = "eigengap"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, [("alpha", is_positive(self.alpha), "a finite number above 0")])

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """As `Criterion.clusters`."""
        cells = len(features)
        if cells <= self.fewest:
            return cells
        graph = laplacian(cosine_affinity(features.numpy(), self.alpha), normed=True)
        eigenvalues = eigvalsh(graph, subset_by_index=[0, min(self.most, cells - 1)])
        return self.fewest + int(np.diff(eigenvalues)[self.fewest - 1 :].argmax())


@dataclass(frozen=True)
class NormalisedCut(_Bounded):
    """Parts that no cheap cut divides: recursive normalised cuts up to a threshold (Shi and Malik 2000; DiffCut).

    Attributes:
        fewest, most: bounds of the number.
        alpha: exponent of the cosine affinity.
        tau: parts whose best normalised cut is not below it stay whole, 0 … 2.
    """

    alpha: float = 10.0
    tau: float = 0.45
    name: ClassVar[str] = "ncut"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            [
                ("alpha", is_positive(self.alpha), "a finite number above 0"),
                ("tau", is_positive(self.tau) and self.tau <= 2, "a number above 0, at most 2"),
            ],
        )

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """As `Criterion.clusters`."""
        parts = recursive_cut(cosine_affinity(features.numpy(), self.alpha), threshold=self.tau)
        return self._bounded(int(parts.max()) + 1, len(features))


@dataclass(frozen=True)
class Silhouette(_Bounded):
    """The number of clusters with the highest mean silhouette (Rousseeuw 1987), over a range of numbers.

    A silhouette is how much nearer a cell is to its own cluster than to the next one, in -1 … 1. The clusters are those
    of `cluster`, so that the masks of the number that is found are among those that were tried.

    Attributes:
        fewest, most: the range.
    """

    most: int = 24
    name: ClassVar[str] = "silhouette"

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """As `Criterion.clusters`; fewer than 2 clusters have no silhouette and are never found."""
        cells = len(features)
        best, number = -np.inf, self._bounded(1, cells)
        distances = squareform(pdist(features.double().numpy()))
        for tried in range(max(2, self.fewest), min(self.most, cells - 1) + 1):
            labels = cluster(features, tried, grid, seed=seed).ravel()
            if not 1 < labels.max() + 1 == tried:
                break  # fewer cells differ
            score = silhouette_score(distances, labels, metric="precomputed")
            if score > best:
                best, number = score, tried
        return number


@dataclass(frozen=True)
class ResponseOverlap:
    """More masks than there are parts, modulated once; then masks are one segment where their responses overlap.

    Pixels of one part answer alike whichever of its cells is modulated: masks that share a part have alike difference
    maps. The criterion is ours; it costs no passes of the denoiser beyond those of its masks.

    Attributes:
        masks: how many to start from; never more than cells.
        distance: between two difference maps.
        threshold: masks are merged up to this distance, by average linkage.
    """

    masks: int = 24
    distance: Distance = "cosine"
    threshold: float = 0.3
    name: ClassVar[str] = "overlap"

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("masks", is_integer(self.masks, 1), "an integer, 1 or more"),
                (
                    "distance",
                    is_one_of(self.distance, ("cosine", "correlation", "braycurtis")),
                    "'cosine', 'correlation', 'braycurtis'",
                ),
                ("threshold", is_positive(self.threshold), "a finite number above 0"),
            ],
        )

    def clusters(self, features: Tensor, grid: tuple[int, int], *, seed: int = 0) -> int:
        """As `Criterion.clusters`."""
        return min(self.masks, len(features))

    def merged(self, difference_maps: Tensor) -> np.ndarray:
        """As `Criterion.merged`."""
        return groups_within(likeness_linkage(difference_maps, self.distance), self.threshold)


_ALL: tuple[Criterion, ...] = (Eigengap(), NormalisedCut(), Silhouette(), ResponseOverlap())
CRITERIA: Mapping[str, Criterion] = MappingProxyType({criterion.name: criterion for criterion in _ALL})
"""Every criterion with its default parameters."""
AUTOMATIC = "overlap"
"""The criterion of `clusters="auto"`: the one whose number follows the true one, and whose segments are best, on drawn
scenes (`python -m benchmarks.number_of_segments`)."""


def find_criterion(clusters: int | str) -> Criterion:
    """What `EmerDiffConfig.clusters` says: a number, "auto", or the name of a criterion.

    Raises:
        InputError: none of these.
    """
    if not isinstance(clusters, str):
        return Fixed(clusters)
    name = AUTOMATIC if clusters == "auto" else clusters
    if name not in CRITERIA:
        raise InputError(f"clusters {clusters!r}; accepted: {accepted_clusters()}")
    return CRITERIA[name]


def accepted_clusters() -> str:
    """What `find_criterion` takes, in words."""
    return f"an integer, 1 or more, 'auto', {', '.join(repr(name) for name in CRITERIA)}"
