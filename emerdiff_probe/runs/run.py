"""Running a job over a data set: what is there is used, what is missing or damaged is measured, what fails is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tqdm.auto import tqdm

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.summary import LabelSummary, count_labels, summarize
from emerdiff_probe.errors import InputError, LabelError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.executor import Failed, Measured, Task, execute
from emerdiff_probe.runs.job import Cell, Job
from emerdiff_probe.runs.store import Known, Store, brief
from emerdiff_probe.segmentation.result import package_versions


@dataclass(frozen=True, eq=False)
class Run:
    """What there is after a run.

    Attributes:
        store: where records are.
        samples: those that have a record of every cell, in the order of the data.
        skipped: of the others the name, and what was wrong.
        computed, reused: records of this run, and records of `samples` that were there already.
    """

    store: Store
    samples: tuple[Known, ...]
    skipped: Mapping[str, str]
    computed: int = 0
    reused: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the samples."""
        return tuple(sample.name for sample in self.samples)

    def record(self, name: str, cell: Cell) -> dict[str, np.ndarray]:
        """What was measured in a cell of a sample.

        Raises:
            InputError: the record is missing or damaged.
            KeyError: no such sample.
        """
        return self.store.read(self._by_name[name], cell)

    def summarize_labels(self, classes: Sequence[str]) -> LabelSummary | None:
        """Which classes occur in the samples, and how much is ignored; None where there are no labels."""
        counts = [sample.labels for sample in self.samples if sample.labels]
        return summarize(np.sum(counts, axis=0), classes) if counts else None

    @cached_property
    def _by_name(self) -> dict[str, Known]:
        return {sample.name: sample for sample in self.samples}


def write_to_stderr(message: str) -> None:
    """Print a line above a progress bar."""
    tqdm.write(message, file=sys.stderr)


def run(
    model: ProbeModel,
    job: Job,
    data: DataSet,
    *,
    store: str | Path,
    workers: int | None = None,
    resume: bool = True,
    progress: bool = False,
    warn: Callable[[str], None] = write_to_stderr,
    sources: Mapping[Cell, Callable[[str], str]] = MappingProxyType({}),
) -> Run:
    """Measure every cell of a job on every sample, and keep each record as soon as it is known.

    A run that was stopped, killed even, goes on where it stopped: records that are there and whole are used, and the
    result equals that of a run in one piece to the bit. Records that are damaged, missing or of something else are told
    and measured anew. A sample that cannot be read, that the job fails on, or whose worker dies twice is told, skipped
    and counted, and tried again by the next run. One whose files changed since is read again and must be the same.

    Args:
        model: that is measured.
        job: what is wanted of every sample; see `Job`.
        data: the samples.
        store: folder of the records; new, or with records of the same job, model and data.
        workers: of Ray, among which whole samples are shared: on the cluster that RAY_ADDRESS names, else on this
            machine. None measures in this process. Records are the same to the bit: workers run with as many threads as
            this process (OMP_NUM_THREADS), because the last bits may depend on it.
        resume: use records that are there; otherwise they are an error.
        progress: show a progress bar over records.
        warn: told of every sample that is skipped and of every damaged file.
        sources: for cells that are made of files beside the samples': what tells of the sample of this name whether
            its file is another. A record says by its "source" what it was made of; others are measured anew.

    Raises:
        InputError: a store of something else, a sample that is another than it was, no sample that can be used, or
            workers without Ray, without a cluster, or more than it has processors.
        LabelError: labels that are no class as the data is described; they may be others in every sample.
        ProbeError: as `Job.prepare`.
    """
    kept = Store(store, {**job.identity(), **_identity(model, data)}, _description(model, job), warn=warn)
    if not resume and kept.path.exists() and any(kept.path.iterdir()):
        raise InputError(f"{kept.path} holds a run already; accepted without resume: a new folder")
    kept.require_cells(job.cells)
    with tqdm(total=len(data) * len(job.cells), disable=not progress, desc=job.name, unit="record") as bar:
        work = _Work(model, job, data, kept, bar, warn, sources)
        return work.run(workers)


def _identity(model: ProbeModel, data: DataSet) -> dict[str, object]:
    return {
        **data.identity(),
        "classes": list(data.classes),
        "fingerprint": model.fingerprint,
        "precision": str(model.dtype),
    }


def _description(model: ProbeModel, job: Job) -> dict[str, object]:
    return {**job.describe(), "job": job.name, "model": model.name, "versions": package_versions()}


