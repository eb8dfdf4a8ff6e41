"""What a study is: a grid of named axes over one measurement, and what the paper reports about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.world import PART_NAMES, Scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig

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
        kind: "mean", one number an image, averaged over the images where it is finite; or "confusion", (class,
            class) pixel counts of the majority protocol, added up over the images and reported as mIoU in percent.
        higher_is_better: so that figures can say which way is up; None where neither is.
    """

    description: str
    units: str = ""
    kind: Literal["mean", "confusion"] = "mean"
    higher_is_better: bool | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """Names and lengths of the dimensions that one measured value has."""
        return {"true_class": len(PART_NAMES), "assigned_class": len(PART_NAMES)} if self.kind == "confusion" else {}


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


@dataclass(frozen=True)
class Study:
    """A question, and the grid of measurements that answers it.

    Attributes:
        name: on the command line.
        question: in words.
        axes: by name, in order.
        measures: by name.
        config: settings that no axis changes.
        measure: measures one unit of work, all cells that share the values of every axis but `together`: takes the
            probed image, its scene and those values, and gives what was measured for each combination of `together`.
        together: axes that are measured in one go, because they share a pass.
        start: the highest timestep that is needed.
        parameters: whatever else `measure` depends on and cells may differ by, as JSON values.
        directions: what the paper says.
    """

    name: str
    question: str
    axes: Mapping[str, Axis]
    measures: Mapping[str, Measure]
    config: EmerDiffConfig
    measure: Callable[[ProbedImage, Scene, Mapping[str, Any]], Mapping[Cell, Measured]]
    together: tuple[str, ...] = ()
    start: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    directions: tuple[Direction, ...] = field(default=())

    def __post_init__(self) -> None:
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

    def units(self) -> list[dict[str, Value]]:
        """Values of the axes `apart` for every unit of work, in order."""
        return [
            dict(zip(self.apart, values, strict=True))
            for values in itertools.product(*(self.axes[name].values for name in self.apart))
        ]

    def cells(self, unit: Mapping[str, Value]) -> dict[Cell, tuple[int, ...]]:
        """The cells of a unit: positions on the grid by the values of the axes `together`."""
        cells: dict[Cell, tuple[int, ...]] = {}
        for values in itertools.product(*(self.axes[name].values for name in self.together)):
            place = {**unit, **dict(zip(self.together, values, strict=True))}
            cells[values] = tuple(axis.values.index(place[name]) for name, axis in self.axes.items())
        return cells

    def probe(self, model: Any, scene: Scene) -> ProbedImage:
        """The scene's image, inverted from as high a timestep as any cell needs."""
        return self.config.probe(model, scene.image, start=self.start)

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


def probed_resolution(config: EmerDiffConfig) -> int:
    """Resolution of the block that a configuration probes, from the name of its site."""
    return int("".join(filter(str.isdigit, config.features.sites[0].split(".")[0])))
