"""Studies of the responses themselves: how local, how semantic, and whether they add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import Scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation, difference_map, modulated_images
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.sites import find_site
from emerdiff_probe.studies.study import Axis, Cell, Direction, Measure, Measured, Study, strengths_around

PLACES = ("inside", "same part", "same object", "same class elsewhere", "nearby", "elsewhere")
"""Where a response may fall, each pixel in the first that holds: under the mask; the same part of the same thing;
another part of that thing; the same class of part on another thing; within a cell of the mask; anywhere else."""


def locality(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Question 3: where the response to single cells and to regions falls, beside random masks of the same shape."""
    modulation = resolve_modulation(model, config)
    count = 4 if quick else 12

    def measure(probed: ProbedImage, scene: Scene, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        masks = _masks(str(unit["mask"]), probed, scene, config, count)
        minus, plus = modulated_images(model, probed.trajectory, masks, modulation)
        maps = difference_map(minus, plus).numpy()
        shares = [shares_of(values, mask.numpy(), scene) for values, mask in zip(maps, masks, strict=True)]
        found = np.array(shares)  # (mask, place, [response, area])
        with np.errstate(invalid="ignore", divide="ignore"):
            density = np.where(found[..., 1] > 0, found[..., 0] / found[..., 1], np.nan)
        measured: dict[Cell, Measured] = {}
        for index, place in enumerate(PLACES):
            known = density[:, index][np.isfinite(density[:, index])]
            measured[(place,)] = {
                "response": 100 * float(found[:, index, 0].mean()),
                "area": 100 * float(found[:, index, 1].mean()),
                "density": float(known.mean()) if len(known) else float("nan"),
            }
        return measured

    def denser(mask: str, first: str, second: str, claim: str) -> Direction:
        return Direction(claim, "density", {"mask": mask, "place": first}, {"mask": mask, "place": second})

    return Study(
        name="locality",
        question="How local, and how semantic, is the answer to perturbing one place?",
        axes={
            "mask": Axis(("cell", "region", "shifted region"), "", "what is modulated: one cell, one low-resolution "
                         "mask, or (the null model) such a mask moved to a random place"),
            "place": Axis(PLACES, "", "where the response falls"),
        },
        measures={
            "response": Measure("share of the response", "%"),
            "area": Measure("share of the pixels", "%"),
            "density": Measure("response a pixel, relative to the whole image's mean", "times"),
        },
        config=config,
        measure=measure,
        together=("place",),
        start=config.start,
        parameters={"masks": count},
        directions=(
            denser("region", "same part", "nearby", "meaning beats nearness: the same part answers more than what is "
                   "merely near"),
            denser("region", "same class elsewhere", "elsewhere", "the same class on other things answers more than "
                   "the rest of the image"),
            Direction("regions answer more inside than the same shapes elsewhere", "density",
                      {"mask": "region", "place": "inside"}, {"mask": "shifted region", "place": "inside"}),
            Direction("the same part answers more to a region than to its shape elsewhere", "density",
                      {"mask": "region", "place": "same part"}, {"mask": "shifted region", "place": "same part"}),
        ),
    )  # fmt: skip


def _masks(kind: str, probed: ProbedImage, scene: Scene, config: EmerDiffConfig, count: int) -> Tensor:
    """`count` masks (mask, grid_height, grid_width) of a kind, the same ones in every run."""
    site = find_site(probed.model, config.modulation.layer)
    grid = probed.grid(site)
    rng = np.random.default_rng([config.seed, scene.seed])
    if kind == "cell":
        cells = rng.choice(grid[0] * grid[1], min(count, grid[0] * grid[1]), replace=False)
        return torch.eye(grid[0] * grid[1])[cells].unflatten(1, grid)
    coarse = probed.low_resolution_masks(
        find_feature_sites(probed.model, config), config.given_clusters, config.features.timesteps
    )
    masks = probed.masks(coarse, site)
    masks = masks[np.sort(rng.permutation(len(masks))[:count])]
    if kind == "region":
        return masks
    shifts = [(int(rng.integers(grid[0])), int(rng.integers(grid[1]))) for _ in masks]
    return torch.stack([mask.roll(shift, (0, 1)) for mask, shift in zip(masks, shifts, strict=True)])


def shares_of(difference: np.ndarray, mask: np.ndarray, scene: Scene) -> np.ndarray:
    """Shares of a response and of the area in each of `PLACES`.

    Args:
        difference: (height, width) difference map, not smoothed.
        mask: (grid_height, grid_width), 0 and 1.
        scene: its ground truth; the part that fills most of the mask counts as the one modulated.

    Returns:
        (place, 2): share of the response, share of the pixels; each column sums to 1.
    """
    height, width = difference.shape
    rows, columns = np.arange(height) * mask.shape[0] // height, np.arange(width) * mask.shape[1] // width
    inside = mask[rows][:, columns] > 0
    identity = scene.parts.astype(np.int64) * (int(scene.instances.max()) + 1) + scene.instances
    values, counts = np.unique(identity[inside], return_counts=True)
    part, instance = divmod(int(values[counts.argmax()]), int(scene.instances.max()) + 1)
    same_thing = (scene.instances == instance) & ((instance > 0) | (scene.parts == part))
    near = distance_transform_edt(~inside) <= height / mask.shape[0]
    conditions = [inside, same_thing & (scene.parts == part), same_thing, scene.parts == part, near]
    place = np.select(conditions, range(len(conditions)), len(conditions)).ravel()
    response = np.bincount(place, difference.ravel(), len(PLACES)) / max(float(difference.sum()), 1e-12)
    return np.stack([response, np.bincount(place, minlength=len(PLACES)) / place.size], axis=1)


def additivity(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Whether the response to a union is the sum of the responses, over strength."""
    plain = resolve_modulation(model, config)
    pairs = 2 if quick else 4
    strengths = strengths_around(config, *((0.3, 3) if quick else (0.1, 0.3, 1, 3, 10)))

    def measure(probed: ProbedImage, scene: Scene, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        modulation = replace(plain, strength=float(unit["strength"]))
        rng = np.random.default_rng([config.seed, scene.seed])
        found = []
        for pieces in _unions(str(unit["union"]), probed, config, pairs, rng):
            responses = _signed(probed, torch.cat([pieces, pieces.sum(0, keepdim=True)]), modulation)
            found.append(agreement(responses[-1], responses[:-1].sum(0)))
        correlation, error = np.mean(found, axis=0)
        return {(): {"correlation": float(correlation), "error": 100 * float(error)}}

    return Study(
        name="additivity",
        question="Is the response to a union the sum of the responses?",
        axes={
            "union": Axis(("two regions", "cells of a region"), "", "what is united"),
            "strength": Axis(strengths, "", "strength of the modulation, lambda"),
        },
        measures={
            "correlation": Measure("correlation of the union's response and the sum", "", "mean", True),
            "error": Measure("size of their difference, relative to the union's response", "%", "mean", False),
        },
        config=config,
        measure=measure,
        start=config.start,
        parameters={"unions": pairs},
        directions=(
            Direction("responses add up better at low strength than at high: correlation", "correlation",
                      {"strength": strengths[0]}, {"strength": strengths[-1]}),
        ),
    )  # fmt: skip


def _unions(
    kind: str, probed: ProbedImage, config: EmerDiffConfig, count: int, rng: np.random.Generator
) -> list[Tensor]:
    """Sets of disjoint masks (piece, grid_height, grid_width)."""
    coarse = probed.low_resolution_masks(
        find_feature_sites(probed.model, config), config.given_clusters, config.features.timesteps
    )
    masks = probed.masks(coarse, find_site(probed.model, config.modulation.layer))
    if kind == "two regions":
        return [masks[rng.permutation(len(masks))[:2]] for _ in range(count)]
    sizes = masks.sum((1, 2))
    # Regions of a few cells: the sum over a large one would cost as many passes as it has cells.
    chosen = torch.argsort((sizes - 9).abs(), stable=True)[: max(1, count // 2)]
    cells = torch.eye(masks[0].numel()).unflatten(1, masks.shape[1:])
    return [cells[masks[index].flatten() > 0] for index in chosen.tolist()]


def _signed(probed: ProbedImage, masks: Tensor, modulation: Modulation) -> Tensor:
    """Signed responses (I+ - I-) / 2 of masks: (mask, 3, height, width)."""
    minus, plus = modulated_images(probed.model, probed.trajectory, masks, modulation)
    return (plus - minus) / 2


def agreement(union: Tensor, total: Tensor) -> tuple[float, float]:
    """Correlation of two signed responses, and the norm of their difference relative to the first's."""
    first, second = union.flatten().double(), total.flatten().double()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    error = torch.linalg.vector_norm(first - second) / torch.linalg.vector_norm(first).clamp(min=1e-12)
    return float(correlation), float(error)
