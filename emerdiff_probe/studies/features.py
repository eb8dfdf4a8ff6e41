"""Studies of what the denoiser's features hold: which layers, timesteps and numbers of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import adjusted_rand
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.correspondence import Readout
from emerdiff_probe.reading.features import upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.segmentation.segment import segment_probed
from emerdiff_probe.sites import Part, Site, find_site, list_sites
from emerdiff_probe.studies.study import (
    Axis,
    Cell,
    Direction,
    Measure,
    Measured,
    Study,
    Subject,
    Value,
    on_grid,
    probed_block,
)
from emerdiff_probe.studies.truth import Truth, one_truth, over_people, require_disjoint

CONSENSUS = Measure("agreement of the low-resolution masks with those of all other cells of the study", "adjusted Rand "
                    "index", "consensus", True)  # fmt: skip
"""Which says without labels which features are good ones: what most of them find is in the picture."""


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


def majority_label(labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The label that fills most of every cell, `IGNORED` where it knows none: labels (height, width) to (cell,)."""
    return np.array([np.bincount(pixels + 1)[1:].argmax() if (pixels >= 0).any() else IGNORED
                     for pixels in by_cell(labels.astype(np.int64), grid)])  # fmt: skip


def layers(
    model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False, fit_on: DataSet | None = None
) -> Study:
    """Every site of the denoiser at several timesteps: how semantic, and how much is only position or colour."""
    if config.readout != Readout():
        raise InputError("study layers modulates nothing, so that no approximation changes it; accepted: exact readout")
    truth, grid = Truth.of(data), model.schedule(config.inversion.steps).timesteps
    sites = cell_sites(model)
    if quick:
        near = [site for site in sites if site.layer and site.part in {"query", "output"}]
        sites = [site for site in near if site.stage in {"up", "single"}] or near
    timesteps = on_grid(grid, config.features.timesteps if quick else (1, 101, 281, 481))
    by_name = {site.name: site for site in sites}
    probes = _LinearProbes(model, config, sites, fit_on if truth.classes else None)
    if probes.data is not None:
        require_disjoint(probes.data, data, "study layers")

    def masks(subject: Subject, site: Site | Sequence[Site], timestep: int | Sequence[int]) -> np.ndarray:
        rows, columns = subject.probed.grid(site)
        return subject.probed.low_resolution_masks(site, min(config.given_clusters, rows * columns), timestep)

    def clustered(subject: Subject, site: Site | Sequence[Site], timestep: int | Sequence[int]) -> np.ndarray:
        return upsampled(masks(subject, site, timestep), *subject.image.shape[:2])

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        timestep = unit["timestep"]
        subject.probed.capture(sites, timestep)
        return {(name,): about(subject, site, timestep) for name, site in by_name.items()}

    def about(subject: Subject, site: Site, timestep: int) -> Measured:
        sample, cells = subject.sample, subject.probed.grid(site)
        features, labels = subject.probed.features(site, timestep).numpy(), clustered(subject, site, timestep)
        found: dict[str, Any] = {
            **truth.measure_score("clusters", labels, sample),
            "consensus": masks(subject, site, timestep).astype(np.uint16),
            **truth.measure_alone(
                labels,
                subject.image,
                lambda: clustered(subject, find_feature_sites(model, config), config.features.timesteps),
                lambda: clustered(subject.reseeded, site, timestep),
            ),
        }
        if truth.labelled:
            found["adjusted_rand"] = over_people(adjusted_rand, labels, sample)
        if probes.data is not None:
            found["linear_probe"] = probes.accuracy(site, timestep, features, majority_label(one_truth(sample), cells))
        found["position"] = explained(features, position_of(cells))
        found["colour"] = explained(features, by_cell(subject.image, cells).mean(1) / 255)
        return found

    measures, left_out = _layer_measures(truth, fitted=probes.data is not None)
    return Study(
        name="layers",
        question="Which layers hold features whose clusters are parts, and which hold only position or colour?",
        axes={
            "site": Axis(tuple(by_name), "", "site, in the order in which the denoiser runs them"),
            "timestep": Axis(timesteps, "timestep", "timestep of the features"),
        },
        measures=measures,
        config=config,
        measure=measure,
        together=("site",),
        start=max(*timesteps, config.start),
        parameters=probes.identity(),
        directions=_layer_directions(model, config, by_name, timesteps),
        left_out=left_out,
        prepare=lambda units: probes.fit(sorted({int(unit["timestep"]) for unit in units})),
    )


