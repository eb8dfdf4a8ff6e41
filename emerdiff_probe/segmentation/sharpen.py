"""Labels whose borders are the picture's own: difference maps know what belongs together, colours where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image

from emerdiff_probe.arrays import enlarge, enlarge_by_rows, enlarge_rows
from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.crf import BilateralKernel, mean_field

if TYPE_CHECKING:
    from torch import Tensor

Sharpening = Literal["none", "wls", "bilateral", "crf"]
SHARPENINGS: tuple[Sharpening, ...] = get_args(Sharpening)

SIDE = 320
"""Pixels of the shorter side, at most, at which maps are sharpened: in larger pictures a border is many small steps."""
WLS_REACH, WLS_COLOUR = 1 / 4, 6.0
"""How far maps are smoothed where the picture is flat, in shorter sides, and the step in levels that stops it."""
STRIPE_PIXELS, STRIPE_MARGIN = 2**21, 10
"""Pixels of a large picture whose borders maps take at once, about; and how far beyond them it is looked, in reaches of
the smoothing: each of its steps falls by e in at most 0.62 of a reach, by 1e-7 in ten."""
LATTICE_SPACE, LATTICE_COLOUR = 1 / 16, 12.0
"""Standard deviations of the kernel of "bilateral" and "crf", in shorter sides and in levels."""
CRF = {"appearance": 10.0, "smoothness": 1.0, "iterations": 5, "certainty": 2.0}
CRF_SMOOTHING = 1 / 128
"""Standard deviation of the kernel of smoothness, in shorter sides."""


def read_labels(maps: Tensor, image: np.ndarray, sharpen: Sharpening = "none") -> tuple[np.ndarray, np.ndarray]:
    """Every pixel's mask, the one whose map is highest there after sharpening.

    Sizes are shares of the picture's shorter side, so that a picture has the same segments at any size. Beyond the
    picture and its labels, memory grows neither with the size of the picture nor with masks at that size.

    Args:
        maps: (mask, map_height, map_width), 0 or more: difference maps, or soft masks; enlarged to the picture's size.
        image: (height, width, 3) uint8.
        sharpen: "none", the plain argmax, the paper's; "wls", maps under the edge-aware weighted least squares filter
            (Farbman et al. 2008) as OpenCV's fast global smoother solves it (Min et al. 2014); "bilateral", means over
            pixels near in space and colour; "crf", those means and the maps as a fully connected conditional random
            field (Krähenbühl and Koltun 2011).

    Returns:
        Labels (height, width), uint8 up to 256 masks and uint16 above; and (mask,) float32, the mean over a label's
        pixels of its enlarged map, 0 where it has none.

    Raises:
        InputError: no such sharpening.
    """
    if sharpen not in SHARPENINGS:
        raise InputError(f"sharpen {sharpen!r}; accepted: {', '.join(SHARPENINGS)}")
    height, width = image.shape[:2]
    times = max(1.0, min(height, width) / SIDE)
    sharp = maps
    if sharpen != "none":
        small = _shrink(image, (round(height / times), round(width / times)))
        sharp = (_smooth_maps if sharpen == "wls" else partial(_lattice_maps, sharpen=sharpen))(maps, small)
    if sharpen == "none" or times == 1:
        labels = _find_highest(enlarge_by_rows(sharp, height, width), len(maps), height, width)
    else:
        labels = _find_highest_between_borders(sharp, image, times)
    return labels, _mean_responses(maps, labels)


def _smooth_maps(maps: Tensor, image: np.ndarray) -> Tensor:
    """Maps at the size of a picture after "wls"."""
    import torch

    size = image.shape[:2]
    smooth = _smoother(image, WLS_REACH * min(size))
    return torch.stack([torch.from_numpy(smooth(enlarge(each[None], size)[0])) for each in maps])


def _smoother(image: np.ndarray, reach: float) -> Callable[[Tensor], np.ndarray]:
    """Smooths a map of a picture's size over so many pixels within the picture's borders."""
    from cv2 import ximgproc  # a quarter of a second, for those who sharpen

    smoother = ximgproc.createFastGlobalSmootherFilter(np.ascontiguousarray(image), reach**2, WLS_COLOUR)
    return lambda each: smoother.filter(each.float().contiguous().numpy())


def _lattice_maps(maps: Tensor, image: np.ndarray, sharpen: Sharpening) -> Tensor:
    """Maps at the size of a picture after "bilateral" or "crf"."""
    import torch

    side = min(image.shape[:2])
    kernel = BilateralKernel(image, LATTICE_SPACE * side, LATTICE_COLOUR)
    given = enlarge(maps.float(), image.shape[:2], antialias=True).clamp(min=0).numpy()
    if sharpen == "bilateral":
        return torch.from_numpy(np.ascontiguousarray(kernel(given)))
    return torch.from_numpy(mean_field(given, kernel, smoothing=CRF_SMOOTHING * side, **CRF))  # type: ignore[arg-type]


def _find_highest(stripes: Iterable[tuple[int, Tensor]], masks: int, height: int, width: int) -> np.ndarray:
    labels = np.zeros((height, width), _type_of(masks))
    for start, stripe in stripes:
        labels[start : start + stripe.shape[1]] = stripe.max(0).indices.numpy()
    return labels


def _find_highest_between_borders(maps: Tensor, image: np.ndarray, reach: float) -> np.ndarray:
    """Argmax of maps that take the borders of a picture that is larger than they are, one map of a stripe at a time."""
    labels = np.zeros(image.shape[:2], _type_of(len(maps)))
    height, width = labels.shape
    margin = math.ceil(STRIPE_MARGIN * reach)
    rows = max(STRIPE_PIXELS // width, 2 * margin)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        first, last = max(0, start - margin), min(height, stop + margin)
        smooth = _smoother(image[first:last], reach)
        highest = np.full((stop - start, width), -np.inf, np.float32)
        for mask, each in enumerate(maps):
            values = smooth(enlarge_rows(each[None], (height, width), first, last)[0])[start - first : stop - first]
            labels[start:stop][values > highest] = mask
            np.maximum(highest, values, out=highest)
    return labels


def _type_of(masks: int) -> type[np.unsignedinteger]:
    return np.uint8 if masks <= 256 else np.uint16


def _shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))


def _mean_responses(maps: Tensor, labels: np.ndarray) -> np.ndarray:
    totals, counts = np.zeros(len(maps)), np.zeros(len(maps), int)
    for start, stripe in enlarge_by_rows(maps, *labels.shape):
        found = labels[start : start + stripe.shape[1]]
        own = np.take_along_axis(stripe.numpy(), found[None].astype(np.int64), 0)
        counts += np.bincount(found.ravel(), minlength=len(maps))
        totals += np.bincount(found.ravel(), own.ravel(), minlength=len(maps))
    return (totals / np.maximum(counts, 1)).astype(np.float32)
