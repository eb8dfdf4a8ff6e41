"""How far each criterion without labels agrees with mIoU, on many labelled pictures and settings that nothing chose.

    python -m benchmarks.criteria --data world:200,first=900000 --clusters 12
    python -m benchmarks.criteria --data folder:PHOTOGRAPHS,ignore=various,count=100 --model photo --clusters 10

The preset and all combinations of --layer, --modulate-at and --strength push the same masks, read fast. A criterion's
rank correlation is with the gain in mIoU over the enlarged masks (majority protocol), over settings, once of plain
labels and masks and once of both sharpened; 95% intervals by bootstrap over pictures. Regret: the highest gain less
that of the setting that a criterion is highest for on a few of the pictures, points over all of them, mean over draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from scipy.stats import rankdata

from benchmarks.scores import Statistic, difference, miou
from benchmarks.store import folder_of
from emerdiff_probe.calibration.criteria import CRITERIA, OPTIONAL, RANKED, SEEDS
from emerdiff_probe.calibration.job import ENLARGED, PUSHED, SHARP_ENLARGED, SHARP_PUSHED, CalibrationJob
from emerdiff_probe.calibration.result import MEAN_RANK
from emerdiff_probe.calibration.space import Setting, Space
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.run import Run, run
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import approximations

LAYERS = "up16.cross1.output,down16.self0.output,up16.self2.output"
TRUTHS = {"plain": (PUSHED, ENLARGED), "sharpened": (SHARP_PUSHED, SHARP_ENLARGED)}
"""What criteria are held against: confusions of labels and of masks."""
FEW = (3, 6, 12, 24)
"""Numbers of pictures that regret is told for."""
DRAWS = 2000
"""Of so many pictures each."""


def make_job(
    model: ProbeModel, clusters: int, classes: int, around: Sequence[Sequence[Any]], seeds: bool
) -> CalibrationJob:
    """As `calibrate` measures, of fixed settings: the preset first, then every layer, timestep and strength together.

    Settings that cannot differ are one.
    """
    config = EmerDiffConfig().change(clusters=clusters).resolve(model)
    measured = config.change(**approximations("fast", model))
    space = Space.of(model, measured, ("layer", "modulate_at", "strength"))
    settings = [space.preset]
    for layer, timestep, strength in product(*around):
        changed = space.preset.change("layer", layer).change("modulate_at", timestep).change("strength", strength)
        if timestep not in space.values["modulate_at"]:
            raise InputError(f"timestep {timestep}; accepted: {', '.join(map(str, space.values['modulate_at']))}")
        settings.append(changed)
    unified = tuple(dict.fromkeys(space.unify(setting) for setting in settings))
    start = max(config.start, *(setting.modulate_at for setting in unified))
    return CalibrationJob(measured, start, classes, seeds, unified)


def gains_of(made: Run, settings: Sequence[Setting], truth: str = "plain") -> list[Statistic]:
    """By setting, the gain in mIoU over the masks, points, from how often every picture was drawn."""
    found = []
    for setting in settings:
        records = [made.record(name, tuple(setting)) for name in made.names]
        pushed, enlarged = ([record[which] for record in records] for which in TRUTHS[truth])
        found.append(difference(miou(pushed), miou(enlarged)))
    return found


def criteria_of(made: Run, settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    """By criterion, (setting, picture); what overflowed is below any other."""
    record = made.record(made.names[0], tuple(settings[0]))
    names = (*CRITERIA, *(name for name in OPTIONAL if name in record))
    values = {
        name: np.array([[made.record(picture, tuple(one))[name] for picture in made.names] for one in settings])
        for name in names
    }
    return {name: np.nan_to_num(array.astype(float), nan=-1e9) for name, array in values.items()}


def averaged(criteria: dict[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """By criterion its mean over drawn pictures, (draw, setting), and the mean rank of several."""
    means = {name: weights @ values.T / weights.sum(1, keepdims=True) for name, values in criteria.items()}
    ranked = [*RANKED, SEEDS] if SEEDS in criteria else RANKED
    return means | {MEAN_RANK: np.mean([rankdata(means[name], axis=1) for name in ranked], axis=0)}


def rank_correlation(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman's of each draw, from (draw, setting) both."""
    first, second = (rankdata(array, axis=1) for array in (values, truth))
    first, second = (array - array.mean(1, keepdims=True) for array in (first, second))
    spread = np.sqrt(np.square(first).sum(1) * np.square(second).sum(1))
    correlation: np.ndarray = (first * second).sum(1) / np.maximum(spread, 1e-12)
    return correlation


