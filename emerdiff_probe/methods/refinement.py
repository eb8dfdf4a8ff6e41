"""Sharpening soft masks by the colours of the image: a guided filter, and mean-field updates of a CRF."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.sparse import coo_array
from scipy.special import softmax

from emerdiff_probe.errors import InputError

FLOOR = 1e-3
"""Probability that every mask keeps at every pixel, so that colours can still overrule it."""


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


class BilateralKernel:
    """Weighted means over pixels that are near in space and in colour, after the bilateral grid (Chen et al. 2007).

    Pixels are gathered on a coarse grid in space, linearly, for each colour of a palette of the image (median cut); the
    grid is blurred by a Gaussian, colours are mixed by a Gaussian of their distance, and pixels read their own colour.

    Args:
        image: (height, width, 3) uint8.
        space: standard deviation in pixels.
        colour: standard deviation in levels of 0 … 255.
        palette: how many colours are told apart, 1 to 256; time and memory grow with it.

    Raises:
        InputError: an image of another shape, or a palette out of range.
    """

    def __init__(self, image: np.ndarray, space: float, colour: float, palette: int = 64) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or not 1 <= palette <= 256:
            raise InputError(f"image of shape {image.shape}, palette {palette}; accepted: (height, width, 3), 1 to 256")
        self.size = height, width = image.shape[:2]
        cell = max(1.0, space / 2)
        self.sigma = space / cell
        pixels = image.reshape(-1, 3).astype(np.float64)
        quantised = Image.fromarray(image).quantize(palette, Image.Quantize.MEDIANCUT)
        _, bins = np.unique(np.asarray(quantised).ravel(), return_inverse=True)
        population = np.bincount(bins)
        means = np.stack([np.bincount(bins, pixels[:, channel]) for channel in range(3)], 1) / population[:, None]
        apart = ((means[:, None] - means) ** 2).sum(-1)
        self.mixing = np.exp(-apart / (2 * colour**2))
        rows, columns = (int(np.ceil((side - 1) / cell)) + 1 for side in (height, width))
        self.grid = (len(population), rows, columns)
        self.splat = _splat(height, width, cell, bins, self.grid)
        self.total = self._spread(np.ones((height * width, 1)))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Weighted means of (channel, height, width) at every pixel, same shape."""
        flat = values.reshape(len(values), -1).T
        return (self._spread(flat) / self.total).T.reshape(values.shape)

    def _spread(self, flat: np.ndarray) -> np.ndarray:
        gathered = (self.splat @ flat).reshape(*self.grid, -1)
        blurred = gaussian_filter(gathered, self.sigma, axes=(1, 2), mode="constant")
        mixed = np.tensordot(self.mixing, blurred, 1)
        return self.splat.T @ mixed.reshape(self.splat.shape[0], -1)


def _splat(height: int, width: int, cell: float, bins: np.ndarray, grid: tuple[int, int, int]) -> coo_array:
    """Bilinear weights of pixels in cells of their bin, (bin and cell, pixel)."""
    y, x = (places.ravel() / cell for places in np.indices((height, width)))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    entries = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weights = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
        rows, columns = np.minimum(top + down, grid[1] - 1), np.minimum(left + right, grid[2] - 1)
        entries.append((weights, (bins * grid[1] + rows) * grid[2] + columns))
    weights, cells = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    pixels = np.tile(np.arange(height * width), 4)
    return coo_array((weights, (cells, pixels)), shape=(int(np.prod(grid)), height * width)).tocsr()


def mean_field(
    masks: np.ndarray,
    kernel: BilateralKernel,
    *,
    appearance: float,
    smoothness: float,
    smoothing: float,
    iterations: int,
    certainty: float = 1.0,
) -> np.ndarray:
    """Mean-field updates of a fully connected CRF with Potts labels (Krähenbühl and Koltun 2011, algorithm 1).

    Args:
        masks: (mask, height, width), probabilities; the unaries are their negative logarithms.
        kernel: over the image's colours.
        appearance, smoothness: weights of agreeing with pixels near in space and colour, and near in space.
        smoothing: standard deviation in pixels of the latter.
        iterations: how many updates.
        certainty: weight of the unaries.

    Returns:
        (mask, height, width) float64; they sum to 1 at every pixel.

    Raises:
        InputError: masks of another size than the kernel's image, or that are no probabilities.
    """
    if masks.ndim != 3 or masks.shape[1:] != kernel.size or not np.isfinite(masks).all() or (masks < 0).any():
        raise InputError(
            f"masks of shape {masks.shape}; accepted: (mask, {kernel.size[0]}, {kernel.size[1]}), 0 or more"
        )
    known = certainty * np.log(np.maximum(masks, FLOOR))
    beliefs = softmax(known, axis=0)
    for _ in range(iterations):
        near = gaussian_filter(beliefs, smoothing, axes=(1, 2))
        beliefs = softmax(known + appearance * kernel(beliefs) + smoothness * near, axis=0)
    return beliefs


def _require_fit(masks: np.ndarray, image: np.ndarray) -> None:
    if masks.ndim != 3 or image.ndim != 3 or masks.shape[1:] != image.shape[:2] or image.shape[2] != 3:
        raise InputError(
            f"masks of shape {masks.shape} under an image of shape {image.shape}; accepted: (mask, height, width) "
            "and (height, width, 3)"
        )
    if not np.isfinite(masks).all():
        raise InputError("the masks hold NaN or infinite values")
