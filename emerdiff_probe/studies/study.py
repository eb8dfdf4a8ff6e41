"""What a study is: a grid of named axes over one measurement of a sample, and what the paper reports about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.segmentation.segment import segment_probed

Value = str | int | float
Cell = tuple[Value, ...]
"""One value of every axis, in the order of the axes."""
Measured = Mapping[str, float | np.ndarray]
"""What was measured in one cell, by the name of the measure."""


@dataclass(frozen=True)
class Axis:
    """The values that one choice takes, with their units.

    Raises:
        InputError: no values, or one twice.
    """

    values: tuple[Value, ...]
    units: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise InputError(f"axis values {self.values!r}; accepted: one or more, each once")


@dataclass(frozen=True)
class Measure:
    """Something that is measured in every cell of every image.

    Attributes:
        description: what it is, for titles.
        units: of the figure that is reported.
        kind: "mean", one number a sample, averaged over the samples where it is finite; "confusion", (class, class)
            pixel counts of the majority protocol, added up over the samples and reported as mIoU in percent; or
            "consensus", labels (height, width) of any size, reported as their mean adjusted Rand index with those of
            all other cells of the study, which is averaged over the samples.
        higher_is_better: so that figures can say which way is up; None where neither is.
    """

    description: str
    units: str = ""
    kind: Literal["mean", "confusion", "consensus"] = "mean"
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Direction:
    """What the paper reports (or common sense expects), as a difference between two places of the grid.

    Attributes:
        claim: in words, with its source.
        measure: name of the measure.
        first, second: values of some axes; the measure is averaged over the others.
        within: None when `first` is said to exceed `second`; else the two are said to differ by at most this much.
        comparable: False where the measure differs between the two by construction, whatever the model.
    """

    claim: str
    measure: str
    first: Mapping[str, Value]
    second: Mapping[str, Value]
    within: float | None = None
    comparable: bool = True


class Subject:
    """One sample under study: inverted once for all cells, and what several of them ask for kept.

    Args:
        model: that is studied.
        sample: an image, with its truth where there is one.
        config: settings that no axis changes, resolved.
        start: the highest timestep that any cell needs.
    """

    def __init__(self, model: ProbeModel, sample: Sample, config: EmerDiffConfig, start: int) -> None:
        self.model, self.sample, self.config, self.start = model, sample, config, start
        self.image = sample.pixels()

    @cached_property
    def probed(self) -> ProbedImage:
        """The image under the probe."""
        return self.config.probe(self.model, self.image, start=self.start)

    @cached_property
    def reseeded(self) -> Subject:
        """The same image under the noise and the k-means of another seed."""
        return Subject(self.model, self.sample, self.config.change(seed=self.config.seed + 1), self.start)

    @cached_property
    def segments(self) -> np.ndarray:
        """Labels (height, width) of EmerDiff under the configuration's own settings."""
        return self.segment({})

    def segment(self, unit: Mapping[str, Value]) -> np.ndarray:
        """Labels (height, width) of EmerDiff with some settings changed, by option names: what `segment` gives."""
        return segment_probed(self.probed, self.config.change(**unit)).labels


@dataclass(frozen=True)
class Study:
    """A question, and the grid of measurements that answers it.

    Attributes:
        name: on the command line.
        question: in words.
        axes: by name, in order. An axis that changes a setting has that setting's option name.
        measures: by name.
        config: settings that no axis changes.
        measure: measures one unit of work, all cells that share the values of every axis but `together`: takes the
            subject and those values, and gives what was measured for each combination of `together`.
        together: axes that are measured in one go, because they share a pass.
        start: the highest timestep that is needed.
        parameters: whatever else `measure` depends on and cells may differ by, as JSON values.
        directions: what the paper says; those of measures that are left out are, too.
        left_out: measures that this data or these settings do not allow, by name, and why.
        prepare: what is done once before any sample, for the units of work that are wanted.
    """

    name: str
    question: str
    axes: Mapping[str, Axis]
    measures: Mapping[str, Measure]
    config: EmerDiffConfig
    measure: Callable[[Subject, Mapping[str, Any]], Mapping[Cell, Measured]]
    together: tuple[str, ...] = ()
    start: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    directions: tuple[Direction, ...] = field(default=())
    left_out: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Sequence[Mapping[str, Any]]], None] | None = None

    def __post_init__(self) -> None:
        kept = tuple(direction for direction in self.directions if direction.measure not in self.left_out)
        object.__setattr__(self, "directions", kept)
        unknown = set(self.together) - set(self.axes)
        for direction in self.directions:
            unknown |= {*direction.first, *direction.second} - set(self.axes)
            unknown |= {direction.measure} - set(self.measures)
        if unknown:
            raise InputError(f"study {self.name}: {', '.join(sorted(unknown))} named; accepted: its axes and measures")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of every axis."""
        return tuple(len(axis.values) for axis in self.axes.values())

    @property
    def apart(self) -> tuple[str, ...]:
        """Axes that are measured one value at a time."""
        return tuple(name for name in self.axes if name not in self.together)

    def places(self) -> list[dict[str, Value]]:
        """Values of every axis for every cell of the grid, in order."""
        values = itertools.product(*(axis.values for axis in self.axes.values()))
        return [dict(zip(self.axes, place, strict=True)) for place in values]

    def units(self) -> list[dict[str, Value]]:
        """Values of the axes `apart` for every unit of work, in order."""
        return [
            dict(zip(self.apart, values, strict=True))
            for values in itertools.product(*(self.axes[name].values for name in self.apart))
        ]

    def cells(self, unit: Mapping[str, Value]) -> dict[Cell, Cell]:
        """The cells of a unit: values of every axis by the values of the axes `together`."""
        cells: dict[Cell, Cell] = {}
        for values in itertools.product(*(self.axes[name].values for name in self.together)):
            place = {**unit, **dict(zip(self.together, values, strict=True))}
            cells[values] = tuple(place[name] for name in self.axes)
        return cells

    def identity(self) -> dict[str, Any]:
        """What must be the same for stored cells to be used again, as JSON values."""
        return {
            "study": self.name,
            "axes": {name: list(axis.values) for name, axis in self.axes.items()},
            "measures": {name: asdict(measure) for name, measure in self.measures.items()},
            "together": list(self.together),
            "start": self.start,
            "parameters": dict(self.parameters),
            "configuration": self.config.to_dict(),
        }


def on_grid(grid: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The timesteps of a scheduler's grid that are nearest to those wanted, rising."""
    return tuple(sorted({min(grid, key=lambda timestep: abs(timestep - value)) for value in wanted}))


def strengths_around(config: EmerDiffConfig, *factors: float) -> tuple[float, ...]:
    """A configuration's own strength (10 in the paper) times factors, rising."""
    return tuple(sorted(float(f"{config.modulation.strength * factor:.6g}") for factor in factors))


def probed_block(model: ProbeModel, config: EmerDiffConfig) -> dict[str, Any]:
    """Stage and resolution of the block whose features a configuration clusters, as `list_sites` takes them."""
    site = find_feature_sites(model, config)[0]
    return {"stage": site.stage, "resolution": site.resolution}
