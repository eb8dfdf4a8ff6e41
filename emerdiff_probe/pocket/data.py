"""Training pictures: drawn scenes of the world, or a folder of images, in one memory-mapped array."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import compose, list_files
from emerdiff_probe.images import IMAGE_SUFFIXES, load_image

HELD_OUT_SEEDS = range(900_000, 1_000_000)
"""Seeds of the scenes on which training reports its figures."""
TRAIN_SEEDS = range(1_000_000, 2**31)
"""Seeds of the scenes that are trained on; every seed below is free for evaluation."""

_RENDER_CHUNK = 16


@dataclass(frozen=True)
class Closeup:
    """A square window of a picture, in pixels, with a caption of its own."""

    top: int
    left: int
    side: int
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Square pictures with a caption each ("" where there is none), and perhaps close-ups of each."""

    images: np.ndarray
    """(image, height, width, 3), uint8."""
    captions: Sequence[str]
    closeups: Sequence[Sequence[Closeup]] = ()
    """Of every picture, as many of each of a few sides; empty where pictures have none."""

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class CloseupGrid:
    """Where close-ups of a square picture may be: on a grid of cells, a few of every side.

    Attributes:
        cell: pixels of a side of a cell.
        each: close-ups of every side.
        sides: sides as shares of the picture's.
    """

    cell: int
    each: int = 4
    sides: tuple[float, ...] = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)

    def windows(self, seed: int, size: int) -> list[tuple[int, int, int]]:
        """Top, left and side in pixels of the close-ups of a picture of `size` pixels, drawn from `seed`."""
        random = np.random.default_rng((seed, self.cell))
        across = size // self.cell
        found = []
        for side in sorted({max(1, round(across * share)) for share in self.sides}):
            for top, left in random.integers(across - side + 1, size=(self.each, 2)).tolist():
                found.append((top * self.cell, left * self.cell, side * self.cell))
        return found


