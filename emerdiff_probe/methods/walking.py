"""Self-attention as a random walk over cells, of several steps, cut into parts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np

from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.attention import WEIGHTINGS, Weighting, aggregated_attention
from emerdiff_probe.methods.choices import native_grid, self_attention_sites, timestep_near
from emerdiff_probe.methods.interface import Counts, check_count
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import Upsampling, upsampled
from emerdiff_probe.segmentation.ncut import cosine_affinity, recursive_cut

Adjacency = Literal["similarity", "flow"]
TIMESTEP = 300
STATIONARY_STEPS = 200


@dataclass(frozen=True)
class RandomWalk:
    """Diffusing, Walking and Cutting (Ivanova et al. 2024; arXiv 2412.04678).

    Self-attention is taken as the transition matrix of a walk over cells; its power holds walks of several steps;
    normalised cuts part the graph of the cells. The abstract says so much. No code is public and the paper's details
    could not be read: the defaults below are ours, and its automatic threshold is not part of this.

    Attributes:
        sites: names of sites of the self-attention layers; None is every layer.
        timestep: None is the one of the trajectory nearest to 300.
        weighting: of the layers; see `aggregated_attention`.
        steps: of the walk, 1 or more: the power of the transition matrix.
        adjacency: "similarity" of the cells' walks (the cosine of rows of the power, as `cosine_affinity`), or "flow",
            the probability of going between two cells in the stationary walk, in either direction.
        alpha: exponent of the similarity.
        tau: as in `DiffCut`.
        thresholds: as in `DiffCut`.
        upsampling: of the parts, "bilinear" or "nearest".

    Raises:
        InputError: a value out of range.
    """

    sites: tuple[str, ...] | None = None
    timestep: int | None = None
    weighting: Weighting = "layer"
    steps: int = 2
    adjacency: Adjacency = "similarity"
    alpha: float = 10.0
    tau: float = 0.5
    thresholds: int = 100
    upsampling: Upsampling = "bilinear"
    name: ClassVar[str] = "random walk"
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("weighting", self.weighting in WEIGHTINGS, ", ".join(WEIGHTINGS)),
                ("steps", is_integer(self.steps, 1), "an integer, 1 or more"),
                ("adjacency", self.adjacency in {"similarity", "flow"}, "'similarity', 'flow'"),
                ("alpha", is_positive(self.alpha), "a finite number above 0"),
                ("tau", is_positive(self.tau) and self.tau <= 2, "a number above 0, at most 2"),
                ("thresholds", is_integer(self.thresholds, 1), "an integer, 1 or more"),
                ("upsampling", self.upsampling in {"bilinear", "nearest"}, "'bilinear', 'nearest'"),
            ],
        )

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; a number asked for is reached by the cheapest cuts."""
        count = check_count(self, clusters)
        sites = self_attention_sites(probed.model, self.sites)
        timestep = timestep_near(probed, self.timestep, TIMESTEP)
        transition = aggregated_attention(probed, sites, timestep, weighting=self.weighting).numpy()
        walked = walk(transition, self.steps)
        affinity = cosine_affinity(walked, self.alpha) if self.adjacency == "similarity" else flow(walked)
        labels = recursive_cut(affinity, threshold=self.tau, clusters=count, thresholds=self.thresholds)
        grid = max((probed.grid(site) for site in sites), key=lambda sides: sides[0] * sides[1])
        height, width = probed.image.shape[:2]
        return upsampled(labels.reshape(grid), height, width, self.upsampling)

    def capacity(self, model: ProbeModel) -> int:
        """As `Bounded.capacity`: the cells of the finest layer."""
        return prod(native_grid(model, *self_attention_sites(model, self.sites)))


def walk(transition: np.ndarray, steps: int) -> np.ndarray:
    """Probabilities of going from cell to cell in so many steps: a power of the transition matrix.

    Args:
        transition: (cell, cell), rows sum to 1.
        steps: 1 or more.

    Returns:
        (cell, cell) float64; rows sum to 1.

    Raises:
        InputError: rows that do not sum to 1, or fewer steps.
    """
    rows = transition.astype(np.float64)
    if (
        rows.ndim != 2
        or rows.shape[0] != rows.shape[1]
        or (rows < 0).any()
        or not np.allclose(rows.sum(1), 1, atol=1e-3)
    ):
        raise InputError(f"transition of shape {rows.shape}; accepted: (cell, cell), rows that sum to 1")
    if not is_integer(steps, 1):
        raise InputError(f"{steps!r} steps; accepted: an integer, 1 or more")
    rows /= rows.sum(1, keepdims=True)  # float32 rounding would grow with the power
    return np.linalg.matrix_power(rows, steps)


def flow(transition: np.ndarray) -> np.ndarray:
    """How often the stationary walk goes between two cells, in either direction: symmetric, (cell, cell) float64."""
    visits = np.full(len(transition), 1 / len(transition))
    for _ in range(STATIONARY_STEPS):
        visits = (visits + visits @ transition) / 2  # a lazy walk settles even where the walk alternates
    rates = visits[:, None] * transition
    return (rates + rates.T) / 2
