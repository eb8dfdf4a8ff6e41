"""Attention maps from captured queries and keys: one layer and one head at a time, never all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import attention_part
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.attention import mean_attention
from emerdiff_probe.sites import Site

Weighting = Literal["layer", "resolution", "uniform"]
WEIGHTINGS: tuple[Weighting, ...] = ("layer", "resolution", "uniform")
ROWS = 1024
"""Cells whose maps are added at a time, so that no second copy of the sum is held."""


def self_attention(probed: ProbedImage, site: Site, timestep: int) -> Tensor:
    """Attention probabilities of a self-attention layer, the mean over its heads: softmax(Q K^T * scale).

    Args:
        probed: the image.
        site: any site of the layer.
        timestep: on the image's trajectory.

    Returns:
        (cell, cell) float32 on the CPU, a row for each asking cell; rows sum to 1.

    Raises:
        InputError: a site of no self-attention layer.
        ModelError: a layer that normalises its queries and keys, so that the projections do not give its maps.
    """
    if site.kind != "self":
        raise InputError(f"{site} is no self-attention layer; accepted: sites of kind 'self'")
    parts = [attention_part(probed.model, site, "query"), attention_part(probed.model, site, "key")]
    probed.capture(parts, timestep)
    return mean_attention(probed.model, site, *(probed.features(part, timestep) for part in parts))


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
        InputError: no sites, another weighting, or as in `self_attention`.
    """
    if not sites or weighting not in WEIGHTINGS:
        raise InputError(f"{len(sites)} sites, weighting {weighting!r}; accepted: some, {', '.join(WEIGHTINGS)}")
    grids = [probed.grid(site) for site in sites]
    height, width = grid or max(grids, key=lambda sides: sides[0] * sides[1])
    weights = _weights(grids, weighting)
    both = [attention_part(probed.model, site, part) for site in sites for part in ("query", "key")]
    probed.capture(both, timestep)
    total = torch.zeros(height * width, height * width)
    for site, sides, weight in zip(sites, grids, weights, strict=True):
        maps = spread(self_attention(probed, site, timestep), sides, (height, width))
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