class SceneStore:
    """Scenes of the world, drawn by a pool of processes into a memory-mapped file while others read.

    ``ready`` counts the scenes that may be read; it grows from zero to ``count``. A store opened again on
    the same folder goes on after the scenes that are already there. Leaving its context stops the pool. With a
    ``grid`` every scene also has close-ups.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        size: int,
        seeds: range = TRAIN_SEEDS,
        workers: int = 1,
        grid: CloseupGrid | None = None,
    ):
        if not 1 <= count <= len(seeds):
            raise InputError(f"scenes: {count} given; 1 to {len(seeds)} accepted")
        folder.mkdir(parents=True, exist_ok=True)
        self.count, self.size, self.seeds, self.workers, self.grid = count, size, seeds, workers, grid
        name = f"scenes-{size}" if grid is None else f"scenes-{size}-closeups-{grid.cell}x{grid.each}"
        self._pixels = folder / f"{name}.u8"
        self._log = folder / f"{name}.jsonl"
        self.captions: list[str] = []
        self._closeups: list[list[Closeup]] = []
        for line in _read_lines(self._log)[:count]:
            self._take(*_decode(line))
        _grow(self._pixels, count * size * size * 3)
        self._pixel_map = np.memmap(self._pixels, np.uint8, "r", shape=(count, size, size, 3))
        self._failure: BaseException | None = None
        self._pool: Pool | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SceneStore:
        if self.ready < self.count:
            # Spawned, not forked: a fork would inherit the locks of torch's threads.
            self._pool = multiprocessing.get_context("spawn").Pool(self.workers, _ignore_interrupt)
            self._thread = threading.Thread(target=self._collect, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None

    @property
    def ready(self) -> int:
        """Scenes drawn so far."""
        return len(self.captions)

    def pictures(self) -> Pictures:
        """The scenes drawn so far; their pixels are not copied."""
        ready = self.ready
        closeups = self._closeups[:ready] if self.grid else ()
        return Pictures(self._pixel_map[:ready], self.captions[:ready], closeups)

    def wait(self, count: int) -> Pictures:
        """The scenes once ``count`` of them are drawn; raises what stopped the drawing."""
        while self.ready < min(count, self.count):
            if self._failure is not None:
                raise self._failure
            time.sleep(0.02)
        return self.pictures()

    def _collect(self) -> None:
        tasks = [
            range(start, min(start + _RENDER_CHUNK, self.count))
            for start in range(self.ready, self.count, _RENDER_CHUNK)
        ]
        draw = partial(_draw_into, self._pixels, self.count, self.size, self.seeds, self.grid)
        pool = self._pool
        assert pool is not None
        try:
            with self._log.open("a", encoding="utf-8") as log:
                for drawn in pool.imap(draw, tasks):
                    log.writelines(_encode(*told) + "\n" for told in drawn)
                    log.flush()
                    for told in drawn:
                        self._take(*told)
        except BaseException as failure:
            self._failure = failure

    def _take(self, caption: str, closeups: list[Closeup]) -> None:
        self._closeups.append(closeups)
        self.captions.append(caption)  # last, as it counts the scenes that are ready


@dataclass(frozen=True)
class PictureSource:
    """Pictures to train on (perhaps still being drawn), those held out, and the words of their captions."""

    count: int
    ready: Callable[[], Pictures]
    wait: Callable[[int], Pictures]
    held_out: Pictures | None
    words: tuple[str, ...]
    description: dict[str, Any]


@contextmanager
def open_pictures(
    size: int,
    count: int,
    *,
    images: Path | None,
    captions: Path | None = None,
    cache: Path | None = None,
    held_out: int = 64,
    workers: int | None = None,
    grid: CloseupGrid | None = None,
    report: Callable[[str], Any] = warnings.warn,
) -> Iterator[PictureSource]:
    """Pictures to train on: drawn scenes, or those of a folder.

    Args:
        size: pixels of a side.
        count: pictures at most.
        images: a folder of images; scenes of the world where None.
        captions: as in `read_folder`.
        cache: folder of drawn scenes, needed without `images`.
        held_out: pictures that are set apart; a tenth of a folder at most.
        workers: processes that draw scenes; all cores when None.
        grid: of the close-ups of drawn scenes; none when None.
        report: told of unreadable files.

    Raises:
        InputError: as `read_folder` and `SceneStore` do.
    """
    if images is None:
        from emerdiff_probe.pocket.world import caption_vocabulary

        if cache is None:
            raise InputError("cache: none given for drawn scenes; a folder is accepted")
        apart = draw_scenes(HELD_OUT_SEEDS[:held_out], size) if held_out else None
        with SceneStore(cache, count=count, size=size, workers=workers or os.cpu_count() or 1, grid=grid) as store:
            description = {
                "data": "the project's procedural world",
                "pictures": count,
                "first_seed": store.seeds[0],
            }
            yield PictureSource(count, store.pictures, store.wait, apart, caption_vocabulary(), description)
        return
    everything = read_folder(images, size=size, captions=captions, cap=count, report=report)
    kept = min(held_out, len(everything) // 10)
    apart = Pictures(everything.images[:kept], everything.captions[:kept]) if kept else None
    pictures = Pictures(everything.images[kept:], everything.captions[kept:])
    texts = read_captions(captions).values() if captions else ()
    known = tuple(sorted({word for text in texts for word in words(text)}))
    description = {"data": f"images of the folder {images.name}", "pictures": len(pictures)}
    yield PictureSource(len(pictures), lambda: pictures, lambda count: pictures, apart, known, description)


def draw_scenes(seeds: Sequence[int], size: int, grid: CloseupGrid | None = None) -> Pictures:
    """Scenes of the world drawn here and now (for a few, such as those held out), with close-ups on a ``grid``."""
    from emerdiff_probe.pocket.world import draw_closeups

    images, captions, closeups = [], [], []
    for seed in seeds:
        places = grid.windows(seed, size) if grid else []
        windows = [(top, left, side, side) for top, left, side in places]
        whole, *parts = draw_closeups(seed, [(0, 0, size, size), *windows], height=size, width=size)
        images.append(whole.image)
        captions.append(whole.caption)
        closeups.append([Closeup(*place, part.caption) for place, part in zip(places, parts, strict=True)])
    return Pictures(np.stack(images), captions, closeups if grid else ())


def read_folder(
    folder: Path,
    *,
    size: int,
    captions: Path | None = None,
    cap: int | None = None,
    report: Callable[[str], Any] = warnings.warn,
) -> Pictures:
    """Every readable image below ``folder`` as squares of ``size`` pixels; hidden files and folders are no images.

    The short side is scaled to ``size``; an elongated image gives as many evenly spread crops as cover it.
    Captions, what is reported and what is raised are those of ``visit_images``.
    """
    squares: list[np.ndarray] = []
    names: list[str] = []

    def keep(image: np.ndarray, caption: str) -> bool:
        crops = _squares(image, size)
        squares.extend(crops)
        names.extend([caption] * len(crops))
        return cap is None or len(squares) < cap

    visit_images(folder, keep, captions=captions, report=report)
    return Pictures(np.stack(squares[:cap]), names[:cap])


def visit_images(
    folder: Path,
    keep: Callable[[np.ndarray, str], bool],
    *,
    captions: Path | None = None,
    report: Callable[[str], Any] = warnings.warn,
) -> None:
    """Hand every readable image below a folder, with its caption, to `keep`, until that is False.

    Args:
        folder: with images; hidden files and folders are none.
        keep: takes an image (height, width, 3), uint8, and its caption ("" without captions); says whether to go on.
        captions: a JSON object from file names, with or without suffix, to texts; only images that it names are taken.
        report: told of images that cannot be read, images without a caption, captions without an image, and files of
            other formats.

    Raises:
        InputError: no folder, no such image, or captions that cannot be read.
    """
    texts = None if captions is None else read_captions(captions)
    broken: list[str] = []
    visited = 0
    paths, others = _images_in(folder)
    keys = {path: _caption_key(path.relative_to(folder), texts) for path in paths}
    for path, key in keys.items():
        if key is None:
            continue
        try:
            image = load_image(path)
        except InputError:
            broken.append(path.name)
            continue
        visited += 1
        if not keep(image, "" if texts is None else texts[key]):
            break
    left = {
        "unreadable image(s)": broken,
        "image(s) without a caption": [path.name for path, key in keys.items() if key is None],
        "caption(s) without an image": sorted((texts or {}).keys() - keys.values()),
        "file(s) of formats that are not taken": others,
    }
    for what, found in left.items():
        if found:
            report(f"{folder}: skipped {len(found)} {what}, the first {found[0]}")
    if not visited:
        named = "" if captions is None else f" that {captions} names"
        raise InputError(
            f"{folder}: no readable image{named} ({len(broken)} unreadable); "
            f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))} are accepted"
        )


def _images_in(folder: Path) -> tuple[list[Path], list[str]]:
    """Images below a folder, and names of what is there beside them; InputError for no folder."""
    paths = list_files(folder)
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return images, [path.name for path in paths if path.suffix.lower() not in {*IMAGE_SUFFIXES, ".json"}]


def read_captions(path: Path) -> dict[str, str]:
    """Captions by file name, in NFC, from a JSON object; ``InputError`` if the file holds anything else."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: captions cannot be read ({error})") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f'{path}: a JSON object such as {{"boat.png": "a boat on a lake"}} is accepted')
    return {compose(name): text for name, text in texts.items()}


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return "".join(character if character.isalnum() else " " for character in text.lower()).split()


