"""Normalised cuts (Shi and Malik 2000) of a dense affinity: the best cut in two, and cutting again and again."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from emerdiff_probe.arrays import number_in_order
from emerdiff_probe.errors import InputError

DENSE = 256
"""Nodes up to which all eigenvectors are found at once, which is then faster than Lanczos iterations."""


class Cut(NamedTuple):
    """A partition of nodes in two, and its normalised cut in 0 … 2."""

    value: float
    first: np.ndarray


def cosine_affinity(features: np.ndarray, alpha: float) -> np.ndarray:
    """Cosine similarity of features, brought to 0 … 1 by its extremes and raised to a power (DiffCut, section 3.2).

    Args:
        features: (cell, channel).
        alpha: the exponent, above 0; large ones let only near features count.

    Returns:
        (cell, cell) float64, symmetric.

    Raises:
        InputError: NaN in the features.
    """
    if not np.isfinite(features).all():
        raise InputError("the features hold NaN or infinite values: the denoiser overflowed; use float32")
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    low, high = cosines.min(), cosines.max()
    if high - low < 1e-9:  # all alike: what is left is rounding
        return np.ones_like(cosines)
    return ((cosines - low) / (high - low)) ** alpha


def normalised_cut(affinity: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Normalised cut of partitions of a graph, cut / volume of the one side + cut / volume of the other.

    Args:
        affinity: (node, node), symmetric, 0 or more.
        nodes: (node, partition) booleans, which nodes are on the one side; both sides have a node.

    Returns:
        (partition,) in 0 … 2.
    """
    side = nodes.astype(np.float64)
    degrees = affinity.sum(1)
    inside = np.einsum("np,np->p", side, affinity @ side)
    volume = degrees @ side
    cut = np.maximum(volume - inside, 0)  # rounding
    other = degrees.sum() - volume
    return cut / np.maximum(volume, 1e-300) + cut / np.maximum(other, 1e-300)


def bipartition(affinity: np.ndarray, thresholds: int = 100) -> Cut | None:
    """The best cut among thresholds on the second eigenvector of the normalised Laplacian.

    Args:
        affinity: (node, node), symmetric, 0 or more.
        thresholds: how many, evenly spaced between the eigenvector's extremes.

    Returns:
        The cut, or None for a single node or nodes that the eigenvector does not tell apart.
    """
    if len(affinity) < 2:
        return None
    vector = _second_eigenvector(affinity)
    low, high = vector.min(), vector.max()
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        return None
    sides = vector[:, None] > np.linspace(low, high, thresholds + 2)[1:-1]
    values = normalised_cut(affinity, sides)
    best = int(values.argmin())
    return Cut(float(values[best]), sides[:, best])


def _second_eigenvector(affinity: np.ndarray) -> np.ndarray:
    """Solves (D - A) y = lambda D y; the trivial eigenvector is taken out, so that a split graph makes no trouble."""
    root = np.sqrt(np.maximum(affinity.sum(1), 1e-12))
    trivial = root / np.linalg.norm(root)
    n = len(affinity)
    scaled = affinity / root[:, None] / root

    if n <= DENSE:
        vector = eigh(scaled - 2 * np.outer(trivial, trivial), subset_by_index=[n - 1, n - 1])[1][:, 0]
    else:

        def product(vector: np.ndarray) -> np.ndarray:
            flat = vector.ravel()
            return scaled @ flat - 2 * trivial * (trivial @ flat)

        start = np.random.default_rng(0).normal(size=n)
        operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
        vector = eigsh(operator, k=1, which="LA", v0=start, tol=1e-8)[1][:, 0]
    return vector / root


def recursive_cut(
    affinity: np.ndarray, *, threshold: float, clusters: int | None = None, thresholds: int = 100
) -> np.ndarray:
    """Cut a graph in two, and the parts again, the cheapest cut first.

    Args:
        affinity: (node, node), symmetric, 0 or more.
        threshold: DiffCut's tau: parts whose best cut is not below it stay whole.
        clusters: cut until there are that many parts, whatever the cuts cost; the threshold is not used then.
        thresholds: as in `bipartition`.

    Returns:
        (node,) integers from 0, numbered in order of first appearance.

    Raises:
        InputError: an affinity that is not square, symmetric, finite and 0 or more, or more clusters than nodes.
    """
    _require_affinity(affinity)
    if clusters is not None and not 1 <= clusters <= len(affinity):
        raise InputError(f"{clusters} clusters of {len(affinity)} cells; accepted: 1 to {len(affinity)}")
    labels = np.zeros(len(affinity), int)
    waiting: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    order = 0

    def consider(nodes: np.ndarray) -> None:
        nonlocal order
        cut = bipartition(affinity[np.ix_(nodes, nodes)], thresholds)
        if cut is not None:
            heapq.heappush(waiting, (cut.value, order, nodes, cut.first))
            order += 1

    consider(np.arange(len(affinity)))
    parts = 1
    while waiting and (parts < clusters if clusters is not None else waiting[0][0] < threshold):
        _, _, nodes, first = heapq.heappop(waiting)
        labels[nodes[first]] = parts
        parts += 1
        consider(nodes[first])
        consider(nodes[~first])
    return number_in_order(labels)


def _require_affinity(affinity: np.ndarray) -> None:
    square = affinity.ndim == 2 and affinity.shape[0] == affinity.shape[1] and affinity.size > 0
    if not square or not np.isfinite(affinity).all() or (affinity < 0).any() or not np.allclose(affinity, affinity.T):
        raise InputError(f"affinity of shape {affinity.shape}; accepted: (cell, cell), symmetric, finite, 0 or more")