def _layer_measures(truth: Truth, *, fitted: bool) -> tuple[dict[str, Measure], dict[str, str]]:
    """What is measured of every site, and what is left out, and why."""
    measures = truth.score("clusters", "the low-resolution masks, upsampled") | {"consensus": CONSENSUS} | truth.alone()
    left_out = truth.left_out("clusters", "adjusted_rand")
    if truth.labelled:
        measures["adjusted_rand"] = Measure("adjusted Rand index of clusters and labels", "", "mean", True)
    if fitted:
        measures["linear_probe"] = Measure("accuracy of a linear probe for the label of a cell", "%", "mean", True)
    else:
        left_out["linear_probe"] = "no labelled samples to fit it on" if truth.classes else "the data has no classes"
    measures["position"] = Measure("variance of the features that position explains", "adjusted R²", "mean", False)
    measures["colour"] = Measure("variance of the features that the cell's mean colour explains", "adjusted R²",
                                 "mean", False)  # fmt: skip
    return measures, left_out


def _layer_directions(
    model: ProbeModel, config: EmerDiffConfig, sites: Mapping[str, Site], timesteps: Sequence[int]
) -> tuple[Direction, ...]:
    queries = [site.name for site in list_sites(model, **probed_block(model, config), kind="cross", part="query")]
    known = [name for name in queries if name in sites]
    directions = [
        Direction(f"Table 5: {known[0]} and {other} differ little (2 points)", "clusters", {"site": known[0]},
                  {"site": other}, 2.0)
        for other in known[1:]
    ]  # fmt: skip
    if len(timesteps) > 1 and known:
        early: dict[str, Value] = {"site": known[0], "timestep": timesteps[0]}
        late: dict[str, Value] = {"site": known[0], "timestep": timesteps[-1]}
        directions.append(Direction(f"Table 6: t = {timesteps[0]} beats t = {timesteps[-1]}", "clusters", early, late))
    return tuple(directions)


class _LinearProbes:
    """Linear classifiers (ridge) of a cell's label from its features, a site and timestep each; none without data."""

    def __init__(self, model: ProbeModel, config: EmerDiffConfig, sites: Sequence[Site], data: DataSet | None) -> None:
        self.model, self.config, self.sites, self.data = model, config, sites, data
        self.fitted: dict[tuple[int, str], Any] = {}

    def identity(self) -> dict[str, Any]:
        """What the probes depend on, as JSON values."""
        if self.data is None:
            return {}
        return {"fit_on": self.data.identity() | {"samples": list(self.data.names)}}

    def fit(self, timesteps: Sequence[int]) -> None:
        """Fit those of some timesteps on every sample that can be read."""
        wanted = [timestep for timestep in timesteps if (timestep, self.sites[0].name) not in self.fitted]
        if self.data is None or not wanted:
            return
        features: dict[tuple[int, str], list[np.ndarray]] = {}
        labels: dict[tuple[int, str], list[np.ndarray]] = {}
        for place in range(len(self.data)):
            sample = self.data[place]
            probed = self.config.probe(self.model, sample.pixels(), start=max(wanted))
            for timestep in wanted:
                probed.capture(self.sites, timestep)
                for site in self.sites:
                    found = majority_label(one_truth(sample), probed.grid(site))
                    held = probed.features(site, timestep).numpy()
                    features.setdefault((timestep, site.name), []).append(held[found != IGNORED])
                    labels.setdefault((timestep, site.name), []).append(found[found != IGNORED])
        for key in features:
            probe = make_pipeline(StandardScaler(), RidgeClassifier())
            self.fitted[key] = probe.fit(np.concatenate(features[key]), np.concatenate(labels[key]))

    def accuracy(self, site: Site, timestep: int, features: np.ndarray, labels: np.ndarray) -> float:
        """Share of the cells (cell,) whose label is told right, in percent; NaN where none has a label."""
        known = labels != IGNORED
        if not known.any():
            return float("nan")
        return 100 * float(np.mean(self.fitted[timestep, site.name].predict(features[known]) == labels[known]))


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


