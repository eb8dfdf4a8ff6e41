"""Arrays of pixels and cells: enlarging maps, numbering labels, finding borders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STRIPE = 16
"""Rows of a picture that maps are enlarged to at once."""


def enlarge(
    maps: Tensor,
    size: Sequence[int],
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    antialias: bool = False,
) -> Tensor:
    """Maps at another size: pixel centres of both lie on the same plane, values beyond the last centres are repeated.

    Args:
        maps: (..., height, width), floats.
        size: height and width of the result.
        mode: "bilinear", or "nearest".
        antialias: average over what becomes one pixel, where a side gets smaller; changes nothing where it grows.

    Returns:
        (..., *size) of the same type; the maps themselves where they have that size.
    """
    from torch.nn.functional import interpolate  # here, so that reading a picture imports no torch

    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    stacked = maps if maps.ndim == 4 else maps.reshape(1, -1, *maps.shape[-2:])
    return interpolate(stacked, size=tuple(size), mode=mode, antialias=antialias).reshape(*maps.shape[:-2], *size)


def enlarge_rows(maps: Tensor, size: Sequence[int], start: int, stop: int) -> Tensor:
    """Some rows of maps (mask, map_height, map_width) at another size, bilinear: (mask, stop - start, width)."""
    import torch

    (height, width), rows = size, maps.shape[1]
    places = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
    above = places.floor().long()
    below, share = (above + 1).clamp(max=rows - 1), (places - above).to(maps)[:, None]
    upper = maps[:, above]
    return enlarge(upper + (maps[:, below] - upper) * share, (stop - start, width))


def enlarge_by_rows(maps: Tensor, height: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """Maps (mask, map_height, map_width) at another size, bilinear, a few rows at a time.

    Yields:
        The first row of a stripe, and the stripe (mask, row, width).
    """
    for start in range(0, height, STRIPE):
        yield start, enlarge_rows(maps, (height, width), start, min(start + STRIPE, height))


def count_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Pixels of every label 0 … count - 1, (count,) integers; a few rows at a time, as NumPy widens what it counts."""
    rows = range(0, len(labels), STRIPE)
    return sum(
        (np.bincount(labels[start : start + STRIPE].ravel(), minlength=count) for start in rows), np.zeros(count, int)
    )


def number_in_order(labels: np.ndarray) -> np.ndarray:
    """The same labels, of any shape, numbered 0, 1, … in reading order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape)


def match_labels(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same labels under the numbers of another map of the same image, so that both can have the same colours.

    Labels and those of the reference are paired one to one so that most pixels agree (the Hungarian method).

    Args:
        labels: (height, width) integers, 0 or more.
        reference: (height, width) integers; negative ones are no labels.

    Returns:
        (height, width) integers: the reference's number for labels that are paired and share a pixel, the lowest
        numbers that the reference does not have for the others, in order.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes a while to load

    ours, mine = np.unique(labels, return_inverse=True)
    theirs, other = np.unique(np.maximum(reference.astype(np.int64), -1), return_inverse=True)
    shared = np.bincount(mine.ravel() * len(theirs) + other.ravel(), minlength=len(ours) * len(theirs))
    shared = shared.reshape(len(ours), len(theirs)) * (theirs >= 0)
    paired = {
        row: int(theirs[column])
        for row, column in zip(*linear_sum_assignment(shared, maximize=True), strict=True)
        if shared[row, column]
    }
    free = (number for number in range(len(ours) + len(theirs)) if number not in theirs)
    return np.array([paired[row] if row in paired else next(free) for row in range(len(ours))])[mine].reshape(
        labels.shape
    )


def find_borders(labels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label; no label is special.

    Args:
        labels: (height, width) integers.
        counted: (height, width) bool; between two pixels one of which does not count is no border. All count when None.

    Returns:
        (height, width) bool.
    """
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    if counted is not None:
        across, down = across & counted[:, 1:] & counted[:, :-1], down & counted[1:] & counted[:-1]
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= across
    found[:-1] |= down
    return found
