"""Running a study over images, and what comes out: a stored dataset, a table with intervals, verdicts."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import IMAGES_FOR_A_VERDICT, Interval, bootstrap
from emerdiff_probe.metrics.overlaps import tallied_iou, tallies
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import Scene, draw_scene
from emerdiff_probe.studies.execution import Task, Units, measured
from emerdiff_probe.studies.store import DONE, StudyStore, open_study
from emerdiff_probe.studies.study import Direction, Study, Value

Verdict = Literal["agrees", "disagrees", "not resolved", "not comparable"]
Statistic = Callable[[np.ndarray], np.ndarray]
"""Figures (draw,) from weights (draw, image), how often each image was drawn."""
PROTOCOL = "majority (the paper: modified)"
"""What stands beside verdicts on mIoU."""


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A study's measurements over its images.

    Attributes:
        study: what was asked.
        dataset: `open_study` of the store, only images that are complete.
        store: where it is kept.
        computed, reused: cells measured in this run, and cells that were there already.
    """

    study: Study
    dataset: xr.Dataset
    store: Path
    computed: int = 0
    reused: int = 0

    @property
    def images(self) -> int:
        """Number of images."""
        return self.dataset.sizes["image"]

    def interval(self, measure: str, place: Mapping[str, Value]) -> Interval:
        """A measure at some values of axes, averaged over the other axes, with its 95% interval over images."""
        values = self._values(measure, place)
        if self.study.measures[measure].kind == "confusion":
            return bootstrap(self._miou(values), self.images, method="basic")
        return bootstrap(self._mean(values), self.images)

    def difference(self, measure: str, first: Mapping[str, Value], second: Mapping[str, Value]) -> Interval:
        """How much higher a measure is at one place than at another, over the images where both are finite."""
        values, others = self._values(measure, first), self._values(measure, second)
        if self.study.measures[measure].kind == "mean":
            return bootstrap(self._mean(values - others), self.images)
        one, other = self._miou(values), self._miou(others)
        return bootstrap(lambda weights: one(weights) - other(weights), self.images)

    def within(self, place: Mapping[str, Value]) -> StudyResult:
        """The part of the result at some values of axes; those axes are gone, and with them the paper's directions.

        Raises:
            InputError: no such axis or value, or no axis is left.
        """
        for name, value in place.items():
            if name not in self.study.axes or value not in self.study.axes[name].values:
                accepted = {name: list(axis.values) for name, axis in self.study.axes.items()}
                raise InputError(f"{name} {value!r} in study {self.study.name}; accepted: {accepted}")
        axes = {name: axis for name, axis in self.study.axes.items() if name not in place}
        if not axes:
            raise InputError(f"all axes of study {self.study.name} held; accepted: all but one, or fewer")
        together = tuple(name for name in self.study.together if name in axes)
        study = replace(self.study, axes=axes, together=together, directions=())
        return replace(self, study=study, dataset=self.dataset.sel(dict(place)))

    def table(self, measures: Sequence[str] | None = None) -> pd.DataFrame:
        """A row for every grid cell: its axis values, and value, low and high of every measure."""
        rows = []
        for index in np.ndindex(*self.study.shape):
            place = {name: axis.values[i] for i, (name, axis) in zip(index, self.study.axes.items(), strict=True)}
            row: dict[str, Any] = dict(place)
            for measure in measures or self.study.measures:
                found = self.interval(measure, place)
                row |= {measure: found.value, f"{measure} low": found.low, f"{measure} high": found.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def verdicts(self) -> pd.DataFrame:
        """What the paper reports beside what this model shows: the difference, its interval, and a verdict.

        `images` counts those where both sides are finite (of the cells averaged over, the fewest).
        """
        rows = []
        for direction in self.study.directions:
            asked = direction.measure, direction.first, direction.second
            found, images = self.difference(*asked), self._paired_images(*asked)
            rows.append(
                {
                    "claim": direction.claim,
                    "protocol": PROTOCOL if self.study.measures[direction.measure].kind == "confusion" else "",
                    "images": images,
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "verdict": verdict(direction, found, images),
                }
            )
        columns = ["claim", "protocol", "images", "difference", "low", "high", "verdict"]
        return pd.DataFrame(rows, columns=columns)

    def _paired_images(self, measure: str, first: Mapping[str, Value], second: Mapping[str, Value]) -> int:
        gap = self._values(measure, first) - self._values(measure, second)
        return int(gap.notnull().sum("image").min())

    def _values(self, measure: str, place: Mapping[str, Value]) -> xr.DataArray:
        return self.dataset[measure].sel(dict(place), drop=True)

    @staticmethod
    def _miou(values: xr.DataArray) -> Statistic:
        confusions = values.transpose("image", ...).to_numpy()
        tally = tallies(confusions.reshape(len(confusions), -1, *confusions.shape[-2:]).astype(np.float64))
        return lambda weights: 100 * tallied_iou(np.tensordot(weights, tally, 1)).mean(-1)

    @staticmethod
    def _mean(values: xr.DataArray) -> Statistic:
        """Over the images where each cell is finite, then over cells; draws that leave a cell none are left out."""
        flat = values.transpose("image", ...).to_numpy().reshape(values.sizes["image"], -1).astype(np.float64)
        known = np.isfinite(flat)

        def mean(weights: np.ndarray) -> np.ndarray:
            total, count = weights @ np.where(known, flat, 0), weights @ known
            means = np.where(count > 0, total / np.maximum(count, 1), np.nan).mean(-1)
            return means[np.isfinite(means)] if known.any(0).all() else means

        return mean

    def __str__(self) -> str:
        parts = [f"{self.study.question}\n{self.images} images, 95% bootstrap intervals over images"]
        parts.append(self.table().round(2).to_string(index=False))
        if self.study.directions:
            parts.append(self.verdicts().round(2).to_string(index=False))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self.study.question)}</b><br>{self.images} images, 95% bootstrap intervals"
        verdicts = self.verdicts().round(2).to_html(index=False) if self.study.directions else ""
        return f"{title}{self.table().round(2).to_html(index=False)}{verdicts}"


