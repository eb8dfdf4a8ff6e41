"""How label files are read: numbers or colours a pixel, matrices of MATLAB, the regions that several people drew."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from emerdiff_probe.data.lists import list_some, read_lines
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError, LabelError
from emerdiff_probe.images import load_colours, load_labels

LABEL_SUFFIXES = frozenset({".bmp", ".gif", ".mat", ".png", ".tif", ".tiff"})


class LabelReader(Protocol):
    """How label files of a data set are read."""

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file as `Sample` has them."""


@dataclass(frozen=True)
class LabelMap:
    """Label files that hold one number a pixel: PNG or TIFF (indexed or grey), or .mat.

    Attributes:
        offset: number of class 0 in the files; class 1 has the next.
        ignore: numbers in the files that no score counts.
        numbers: number of every class in the files, instead of an offset: (0, 255) for masks.
        table: class of every number in the files, instead of both; other numbers are ignored.
        variable: name of the matrix in a .mat file; None for the only one.
    """

    offset: int = 0
    ignore: tuple[int, ...] = (255,)
    numbers: tuple[int, ...] | None = None
    table: Mapping[int, int] | None = field(default=None, hash=False)
    variable: str | None = None

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file, (height, width) int32.

        Raises:
            InputError: the file is missing or cannot be read.
            LabelError: it is a colour picture, or holds numbers that are no class.
        """
        raw = _read_matrix(path, self.variable) if path.suffix.lower() == ".mat" else load_labels(path)
        if raw.ndim != 2 or raw.size == 0:
            raise LabelError(
                f"{path}: shape {raw.shape}; accepted: one number a pixel. If colours are classes, name them: "
                "colours=FILE with lines 'name red green blue'"
            )
        if raw.dtype.kind == "f" and not np.array_equal(raw, np.round(raw)):  # NaN is unequal too
            raise InputError(f"{path}: values that are no integers; accepted: one integer a pixel")
        if raw.dtype.kind == "f" or raw.dtype == bool:
            raw = raw.astype(np.int64)
        found = np.unique(raw)
        known = self.table
        if known is None:
            own = range(self.offset, self.offset + classes) if self.numbers is None else self.numbers
            known = {number: place for place, number in enumerate(own)}
            wrong = [number for number in found.tolist() if number not in known and number not in self.ignore]
            if wrong:
                raise LabelError(
                    f"{path}: labels {list_some(wrong)} are no class; accepted: {_ranges(own)}, "
                    f"ignored: {list_some(self.ignore) or 'none'}. {self._mended(found, classes)}"
                )
        labels = [IGNORED if number in self.ignore else known.get(number, IGNORED) for number in found.tolist()]
        return _replace(raw, found, labels)

    def _mended(self, found: np.ndarray, classes: int) -> str:
        """The options under which these numbers would be classes."""
        used = [number for number in found.tolist() if number not in self.ignore]
        if len(used) <= classes and used[-1] - used[0] >= classes:
            return f"numbers={'+'.join(map(str, used))} would say which number each class has"
        void = used[:1] if used[0] == 0 and used[-1] == classes else []
        first = used[0] + len(void)
        if (void or first != self.offset) and used[-1] < first + classes:
            ignore = "".join(f"+{number}" for number in (*self.ignore, *void))[1:]
            return f"offset={first}{',ignore=' + ignore if void else ''} would make them classes"
        return "offset=N says which number the first class has, ignore=A+B which numbers are none"


def _ranges(numbers: Sequence[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if isinstance(numbers, range) else list_some(numbers)


Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class ColourMap:
    """Label files whose colours are classes: PNG or TIFF, of RGB or with a palette.

    Attributes:
        colours: that may occur.
        classes: of every colour; several may have one, and `IGNORED` is what no score counts.
    """

    colours: tuple[Colour, ...]
    classes: tuple[int, ...]

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file, (height, width) int32.

        Raises:
            InputError: the file is missing or cannot be read.
            LabelError: it holds colours that are not listed.
        """
        pixels = load_colours(path)
        coded = (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]
        codes = np.unique(coded)
        known = {
            red << 16 | green << 8 | blue: label
            for (red, green, blue), label in zip(self.colours, self.classes, strict=True)
        }
        wrong = [code for code in codes.tolist() if code not in known]
        if wrong:
            colours = [f"{code >> 16} {code >> 8 & 255} {code & 255}" for code in wrong]
            raise LabelError(
                f"{path}: {len(wrong)} colours are no class: {list_some(colours)}; accepted: the {len(known)} that are "
                "listed (colours=FILE), in files that were neither resized nor saved as JPEG"
            )
        return _replace(coded, codes, [known[code] for code in codes.tolist()])


