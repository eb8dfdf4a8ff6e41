"""What a client of the engine supplies: what is wanted of every sample, and how it is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from emerdiff_probe.data.sample import Sample
from emerdiff_probe.models.probe_model import ProbeModel

Value = str | int | float | None
Cell = tuple[Value, ...]
"""One thing that is wanted of every sample, by values that JSON can hold: a place on a study's grid, or a method with
its number of segments."""
Record = Mapping[str, np.ndarray | float | int]
"""What was measured in one cell of one sample: numbers, or arrays of any shape and size, by name."""


class Job(Protocol):
    """What is measured of every sample of a data set; see `run`.

    A job is pickled, with the model, to reach workers on other machines: hold no functions that live in a function
    unless cloudpickle takes them, and no open files.
    """

    @property
    def name(self) -> str:
        """Of the job, for progress bars and messages."""
        ...

    @property
    def cells(self) -> Mapping[Cell, Mapping[str, Any]]:
        """The cells that are wanted of every sample, in order.

        The value says what must be the same for records of that cell to be used again, beyond `identity` and as JSON
        values, such as the parameters of a method; empty where there is nothing more. Cells of other runs may be in the
        same store.
        """
        ...

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for any record to be used again, as JSON values: configuration, what is measured."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What readers of the store need besides, such as titles and units, as JSON values; never compared."""
        ...

    def prepare(self, model: ProbeModel, cells: Collection[Cell]) -> None:
        """What is done once, before any sample and before workers get their copy: training, loading, binding.

        Args:
            model: that is measured.
            cells: those that some sample lacks.

        Raises:
            ProbeError: what is wrong for every sample; the run stops.
        """
        ...

    def measure(self, model: ProbeModel, sample: Sample, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Record]]:
        """Measure some cells of one sample, each once, in any order.

        What a cell holds depends on the model, the sample and the job alone, never on which cells are asked for or were
        measured before: so that a run that was stopped goes on to the same bits.

        Args:
            model: that is measured.
            sample: with its pixels read.
            cells: those that are wanted; more may be given and are left out.

        Raises:
            ProbeError: this sample cannot be measured. It is skipped, what was given before is kept.
        """
        ...
