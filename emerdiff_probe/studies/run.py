"""Running a study over images, and what comes out: a stored dataset, a table with intervals, verdicts."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd
import xarray as xr
import zarr.codecs

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_folder
from emerdiff_probe.metrics.intervals import IMAGES_FOR_A_VERDICT, Interval, bootstrap
from emerdiff_probe.metrics.overlaps import consensus, tallied_iou, tallies
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.job import Cell
from emerdiff_probe.runs.run import Run, run, stored, write_to_stderr
from emerdiff_probe.runs.store import Store
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.settings import OPTIONS
from emerdiff_probe.studies.study import Axis, Direction, Measure, Measured, Study, Subject, Value
from emerdiff_probe.studies.truth import Truth

Verdict = Literal["agrees", "disagrees", "not resolved", "not comparable"]
Statistic = Callable[[np.ndarray], np.ndarray]
"""Figures (draw,) from weights (draw, image), how often each image was drawn."""
SETTING_OF = {"site": "feature_sites", "timestep": "feature_timesteps"}
"""Option names of axes that have names of their own."""
FOLDED = 10
"""Rows of a table from which on a notebook shows it folded."""
PROTOCOL = "majority (the paper: modified)"
"""What stands beside verdicts on mIoU."""


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A study's measurements over its images.

    Attributes:
        study: what was asked.
        dataset: `open_study` of the store: dimension `image` (names of samples) and one for every axis.
        store: where it is kept.
        computed, reused: cells measured in this run, and cells that were there already.
        skipped: samples that are not in the dataset, by name, and what was wrong.
        notes: what there is to say about the data, a sentence each.
    """

    study: Study
    dataset: xr.Dataset
    store: Path
    computed: int = 0
    reused: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return self.dataset.sizes["image"]

    def interval(self, measure: str, place: Mapping[str, Value]) -> Interval:
        """A measure at some values of axes, averaged over the other axes, with its 95% interval over images."""
        values = self._values(measure, place)
        if self.study.measures[measure].kind == "confusion":
            return bootstrap(self._miou(values), self.images, method="basic", within=(0, 100))
        return bootstrap(self._mean(values), self.images)

    def difference(self, measure: str, first: Mapping[str, Value], second: Mapping[str, Value]) -> Interval:
        """How much higher a measure is at one place than at another, over the images where both are finite."""
        values, others = self._values(measure, first), self._values(measure, second)
        if self.study.measures[measure].kind != "confusion":
            return bootstrap(self._mean(values - others), self.images)
        return self._miou_difference(values, others)

    def compare(self, measure: str, over: str) -> pd.DataFrame:
        """How much higher one measure is than another in every cell of the grid, on the same images: EmerDiff, say.

        Returns:
            A row a cell: `label`, the cell in words; `difference`, `low`, `high`; `images`, those where both are
            finite; `units`; and `verdict`: "better", "worse" or "not resolved" for the first.

        Raises:
            InputError: no such measures, or of different kinds or units.
        """
        for name in (measure, over):
            if name not in self.study.measures:
                raise InputError(f"measure {name!r} in study {self.study.name}; accepted: {list(self.study.measures)}")
        one, other = self.study.measures[measure], self.study.measures[over]
        if (one.kind, one.units) != (other.kind, other.units):
            raise InputError(f"{measure} compared with {over}; accepted: measures of one kind and one unit")
        rows = []
        for place in self.study.places():
            ours, theirs = self._values(measure, place), self._values(over, place)
            if one.kind != "confusion":
                found = bootstrap(self._mean(ours - theirs), self.images)
            else:
                found = self._miou_difference(ours, theirs)
            images = int((ours - theirs).notnull().sum("image").min())
            resolved = images >= IMAGES_FOR_A_VERDICT and (found.low > 0 or found.high < 0)
            ahead = (found.low > 0) != (one.higher_is_better is False)
            rows.append(
                {
                    "label": ", ".join(f"{name} {value}" for name, value in place.items()),
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "images": images,
                    "units": "percentage points" if one.units == "%" else one.units,
                    "verdict": ("better" if ahead else "worse") if resolved else "not resolved",
                }
            )
        return pd.DataFrame(rows)

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
        for place in self.study.places():
            row: dict[str, Any] = dict(place)
            for measure in measures or self.study.measures:
                found = self.interval(measure, place)
                row |= {measure: found.value, f"{measure} low": found.low, f"{measure} high": found.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def find_best(self) -> tuple[str, dict[str, Any]] | None:
        """The measure that says which place of the grid is best, and the settings of that place by option names.

        None where axes are no settings, where no measure says which way is up, or where the best place cannot be said
        by options; and of the number of masks, with which majority mIoU rises by construction.
        """
        names = {axis: SETTING_OF.get(axis, axis) for axis in self.study.axes}
        upwards = [name for name, measure in self.study.measures.items() if measure.higher_is_better]
        if not upwards or "clusters" in names or not set(names.values()) <= set(OPTIONS):
            return None
        measure = "emerdiff" if "emerdiff" in upwards else upwards[0]
        values = self.table([measure])[measure].to_numpy()
        if not np.isfinite(values).any():
            return None
        place = np.unravel_index(int(np.nanargmax(values)), self.study.shape)
        at = zip(names.values(), self.study.axes.values(), place, strict=True)
        settings: dict[str, Any] = {option: axis.values[index] for option, axis, index in at}
        if "injection" in settings:
            kinds = {"none": (), "self": ("self",), "cross": ("cross",), "joint": ("joint",), "all": None}
            if settings["injection"] not in kinds:
                return None  # one block alone
            settings["injection"] = kinds[settings["injection"]]
        return measure, settings

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

    def _miou_difference(self, values: xr.DataArray, others: xr.DataArray) -> Interval:
        one, other = self._miou(values), self._miou(others)
        return bootstrap(lambda weights: one(weights) - other(weights), self.images, within=(-100, 100))

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

    @property
    def heading(self) -> tuple[str, ...]:
        """What stands above the table: how many images, of what data, and what was not measured, and why."""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        left_out = [f"{name} is not measured: {why}" for name, why in self.study.left_out.items()]
        return (
            f"{self.images} image{'s' * (self.images != 1)}{skipped}, 95% bootstrap intervals over images",
            *self.notes,
            *left_out,
        )

    def __repr__(self) -> str:
        return f"StudyResult({self.study.name!r}, {self.images} images, {', '.join(self.study.measures)})"

    def __str__(self) -> str:
        parts = ["\n".join((self.study.question, *self.heading))]
        parts.append(self.table().round(2).to_string(index=False))
        if self.study.directions:
            parts.append(self.verdicts().round(2).to_string(index=False))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self.study.question)}</b><br>{'<br>'.join(map(html.escape, self.heading))}"
        verdicts = self.verdicts().round(2).to_html(index=False) if self.study.directions else ""
        table = self.table().round(2)
        shown = table.to_html(index=False)
        if len(table) > FOLDED:
            shown = f"<details><summary>all {len(table)} places of the grid</summary>{shown}</details>"
        return f"{title}{shown}{verdicts}"


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


