"""Segmenting many pictures into result folders, here or by Ray's workers; a batch that was stopped goes on."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.lists import list_some
from emerdiff_probe.data.pairs import Pair
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import require_names, require_writable, sweep
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.executor import Failed, Task, execute
from emerdiff_probe.runs.job import Cell, Record
from emerdiff_probe.runs.run import write_to_stderr
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import (
    WAY_OUT,
    Segmentation,
    is_doubtful,
    is_finished,
    model_precision,
    read_summary,
    require_replaceable,
)
from emerdiff_probe.segmentation.segment import segment

_CELL: Cell = ("segmentation",)


@dataclass(frozen=True)
class Batch:
    """What became of many pictures.

    Attributes:
        folders: result folder of every picture that has one now, by the picture's name, in order.
        finished: names of those that were finished before.
        skipped: of the others the name, and what was wrong.
        doubtful: names of those whose result has something against it; see `Segmentation.notes`.
    """

    folders: Mapping[str, Path]
    finished: frozenset[str]
    skipped: Mapping[str, str]
    doubtful: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What there is to say against results, in one line; "" for nothing."""
        if not self.doubtful:
            return ""
        return (
            f"{len(self.doubtful)} of {len(self.folders)} results explain much less of the picture's colours than "
            f"their enlarged masks do ({list_some(self.doubtful)}); {WAY_OUT}"
        )


def list_pictures(given: Sequence[str]) -> FolderDataset:
    """The pictures that a command line names.

    Args:
        given: files; folders, with all pictures inside; patterns such as "photos/*.jpg", where the shell has left them;
            and "@FILE", a file with one of these a line. Files need not be there or be pictures: what cannot be read
            is found when its turn comes.

    Raises:
        InputError: nothing, two pictures of one name, a folder without pictures, or a list that cannot be read.
    """
    pairs: list[Pair] = []
    notes: list[str] = []
    for text in _lines(given):
        path = Path(text)
        if os.path.isdir(text):  # as os.path.exists, it takes names of any length
            folder = FolderDataset.from_pictures(path)
            pairs += folder.pairs
            notes += folder.notes
        elif os.path.exists(text) or not glob.has_magic(text):
            pairs.append(Pair(path.stem, path))
        else:
            pairs += [Pair(Path(one).stem, Path(one)) for one in sorted(glob.glob(text, recursive=True))] or [
                Pair(path.stem, path)
            ]
    if not pairs:
        raise InputError("no pictures; accepted: files, folders, patterns, or @FILE with one of these a line")
    paths: dict[str, list[Path]] = {}
    for pair in pairs:
        paths.setdefault(pair.name, []).append(pair.image)
    for name, same in paths.items():
        if len(same) > 1:
            listed = ", ".join(map(str, same[:4]))
            raise InputError(f"{listed} would all be written to {name}; accepted: images with different names")
    return FolderDataset("pictures", (), tuple(pairs), None, tuple(notes))


def _lines(given: Iterable[str]) -> Iterator[str]:
    for text in given:
        if not text.startswith("@") or os.path.exists(text):
            yield text
            continue
        try:
            content = Path(text[1:]).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"{text[1:]}: cannot be read as a list of pictures ({error.strerror})") from error
        yield from (line.strip() for line in content.splitlines() if line.strip())


def segment_pictures(
    model: ProbeModel,
    data: DataSet,
    config: EmerDiffConfig,
    out: str | Path,
    *,
    workers: int | None = None,
    maps: bool = False,
    strict: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = print,
    warn: Callable[[str], None] = write_to_stderr,
) -> Batch:
    """Segment every picture of a data set into a result folder of its name.

    Folders that hold the same result already, whole, are left as they are, so that a batch that was stopped goes on.
    A picture that cannot be read, whose name is too long or which the settings do not fit is told, skipped and
    counted, and tried again the next time. A picture at a time is held, and one a worker.

    Args:
        model: from `load_model`.
        data: from `list_pictures`, or any data set.
        config: settings; what they leave open is the model's.
        out: folder of the result folders.
        workers: of Ray, as for `emerdiff_probe.runs.run.run`; None segments in this process. Results are the same.
        maps: keep difference maps.
        strict: stop at the first picture that is skipped.
        progress: show a progress bar with the time that is left.
        report: told of every result.
        warn: told of every picture that is skipped.

    Raises:
        InputError: a place that cannot be written or holds something else, found before anything runs; no picture that
            could be segmented; or with `strict` one that could not.
    """
    config = config.resolve(model)
    work = _Work(model, data, config, Path(out), maps)
    with tqdm(total=len(data), disable=not progress, desc="segment", unit="image", dynamic_ncols=True) as bar:

        def tell(line: str) -> None:
            bar.clear()
            report(line)
            bar.update()

        def skip(name: str, reason: str) -> None:
            work.skipped[name] = reason
            if strict:
                raise InputError(reason if name in reason else f"{name}: {reason}")
            if len(data) > 1:  # of a single one the error tells
                bar.clear()
                warn(f"{name} is skipped: {reason}")
            bar.update()

        with closing(execute(model, _Segment(config), work.tasks(tell, skip), workers)) as found:
            for each in found:
                name = data.names[each.place]
                if isinstance(each, Failed):
                    work.held.pop(each.place, None)
                    skip(name, each.reason)
                else:
                    tell(work.keep(each.place, each.record))
    folders = {name: work.out / name for name in data.names if name not in work.skipped}
    if not folders:
        name, reason = next(iter(work.skipped.items()))
        if len(data) == 1:
            raise InputError(reason)
        raise InputError(f"none of {len(data)} pictures could be segmented; the first, {name}: {reason}")
    doubtful = tuple(name for name in folders if is_doubtful(work.gains[name]))
    return Batch(folders, frozenset(work.finished), work.skipped, doubtful)


