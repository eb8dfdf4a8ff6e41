"""Attention probabilities of the denoiser's layers, as its own passes compute them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.hooks.attach import attached, keep_clean
from emerdiff_probe.hooks.attention_reader import AttentionReader
from emerdiff_probe.models.batching import run_in_batches
from emerdiff_probe.models.probe_model import Conditioning, ProbeModel
from emerdiff_probe.sites import Site
from emerdiff_probe.trajectories.denoise import conditionings, denoiser_rows_that_fit, predict
from emerdiff_probe.trajectories.trajectory import Trajectory

BYTES_AT_ONCE = 512 * 2**20
"""Maps of layers that are read in one pass; further layers wait for the next, one layer at least."""


def attention(
    model: ProbeModel,
    trajectory: Trajectory,
    site: Site,
    timestep: int,
    *,
    per_head: bool = False,
    conditioning: Conditioning | None = None,
) -> Tensor:
    """Attention probabilities of a layer, exactly as a pass of the denoiser computes them.

    No map of another layer is held beside, and of this one no more than a stripe beside the result.

    Args:
        model: to run.
        trajectory: of one image; further rows are further draws of its noise, over which the probabilities are averaged
            (the mean of what was attended to, not the attention of a mean).
        site: any site of the layer, of kind "self" or "cross".
        timestep: that the trajectory passes.
        per_head: every head's own, in the place of their mean.
        conditioning: what the denoiser is told, one row; the trajectory's prompt when None.

    Returns:
        (cell, cell) of self-attention, (cell, token) of cross-attention, or with a first axis of heads; float32 on the
        CPU. A row is one asking cell's and sums to 1.

    Raises:
        InputError: a site of no such layer.
        TimestepError: a timestep that the trajectory does not pass.
        ModelError: a layer whose processor computes attention in a way that cannot be seen; a compiled denoiser.
    """
    ((_, probabilities),) = attentions(
        model, trajectory, [site], timestep, per_head=per_head, conditioning=conditioning
    )
    return probabilities


def attentions(
    model: ProbeModel,
    trajectory: Trajectory,
    sites: Sequence[Site],
    timestep: int,
    *,
    per_head: bool = False,
    conditioning: Conditioning | None = None,
) -> Iterator[tuple[Site, Tensor]]:
    """As `attention`, which has the arguments, of many layers one after the other, in as few passes as memory allows.

    Yields:
        Every site and its layer's probabilities, in the order of the sites.
    """
    for site in sites:
        if site.kind not in {"self", "cross"}:
            raise InputError(f"attention of {site}: accepted: sites of a layer of kind 'self' or 'cross'")
    told = conditioning or conditionings(model, trajectory.final, trajectory.prompt, 1.0)[0]
    latents = trajectory.at(timestep)

    def size_of(site: Site) -> int:
        cells = math.prod(site.grid(*latents.shape[-2:]))
        heads = model.denoiser.get_submodule(site.attention).heads if per_head else 1
        return 4 * heads * cells * (cells if site.kind == "self" else told.hidden_states.shape[1])

    def in_groups() -> Iterator[tuple[Site, Tensor]]:
        left = list(sites)
        while left:
            group = [left.pop(0)]
            while left and sum(map(size_of, group)) + size_of(left[0]) <= BYTES_AT_ONCE:
                group.append(left.pop(0))
            maps = _read(model, trajectory, group, timestep, told, per_head)
            for site in group:
                yield site, maps[site.attention]

    return in_groups()


def _read(
    model: ProbeModel,
    trajectory: Trajectory,
    sites: Sequence[Site],
    timestep: int,
    conditioning: Conditioning,
    per_head: bool,
) -> dict[str, Tensor]:
    """Probabilities by the path of the layer, the mean over the trajectory's rows."""
    latents, exact = trajectory.at(timestep), model.schedule(trajectory.steps).exact(timestep)
    layers = list(dict.fromkeys(site.attention for site in sorted(sites)))
    totals: dict[str, Tensor] = {}

    def run(rows: Tensor) -> Tensor:
        reader = AttentionReader(layers, per_head=per_head)
        with keep_clean(model), attached(model, attention=reader):
            predict(model, latents[rows], exact, conditioning)
        for layer, total in reader.sums.items():
            totals[layer] = totals[layer] + total if layer in totals else total
        return rows

    run_in_batches(run, torch.arange(trajectory.batch), denoiser_rows_that_fit(model, latents))
    for layer in layers:
        heads = 1 if per_head else model.denoiser.get_submodule(layer).heads
        totals[layer] = (totals[layer] / (heads * trajectory.batch)).cpu()
    return {layer: total if per_head else total[0] for layer, total in totals.items()}
