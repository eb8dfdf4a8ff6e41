"""Label maps that another tool wrote, as a method: what SAM, DAAM or anyone's code finds, in the same table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from emerdiff_probe.data.labels import LABEL_SUFFIXES
from emerdiff_probe.data.lists import list_some
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import compose, list_files
from emerdiff_probe.images import IMAGE_SUFFIXES, load_labels
from emerdiff_probe.methods.interface import Counts
from emerdiff_probe.segmentation.export import read_coco, read_npz

PREFIX = "predictions"
"""What names of such methods begin with, before a colon."""
SUFFIXES = (LABEL_SUFFIXES - {".mat"}) | {".npy", ".npz"}
"""Of files that hold the label map of one image."""
OWN = "labels"
"""Name, without a suffix, of the label map in a result folder; of the array in an .npz file of several."""
MOST_SEGMENTS = 65536
"""Of one image."""
_FORMS = (
    "a folder of label maps called as the images are (.png, .tif, .npy, .npz; or NAME/labels.png), or the coco.json or "
    "labels.npz that segment --format writes"
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Label maps by the name of their image.

    Every number in a label map is a segment, whatever it means to the tool that wrote it: 0, 255 and negative numbers
    too. Nothing is known of how the maps came to be, so that time and memory stay untold.

    Attributes:
        name: for tables, unique among methods.
        maps: for the name of every image what reads its label map, and what tells whether it changed.
        where: the folder or file, for messages.
    """

    name: str
    maps: Mapping[str, LabelFile] = field(repr=False)
    where: str
    counts: ClassVar[Counts] = "own"
    probes: ClassVar[bool] = False

    @classmethod
    def open(cls, source: str | Path, name: str | None = None) -> Predictions:
        """Find the label maps of a folder, or of a file that holds many.

        Args:
            source: a folder in which the label map of the image "street/one" is street/one.png, street/one.npy or
                street/one.jpg.png (indexed or grey, up to 16 bits), or street/one/labels.png; or a coco.json or
                labels.npz as `emerdiff-probe segment --format` writes it. Workers on other machines read the same path.
            name: of the tool; that of the folder or file when None.

        Raises:
            InputError: no such folder or file, none that can be read, no label map in it, or two of one name.
        """
        path = Path(source).absolute()
        held = _open_file(path) if path.is_file() else _list_folder(path)
        if not held:
            raise InputError(f"{path}: no label maps in it; accepted: {_FORMS}")
        return cls(f"{PREFIX}:{name or path.stem}", held, str(path))

    def identity(self) -> dict[str, Any]:
        """As JSON values: nothing, since every record says which label map it is made of (see `source`)."""
        return {"class": type(self).__name__}

    def require_some(self, images: Iterable[str]) -> None:
        """Refuse label maps of which none is of these images.

        Raises:
            InputError: no name matches; the message says what both are called.
        """
        names = list(images)
        if not any(name in self.maps for name in names):
            raise InputError(
                f"{self.name}: no label map in {self.where} is called as an image is. Images: {list_some(names)}; "
                f"label maps: {list_some(list(self.maps))}"
            )

    def source(self, image: str) -> str:
        """Hexadecimal digits that tell whether the label map of an image changed; empty where there is none."""
        held = self.maps.get(image)
        return "" if held is None else held.digest()

    def labels(self, image: str, height: int, width: int) -> np.ndarray:
        """The label map of an image.

        Args:
            image: its name in its data set.
            height, width: its size, which the label map must have.

        Returns:
            (height, width) integers from 0, in the order of the numbers in the file.

        Raises:
            InputError: there is none, it cannot be read, has another size, or holds anything but one integer a pixel.
        """
        if image not in self.maps:
            raise InputError(f"{self.name}: no label map of this image in {self.where}")
        held = self.maps[image]
        raw = held.read()
        if raw.shape != (height, width):
            colours = " (colours are no labels)" if raw.ndim == 3 else ""
            raise InputError(
                f"{held.where}: a label map of shape {raw.shape}{colours} for an image of {height} x {width}; "
                "accepted: one number for each of its pixels"
            )
        if raw.dtype.kind not in "biuf" or (raw.dtype.kind == "f" and not np.array_equal(raw, np.round(raw))):
            raise InputError(f"{held.where}: values of {raw.dtype} that are no integers; accepted: one integer a pixel")
        numbers, labels = np.unique(raw, return_inverse=True)
        if len(numbers) > MOST_SEGMENTS:
            raise InputError(f"{held.where}: {len(numbers):,} segments; accepted: up to {MOST_SEGMENTS:,}")
        return labels.reshape(raw.shape)