class _Work:
    """What is still to be done of a batch, and what is done."""

    def __init__(self, model: ProbeModel, data: DataSet, config: EmerDiffConfig, out: Path, maps: bool) -> None:
        self.model, self.data, self.config, self.out, self.maps = model, data, config, out, maps
        self.fingerprint = model.fingerprint  # once, not for every picture
        self.held: dict[int, tuple[np.ndarray, float]] = {}
        self.finished: list[str] = []
        self.gains: dict[str, float | None] = {}
        self.skipped: dict[str, str] = {}
        require_places(out, data.names)
        sweep(out)

    def tasks(self, tell: Callable[[str], None], skip: Callable[[str, str], None]) -> Iterator[Task]:
        """Pictures that have no result yet, each read when its turn comes."""
        for place, name in enumerate(self.data.names):
            folder = self.out / name
            try:
                require_names(dict.fromkeys(Path(name).parts), self.out)
                began = time.perf_counter()
                sample = self.data[place]
                pixels = sample.pixels()
                seconds = round(time.perf_counter() - began, 4)
            except (InputError, OSError) as error:
                skip(name, str(error))
                continue
            if is_finished(folder, self.model, pixels, self.config, maps=self.maps):
                self.finished.append(name)
                self.gains[name] = read_summary(folder).get("colour_gain")
                tell(f"{folder}: finished before")
                continue
            self.held[place] = pixels, seconds
            yield Task(place, replace(sample, image=pixels), (_CELL,))

    def keep(self, place: int, record: Record) -> str:
        """Save what was found in a picture; gives the line that tells of it."""
        (pixels, reading), name = self.held.pop(place), self.data.names[place]
        result = self._to_result(pixels, record, reading)
        began = time.perf_counter()
        self.gains[name] = result.colour_gain
        folder = result.save(self.out / name, maps=self.maps)
        seconds = sum(result.seconds.values()) + time.perf_counter() - began
        return f"{folder}: {result.masks} masks in {seconds:.1f} s"

    def _to_result(self, pixels: np.ndarray, record: Record, reading: float) -> Segmentation:
        stages = {name.removeprefix(_SECONDS): float(record[name]) for name in record if name.startswith(_SECONDS)}
        return Segmentation(
            image=pixels,
            **{name: np.asarray(record[name]) for name in _ARRAYS},
            config=self.config,
            model=self.model.name,
            fingerprint=self.fingerprint,
            precision=model_precision(self.model),
            seconds=stages | {"read": reading},
            colour_gain=float(record["colour_gain"]),
        )


@dataclass(frozen=True)
class _Segment:
    """The job of the engine: one segmentation a picture."""

    config: EmerDiffConfig
    name = "segment"

    @property
    def cells(self) -> Mapping[Cell, Mapping[str, Any]]:
        return {_CELL: {}}

    def identity(self) -> Mapping[str, Any]:
        return {}

    def describe(self) -> Mapping[str, Any]:
        return {}

    def prepare(self, model: ProbeModel, cells: Collection[Cell]) -> None:
        """Nothing is needed before the first picture."""

    def measure(self, model: ProbeModel, sample: Sample, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Record]]:
        found = segment(model, sample.image, self.config)
        arrays = {name: getattr(found, name) for name in _ARRAYS}
        seconds = {f"{_SECONDS}{stage}": seconds for stage, seconds in found.seconds.items()}
        assert found.colour_gain is not None
        yield _CELL, arrays | seconds | {"colour_gain": found.colour_gain}


_ARRAYS = ("labels", "low_resolution_masks", "maps", "responses", "mask_embeddings", "linkage")
_SECONDS = "seconds of "


def require_places(out: str | Path, names: Sequence[str]) -> None:
    """Refuse a folder in which results of these names cannot be written; nothing is made there.

    Args:
        out: folder of the result folders.
        names: of pictures. Those that are too long are left for their turn to come.

    Raises:
        InputError: it cannot be written to, a result folder holds something else, or one would lie inside another and
            go when that is replaced.
    """
    require_writable(Path(out))
    known = set(names)
    for name in names:
        inside = next((str(above) for above in Path(name).parents if str(above) in known), None)
        if inside is not None:
            raise InputError(f"{name} would be written inside the result of {inside}; accepted: one a run")
        if _fits(name):
            require_replaceable(Path(out) / name)


def _fits(name: str) -> bool:
    try:
        require_names(dict.fromkeys(Path(name).parts), Path())
    except InputError:
        return False
    return True


def load_batch(batch: Batch) -> Iterator[tuple[str, Segmentation]]:
    """The results of a batch one after the other, by name.

    Raises:
        InputError: a folder that was damaged since.
    """
    for name, folder in batch.folders.items():
        yield name, Segmentation.load(folder)
