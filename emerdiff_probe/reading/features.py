"""Features at sites and timesteps of a trajectory, and the low-resolution masks that clustering them gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from emerdiff_probe.arrays import enlarge, number_in_order
from emerdiff_probe.errors import InputError
from emerdiff_probe.hooks.attach import Capture, attached, cells_first, keep_clean
from emerdiff_probe.interventions import Intervention
from emerdiff_probe.models.batching import rows_that_fit, run_in_batches
from emerdiff_probe.models.probe_model import Conditioning, ProbeModel
from emerdiff_probe.sites import Site
from emerdiff_probe.trajectories.denoise import conditionings, denoiser_rows_that_fit, predict, replay
from emerdiff_probe.trajectories.trajectory import Trajectory

Upsampling = Literal["nearest", "bilinear"]
Reduce = Callable[[Tensor, tuple[int, int]], Tensor]


def capture(
    model: ProbeModel,
    trajectory: Trajectory,
    sites: Sequence[Site],
    timesteps: Sequence[int] = (1,),
    *,
    conditioning: Conditioning | None = None,
    reduce: Reduce | None = None,
) -> Mapping[tuple[Site, int], Tensor]:
    """Features of a trajectory at sites and timesteps, in one batched pass that ends after the last site.

    More passes only where memory asks for them.

    Args:
        model: to run.
        trajectory: of one or more images.
        sites: where; any kind.
        timesteps: when; the trajectory must pass them.
        conditioning: what the denoiser is told, one row; the trajectory's prompt when None.
        reduce: called as `reduce(activation, grid)` with the activation (row, cell, channel) of some rows, on the
            model's device and in its precision; what it gives, (row, …), is kept in the place of whole activations.

    Returns:
        For every (site, timestep): (batch, cell, channel) on the CPU, or (batch, …) as reduced; numbers are float32.
        Keys and values of cross-attention have tokens in the place of cells.

    Raises:
        TimestepError: a timestep that the trajectory does not pass.
        InputError: no sites or no timesteps, or a reduction that gives anything but a tensor with a value for each row.
    """
    _require_callable(reduce)
    if not sites or not timesteps:
        raise InputError(f"{len(sites)} sites at {len(timesteps)} timesteps; accepted: one or more of each")
    sites, timesteps = list(dict.fromkeys(sites)), list(dict.fromkeys(timesteps))
    latents = torch.cat([trajectory.at(timestep) for timestep in timesteps])
    asked = torch.tensor(timesteps, device=model.device).repeat_interleave(trajectory.batch)
    exact = model.schedule(trajectory.steps).exact(asked)
    told = conditioning or conditionings(model, latents, trajectory.prompt, 1.0)[0]
    records: list[dict[tuple[Site, int], Tensor]] = []

    def run(rows: Tensor) -> Tensor:
        reached = frozenset(asked[rows].tolist())
        captures = [Capture(site, reached, reduce) for site in sites]
        with keep_clean(model), attached(model, captures=captures, stop_early=True) as record:
            predict(model, latents[rows], exact[rows], told)
        records.append({key: _as_kept(record[key], reduce) for key in record.tensors})
        return rows

    held = sum(site.channels * math.prod(site.grid(*latents.shape[-2:])) for site in sites) * model.dtype.itemsize
    size = min(denoiser_rows_that_fit(model, latents), rows_that_fit(model.device, held, len(latents)))
    run_in_batches(run, torch.arange(len(latents)), size)
    return {
        (site, timestep): torch.cat([record[site, timestep] for record in records if (site, timestep) in record])
        for site in sites
        for timestep in timesteps
    }


def capture_replayed(
    model: ProbeModel,
    trajectory: Trajectory,
    variants: Sequence[Sequence[Intervention]],
    sites: Sequence[Site],
    timesteps: Sequence[int] | None = None,
    *,
    steps: int | None = None,
    reduce: Reduce | None = None,
    progress: bool = False,
) -> Mapping[tuple[Site, int], Tensor]:
    """What interventions do to features further on: those of a trajectory replayed under every variant.

    Args:
        model: to run.
        trajectory: of one image.
        variants: as in `denoise`; an empty list gives the unchanged features.
        sites: where; any kind.
        timesteps: when; every one that is run when None.
        steps: stop after so many; replay to the end when None.
        reduce: as in `capture`.
        progress: show a progress bar over denoiser passes.

    Returns:
        For every (site, timestep): (variant, cell, channel) float32 on the CPU, or as reduced, as by `capture`.

    Raises:
        InputError: no sites, or a bad reduction; and what `denoise` raises.
        TimestepError: a timestep that is not run.
    """
    _require_callable(reduce)
    if not sites:
        raise InputError("no sites; accepted: one or more")
    when = None if timesteps is None else frozenset(timesteps)
    captures = [Capture(site, when, reduce) for site in dict.fromkeys(sites)]
    _, record = replay(model, trajectory, variants, captures, steps=steps, progress=progress)
    return {key: _as_kept(activation, reduce) for key, activation in record.items()}


def finest_grid(sites: Sequence[Site], latent_height: int, latent_width: int) -> tuple[int, int]:
    """Height and width of the finest of the sites' grids for latents of this size."""
    return max((site.grid(latent_height, latent_width) for site in sites), key=math.prod)