def verdict(direction: Direction, found: Interval, images: int) -> Verdict:
    """Whether a difference with its interval over so many images bears out what the paper reports."""
    if not direction.comparable:
        return "not comparable"
    if images < IMAGES_FOR_A_VERDICT:
        return "not resolved"
    if direction.within is None:
        return "agrees" if found.low > 0 else "disagrees" if found.high < 0 else "not resolved"
    if -direction.within <= found.low and found.high <= direction.within:
        return "agrees"
    return "disagrees" if found.low > direction.within or found.high < -direction.within else "not resolved"


def run_study(
    model: ProbeModel,
    study: Study,
    images: Sequence[Scene],
    *,
    store: str | Path,
    resume: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> StudyResult:
    """Measure every cell of a study on every image, and keep each as soon as it is known.

    An interrupted run goes on where it stopped: finished cells are not measured again, and the result equals that of
    an uninterrupted run to the bit, because no cell depends on which others were asked for.

    Args:
        model: to study.
        study: from `make_study`, or your own.
        images: scenes with ground truth; see `world_scenes`.
        store: folder of a Zarr group; new, or with earlier cells of the same study.
        resume: use those; otherwise they are an error.
        workers: of Ray, on this machine or on a cluster, among which whole images are shared; None measures here.
            A run that is killed loses the images that its workers were at.
        progress: show a progress bar over cells with an estimate of the time left.

    Raises:
        InputError: no images, a store of something else, workers without Ray or more than it has processors.
    """
    if not len(images):
        raise InputError("no images to study; accepted: one or more")
    seeds, digests = zip(*((scene.seed, _digest(scene)) for scene in images), strict=True)
    kept = StudyStore(store, study, model, seeds, digests, resume=resume)
    undone = {image: _undone(study, kept, image) for image in range(len(images))}
    tasks = (Task(image, images[image], units) for image, units in undone.items() if units)
    total = len(images) * int(np.prod(study.shape))
    computed = sum(len(cells) for units in undone.values() for _, cells in units)
    with tqdm(total=total, initial=total - computed, disable=not progress, desc=study.name, unit="cell") as bar:
        for image, place, values in measured(model, study, tasks, workers):
            kept.write(image, place, values)
            bar.update()
    dataset = open_study(store).isel(image=slice(len(images))).load()
    return StudyResult(study, dataset, Path(store), computed, total - computed)


def _digest(scene: Scene) -> int:
    """64 bits that tell scenes apart whose pixels or truth differ."""
    arrays = scene.image, scene.parts, scene.objects, scene.instances
    return int(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16], 16)


def _undone(study: Study, kept: StudyStore, image: int) -> Units:
    """The units of work of an image, each with its cells that have not been measured; none that is complete."""
    units = ((unit, study.cells(unit)) for unit in study.units())
    left = ((unit, {values: at for values, at in cells.items() if not kept.done(image, at)}) for unit, cells in units)
    return tuple((unit, cells) for unit, cells in left if cells)


class WorldScenes(Sequence[Scene]):
    """Scenes of the drawn world by their seeds, each drawn when it is asked for."""

    def __init__(self, seeds: Iterable[int], size: int = 256) -> None:
        self.seeds, self.size = tuple(seeds), size

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return WorldScenes(self.seeds[index], self.size)
        return draw_scene(self.seeds[index], height=self.size, width=self.size)


def world_scenes(model: ProbeModel, count: int, seed: int = 0) -> WorldScenes:
    """`count` scenes of the drawn world from `seed` on, at the model's native size; training begins at 1,000,000."""
    if count < 1:
        raise InputError(f"{count} images; accepted: 1 or more")
    return WorldScenes(range(seed, seed + count), model.native_size)


def load_result(study: Study, store: str | Path) -> StudyResult:
    """A stored study with the images that are complete.

    Raises:
        InputError: no study there, or no image of it is complete.
    """
    dataset = open_study(store)
    complete = dataset[DONE].all([*study.axes]).to_numpy()
    if not complete.any():
        raise InputError(f"{store}: no image is complete yet")
    return StudyResult(study, dataset.isel(image=np.flatnonzero(complete)).load(), Path(store))
