"""Where an evaluation keeps its records: a file an image, method and number of segments, written whole or not at all.

Several runs may share a store, each with a part of the images or of the methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from zipfile import BadZipFile

import numpy as np

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.metrics.overlaps import Overlap


class Cell(NamedTuple):
    """A method with a number of segments; None leaves the number to the method."""

    method: str
    clusters: int | None


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a method's segments in one image.

    Attributes:
        overlap: pixels shared with classes, and embeddings of segments; None where the truth has no classes.
        figures: scores that need no classes.
        seconds: of the whole work of this method alone, the inversion included where it asks the model.
        peak_mib: the most memory held meanwhile; None where it cannot be known.
    """

    overlap: Overlap | None
    figures: Mapping[str, float]
    seconds: float
    peak_mib: float | None


class RecordStore:
    """Records on disk.

    Args:
        path: a new folder, or one that holds records of the same data and model.
        identity: what must be the same for records to be used again, as JSON values.

    Raises:
        InputError: the folder holds something else; the message says what differs.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        kept = self.path / "evaluation.json"
        if self.path.exists() and not kept.is_file() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and holds no evaluation; accepted: a new folder or an evaluation's")
        self._same(kept, identity)

    def require_method(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Refuse records of a method with other parameters.

        Raises:
            InputError: the store has such records.
        """
        self._same(self.path / "methods" / f"{quote(name, safe=' ')}.json", parameters)

    def _same(self, path: Path, identity: Mapping[str, Any]) -> None:
        if not path.exists():
            write_whole(path, lambda partial: partial.write_text(json.dumps(identity, indent=2) + "\n"))
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        require_same(path, stored, identity, "the same, or a new folder")

    def require_image(self, image: str, digest: str, stamp: Sequence[int]) -> None:
        """Refuse an image of which another is kept; of the same one, remember its files as they are now.

        Args:
            image: its name.
            digest: of its pixels and truth.
            stamp: of its files, see `DataSet.stamp`.

        Raises:
            InputError: the image of this name had other pixels or another truth.
        """
        path = self._image(image)
        if not path.exists():
            return
        held = _load(path)
        if str(held["digest"]) != digest:
            raise InputError(f"{path}: image {image} had other pixels or another truth; accepted: the same images")
        if not self.unchanged(image, stamp):
            _save(path, held | {"stamp": np.array(stamp, np.int64)})

    def unchanged(self, image: str, stamp: Sequence[int]) -> bool:
        """Whether the files of an image that is kept are as they were; true where nothing is known of them."""
        return not stamp or self.image(image, "stamp")["stamp"].tolist() == list(stamp)

    def keep_image(
        self, image: str, digest: str, stamp: Sequence[int], about: Callable[[], Mapping[str, np.ndarray]]
    ) -> None:
        """Keep what is known of an image before any method, where it is not yet kept.

        Args:
            image, digest, stamp: as in `require_image`.
            about: finds out what is to be kept.
        """
        path = self._image(image)
        if not path.exists():
            _save(path, {"digest": np.array(digest), "stamp": np.array(stamp, np.int64), **about()})

    def image(self, image: str, *names: str) -> dict[str, np.ndarray]:
        """Some of what was kept of an image."""
        return _load(self._image(image), *names)

    def has(self, image: str, cell: Cell) -> bool:
        """Whether a record is there."""
        return self._record(image, cell).exists()

    def write(self, image: str, cell: Cell, labels: np.ndarray, record: Record) -> None:
        """Keep a record and the labels (height, width) that it was taken on."""
        arrays = {f"figure/{name}": np.array(value) for name, value in record.figures.items()}
        arrays["seconds"] = np.array(record.seconds)
        arrays["peak_mib"] = np.array(np.nan if record.peak_mib is None else record.peak_mib)
        arrays["labels"] = labels.astype(np.min_scalar_type(int(labels.max())))
        if record.overlap is not None:
            assert record.overlap.embeddings is not None
            arrays["segments"], arrays["counts"] = record.overlap.segments, record.overlap.counts
            arrays["embeddings"] = record.overlap.embeddings.astype(np.float32)
        _save(self._record(image, cell), arrays)

    def record(self, image: str, cell: Cell) -> Record:
        """What `write` kept, but for the labels.

        Raises:
            InputError: no such record, or a damaged one.
        """
        held = _load(self._record(image, cell), but="labels")
        figures = {name.removeprefix("figure/"): float(held[name]) for name in held if name.startswith("figure/")}
        overlap = Overlap(held["segments"], held["counts"], held["embeddings"]) if "segments" in held else None
        peak = float(held["peak_mib"])
        return Record(overlap, figures, float(held["seconds"]), None if np.isnan(peak) else peak)

    def labels(self, image: str, cell: Cell) -> np.ndarray:
        """The labels (height, width) of a record."""
        return _load(self._record(image, cell), "labels")["labels"]

    def weights(self, method: str) -> Path:
        """Where the weights of a trained method are kept."""
        return self.path / "methods" / f"{quote(method, safe=' ')}.safetensors"

    def _image(self, image: str) -> Path:
        return self.path / "images" / f"{quote(image, safe=' ')}.npz"

    def _record(self, image: str, cell: Cell) -> Path:
        method = f"{quote(cell.method, safe=' ')}, {'auto' if cell.clusters is None else cell.clusters}"
        return self.path / "records" / quote(image, safe=" ") / f"{method}.npz"


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_whole(path, write)


def _load(path: Path, *names: str, but: str | None = None) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in names or held.files if name != but}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{path}: no readable record ({error}); delete it to have it made anew") from error


def require_same(path: Path, stored: Mapping[str, Any], fresh: Mapping[str, Any], accepted: str) -> None:
    """Refuse to go on with what was kept under another configuration.

    Args:
        path: where it is kept, for the message.
        stored: the configuration that was kept, read from JSON.
        fresh: the one of now; values that JSON can hold.
        accepted: for the message.

    Raises:
        InputError: a value differs; the message says which.
    """
    for name, value in json.loads(json.dumps(fresh)).items():
        if stored.get(name) != value:
            raise InputError(
                f"{path}: {name} was {brief(stored.get(name))} there and is {brief(value)} now; accepted: {accepted}"
            )


def brief(value: object) -> str:
    """A value in at most 80 characters, its beginning and its end."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"
