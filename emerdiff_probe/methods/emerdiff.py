"""EmerDiff itself behind the interface of its rivals, so that all are run, timed and scored alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from emerdiff_probe.methods.choices import resolve_for
from emerdiff_probe.methods.interface import Counts, check_count
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import MODES
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.segmentation.segment import segment_probed


@dataclass(frozen=True)
class EmerDiff:
    """EmerDiff (Namekata et al. 2024): the labels of `segment`, from an image that is probed already.

    Attributes:
        config: settings, but for the number of clusters and those of the inversion, which are the probed image's. What
            they leave open are the best known ones for the model, at the nearest timesteps of the trajectory.
        varied: option names of settings that tell it from others in a table; its name says their values.
    """

    config: EmerDiffConfig = field(default_factory=EmerDiffConfig)
    varied: tuple[str, ...] = ()
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For tables: what is approximate, what is left out, and the settings that tell it from others."""
        readout = self.config.readout or Readout()
        modes = {Readout(**approximations): f" {mode}" for mode, approximations in MODES.items()}
        approximate = {Readout(): "", **modes}.get(readout, " approximate")
        settings = self.config.options()
        told = "".join(f", {name} {_text(settings[name])}" for name in self.varied if name in settings)
        return "emerdiff" + approximate + " without injection" * (self.config.modulation.injection == ()) + told

    @property
    def maps(self) -> EmerDiffConfig:
        """What difference maps depend on, but for the number of clusters; the rest is how labels are read off them."""
        return self.config.change(sharpen=None)

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; without a number by the criterion "auto"."""
        return self.find(probed, clusters).labels

    def find(self, probed: ProbedImage, clusters: int | None = None) -> Segmentation:
        """The whole of what `segment` gives the labels of.

        Raises:
            InputError: features of more draws of noise than the image was probed with; or as `Segmenter.segment`.
        """
        config = self._resolved(probed, clusters)
        draws = config.features.draws
        return segment_probed(probed if draws == probed.draws else probed.with_draws(draws), config)

    def read(self, found: Segmentation, probed: ProbedImage, clusters: int | None = None) -> Segmentation:
        """What `find` would find, from what a method with the same `maps` has found."""
        sharpen = self._resolved(probed, clusters).sharpen
        assert sharpen is not None  # of a resolved configuration
        return found.read(sharpen)

    def _resolved(self, probed: ProbedImage, clusters: int | None) -> EmerDiffConfig:
        return resolve_for(probed, self.config.change(clusters=check_count(self, clusters) or "auto"))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