@dataclass(frozen=True, eq=False)
class LabelFile:
    """Where the label map of one image is.

    Attributes:
        where: for messages.
        read: gives it as it is stored, an array of any shape; raises InputError.
        digest: hexadecimal digits that tell whether it changed; raises InputError.
    """

    where: str
    read: Callable[[], np.ndarray]
    digest: Callable[[], str]


def parse_predictions(text: str) -> Predictions | None:
    """The label maps that "predictions:FOLDER" or "predictions:NAME=FOLDER" names; None for any other text.

    Raises:
        InputError: no folder is named, or as `Predictions.open`.
    """
    kind, _, rest = (part.strip() for part in text.partition(":"))
    if kind.lower() != PREFIX:
        return None
    name, equals, folder = (part.strip() for part in rest.partition("="))
    named = bool(equals) and bool(name) and "/" not in name and "\\" not in name
    place = folder if named else rest
    if not place:
        raise InputError(f"{text!r}; accepted: {PREFIX}:FOLDER, or {PREFIX}:NAME=FOLDER; FOLDER is {_FORMS}")
    return Predictions.open(place, name if named else None)


def _list_folder(folder: Path) -> dict[str, LabelFile]:
    found: dict[str, tuple[Path, LabelFile]] = {}
    for path in list_files(folder):
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            continue
        place = path.relative_to(folder).with_suffix("")
        if place.name == OWN and len(place.parts) > 1:
            place = place.parent
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            place = place.with_suffix("")
        name = compose(place.as_posix())
        if name in found:
            raise InputError(f"{path} and {found[name][0]} are both of {name}; accepted: one label map an image")
        read = partial(load_labels, path) if suffix not in {".npy", ".npz"} else partial(_load_array, path)
        found[name] = path, LabelFile(str(path), read, partial(_digest_file, path))
    return {name: held for name, (_, held) in found.items()}


def _open_file(path: Path) -> dict[str, LabelFile]:
    """Of a file that holds the label maps of many images."""
    readers = {".json": read_coco, ".npz": read_npz}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: no folder; accepted: {_FORMS}")
    found = {}
    for file_name, labels in readers[path.suffix.lower()](path).items():
        place = Path(file_name)
        name = compose((place.with_suffix("") if place.suffix.lower() in IMAGE_SUFFIXES else place).as_posix())
        found[name] = LabelFile(f"{path}, {file_name}", partial(np.asarray, labels), partial(_digest_array, labels))
    return found


def _load_array(path: Path) -> np.ndarray:
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return held
        with held:
            name = OWN if OWN in held.files or len(held.files) != 1 else held.files[0]
            return np.asarray(held[name])
    except KeyError as error:
        raise InputError(f"{path}: several arrays, none called {OWN!r}; accepted: one array, or one of it") from error
    except Exception as error:  # a damaged archive raises what it likes
        raise InputError(f"{path}: cannot be read as an array ({error or type(error).__name__})") from error


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _digest_array(labels: np.ndarray) -> str:
    told = f"{labels.dtype} {labels.shape};".encode()
    return hashlib.sha256(told + np.ascontiguousarray(labels).tobytes()).hexdigest()[:16]
