"""Any method under the picture's own borders: what sharpens EmerDiff's maps sharpens its rivals', too."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch

from emerdiff_probe.arrays import number_in_order
from emerdiff_probe.checks import is_one_of, require
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.interface import Bounded, Counts, Segmenter, require_count
from emerdiff_probe.methods.upsampling import Bilinear
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.sharpen import SHARPENINGS, Sharpening, read_labels


@dataclass(frozen=True)
class Sharpened:
    """A method whose soft masks, or labels, are sharpened as EmerDiff's difference maps are; see `read_labels`.

    Of EmerDiff these are its difference maps, of bilinear masks themselves, of any other method its labels, each a mask
    of ones and zeros.

    Attributes:
        method: that makes the masks.
        sharpen: how; "none", the paper's reading, only of EmerDiff.

    Raises:
        InputError: no such sharpening.
    """

    method: Segmenter
    sharpen: Sharpening

    def __post_init__(self) -> None:
        known = SHARPENINGS if isinstance(self.method, EmerDiff) else SHARPENINGS[1:]
        require(self, [("sharpen", is_one_of(self.sharpen, known), ", ".join(map(repr, known)))])

    @property
    def name(self) -> str:
        """For tables, unique among methods."""
        return f"{self.method.name} + {self.sharpen}"

    @property
    def counts(self) -> Counts:
        """That of the method."""
        return self.method.counts

    @property
    def probes(self) -> bool:
        """Whether the method asks the model."""
        return self.method.probes

    def capacity(self, model: ProbeModel) -> int:
        """As `Bounded.capacity`: that of the method, without bound where it has none."""
        return self.method.capacity(model) if isinstance(self.method, Bounded) else sys.maxsize

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`."""
        if isinstance(self.method, EmerDiff):
            config = self.method.config.change(sharpen=self.sharpen)
            return replace(self.method, config=config).segment(probed, clusters)
        if isinstance(self.method, Bilinear):
            masks = self.method.low_resolution_masks(probed, require_count(self, clusters))
        else:
            masks = number_in_order(self.method.segment(probed, clusters))
        return read_labels(one_hot_masks(masks).to(torch.float32), probed.image, self.sharpen)[0]
