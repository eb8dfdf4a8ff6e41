"""What segments explain of a picture without any truth: shares of the variance of its colours, or of anything else."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage.color import rgb2lab

from emerdiff_probe.errors import InputError

FLAT = 1e-12
"""Variance below which values count as one value."""


def explained_variance(labels: np.ndarray, values: np.ndarray) -> float:
    """Share of the variance of values that the means of segments explain, in 0 … 1.

    Between-segment over total sum of squares (the correlation ratio), over all channels together.

    Args:
        labels: (height, width) integers, 0 or more.
        values: (height, width, channel), finite.

    Returns:
        1 where every segment has one value, 0 where all segments have the same mean, or nothing varies.

    Raises:
        InputError: labels and values of other sizes, or labels that are no integers of 0 or more.
    """
    if labels.shape != values.shape[:2] or values.ndim != 3:
        raise InputError(f"labels of {labels.shape} for values of {values.shape}; accepted: (height, width) of both")
    if labels.dtype.kind not in "biu" or int(labels.min(initial=0)) < 0:
        raise InputError(f"labels of {labels.dtype}; accepted: integers, 0 or more")
    flat = values.reshape(-1, values.shape[2]).astype(np.float64)
    flat = flat - flat.mean(0)
    total = float(np.square(flat).sum())
    if total <= FLAT * flat.size:
        return 0.0
    which = labels.ravel().astype(np.int64)
    pixels = np.maximum(np.bincount(which), 1)
    between = sum(float((np.bincount(which, channel) ** 2 / pixels).sum()) for channel in flat.T)
    return min(between / total, 1.0)


def lab_colours(image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """Colours of a picture in CIE Lab, where distances are what people see.

    Args:
        image: (height, width, 3) uint8.
        size: height and width to shrink or enlarge it to first, by means over areas; its own when None.

    Returns:
        (height, width, 3) float32.
    """
    if size is not None and size != image.shape[:2]:
        image = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
    lab: np.ndarray = rgb2lab(image.astype(np.float32) / 255)
    return lab


def colour_gain(labels: np.ndarray, enlarged: np.ndarray, colours: np.ndarray) -> float:
    """How much more of a picture's colour variance labels explain than the enlarged masks that they were made of.

    Compares labels made of the same masks only: between different features it misleads. Labels that were sharpened
    along the picture's own colours explain them by that alone, so compare plain ones.

    Args:
        labels, enlarged: (height, width) integers, 0 or more: EmerDiff's labels, and its masks enlarged bilinearly.
        colours: (height, width, 3), see `lab_colours`.

    Returns:
        Difference of the two shares, -1 … 1.
    """
    return explained_variance(labels, colours) - explained_variance(enlarged, colours)
