"""What a denoiser learns from: squares of drawn scenes, or random windows of a folder's pictures; a pool of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.pocket.data import Pictures, PictureSource, mirrored, read_captions, visit_images, words

ROOM = 1.25
"""Times the side of a training picture that the shorter side of a kept one is at most: what a closer look shows."""
LEAST_SIDE = 0.6
"""Least side of a window, as a share of the picture's shorter one."""


class Examples(Protocol):
    """Pictures to learn from, each a function of its number or of a random generator.

    Attributes:
        total: how many different ones there are by number; None where there is no end of them.
        held_out: pictures that are set apart.
        words: of all captions.
        description: for the model card.
    """

    total: int | None
    held_out: Pictures | None
    words: tuple[str, ...]
    description: dict[str, Any]

    def example(self, number: int) -> tuple[np.ndarray, str]:
        """One picture (size, size, 3), uint8, and its caption."""

    def crops(self, random: np.random.Generator, count: int, side: int, *, all_drawn: bool) -> np.ndarray:
        """Random crops (count, side, side, 3), at the scales of examples; of all, or of those drawn so far."""


class Scenes:
    """Drawn scenes as they are, which their captions tell; then, with `mirror`, their mirror images."""

    def __init__(self, source: PictureSource, *, mirror: bool) -> None:
        self.source = source
        self.total: int | None = source.count * (2 if mirror else 1)
        self.held_out, self.words, self.description = source.held_out, source.words, source.description

    def example(self, number: int) -> tuple[np.ndarray, str]:
        """As in `Examples`; waits until the scene is drawn."""
        place = number % self.source.count
        pictures = self.source.wait(place + 1)
        image, caption = pictures.images[place], pictures.captions[place]
        return (image, caption) if number < self.source.count else (image[:, ::-1], mirrored(caption))

    def crops(self, random: np.random.Generator, count: int, side: int, *, all_drawn: bool) -> np.ndarray:
        """As in `Examples`; half of them are mirror images."""
        images = self.source.wait(self.source.count if all_drawn else 2 * count).images
        height, width = images.shape[1:3]
        chosen = random.integers(len(images), size=count)
        tops, lefts = (random.integers(length - side + 1, size=count) for length in (height, width))
        cut = [
            images[n, top : top + side, left : left + side] for n, top, left in zip(chosen, tops, lefts, strict=True)
        ]
        return _mirror_half(np.stack(cut), random)


@dataclass(eq=False)
class Windows:
    """Random square windows of pictures, at random scales, half of them mirrored: no end of examples.

    Attributes:
        pictures: (height, width, 3) each, uint8, of any sizes; they may be mapped from a file.
        captions: of every picture.
        size: pixels of a side of an example.
        seed: of the examples.
        mirror: whether half of them are mirrored.
        held_out, words, description: as in `Examples`.
    """

    pictures: Sequence[np.ndarray]
    captions: Sequence[str]
    size: int
    seed: int
    mirror: bool
    held_out: Pictures | None
    words: tuple[str, ...]
    description: dict[str, Any]
    total: int | None = None

    def example(self, number: int) -> tuple[np.ndarray, str]:
        """As in `Examples`: a window of `LEAST_SIDE` or more of the shorter side of a picture."""
        random = np.random.default_rng([self.seed, number])
        chosen = int(random.integers(len(self.pictures)))
        cut, caption = self._window(chosen, random, self.size), self.captions[chosen]
        if self.mirror and random.random() < 0.5:
            return cut[:, ::-1], mirrored(caption)
        return cut, caption

    def crops(self, random: np.random.Generator, count: int, side: int, *, all_drawn: bool) -> np.ndarray:
        """As in `Examples`: parts of examples, of which no more is made; half of them mirror images."""
        chosen = random.integers(len(self.pictures), size=count)
        return _mirror_half(np.stack([self._window(int(number), random, side) for number in chosen]), random)

    def _window(self, number: int, random: np.random.Generator, side: int) -> np.ndarray:
        """A random window of a picture at an example's scale, of `side` pixels."""
        picture = self.pictures[number]
        height, width = picture.shape[:2]
        across = side / self.size * random.uniform(LEAST_SIDE, 1.0) * min(height, width)
        top, left = random.uniform(0, height - across), random.uniform(0, width - across)
        return _resize(picture, side, box=(left, top, left + across, top + across))


