"""Drawing primitives of the procedural world: outlines, tileable textures and an anti-aliased canvas with labels.

Lengths are in units of the image height: x = 0 is the middle column, y = 0 the top row and y = 1 the bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from skimage.segmentation import find_boundaries

Array = np.ndarray

BANK_SIZE = 512
BANK_PERIOD = 64  # one period of every pattern, in pixels of the bank


# --- Outlines: (point, 2) arrays -------------------------------------------------------------------------------


def polygon(*points: tuple[float, float]) -> Array:
    """The polygon through `points`: (point, 2)."""
    return np.array(points, dtype=np.float64)


def rectangle(left: float, low: float, right: float, high: float) -> Array:
    """An axis-aligned rectangle: (4, 2)."""
    return polygon((left, low), (right, low), (right, high), (left, high))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, points: int = 28) -> Array:
    """An ellipse around (x, y): (point, 2)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


def blob(rng: np.random.Generator, x: float, y: float, radius_x: float, radius_y: float, rough: float = 0.15) -> Array:
    """An ellipse whose radius wobbles by about the share `rough`: (point, 2)."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.ones_like(angle)
    for frequency, phase in zip((2, 3, 5, 8), rng.uniform(0, 2 * np.pi, 4), strict=True):
        radius += rough * np.cos(frequency * angle + phase) / np.sqrt(frequency)
    return np.stack([x + radius_x * radius * np.cos(angle), y + radius_y * radius * np.sin(angle)], axis=1)


def limb(start: tuple[float, float], end: tuple[float, float], width: float, taper: float = 1.0) -> Array:
    """A bar from `start` to `end`, `width` wide at its start and `width * taper` at its end: (4, 2)."""
    first, last = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    along = last - first
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9) * width / 2
    return np.stack([first + across, last + across * taper, last - across * taper, first - across])


def ridge(rng: np.random.Generator, left: float, right: float, base: float, height: float, rough: float) -> Array:
    """A skyline between `left` and `right`, up to `height` above `base` (up is towards smaller y): (point, 2).

    `rough` is 0 for rolling hills and 1 for jagged peaks.
    """
    x = np.linspace(left, right, 97)
    y = np.zeros_like(x)
    for octave in range(5):
        frequency = 1.1 * 2.0**octave
        wave = np.sin(2 * np.pi * (frequency * x * rng.uniform(0.7, 1.3) + rng.uniform()))
        sharp = 1 - 2 * np.abs(wave)
        y += (rough * sharp + (1 - rough) * wave) * (0.42 + 0.12 * rough) ** octave
    y = height * (y - y.min()) / (np.ptp(y) + 1e-9)
    return np.stack([x, base - y], axis=1)


# --- Textures ---------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, period_x: float, period_y: float) -> Array:
    """Tileable smooth noise in 0..1 with the given typical periods in bank pixels: (BANK_SIZE, BANK_SIZE)."""
    white = rng.standard_normal((BANK_SIZE, BANK_SIZE))
    field = ndimage.gaussian_filter(white, (period_y / 4, period_x / 4), mode="wrap")
    return np.clip(0.5 + 0.25 * field / field.std(), 0, 1)


def _two_toned(field: Array) -> Array:
    """The same pattern with most of it near 0 or 1, so that both of its colours show."""
    return 0.5 + 0.5 * np.tanh(1.1 * (field - field.mean()) / field.std())


def _soften(field: Array, sigma: float = 3.0) -> Array:
    return ndimage.gaussian_filter(np.asarray(field, dtype=np.float32), sigma, mode="wrap")


@cache
def texture_bank() -> dict[str, Array]:
    """Tileable pattern fields in 0..1 by name, float32 (BANK_SIZE, BANK_SIZE); the same in every process."""
    rng = np.random.default_rng(20240131)
    y, x = np.mgrid[0:BANK_SIZE, 0:BANK_SIZE] / BANK_PERIOD  # in periods: 8 of them across the bank
    coarse, fine = _noise(rng, 96, 96), _noise(rng, 28, 28)
    clumps = np.maximum(_noise(rng, 48, 48), _noise(rng, 48, 48))
    tones = rng.uniform(0.1, 1.0, (16, 16))  # of single bricks, boards and tiles
    column, row = np.floor(x).astype(int), np.floor(y * 2).astype(int)
    brick_x, brick_y = (x + 0.5 * (row % 2)) % 1, (y * 2) % 1
    brick = tones[row, np.floor(x + 0.5 * (row % 2)).astype(int) % 8]
    board_x, board_y = tones[0, np.floor(x * 1.5).astype(int)], tones[1, np.floor(y * 1.5).astype(int)]
    scallop_row = np.floor(y * 1.5)
    scallop = np.hypot((x * 1.5 + 0.5 * (scallop_row % 2)) % 1 - 0.5, (y * 1.5) % 1 * 0.8)
    fields = {
        "fractal": 0.55 * coarse + 0.3 * fine + 0.15 * _noise(rng, 12, 12),
        "plaster": 0.7 * _noise(rng, 160, 160) + 0.3 * fine,
        "blotches": _soften(_noise(rng, 80, 80) > 0.54, 4),
        "spots": _soften(np.hypot((x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5, y % 1 - 0.5) < 0.29),
        "patches": _soften(_noise(rng, 150, 150) > 0.52, 4),
        "stripes": _soften(y % 1 < 0.5, 5),
        "bands": _soften(x % 1 < 0.5, 5),
        "diagonals": _soften((x + y) % 1 < 0.5, 5),
        "zebra": _soften((x + 0.9 * (_noise(rng, 140, 140) - 0.5)) % 1 < 0.5, 5),
        "checks": _soften((x % 1 < 0.5) ^ (y % 1 < 0.5), 4),
        "bricks": _soften(((brick_x > 0.1) & (brick_y > 0.2)) * brick, 2.5),
        "planks": _soften(((y * 1.5) % 1 > 0.16) * board_y, 2.5),
        "boards": _soften(((x * 1.5) % 1 > 0.16) * board_x, 2.5),
        "tiles": _soften(((x % 1 > 0.1) & (y % 1 > 0.1)) * tones[np.floor(y).astype(int), column], 2.5),
        "shingles": np.clip(_soften(scallop, 2) * 1.3, 0, 1),
        "foliage": np.clip(_soften(clumps > 0.56, 5) * 0.75 + 0.35 * fine - 0.05, 0, 1),
        "needles": np.clip(0.6 * _noise(rng, 18, 44) + 0.5 * _soften((y + 0.4 * coarse) % 1 < 0.5, 6), 0, 1),
        "blades": 0.65 * _noise(rng, 16, 60) + 0.35 * coarse,
        "bark": np.clip(0.2 + 0.8 * _noise(rng, 22, 150), 0, 1),
        "ripples": 0.5 + 0.5 * np.sin(2 * np.pi * (y + 0.55 * (_noise(rng, 200, 60) - 0.5) * 2)),
        "waves": np.clip(0.75 * _noise(rng, 110, 26) + 0.25 * coarse, 0, 1),
        "furrows": 0.5 + 0.5 * np.sin(2 * np.pi * (x + 0.12 * fine)),
        "gravel": _soften(_noise(rng, 30, 30) > 0.5, 3),
        "wisps": _noise(rng, 240, 60),
        "puffs": 0.6 * _noise(rng, 120, 120) + 0.4 * _noise(rng, 60, 60),
        "strata": np.clip(0.5 * _noise(rng, 60, 90) + 0.5 * _soften(np.abs(coarse - 0.5) < 0.12, 5), 0, 1),
        "hatching": _soften((x * 2 + y * 2) % 1 < 0.3, 2),
        "grain": _noise(rng, 7, 7),
    }
    for name in ("fractal", "plaster", "blades", "bark", "waves", "ripples", "furrows", "wisps", "puffs", "strata",
                 "foliage", "needles", "shingles"):  # fmt: skip
        fields[name] = _two_toned(fields[name])
    return {name: np.ascontiguousarray(field, dtype=np.float32) for name, field in fields.items()}


def sample_texture(name: str, rows: Array, columns: Array) -> Array:
    """Texture `name` at `rows` (height, 1) and `columns` (1 or height, width) in periods: (height, width) float32.

    Rows and columns that do not depend on each other are interpolated where the pattern is magnified.
    """
    bank, y, x = texture_bank()[name], np.asarray(rows) * BANK_PERIOD, np.asarray(columns) * BANK_PERIOD
    magnified = y.shape[0] > 1 and abs(float(y[1, 0] - y[0, 0])) < 0.8
    if x.shape[0] > 1 or not magnified:
        index_y, index_x = y.astype(np.int32) & (BANK_SIZE - 1), x.astype(np.int32) & (BANK_SIZE - 1)
        return bank.ravel()[index_y * BANK_SIZE + index_x]
    return _between(_between(bank, y[:, 0]).T, x[0]).T


def _between(bank: Array, positions: Array) -> Array:
    """Rows of `bank` at fractional `positions`, wrapping around."""
    low = np.floor(positions)
    share = (positions - low).astype(np.float32)[:, None]
    index = low.astype(np.int32)
    first, second = bank[index & (BANK_SIZE - 1)], bank[(index + 1) & (BANK_SIZE - 1)]
    return first + share * (second - first)


# --- Canvas -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """Where the camera looks: roll in radians about the middle of the picture, and a zoom about the same point."""

    roll: float = 0.0
    zoom: float = 1.0

    def apply(self, points: Array) -> Array:
        """World points (point, 2), in image heights, as seen by this view."""
        centre = np.array([0.0, 0.5])
        cosine, sine = np.cos(self.roll) * self.zoom, np.sin(self.roll) * self.zoom
        return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


@dataclass(frozen=True)
class Patch:
    """What a set of outlines covers of a canvas: pixel ranges and the coverage in 0..1 inside them."""

    top: int
    left: int
    coverage: Array  # (height, width) float32

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the canvas under this patch."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Canvas:
    """Colours with the label maps beside them; whatever is painted last is in front."""

    def __init__(self, height: int, width: int, view: View) -> None:
        self.height, self.width, self.view = height, width, view
        self.pixels = np.zeros((3, height, width), dtype=np.float32)
        self.parts = np.zeros((height, width), dtype=np.uint8)
        self.objects = np.zeros((height, width), dtype=np.uint8)
        self.instances = np.zeros((height, width), dtype=np.uint16)

    def to_pixels(self, outlines: Sequence[Array]) -> list[Array]:
        """World outlines, (point, 2) in image heights each, in pixel coordinates (x, y)."""
        points = self.view.apply(np.concatenate(outlines)) * self.height + (self.width / 2, 0.0)
        ends = np.cumsum([len(outline) for outline in outlines])
        return [points[end - len(outline) : end] for outline, end in zip(outlines, ends.tolist(), strict=True)]

    def rasterize(self, outlines: Sequence[Array], soften: float = 0.0) -> Patch | None:
        """Anti-aliased union of `outlines` (in pixels), blurred by `soften` pixels; None where nothing is in sight."""
        points = np.concatenate(outlines)
        low, high = points.min(axis=0) - 3 * soften, points.max(axis=0) + 3 * soften
        left, top = max(int(np.floor(low[0])), 0), max(int(np.floor(low[1])), 0)
        right, bottom = min(int(np.ceil(high[0])), self.width), min(int(np.ceil(high[1])), self.height)
        if right <= left or bottom <= top:
            return None
        factor = 2 if (right - left) * (bottom - top) > 2048 else 4
        mask = Image.new("L", ((right - left) * factor, (bottom - top) * factor))
        brush = ImageDraw.Draw(mask)
        for outline in outlines:
            brush.polygon(((outline - (left, top)) * factor - 0.5).ravel().tolist(), fill=255)
        mask = mask.reduce(factor)
        if soften:
            mask = mask.filter(ImageFilter.GaussianBlur(soften))
        return Patch(top, left, np.asarray(mask, dtype=np.float32) * np.float32(1 / 255))

    def label(self, patch: Patch, part: int, thing: int, instance: int) -> None:
        """Give the pixels at least half covered by `patch` their part, object and instance."""
        inside = patch.coverage >= 0.5
        for labels, value in ((self.parts, part), (self.objects, thing), (self.instances, instance)):
            labels[patch.window][inside] = value

    def paint(self, patch: Patch, colours: Array) -> None:
        """Blend `colours`, (3, height, width) or (3, 1, 1), over the pixels under `patch`."""
        region = self.pixels[:, *patch.window]
        region += patch.coverage * (colours - region)

    def darken(self, patch: Patch, amount: float) -> None:
        """Multiply the pixels under `patch` by 1 - amount * coverage; labels stay."""
        self.pixels[:, *patch.window] *= 1 - np.float32(amount) * patch.coverage

    def outlines(self, width: float) -> Array:
        """Soft lines in 0..1 along every border of parts and instances, `width` pixels: (height, width)."""
        code = self.instances.astype(np.int32) * 256 + self.parts
        edge = find_boundaries(code, mode="thick").astype(np.uint8) * 255
        soft = Image.fromarray(edge).filter(ImageFilter.GaussianBlur(width / 2))
        return np.asarray(soft, dtype=np.float32) * np.float32(1 / 255)