@dataclass(frozen=True)
class StudyJob:
    """A study as a job of the engine: a cell is a value of every axis."""

    study: Study

    @property
    def name(self) -> str:
        """The study's."""
        return self.study.name

    @property
    def cells(self) -> dict[Cell, dict[str, Any]]:
        """Every cell of the grid."""
        return {cell: {} for unit in self.study.units() for cell in self.study.cells(unit).values()}

    def identity(self) -> dict[str, Any]:
        """The study's."""
        return self.study.identity()

    def describe(self) -> dict[str, Any]:
        """What it takes to show the study from its store alone."""
        study = self.study
        return {
            "question": study.question,
            "axes": {name: {"units": axis.units, "description": axis.description} for name, axis in study.axes.items()},
            "directions": [asdict(direction) for direction in study.directions],
            "left_out": dict(study.left_out),
        }

    def prepare(self, model: ProbeModel, cells: Collection[Cell]) -> None:
        """As the study says, for the units that some of the cells are of."""
        if self.study.prepare is not None:
            wanted = set(cells)
            self.study.prepare([unit for unit in self.study.units() if wanted & set(self.study.cells(unit).values())])

    def measure(self, model: ProbeModel, sample: Sample, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Measured]]:
        """Unit by unit, of one subject.

        Raises:
            InputError: a measure is missing or not one of the study's.
        """
        study, wanted = self.study, set(cells)
        subject = Subject(model, sample, study.config, study.start)
        for unit in study.units():
            places = {values: cell for values, cell in study.cells(unit).items() if cell in wanted}
            if not places:
                continue
            measured = study.measure(subject, unit)
            for values, cell in places.items():
                if set(measured[values]) != set(study.measures):
                    raise InputError(
                        f"study {study.name} measured {', '.join(sorted(measured[values]))}; "
                        f"accepted: {', '.join(sorted(study.measures))}"
                    )
                yield cell, measured[values]


def run_study(
    model: ProbeModel,
    study: Study,
    data: DataSet,
    *,
    store: str | Path,
    resume: bool = True,
    workers: int | None = None,
    progress: bool = False,
    warn: Callable[[str], None] = write_to_stderr,
) -> StudyResult:
    """Measure every cell of a study on every sample, and keep each as soon as it is known.

    A run that was stopped goes on where it stopped, and what fails is told and skipped: see `emerdiff_probe.runs.run`,
    whose arguments these are.

    Args:
        model: to study.
        study: from `make_study` for this model and data, or your own.
        data: the samples.
        store: folder of the records, and of study.zarr, the same for other tools.
        resume, workers, progress, warn: as in `emerdiff_probe.runs.run.run`.

    Raises:
        InputError: no samples that can be measured, a store of something else, or workers that there cannot be.
    """
    if not len(data):
        raise InputError("no samples to study; accepted: one or more")
    job = StudyJob(study)
    made = run(model, job, data, store=store, workers=workers, resume=resume, progress=progress, warn=warn)
    notes = [f"{data.name}: {Truth.of(data).describe()}", *data.notes]
    if (labels := made.summarize_labels(data.classes)) is not None:
        labels.require_scorable()
        notes.insert(1, str(labels))
    result = StudyResult(
        study, _dataset(study, made), Path(store), made.computed, made.reused, made.skipped, tuple(notes)
    )
    if made.computed or not (Path(store) / ZARR).exists():
        write_zarr(result.dataset, Path(store) / ZARR)
    return result


