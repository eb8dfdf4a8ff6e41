"""DiffCut: recursive normalised cuts of the features of the encoder's last self-attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.errors import SiteError
from emerdiff_probe.methods.choices import feature_sites, native_grid, timestep_near
from emerdiff_probe.methods.interface import Counts, check_count
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import mask_embeddings, upsampled
from emerdiff_probe.segmentation.ncut import cosine_affinity, recursive_cut
from emerdiff_probe.sites import Site, list_sites

Assignment = Literal["features", "bilinear", "nearest"]
TIMESTEP = 50


@dataclass(frozen=True)
class DiffCut:
    """DiffCut (Couairon et al. 2024; arXiv 2406.02842; public code PaulCouairon/DiffCut).

    The defaults are those of the public code. It runs SSD-1B at 1024 pixels, where the layer's grid is 32 x 32, and
    ends with a refinement by neighbouring colours (PAMR) that is not part of this.

    Attributes:
        site: name of the site of the features; None is the output of the last self-attention layer of the encoder.
        timestep: None is the one of the trajectory nearest to the paper's 50.
        tau: parts whose best normalised cut is not below it stay whole, 0 … 2; not used where a number is asked for.
        alpha: exponent of the cosine affinity.
        thresholds: on the eigenvector, how many are tried a cut.
        assignment: pixels by "features": the cluster whose mean feature is nearest to the bilinearly upsampled
            feature (the paper's); or clusters enlarged, "bilinear" or "nearest".

    Raises:
        InputError: a value out of range.
    """

    site: str | None = None
    timestep: int | None = None
    tau: float = 0.5
    alpha: float = 10.0
    thresholds: int = 100
    assignment: Assignment = "features"
    name: ClassVar[str] = "diffcut"
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("tau", is_positive(self.tau) and self.tau <= 2, "a number above 0, at most 2"),
                ("alpha", is_positive(self.alpha), "a finite number above 0"),
                ("thresholds", is_integer(self.thresholds, 1), "an integer, 1 or more"),
                (
                    "assignment",
                    self.assignment in {"features", "bilinear", "nearest"},
                    "'features', 'bilinear', 'nearest'",
                ),
            ],
        )

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; a number asked for is reached by the cheapest cuts, which is ours."""
        count = check_count(self, clusters)
        site = self._site(probed.model)
        features = probed.features(site, timestep_near(probed, self.timestep, TIMESTEP))
        affinity = cosine_affinity(features.numpy(), self.alpha)
        labels = recursive_cut(affinity, threshold=self.tau, clusters=count, thresholds=self.thresholds)
        coarse = labels.reshape(probed.grid(site))
        height, width = probed.image.shape[:2]
        if self.assignment == "features":
            return assign_by_features(features, coarse, height, width)
        return upsampled(coarse, height, width, self.assignment)

    def capacity(self, model: ProbeModel) -> int:
        """As `Bounded.capacity`: the cells of the features."""
        return prod(native_grid(model, self._site(model)))

    def _site(self, model: ProbeModel) -> Site:
        return last_of_encoder(model) if self.site is None else feature_sites(model, self.site)[0]


def last_of_encoder(model: ProbeModel) -> Site:
    """The output of the last self-attention layer of the downward blocks.

    Raises:
        SiteError: they have none.
    """
    sites = list_sites(model, stage="down", kind="self", part="output")
    if not sites:
        raise SiteError(f"{model.name} has no self-attention in its downward blocks; name a site")
    return sites[-1]


def assign_by_features(features: Tensor, low_resolution_masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every pixel's cluster by its upsampled feature (DiffCut, high-resolution concept assignment).

    Features are scaled to unit length, averaged inside every cluster, upsampled bilinearly; a pixel takes the cluster
    whose mean has the highest inner product with its feature. Products are upsampled instead of features: the same.

    Args:
        features: (cell, channel).
        low_resolution_masks: (grid_height, grid_width) labels.
        height, width: of the result, pixels.

    Returns:
        (height, width) integers.
    """
    unit = nn.functional.normalize(features, dim=1)
    products = unit @ mask_embeddings(unit, low_resolution_masks).T
    maps = rearrange(products, "(h w) mask -> mask h w", h=len(low_resolution_masks))
    return enlarge(maps, (height, width)).argmax(0).to(torch.int64).numpy()
