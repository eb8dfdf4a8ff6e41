"""A fully connected conditional random field over a picture's pixels: permutohedral lattice and mean-field updates."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array
from scipy.special import softmax

from emerdiff_probe.errors import InputError

FLOOR = 1e-3
"""Share that every mask keeps at every pixel, so that colours can still overrule it."""


class BilateralKernel:
    """Weighted means over pixels that are near in space and in colour, by a permutohedral lattice (Adams et al. 2010).

    As in the field's implementations (`pydensecrf` has wheels for no platform): pixels are points (x, y, red, green,
    blue) in units of the deviations, laid with barycentric weights on the vertices of a lattice of simplices; vertices
    are blurred along its six directions and read off with the same weights. As three sparse matrices.

    Args:
        image: (height, width, 3) uint8.
        space: standard deviation in pixels.
        colour: standard deviation in levels of 0 … 255.

    Raises:
        InputError: an image of another shape.
    """

    def __init__(self, image: np.ndarray, space: float, colour: float) -> None:
        if image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image of shape {image.shape}; accepted: (height, width, 3)")
        self.size = height, width = image.shape[:2]
        y, x = np.indices((height, width))
        points = np.concatenate([np.stack([x, y], -1) / space, image / colour], -1).reshape(-1, 5)
        self.slice, codes, steps = _splat(points)
        self.gather = self.slice.T.tocsr()
        self.blurs = [_blur(codes, step) for step in steps]
        self.total = np.maximum(self._spread(np.ones((height * width, 1), np.float32)), 1e-8)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Weighted means of (channel, height, width) at every pixel, float32 of the same shape."""
        flat = np.ascontiguousarray(values.reshape(len(values), -1).T, np.float32)
        return (self._spread(flat) / self.total).T.reshape(values.shape)

    def _spread(self, flat: np.ndarray) -> np.ndarray:
        vertices = self.gather @ flat
        for blur in self.blurs:
            vertices = blur @ vertices
        return self.slice @ vertices


def _splat(points: np.ndarray) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """Weights of points (point, dimension) on lattice vertices, (point, vertex); codes of vertices and of steps."""
    count, dimensions = points.shape
    order = dimensions + 1
    rows = np.arange(count)[:, None]
    # Onto the hyperplane of coordinates that add up to 0, where the lattice lies.
    axes = np.arange(dimensions)
    scaled = points * (np.sqrt(2 / 3) * order / np.sqrt((axes + 1) * (axes + 2)))
    above = np.cumsum(scaled[:, ::-1], 1)[:, ::-1]
    lifted = np.zeros((count, order))
    lifted[:, :-1] = above
    lifted[:, 1:] -= (axes + 1) * scaled
    # The nearest vertex of remainder 0, and the ranks of what is left, which say in which simplex the point lies.
    nearest = np.round(lifted / order).astype(np.int64)
    rank = np.argsort(np.argsort(nearest - lifted / order, axis=1, kind="stable"), axis=1, kind="stable")
    rank += nearest.sum(1, keepdims=True)
    wrapped = (rank < 0).astype(np.int64) - (rank > dimensions)
    nearest, rank = nearest + wrapped, rank + order * wrapped
    left = lifted / order - nearest
    weights = np.zeros((count, order + 1))
    np.add.at(weights, (rows, dimensions - rank), left)
    np.add.at(weights, (rows, order - rank), -left)
    weights[:, 0] += 1 + weights[:, order]
    vertices = np.stack(
        [(order * nearest + remainder - order * (rank > dimensions - remainder))[:, :-1] for remainder in range(order)],
        1,
    ).reshape(-1, dimensions)
    # A vertex is one integer; neighbours differ by one of six steps.
    lowest = vertices.min(0) - order
    spans = vertices.max(0) + order + 1 - lowest
    places = np.concatenate([[1], np.cumprod(spans[:-1])])
    codes, which = np.unique((vertices - lowest) @ places, return_inverse=True)
    steps = np.append(order * places, 0) - places.sum()
    entries = weights[:, :order].astype(np.float32).ravel(), which.ravel(), np.arange(0, order * count + 1, order)
    return csr_array(entries, shape=(count, len(codes))), codes, steps


def _blur(codes: np.ndarray, step: int) -> csr_array:
    """A quarter of either neighbour and half of itself, (vertex, vertex)."""
    own = np.arange(len(codes))
    rows, columns, weights = [own], [own], [np.full(len(codes), 0.5, np.float32)]
    for neighbours in (codes + step, codes - step):
        places = np.searchsorted(codes, neighbours).clip(max=len(codes) - 1)
        there = codes[places] == neighbours
        rows.append(own[there])
        columns.append(places[there])
        weights.append(np.full(there.sum(), 0.25, np.float32))
    triples = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return csr_array(triples, shape=(len(codes), len(codes)))


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

    Messages are weighted means, so that weights do not depend on the size of the picture.

    Args:
        masks: (mask, height, width), 0 or more; the unaries are the negative logarithms of their shares.
        kernel: over the picture's colours.
        appearance, smoothness: weights of agreeing with pixels near in space and colour, and near in space.
        smoothing: standard deviation in pixels of the latter.
        iterations: how many updates.
        certainty: weight of the unaries.

    Returns:
        (mask, height, width) float32; they sum to 1 at every pixel.

    Raises:
        InputError: masks of another size than the kernel's picture, not finite, or below 0.
    """
    if masks.ndim != 3 or masks.shape[1:] != kernel.size or not np.isfinite(masks).all() or (masks < 0).any():
        raise InputError(
            f"masks of shape {masks.shape}; accepted: (mask, {kernel.size[0]}, {kernel.size[1]}), 0 or more"
        )
    shares = masks.astype(np.float32) / np.maximum(masks.sum(0), 1e-12).astype(np.float32)
    known = certainty * np.log(np.maximum(shares, FLOOR))
    beliefs = softmax(known, axis=0)
    for _ in range(iterations):
        near = gaussian_filter(beliefs, smoothing, axes=(1, 2))
        beliefs = softmax(known + appearance * kernel(beliefs) + smoothness * near, axis=0)
    return beliefs
