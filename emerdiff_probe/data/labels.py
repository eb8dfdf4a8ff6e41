"""How label files are read: numbers or colours a pixel, matrices of MATLAB, the regions that several people drew."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from emerdiff_probe.data.listing import list_some
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_labels

LABEL_SUFFIXES = frozenset({".mat", ".png", ".tif", ".tiff"})


class LabelReader(Protocol):
    """How label files of a data set are read."""

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file as `Sample` has them."""


@dataclass(frozen=True)
class LabelMap:
    """Label files that hold one number a pixel: PNG or TIFF (indexed or grey), or .mat.

    Attributes:
        offset: number of class 0 in the files.
        ignore: numbers in the files that no score counts.
        table: class of every number in the files, instead of an offset; other numbers are ignored.
        variable: name of the matrix in a .mat file; None for the only one.
    """

    offset: int = 0
    ignore: tuple[int, ...] = (255,)
    table: Mapping[int, int] | None = field(default=None, hash=False)
    variable: str | None = None

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file, (height, width) int32.

        Raises:
            InputError: the file is missing, cannot be read, is a colour picture, or holds numbers that are no class.
        """
        raw = _read_matrix(path, self.variable) if path.suffix == ".mat" else load_labels(path)
        if raw.ndim != 2:
            raise InputError(f"{path}: shape {raw.shape}; accepted: one number a pixel, not colours")
        if raw.dtype.kind == "f" and not np.array_equal(raw, np.round(raw)):  # NaN is unequal too
            raise InputError(f"{path}: values that are no integers; accepted: one integer a pixel")
        numbers, places = np.unique(raw.astype(np.int64), return_inverse=True)
        if self.table is not None:
            found = np.array([self.table.get(int(number), IGNORED) for number in numbers])
        else:
            found = np.where(np.isin(numbers, self.ignore), IGNORED, numbers - self.offset)
            wrong = numbers[(found != IGNORED) & ((found < 0) | (found >= classes))]
            wrong = np.union1d(wrong, numbers[(found == IGNORED) & ~np.isin(numbers, self.ignore)])
            if wrong.size:
                raise InputError(
                    f"{path}: labels {list_some(wrong)} are no class; accepted: {self.offset} to "
                    f"{self.offset + classes - 1}, ignored: {list_some(self.ignore) or 'none'}"
                )
        return found[places].reshape(raw.shape).astype(np.int32)


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
