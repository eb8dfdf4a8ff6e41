"""Running methods over a data set; every record is kept as soon as it is known, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from tqdm.auto import tqdm

from emerdiff_probe.checks import is_integer
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.resizing import Resizing
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError, ProbeError
from emerdiff_probe.evaluation.cost import Cost, measured, on_host, together
from emerdiff_probe.evaluation.store import Cell, Record, RecordStore
from emerdiff_probe.methods.catalogue import Method, configured, identity
from emerdiff_probe.methods.interface import Bounded, Segmenter
from emerdiff_probe.methods.naming import Naming
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.metrics.overlaps import adjusted_rand, boundary_f, covering, overlaps, variation_of_information
from emerdiff_probe.metrics.protocols import concept_embeddings, region_sums
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.sites import Site

FORMAT = 2
"""Of the records; raised when they would mean something else."""
FIGURES = ("boundary F (BSDS)", "adjusted Rand", "variation of information", "covering")
"""Scores that need no classes."""


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
        object.__setattr__(self, "methods", tuple(configured(method, self.config) for method in self.methods))
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
        store: where records are.
        images: names of the images that all methods have records of.
        skipped: of the others the name, and what was wrong.
        computed, reused: records made in this run, and records that were there already.
    """

    evaluation: Evaluation
    data: DataSet
    store: RecordStore
    images: tuple[str, ...]
    skipped: Mapping[str, str]
    computed: int
    reused: int

    def records(self, cell: Cell) -> list[Record]:
        """Of every image, in order."""
        return [self.store.record(image, cell) for image in self.images]

    @cached_property
    def concepts(self) -> np.ndarray:
        """Concept embeddings (class, channel) over the truth of these same images; NaN for classes without a pixel."""
        first, *others = self.images
        total = self.store.image(first, "sums", "pixels")
        for image in others:  # one at a time: a large data set's would not fit
            held = self.store.image(image, *total)
            total = {name: total[name] + held[name] for name in total}
        return concept_embeddings(total["sums"], total["pixels"])

    @cached_property
    def replay_error(self) -> float:
        """Largest difference, over all images, between the encoded latent and the end of the replayed inversion."""
        return max(float(self.store.image(image, "replay_error")["replay_error"]) for image in self.images)


def write_to_stderr(message: str) -> None:
    """Print a line above a progress bar."""
    tqdm.write(message, file=sys.stderr)


