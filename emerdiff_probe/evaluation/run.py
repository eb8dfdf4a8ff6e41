"""Running methods over a data set: a job of the engine, and what scores are made of."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from einops import rearrange

from emerdiff_probe.arrays import number_in_order
from emerdiff_probe.checks import is_integer
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.resizing import Resizing
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.summary import LabelSummary
from emerdiff_probe.errors import InputError, ProbeError
from emerdiff_probe.evaluation.cost import Cost, measured, on_host, together
from emerdiff_probe.files import find_damage, list_checksums, seal, unseal, write_whole
from emerdiff_probe.methods.catalogue import Method, configure, identity
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.interface import Bounded, Segmenter
from emerdiff_probe.methods.naming import Naming
from emerdiff_probe.methods.predictions import Predictions
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.metrics.overlaps import (
    Overlap,
    adjusted_rand,
    boundary_f,
    covering,
    overlaps,
    variation_of_information,
)
from emerdiff_probe.metrics.protocols import concept_embeddings, region_sums
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.runs import job
from emerdiff_probe.runs.run import Run, run, write_to_stderr
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.sites import Site

FIGURES = ("boundary F (BSDS)", "adjusted Rand", "variation of information", "covering")
"""Scores that need no classes."""
IMAGE: job.Cell = ("image",)
"""The cell of what is known of an image before any method: concepts' sums, and how well the inversion replays."""