def open_windows(
    folder: Path,
    size: int,
    *,
    cap: int,
    store: Path,
    captions: Path | None = None,
    held_out: int = 64,
    seed: int = 0,
    mirror: bool = True,
    report: Callable[[str], Any] = print,
) -> Windows:
    """Windows of the pictures of a folder, which are kept at their own size in one file that is mapped into memory.

    Args:
        folder: of images of any size; a kept one has a shorter side of `ROOM` x `size` at most.
        size: pixels of a side of an example.
        cap: pictures at most.
        store: folder of that file, which is written anew.
        captions: as in `data.read_folder`.
        held_out: pictures that are set apart, evenly over the folder, a tenth of it at most; their middle squares.
        seed: of the examples.
        mirror: whether half of them are mirrored.
        report: told of what is skipped.

    Raises:
        InputError: no folder, no readable image, captions that cannot be read, or no room for the file.
    """
    shapes: list[tuple[int, ...]] = []
    texts: list[str] = []

    def write(partial: Path) -> None:
        with partial.open("wb") as file:

            def keep(image: np.ndarray, caption: str) -> bool:
                kept = _shrink(image, round(ROOM * size))
                file.write(kept.tobytes())
                shapes.append(kept.shape)
                texts.append(caption)
                return len(texts) < cap

            visit_images(folder, keep, captions=captions, report=report)

    path = store / "pictures.u8"
    try:
        write_whole(path, write)
    except OSError as error:
        raise InputError(
            f"{path}: pictures cannot be kept there ({error.strerror}); a disk with room accepted"
        ) from error
    pixels = np.memmap(path, np.uint8, "r")
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    pictures = [pixels[start:end].reshape(shape) for start, end, shape in zip([0, *ends], ends, shapes, strict=False)]
    apart = min(held_out, len(pictures) // 10)
    held = {int((n + 0.5) * len(pictures) / apart) for n in range(apart)}
    squares = [middle_square(pictures[number], size) for number in sorted(held)]
    kept = [number for number in range(len(pictures)) if number not in held]
    known = read_captions(captions).values() if captions else ()
    return Windows(
        pictures=[pictures[number] for number in kept],
        captions=[texts[number] for number in kept],
        size=size,
        seed=seed,
        mirror=mirror,
        held_out=Pictures(np.stack(squares), [texts[number] for number in sorted(held)]) if held else None,
        words=tuple(sorted({word for text in known for word in words(text)})),
        description={"data": f"random windows of the images of the folder {folder.name}", "pictures": len(kept)},
    )


class LatentPool:
    """Latents to learn from; where there is no end of examples, older ones make room for new ones all the time.

    What it holds at a step follows from the step alone, in chunks that are encoded together: a run that is resumed has
    the same latents as one that was not stopped.

    Args:
        examples: what is encoded.
        encode: of a chunk of pictures (image, height, width, 3), latents on the device.
        tokenize: of as many captions, tokens.
        capacity: latents at most, where examples have no end; else all of them are held.
        reuse: times that a latent is used, on average, before another one takes its place.
        chunk: examples that are encoded together.
    """

    def __init__(
        self,
        examples: Examples,
        encode: Callable[[np.ndarray], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        capacity: int,
        reuse: int,
        chunk: int,
    ) -> None:
        self.examples, self.encode, self.tokenize = examples, encode, tokenize
        self.reuse, self.chunk = reuse, chunk
        self.chunks = math.ceil((examples.total or capacity) / chunk)
        self.numbers = [-1] * self.chunks
        """Of the chunk at every place."""
        self.latents: Tensor | None = None
        self.tokens: Tensor | None = None

    def at(self, used: int) -> tuple[Tensor, Tensor]:
        """Latents (latent, channel, height, width), float16, and their tokens once so many have been used."""
        first = 0 if self.examples.total is not None else used // (self.reuse * self.chunk)
        for number in range(first, first + self.chunks):
            if self.numbers[number % self.chunks] != number:
                self._put(number % self.chunks, number)
        assert self.latents is not None
        assert self.tokens is not None
        rows = self.examples.total or self.chunks * self.chunk
        return self.latents[:rows], self.tokens[:rows]

    def save(self, path: Path, origin: dict[str, str]) -> None:
        """Write what it holds, and what that depends on; InputError where there is no room."""
        assert self.latents is not None
        assert self.tokens is not None
        tensors = {"latents": self.latents.cpu().contiguous(), "tokens": self.tokens.cpu()}
        try:
            write_whole(path, lambda partial: save_file(tensors, partial, metadata=origin))
        except SafetensorError as error:  # its word for a full disk
            raise InputError(f"{path}: the latents cannot be written ({error}); free space and --resume") from error

    def restore(self, path: Path, origin: dict[str, str], device: torch.device) -> bool:
        """Take examples that have an end from a file that is there, whole and of this origin; False for any other."""
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() != origin:
                    return False
            tensors = load_file(path, device=str(device))
        except (OSError, SafetensorError):  # none, or a damaged one: made again
            return False
        self.latents, self.tokens = tensors["latents"], tensors["tokens"]
        self.numbers = list(range(self.chunks))
        return True

    def _put(self, place: int, number: int) -> None:
        """Encode a chunk into its place."""
        start = number * self.chunk
        end = min(start + self.chunk, self.examples.total or start + self.chunk)
        with ThreadPoolExecutor() as threads:  # a GPU would wait for them longer than it takes to learn from them
            drawn = list(threads.map(self.examples.example, range(start, end)))
        latents = self.encode(np.stack([image for image, _ in drawn])).to(torch.float16)
        tokens = self.tokenize([caption for _, caption in drawn]).to(latents.device, torch.int32)
        if self.latents is None or self.tokens is None:
            room = self.chunks * self.chunk
            self.latents, self.tokens = (one.new_empty((room, *one.shape[1:])) for one in (latents, tokens))
        rows = slice(place * self.chunk, place * self.chunk + len(drawn))
        self.latents[rows], self.tokens[rows] = latents, tokens
        self.numbers[place] = number


def _mirror_half(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images (image, height, width, 3), about half of which are turned from left to right, in place."""
    flipped = random.random(len(images)) < 0.5
    images[flipped] = images[flipped, :, ::-1]
    return images


def _resize(picture: np.ndarray, side: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """A square part of a picture, left, top, right and bottom in `box`, at `side` pixels."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box))


def _shrink(image: np.ndarray, most: int) -> np.ndarray:
    """An image whose shorter side is `most` pixels at most."""
    height, width = image.shape[:2]
    scale = most / min(height, width)
    if scale >= 1:
        return image
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def middle_square(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle square of a picture, at `side` pixels."""
    height, width = picture.shape[:2]
    across = min(height, width)
    top, left = (height - across) / 2, (width - across) / 2
    return _resize(picture, side, box=(left, top, left + across, top + across))
