"""A tree of segments, from fine masks to whole objects, by agglomerative clustering of what the masks answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist
from torch import Tensor

from emerdiff_probe.arrays import number_in_order
from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import contact_sheet, overlay

Distance = Literal["cosine", "correlation", "braycurtis"]
"""SciPy's names. "braycurtis" of difference maps is 1 - 2 sum(min) / sum(both), one minus their soft Dice overlap."""


def likeness_linkage(vectors: np.ndarray | Tensor, distance: Distance = "cosine") -> np.ndarray:
    """Average linkage (Sokal and Michener 1958) of masks by how alike they are.

    Args:
        vectors: (mask, ...), one of any shape for every mask, such as difference maps or mask embeddings.
        distance: between two of them. Where it is not defined, as the cosine of zeros, two masks are 1 apart.

    Returns:
        (mask - 1, 4) float64, SciPy's linkage matrix: the two that are merged, their distance, and the size of both.

    Raises:
        InputError: no masks, values that are not finite, or an unknown distance.
    """
    flat = np.asarray(vectors, np.float64)
    if flat.ndim < 2 or flat.size == 0 or not np.isfinite(flat).all():
        raise InputError(f"vectors of shape {flat.shape}; accepted: (mask, ...), one mask or more, finite")
    if distance not in {"cosine", "correlation", "braycurtis"}:
        raise InputError(f"distance {distance!r}; accepted: 'cosine', 'correlation', 'braycurtis'")
    if len(flat) == 1:
        return np.zeros((0, 4))
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(pdist(flat.reshape(len(flat), -1), distance), nan=1.0)
    return hierarchy.linkage(np.maximum(apart, 0), "average")  # rounding may leave the cosine below 0


def groups_within(linkage: np.ndarray, threshold: float) -> np.ndarray:
    """Groups of the masks that are merged at a distance of at most `threshold`: (mask,), by first appearance."""
    if len(linkage) == 0:
        return np.zeros(1, int)
    return number_in_order(hierarchy.fcluster(linkage, threshold, "distance"))


def groups_after(linkage: np.ndarray, merges: int) -> np.ndarray:
    """Groups of the masks after the first so many merges: (mask,), numbered by first appearance."""
    if len(linkage) == 0:
        return np.zeros(1, int)
    order = np.arange(len(linkage), dtype=float)
    return number_in_order(hierarchy.fcluster(linkage, merges - 0.5, "monocrit", monocrit=order))


def merged_maps(difference_maps: Tensor, groups: np.ndarray) -> Tensor:
    """Maps of groups of masks, at every pixel the highest of the group.

    The highest, as then a pixel goes to the group of the mask that it went to before: merging never moves a border.

    Args:
        difference_maps: (mask, height, width).
        groups: (mask,) integers, numbered 0, 1, … in order of first appearance.

    Returns:
        (group, height, width).
    """
    if len(np.unique(groups)) == len(groups):
        return difference_maps
    members = torch.from_numpy(groups)
    return torch.stack([difference_maps[members == group].amax(0) for group in range(int(groups.max()) + 1)])


@dataclass(frozen=True, eq=False)
class SegmentTree:
    """Segments within segments: every level is a partition of the pixels, and merges segments of the finer ones.

    Attributes:
        labels: (height, width) integers in 0 … K - 1, the finest level.
        linkage: (K - 1, 4) float64, SciPy's linkage matrix over the K masks; `scipy.cluster.hierarchy.dendrogram` and
            its like take it.

    Raises:
        InputError: no linkage matrix with rising distances, or one of fewer masks than there are labels.
    """

    labels: np.ndarray
    linkage: np.ndarray

    def __post_init__(self) -> None:
        linkage = self.linkage
        if linkage.shape != (0, 4) and not (
            linkage.ndim == 2 and hierarchy.is_valid_linkage(linkage) and hierarchy.is_monotonic(linkage)
        ):
            raise InputError(f"linkage of shape {linkage.shape}; accepted: SciPy's (mask - 1, 4), distances rising")
        if self.labels.dtype.kind not in "iu" or not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.masks:
            span = f"{self.labels.min()} to {self.labels.max()}"
            raise InputError(f"labels {span} in a tree of {self.masks} masks; accepted: integers 0 to {self.masks - 1}")

    @property
    def masks(self) -> int:
        """Number of masks of the finest level, K."""
        return len(self.linkage) + 1

    def cut(self, segments: int | None = None, *, threshold: float | None = None) -> np.ndarray:
        """Labels of one level.

        Args:
            segments: how many at most, 1 to K; with K the labels come back as they are. Fewer are there where a
                mask has no pixel.
            threshold: instead of a number, the distance up to which masks are merged; the distances of the merges are
                the third column of `linkage`.

        Returns:
            (height, width) integers of the labels' own kind.

        Raises:
            InputError: a number out of range, a threshold that is none, or not exactly one of both.
        """
        return self._groups(segments, threshold).astype(self.labels.dtype)[self.labels]

    def _groups(self, segments: int | None, threshold: float | None) -> np.ndarray:
        if (segments is None) == (threshold is None):
            raise InputError(f"{segments} segments and threshold {threshold}; accepted: one of both")
        if threshold is not None:
            if np.isnan(threshold):
                raise InputError("threshold nan; accepted: a number")
            return groups_within(self.linkage, threshold)
        if segments is None or not is_integer(segments, 1) or segments > self.masks:
            raise InputError(f"{segments!r} segments of {self.masks} masks; accepted: 1 to {self.masks}")
        return groups_after(self.linkage, self.masks - segments)

    def levels(self, image: np.ndarray, segments: Sequence[int] | None = None) -> Image.Image:
        """Levels side by side over the image; a merged segment has the colour of its first mask.

        Args:
            image: (height, width, 3) uint8.
            segments: of every level; K and its halves down to 2 when None.

        Raises:
            InputError: no levels, or a number out of range.
        """
        shown = list(_halves(self.masks) if segments is None else segments)
        if not shown:
            raise InputError("no levels; accepted: one number of segments or more")
        pictures = []
        for count in shown:
            groups = self._groups(count, None)
            first = np.unique(groups, return_index=True)[1]
            pictures.append(overlay(image, first[groups][self.labels]))
        return contact_sheet([image, *pictures], ["image", *(f"{count} segments" for count in shown)])

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"SegmentTree({self.masks} masks, {height} x {width} pixels)"


def _halves(masks: int) -> list[int]:
    levels = [masks]
    while levels[-1] >= 4:
        levels.append(levels[-1] // 2)
    return levels
