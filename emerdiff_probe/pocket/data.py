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
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image

HELD_OUT_SEEDS = range(900_000, 1_000_000)
"""Seeds of the scenes on which training reports its figures."""
TRAIN_SEEDS = range(1_000_000, 2**31)
"""Seeds of the scenes that are trained on; every seed below is free for evaluation."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_RENDER_CHUNK = 16


@dataclass(frozen=True)
class Pictures:
    """Square pictures with a caption each ("" where there is none)."""

    images: np.ndarray
    """(image, height, width, 3), uint8."""
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)


class SceneStore:
    """Scenes of the world, drawn by a pool of processes into a memory-mapped file while others read.

    ``ready`` counts the scenes that may be read; it grows from zero to ``count``. A store opened again on
    the same folder goes on after the scenes that are already there. Leaving its context stops the pool.
    """

    def __init__(self, folder: Path, *, count: int, size: int, seeds: range = TRAIN_SEEDS, workers: int = 1):
        if not 1 <= count <= len(seeds):
            raise InputError(f"scenes: {count} given; 1 to {len(seeds)} accepted")
        folder.mkdir(parents=True, exist_ok=True)
        self.count, self.size, self.seeds, self.workers = count, size, seeds, workers
        self._pixels = folder / f"scenes-{size}.u8"
        self._log = folder / f"scenes-{size}.jsonl"
        self.captions: list[str] = _read_captions(self._log)[:count]
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
        """The scenes drawn so far, not copied."""
        ready = self.ready
        return Pictures(self._pixel_map[:ready], self.captions[:ready])

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
        draw = partial(_draw_into, self._pixels, self.count, self.size, self.seeds)
        pool = self._pool
        assert pool is not None
        try:
            with self._log.open("a", encoding="utf-8") as log:
                for captions in pool.imap(draw, tasks):
                    log.writelines(json.dumps(caption) + "\n" for caption in captions)
                    log.flush()
                    self.captions.extend(captions)
        except BaseException as failure:
            self._failure = failure


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
        report: told of unreadable files.

    Raises:
        InputError: as `read_folder` and `SceneStore` do.
    """
    if images is None:
        from emerdiff_probe.pocket.world import caption_vocabulary

        if cache is None:
            raise InputError("cache: none given for drawn scenes; a folder is accepted")
        apart = draw_scenes(HELD_OUT_SEEDS[:held_out], size) if held_out else None
        with SceneStore(cache, count=count, size=size, workers=workers or os.cpu_count() or 1) as store:
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


def draw_scenes(seeds: Sequence[int], size: int) -> Pictures:
    """Scenes of the world drawn here and now (for a few, such as those held out)."""
    from emerdiff_probe.pocket.world import draw_scene

    scenes = [draw_scene(seed, height=size, width=size) for seed in seeds]
    return Pictures(np.stack([scene.image for scene in scenes]), [scene.caption for scene in scenes])


def read_folder(
    folder: Path,
    *,
    size: int,
    captions: Path | None = None,
    cap: int | None = None,
    report: Callable[[str], Any] = warnings.warn,
) -> Pictures:
    """Every readable image below ``folder`` as squares of ``size`` pixels.

    The short side is scaled to ``size``; an elongated image gives as many evenly spread crops as cover it.
    With ``captions`` (a JSON object from file names, with or without suffix, to texts) only the images that
    it names are taken. Unreadable files are skipped and reported. Raises ``InputError`` if nothing is left.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a folder of images is accepted")
    texts = None if captions is None else read_captions(captions)
    squares: list[np.ndarray] = []
    names: list[str] = []
    broken: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        text = _caption_of(path.relative_to(folder), texts)
        if text is None:
            continue
        try:
            crops = _squares(path, size)
        except InputError:
            broken.append(path)
            continue
        squares.extend(crops)
        names.extend([text] * len(crops))
        if cap is not None and len(squares) >= cap:
            break
    if broken:
        report(f"{folder}: skipped {len(broken)} unreadable image(s), the first {broken[0].name}")
    if not squares:
        named = "" if captions is None else f" that {captions} names"
        raise InputError(
            f"{folder}: no readable image{named} ({len(broken)} unreadable); "
            f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))} are accepted"
        )
    return Pictures(np.stack(squares[:cap]), names[:cap])


def read_captions(path: Path) -> dict[str, str]:
    """Captions by file name from a JSON object; ``InputError`` if the file holds anything else."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: captions cannot be read ({error})") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f'{path}: a JSON object such as {{"boat.png": "a boat on a lake"}} is accepted')
    return texts


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return "".join(character if character.isalnum() else " " for character in text.lower()).split()


def mirrored(caption: str) -> str:
    """The caption of the same picture flipped from left to right."""
    swap = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda word: swap[word.group()], caption)


def _caption_of(path: Path, texts: dict[str, str] | None) -> str | None:
    if texts is None:
        return ""
    keys = (path.as_posix(), path.name, path.stem)
    return next((texts[key] for key in keys if key in texts), None)


def _squares(path: Path, size: int) -> list[np.ndarray]:
    image = Image.fromarray(load_image(path))
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    slack = max(width, height) - size
    count = math.ceil(max(width, height) / size)
    starts = [slack // 2] if count == 1 else [round(slack * n / (count - 1)) for n in range(count)]
    if height > width:
        return [pixels[start : start + size] for start in starts]
    return [pixels[:, start : start + size] for start in starts]


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw_into(pixels: Path, count: int, size: int, seeds: range, indices: range) -> list[str]:
    """Draw the scenes of ``indices`` into their places of the file; returns their captions."""
    drawn = draw_scenes([seeds[index] for index in indices], size)
    target = np.memmap(pixels, np.uint8, "r+", shape=(count, size, size, 3))
    target[indices.start : indices.stop] = drawn.images
    return list(drawn.captions)


def _read_captions(log: Path) -> list[str]:
    """Captions of the scenes already drawn; a last line cut short by a kill is dropped from the file."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    log.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


def _grow(path: Path, size: int) -> None:
    with path.open("ab") as file:
        if file.tell() < size:
            file.truncate(size)
