"""Studies of what the denoiser's features hold: which layers, timesteps and numbers of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeClassifier
from sklearn.metrics import adjusted_rand_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.addresses import Part
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, Scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.reading.features import upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.sites import Site, find_site, list_sites
from emerdiff_probe.studies.run import WorldScenes
from emerdiff_probe.studies.study import (
    Axis,
    Cell,
    Direction,
    Measure,
    Measured,
    Study,
    Value,
    on_grid,
    probed_resolution,
)

PROBE_SEEDS = range(510_000, 510_024)
"""Scenes that linear probes are fitted on: held out from training, and far from those that are measured."""

BILINEAR = Measure("majority mIoU of the low-resolution masks, upsampled bilinearly", "%", "confusion", True)
EMERDIFF = Measure("majority mIoU of EmerDiff", "%", "confusion", True)


def cell_sites(model: ProbeModel) -> list[Site]:
    """All sites that hold cells, not the tokens of a text."""
    return [site for site in list_sites(model) if site.holds_cells]


def by_cell(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Pixels (height, width, …) by the cell that they lie in: (cell, pixel, …).

    Where the grid does not divide the image, the pixels left over at its right and lower edge are left out.
    """
    height, width = image.shape[0] // grid[0], image.shape[1] // grid[1]
    cut = image[: grid[0] * height, : grid[1] * width]
    blocks = cut.reshape(grid[0], height, grid[1], width, *image.shape[2:]).swapaxes(1, 2)
    return blocks.reshape(grid[0] * grid[1], height * width, *image.shape[2:])


def majority_part(scene: Scene, grid: tuple[int, int]) -> np.ndarray:
    """The part that fills most of every cell: (cell,) integers."""
    return np.array([np.bincount(pixels).argmax() for pixels in by_cell(scene.parts, grid)])


def layers(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Every site of the denoiser at several timesteps: how semantic, and how much is only position or colour."""
    grid = model.schedule(config.inversion.steps).timesteps
    sites = cell_sites(model)
    if quick:
        near = [site for site in sites if site.layer and site.part in {"query", "output"}]
        sites = [site for site in near if site.stage == "up"] or near
    timesteps = on_grid(grid, config.features.timesteps if quick else (1, 101, 281, 481))
    by_name = {site.name: site for site in sites}

    seeds = PROBE_SEEDS[:6] if quick else PROBE_SEEDS
    fitted: dict[int, dict[str, Any]] = {}  # Ray cannot pickle functools.cache

    def probes(timestep: int) -> dict[str, Any]:
        if timestep not in fitted:
            fitted[timestep] = fit_linear_probes(model, config, sites, timestep, seeds)
        return fitted[timestep]

    def measure(probed: ProbedImage, scene: Scene, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        timestep = unit["timestep"]
        probed.capture(sites, timestep)
        measured: dict[Cell, Measured] = {}
        for name, site in by_name.items():
            features, cells = probed.features(site, timestep).numpy(), probed.grid(site)
            parts = majority_part(scene, cells)
            clusters = min(config.given_clusters, cells[0] * cells[1])
            labels = upsampled(probed.low_resolution_masks(site, clusters, timestep), *scene.parts.shape)
            measured[(name,)] = {
                "clusters": majority_confusion(labels, scene.parts, len(PART_NAMES)),
                "adjusted_rand": float(adjusted_rand_score(scene.parts.ravel(), labels.ravel())),
                "linear_probe": 100 * float(np.mean(probes(timestep)[name].predict(features) == parts)),
                "position": explained(features, position_of(cells)),
                "colour": explained(features, by_cell(scene.image, cells).mean(1) / 255),
            }
        return measured

    first, second, third = (f"up{probed_resolution(config)}.cross{n}.query" for n in range(3))
    directions = [
        Direction(f"Table 5: {first} and {other} differ little (2 points)", "clusters", {"site": first},
                  {"site": other}, 2.0)
        for other in (second, third) if {first, other} <= set(by_name)
    ]  # fmt: skip
    if len(timesteps) > 1 and first in by_name:
        early: dict[str, Value] = {"site": first, "timestep": timesteps[0]}
        late: dict[str, Value] = {"site": first, "timestep": timesteps[-1]}
        directions.append(Direction(f"Table 6: t = {timesteps[0]} beats t = {timesteps[-1]}", "clusters", early, late))
    return Study(
        name="layers",
        question="Which layers hold features whose clusters are parts, and which hold only position or colour?",
        axes={
            "site": Axis(tuple(by_name), "", "site, in the order in which the denoiser runs them"),
            "timestep": Axis(timesteps, "timestep", "timestep of the features"),
        },
        measures={
            "clusters": BILINEAR,
            "adjusted_rand": Measure("adjusted Rand index of clusters and parts", "", "mean", True),
            "linear_probe": Measure("accuracy of a linear probe for the part of a cell", "%", "mean", True),
            "position": Measure("variance of the features that position explains", "adjusted R²", "mean", False),
            "colour": Measure("variance of the features that the cell's mean colour explains", "adjusted R²", "mean",
                              False),
        },
        config=config,
        measure=measure,
        together=("site",),
        start=max(timesteps),
        parameters={"probe_seeds": list(seeds)},
        directions=tuple(directions),
    )  # fmt: skip


def fit_linear_probes(
    model: ProbeModel, config: EmerDiffConfig, sites: Sequence[Site], timestep: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Linear classifiers (ridge) of a cell's part from its features, by the name of the site."""
    features: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}
    parts: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}
    for scene in WorldScenes(seeds, model.native_size):
        probed = config.probe(model, scene.image, start=timestep)
        probed.capture(sites, timestep)
        for site in sites:
            features[site.name].append(probed.features(site, timestep).numpy())
            parts[site.name].append(majority_part(scene, probed.grid(site)))
    return {
        site.name: make_pipeline(StandardScaler(), RidgeClassifier()).fit(
            np.concatenate(features[site.name]), np.concatenate(parts[site.name])
        )
        for site in sites
    }