ZARR = "study.zarr"
"""In a study's store: what `open_study` gives, for other tools; made anew from the records by every run."""


def write_zarr(dataset: xr.Dataset, path: Path) -> None:
    """As a Zarr group, every chunk with a checksum."""
    checked = {"compressors": (zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec())}
    encoding = {name: checked for name, array in dataset.items() if array.dtype.kind in "fiu"}
    write_folder(path, lambda place: dataset.to_zarr(place, mode="w", consolidated=False, encoding=encoding))


def _dataset(study: Study, made: Run) -> xr.Dataset:
    """Records of complete samples as arrays with names; of labels kept for a consensus, what they agree."""
    shape = tuple(len(axis.values) for axis in study.axes.values())
    cells = [cell for unit in study.units() for cell in study.cells(unit).values()]
    places = {cell: tuple(axis.values.index(value) for axis, value in zip(study.axes.values(), cell, strict=True))
              for cell in cells}  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for number, sample in enumerate(made.samples):
        held = {cell: dict(made.store.read(sample, cell)) for cell in cells}
        for name in (name for name, measure in study.measures.items() if measure.kind == "consensus"):
            agreement = consensus([held[cell][name] for cell in cells])
            for cell, value in zip(cells, agreement, strict=True):
                held[cell][name] = value
        for cell, place in places.items():
            for name, value in held[cell].items():
                if name not in arrays:
                    arrays[name] = np.empty((len(made.samples), *shape, *value.shape), value.dtype)
                arrays[name][(number, *place)] = value
    variables = {}
    for name, measure in study.measures.items():
        inner = ("true_class", "assigned_class") if measure.kind == "confusion" else ()
        attributes = {"units": measure.units, "description": measure.description, "kind": measure.kind}
        variables[name] = xr.Variable(("image", *study.axes, *inner), arrays[name], attributes)
    coordinates = {
        name: xr.Variable(name, _array(axis.values), {"units": axis.units, "description": axis.description})
        for name, axis in study.axes.items()
    }
    coordinates["image"] = xr.Variable("image", _array(made.names))
    return xr.Dataset(variables, coordinates, {"question": study.question})


def _array(values: Sequence[Value]) -> np.ndarray:
    """Values of an axis; text of any length, which other Zarr libraries read too."""
    array = np.array(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def load_result(store: str | Path, *, warn: Callable[[str], None] = write_to_stderr) -> StudyResult:
    """A stored study with the samples that are complete; the others are in `skipped`.

    Raises:
        InputError: no study there, a damaged one, or no sample of it is complete.
    """
    study = stored_study(store)
    made = stored(store, StudyJob(study).cells, warn)
    if not made.samples:
        raise InputError(f"{store}: no sample is complete yet; {next(iter(made.skipped.items()), 'none was begun')}")
    return StudyResult(study, _dataset(study, made), Path(store), 0, made.reused, made.skipped)


def open_study(path: str | Path) -> xr.Dataset:
    """A stored study as a dataset: dimension `image` (names of samples) and one for every axis; complete samples only.

    It is made of the records, each of which is checked, not of study.zarr.

    Raises:
        InputError: as `load_result`.
    """
    return load_result(path).dataset


def stored_study(path: str | Path) -> Study:
    """The study that a store holds, from the folder alone: to be shown, not to be measured again.

    Raises:
        InputError: no study there.
    """
    kept = Store.open(path)
    return restore_study(kept.identity, kept.description, path)


def restore_study(identity: Mapping[str, Any], shown: Mapping[str, Any], path: str | Path) -> Study:
    """A study from its `identity` and what `StudyJob.describe` gave, to be shown.

    Raises:
        InputError: they are of no study; `path` says where they stood.
    """
    try:
        return Study(
            name=identity["study"],
            question=shown["question"],
            axes={name: Axis(tuple(values), **shown["axes"][name]) for name, values in identity["axes"].items()},
            measures={name: Measure(**measure) for name, measure in identity["measures"].items()},
            config=EmerDiffConfig.from_dict(identity["configuration"]),
            measure=_only_shown,
            together=tuple(identity["together"]),
            start=identity["start"],
            parameters=identity["parameters"],
            directions=tuple(Direction(**kept) for kept in shown["directions"]),
            left_out=shown["left_out"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no study is stored there ({type(error).__name__}: {error})") from error


def _only_shown(subject: Subject, unit: Mapping[str, Any]) -> NoReturn:
    raise InputError("this study was read from its store to be shown; accepted for measuring: one from make_study")