def combine(*features: tuple[Tensor, tuple[int, int]]) -> Tensor:
    """Features of several sites or timesteps side by side, so that each counts by its number of channels alone.

    Each is centred over its cells and scaled to a mean square of 1; those of coarser grids are enlarged bilinearly.

    Args:
        features: (cell, channel), and height and width of their grid.

    Returns:
        (cell, channel) float32 on the finest of the grids, the channels of all in the order given.
    """
    finest = max((grid for _, grid in features), key=math.prod)
    parts = []
    for held, grid in features:
        centred = held - held.mean(0)
        scaled = centred / centred.square().mean().sqrt().clamp_min(torch.finfo(centred.dtype).tiny)
        if grid != finest:
            planes = rearrange(scaled, "(h w) channel -> 1 channel h w", h=grid[0])
            enlarged = torch.nn.functional.interpolate(planes, size=finest, mode="bilinear")
            scaled = rearrange(enlarged, "1 channel h w -> (h w) channel")
        parts.append(scaled)
    return torch.cat(parts, dim=1)


def _as_kept(activation: Tensor, reduce: Reduce | None) -> Tensor:
    kept = (cells_first(activation) if reduce is None else activation).cpu()
    return kept.float() if kept.is_floating_point() else kept


def _require_callable(reduce: object) -> None:
    if reduce is not None and not callable(reduce):
        raise InputError(f"reduce {reduce!r}; accepted: a function of an activation and a grid, or None")


def cluster(features: Tensor, clusters: int, grid: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """Low-resolution masks by k-means over the cells of one image (EmerDiff, section 3.1).

    Args:
        features: (cell, channel).
        clusters: number of masks K.
        grid: height and width of the site's grid.
        seed: of k-means.

    Returns:
        (grid_height, grid_width) integers in 0 … K - 1, numbered in reading order of first appearance. Where
        fewer than K cells differ, fewer labels occur.

    Raises:
        InputError: K below 1 or above the number of cells, a grid of another size, or NaN in the features.
    """
    cells = grid[0] * grid[1]
    if features.ndim != 2 or len(features) != cells:
        raise InputError(f"features of shape {tuple(features.shape)} on a grid of {grid}; accepted: ({cells}, channel)")
    if not 1 <= clusters <= cells:
        raise InputError(f"{clusters} clusters of {cells} cells; accepted: 1 to {cells}")
    if not torch.isfinite(features).all():
        raise InputError("the features hold NaN or infinite values: the denoiser overflowed; use float32")
    points = features.double()
    if points.shape[1] > cells:  # turned so that no more channels are left than cells, their distances as they were
        points = torch.linalg.qr(points.T, mode="r").R.T
    # Of several threads the order in which sums are taken is chance, and so are the last bits.
    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct cells than K: documented above
        labels = KMeans(clusters, n_init=10, random_state=k_means_seed(seed)).fit_predict(points.numpy())
    return number_in_order(labels.reshape(grid))


def k_means_seed(seed: int) -> int:
    """What k-means takes as a seed, 32 bits: small seeds as they are, others a draw from them."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def one_hot_masks(low_resolution_masks: np.ndarray) -> Tensor:
    """Masks (grid_height, grid_width) of labels as (mask, grid_height, grid_width) float32 of 0 and 1."""
    labels = torch.from_numpy(np.ascontiguousarray(low_resolution_masks)).long()
    return rearrange(torch.nn.functional.one_hot(labels), "h w mask -> mask h w").float()


def upsampled(low_resolution_masks: np.ndarray, height: int, width: int, mode: Upsampling = "bilinear") -> np.ndarray:
    """Labels of pixels without modulated denoising: masks enlarged one by one, every pixel takes the highest.

    Args:
        low_resolution_masks: (grid_height, grid_width) labels.
        height, width: of the result, pixels.
        mode: "bilinear", the paper's baseline, or "nearest".

    Returns:
        (height, width) integers.
    """
    return enlarge(one_hot_masks(low_resolution_masks), (height, width), mode=mode).argmax(0).numpy()


def mask_embeddings(features: Tensor, low_resolution_masks: np.ndarray) -> Tensor:
    """Mean feature inside every low-resolution mask: features (cell, channel) -> (mask, channel)."""
    weights = rearrange(one_hot_masks(low_resolution_masks), "mask h w -> mask (h w)")
    return weights @ features / weights.sum(1, keepdim=True)


def pca_view(features: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """The three main components of features (cell, channel) as colours, (grid_height, grid_width, 3) uint8."""
    projected = PCA(3, svd_solver="full").fit_transform(features.double().numpy())
    low, high = np.percentile(projected, [1, 99], axis=0)
    scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.round(scaled.reshape(*grid, 3) * 255).astype(np.uint8)
