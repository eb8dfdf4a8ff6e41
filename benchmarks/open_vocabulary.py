"""What EmerDiff's masks add to names: MaskCLIP and the denoiser's own cross-attention, alone and with masks.

    python -m benchmarks.open_vocabulary --scenes 100

As Table 3 of the paper, on held-out scenes of the world: every pixel takes the class of its highest score, scores
enlarged bilinearly ("alone"); or every segment takes the class of its mean score, with the low-resolution masks
enlarged bilinearly, and with EmerDiff's masks. Open-vocabulary protocol, one confusion matrix over all scenes, 95%
bootstrap intervals over scenes, paired for the gains. Finished scenes are kept in the store, so that a run that was
stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file
from tqdm.auto import tqdm

from benchmarks.scores import difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.clip import load_clip
from emerdiff_probe.evaluation.emerdiff import EmerDiff
from emerdiff_probe.evaluation.metrics import assigned_confusion, bootstrap, overlaps
from emerdiff_probe.evaluation.open_vocabulary.maskclip import PLAIN, MaskClip
from emerdiff_probe.evaluation.open_vocabulary.vocabulary import ScoreMap, Vocabulary
from emerdiff_probe.evaluation.open_vocabulary.words import ClassWords, WordAttention
from emerdiff_probe.evaluation.protocols import OpenVocabulary
from emerdiff_probe.evaluation.rivals.upsampling import Bilinear
from emerdiff_probe.models import ProbeModel, load_model
from emerdiff_probe.pocket.prompts import OBJECT_PHRASES, PART_PHRASES
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation import EmerDiffConfig, check_config

PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {"parts": PART_PHRASES, "objects": OBJECT_PHRASES}
NAMERS = ("MaskCLIP", "cross-attention")
MASKS = ("alone", "+ bilinear masks", "+ EmerDiff")

Namer = Callable[[ProbedImage], ScoreMap]


def namers(model: ProbeModel, clip_source: str, vocabulary: Vocabulary, attention: WordAttention) -> dict[str, Namer]:
    """Everything that gives the cells of a probed image scores, by name."""
    maskclip = MaskClip(load_clip(clip_source, device=model.device), vocabulary, templates=PLAIN)
    words = ClassWords(model, vocabulary)
    return {
        "MaskCLIP": lambda probed: maskclip(probed.image),
        "cross-attention": lambda probed: attention.of_classes(probed, words),
    }


def scene_confusions(
    model: ProbeModel, seed: int, clusters: int, config: EmerDiffConfig, sets: Mapping[str, Mapping[str, Namer]]
) -> Arrays:
    """Confusion of one scene by "labels/namer/masks"."""
    scene = draw_scene(seed)
    probed = config.probe(model, scene.image)
    segments = {
        "+ bilinear masks": Bilinear(config.feature_site, config.feature_timestep).segment(probed, clusters),
        "+ EmerDiff": EmerDiff(config).segment(probed, clusters),
    }
    confusions = {}
    for labels, named in sets.items():
        truth = getattr(scene, labels).astype(np.int64)
        for name, namer in named.items():
            scores = namer(probed)
            predictions = {"alone": scores.pixels(*truth.shape)}
            predictions |= {masks: scores.named(regions) for masks, regions in segments.items()}
            for masks, predicted in predictions.items():
                overlap = overlaps(predicted, truth, len(PHRASES[labels]))
                (assigned,) = OpenVocabulary().assign([overlap])
                confusions[f"{labels}/{name}/{masks}"] = assigned_confusion(overlap, assigned).astype(np.uint32)
    return confusions


def report(scores: Sequence[Arrays], sets: Sequence[str]) -> dict[str, Any]:
    """Rows of the table, each with what the masks gain over no masks at all."""
    rows = []
    for labels in sets:
        for namer in NAMERS:
            methods = {masks: miou([scene[f"{labels}/{namer}/{masks}"] for scene in scores]) for masks in MASKS}
            for masks, method in methods.items():
                row: dict[str, Any] = {"labels": labels, "namer": namer, "masks": masks}
                row |= rounded(bootstrap(method, len(scores), method="basic"))
                if masks != "alone":
                    row["gain"] = rounded(bootstrap(difference(method, methods["alone"]), len(scores)))
                rows.append(row)
    return {"rows": rows, "scenes": len(scores), "protocol": OpenVocabulary().name}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""

    def span(interval: Mapping[str, float], sign: str = "") -> str:
        return f"{interval['miou']:{sign}.2f} [{interval['low']:{sign}.2f}, {interval['high']:{sign}.2f}]"

    lines = ["| classes | names by | masks | mIoU [95%] | gain over no masks [95%] |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['labels']} | {row['namer']} | {row['masks']} | {span(row)} | "
        f"{span(row['gain'], '+') if 'gain' in row else ''} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    clusters: Annotated[int | None, typer.Option(help="Number of masks K; the model's best known by default.")] = None,
    labels: Annotated[str, typer.Option(help="Classes to name, with commas: parts, objects.")] = "parts,objects",
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    clip: Annotated[str, typer.Option(help="A CLIP that knows the words of the world.")] = "pocket",
    layers: Annotated[str | None, typer.Option(help="Cross-attention layers to read, with commas.")] = None,
    timesteps: Annotated[str | None, typer.Option(help="Timesteps to read them at, with commas.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="On that grid.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/open_vocabulary"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    sets = labels.split(",")
    probed = load_model(model, device=device, dtype="float32")
    given = {"steps": steps, "modulate_at": modulate_at, "clusters": clusters}
    config = EmerDiffConfig.for_model(probed, **{name: value for name, value in given.items() if value is not None})
    check_config(probed, config, probed.native_size, probed.native_size)
    attention = WordAttention(
        tuple(layers.split(",")) if layers else None,
        tuple(int(timestep) for timestep in timesteps.split(",")) if timesteps else None,
    )
    named = {name: namers(probed, clip, Vocabulary.of(PHRASES[name]), attention) for name in sets}
    fingerprints = [probed.fingerprint, load_clip(clip, device="cpu").fingerprint]
    phrases = {name: dict(PHRASES[name]) for name in sets}
    folder = folder_of(store, asdict(config), asdict(attention), fingerprints, phrases, PLAIN)
    paths = [folder / f"{number}.safetensors" for number in range(seed, seed + scenes)]
    for number, path in enumerate(tqdm(paths, desc="scenes"), start=seed):
        kept(path, partial(scene_confusions, probed, number, config.given_clusters, config, named))
    result = report([load_file(path) for path in paths], sets)
    print(
        f"{result['protocol']} protocol, {scenes} held-out scenes from seed {seed}, {probed!r}, K = {config.clusters}\n"
    )
    print(markdown(result["rows"]) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