def feature_timestep(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 6: the timestep of the clustered features."""
    grid = model.schedule(config.inversion.steps).timesteps
    values = on_grid(grid, (1, 101, 281, 481) if quick else (1, 101, 201, 281, 381, 481, 681))
    claims = [
        Direction(f"Table 6: t_f = {values[0]} beats t_f = {value}", "emerdiff", {"feature_timesteps": values[0]},
                  {"feature_timesteps": value})
        for value in values[1:] if value >= 200
    ]  # fmt: skip
    axis = Axis(values, "timestep", "timestep of the clustered features, t_f")
    return _segmented("feature_timestep", "At which timestep do features cluster into parts?", model, data, config,
                      {"feature_timesteps": axis}, claims)  # fmt: skip


def clusters(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
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
    return _segmented("clusters", "How many masks should there be?", model, data, config, {"clusters": axis}, claims)


def feature_layer(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 5: which of the probed block's attention layers is clustered, of the kind that is modulated."""
    parts: tuple[Part, ...] = ("query",) if quick else ("query", "heads", "output")
    layer = find_site(model, config.modulation.layer)
    values = tuple(
        site.name
        for part in parts
        for site in list_sites(model, stage=layer.stage, resolution=layer.resolution, kind=layer.kind, part=part)
    )
    first, *others = (name for name in values if name.endswith(parts[0]))
    claims = [
        Direction(f"Table 5: {first} and {other} differ little (2 points)", "emerdiff", {"feature_sites": first},
                  {"feature_sites": other}, 2.0)
        for other in others
    ]  # fmt: skip
    axis = Axis(values, "", "site whose features are clustered")
    return _segmented("feature_layer", "Which layer's features make the best masks?", model, data, config,
                      {"feature_sites": axis}, claims)  # fmt: skip


def _segmented(
    name: str,
    question: str,
    model: ProbeModel,
    data: DataSet,
    config: EmerDiffConfig,
    axes: Mapping[str, Axis],
    directions: Sequence[Direction],
) -> Study:
    """A study whose axes are settings of the clustering, scored before and after modulated denoising."""
    truth, agree = Truth.of(data), "clusters" not in axes  # other numbers of masks cannot agree

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        sample, found = subject.sample, dict[str, Any]()
        segments = segment_probed(subject.probed, config.change(**unit))
        labels, coarse = segments.labels, segments.low_resolution_masks
        if truth.labelled:
            found |= truth.measure_score("bilinear", upsampled(coarse, *subject.image.shape[:2]), sample)
        if agree:
            found["consensus"] = coarse.astype(np.uint16)
        found |= truth.measure_score("emerdiff", labels, sample)
        found |= truth.measure_alone(
            labels, subject.image, lambda: subject.segments, lambda: subject.reseeded.segment(unit)
        )
        return {(): found}

    timesteps = axes["feature_timesteps"].values if "feature_timesteps" in axes else config.features.timesteps
    return Study(
        name=name,
        question=question,
        axes=axes,
        measures=truth.score("bilinear", "the low-resolution masks, upsampled bilinearly")
        | truth.score("emerdiff", "EmerDiff")
        | ({"consensus": CONSENSUS} if agree else {})
        | truth.alone(),
        config=config,
        measure=measure,
        start=max(config.start, *(int(timestep) for timestep in timesteps)),
        directions=tuple(directions),
        left_out=truth.left_out("bilinear", "emerdiff"),
    )