def run_evaluation(
    model: ProbeModel,
    data: DataSet,
    evaluation: Evaluation,
    *,
    store: str | Path,
    progress: bool = False,
    warn: Callable[[str], None] = write_to_stderr,
) -> EvaluationResult:
    """Segment every image by every method and keep what scores are made of.

    An image is inverted once for all methods. A run that was stopped goes on: records that are there are used, and the
    result equals that of a run in one piece to the bit, but for times and memory. An image that cannot be read, or that
    a method fails on, is skipped. One whose files changed since is read and must be the same. Embeddings of segments,
    for the protocols that ask for them, are means over pixels of bilinearly upsampled features, of the site that
    EmerDiff clusters, for all methods alike.

    Args:
        model: that all methods share.
        data: images and truth.
        evaluation: what to run.
        store: folder of the records; new, or with records of the same data, model and settings.
        progress: show a progress bar over records.
        warn: told of every image that cannot be used and is skipped.

    Raises:
        InputError: data without labels, a store of something else, an image or truth that is another than it was, no
            image that can be used, settings that do not fit the model, more segments than a method's grid has cells, or
            a trained method that has seen an image.
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
    _require_capacity(model, evaluation)
    kept = RecordStore(store, _identity(model, data, evaluation))
    for method in evaluation.methods:
        kept.require_method(method.name, identity(method))
    run = _Run(model, evaluation, kept, sites, data.classes, progress, warn)
    cells = evaluation.cells
    images, skipped, computed, reused = [], {}, 0, 0
    with tqdm(total=len(data) * len(cells), disable=not progress, desc=data.name, unit="record") as bar:

        def skip(place: int, error: ProbeError) -> None:
            skipped[data.names[place]] = str(error)
            warn(f"{data.names[place]} is skipped: {error}")
            bar.update((place + 1) * len(cells) - bar.n)

        for place, name in enumerate(data.names):
            missing = [cell for cell in cells if not kept.has(name, cell)]
            bar.update(len(cells) - len(missing))
            stamp = data.stamp(place)
            if missing or not kept.unchanged(name, stamp):
                try:
                    seen = _see(data, place, evaluation.resizing)
                except InputError as error:
                    skip(place, error)
                    continue
                kept.require_image(name, seen.digest, stamp)
            if missing:
                run.prepare(missing)
                try:
                    for _ in run.measure(name, seen, stamp, missing):
                        bar.update()
                        computed += 1
                except ProbeError as error:
                    skip(place, error)
                    continue
            images.append(name)
            reused += len(cells) - len(missing)
    if not images:
        raise InputError(f"{data!r}: none of its images can be used; the first: {next(iter(skipped.values()), 'none')}")
    return EvaluationResult(evaluation, data, kept, tuple(images), skipped, computed, reused)


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


def _identity(model: ProbeModel, data: DataSet, evaluation: Evaluation) -> dict[str, Any]:
    """What must be the same for records to be used again; methods, numbers and images may come and go."""
    return {
        "format": FORMAT,
        **data.identity(),
        "classes": list(data.classes),
        "fingerprint": model.fingerprint,
        "precision": str(model.dtype),
        "device": model.device.type,  # seconds of two devices would be averaged
        **evaluation.config.change(clusters=None).options(),
        "resizing": asdict(evaluation.resizing),
    }


class _Seen(NamedTuple):
    """An image as methods get it, its truth (annotator, height, width) in its own pixels, and a digest of both."""

    image: np.ndarray
    truth: np.ndarray
    size: tuple[int, int]
    digest: str


def _see(data: DataSet, place: int, resizing: Resizing) -> _Seen:
    """Read a sample; raises InputError where it cannot be scored."""
    sample = data[place]
    pixels = sample.pixels()
    truth = resizing.seen(sample.truth())
    truth = truth if truth.ndim == 3 else truth[None]
    if (truth == IGNORED).all(axis=(1, 2)).any():
        raise InputError(f"{sample.name}: every pixel is ignored")
    image = resizing.apply(pixels)
    digest = hashlib.sha256(image.tobytes() + truth.astype(np.int32).tobytes()).hexdigest()[:16]
    return _Seen(image, truth, (pixels.shape[0], pixels.shape[1]), digest)


@dataclass(eq=False)
class _Run:
    """The work on one image after the other."""

    model: ProbeModel
    evaluation: Evaluation
    store: RecordStore
    sites: Sequence[Site]
    classes: Sequence[str]
    progress: bool
    warn: Callable[[str], None]
    ready: dict[str, Segmenter] = field(default_factory=dict)
    """Methods that had to be trained, or to meet the model, by name."""

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Ready methods before an image is worked on: what goes wrong here is wrong for every image."""
        for cell in cells:
            self._ready(self.evaluation.cells[cell])

    def measure(self, name: str, seen: _Seen, stamp: Sequence[int], missing: Sequence[Cell]) -> Iterator[None]:
        """Make the missing records of an image one by one.

        Raises:
            ProbeError: a method that fails on this image; the message names it.
        """
        config = self.evaluation.config
        probed, inversion = measured(partial(config.probe, self.model, seen.image), self.model.device)
        cells = probed.features(self.sites, config.features.timesteps)
        features = rearrange(cells, "(h w) c -> h w c", h=probed.grid(self.sites)[0]).numpy()
        self.store.keep_image(name, seen.digest, stamp, partial(self._about, probed, seen.truth, features))
        for cell in missing:
            segmenter = self._ready(self.evaluation.cells[cell])
            try:
                labels, own = measured(partial(segmenter.segment, probed.afresh(), cell.clusters), self.model.device)
            except ProbeError as error:
                raise ProbeError(f"{cell.method}: {error}") from error
            labels = self.evaluation.resizing.restore(labels, *seen.size)
            cost = together(inversion, own) if segmenter.probes else on_host(own, self.model.device)
            self.store.write(name, cell, labels, self._record(labels, seen.truth, features, cost))
            yield

    def _ready(self, method: Method) -> Segmenter:
        if not isinstance(method, Reference | Naming):
            return method
        if method.name not in self.ready:
            self.ready[method.name] = method.bound(self.model) if isinstance(method, Naming) else self._trained(method)
        return self.ready[method.name]

    def _trained(self, method: Reference) -> Segmenter:
        weights, config = self.store.weights(method.name), self.evaluation.config
        return method.trained(self.model, config, weights, progress=self.progress, warn=self.warn)

    def _about(self, probed: ProbedImage, truth: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
        about = {"replay_error": np.array(probed.replay_error())}
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
