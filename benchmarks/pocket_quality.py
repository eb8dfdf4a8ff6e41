"""How good EmerDiff on the pocket model is on held-out scenes, beside baselines with the same number of segments.

    python -m benchmarks.pocket_quality --scenes 200

Protocol: majority (every predicted segment takes its majority part class), one confusion matrix over all scenes, 95%
paired bootstrap intervals over scenes. Finished scenes are kept in the store, so that a run that was stopped goes on.
`emerdiff-probe evaluate` has all rivals and protocols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.store import folder_of
from emerdiff_probe.evaluation.methods import METHODS
from emerdiff_probe.evaluation.metrics import Interval, bootstrap, tallied_iou, tallies
from emerdiff_probe.evaluation.protocols import Majority, confusions
from emerdiff_probe.evaluation.run import Evaluation, EvaluationResult, run_evaluation
from emerdiff_probe.evaluation.sources import open_data
from emerdiff_probe.evaluation.store import Cell
from emerdiff_probe.models import load_model
from emerdiff_probe.segmentation import EmerDiffConfig

SHOWN = ("rgb k-means", "coordinate k-means", "slic", "nearest", "bilinear", "emerdiff without injection", "emerdiff")

Statistic = Callable[[np.ndarray], np.ndarray]
"""A figure of each bootstrap draw, from how often every scene was drawn: (draw, scene) -> (draw,)."""


def difference(first: Statistic, second: Statistic) -> Statistic:
    """How much higher the first is, on the same draws."""
    return lambda weights: first(weights) - second(weights)


def miou(confusions: Sequence[np.ndarray]) -> Statistic:
    """The mIoU in percent from the confusion (class, class) of every scene."""
    tally = tallies(np.stack(confusions).astype(np.float64))
    return lambda weights: 100 * tallied_iou(np.tensordot(weights, tally, 1))


def report(result: EvaluationResult, counts: Sequence[int]) -> dict[str, object]:
    """The table as rows, and what EmerDiff gains over bilinear upsampling of its own masks, averaged over K."""
    rows, scored, scenes = [], {}, len(result.images)
    for count in counts:
        for method in SHOWN:
            records = result.records(Cell(method, count))
            images = [record.overlap for record in records if record.overlap is not None]
            scored[method, count] = miou(confusions(images, Majority()))
            boundary = np.mean([record.figures["boundary F"] for record in records])
            interval = rounded(bootstrap(scored[method, count], scenes, method="basic"))
            rows.append(
                {"method": method, "clusters": count, **interval, "boundary_f": round(100 * float(boundary), 2)}
            )
    gains = {count: difference(scored["emerdiff", count], scored["bilinear", count]) for count in counts}
    mean = bootstrap(lambda weights: np.mean([gain(weights) for gain in gains.values()], axis=0), scenes)
    return {
        "rows": rows,
        "gain_over_bilinear": rounded(mean),
        "gain_by_clusters": {str(count): rounded(bootstrap(gain, scenes)) for count, gain in gains.items()},
        "replay_error": result.replay_error,
        "scenes": scenes,
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
    evaluation = Evaluation(tuple(METHODS[name] for name in SHOWN), tuple(counts), config)
    world = open_data(f"world:{scenes},first={seed}", side=256)
    folder = folder_of(store, asdict(config), probed.fingerprint, probed.device.type, str(probed.dtype)) / "records"
    result = report(run_evaluation(probed, world, evaluation, store=folder, progress=True), counts)
    print(f"majority protocol, {scenes} held-out scenes from seed {seed}, {probed!r}\n{config}\n")
    print(f"{'method':28s} {'K':>3s} {'mIoU':>6s}  {'95% interval':15s} {'boundary F':>10s}")
    for row in result["rows"]:  # type: ignore[attr-defined]
        span = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{row['method']:28s} {row['clusters']:3d} {row['miou']:6.2f}  {span:15s} {row['boundary_f']:10.2f}")
    print(f"\ngain over bilinear by K: {result['gain_by_clusters']}; replay error {result['replay_error']:.1e}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