def summarise(criteria: dict[str, np.ndarray], gains: Sequence[Statistic], pictures: int) -> pd.DataFrame:
    """A row a criterion, the best first: its rank correlation with an interval, and regrets by number of pictures."""
    everything = np.ones((1, pictures))
    truth = np.array([float(gain(everything)[0]) for gain in gains])
    generator = np.random.default_rng(0)
    rows = []
    picks = {
        few: np.stack([np.bincount(generator.permutation(pictures)[:few], minlength=pictures) for _ in range(DRAWS)])
        for few in FEW
        if few < pictures
    }
    chosen = {few: averaged(criteria, weights) for few, weights in picks.items()}
    for name in averaged(criteria, everything):
        correlation = bootstrap(
            lambda weights, name=name: rank_correlation(  # type: ignore[misc]
                averaged(criteria, weights)[name], np.stack([gain(weights) for gain in gains], axis=1)
            ),
            pictures,
        )
        row: dict[str, Any] = {"criterion": name, "rank correlation": correlation.value}
        row |= {"low": correlation.low, "high": correlation.high}
        row |= {f"regret, {few}": float((truth.max() - truth[chosen[few][name].argmax(1)]).mean()) for few in picks}
        rows.append(row)
    order = sorted(rows, key=lambda row: -row["rank correlation"])
    return pd.DataFrame(order).round(2)


def list_settings(
    settings: Sequence[Setting],
    criteria: dict[str, np.ndarray],
    gains: Mapping[str, Sequence[Statistic]],
    pictures: int,
) -> pd.DataFrame:
    """A row a setting, the highest gain in mIoU first: gains with their intervals, and every criterion times 100."""
    rows = []
    for place, setting in enumerate(settings):
        row = {name: getattr(setting, name) for name in ("layer", "modulate_at", "strength")} | {"preset": place == 0}
        for truth, found in gains.items():
            interval = bootstrap(found[place], pictures)
            row |= {f"{truth} mIoU gain": interval.value, f"{truth} low": interval.low, f"{truth} high": interval.high}
        rows.append(row | {name: 100 * values[place].mean() for name, values in criteria.items()})
    rows.sort(key=lambda row: -row["plain mIoU gain"])
    return pd.DataFrame(rows).round(2)


def main(
    data: Annotated[str, typer.Option(help="Labelled data, as `evaluate` takes it.")] = "world:200,first=900000",
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    layer: Annotated[str, typer.Option(help="Layers that are pushed, with commas.")] = LAYERS,
    modulate_at: Annotated[str, typer.Option(help="Timesteps, with commas.")] = "601",
    strength: Annotated[str, typer.Option(help="Strengths, with commas.")] = "30,95,950",
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Also labels under two draws of noise; twice as long.")
    ] = False,
    store: Annotated[Path, typer.Option(help="Where records are kept.")] = Path("out/criteria"),
) -> None:
    """Print both tables and, as the last line, one JSON object."""
    probed = load_model(model, device="cpu")
    samples = open_data(data, side=probed.native_size)
    if not samples.labelled:
        raise InputError(f"{samples.name} has no labels, which criteria are held against")
    layers, timesteps, strengths = (given.split(",") for given in (layer, modulate_at, strength))
    around = layers, [int(value) for value in timesteps], [float(value) for value in strengths]
    job = make_job(probed, clusters, len(samples.classes), around, seeds)
    folder = folder_of(store, probed.fingerprint, samples.identity(), job.identity())
    made = run(probed, job, samples, store=folder / "records", progress=True)
    count, criteria = len(made.names), criteria_of(made, job.settings)
    sharpened = job.config.sharpen != "none"
    gains = {truth: gains_of(made, job.settings, truth) for truth in TRUTHS if truth == "plain" or sharpened}
    settings = list_settings(job.settings, criteria, gains, count)
    print(f"{probed.name}, K = {clusters}, {count} images of {data}\n\n{settings.to_string(index=False)}\n")
    told: dict[str, Any] = {"settings": settings.to_dict("records")}
    for truth, found in gains.items():
        table = summarise(criteria, found, count)
        print(f"{truth} labels, {len(settings)} settings\n{table.to_string(index=False)}\n")
        told[f"criteria, {truth}"] = table.to_dict("records")
    print(json.dumps(told | {"images": count, "skipped": len(made.skipped)}))


if __name__ == "__main__":
    typer.run(main)
