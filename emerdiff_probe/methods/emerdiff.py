"""EmerDiff itself behind the interface of its rivals, so that all are run, timed and scored alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from emerdiff_probe.methods.choices import timestep_near
from emerdiff_probe.methods.interface import Counts, optional
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import FAST, EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment_probed


@dataclass(frozen=True)
class EmerDiff:
    """EmerDiff (Namekata et al. 2024): the labels of `segment`, from an image that is probed already.

    Attributes:
        config: settings, but for the number of clusters and those of the inversion, which are the probed image's; None
            is the best known ones for the model, at the timesteps of the trajectory nearest to theirs.
        injection: False leaves out the attention injection, whatever the settings say.
        fast: with the approximations of `EmerDiffConfig.fast`, whatever the settings say.
    """

    config: EmerDiffConfig | None = None
    injection: bool = True
    fast: bool = False
    counts: ClassVar[Counts] = "either"
    probes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For tables, unique among methods."""
        return "emerdiff" + " fast" * self.fast + " without injection" * (not self.injection)

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; without a number by the criterion "auto"."""
        changes: dict[str, Any] = {"clusters": optional(self, clusters) or "auto"}
        if self.fast:
            changes |= FAST
        if not self.injection:
            changes["injection"] = ()
        return segment_probed(probed, replace(self._settings(probed), **changes)).labels

    def _settings(self, probed: ProbedImage) -> EmerDiffConfig:
        if self.config is not None:
            return self.config
        best = EmerDiffConfig.for_model(probed.model, steps=probed.trajectory.steps)
        return replace(
            best,
            feature_timestep=timestep_near(probed, None, best.feature_timestep),
            modulate_at=timestep_near(probed, None, best.modulate_at),
        )
