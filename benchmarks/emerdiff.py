"""How fast EmerDiff is beside the paper written straightforwardly, and how equal.

    python -m benchmarks.emerdiff --model pocket --clusters 8 20 30
    python -m benchmarks.emerdiff --model pocket --clusters 12 --own --modes fast draft
    python -m benchmarks.emerdiff --model sd14-shape --size 192 --clusters 20 --repeats 1

Reference and library run in turn, each in a process of its own for every number of masks, on one scene of the world,
under the paper's settings; with `--own` the library under those that a user of the model gets. A first run of each is
not timed: it counts FLOP. Memory is what a run held at most beyond what was resident when the weights had been loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.reference import Paper, Reference
from benchmarks.shapes import SD14_SHAPE, load
from emerdiff_probe.evaluation.cost import measured
from emerdiff_probe.metrics.overlaps import majority_confusion, mean_iou
from emerdiff_probe.models.loading import find_device
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, Scene, draw_scene
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import paper_preset
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import find_site

LIBRARY = {"exact": EmerDiffConfig.for_model, "fast": EmerDiffConfig.fast, "draft": EmerDiffConfig.draft}
"""Settings of the library's modes by name."""
MODES = ("reference", *LIBRARY)
SIZE_ON_CPU = 192
"""Pixels at which Stable Diffusion's architecture ends in minutes on two cores."""


@dataclass(frozen=True)
class Setup:
    """What is measured, on what; `own` is whether the library runs by the model's own settings, not the paper's."""

    model: str
    device: str
    precision: str
    size: int | None
    scene: int
    steps: int
    modulate_at: int
    own: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """One segmentation and what it took.

    Attributes:
        seconds: of the whole, from an image in memory to labels.
        mebibytes: the most held beyond what the loaded model did, None where the system does not tell.
        rows, calls: of the denoiser: images it was asked for, and times it was called.
        flop: counted, if this run counts them.
        labels, maps, coarse: the result.
    """

    seconds: float
    mebibytes: float | None
    rows: int
    calls: int
    flop: int | None
    labels: np.ndarray
    maps: np.ndarray
    coarse: np.ndarray


def run(setup: Setup, mode: str, clusters: int, counting: bool) -> Run:
    """Segment the scene once in this process, whose model stays loaded for the next time."""
    model, _, loaded = _loaded(setup)
    segmenter = _reference(setup, clusters) if mode == "reference" else _library(setup, mode, clusters)
    asked: list[int] = []

    def count(_: Any, args: tuple[Any, ...], __: Any) -> None:
        asked.append(len(args[0]))

    counter = _flop_counter() if counting else nullcontext()
    handle = model.denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with counter:
            (labels, maps, coarse), cost = measured(segmenter, model.device)
    finally:
        handle.remove()
    return Run(
        seconds=cost.seconds,
        mebibytes=None if cost.peak_mib is None else max(0.0, cost.peak_mib - loaded),
        rows=sum(asked),
        calls=len(asked),
        flop=counter.get_total_flops() if isinstance(counter, FlopCounterMode) else None,
        labels=labels,
        maps=maps,
        coarse=coarse,
    )


@cache
def _loaded(setup: Setup) -> tuple[ProbeModel, Scene, float]:
    """The model, the scene, and MiB in use with them loaded."""
    model = load(setup.model, setup.device, setup.precision, setup.size)
    scene = draw_scene(setup.scene, height=model.native_size, width=model.native_size)
    return model, scene, held(model.device)


def _library_config(setup: Setup, mode: str, clusters: int) -> EmerDiffConfig:
    model, _, _ = _loaded(setup)
    return LIBRARY[mode](model, clusters=clusters) if setup.own else _paper_config(setup, mode, clusters)


def _paper_config(setup: Setup, mode: str, clusters: int) -> EmerDiffConfig:
    """The paper's features, layers and reading, as the yardstick's."""
    model, _, _ = _loaded(setup)
    changes: dict[str, Any] = {"clusters": clusters, "steps": setup.steps, "modulate_at": setup.modulate_at}
    changes |= {"feature_timesteps": 1, "feature_draws": 1, "sharpen": "none"}
    paper = paper_preset(model).options
    changes |= {name: paper[name] for name in ("feature_sites", "layer")}
    return LIBRARY[mode](model, **changes)


Result = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels (height, width), difference maps (mask, height, width), low-resolution masks (grid_height, grid_width)."""


def _library(setup: Setup, mode: str, clusters: int) -> Callable[[], Result]:
    model, scene, _ = _loaded(setup)
    config = _library_config(setup, mode, clusters)

    def work() -> Result:
        found = segment(model, scene.image, config)
        return found.labels, found.difference_maps, found.low_resolution_masks

    return work


def _reference(setup: Setup, clusters: int) -> Callable[[], Result]:
    model, scene, _ = _loaded(setup)
    config = _paper_config(setup, "exact", clusters)
    model.pipeline.scheduler = model.scheduler
    paper = Paper(
        clusters=clusters,
        block=".".join(find_site(model, config.modulation.layer).path.split(".")[:2]),
        strength=config.modulation.strength,
        modulate_at=config.modulation.modulate_at,
        steps=config.inversion.steps,
        smoothing=config.smoothing,
        seed=config.seed,
    )
    pixels = model.to_tensor(scene.image)
    return lambda: Reference(model.pipeline, paper).segment(pixels)


def held(device: torch.device) -> float:
    """MiB in use now, of the kind that `measured` gives the peak of."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20


def _flop_counter() -> FlopCounterMode:
    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch knows the others
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def matrix_product_ceiling(setup: Setup) -> float:
    """FLOP a second of a large square matrix product, the best of several, as the most that can be reached here."""
    device = find_device(setup.device)
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.ones(side, side, device=device, dtype=getattr(torch, setup.precision))
    seconds = []
    for _ in range(7):
        _, cost = measured(lambda: matrix @ matrix, device)
        seconds.append(cost.seconds)
    return 2 * side**3 / min(seconds)


