"""How close a response atlas is to running the masks themselves, and how fast it answers.

    python -m benchmarks.atlas --scenes 10

For every scene: the atlas of all cells is made once, then the difference maps of several numbers of k-means masks are
read from it and are also made by modulated denoising of each mask. The table has the correlation of the two maps
(median over masks and scenes), the share of pixels with the same label, and the mIoU of both (majority protocol), with
95% bootstrap intervals over scenes. Milliseconds are those of one answer: from masks to labels. Finished scenes are
kept in the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from tqdm.auto import tqdm

from benchmarks.scores import Statistic, difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, draw_scene
from emerdiff_probe.reading.atlas import ResponseAtlas, response_atlas
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config

ANSWERS = 5
"""Times that an answer is asked for; the fastest is reported."""


def score(model: ProbeModel, seed: int, config: EmerDiffConfig, clusters: Sequence[int]) -> Arrays:
    """Both kinds of difference maps of one scene, compared."""
    scene = draw_scene(seed, height=model.native_size, width=model.native_size)
    site, modulation = check_config(model, config, *scene.image.shape[:2])
    probed = config.probe(model, scene.image)
    began = time.perf_counter()
    atlas = response_atlas(model, probed.trajectory, modulation)
    found: Arrays = {"seconds": np.array(time.perf_counter() - began)}
    for count in clusters:
        coarse = probed.low_resolution_masks(site, count, config.features.timesteps)
        masks = probed.masks(coarse, modulation.site)
        read = atlas.difference_maps(masks, smoothing=config.smoothing)
        run = probed.difference_maps(coarse, modulation, smoothing=config.smoothing)
        labels = [assign(maps).numpy() for maps in (read, run)]
        confusions = [majority_confusion(each, scene.parts, len(PART_NAMES)).astype(np.uint32) for each in labels]
        pairs = zip(read.flatten(1).numpy(), run.flatten(1).numpy(), strict=True)
        found |= {
            f"{count} correlation": np.array([np.corrcoef(*pair)[0, 1] for pair in pairs]),
            f"{count} agreement": np.array((labels[0] == labels[1]).mean()),
            f"{count} read": confusions[0],
            f"{count} run": confusions[1],
            f"{count} milliseconds": np.array(1000 * _answer_seconds(atlas, masks, config.smoothing)),
        }
    return found


def _answer_seconds(atlas: ResponseAtlas, masks: Any, smoothing: float) -> float:
    times = []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        assign(atlas.difference_maps(masks, smoothing=smoothing))
        times.append(time.perf_counter() - began)
    return min(times)


def report(scores: Sequence[Arrays], clusters: Sequence[int]) -> pd.DataFrame:
    """One row a number of masks."""
    rows = []
    for count in clusters:
        correlation, agreement, read, run, milliseconds = (
            [scene[f"{count} {name}"] for scene in scores]
            for name in ("correlation", "agreement", "read", "run", "milliseconds")
        )
        agreed = rounded(bootstrap(_mean(100 * np.array(agreement)), len(scores)))
        lost = rounded(bootstrap(difference(miou(read), miou(run)), len(scores)))
        once = np.ones((1, len(scores)))
        rows.append(
            {
                "clusters": count,
                "correlation": round(float(np.median(np.concatenate(correlation))), 4),
                "agreement": agreed["miou"],
                "agreement_low": agreed["low"],
                "agreement_high": agreed["high"],
                "miou_run": round(float(miou(run)(once)[0]), 2),
                "miou_read": round(float(miou(read)(once)[0]), 2),
                "difference_low": lost["low"],
                "difference_high": lost["high"],
                "milliseconds": round(float(np.median(milliseconds)), 1),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> Statistic:
    return lambda weights: weights @ values / weights.sum(1)


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    clusters: Annotated[str, typer.Option(help="Numbers of masks with commas.")] = "8,12,20",
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    steps: Annotated[int | None, typer.Option(help="Of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option()] = None,
    layer: Annotated[str | None, typer.Option(help="That is pushed; the preset's by default.")] = None,
    strength: Annotated[float | None, typer.Option(help="Of the push; the preset's by default.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/atlas"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    probed = load_model(model, device=device, dtype="float32")
    asked = {"steps": steps, "modulate_at": modulate_at, "layer": layer, "strength": strength}
    config = EmerDiffConfig.for_atlas(probed, **{name: value for name, value in asked.items() if value is not None})
    counts = [int(count) for count in clusters.split(",")]
    folder = folder_of(store, asdict(config), counts, probed.fingerprint, probed.device.type, torch.get_num_threads())
    scores = [
        kept(folder / f"{each}.safetensors", partial(score, probed, each, config, counts))
        for each in tqdm(range(seed, seed + scenes), desc="scenes")
    ]
    table = report(scores, counts)
    seconds = float(np.median([scene["seconds"] for scene in scores]))
    print(f"majority protocol, {scenes} held-out scenes from seed {seed}, an atlas takes {seconds:.0f} s, {probed!r}\n")
    print(f"{table.to_string(index=False)}\n")
    print(json.dumps({"scenes": scenes, "atlas_seconds": round(seconds, 2), "rows": table.to_dict("records")}))


if __name__ == "__main__":
    typer.run(main)
