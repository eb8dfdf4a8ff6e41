"""Settings as a job of the engine: a cell is a setting, measured of one picture by every criterion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emerdiff_probe.calibration.control import forget
from emerdiff_probe.calibration.criteria import CRITERIA, CRITERION, OPTIONAL, SEEDS, SHARPENED, Ground
from emerdiff_probe.calibration.space import Setting
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.errors import ModelError
from emerdiff_probe.metrics.overlaps import adjusted_rand, majority_confusion
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.correspondence import assign, difference_maps
from emerdiff_probe.reading.features import one_hot_masks, upsampled
from emerdiff_probe.runs.job import Cell
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.sharpen import Sharpening, read_labels
from emerdiff_probe.studies.study import Subject
from emerdiff_probe.studies.truth import one_truth

SECONDS, PUSHED, ENLARGED = "seconds", "confusion", "enlarged_confusion"
"""In records beside criteria: what the record took, and (class, class) pixels of labels and of enlarged masks."""
SHARP_PUSHED, SHARP_ENLARGED = "sharpened_confusion", "sharpened_enlarged_confusion"
"""The same of labels and masks that are both sharpened."""


@dataclass(eq=False)
class Picture:
    """One picture under calibration: inverted once for every number of steps, its masks found once.

    Attributes:
        model, sample, config: as of a `Subject`, resolved.
        start: the highest timestep at which anything is pushed.
        classes: number of classes of its labels; 0 where it has none.
    """

    model: ProbeModel
    sample: Sample
    config: EmerDiffConfig
    start: int
    classes: int = 0
    subjects: dict[tuple[int, int], Subject] = field(default_factory=dict)

    def subject(self, steps: int, start: int, seed: int) -> Subject:
        """The picture inverted with so many steps, from a timestep of their grid, under a seed."""
        if (steps, seed) not in self.subjects:
            config = self.config.change(steps=steps, seed=seed)
            own = steps == self.config.inversion.steps
            self.subjects[steps, seed] = Subject(self.model, self.sample, config, self.start if own else start)
        return self.subjects[steps, seed]

    @cached_property
    def low_resolution_masks(self) -> np.ndarray:
        """Labels (grid_height, grid_width), those that all settings are given."""
        config = self.config
        probed = self.subject(config.inversion.steps, self.start, config.seed).probed
        sites = find_feature_sites(self.model, config)
        return probed.low_resolution_masks(sites, config.given_clusters, config.features.timesteps)

    def maps(self, setting: Setting, *, seed: int | None = None, by: ProbeModel | None = None) -> torch.Tensor:
        """Difference maps (mask, height, width) of the masks under a setting, by another denoiser where one is given.

        Its trajectory is the model's own: the same latents.
        """
        config = self.config.change(**setting.options())
        probed = self.subject(setting.steps, setting.modulate_at, config.seed if seed is None else seed).probed
        if setting.modulate_at not in probed.trajectory.timesteps:  # of other steps, from another timestep
            del self.subjects[setting.steps, config.seed if seed is None else seed]
            return self.maps(setting, seed=seed, by=by)
        modulation = resolve_modulation(self.model, config)
        masks = probed.masks(self.low_resolution_masks, modulation.site)
        return difference_maps(by or self.model, probed.trajectory, masks, modulation, smoothing=config.smoothing)

    @cached_property
    def ground(self) -> Ground:
        """What labels are held against."""
        subject = self.subject(self.config.inversion.steps, self.start, self.config.seed)
        latents = subject.probed.latents[0]
        height, width = (side * self.model.factor for side in latents.shape[-2:])
        return Ground(subject.image, latents, self.low_resolution_masks, (height, width), self.config.sharpen)

    @cached_property
    def enlarged_confusion(self) -> np.ndarray:
        """As `confusion`, of the enlarged masks: the rival that pushing has to beat."""
        return self.confusion(upsampled(self.low_resolution_masks, *self.ground.image.shape[:2]))

    @cached_property
    def sharp_enlarged_confusion(self) -> np.ndarray:
        """As `enlarged_confusion`, sharpened."""
        masks = one_hot_masks(self.low_resolution_masks)
        return self.confusion(read_labels(masks, self.ground.image, self.config.sharpen)[0])

    def confusion(self, labels: np.ndarray) -> np.ndarray:
        """(class, class) pixels of the majority protocol."""
        return majority_confusion(labels, one_truth(self.sample), self.classes, ignore_index=IGNORED).astype(np.int32)


@dataclass(eq=False)
class CalibrationJob:
    """Settings of the modulation, each measured of every picture until the time is over.

    Attributes:
        config: what no setting changes, resolved; read fast. Where it sharpens labels, `SHARPENED` is measured too.
        start: the highest timestep at which anything is pushed.
        classes: number of classes of the data; 0 where it has none.
        seeds: whether the labels under another draw of the noise are found, too.
        settings: those that are wanted now.
        twins: how many untrained denoisers are measured in the model's place; none, the model itself.
        seconds: of work that there still are; once they are over nothing more is measured.
        tell: told of every record, and the seconds that it took.
        pictures: that were inverted, by name.
        untrained: the twins, by number, each made when it is asked for first.
    """

    config: EmerDiffConfig
    start: int
    classes: int = 0
    seeds: bool = False
    settings: tuple[Setting, ...] = ()
    twins: int = 0
    seconds: float = math.inf
    tell: Callable[[float], None] = field(default=lambda seconds: None)
    pictures: dict[str, Picture] = field(default_factory=dict)
    untrained: dict[int, ProbeModel] = field(default_factory=dict)
    name = "calibrate"

    @property
    def cells(self) -> Mapping[Cell, Mapping[str, Any]]:
        """The settings, or those of every twin, with its number behind."""
        if not self.twins:
            return {tuple(setting): {} for setting in self.settings}
        return {(*setting, twin): {} for twin in range(self.twins) for setting in self.settings}

    def identity(self) -> dict[str, Any]:
        """The configuration without what settings say, and what is measured."""
        kept = self.config.change(**dict.fromkeys(Setting._fields))
        return {
            "calibration": kept.to_dict(),
            "criteria": list(CRITERIA),
            "seeds": self.seeds,
            "masks_of": self.config.inversion.steps,
        }

    def describe(self) -> dict[str, Any]:
        """What the numbers of a cell are."""
        return {
            "cell": list(Setting._fields),
            "criteria": {**CRITERIA, **{name: OPTIONAL[name] for name in self.optional}},
        }

    @property
    def optional(self) -> tuple[str, ...]:
        """Criteria of `OPTIONAL` that are measured."""
        return (SEEDS,) * self.seeds + (SHARPENED,) * (self.config.sharpen != "none")

    def prepare(self, model: ProbeModel, cells: Collection[Cell]) -> None:
        """Nothing is needed before the first picture."""

    def measure(
        self, model: ProbeModel, sample: Sample, cells: Sequence[Cell]
    ) -> Iterator[tuple[Cell, dict[str, float | np.ndarray]]]:
        """Setting by setting; ends early where the time is over. What overflows the model is measured as NaN."""
        for cell in cells:
            if self.seconds <= 0:
                return
            began = time.perf_counter()
            picture = self.pictures.setdefault(sample.name, self._picture(model, sample))
            setting = Setting(*cell[: len(Setting._fields)])  # type: ignore[arg-type]
            twin = cell[-1] if self.twins else None
            record = self._record(picture, setting) if twin is None else self._control(picture, setting, int(twin))
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds = time.perf_counter() - began
            self.seconds -= seconds
            self.tell(seconds)
            yield cell, record | {SECONDS: seconds}

    def _picture(self, model: ProbeModel, sample: Sample) -> Picture:
        return Picture(model, sample, self.config, self.start, self.classes)

    def _record(self, picture: Picture, setting: Setting) -> dict[str, float | np.ndarray]:
        try:
            maps = picture.maps(setting)
            other = picture.maps(setting, seed=self.config.seed + 1) if self.seeds else maps
        except ModelError:
            return dict.fromkeys((*CRITERIA, *self.optional), math.nan) | self._confusions(picture, None)
        values: dict[str, float | np.ndarray] = {**picture.ground.measure(maps)}
        if self.seeds:
            values[SEEDS] = adjusted_rand(assign(maps).numpy(), assign(other).numpy())
        return values | self._confusions(picture, maps)

    def _control(self, picture: Picture, setting: Setting, twin: int) -> dict[str, float | np.ndarray]:
        if twin not in self.untrained:
            self.untrained[twin] = forget(picture.model, twin)
        try:
            maps = picture.maps(setting, by=self.untrained[twin])
        except ModelError:  # random weights may overflow
            return {CRITERION: -1.0}
        return {CRITERION: picture.ground.measure(maps)[CRITERION]}

    def _confusions(self, picture: Picture, maps: torch.Tensor | None) -> dict[str, np.ndarray]:
        if not self.classes:
            return {}
        image = picture.ground.image

        def confusion(sharpen: Sharpening) -> np.ndarray:
            labels = np.zeros(image.shape[:2], np.uint8) if maps is None else read_labels(maps, image, sharpen)[0]
            return picture.confusion(labels)

        found = {PUSHED: confusion("none"), ENLARGED: picture.enlarged_confusion}
        if SHARPENED in self.optional:
            found |= {SHARP_PUSHED: confusion(self.config.sharpen), SHARP_ENLARGED: picture.sharp_enlarged_confusion}
        return found
