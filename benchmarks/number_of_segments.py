"""How well criteria for the number of segments do on scenes whose true number of parts and objects is known.

    python -m benchmarks.number_of_segments --scenes 200 --fast

Three questions. Is the number right: mean absolute error, bias and rank correlation with the number of parts in sight?
Does a number of its own for every scene pay: mIoU (majority protocol) beside a fixed number, with the same number of
masks over all scenes? Do masks merged by their tree become objects: adjusted Rand index against the true objects?
Intervals are 95% bootstrap intervals over scenes, paired where two are compared. Finished scenes are kept in the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.scores import difference, miou, rounded
from benchmarks.store import Arrays, folder_of, kept
from emerdiff_probe.evaluation.report import markdown_table
from emerdiff_probe.metrics.intervals import bootstrap
from emerdiff_probe.metrics.overlaps import adjusted_rand, majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import PART_NAMES, Scene, draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation, assign
from emerdiff_probe.reading.features import mask_embeddings
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.segmentation.criteria import CRITERIA, Criterion, find_criterion
from emerdiff_probe.segmentation.tree import SegmentTree, likeness_linkage
from emerdiff_probe.sites import Site

IN_SIGHT = 64
"""Pixels from which a part or object counts: a quarter of a cell of the 16 x 16 grid."""
ORACLE = "true number"
FINE = 24
"""Masks that trees begin with."""
TREES = ("responses, cosine", "responses, correlation", "responses, braycurtis", "mask embeddings, cosine")
FLAT = "EmerDiff with as many masks"
RANKS = ("rank_correlation", "rank_correlation_objects")


class Measured:
    """One scene; drawn, inverted and modulated only for what the store does not hold.

    Args:
        model: a model of the world's scenes.
        seed: of the scene.
        config: settings but for the number of clusters.
        folder: of this model and these settings.
    """

    def __init__(self, model: ProbeModel, seed: int, config: EmerDiffConfig, folder: Path) -> None:
        self.model, self.seed, self.config, self.folder = model, seed, config, folder
        self._maps: dict[int, Tensor] = {}

    @cached_property
    def scene(self) -> Scene:
        """Picture and truth."""
        size = self.model.native_size
        return draw_scene(self.seed, height=size, width=size)

    @cached_property
    def probed(self) -> ProbedImage:
        """The picture under the probe."""
        return self.config.probe(self.model, self.scene.image)

    @cached_property
    def features(self) -> Tensor:
        """Features (cell, channel) that are clustered."""
        return self.probed.features(self._sites, self.config.features.timesteps)

    def masks(self, clusters: int) -> np.ndarray:
        """Low-resolution masks."""
        return self.probed.low_resolution_masks(self._sites, clusters, self.config.features.timesteps)

    def maps(self, clusters: int) -> Tensor:
        """Difference maps of that many masks."""
        if clusters not in self._maps:
            coarse, smoothing = self.masks(clusters), self.config.smoothing
            self._maps[clusters] = self.probed.difference_maps(coarse, self._checked[1], smoothing=smoothing)
            self.confusion(clusters)
        return self._maps[clusters]

    def confusion(self, clusters: int) -> np.ndarray:
        """Majority confusion of EmerDiff with that many masks."""
        path = self.folder / f"{self.seed}-{clusters}.safetensors"
        return kept(path, lambda: {"confusion": self.confusion_of(assign(self.maps(clusters)).numpy())})["confusion"]

    def confusion_of(self, labels: np.ndarray) -> np.ndarray:
        """Majority confusion of labels."""
        return majority_confusion(labels, self.scene.parts, len(PART_NAMES)).astype(np.uint32)

    def truth(self) -> Arrays:
        """True numbers, and how well trees of masks find the true objects."""
        return kept(self.folder / f"{self.seed}.safetensors", self._truth)

    def found(self, criterion: Criterion) -> Arrays:
        """The number that a criterion finds, the confusion of its segments, and the seconds that the finding took."""
        folder = folder_of(self.folder, repr(criterion))
        return kept(folder / f"{self.seed}.safetensors", lambda: self._found(criterion))

    def _found(self, criterion: Criterion) -> Arrays:
        features, grid = self.features, self.probed.grid(self._sites)
        began = time.perf_counter()
        clusters = criterion.clusters(features, grid, seed=self.config.seed)
        seconds = time.perf_counter() - began
        maps = self.maps(clusters)
        began = time.perf_counter()
        groups = criterion.merged(maps)
        seconds += time.perf_counter() - began
        confusion = self.confusion_of(groups[assign(maps).numpy()])
        return {"number": np.array(groups.max() + 1), "confusion": confusion, "seconds": np.array(seconds)}

    def _truth(self) -> Arrays:
        scene = self.scene
        objects = in_sight(scene.objects)
        maps, coarse = self.maps(FINE), self.masks(FINE)
        embeddings = mask_embeddings(self.features, coarse)
        labels = assign(maps).numpy()
        linkages = [likeness_linkage(maps, distance) for distance in ("cosine", "correlation", "braycurtis")]
        trees = [SegmentTree(labels, linkage) for linkage in (*linkages, likeness_linkage(embeddings))]
        rand = {name: tree.cut(min(objects, tree.masks)) for name, tree in zip(TREES, trees, strict=True)}
        rand[FLAT] = assign(self.maps(objects)).numpy()  # modulated, as the trees' labels are
        return {
            "parts": np.array(in_sight(scene.parts)),
            "objects": np.array(objects),
            **{name: np.array(adjusted_rand(level, scene.objects)) for name, level in rand.items()},
        }

    @cached_property
    def _checked(self) -> tuple[tuple[Site, ...], Modulation]:
        return check_config(self.model, self.config, *self.scene.parts.shape)

    @property
    def _sites(self) -> tuple[Site, ...]:
        return self._checked[0]


def in_sight(labels: np.ndarray) -> int:
    """Number of labels with enough pixels to be seen."""
    return int((np.bincount(labels.ravel()) >= IN_SIGHT).sum())


def shared_out(total: int, scenes: int) -> list[int]:
    """A fixed number of masks for every scene, rounded up in as many scenes as make the sum the given total."""
    return [(index + 1) * total // scenes - index * total // scenes for index in range(scenes)]


def measure(
    model: ProbeModel, seeds: Sequence[int], criteria: Sequence[Criterion], config: EmerDiffConfig, store: Path
) -> list[Arrays]:
    """All figures of every scene: its truth, and "criterion/figure" of every criterion and of the true number."""
    folder = folder_of(store, asdict(config) | {"clusters": "any"}, model.fingerprint, FINE, FLAT)
    names = [*(criterion.name for criterion in criteria), ORACLE]
    scenes: list[Arrays] = []
    for seed in tqdm(seeds, desc="criteria"):
        asked = Measured(model, seed, config, folder)
        scene = asked.truth()
        for criterion in criteria:
            scene |= {f"{criterion.name}/{figure}": value for figure, value in asked.found(criterion).items()}
        parts = int(scene["parts"])
        scene[f"{ORACLE}/number"], scene[f"{ORACLE}/confusion"] = np.array(parts), asked.confusion(parts)
        scenes.append(scene)
    fixed = {name: shared_out(sum(int(scene[f"{name}/number"]) for scene in scenes), len(scenes)) for name in names}
    for index, seed in enumerate(tqdm(seeds, desc="fixed numbers")):
        asked = Measured(model, seed, config, folder)
        scenes[index] |= {f"{name}/fixed": asked.confusion(numbers[index]) for name, numbers in fixed.items()}
    return scenes


def report(scenes: Sequence[Mapping[str, np.ndarray]], criteria: Sequence[Criterion]) -> dict[str, Any]:
    """Rows of both tables."""

    def column(figure: str) -> np.ndarray:
        return np.array([scene[figure] for scene in scenes], float)

    def mean(values: np.ndarray) -> dict[str, float]:
        return rounded(bootstrap(lambda weights: weights @ values / weights.sum(1), len(scenes)), "value")

    parts, objects = column("parts"), column("objects")
    rows: list[dict[str, Any]] = []
    for name in (*(criterion.name for criterion in criteria), ORACLE):
        number = column(f"{name}/number")
        own, fixed = (miou([scene[f"{name}/{kind}"] for scene in scenes]) for kind in ("confusion", "fixed"))
        row = {
            "criterion": name,
            "number": round(float(number.mean()), 2),
            "error": mean(abs(number - parts)),
            "bias": mean(number - parts),
            "rank_correlation": rank_correlation(number, parts),
            "rank_correlation_objects": rank_correlation(number, objects),
            "miou": rounded(bootstrap(own, len(scenes), method="basic"), "value"),
            "miou_fixed": rounded(bootstrap(fixed, len(scenes), method="basic"), "value"),
            "gain": rounded(bootstrap(difference(own, fixed), len(scenes)), "value"),
        }
        if name != ORACLE:
            row["seconds"] = round(float(column(f"{name}/seconds").mean()), 3)
        rows.append(row)
    constant = int(np.median(parts))
    return {
        "rows": rows,
        "error_of_a_constant": {"number": constant, **mean(abs(constant - parts))},
        "trees": [{"tree": name, "adjusted_rand": mean(100 * column(name))} for name in (*TREES, FLAT)],
        "parts": round(float(parts.mean()), 2),
        "objects": round(float(objects.mean()), 2),
        "scenes": len(scenes),
    }


def rank_correlation(found: np.ndarray, true: np.ndarray) -> float | None:
    """Spearman's, over scenes; None where one of both is the same in all of them."""
    if np.ptp(found) == 0 or np.ptp(true) == 0:
        return None
    return round(float(spearmanr(found, true).statistic), 3)


