"""What every approximation costs in mIoU on the world, and what it saves in time: the front of quality and speed.

    python -m benchmarks.fast_modes --scenes 200 --clusters 12
    python -m benchmarks.fast_modes --scenes 200 --modes "3 steps; 1 step, latents; 2 steps, 4 draws"

Every mode is read off under sharpening, as `EmerDiffConfig.for_model` has it; the paper's exact mode beside them not.
Nor are the masks alone a mode: enlarged and sharpened without any push, they say what a push has to be worth.
Protocol: majority, as in `benchmarks.pocket_quality`; shares of exact mode's mIoU and gains over the paper's with 95%
paired bootstrap intervals over scenes. Seconds are those of whole segmentations, medians over scenes, on a machine that
should do nothing else. Finished scenes are kept in the store, so that a run that was stopped goes on, and more modes or
scenes can follow. The last lines name the fastest mode that keeps 98% of exact mode's mIoU, and the fastest that beats
the paper's exact mode: candidates for `fast` and `draft`, which photographs have to confirm (`emerdiff-probe evaluate
--denoising-steps …`), for on scenes sharpening hides what a push is worth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import typer
from plotly.subplots import make_subplots
from tqdm.auto import tqdm

from benchmarks.drawing import GREY, write_figure
from benchmarks.scores import Statistic, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, Scene, draw_scene
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.viz.figures import SHADES

EXACT, PAPER, MASKS = "exact", "exact, not sharpened", "masks alone"
BESIDE = (PAPER, MASKS)
"""What modes are held against, and are not chosen from."""
KEPT = 98.0
"""Percent of exact mode's mIoU that the fast mode has to keep."""
STEPS: Mapping[str, dict[str, Any]] = {
    "": {},
    "1 step": {"denoising_steps": 1},
    "2 steps": {"denoising_steps": 2},
    "3 steps": {"denoising_steps": 3},
    "5 steps": {"denoising_steps": 5},
    "8 steps": {"denoising_steps": 8},
    "10 steps": {"denoising_steps": 10},
    "skipping": {"skip_after": 2},
}
PATTERNS: Mapping[str, dict[str, Any]] = {
    "": {},
    **{f"{count} patterns": {"sign_patterns": count} for count in (6, 8, 10, 12, 16)},
}
READINGS: Mapping[str, dict[str, Any]] = {
    "": {},
    "latents": {"compare": "latents"},
    "one-sided": {"one_sided": True},
    "one-sided latents": {"one_sided": True, "compare": "latents"},
}
LEVELS: Mapping[str, dict[str, Any]] = {
    "": {},
    "1 shared level": {"shared_levels": 1},
    "2 shared levels": {"shared_levels": 2},
}
DRAWS: Mapping[str, dict[str, Any]] = {
    "": {},
    **{f"{count} draw{'s' * (count > 1)}": {"feature_draws": count} for count in (8, 4, 1)},
}
HELD_AGAINST: Mapping[str, dict[str, Any]] = {PAPER: {"sharpen": "none"}, MASKS: {}}
"""Switches of `BESIDE`: the exact readout as the paper reads it off, without sharpening; and none, for no push."""


def all_modes() -> dict[str, dict[str, Any]]:
    """Every choice of steps, patterns, reading, sharing and draws with every other, by name; the first is exact."""
    return {
        ", ".join(filter(None, (steps, patterns, reading, levels, draws))) or EXACT: (
            STEPS[steps] | PATTERNS[patterns] | READINGS[reading] | LEVELS[levels] | DRAWS[draws]
        )
        for steps, patterns, reading, levels, draws in product(STEPS, PATTERNS, READINGS, LEVELS, DRAWS)
        if not (steps == "1 step" and levels)  # what comes after the first step is shared
        if not (patterns and "one-sided" in reading)  # patterns are run both ways
    }


def front_modes() -> dict[str, dict[str, Any]]:
    """Those of all modes from which the front is drawn: each reading of a few steps, and the cheapest with fewer draws.

    Patterns of eight are among them for latents alone, and two shared levels for few steps: what else they were tried
    with was slower and worse.
    """
    steps = ("", "1 step", "2 steps", "3 steps", "5 steps", "skipping")
    asked = [
        (each, "", reading, level, "") for each in steps for reading in READINGS for level in ("", "1 shared level")
    ]
    asked += [(each, "8 patterns", "latents", "1 shared level", "") for each in steps]
    few = ("1 step", "2 steps", "3 steps", "skipping")
    levels = {each: "" if each == "1 step" else "1 shared level" for each in few}
    asked += [(each, "", "one-sided latents", levels[each], draws) for each in few for draws in DRAWS]
    asked += [(each, "", "one-sided latents", "2 shared levels", "") for each in ("2 steps", "3 steps", "skipping")]
    known = all_modes()
    names = [", ".join(filter(None, each)) or EXACT for each in asked]
    return {name: known[name] for name in names if name in known}


