"""Rivals that enlarge EmerDiff's own low-resolution masks: nearest, bilinear, and bilinear under a guided filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np
import torch

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.methods.choices import native_grid, resolve_for
from emerdiff_probe.methods.interface import Counts, require_count
from emerdiff_probe.methods.refinement import guided_filter
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import one_hot_masks, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.segmentation.settings import FeatureSettings


@dataclass(frozen=True)
class Clustered:
    """K-means of features at one site, the low-resolution masks that EmerDiff itself starts from.

    Attributes:
        features: which; what they leave open is EmerDiff's, at the timesteps of the trajectory nearest to its own.
    """

    features: FeatureSettings = field(default_factory=FeatureSettings)
    counts: ClassVar[Counts] = "given"
    probes: ClassVar[bool] = True

    def low_resolution_masks(self, probed: ProbedImage, clusters: int) -> np.ndarray:
        """Labels (grid_height, grid_width); kept by the probed image, so that rivals share them."""
        config = resolve_for(probed, EmerDiffConfig(features=self.features))
        sites = find_feature_sites(probed.model, config)
        return probed.low_resolution_masks(sites, clusters, config.features.timesteps)

    def capacity(self, model: ProbeModel) -> int:
        """As `Bounded.capacity`: the cells of the features."""
        return prod(native_grid(model, *find_feature_sites(model, EmerDiffConfig(features=self.features))))


@dataclass(frozen=True)
class Nearest(Clustered):
    """Low-resolution masks enlarged by nearest neighbour."""

    name: ClassVar[str] = "nearest"

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`."""
        coarse = self.low_resolution_masks(probed, require_count(self, clusters))
        height, width = probed.image.shape[:2]
        return upsampled(coarse, height, width, "nearest")


@dataclass(frozen=True)
class Bilinear(Clustered):
    """Low-resolution masks enlarged bilinearly, the paper's baseline."""

    name: ClassVar[str] = "bilinear"

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`."""
        coarse = self.low_resolution_masks(probed, require_count(self, clusters))
        height, width = probed.image.shape[:2]
        return upsampled(coarse, height, width)


@dataclass(frozen=True)
class Guided(Clustered):
    """Bilinear masks, each by a guided filter under the image (He et al. 2013); a pixel takes the highest.

    The defaults did well on scenes of the world that no score is taken on, from true labels of the cells.

    Attributes:
        radius: of the filter's window in pixels; None is half a cell of the grid.
        epsilon: variance of colours in 0 … 1 below which a window counts as flat.
    """

    radius: int | None = None
    epsilon: float = 1e-4
    name: ClassVar[str] = "guided filter"

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("radius", self.radius is None or is_integer(self.radius, 1), "an integer, 1 or more, or None"),
                ("epsilon", is_positive(self.epsilon), "a finite number above 0"),
            ],
        )

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`."""
        coarse = self.low_resolution_masks(probed, require_count(self, clusters))
        height, width = probed.image.shape[:2]
        radius = self.radius or max(1, round(half_cell(coarse, height, width)))
        return guided_filter(soft_masks(coarse, height, width), probed.image, radius, self.epsilon).argmax(0)


def half_cell(low_resolution_masks: np.ndarray, height: int, width: int) -> float:
    """Half the side of a grid cell in pixels: how far bilinear borders may be off."""
    return (height * width / low_resolution_masks.size) ** 0.5 / 2


def soft_masks(low_resolution_masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks of labels enlarged bilinearly, (mask, height, width) float64; they sum to 1 at every pixel."""
    return enlarge(one_hot_masks(low_resolution_masks).to(torch.float64), (height, width)).numpy()
