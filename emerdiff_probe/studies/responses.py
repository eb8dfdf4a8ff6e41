"""Studies of the responses themselves: how local, how semantic, and whether they add up."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import Scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation, difference_maps, modulated_images
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.sites import find_site
from emerdiff_probe.studies.study import (
    Axis,
    Cell,
    Direction,
    Measure,
    Measured,
    Study,
    Subject,
    strengths_around,
)
from emerdiff_probe.studies.truth import Truth, one_truth

PLACES = ("inside", "same part", "same object", "same class elsewhere", "nearby", "elsewhere")
"""Where a response may fall, each pixel in the first that holds: under the mask; the same part of the same thing;
another part of that thing; the same class of part on another thing; within a cell of the mask; anywhere else. What is
a part, and of which thing, drawn scenes know."""
LABELLED_PLACES = ("inside", "same part", "same class elsewhere", "nearby", "elsewhere")
"""The same on data that has labels: a part is what is connected and of one label."""
BARE_PLACES = ("inside", "nearby", "elsewhere")
"""The same on data that has no labels."""

DENSER = (
    ("meaning beats nearness: the same part answers more than what is merely near",
     ("region", "same part"), ("region", "nearby")),
    ("the same class on other things answers more than the rest of the image",
     ("region", "same class elsewhere"), ("region", "elsewhere")),
    ("regions answer more inside than the same shapes elsewhere",
     ("region", "inside"), ("shifted region", "inside")),
    ("the same part answers more to a region than to its shape elsewhere",
     ("region", "same part"), ("shifted region", "same part")),
    ("what is near a region answers more than what is far", ("region", "nearby"), ("region", "elsewhere")),
)  # fmt: skip
"""Claims about the density of a response: that of the first mask and place is said to exceed that of the second."""


def locality(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Question 3: where the response to single cells and to regions falls, beside random masks of the same shape."""
    modulation, truth = resolve_modulation(model, config), Truth.of(data)
    places = PLACES if isinstance(data, World) else LABELLED_PLACES if truth.labelled else BARE_PLACES
    count = 4 if quick else 12

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        probed, sample = subject.probed, subject.sample
        masks = _masks(str(unit["mask"]), probed, sample, config, count)
        maps = difference_maps(model, probed.trajectory, masks, modulation).numpy()
        regions = regions_of(sample)
        shares = [shares_of(values, mask.numpy(), regions, places) for values, mask in zip(maps, masks, strict=True)]
        return {
            (place,): _response_in(share) for place, share in zip(places, np.array(shares).swapaxes(0, 1), strict=True)
        }

    return Study(
        name="locality",
        question="How local, and how semantic, is the answer to perturbing one place?",
        axes={
            "mask": Axis(("cell", "region", "shifted region"), "", "what is modulated: one cell, one low-resolution "
                         "mask, or (the null model) such a mask moved to a random place"),
            "place": Axis(places, "", "where the response falls"),
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
        directions=tuple(
            Direction(claim, "density", dict(zip(("mask", "place"), first, strict=True)),
                      dict(zip(("mask", "place"), second, strict=True)))
            for claim, first, second in DENSER if {first[1], second[1]} <= set(places)
        ),
    )  # fmt: skip


def _response_in(shares: np.ndarray) -> Measured:
    """The measures of one place from the shares (mask, 2) of response and area; density over masks that reach it."""
    response, area = shares.T
    density = response[area > 0] / area[area > 0]
    return {
        "response": 100 * float(response.mean()),
        "area": 100 * float(area.mean()),
        "density": float(density.mean()) if len(density) else float("nan"),
    }


def rng_of(config: EmerDiffConfig, sample: Sample) -> np.random.Generator:
    """Random numbers of a sample, the same in every run."""
    return np.random.default_rng([config.seed, zlib.crc32(sample.name.encode())])


def _coarse(probed: ProbedImage, config: EmerDiffConfig) -> np.ndarray:
    sites = find_feature_sites(probed.model, config)
    return probed.low_resolution_masks(sites, config.given_clusters, config.features.timesteps)


def _masks(kind: str, probed: ProbedImage, sample: Sample, config: EmerDiffConfig, count: int) -> Tensor:
    """`count` masks (mask, grid_height, grid_width) of a kind, the same ones in every run."""
    site = find_site(probed.model, config.modulation.layer)
    grid, rng = probed.grid(site), rng_of(config, sample)
    if kind == "cell":
        cells = rng.choice(grid[0] * grid[1], min(count, grid[0] * grid[1]), replace=False)
        return torch.eye(grid[0] * grid[1])[cells].unflatten(1, grid)
    masks = probed.masks(_coarse(probed, config), site)
    masks = masks[np.sort(rng.permutation(len(masks))[:count])]
    if kind == "region":
        return masks
    shifts = [(int(rng.integers(grid[0])), int(rng.integers(grid[1]))) for _ in masks]
    return torch.stack([mask.roll(shift, (0, 1)) for mask, shift in zip(masks, shifts, strict=True)])


def regions_of(sample: Sample) -> tuple[np.ndarray, np.ndarray] | None:
    """What a sample knows of its pixels: the class, and the thing, each (height, width) integers; None for nothing.

    Classes below 0 are unknown. Things are numbered from 1, 0 is what is no thing. Where no scene tells them, a thing
    is a connected region of one class.
    """
    if isinstance(sample.scene, Scene):
        return sample.scene.parts.astype(np.int64), sample.scene.instances.astype(np.int64)
    if sample.labels is None:
        return None
    classes = one_truth(sample).astype(np.int64)
    things, used = np.zeros(classes.shape, np.int64), 0
    for known in np.unique(classes[classes != IGNORED]):
        found, count = label(classes == known)
        things[found > 0] = found[found > 0] + used
        used += count
    return classes, things


def shares_of(
    difference: np.ndarray,
    mask: np.ndarray,
    regions: tuple[np.ndarray, np.ndarray] | None,
    places: tuple[str, ...] = PLACES,
) -> np.ndarray:
    """Shares of a response and of the area in each place.

    Args:
        difference: (map_height, map_width) difference map, not smoothed.
        mask: (grid_height, grid_width), 0 and 1.
        regions: of the image, from `regions_of`; the part that fills most of the mask counts as the one modulated.
        places: `PLACES`, or those of them that the data knows.

    Returns:
        (place, 2): share of the response, share of the pixels; each column sums to 1.
    """
    height, width = difference.shape
    inside = _nearest(mask, height, width) > 0
    held = {"inside": inside, "nearby": distance_transform_edt(~inside) <= height / mask.shape[0]}
    if regions is not None:
        classes, things = (_nearest(values, height, width) for values in regions)
        many = int(things.max()) + 1
        values, counts = np.unique((classes * many + things)[inside & (classes >= 0)], return_counts=True)
        part, thing = divmod(int(values[counts.argmax()]), many) if len(values) else (-2, 0)
        same_thing = (things == thing) & ((thing > 0) | (classes == part))
        held |= {
            "same part": same_thing & (classes == part),
            "same object": same_thing,
            "same class elsewhere": classes == part,
        }
    place = np.select([held[name] for name in places[:-1]], range(len(places) - 1), len(places) - 1).ravel()
    response = np.bincount(place, difference.ravel(), len(places)) / max(float(difference.sum()), 1e-12)
    return np.stack([response, np.bincount(place, minlength=len(places)) / place.size], axis=1)


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values (rows, columns) at another size, each pixel that of the cell that it lies in."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip((height, width), values.shape, strict=True))
    return values[rows][:, columns]


def additivity(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Whether the response to a union is the sum of the responses, over strength."""
    plain = resolve_modulation(model, config)
    if not plain.readout.sees_images:
        raise InputError(
            "study additivity adds up images of single masks; accepted: an exact readout, without --fast or --draft"
        )
    pairs = 2 if quick else 4
    strengths = strengths_around(config, *((0.3, 3) if quick else (0.1, 0.3, 1, 3, 10)))

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        modulation = replace(plain, strength=float(unit["strength"]))
        rng, found = rng_of(config, subject.sample), []
        for pieces in _unions(str(unit["union"]), subject.probed, config, pairs, rng):
            responses = _signed(subject.probed, torch.cat([pieces, pieces.sum(0, keepdim=True)]), modulation)
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
    masks = probed.masks(_coarse(probed, config), find_site(probed.model, config.modulation.layer))
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