def some_modes(names: str) -> dict[str, dict[str, Any]]:
    """The exact mode, what modes are held against, and those named between semicolons; the front's when none is.

    Raises:
        InputError: there is no such mode.
    """
    known = all_modes()
    wanted = [name.strip() for name in names.split(";") if name.strip()] or list(front_modes())
    for name in wanted:
        if name not in known:
            raise InputError(f"no mode {name!r}; accepted: {'; '.join(known)}")
    return {EXACT: known[EXACT], **HELD_AGAINST} | {name: known[name] for name in wanted}


Made = dict[EmerDiffConfig, Segmentation]
"""Results of one scene, by what their difference maps depend on: one run serves for all readings."""


def score(model: ProbeModel, seed: int, config: EmerDiffConfig, made: Made) -> Arrays:
    """Confusion with the parts of a scene, and seconds of the whole and of every part of the work."""
    scene = draw_scene(seed)
    found = _find(model, scene, config, made)
    return _arrays(found.labels, scene, found.seconds)


def score_masks(model: ProbeModel, seed: int, config: EmerDiffConfig, made: Made) -> Arrays:
    """As `score`, of the same low-resolution masks without a push: enlarged bilinearly, and sharpened alike."""
    scene = draw_scene(seed)
    found = _find(model, scene, config, made)
    began = time.perf_counter()
    labels, _ = read_labels(one_hot_masks(found.low_resolution_masks).float(), scene.image, config.sharpen)
    seconds = found.seconds | {"modulate": 0.0, "assign": time.perf_counter() - began}
    return _arrays(labels, scene, seconds)


def _find(model: ProbeModel, scene: Scene, config: EmerDiffConfig, made: Made) -> Segmentation:
    maps = config.change(sharpen=None)
    if maps not in made:
        made[maps] = segment(model, scene.image, config)
    found = made[maps]
    return found if found.config == config else found.read(config.sharpen)


def _arrays(labels: np.ndarray, scene: Scene, seconds: Mapping[str, float]) -> Arrays:
    return {
        "confusion": majority_confusion(labels, scene.parts, len(PART_NAMES)).astype(np.uint32),
        "seconds": np.array(sum(seconds.values())),
        **{part: np.array(each) for part, each in seconds.items()},
    }


def measure(
    model: ProbeModel, seeds: Sequence[int], modes: Mapping[str, EmerDiffConfig], store: Path
) -> dict[str, list[Arrays]]:
    """Scores of every mode and scene, from the store where they are there already; scene by scene, modes in turn."""
    machine = (model.device.type, str(model.dtype), torch.get_num_threads())  # on which the seconds depend
    work = {name: score_masks if name == MASKS else score for name in modes}
    folders = {
        name: folder_of(store, asdict(config), model.fingerprint, *machine, *([MASKS] if name == MASKS else []))
        for name, config in modes.items()
    }
    scores: dict[str, list[Arrays]] = {name: [] for name in modes}
    for seed in tqdm(seeds, desc="scenes"):
        made: Made = {}
        for name, config in modes.items():
            scored = partial(work[name], model, seed, config, made)
            scores[name].append(kept(folders[name] / f"{seed}.safetensors", scored))
    return scores


def share(ours: Statistic, exact: Statistic) -> Statistic:
    """The mIoU in percent of exact mode's, on the same draws."""
    return lambda weights: 100 * ours(weights) / exact(weights)


def gain(ours: Statistic, paper: Statistic) -> Statistic:
    """The mIoU in points above the paper's, on the same draws."""
    return lambda weights: ours(weights) - paper(weights)