class _Work:
    """One run: what is missing of which sample, and what became of it."""

    def __init__(
        self,
        model: ProbeModel,
        job: Job,
        data: DataSet,
        kept: Store,
        bar: tqdm,
        warn: Callable[[str], None],
        sources: Mapping[Cell, Callable[[str], str]],
    ) -> None:
        self.sources = sources
        self.model, self.job, self.data, self.kept, self.bar, self.warn = model, job, data, kept, bar, warn
        self.known = {place: kept.known(name) for place, name in enumerate(data.names)}
        self.missing = {place: self._missing(place) for place in self.known}
        self.skipped: dict[str, str] = {}
        self.computed = 0

    def run(self, workers: int | None) -> Run:
        """Measure what is missing."""
        wanted = dict.fromkeys(cell for cells in self.missing.values() for cell in cells)
        if wanted:
            self.job.prepare(self.model, list(wanted))
        self.bar.update(sum(map(self._reused, self.missing)))
        with closing(execute(self.model, self.job, self._tasks(), workers)) as found:
            for each in found:
                self._keep(each)
        places = [place for place, name in enumerate(self.data.names) if name not in self.skipped]
        if not places:
            first = next(iter(self.skipped.items()), ("none", "no samples"))
            raise InputError(f"{self.data!r}: none of its samples can be used; the first: {first[0]}: {first[1]}")
        self.kept.begin()
        samples = tuple(known for place in places if (known := self.known[place]) is not None)
        return Run(self.kept, samples, self.skipped, self.computed, sum(map(self._reused, places)))

    def _reused(self, place: int) -> int:
        return len(self.job.cells) - len(self.missing[place])

    def _keep(self, found: Measured | Failed) -> None:
        if isinstance(found, Failed):
            self._skip(found.place, found.reason)
            return
        known = self.known[found.place]
        assert known is not None
        self.kept.write(known, found.cell, found.record)
        self.computed += 1
        self.bar.update()

    def _tasks(self) -> Iterator[Task]:
        """Samples with something missing, each read when its turn comes; one that may have changed is read, too."""
        for place, name in enumerate(self.data.names):
            known, stamp = self.known[place], self.data.stamp(place)
            if known is not None and not self.missing[place] and stamp and known.stamp == stamp:
                continue
            try:
                sample = self.data[place]
                digest = sample.digest()
                pixels = sample.pixels()
            except LabelError:  # what was understood of the other labels may be wrong, too
                raise
            except InputError as error:
                self._skip(place, str(error))
                continue
            labels = () if sample.labels is None else count_labels(sample.labels, len(self.data.classes)).tolist()
            found = Known(name, digest, stamp, tuple(labels))
            self.kept.keep_sample(found)
            self.known[place] = found
            if known is None:  # what was known of it may have been lost, and not its records
                self.missing[place] = self._missing(place)
            if self.missing[place]:
                yield Task(place, replace(sample, image=pixels), tuple(self.missing[place]))

    def _missing(self, place: int) -> list[Cell]:
        known, cells = self.known[place], []
        for cell in self.job.cells:
            wrong = "" if known is None else self.kept.state(known, cell)
            if wrong is None and known is not None and cell in self.sources:
                made_of = str(self.kept.read(known, cell)["source"])
                if made_of != self.sources[cell](known.name):
                    wrong = f"{known.name}: what {brief(cell)} is made of changed"
            if wrong is None:
                continue
            if wrong:
                self.warn(f"{wrong}; it is measured anew")
            cells.append(cell)
        return cells

    def _skip(self, place: int, reason: str) -> None:
        name = self.data.names[place]
        self.skipped[name] = reason
        self.warn(f"{name} is skipped: {reason}")


def stored(store: str | Path, cells: Mapping[Cell, Mapping[str, object]], warn: Callable[[str], None]) -> Run:
    """What a store holds of some cells, without model or data.

    Samples without a record of every cell, or with a damaged one, are in `skipped` with what is wrong.

    Raises:
        InputError: no store there, or a damaged one.
    """
    kept = Store.open(store, warn=warn)
    kept.require_cells(cells)
    samples, skipped = list[Known](), dict[str, str]()
    for sample in kept.samples():
        states = [kept.state(sample, cell) for cell in cells]
        damaged = [state for state in states if state]
        if damaged:
            skipped[sample.name] = f"{len(damaged)} damaged records, the first: {damaged[0]}"
        elif "" in states:
            skipped[sample.name] = f"{states.count('')} of {len(states)} records missing"
        else:
            samples.append(sample)
    return Run(kept, tuple(samples), skipped, 0, len(samples) * len(cells))
