"""Sharpening soft masks by the colours of the image: a guided filter."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from emerdiff_probe.errors import InputError


def guided_filter(masks: np.ndarray, image: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Guided filter with a colour guide (He et al. 2013, section 3.4): locally, masks become linear in the colours.

    Args:
        masks: (mask, height, width), finite.
        image: (height, width, 3) uint8, the guide.
        radius: of the square window, pixels; its side is 2 radius + 1. The image is mirrored at its borders.
        epsilon: regularisation, for colours in 0 … 1.

    Returns:
        (mask, height, width) float64. A constant mask stays as it is.

    Raises:
        InputError: shapes that do not fit, or a radius below 1 or an epsilon that is not above 0.
    """
    _require_fit(masks, image)
    if radius < 1 or not epsilon > 0:
        raise InputError(f"radius {radius}, epsilon {epsilon}; accepted: 1 or more, above 0")

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, 2 * radius + 1, axes=(0, 1))

    guide = image.astype(np.float64) / 255
    centre = mean(guide)
    spread = mean(guide[..., :, None] * guide[..., None, :]) - centre[..., :, None] * centre[..., None, :]
    values = np.moveaxis(masks, 0, -1).astype(np.float64)
    averages = mean(values)
    shared = mean(guide[..., :, None] * values[..., None, :]) - centre[..., :, None] * averages[..., None, :]
    slopes = np.linalg.solve(spread + epsilon * np.eye(3), shared)  # (height, width, 3, mask)
    offsets = averages - np.einsum("hwc,hwcm->hwm", centre, slopes)
    return np.moveaxis(np.einsum("hwc,hwcm->hwm", guide, mean(slopes)) + mean(offsets), -1, 0)


def _require_fit(masks: np.ndarray, image: np.ndarray) -> None:
    if masks.ndim != 3 or image.ndim != 3 or masks.shape[1:] != image.shape[:2] or image.shape[2] != 3:
        raise InputError(
            f"masks of shape {masks.shape} under an image of shape {image.shape}; accepted: (mask, height, width) "
            "and (height, width, 3)"
        )
    if not np.isfinite(masks).all():
        raise InputError("the masks hold NaN or infinite values")