def _replace(numbers: np.ndarray, found: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Labels int32 in the place of numbers; `found` are the numbers that occur, in order."""
    if found[0] < 0 or found[-1] >= 2**24:
        return np.array(labels, np.int32)[np.searchsorted(found, numbers)]
    table = np.zeros(int(found[-1]) + 1, np.int32)  # photographs are large: no array of places is made
    table[found] = labels
    return table[numbers]


_CHANNELS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_NAMED_COLOUR = re.compile(rf"(.+?)[\s,;]+{_CHANNELS}|{_CHANNELS}[\s,;]+(.+)")


def read_colours(path: Path) -> dict[Colour, str]:
    """Names of colours from a text file: a line each, "name red green blue" or "red green blue name".

    Between them are spaces, tabs or commas; names may hold spaces; a header and lines that begin with # are left out.

    Raises:
        InputError: no such file, nothing in it, a line of something else, or a colour twice.
    """
    colours: dict[Colour, str] = {}
    for number, line in enumerate(read_lines(path, "list of colours, a line 'name red green blue' each")):
        if line.startswith("#") or (number == 0 and not re.search(r"\d", line)):
            continue
        found = _NAMED_COLOUR.fullmatch(line)
        if found is None or max(int(part) for part in found.group(2, 3, 4, 5, 6, 7) if part) > 255:
            raise InputError(f"{path}: {line!r}; accepted: a name, and red, green and blue from 0 to 255")
        name = found[1] or found[8]
        red, green, blue = (int(part) for part in found.group(2, 3, 4, 5, 6, 7) if part)
        if (red, green, blue) in colours:
            raise InputError(f"{path}: {line!r} is the colour of {colours[red, green, blue]}; accepted: each once")
        colours[red, green, blue] = name
    if not colours:
        raise InputError(f"{path}: no colours in it; accepted: a line 'name red green blue' each")
    return colours


def map_colours(
    names: Mapping[Colour, str], ignore: Collection[str] = (), *, order: Sequence[str] = ()
) -> tuple[tuple[str, ...], ColourMap]:
    """Classes in the order in which colours name them first, and how files of these colours are read.

    Args:
        names: of colours, such as `read_colours` gives.
        ignore: names that no score counts.
        order: names that come first, whether a colour has them or not.

    Raises:
        InputError: a name to ignore that no colour has, or no class left.
    """
    _require_names(ignore, names.values())
    classes = tuple(dict.fromkeys([*order, *(name for name in names.values() if name not in ignore)]))
    places = tuple(IGNORED if name in ignore else classes.index(name) for name in names.values())
    return classes, ColourMap(tuple(names), places)


def map_numbers(
    names: Sequence[str],
    ignore: Collection[str | int] = (),
    *,
    offset: int = 0,
    numbers: Sequence[int] | None = None,
    variable: str | None = None,
) -> tuple[tuple[str, ...], LabelMap]:
    """Classes, and how files of numbers are read.

    Args:
        names: of numbers from `offset` on, or of `numbers`.
        ignore: names and numbers that no score counts.
        offset, numbers, variable: as of `LabelMap`.

    Raises:
        InputError: a name to ignore that no class has, no class left, a class named twice, or another number
            of names than of numbers.
    """
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise InputError(f"classes {list_some(twice)} named twice or more; accepted: each name once")
    own = tuple(range(offset, offset + len(names)) if numbers is None else numbers)
    if len(own) != len(names) or len(set(own)) < len(own):
        raise InputError(f"numbers {list_some(own)} of {len(names)} classes; accepted: one for each class, each once")
    void = [name for name in ignore if isinstance(name, str)]
    _require_names(void, names)
    left = {number: name for number, name in zip(own, names, strict=True) if name not in void}
    ignored = [number for number in ignore if isinstance(number, int)]
    ignored += [number for number in own if number not in left]
    plain = numbers is None and not void
    reader = LabelMap(offset, tuple(ignored), None if plain else tuple(left), variable=variable)
    return tuple(left.values()), reader


def _require_names(ignore: Collection[str], names: Collection[str]) -> None:
    unknown = [name for name in ignore if name not in names]
    if unknown:
        raise InputError(f"ignore {list_some(unknown)}; accepted: {list_some(dict.fromkeys(names)) or 'no names'}")
    if set(names) <= set(ignore):
        raise InputError(f"ignore {list_some(ignore)} leaves no class; accepted: names of some")


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such label file")
    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        NotImplementedError,
        MatReadError,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: cannot be read as a .mat file up to version 7 ({error})") from error


def _read_matrix(path: Path, variable: str | None) -> np.ndarray:
    held = _read_mat(path)
    arrays = {name: value for name, value in held.items() if isinstance(value, np.ndarray)}
    matrices = {name: value for name, value in arrays.items() if value.dtype.kind in "biuf" and value.ndim == 2}
    if variable is None and len(matrices) == 1:
        (variable,) = matrices
    if variable not in matrices:
        asked = "the variable must be named" if variable is None else f"no matrix {variable!r}"
        raise InputError(f"{path}: {asked}; it holds {', '.join(matrices) or 'no matrix'}")
    return matrices[variable]


@dataclass(frozen=True)
class BsdsAnnotations:
    """Ground truth of BSDS500: a .mat file with the regions that several people drew, without classes."""

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Regions of all annotators, (annotator, height, width) int32.

        Raises:
            InputError: the file is missing, cannot be read, or holds something else.
        """
        held = _read_mat(path)
        try:
            people = [person["Segmentation"][0, 0] for person in held["groundTruth"].ravel()]
            return np.stack(people).astype(np.int32)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: no ground truth of BSDS500 in it ({error}); accepted: a cell array groundTruth of structures "
                "with a field Segmentation, all of one size"
            ) from error