def tables(result: Mapping[str, Any]) -> str:
    """Both tables in Markdown."""
    header = ["criterion", "number", "error", "bias", "rank correlation", "with objects", "mIoU", "mIoU, fixed number",
              "gain", "seconds"]  # fmt: skip
    body = []
    for row in result["rows"]:
        ranks = ["" if row[name] is None else f"{row[name]:.2f}" for name in RANKS]
        spans = {name: _span(row[name]) for name in ("error", "bias", "miou", "miou_fixed", "gain")}
        seconds = f"{row['seconds']:.2f}" if "seconds" in row else ""
        body.append([row["criterion"], f"{row['number']:.1f}", spans["error"], spans["bias"], *ranks, spans["miou"],
                     spans["miou_fixed"], spans["gain"], seconds])  # fmt: skip
    trees = [[row["tree"], _span(row["adjusted_rand"])] for row in result["trees"]]
    of_trees = ["tree, cut at the true number of objects", "adjusted Rand index"]
    return f"{markdown_table(header, body)}\n\n{markdown_table(of_trees, trees)}"


def _span(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def main(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first scene; training begins at 1,000,000.")] = 0,
    criteria: Annotated[str, typer.Option(help="Names of criteria, with commas.")] = ",".join(CRITERIA),
    model: Annotated[str, typer.Option(help="A model of the world's scenes.")] = "pocket",
    steps: Annotated[int | None, typer.Option(help="Of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="On that grid.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="With the approximations of the fast mode.")] = False,
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option()] = "float32",
    store: Annotated[Path, typer.Option(help="Where finished scenes are kept.")] = Path("out/number_of_segments"),
) -> None:
    """Print both tables and, as the last line, one JSON object."""
    asked = [find_criterion(name.strip()) for name in criteria.split(",")]
    probed = load_model(model, device=device, dtype=precision)
    given = {"steps": steps, "modulate_at": modulate_at}
    make = EmerDiffConfig.fast if fast else EmerDiffConfig.for_model
    config = make(probed, **{name: value for name, value in given.items() if value is not None})
    result = report(measure(probed, range(seed, seed + scenes), asked, config, store), asked)
    constant = result["error_of_a_constant"]
    print(f"{scenes} held-out scenes from seed {seed}, {probed!r}\n{config}\n{', '.join(map(repr, asked))}\n")
    print(f"in sight: {result['parts']} parts and {result['objects']} objects a scene; always saying "
          f"{constant['number']} errs by {_span(constant)} parts\n")  # fmt: skip
    print(f"majority protocol, percent\n\n{tables(result)}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