def compare(
    setup: Setup, modes: Sequence[str], clusters: int, repeats: int, pools: dict[str, ProcessPoolExecutor]
) -> dict[str, list[Run]]:
    """Runs of every mode: first the one that counts, then timed ones, the modes in turn."""
    runs: dict[str, list[Run]] = {mode: [] for mode in modes}
    for repeat in range(repeats + 1):
        for mode in modes:
            began = time.perf_counter()
            runs[mode].append(pools[mode].submit(run, setup, mode, clusters, repeat == 0).result())
            kind = "counted" if repeat == 0 else f"run {repeat}"
            print(f"# K = {clusters}, {mode}, {kind}: {time.perf_counter() - began:.1f} s", flush=True)
    return runs


def figures(runs: list[Run]) -> dict[str, Any]:
    """What the runs of one mode took: the first one counted, the others are timed."""
    counted, timed = runs[0], [one.seconds for one in runs[1:]]
    held = [one.mebibytes for one in runs if one.mebibytes is not None]
    return {
        "seconds": round(median(timed), 4),
        "fastest": round(min(timed), 4),
        "slowest": round(max(timed), 4),
        "mebibytes": round(max(held), 1) if held else None,
        "passes": counted.rows,
        "calls": counted.calls,
        "tera_flop": round((counted.flop or 0) / 1e12, 4),
        "giga_flop_per_second": round((counted.flop or 0) / 1e9 / median(timed), 1),
    }


def agreement(ours: Run, reference: Run) -> dict[str, Any]:
    """How equal two results are; the largest difference of the maps is relative to the reference's largest value."""
    same_masks = np.array_equal(ours.coarse, reference.coarse)
    difference = np.abs(ours.maps - reference.maps).max() / reference.maps.max() if same_masks else None
    return {
        "same_low_resolution_masks": same_masks,
        "max_relative_difference": None if difference is None else float(difference),
        "label_agreement": float((ours.labels == reference.labels).mean()),
    }


def scene_miou(labels: np.ndarray, scene: Scene) -> float:
    """MIoU of one scene, majority protocol."""
    return float(mean_iou(majority_confusion(labels, scene.parts, len(PART_NAMES))))


def rows_of(setup: Setup, clusters: int, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """One JSON object for every mode but the reference."""
    reference, expected = figures(runs["reference"]), runs["reference"][-1]
    rows = []
    for mode in (mode for mode in runs if mode != "reference"):
        ours, found = figures(runs[mode]), runs[mode][-1]
        memory = ours["mebibytes"] / reference["mebibytes"] if ours["mebibytes"] and reference["mebibytes"] else None
        row = {
            "mode": mode,
            "model": setup.model,
            "clusters": clusters,
            "speedup": round(reference["seconds"] / ours["seconds"], 3),
            "memory_ratio": None if memory is None else round(memory, 3),
            **agreement(found, expected),
            "miou_ratio": None,
        }
        if setup.model != SD14_SHAPE:  # random weights segment nothing
            height, width = expected.labels.shape
            scene = draw_scene(setup.scene, height=height, width=width)
            row["miou_ratio"] = round(scene_miou(found.labels, scene) / scene_miou(expected.labels, scene), 4)
        rows.append({**row, "ours": ours, "reference": reference})
    return rows


def show(clusters: int, runs: dict[str, list[Run]], ceiling: float) -> None:
    """Print the table of one number of masks."""
    table = pd.DataFrame({mode: figures(made) for mode, made in runs.items()}).T
    table["share_of_ceiling"] = [f"{1e9 * rate / ceiling:.0%}" for rate in table["giga_flop_per_second"]]
    print(f"\nK = {clusters}\n{table.to_string()}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for every number of masks and, as the last line, one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emerdiff", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pocket", help=f"pocket, {SD14_SHAPE}, or a folder")
    parser.add_argument("--clusters", type=int, nargs="+", default=[8, 20, 30], help="numbers of masks")
    parser.add_argument("--device", default=None, help="cpu, cuda, mps; the fastest that is there")
    parser.add_argument("--precision", default="float32", help="float32, float16, bfloat16")
    parser.add_argument("--modes", nargs="+", choices=MODES[1:], default=list(MODES[1:]))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--size", type=int, default=None, help=f"pixels of a side, for {SD14_SHAPE}")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--modulate-at", type=int, default=281)
    parser.add_argument("--own", action="store_true", help="the library by the model's own settings")
    parser.add_argument("--scene", type=int, default=0, help="seed of the scene")
    given = parser.parse_args(arguments)
    device = find_device(given.device)
    size = given.size or (SIZE_ON_CPU if given.model == SD14_SHAPE and device.type == "cpu" else None)
    where = given.model, str(device), given.precision, size
    setup = Setup(*where, given.scene, given.steps, given.modulate_at, given.own)
    modes = ("reference", *given.modes)
    ceiling = matrix_product_ceiling(setup)
    print(f"{setup}\n{torch.get_num_threads()} threads; matrix product {ceiling / 1e9:.0f} GFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    for clusters in given.clusters:
        with ExitStack() as stack:
            pools = {mode: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for mode in modes}
            runs = compare(setup, modes, clusters, given.repeats, pools)
        show(clusters, runs, ceiling)
        rows.extend(rows_of(setup, clusters, runs))
    print(pd.DataFrame(rows).drop(columns=["ours", "reference", "model"]).to_string(index=False))
    print(json.dumps({"rows": rows, "ceiling_giga_flop_per_second": round(ceiling / 1e9, 1)}))


if __name__ == "__main__":
    main()