def position_of(grid: tuple[int, int]) -> np.ndarray:
    """Coordinates of every cell and their products, in -1 … 1: (cell, 5)."""
    y, x = (np.linspace(-1, 1, side) for side in grid)
    rows, columns = (values.ravel() for values in np.meshgrid(y, x, indexing="ij"))
    return np.stack([rows, columns, rows * columns, rows**2, columns**2], axis=1)


def explained(features: np.ndarray, predictors: np.ndarray) -> float:
    """Adjusted R² of features (cell, channel) on predictors (cell, predictor), weighted by variance.

    Adjusted, because least squares explain noise too: (predictor / (cell - 1)) of it, a third on a grid of 4 x 4.

    Returns:
        0 on average for unrelated features, NaN where there are too few cells to tell.
    """
    fit = LinearRegression().fit(predictors, features)
    cells, left = len(features), len(features) - 1 - fit.rank_
    if left < 1:
        return float("nan")
    plain = float(r2_score(features, fit.predict(predictors), multioutput="variance_weighted"))
    return 1 - (1 - plain) * (cells - 1) / left


def feature_timestep(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 6: the timestep of the clustered features."""
    grid = model.schedule(config.inversion.steps).timesteps
    values = on_grid(grid, (1, 101, 281, 481) if quick else (1, 101, 201, 281, 381, 481, 681))
    claims = [
        Direction(f"Table 6: t_f = {values[0]} beats t_f = {value}", "emerdiff", {"feature_timesteps": values[0]},
                  {"feature_timesteps": value})
        for value in values[1:] if value >= 200
    ]  # fmt: skip
    axis = Axis(values, "timestep", "timestep of the clustered features, t_f")
    return _segmented("feature_timestep", "At which timestep do features cluster into parts?", model, config,
                      {"feature_timesteps": axis}, claims)  # fmt: skip


def clusters(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 4: the number of masks K.

    Majority mIoU rises with K by construction, the paper's protocol need not: its claim gets no verdict.
    """
    values = (8, 12, 20) if quick else (4, 8, 12, 20, 30, 40)
    claims = [
        Direction(f"Table 4: K = 10 to 40 changes little (2 points): {one} and {other}", "emerdiff",
                  {"clusters": one}, {"clusters": other}, 2.0, comparable=False)
        for one, other in ((40, 12), (30, 20)) if {one, other} <= set(values)
    ]  # fmt: skip
    axis = Axis(values, "masks", "number of masks, K")
    return _segmented("clusters", "How many masks should there be?", model, config, {"clusters": axis}, claims)


def feature_layer(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 5: which of the probed block's attention layers is clustered, of the kind that is modulated."""
    layer = find_site(model, config.modulation.layer)
    parts: tuple[Part, ...] = ("query",) if quick else ("query", "heads", "output")
    values = tuple(
        site.name
        for part in parts
        for site in list_sites(model, stage=layer.stage, resolution=layer.resolution, kind=layer.kind, part=part)
    )
    first, *others = (name for name in values if name.endswith("query"))
    claims = [
        Direction(f"Table 5: {first} and {other} differ little (2 points)", "emerdiff", {"feature_sites": first},
                  {"feature_sites": other}, 2.0)
        for other in others
    ]  # fmt: skip
    axis = Axis(values, "", "site whose features are clustered")
    return _segmented("feature_layer", "Which layer's features make the best masks?", model, config,
                      {"feature_sites": axis}, claims)  # fmt: skip


def _segmented(
    name: str,
    question: str,
    model: ProbeModel,
    config: EmerDiffConfig,
    axes: Mapping[str, Axis],
    directions: Sequence[Direction],
) -> Study:
    """A study whose axes are settings of the clustering, scored before and after modulated denoising."""

    def measure(probed: ProbedImage, scene: Scene, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        asked = config.change(**unit)
        site = find_feature_sites(model, asked)
        coarse = probed.low_resolution_masks(site, asked.given_clusters, asked.features.timesteps)
        labels = upsampled(coarse, *scene.parts.shape)
        maps = probed.difference_maps(coarse, resolve_modulation(model, asked), smoothing=config.smoothing)
        score = {"bilinear": labels, "emerdiff": assign(maps).numpy()}
        return {(): {key: majority_confusion(found, scene.parts, len(PART_NAMES)) for key, found in score.items()}}

    timesteps = axes["feature_timesteps"].values if "feature_timesteps" in axes else config.features.timesteps
    return Study(
        name=name,
        question=question,
        axes=axes,
        measures={"bilinear": BILINEAR, "emerdiff": EMERDIFF},
        config=config,
        measure=measure,
        start=max(config.modulation.modulate_at, *(int(timestep) for timestep in timesteps)),
        directions=tuple(directions),
    )
