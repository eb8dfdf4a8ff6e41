"""Samples by number: what every data set is, whatever it is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, overload

from emerdiff_probe.data.sample import IGNORED, Sample


class DataSet(Sequence[Sample]):
    """Samples by number, each read when it is asked for; a slice is a data set of those samples, unread.

    Attributes:
        name: for people.
        classes: names by class number; empty where there are no labels, or labels are regions without classes.
        labelled: whether samples have labels.
        notes: what was found beside the samples and is none, in sentences for people; nothing is left out in silence.
        ignore_index: in the labels of every sample, what no score counts, whatever its files say.
    """

    name: str
    classes: tuple[str, ...]
    labelled: bool = True
    notes: tuple[str, ...] = ()
    ignore_index: int = IGNORED

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all samples, without reading them."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Where every sample comes from, without reading them, the same for the same sample of another data set."""
        return tuple(f"{self.name}: {name}" for name in self.names)

    def named(self, name: str) -> Self:
        """The same data set under another name."""
        return replace(self, name=name)  # type: ignore[type-var]

    def identity(self) -> dict[str, Any]:
        """What must be the same for results on it to be used again, as JSON values; samples may come and go."""
        return {"data": self.name}

    def stamp(self, place: int) -> tuple[int, ...]:
        """Something that changes with the files of a sample, without reading them; empty where there are none."""
        return ()

    @abstractmethod
    def _read(self, place: int) -> Sample: ...

    @abstractmethod
    def _part(self, places: slice) -> Self: ...

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Sample | Self:
        """A sample, or a data set of some.

        Raises:
            InputError: labels that cannot be read; the image is not touched yet.
            LabelError: labels that are no classes.
            IndexError: no such number.
        """
        return self._part(place) if isinstance(place, slice) else self._read(range(len(self))[place])

    def __repr__(self) -> str:
        held = f"{len(self.classes)} classes" if self.labelled else "no labels"
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {held})"