def mirrored(caption: str) -> str:
    """The caption of the same picture flipped from left to right."""
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda word: swap[word.group()], caption)


def _caption_key(path: Path, texts: dict[str, str] | None) -> str | None:
    """Under which name an image has its caption; None where it has none, "" where nobody asked for captions."""
    if texts is None:
        return ""
    names = (path.as_posix(), path.name, path.with_suffix("").as_posix(), path.stem)
    return next((name for name in map(compose, names) if name in texts), None)


def _squares(pixels: np.ndarray, size: int) -> list[np.ndarray]:
    image = Image.fromarray(pixels)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    slack = max(width, height) - size
    count = math.ceil(max(width, height) / size)
    starts = [slack // 2] if count == 1 else [round(slack * n / (count - 1)) for n in range(count)]
    if height > width:
        return [scaled[start : start + size] for start in starts]
    return [scaled[:, start : start + size] for start in starts]


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw_into(
    pixels: Path, count: int, size: int, seeds: range, grid: CloseupGrid | None, indices: range
) -> list[tuple[str, list[Closeup]]]:
    """Draw the scenes of ``indices`` into their places of the file; returns their captions and close-ups."""
    drawn = draw_scenes([seeds[index] for index in indices], size, grid)
    target = np.memmap(pixels, np.uint8, "r+", shape=(count, size, size, 3))
    target[indices.start : indices.stop] = drawn.images
    closeups = drawn.closeups or [[] for _ in indices]
    return [(caption, list(own)) for caption, own in zip(drawn.captions, closeups, strict=True)]


def _encode(caption: str, closeups: list[Closeup]) -> str:
    return json.dumps([caption, *(list(astuple(closeup)) for closeup in closeups)] if closeups else caption)


def _decode(line: str) -> tuple[str, list[Closeup]]:
    told = json.loads(line)
    return (told, []) if isinstance(told, str) else (told[0], [Closeup(*values) for values in told[1:]])


def _read_lines(log: Path) -> list[str]:
    """One for each scene already drawn; a last line cut short by a kill is dropped from the file."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    log.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return lines


def _grow(path: Path, size: int) -> None:
    with path.open("ab") as file:
        if file.tell() < size:
            file.truncate(size)