class Cell(NamedTuple):
    """A method with a number of segments; None leaves the number to the method."""

    method: str
    clusters: int | None


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a method's segments in one image.

    Attributes:
        overlap: pixels shared with classes, and embeddings of segments; None where the truth has no classes.
        figures: scores that need no classes.
        seconds: of the whole work of this method alone, the inversion included where it asks the model; NaN where
            another tool did it.
        peak_mib: the most memory held meanwhile; None where it cannot be known.
    """

    overlap: Overlap | None
    figures: Mapping[str, float]
    seconds: float
    peak_mib: float | None

    def arrays(self, labels: np.ndarray) -> dict[str, Any]:
        """As the engine keeps it, with the labels (height, width) that it was taken on."""
        arrays: dict[str, Any] = {f"figure/{name}": value for name, value in self.figures.items()}
        arrays["seconds"], arrays["peak_mib"] = self.seconds, np.nan if self.peak_mib is None else self.peak_mib
        arrays["labels"] = labels.astype(np.min_scalar_type(int(labels.max())))
        if self.overlap is not None:
            assert self.overlap.embeddings is not None
            arrays["segments"], arrays["counts"] = self.overlap.segments, self.overlap.counts
            arrays["embeddings"] = self.overlap.embeddings.astype(np.float32)
        return arrays

    @classmethod
    def of(cls, held: Mapping[str, np.ndarray]) -> Record:
        """What `arrays` gave, but for the labels."""
        figures = {name.removeprefix("figure/"): float(held[name]) for name in held if name.startswith("figure/")}
        overlap = Overlap(held["segments"], held["counts"], held["embeddings"]) if "segments" in held else None
        peak = float(held["peak_mib"])
        return cls(overlap, figures, float(held["seconds"]), None if np.isnan(peak) else peak)


@dataclass(frozen=True)
class Evaluation:
    """What is run on every image.

    Attributes:
        methods: of different names.
        clusters: numbers of segments; None leaves the number to the methods that have a criterion of their own.
        config: of EmerDiff and of the inversion that all methods share; its number of clusters is not used.
        resizing: what of an image the methods see.

    Raises:
        InputError: nothing to run, a name or number twice, a number below 1, or a method that none of the numbers is
            for.
    """

    methods: tuple[Method, ...]
    clusters: tuple[int | None, ...]
    config: EmerDiffConfig
    resizing: Resizing = field(default_factory=Resizing)

    def __post_init__(self) -> None:
        filled = (configure(method, self.config) for method in self.methods)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(filled)))  # two may be one under these settings
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise InputError(f"methods {', '.join(names) or 'none'}; accepted: one or more, each once")
        wrong = [count for count in self.clusters if count is not None and not is_integer(count, 1)]
        if wrong or not self.clusters or len(set(self.clusters)) < len(self.clusters):
            raise InputError(
                f"clusters {list(self.clusters)}; accepted: one or more integers from 1, each once, or None"
            )
        for method in self.methods:
            if not self._counts(method):
                raise InputError(f"{method.name} finds no number of segments by itself; accepted: one or more numbers")
        if self.resizing != Resizing() and any(isinstance(method, Reference) for method in self.methods):
            raise InputError(f"{self.resizing} with a trained method; accepted: images as they are")

    def _counts(self, method: Method) -> tuple[int | None, ...]:
        if method.counts == "own":
            return (None,)
        return tuple(count for count in self.clusters if count is not None or method.counts == "either")

    @property
    def cells(self) -> dict[Cell, Method]:
        """Every method with every number of segments that it takes."""
        return {Cell(method.name, count): method for method in self.methods for count in self._counts(method)}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Records of every method on every image that could be read and segmented by all.

    Attributes:
        evaluation: what was run.
        data: on which images.
        run: where records are, what was skipped and why, and how many records were made and used again.
    """

    evaluation: Evaluation
    data: DataSet
    run: Run

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images that all methods have records of."""
        return self.run.names

    @property
    def skipped(self) -> Mapping[str, str]:
        """Of the others the name, and what was wrong."""
        return self.run.skipped

    @property
    def labels_found(self) -> LabelSummary:
        """Which classes occur in the truth of these images, and how much of it is ignored."""
        found = self.run.summarize_labels(self.data.classes)
        assert found is not None  # data without labels is not evaluated
        return found

    def records(self, cell: Cell) -> list[Record]:
        """Of every image, in order."""
        return [Record.of(self.run.record(image, cell)) for image in self.images]

    def labels(self, image: str, cell: Cell) -> np.ndarray:
        """The labels (height, width) of a record."""
        return self.run.record(image, cell)["labels"]

    @cached_property
    def concepts(self) -> np.ndarray:
        """Concept embeddings (class, channel) over the truth of these same images; NaN for classes without a pixel."""
        first, *others = self.images
        total = self.run.record(first, IMAGE)
        for image in others:  # one at a time: a large data set's would not fit
            held = self.run.record(image, IMAGE)
            total = {name: total[name] + held[name] for name in ("sums", "pixels")}
        return concept_embeddings(total["sums"], total["pixels"])

    @cached_property
    def replay_error(self) -> float:
        """Largest difference, over all images, between the encoded latent and the end of the replayed inversion."""
        return max(float(self.run.record(image, IMAGE)["replay_error"]) for image in self.images)


def run_evaluation(
    model: ProbeModel,
    data: DataSet,
    evaluation: Evaluation,
    *,
    store: str | Path,
    workers: int | None = None,
    progress: bool = False,
    warn: Callable[[str], None] = write_to_stderr,
) -> EvaluationResult:
    """Segment every image by every method and keep what scores are made of.

    An image is inverted once for all methods. A run that was stopped goes on, and what fails is told and skipped: see
    `emerdiff_probe.runs.run`, whose arguments these are; the result equals that of a run in one piece to the bit, but
    for times and memory. Embeddings of segments, for the protocols that ask for them, are means over pixels of
    bilinearly upsampled features, of the sites that EmerDiff clusters, for all methods alike.

    Args:
        model: that all methods share.
        data: images and truth.
        evaluation: what to run.
        store: folder of the records; new, or with records of the same data, model and settings.
        workers, progress, warn: as in `emerdiff_probe.runs.run.run`.

    Raises:
        InputError: data without labels, a store of something else, an image or truth that is another than it was, no
            image that can be used, settings that do not fit the model, more segments than a method's grid has cells, or
            a trained method that has seen an image, or label maps of another tool of which none is of an image.
        SiteError, TimestepError: as `check_config`.
    """
    if not data.labelled:
        raise InputError(f"{data!r}: nothing to score against; accepted: a data set with labels")
    largest = max((count for count in evaluation.clusters if count is not None), default=1)
    fitted = evaluation.config.change(clusters=largest)
    sites, _ = check_config(model, fitted, model.native_size, model.native_size)
    for method in evaluation.methods:
        if isinstance(method, Reference):
            _require_apart(method, data)
        if isinstance(method, Predictions):
            method.require_some(data.names)
    _require_capacity(model, evaluation)
    work = EvaluationJob(evaluation, model.device.type, sites, data.classes, Path(store), progress, warn)
    sources: dict[job.Cell, Callable[[str], str]] = {
        tuple(cell): method.source for cell, method in evaluation.cells.items() if isinstance(method, Predictions)
    }
    made = run(model, work, data, store=store, workers=workers, progress=progress, warn=warn, sources=sources)
    return EvaluationResult(evaluation, data, made)


def _require_apart(method: Reference, data: DataSet) -> None:
    if method.data.classes != data.classes:
        raise InputError(f"{method.name}: trained on classes of {method.data!r}, asked for those of {data!r}")
    both = set(method.data.origins) & set(data.origins)
    if both:
        raise InputError(
            f"{method.name}: {len(both)} images are trained on and evaluated, such as {min(both)}; accepted: none"
        )


def _require_capacity(model: ProbeModel, evaluation: Evaluation) -> None:
    for cell, method in evaluation.cells.items():
        masks = method.masks if isinstance(method, Naming) else method
        if cell.clusters is None or not isinstance(masks, Bounded):
            continue
        most = masks.capacity(model)
        if cell.clusters > most:
            raise InputError(f"{method.name}: {cell.clusters} clusters of {most} cells; accepted: 1 to {most}")


@dataclass(eq=False)
class EvaluationJob:
    """An evaluation as a job of the engine: a cell is a method with a number of segments, or `IMAGE`."""

    evaluation: Evaluation
    device: str
    sites: Sequence[Site]
    classes: Sequence[str]
    folder: Path
    progress: bool
    warn: Callable[[str], None]
    ready: dict[str, Segmenter] = field(default_factory=dict)
    """Methods that had to be trained, or to meet the model, by name."""
    name: str = "evaluation"

    @property
    def cells(self) -> dict[job.Cell, dict[str, Any]]:
        """What is known of the image, and every method with every number of segments, with the method's parameters."""
        own: dict[job.Cell, dict[str, Any]] = {
            tuple(cell): identity(method) for cell, method in self.evaluation.cells.items()
        }
        return {IMAGE: {}, **own}

    def identity(self) -> dict[str, Any]:
        """Settings that all methods share; methods, numbers and images may come and go."""
        return {
            "job": self.name,
            "device": self.device,  # seconds of two devices would be averaged
            **self.evaluation.config.change(clusters=None).options(),
            "resizing": asdict(self.evaluation.resizing),
        }

    def describe(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def prepare(self, model: ProbeModel, cells: Collection[job.Cell]) -> None:
        """Train and bind the methods of some cells: what goes wrong here is wrong for every image."""
        for cell, method in self.evaluation.cells.items():
            if cell in cells and isinstance(method, Reference | Naming) and method.name not in self.ready:
                bound = method.bind(model) if isinstance(method, Naming) else self._trained(method, model)
                self.ready[method.name] = bound

    def _trained(self, method: Reference, model: ProbeModel) -> Segmenter:
        """From weights that are kept, trained anew where they are damaged."""
        key = hashlib.sha256(json.dumps(identity(method), sort_keys=True).encode()).hexdigest()[:12]
        place = self.folder / "weights" / f"{quote(method.name, safe=' ')}-{key}"
        weights, sums = place / "model.safetensors", place.with_suffix(".json")
        if weights.exists():
            try:
                damage = find_damage(place, unseal(sums.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                damage = [f"{sums}: {error}"]
            if damage:
                self.warn(f"{place}: {damage[0]}; {method.name} is trained anew")
                weights.unlink()
        trained = method.trained(model, self.evaluation.config, weights, progress=self.progress, warn=self.warn)
        write_whole(sums, lambda partial: partial.write_text(seal(list_checksums(place)), encoding="utf-8"))
        return trained

    def measure(
        self, model: ProbeModel, sample: Sample, cells: Sequence[job.Cell]
    ) -> Iterator[tuple[job.Cell, job.Record]]:
        """One image by each method.

        Raises:
            ProbeError: a method that fails on this image; the message names it. Every pixel is ignored.
        """
        config, resizing, device = self.evaluation.config, self.evaluation.resizing, model.device
        pixels, truth = sample.pixels(), resizing.seen(sample.truth())
        truth = truth if truth.ndim == 3 else truth[None]
        if (truth == IGNORED).all(axis=(1, 2)).any():
            raise InputError(f"{sample.name}: every pixel is ignored")
        predicted = {  # what is missing is known before anything is worked out
            cell: (method.labels(sample.name, *pixels.shape[:2]), method.source(sample.name))
            for cell, method in self.evaluation.cells.items()
            if cell in cells and isinstance(method, Predictions)
        }
        probed, inversion = measured(partial(config.probe, model, resizing.apply(pixels)), device)
        held = probed.features(self.sites, config.resolve(model).features.timesteps)
        features = rearrange(held, "(h w) c -> h w c", h=probed.grid(self.sites)[0]).numpy()
        if IMAGE in cells:
            yield IMAGE, self._about(probed, truth, features)
        shared = _SharedMaps(probed, device)
        for cell, method in _in_turn(self.evaluation.cells):
            if cell not in cells:
                continue
            if isinstance(method, Predictions):
                labels, source = predicted[cell]
                labels = number_in_order(resizing.seen(labels))  # what lies outside the window has no number
                record = self._record(labels, truth, features, Cost(math.nan, None))
                yield tuple(cell), {**record.arrays(labels), "source": np.asarray(source)}
                continue
            segmenter = self.ready[method.name] if isinstance(method, Reference | Naming) else method
            try:
                labels, own = shared.segment(segmenter, cell.clusters)
            except ProbeError as error:
                raise ProbeError(f"{cell.method}: {error}") from error
            labels = resizing.restore(labels, *pixels.shape[:2])
            cost = together(inversion, own) if segmenter.probes else on_host(own, device)
            yield tuple(cell), self._record(labels, truth, features, cost).arrays(labels)

    def _about(self, probed: ProbedImage, truth: np.ndarray, features: np.ndarray) -> dict[str, Any]:
        about: dict[str, Any] = {"replay_error": probed.replay_error()}
        if self.classes:
            about["sums"], about["pixels"] = region_sums(features, truth[0], len(self.classes))
        return about

    def _record(self, labels: np.ndarray, truth: np.ndarray, features: np.ndarray, cost: Cost) -> Record:
        overlap = None
        if self.classes:
            sums, pixels = region_sums(features, labels, int(labels.max()) + 1)
            embeddings = sums / np.maximum(pixels, 1)[:, None]
            overlap = overlaps(labels, truth[0], len(self.classes), ignore_index=IGNORED, embeddings=embeddings)
        every = [
            (
                boundary_f(labels, drawn, ignore_index=IGNORED),
                adjusted_rand(labels, drawn, ignore_index=IGNORED),
                variation_of_information(labels, drawn, ignore_index=IGNORED).total,
                covering(labels, drawn, ignore_index=IGNORED),
            )
            for drawn in truth
        ]
        figures = dict(zip(FIGURES, np.mean(every, axis=0).tolist(), strict=True))
        return Record(overlap, figures | {"segments": len(np.unique(labels))}, *cost)


@dataclass(eq=False)
class _SharedMaps:
    """Methods asked about one image; EmerDiff's that differ in how labels are read share difference maps.

    Each costs what it would alone: the maps' time is that of the method that made them.
    """

    probed: ProbedImage
    device: torch.device
    last: tuple[Any, Segmentation, Cost] | None = None

    def segment(self, method: Segmenter, clusters: int | None) -> tuple[np.ndarray, Cost]:
        """Labels by a method, and what it takes by itself.

        Raises:
            ProbeError: as the method does.
        """
        if not isinstance(method, EmerDiff):
            return measured(partial(method.segment, self.probed.afresh(), clusters), self.device)
        if self.last is not None and self.last[0] == (method.maps, clusters):
            _, found, cost = self.last
            other, reading = measured(partial(method.read, found, self.probed, clusters), self.device)
            maps = cost._replace(seconds=cost.seconds - found.seconds["assign"])
            return other.labels, together(maps, reading)
        self.last = None  # freed before its memory is counted
        found, cost = measured(partial(method.find, self.probed.afresh(), clusters), self.device)
        self.last = (method.maps, clusters), found, cost
        return found.labels, cost


def _in_turn(cells: Mapping[Cell, Method]) -> Iterator[tuple[Cell, Method]]:
    """Cells in such an order that EmerDiff's of the same maps follow each other: those of one image alone are held."""
    groups: dict[Any, list[tuple[Cell, Method]]] = {}
    for cell, method in cells.items():
        key = (method.maps, cell.clusters) if isinstance(method, EmerDiff) else cell
        groups.setdefault(key, []).append((cell, method))
    return chain.from_iterable(groups.values())
