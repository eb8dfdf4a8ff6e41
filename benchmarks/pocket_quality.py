"""How good EmerDiff on the pocket model is on held-out scenes, beside baselines with the same number of segments.

    python -m benchmarks.pocket_quality --scenes 200

Protocol: majority (every predicted segment takes its majority part class), one confusion matrix over all scenes, 95%
paired bootstrap intervals over scenes. Finished scenes are kept in the store, so that a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import joblib
import numpy as np
import typer
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from benchmarks.baselines import BASELINES, Labels, score, score_baselines
from emerdiff_probe.correspondence import assign
from emerdiff_probe.evaluation.metrics import Interval, bootstrap, tallied_iou, tallies
from emerdiff_probe.features import upsampled
from emerdiff_probe.models import ProbeModel, load_model
from emerdiff_probe.pocket.world import Scene, draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation import EmerDiffConfig, check_config

FROM_MODEL = ("nearest", "bilinear", "emerdiff without injection", "emerdiff")


def model_labels(
    model: ProbeModel, scene: Scene, counts: Sequence[int], config: EmerDiffConfig
) -> tuple[Labels, float]:
    """Label maps of the methods that share the model's low-resolution masks, and the error of the replay."""
    height, width = scene.parts.shape
    site, _ = check_config(model, config, height, width)
    start = max(config.modulate_at, config.feature_timestep)
    probed = ProbedImage(model, scene.image, start=start, steps=config.steps, seed=config.seed)
    labels: Labels = {}
    for count in counts:
        coarse = probed.low_resolution_masks(site, count, config.feature_timestep)
        labels["nearest", count] = upsampled(coarse, height, width, "nearest")
        labels["bilinear", count] = upsampled(coarse, height, width)
        for method, injection in (("emerdiff without injection", ()), ("emerdiff", config.injection)):
            _, modulation = check_config(model, replace(config, injection=injection), height, width)
            maps = probed.difference_maps(coarse, modulation, smoothing=config.smoothing)
            labels[method, count] = assign(maps).numpy()
    return labels, probed.replay_error()


def measure(
    model: ProbeModel, seeds: Sequence[int], counts: Sequence[int], config: EmerDiffConfig, store: Path
) -> list[dict[str, np.ndarray]]:
    """Scores of every scene, from the store where they are there already."""
    identity = json.dumps([asdict(config), model.fingerprint, list(counts)], sort_keys=True)
    folder = store / hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.json").write_text(identity)
    missing = [seed for seed in seeds if not (folder / f"{seed}.safetensors").exists()]
    for seed, baselines in zip(missing, _baseline_scores(missing, counts), strict=True):
        scene = draw_scene(seed)
        labels, replay_error = model_labels(model, scene, counts, config)
        partial = folder / f".{seed}.partial"
        save_file({**baselines, **score(labels, scene), "replay_error": np.array(replay_error)}, partial)
        partial.rename(folder / f"{seed}.safetensors")
    return [load_file(folder / f"{seed}.safetensors") for seed in seeds]


def _baseline_scores(seeds: Sequence[int], counts: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    workers = joblib.Parallel(n_jobs=-1, return_as="generator", pre_dispatch="2*n_jobs")
    scored = workers(joblib.delayed(score_baselines)(seed, counts) for seed in seeds)
    yield from tqdm(scored, total=len(seeds), desc="scenes")


Statistic = Callable[[np.ndarray], np.ndarray]
"""A figure of each bootstrap draw, from how often every scene was drawn: (draw, scene) -> (draw,)."""


def difference(first: Statistic, second: Statistic) -> Statistic:
    """How much higher the first is, on the same draws."""
    return lambda weights: first(weights) - second(weights)


def miou_of(scores: list[dict[str, np.ndarray]], method: str, count: int) -> Statistic:
    """The mIoU in percent of a method as a statistic of how often each scene was drawn."""
    confusions = np.stack([scene[f"{method}/{count}/confusion"] for scene in scores])
    tally = tallies(confusions.astype(np.float64))
    return lambda weights: 100 * tallied_iou(np.tensordot(weights, tally, 1))


def report(scores: list[dict[str, np.ndarray]], counts: Sequence[int]) -> dict[str, object]:
    """The table as rows, and what EmerDiff gains over bilinear upsampling of its own masks, averaged over K."""
    rows = []
    for count in counts:
        for method in (*BASELINES, *FROM_MODEL):
            interval = bootstrap(miou_of(scores, method, count), len(scores), method="basic")
            boundary = np.mean([scene[f"{method}/{count}/boundary"] for scene in scores])
            rows.append(
                {
                    "method": method,
                    "clusters": count,
                    **rounded(interval),
                    "boundary_f": round(100 * float(boundary), 2),
                }
            )
    gains = [difference(miou_of(scores, "emerdiff", count), miou_of(scores, "bilinear", count)) for count in counts]
    mean = bootstrap(lambda weights: np.mean([gain(weights) for gain in gains], axis=0), len(scores))
    by_clusters = zip(counts, gains, strict=True)
    return {
        "rows": rows,
        "gain_over_bilinear": rounded(mean),
        "gain_by_clusters": {str(count): rounded(bootstrap(gain, len(scores))) for count, gain in by_clusters},
        "replay_error": max(float(scene["replay_error"]) for scene in scores),
        "scenes": len(scores),
    }


def rounded(interval: Interval) -> dict[str, float]:
    """An interval as a JSON object, in percent points with two decimals."""
    return {"miou": round(interval.value, 2), "low": round(interval.low, 2), "high": round(interval.high, 2)}


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    clusters: Annotated[str, typer.Option(help="Numbers of clusters, with commas.")] = "8,12,20",
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    steps: Annotated[int | None, typer.Option(help="Of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="On that grid.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option()] = "float32",
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/pocket_quality"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    counts = [int(count) for count in clusters.split(",")]
    probed = load_model(model, device=device, dtype=precision)
    given = {"steps": steps, "modulate_at": modulate_at}
    config = EmerDiffConfig.for_model(probed, **{name: value for name, value in given.items() if value is not None})
    scores = measure(probed, range(seed, seed + scenes), counts, config, store)
    result = report(scores, counts)
    print(f"majority protocol, {scenes} held-out scenes from seed {seed}, {probed!r}\n{config}\n")
    print(f"{'method':28s} {'K':>3s} {'mIoU':>6s}  {'95% interval':15s} {'boundary F':>10s}")
    for row in result["rows"]:  # type: ignore[attr-defined]
        span = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{row['method']:28s} {row['clusters']:3d} {row['miou']:6.2f}  {span:15s} {row['boundary_f']:10.2f}")
    print(f"\ngain over bilinear by K: {result['gain_by_clusters']}; replay error {result['replay_error']:.1e}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
