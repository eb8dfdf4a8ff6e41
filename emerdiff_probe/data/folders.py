"""Folders of images, with label files beside them or without: what pairs, and what is read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.labels import LabelMap, LabelReader
from emerdiff_probe.data.pairs import Pair, pair_up, stamp_files
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError


@dataclass(frozen=True, repr=False)
class FolderDataset(DataSet):
    """Images, with label files or without. See `from_folders`, `from_pictures`, and the functions for public data sets.

    Attributes:
        name: of the data set.
        classes: names by class number; empty where there are no labels, or labels are regions without classes.
        pairs: files of every sample.
        reader: how label files are read; None where there are no labels.
        notes: what was found in the folders and makes no sample.
    """

    name: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(hash=False)
    reader: LabelReader | None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_folders(
        cls,
        images: str | Path,
        labels: str | Path,
        classes: Sequence[str],
        reader: LabelReader = LabelMap(),  # noqa: B008 - a value
        *,
        image_ending: str | None = None,
        label_ending: str | None = None,
        names: Sequence[str] | str | Path | None = None,
        name: str | None = None,
    ) -> Self:
        """Pair the images of a folder with the label files of a folder, by the name before the ending.

        Args:
            images, labels: folders, searched with all folders inside; may be one.
            classes: names by class number.
            reader: how label files are read; `map_numbers` and `map_colours` make it with the classes.
            image_ending, label_ending: what file names end in, such as "_leftImg8bit.png"; None for any suffix of an
                image, or of a label file (.png, .tif, .mat).
            names: samples to take, or a text file with one a line, with or without folders and suffixes; None for all
                that have both an image and labels.
            name: of the data set; None for the name of the images' folder.

        Raises:
            InputError: no such folder, nothing that pairs in it, no classes, or (all in one error) names that are asked
                for and lack an image or labels.
        """
        if not classes:
            raise InputError("an empty list of classes; accepted: one name or more")
        pairs, notes = pair_up(Path(images), image_ending, Path(labels), label_ending, names)
        return cls(name or Path(images).name, tuple(classes), pairs, reader, notes)

    @classmethod
    def from_pictures(
        cls,
        images: str | Path,
        *,
        ending: str | None = None,
        names: Sequence[str] | str | Path | None = None,
        name: str | None = None,
    ) -> Self:
        """All images of a folder and the folders inside, without labels.

        Args:
            images: the folder.
            ending: what file names end in; None for any suffix of an image.
            names: samples to take, or a text file with one a line, as in `from_folders`; None for all.
            name: of the data set; None for the name of the folder.

        Raises:
            InputError: no such folder, no image in it, or names without an image.
        """
        pairs, notes = pair_up(Path(images), ending, None, None, names)
        return cls(name or Path(images).name, (), pairs, None, notes)

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether samples have labels."""
        return self.reader is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all samples, without reading them."""
        return tuple(pair.name for pair in self.pairs)

    def identity(self) -> dict[str, Any]:
        """As `DataSet.identity`: also how label files are read, and the folders that names are relative to."""
        found = super().identity()
        if self.reader is not None:
            reader = {"class": type(self.reader).__name__}
            if is_dataclass(self.reader) and not isinstance(self.reader, type):
                reader |= asdict(self.reader)
            found["reader"] = reader
        for pair in self.pairs[:1]:
            found["image_folder"] = _folder(pair.image, pair.name)
            if pair.labels is not None:
                found["label_folder"] = _folder(pair.labels, pair.name)
        return found

    @property
    def origins(self) -> tuple[str, ...]:
        """The image files, whatever they are called by."""
        return tuple(_origin(pair) for pair in self.pairs)

    def stamp(self, place: int) -> tuple[int, ...]:
        """Size and time of change of the files; empty where one is missing."""
        pair = self.pairs[place]
        return stamp_files(path for path in (pair.image, pair.labels) if path is not None)

    def _read(self, place: int) -> Sample:
        pair = self.pairs[place]
        labels = None
        if self.reader is not None and pair.labels is not None:
            labels = self.reader(pair.labels, len(self.classes))
        return Sample(pair.name, pair.image, labels, _origin(pair))

    def _part(self, places: slice) -> Self:
        return replace(self, pairs=self.pairs[places])


def _origin(pair: Pair) -> str:
    return str(pair.image.resolve())


def _folder(path: Path, name: str) -> str:
    """The folder that the name of a sample is relative to."""
    return str(path.absolute().parents[len(PurePosixPath(name).parts) - 1].resolve())