def report(scores: Mapping[str, Sequence[Arrays]]) -> pd.DataFrame:
    """One row a mode, the fastest first: mIoU, its share of exact mode's, its gain over the paper's, seconds (of the
    whole and of every part), and whether it is on the front.
    """
    statistics = {name: miou([scene["confusion"] for scene in scenes]) for name, scenes in scores.items()}
    seconds = {name: float(np.median([scene["seconds"] for scene in scenes])) for name, scenes in scores.items()}
    rows = []
    for name, scenes in scores.items():
        kept_share = rounded(bootstrap(share(statistics[name], statistics[EXACT]), len(scenes)))
        gained = rounded(bootstrap(gain(statistics[name], statistics[PAPER]), len(scenes)))
        parts = {
            part: round(float(np.median([scene[part] for scene in scenes])), 3)
            for part in scenes[0]
            if part not in {"confusion", "seconds"}
        }
        rows.append(
            {
                "mode": name,
                "miou": round(float(statistics[name](np.ones((1, len(scenes))))[0]), 2),
                "share": kept_share["miou"],
                "low": kept_share["low"],
                "high": kept_share["high"],
                "gain": gained["miou"],
                "gain_low": gained["low"],
                "gain_high": gained["high"],
                "seconds": round(seconds[name], 3),
                "speedup": round(seconds[EXACT] / seconds[name], 2),
                **parts,
            }
        )
    table = pd.DataFrame(rows).sort_values("seconds", kind="stable", ignore_index=True)
    own = table["miou"].mask(table["mode"].isin(BESIDE), -1.0)
    table["front"] = own > own.cummax().shift(fill_value=-1.0)
    return table


def choose(table: pd.DataFrame) -> dict[str, str | None]:
    """Candidates for `fast` and `draft`: names of modes, None where no mode is good enough."""
    own = table[~table["mode"].isin(BESIDE)]
    good = {"fast": own["share"] >= KEPT, "draft": own["gain_low"] > 0}
    return {choice: next(iter(own["mode"][held]), None) for choice, held in good.items()}


def pareto_figure(table: pd.DataFrame, clusters: int) -> go.Figure:
    """Every mode's speed and its share of exact mode's mIoU with an interval, a row a mode, the fastest on top."""
    colours = [SHADES[1] if front else GREY for front in table["front"]]
    names = [f"<i>{mode}</i>" if mode in BESIDE else mode for mode in table["mode"]]
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.4, 0.6])
    speeds = [f"{speed:.1f}" for speed in table["speedup"]]
    bars = go.Bar(x=table["speedup"], y=names, orientation="h", text=speeds, marker_color=colours)
    error = {"array": table["high"] - table["share"], "arrayminus": table["share"] - table["low"], "thickness": 1.5}
    marker = {"color": colours, "size": 9}
    shares = go.Scatter(x=table["share"], y=names, error_x=error, mode="markers", marker=marker)
    figure.add_trace(bars, 1, 1).add_trace(shares, 1, 2)
    figure.add_vline(x=100, line={"dash": "dot", "width": 1}, row=1, col=2)
    return figure.update_layout(
        title=f"Approximations of EmerDiff, K = {clusters}, sharpened; orange: none is faster and better",
        xaxis={"title": "times as fast as exact mode"},
        xaxis2={"title": "mIoU, % of exact mode's, with 95% intervals"},
        yaxis={"autorange": "reversed"},
        showlegend=False,
        template="simple_white",
        width=1000,
        height=140 + 26 * len(table),
    )


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    clusters: Annotated[int, typer.Option(help="Number of clusters.")] = 20,
    modes: Annotated[str, typer.Option(help="Names with semicolons between; those of the front when empty.")] = "",
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option()] = "float32",
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/fast_modes"),
    png: Annotated[Path | None, typer.Option(help="The figure as a picture, too; needs Chromium.")] = None,
) -> None:
    """Print the table, write the figure into the store and, as the last line, print one JSON object."""
    probed = load_model(model, device=device, dtype=precision)
    configs = {
        name: EmerDiffConfig.for_model(probed, clusters=clusters, **switches)
        for name, switches in some_modes(modes).items()
    }
    segment(probed, draw_scene(seed).image, configs[EXACT])  # the first run of a process is slower
    table = report(measure(probed, range(seed, seed + scenes), configs, store))
    chosen = choose(table)
    figure = store / f"pareto-{clusters}.html"
    write_figure(pareto_figure(table, clusters), figure, png)
    print(f"majority protocol, {scenes} held-out scenes from seed {seed}, K = {clusters}, {probed!r}\n")
    print(f"{table.to_string(index=False)}\n\n{figure}\n")
    print(f"keeps {KEPT:g}% of exact mode, the fastest: {chosen['fast']}")
    print(f"beats the paper's, the fastest: {chosen['draft']}\n")
    print(json.dumps({"clusters": clusters, "scenes": scenes, "chosen": chosen, "rows": table.to_dict("records")}))


if __name__ == "__main__":
    typer.run(main)
