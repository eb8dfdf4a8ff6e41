"""How good EmerDiff on the pocket model is on held-out scenes, beside baselines with the same number of segments.

    python -m benchmarks.pocket_quality --scenes 200

Protocol: majority (every predicted segment takes its majority part class), one confusion matrix over all scenes, 95%
paired bootstrap intervals over scenes. Finished scenes are kept in the store, so that a run that was stopped goes on.
`emerdiff-probe evaluate` has all rivals and protocols.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.store import folder_of
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Evaluation, EvaluationResult, run_evaluation
from emerdiff_probe.methods.catalogue import METHODS
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig

SHOWN = ("rgb k-means", "coordinate k-means", "slic", "nearest", "bilinear", "emerdiff without injection", "emerdiff")

FIGURES = ("miou", "low", "high")


def summary(result: EvaluationResult) -> dict[str, Any]:
    """The table as rows, and what EmerDiff gains over bilinear upsampling of its own masks, averaged over K."""
    made = make_report(result).to_json()
    boundary = {(line["method"], line["clusters"]): line["boundary F (BSDS)"][0] for line in made["without_classes"]}
    rows = [
        {name: row[name] for name in ("method", "clusters", *FIGURES)}
        | {"boundary_f": round(100 * boundary[row["method"], row["clusters"]], 2)}
        for count in result.evaluation.clusters
        for row in made["rows"]
        if row["clusters"] == count
    ]
    gains = [gain for gain in made["gains"] if (gain["method"], gain["over"]) == ("emerdiff", "bilinear")]
    figures = [{name: gain[name] for name in FIGURES} for gain in gains]
    by_clusters = zip(result.evaluation.clusters, figures, strict=False)  # the average, where there is one, is the last
    return {
        "rows": rows,
        "gain_over_bilinear": figures[-1],
        "gain_by_clusters": {str(count): gain for count, gain in by_clusters},
        "replay_error": result.replay_error,
        "scenes": len(result.images),
    }


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    clusters: Annotated[str, typer.Option(help="Numbers of clusters, with commas.")] = "8,12,20",
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    steps: Annotated[int | None, typer.Option(help="Of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="On that grid.")] = None,
    sharpen: Annotated[str, typer.Option(help="How EmerDiff's labels take borders; others' do not.")] = "none",
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option()] = "float32",
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/pocket_quality"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    counts = tuple(int(count) for count in clusters.split(","))
    probed = load_model(model, device=device, dtype=precision)
    given = {"steps": steps, "modulate_at": modulate_at, "sharpen": sharpen}
    config = EmerDiffConfig.for_model(probed, **{name: value for name, value in given.items() if value is not None})
    evaluation = Evaluation(tuple(METHODS[name] for name in SHOWN), counts, config)
    world = open_data(f"world:{scenes},first={seed}", side=256)
    folder = folder_of(store, asdict(config), probed.fingerprint, probed.device.type, str(probed.dtype)) / "records"
    result = summary(run_evaluation(probed, world, evaluation, store=folder, progress=True))
    print(f"majority protocol, {scenes} held-out scenes from seed {seed}, {probed!r}\n{config}\n")
    print(f"{'method':28s} {'K':>3s} {'mIoU':>6s}  {'95% interval':15s} {'boundary F (BSDS)':>17s}")
    for row in result["rows"]:
        span = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{row['method']:28s} {row['clusters']:3d} {row['miou']:6.2f}  {span:15s} {row['boundary_f']:17.2f}")
    print(f"\ngain over bilinear by K: {result['gain_by_clusters']}; replay error {result['replay_error']:.1e}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
