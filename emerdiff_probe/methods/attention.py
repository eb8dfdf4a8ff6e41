"""Self-attention of many layers on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.errors import InputError
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.sites import Site

Weighting = Literal["layer", "resolution", "uniform"]
WEIGHTINGS: tuple[Weighting, ...] = ("layer", "resolution", "uniform")
ROWS = 1024
"""Cells whose maps are added at a time, so that no second copy of the sum is held."""


def aggregated_attention(
    probed: ProbedImage,
    sites: Sequence[Site],
    timestep: int,
    *,
    weighting: Weighting = "layer",
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Weighted mean of the self-attention maps of many layers on one grid (DiffSeg, section 3.2).

    Every map is enlarged bilinearly and scaled to sum to 1; the cells that ask are repeated.

    Args:
        probed: the image.
        sites: one site of each layer.
        timestep: on the image's trajectory.
        weighting: of layers, "layer" in proportion to the side of their grid (the paper's equation), "resolution" so
            that layers of one grid share the weight of its side (the public code's), "uniform" alike.
        grid: height and width; the finest of the layers' when None.

    Returns:
        (cell, cell) float32 on the CPU; rows sum to 1.

    Raises:
        InputError: no sites, one of no self-attention layer, or another weighting.
        ModelError: a layer whose probabilities cannot be read; see `attention`.
    """
    if not sites or weighting not in WEIGHTINGS:
        raise InputError(f"{len(sites)} sites, weighting {weighting!r}; accepted: some, {', '.join(WEIGHTINGS)}")
    if other := [site for site in sites if site.kind != "self"]:
        raise InputError(f"{other[0]} is no self-attention layer; accepted: sites of kind 'self'")
    grids = [probed.grid(site) for site in sites]
    height, width = grid or max(grids, key=lambda sides: sides[0] * sides[1])
    weights = _weights(grids, weighting)
    total = torch.zeros(height * width, height * width)
    for (_, own), sides, weight in zip(probed.attentions(sites, timestep), grids, weights, strict=True):
        maps = spread(own, sides, (height, width))
        asking = _nearest_cells(sides, (height, width))
        for rows in torch.arange(height * width).split(ROWS):
            total[rows] += weight * maps[asking[rows]]
    return total


def spread(maps: Tensor, sides: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Maps (…, cell) enlarged bilinearly from one grid to another, each scaled to sum to 1."""
    if sides != grid:
        maps = enlarge(rearrange(maps, "map (h w) -> map h w", h=sides[0]), grid).flatten(1)
    return maps / maps.sum(1, keepdim=True)


def _nearest_cells(sides: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """For every cell of a grid the one of a coarser grid that it lies in."""
    rows, columns = (((torch.arange(n) + 0.5) * cells / n).long() for cells, n in zip(sides, grid, strict=True))
    return (rows[:, None] * sides[1] + columns).flatten()


def _weights(grids: Sequence[tuple[int, int]], weighting: Weighting) -> list[float]:
    raw = [1.0 if weighting == "uniform" else (height * width) ** 0.5 for height, width in grids]
    if weighting == "resolution":
        raw = [side / grids.count(sides) for side, sides in zip(raw, grids, strict=True)]
    return [weight / sum(raw) for weight in raw]
