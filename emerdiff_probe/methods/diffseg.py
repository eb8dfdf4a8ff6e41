"""DiffSeg: self-attention maps of a grid of anchors, merged while they are near, and the strongest map wins a pixel."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.attention import WEIGHTINGS, Weighting, aggregated_attention
from emerdiff_probe.methods.choices import native_grid, self_attention_sites, timestep_near
from emerdiff_probe.methods.interface import Counts, check_count
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage

TIMESTEP = 300
FLOOR = 1e-20
"""Below every probability that counts; keeps logarithms finite."""


@dataclass(frozen=True)
class DiffSeg:
    """DiffSeg (Tian et al. 2023; arXiv 2308.12469; public code google/diffseg).

    Attributes:
        sites: names of sites of the self-attention layers; None is every layer (the paper's).
        timestep: None is the one of the trajectory nearest to the paper's 300.
        weighting: of the layers; see `aggregated_attention`.
        points: anchors along the shorter side of the grid, or every cell where it has fewer; the longer side gets
            them at the same density.
        threshold: maps nearer than this, by symmetric KL divergence, are merged; the public code has 0.9 or 1.
        iterations: of merging, the paper's N.
        refine: assign cells once more by k-means from the merged maps, an option of the public code.

    Raises:
        InputError: a value out of range.
    """

    sites: tuple[str, ...] | None = None
    timestep: int | None = None
    weighting: Weighting = "layer"
    points: int = 16
    threshold: float = 1.0
    iterations: int = 3
    refine: bool = True
    name: ClassVar[str] = "diffseg"
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("weighting", self.weighting in WEIGHTINGS, ", ".join(WEIGHTINGS)),
                ("points", is_integer(self.points, 1), "an integer, 1 or more"),
                ("threshold", is_positive(self.threshold), "a finite number above 0"),
                ("iterations", is_integer(self.iterations, 1), "an integer, 1 or more"),
            ],
        )

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; for a number asked for the nearest proposals are merged one by one, which is ours."""
        count = check_count(self, clusters)
        sites = self_attention_sites(probed.model, self.sites)
        timestep = timestep_near(probed, self.timestep, TIMESTEP)
        grid = max((probed.grid(site) for site in sites), key=lambda sides: sides[0] * sides[1])
        attention = aggregated_attention(probed, sites, timestep, weighting=self.weighting).double().numpy()
        return highest(self.proposals(attention, grid, count), grid, *probed.image.shape[:2])

    def capacity(self, model: ProbeModel) -> int:
        """As `Bounded.capacity`: the anchors."""
        grid = native_grid(model, *self_attention_sites(model, self.sites))
        return len(anchor_cells(grid, self.points))

    def proposals(self, attention: np.ndarray, grid: tuple[int, int], clusters: int | None = None) -> np.ndarray:
        """Merged maps (proposal, cell) of aggregated attention (cell, cell); each sums to 1.

        Raises:
            InputError: more clusters than anchors.
        """
        anchors = anchor_cells(grid, self.points)
        if clusters is not None and clusters > len(anchors):
            raise InputError(f"{clusters} clusters of {len(anchors)} anchors; accepted: 1 to {len(anchors)}")
        near = symmetric_kl(attention[anchors], attention) < self.threshold
        maps = (near @ attention) / near.sum(1, keepdims=True)
        if clusters is None:
            for _ in range(self.iterations - 1):
                maps = merge_near(maps, self.threshold)
        else:
            maps = merge_until(maps, clusters)
        return _refined(attention, maps) if self.refine and len(maps) > 1 else maps


def anchor_cells(grid: tuple[int, int], points: int) -> np.ndarray:
    """Cells of an evenly spaced, centred grid of anchors, as numbers (anchor,) in reading order."""
    points = min(points, *grid)
    density = points / min(grid)
    rows, columns = (_evenly(side, max(points, round(side * density))) for side in grid)
    return (rows[:, None] * grid[1] + columns).ravel()


def _evenly(side: int, points: int) -> np.ndarray:
    if points == 1:
        return np.array([side // 2])
    step = (side - 1) // (points - 1)
    return (side - 1 - step * (points - 1)) // 2 + step * np.arange(points)


def symmetric_kl(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Half of KL(p || q) + KL(q || p) for every pair of two sets of maps.

    Args:
        first: (map, cell), each sums to 1.
        second: (other, cell), each sums to 1.

    Returns:
        (map, other) float64, 0 or more, 0 for equal maps.
    """
    p, q = np.maximum(first, FLOOR).astype(np.float64), np.maximum(second, FLOOR).astype(np.float64)
    log_p, log_q = np.log(p), np.log(q)
    own = (p * log_p).sum(1)[:, None] + (q * log_q).sum(1)
    return np.maximum(own - p @ log_q.T - log_p @ q.T, 0) / 2


def merge_near(maps: np.ndarray, threshold: float) -> np.ndarray:
    """One iteration of merging: a map that is not merged yet is averaged with all that are nearer than a threshold.

    Args:
        maps: (map, cell).
        threshold: of the symmetric KL divergence.

    Returns:
        (merged, cell), as many or fewer. Maps merged before take part in later means, as in the public code.
    """
    near = symmetric_kl(maps, maps) < threshold
    merged: list[np.ndarray] = []
    taken = np.zeros(len(maps), bool)
    for place in range(len(maps)):
        if not taken[place]:
            taken |= near[place]
            merged.append(maps[near[place]].mean(0))
    return np.stack(merged)


def merge_until(maps: np.ndarray, clusters: int) -> np.ndarray:
    """Average the nearest two maps, by symmetric KL divergence, until so many are left.

    Args:
        maps: (map, cell).
        clusters: 1 to the number of maps.

    Returns:
        (clusters, cell); a mean counts each of the maps that went into it once.
    """
    maps, sizes = maps.copy(), np.ones(len(maps))
    distances = symmetric_kl(maps, maps)
    np.fill_diagonal(distances, np.inf)
    left = np.arange(len(maps))
    while len(left) > clusters:
        among = distances[np.ix_(left, left)]
        one, two = left[list(np.unravel_index(among.argmin(), among.shape))]
        one, two = min(one, two), max(one, two)
        maps[one] = np.average(maps[[one, two]], axis=0, weights=sizes[[one, two]])
        sizes[one] += sizes[two]
        left = left[left != two]
        distances[one, left] = distances[left, one] = symmetric_kl(maps[[one]], maps[left])[0]
        distances[one, one] = np.inf
    return maps[left]


def _refined(attention: np.ndarray, maps: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct maps than proposals leave some empty
        labels = KMeans(len(maps), init=maps, n_init=1).fit_predict(attention)
    return np.stack([attention[labels == label].mean(0) for label in np.unique(labels)])


def highest(maps: np.ndarray, grid: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Every pixel's proposal, the one whose bilinearly enlarged map is highest there (non-maximum suppression).

    Args:
        maps: (proposal, cell).
        grid: height and width of the maps.
        height, width: of the result, pixels.

    Returns:
        (height, width) integers.
    """
    stacked = rearrange(torch.from_numpy(maps), "map (h w) -> map h w", h=grid[0])
    return enlarge(stacked, (height, width)).argmax(0).numpy()
