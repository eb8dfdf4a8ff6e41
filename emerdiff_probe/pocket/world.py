"""A procedural world with exact ground truth: scenes, counterfactual pairs and clips, deterministic by seed.

Every factor has its own random stream, so that one of them can change while everything else is held fixed. What is
where (geometry) never depends on palette, light, texture or style: those leave the label maps bit-identical.
"""

import colorsys
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import save_labels
from emerdiff_probe.pocket.drawing import (
    Array,
    Canvas,
    Patch,
    View,
    ellipse,
    rectangle,
    ridge,
    sample_texture,
)
from emerdiff_probe.pocket.things import KINDS, OBJECT_INDEX, OBJECT_NAMES, PART_INDEX, PART_NAMES, PARTS, Kind, Rng

__all__ = [
    "FACTORS",
    "LIGHTS",
    "OBJECT_NAMES",
    "PART_NAMES",
    "PART_WORDS",
    "STYLES",
    "Factors",
    "Scene",
    "caption_vocabulary",
    "counterfactual_pair",
    "draw_clip",
    "draw_closeups",
    "draw_scene",
    "write_world",
]

FACTORS = ("palette", "light", "texture", "style", "clutter", "size")
MOTIONS = ("camera", "object")
SMALLEST, LARGEST = 16, 8192  # pixels a side
MOST = 10_000_000  # scenes that are written at once
GLOWING = {"sun or moon", "lamp head", "house window"}  # parts that stay bright at night
GROUNDS = ("grass", "sand", "snow", "field", "pavement")
BELOW = 3.0  # a row under every picture, in image heights
FOCAL = 1.2  # focal length in image heights
SLOTS = 64  # instances that have colours and patterns of their own; later ones share them


@dataclass(frozen=True)
class Light:
    """A light: its tint (RGB), how strongly bodies are shaded, how dark shadows are, and its words in a caption."""

    tint: tuple[float, float, float]
    shading: float
    shadow: float
    words: str


LIGHTS = {
    "noon": Light((1.05, 1.04, 1.0), 1.0, 0.5, ""),
    "sunset": Light((1.12, 0.86, 0.68), 1.5, 0.45, "at sunset"),
    "overcast": Light((0.84, 0.87, 0.9), 0.5, 0.25, "on a cloudy day"),
    "night": Light((0.52, 0.58, 0.82), 0.9, 0.35, "at night"),
}
STYLES = {"photo": "", "flat": "flat artwork of", "sketch": "a sketch of"}


@dataclass(frozen=True)
class Factors:
    """What can be set one by one; None is drawn from the seed of the scene.

    `palette` and `texture` are seeds (0 or more) of all colours and of all patterns, `light` is a key of `LIGHTS`,
    `style` a key of `STYLES`, `clutter` (how many things) and `size` (how close the camera is) are in 0..1.
    Raises InputError for anything else.
    """

    palette: int | None = None
    light: str | None = None
    texture: int | None = None
    style: str | None = None
    clutter: float | None = None
    size: float | None = None

    def __post_init__(self) -> None:
        for name in ("palette", "texture"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InputError(f"factor {name!r}: given {value!r}, accepted: an integer of 0 or more, or None")
        for name, known in (("light", LIGHTS), ("style", STYLES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"factor {name!r}: given {value!r}, accepted: {', '.join(known)}, or None")
        for name in ("clutter", "size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise InputError(f"factor {name!r}: given {value!r}, accepted: a number in 0..1, or None")


@dataclass(frozen=True)
class Scene:
    """A picture and its ground truth.

    image: (height, width, 3) uint8; parts and objects: (height, width) uint8, indices into `PART_NAMES` and
    `OBJECT_NAMES`; instances: (height, width) uint16, 0 for the background and 1.. for things; `factors` has no None.
    """

    image: Array
    parts: Array
    objects: Array
    instances: Array
    caption: str
    seed: int
    factors: Factors


# --- Geometry: what is where -------------------------------------------------------------------------------------

_STREAMS = {name: index for index, name in enumerate(("factors", "camera", "ground", "sky", "thing", "shape", "light"))}


def _stream(seed: int, name: str, *more: int) -> Rng:
    return np.random.default_rng([seed, _STREAMS[name], *more])


def _resolve(seed: int, given: Factors) -> Factors:
    """`given` with every None replaced by a draw from the seed."""
    rng = _stream(seed, "factors")
    close = rng.random() < 0.5
    drawn = Factors(
        palette=int(rng.integers(2**31)),
        light=str(rng.choice(list(LIGHTS), p=[0.4, 0.22, 0.23, 0.15])),
        texture=int(rng.integers(2**31)),
        style=str(rng.choice(list(STYLES), p=[0.94, 0.03, 0.03])),
        clutter=round(float(rng.uniform(0, 1)), 3),
        size=round(float(rng.uniform(0.68, 1) if close else rng.uniform(0.1, 0.68)), 3),
    )
    return Factors(**{**vars(drawn), **{name: value for name, value in vars(given).items() if value is not None}})


@dataclass(frozen=True)
class Camera:
    """A ground plane in perspective: its points lie at depth t, at row horizon + drop * t; sizes are scale * t.

    t is 1 at the main thing and 0 at the horizon; `scale` is image heights a metre at t = 1; `pan` is how far the
    camera has moved to the side, in image heights at t = 1.
    """

    horizon: float
    drop: float
    scale: float
    view: View
    pan: float = 0.0

    def row(self, t: float) -> float:
        """The row, in image heights, of the ground at depth t."""
        return self.horizon + self.drop * t

    def depth(self, row: Array) -> Array:
        """The depth t of the ground at each row (in image heights), kept above 0."""
        return np.maximum((row - self.horizon) / self.drop, 0.02)

    def ground(self, points: Array) -> Array:
        """Ground outlines as this camera sees them after its pan."""
        moved = points.copy()
        moved[:, 0] -= self.pan * (points[:, 1] - self.horizon) / self.drop
        return moved


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: its kind, where its foot is (image heights), its depth and which way it faces."""

    kind: Kind
    instance: int
    x: float
    foot: float
    depth: float
    facing: int


@dataclass(frozen=True)
class Piece:
    """One part to paint: outlines in image heights, front-most last.

    `anchor` moves with the piece and holds its pattern, `scale` is image heights a metre there, `haze` the share of
    sky colour in front of it; `ground` patterns are seen in perspective; `shadow` is (x, y, radius) on the ground.
    """

    part: int
    thing: int
    instance: int
    outlines: list[Array]
    anchor: tuple[float, float]
    scale: float = 1.0
    tone: float = 0.0
    haze: float = 0.0
    ground: bool = False
    shadow: tuple[float, float, float] | None = None


def _backdrop_piece(name: str, outlines: list[Array], **more: float | bool) -> Piece:
    part = "mountain" if name == "snowcap" else name
    return Piece(PART_INDEX[name], OBJECT_INDEX[part], 0, outlines, (0.0, 0.0), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """Everything that a scene shows, before any colour: camera, ground kinds, road and things."""

    seed: int
    camera: Camera
    near: str
    far: str
    shore: float  # depth t where the far ground ends and the near one starts; 0 where there is only one
    road: str | None  # "along", "across" or None
    things: tuple[Thing, ...]

    def pieces(self) -> list[Piece]:
        """All parts to paint, back to front."""
        pieces = [*_sky_pieces(self), *_ground_pieces(self)]
        for thing in sorted(self.things, key=lambda thing: thing.depth):
            pieces += _thing_pieces(self, thing)
        return pieces


def _sky_pieces(plan: Plan) -> list[Piece]:
    rng, horizon = _stream(plan.seed, "sky"), plan.camera.horizon
    pieces = [_backdrop_piece("sky", [rectangle(-6, -3, 6, horizon + 0.05)])]
    top = min(horizon, 1.0)
    if rng.random() < 0.5:
        radius = rng.uniform(0.03, 0.06) if rng.random() < 0.6 else rng.uniform(0.06, 0.16)
        x, y = rng.uniform(-0.45, 0.45), rng.uniform(0.06, max(top, 0.1))
        pieces.append(_backdrop_piece("sun or moon", [ellipse(x, y, radius, radius)]))
    for _ in range(int(rng.choice([0, 1, 2, 3, 5]))):
        x, y, wide = rng.uniform(-0.8, 0.8), rng.uniform(0.0, max(top - 0.05, 0.05)), rng.uniform(0.08, 0.3)
        across, up, radii = rng.uniform(-0.7, 0.7, 5), rng.uniform(0, 0.25, 5), rng.uniform(0.22, 0.42, 5)
        puffs = [
            ellipse(x + wide * at, y - wide * rise, wide * radius, wide * radius * 0.8)
            for at, rise, radius in zip(across, up, radii, strict=True)
        ]
        base = ellipse(x, y, wide, wide * 0.22)
        pieces.append(_backdrop_piece("cloud", [base, *puffs], tone=rng.uniform(-0.1, 0.15)))
    shift = np.array([-0.04 * plan.camera.pan, 0.0])
    for layer in range(int(rng.choice([0, 0, 1, 2]))):
        skyline = ridge(rng, -2.5, 2.5, horizon + 0.01, rng.uniform(0.1, 0.4) / (1 + layer), 0.8) + shift
        body = _filled(skyline, horizon + 0.05)
        pieces.append(_backdrop_piece("mountain", [body], haze=0.45 - 0.2 * layer, tone=-0.12 * layer))
        if rng.random() < 0.6:
            line = skyline[:, 1].min() + np.ptp(skyline[:, 1]) * (0.4 + 0.1 * rng.uniform(-1, 1, len(skyline)))
            pieces.append(_backdrop_piece("snowcap", _above(skyline, line), haze=0.25))
    for layer in range(int(rng.choice([0, 0, 1, 1, 2]))):
        skyline = ridge(rng, -2.5, 2.5, horizon + 0.02, rng.uniform(0.05, 0.22) / (1 + layer), 0.0) + shift * (
            2 + layer
        )
        body = _filled(skyline, horizon + 0.05)
        pieces.append(_backdrop_piece("hill", [body], haze=0.25 - 0.15 * layer, tone=-0.1 * layer))
    return pieces


def _filled(skyline: Array, bottom: float) -> Array:
    """The region under a skyline, down to the row `bottom`."""
    return np.concatenate([skyline, [(skyline[-1, 0], bottom), (skyline[0, 0], bottom)]])


def _above(skyline: Array, line: Array) -> list[Array]:
    """The regions of a skyline's body that lie above `line`: one outline for each peak."""
    higher = np.flatnonzero(skyline[:, 1] < line)
    outlines = []
    for run in np.split(higher, np.flatnonzero(np.diff(higher) > 1) + 1):
        if len(run) > 1:
            lower = np.stack([skyline[run, 0], line[run]], axis=1)[::-1]
            outlines.append(np.concatenate([skyline[run], lower]))
    return outlines or [skyline[:2]]


def _ground_pieces(plan: Plan) -> list[Piece]:
    camera, rng = plan.camera, _stream(plan.seed, "ground", 1)
    swing = 0.35 * camera.drop * plan.shore * (1 - 0.5 * plan.shore)
    line = ridge(rng, -6, 6, camera.row(plan.shore) + swing / 2, swing, 0.0)
    far = rectangle(-9, camera.horizon, 9, float(line[:, 1].max()) + 0.05 if plan.shore else BELOW)
    pieces = [_backdrop_piece(plan.far, [far], ground=True)]
    if plan.shore:
        pieces.append(_backdrop_piece(plan.near, [camera.ground(_filled(line, BELOW))], ground=True))
    if plan.road is None:
        return pieces
    if plan.road == "across":
        start, end = max(rng.uniform(0.55, 0.85), plan.shore + 0.05), rng.uniform(1.15, 1.6)
        middle, half = camera.row((start + end) / 2), 0.045 * camera.drop * (end - start)
        road = [rectangle(-9, camera.row(start), 9, camera.row(end))]
        dashes = [rectangle(x, middle - half, x + 0.14, middle + half) for x in np.arange(-3, 3, 0.3)]
    else:
        start, end, width, bend = max(plan.shore, 0.02), BELOW, rng.uniform(0.2, 0.6), rng.uniform(-0.5, 0.5)
        origin, centre = rng.uniform(-0.3, 0.3), rng.uniform(-0.5, 0.5)
        depths = np.geomspace(start, end, 25)

        def along(depth: Array, side: float) -> Array:
            x = origin + (centre - origin) * depth + bend * np.sin(2 * depth) * depth + side * width * depth
            return np.stack([x, camera.horizon + camera.drop * depth], axis=1)

        road = [np.concatenate([along(depths, -1), along(depths[::-1], 1)])]
        steps = np.geomspace(start, end, 40)
        dashes = [np.concatenate([along(steps[i : i + 2], -0.07), along(steps[i : i + 2][::-1], 0.07)])
                  for i in range(0, 40, 2)]  # fmt: skip
    pieces.append(_backdrop_piece("road", [camera.ground(outline) for outline in road], ground=True))
    marking = [camera.ground(outline) for outline in dashes]
    pieces.append(replace(_backdrop_piece("road", marking), part=PART_INDEX["road marking"]))
    return pieces


def _thing_pieces(plan: Plan, thing: Thing) -> list[Piece]:
    camera = plan.camera
    scale = camera.scale * thing.depth
    x = thing.x - camera.pan * thing.depth
    stretch = np.array([thing.facing * scale, -scale])
    haze = 0.4 * max(0.0, 1 - thing.depth) ** 2
    pieces = []
    for shape in thing.kind.build(_stream(plan.seed, "shape", thing.instance)):
        outlines = [outline * stretch + (x, thing.foot) for outline in shape.outlines]
        pieces.append(Piece(PART_INDEX[shape.part], OBJECT_INDEX[thing.kind.thing], thing.instance, outlines,
                            (x, thing.foot), scale, shape.tone, haze))  # fmt: skip
    if thing.kind.place != "air":
        reach = max(float(np.abs(outline[:, 0] - x).max()) for outline in pieces[0].outlines + pieces[-1].outlines)
        pieces[0] = replace(pieces[0], shadow=(x, thing.foot, reach * 1.15))
    return pieces


def _plan(seed: int, factors: Factors) -> Plan:
    """Draw the geometry of a scene; only `clutter` and `size` of the factors matter."""
    assert factors.size is not None
    assert factors.clutter is not None
    rng = _stream(seed, "camera")
    main = _draw_kind(rng, KINDS)
    extent = 0.15 * 8.0**factors.size
    foot = float(rng.uniform(0.72, 1.0))
    if factors.size > 0.65:
        foot = max(foot, 0.5 + 0.42 * extent)
    where = rng.random()
    horizon = float(rng.uniform(0.12, 0.62))
    if main.place == "air":
        horizon = float(rng.uniform(0.55, 1.3))
        foot = max(foot, horizon + 0.1)
    elif where < 0.15:
        horizon = float(rng.uniform(-0.6, -0.02))
    elif where < 0.3:
        horizon = float(rng.uniform(0.6, foot - 0.08))
    view = View(float(np.clip(rng.normal(0, 0.03), -0.09, 0.09)))
    camera = Camera(horizon, foot - horizon, extent / main.size, view)
    near, far, shore = _draw_ground(_stream(seed, "ground"), main)
    x, y = float(rng.uniform(-0.22, 0.22)), float(rng.uniform(0.3, 0.75))
    main_foot = y + 0.4 * extent if main.place == "air" else foot
    things = [Thing(main, 1, x, main_foot, 1.0, int(rng.choice([-1, 1])))]
    cast = [_draw_kind(rng, KINDS) for _ in range(3)]
    for index in range(3 + round(factors.clutter * 19)):
        extra = _draw_extra(_stream(seed, "thing", index), camera, (near, far, shore), cast, len(things) + 1, extent)
        if extra is not None:
            things.append(extra)
    chance = 0.75 if main.noun in ("car", "bus") else 0.25
    road = None
    if near != "water" and rng.random() < chance:
        road = str(rng.choice(["along", "across"]))
    return Plan(seed, camera, near, far, shore, road, tuple(things))


def _draw_kind(rng: Rng, kinds: tuple[Kind, ...] | list[Kind]) -> Kind:
    weights = np.cumsum([kind.weight for kind in kinds])
    return kinds[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))]


def _draw_ground(rng: Rng, main: Kind) -> tuple[str, str, float]:
    """Near ground, far ground and the depth t where they meet (0 for one ground only)."""
    near, far = (str(name) for name in rng.choice(GROUNDS, 2, replace=False))
    if rng.random() < 0.45:
        far = "water"
    if main.place == "water":
        near, far = "water", near
    shore = float(rng.uniform(0.2, 0.75))
    return (near, near, 0.0) if rng.random() < 0.4 else (near, far, shore)


def _draw_extra(
    rng: Rng, camera: Camera, ground: tuple[str, str, float], cast: list[Kind], instance: int, closeness: float
) -> Thing | None:
    """A further thing, or None where the ground has no place for the one drawn or it would be too small."""
    near, far, shore = ground
    kind = _draw_kind(rng, cast if rng.random() < 0.65 else KINDS)
    extent = float(np.exp(rng.uniform(np.log(0.11), np.log(0.65)))) * (0.75 + 0.5 * closeness)
    x, facing, front, high = rng.uniform(-1, 1), int(rng.choice([-1, 1])), rng.random() < 0.12, rng.uniform()
    depth = min(extent / kind.size / camera.scale, 1.15 if front else 0.9)
    if kind.place == "air":
        top = min(camera.horizon, 0.9)
        return Thing(kind, instance, float(x), float(0.1 + max(top - 0.1, 0.15) * high), depth, facing)
    wet = {"near": near == "water", "far": far == "water"}
    afloat = kind.place == "water"
    if shore and wet["near"] != wet["far"]:
        in_far = wet["far"] == afloat
        depth = min(depth, shore * 0.85) if in_far else max(depth, shore * 1.2)
    elif wet["near"] != afloat:
        return None
    if depth * camera.scale * kind.size < 0.05:
        return None
    return Thing(kind, instance, float(x), camera.row(depth), depth, facing)


# --- Looks: colours, patterns, light and style --------------------------------------------------------------------

COLOURS = {
    "red": (0.8, 0.15, 0.15),
    "orange": (0.9, 0.5, 0.15),
    "yellow": (0.9, 0.82, 0.25),
    "green": (0.3, 0.6, 0.25),
    "teal": (0.2, 0.6, 0.6),
    "blue": (0.25, 0.4, 0.8),
    "purple": (0.5, 0.3, 0.7),
    "pink": (0.92, 0.55, 0.7),
    "brown": (0.45, 0.3, 0.18),
    "white": (0.92, 0.92, 0.9),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.13, 0.13, 0.14),
}


def _colour_name(colour: Array) -> str:
    distances = {name: float(np.sum((colour - np.array(known)) ** 2)) for name, known in COLOURS.items()}
    return min(distances, key=distances.__getitem__)


def _base_colours(rng: Rng) -> Array:
    """The few colours that a scene is made of: (colour, 3) in 0..1."""
    count = int(rng.choice([3, 3, 4]))
    hues = rng.random() + rng.choice([0.25, 0.5, 1.0]) * rng.random(count)
    saturation, value = rng.uniform(0.1, 0.75, count), np.linspace(0.36, 0.97, count) + rng.uniform(-0.08, 0.05, count)
    return np.array([colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in zip(hues, saturation, value, strict=True)])


class Look:
    """How a scene is painted: every random choice that is not geometry, from its factor's own stream."""

    def __init__(self, seed: int, factors: Factors) -> None:
        assert factors.light is not None
        assert factors.style is not None
        palette = np.random.default_rng([factors.palette or 0, 1])
        self.base = _base_colours(palette)
        self.natural = float(palette.choice([0.0, 0.05, 0.3]))
        self.colour_draws = palette.random((SLOTS, len(PARTS), 6))
        self.texture_draws = np.random.default_rng([factors.texture or 0, 2]).random((SLOTS, len(PARTS), 6))
        self.style = factors.style
        self.light = LIGHTS[factors.light]
        light = _stream(seed, "light")
        self.side = float(light.choice([-1, 1]) * light.uniform(0.5, 1.0))
        self.cast = light.random(4)

    def colours(self, part: int, instance: int, tone: float) -> tuple[Array, Array]:
        """The two colours of a part's pattern: (3,) in 0..1 each; things draw from the palette that all share."""
        source, pick, light, second, other, swing = self.colour_draws[instance % SLOTS, part]
        index = int(pick * len(self.base))
        first = np.array(PARTS[part].natural) if source < self.natural else self.base[index]
        if second < 0.85:
            partner = self.base[(index + 1 + int(other * (len(self.base) - 1))) % len(self.base)]
        else:
            partner = first * (0.5 + 0.15 * swing) if first.mean() > 0.45 else first + (1 - first) * (0.4 + 0.2 * swing)
        spread = 0.5 if self.style == "flat" else 0.1  # with no patterns, only colour parts neighbours
        gain = (1 + spread * (light - 0.5)) * (1 + tone)
        return np.clip(first * gain, 0.02, 1), np.clip(partner * gain, 0.02, 1)

    def named_colour(self, part: int, instance: int) -> str:
        """The word for a part's colour."""
        first, second = self.colours(part, instance, 0.0)
        return _colour_name(0.6 * first + 0.4 * second)

    @cached_property
    def haze(self) -> Array:
        """The colour of far air: (3,)."""
        return 0.5 * self.colours(PART_INDEX["sky"], 0, 0.0)[1] + 0.5


class _Painter:
    """Paints the pieces of one plan on one canvas."""

    def __init__(self, plan: Plan, look: Look, height: int, width: int) -> None:
        self.plan, self.look = plan, look
        self.canvas = Canvas(height, width, plan.camera.view)

    def paint(self, piece: Piece) -> None:
        """Paint one piece and its labels; nothing where it is out of sight."""
        canvas, look = self.canvas, self.look
        if piece.shadow and look.style == "photo":
            self._shadow(*piece.shadow)
        outlines = canvas.to_pixels(piece.outlines)
        patch = canvas.rasterize(outlines)
        if patch is None:
            return
        canvas.label(patch, piece.part, piece.thing, piece.instance)
        first, second = look.colours(piece.part, piece.instance, piece.tone)
        if PARTS[piece.part].name in GLOWING:
            first, second = (np.minimum(0.6 * np.array(PARTS[piece.part].natural) + 0.4 * colour, 1) / look.light.tint
                             if look.light is LIGHTS["night"] else colour for colour in (first, second))  # fmt: skip
        first, second = ((1 - piece.haze) * colour + piece.haze * look.haze for colour in (first, second))
        if look.style == "sketch":
            first, second = _on_paper(first), _on_paper(second)
        field = self._pattern(piece, patch)
        if look.style == "flat":
            field = np.float32(1) * (field > 0.4)
        start, span = first.astype(np.float32), (second - first).astype(np.float32)
        colours = start[:, None, None] + field * span[:, None, None]
        if look.style == "photo":
            colours *= self._shading(piece, patch, outlines)
        canvas.paint(patch, colours)

    def _shadow(self, x: float, y: float, reach: float) -> None:
        """Contact shadow: a soft ellipse on the ground, away from the light."""
        canvas, flat = self.canvas, float(np.clip(0.35 * self.plan.camera.drop, 0.08, 0.3))
        outline = ellipse(x + 0.35 * reach * self.look.side, y, 1.15 * reach, flat * reach)
        patch = canvas.rasterize(canvas.to_pixels([outline]), soften=0.12 * flat * reach * canvas.height)
        if patch is not None:
            canvas.darken(patch, self.look.light.shadow)

    def _positions(self, patch: Patch) -> tuple[Array, Array]:
        """World rows (height, 1) and columns (1, width) of a patch, in image heights and without the view's roll."""
        canvas = self.canvas
        rows, columns = patch.window
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / canvas.height
        x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - canvas.width / 2) / canvas.height
        return y[:, None], x[None, :]

    def _pattern(self, piece: Piece, patch: Patch) -> Array:
        """Strength of the second colour in a patch: (height, width) in 0..1."""
        part, draws = PARTS[piece.part], self.look.texture_draws[piece.instance % SLOTS, piece.part]
        y, x = self._positions(patch)
        texture = part.textures[int(draws[0] * len(part.textures))]
        contrast = np.float32(part.contrast[0] + draws[1] * (part.contrast[1] - part.contrast[0]))
        backdrop = piece.instance == 0 and not piece.ground
        if self.look.style == "flat" and (backdrop or draws[5] < 0.5):
            return np.zeros(patch.coverage.shape, dtype=np.float32)
        if self.look.style == "sketch":
            density = np.float32(0.25 + 0.75 * draws[2])
            return density * sample_texture("hatching", y / 0.12, x / 0.12)
        period = part.period * (0.75 + 0.6 * draws[2])
        shift_y, shift_x = draws[3:5] * 8
        if piece.ground:
            return contrast * self._perspective(texture, period, y, x, (shift_y, shift_x))
        period = float(np.clip(period * piece.scale, 0.05, 0.5))
        anchor_x, anchor_y = piece.anchor
        return contrast * sample_texture(texture, (y - anchor_y) / period + shift_y, (x - anchor_x) / period + shift_x)

    def _perspective(self, texture: str, period: float, y: Array, x: Array, shift: tuple[float, float]) -> Array:
        """A ground texture, smaller with distance and fading where a period falls under a few pixels."""
        camera = self.plan.camera
        period = float(np.clip(period * camera.scale, 0.08, 0.3))
        focal = min(FOCAL, 2.5 * camera.drop)
        t = camera.depth(y)
        seen = period * t * t * camera.drop / focal * self.canvas.height  # pixels a period
        fade = np.clip((seen - 2) / 5, 0, 1)
        field = sample_texture(
            texture, focal / t / period + shift[0] + 64, (x / t + camera.pan) / period + shift[1] + 64
        )
        return (0.5 + fade * (field - 0.5)).astype(np.float32)

    def _shading(self, piece: Piece, patch: Patch, outlines: list[Array]) -> Array:
        """Factor by which light changes the colours of a patch: (height, width)."""
        sideways, upwards, roundness = PARTS[piece.part].shading
        points = np.concatenate(outlines)
        low, high = points.min(axis=0), points.max(axis=0)
        if piece.instance == 0:
            low, high = np.maximum(low, 0), np.minimum(high, (self.canvas.width, self.canvas.height))
        rows, columns = patch.window
        middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1)
        x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle[0]) / half[0]
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - middle[1]) / half[1]
        strength = self.look.light.shading
        across = 1 - strength * (sideways * self.look.side * x + roundness * (x * x - 0.4))
        return (across[None, :] - (strength * upwards * y)[:, None]).astype(np.float32)

    def finish(self) -> Array:
        """Borders, large-scale light and fine noise over the painted pieces: (height, width, 3) uint8."""
        canvas, look = self.canvas, self.look
        width = canvas.height / 256
        pixels = canvas.pixels
        tint = np.array(look.light.tint, dtype=np.float32)[:, None, None]
        if look.style == "sketch":
            pixels *= (0.35 + 0.65 * tint) * (1 - np.float32(0.85) * np.minimum(1.6 * canvas.outlines(2 * width), 1))
        elif look.style == "flat":
            pixels *= tint
        else:
            everywhere = Patch(0, 0, np.broadcast_to(np.float32(1), (canvas.height, canvas.width)))
            y, x = self._positions(everywhere)
            across, down, strength, name = look.cast
            clouds = sample_texture("fractal" if name < 0.4 else "patches", y * 0.8 + 8 * across, x * 0.8 + 8 * down)
            lit = 1.12 - np.float32(0.1 + 0.35 * strength * look.light.shading) * clouds
            lit += np.float32(0.18 * look.side) * x + np.float32(0.2 * (across - 0.5)) * (y - 0.5)
            lit *= 1 - np.float32(0.22) * canvas.outlines(1.2 * width)
            pixels *= tint * lit
            pixels += np.float32(0.05) * (sample_texture("grain", y * 4 + across, x * 4 + down) - 0.5)
        return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0).copy()


def _on_paper(colour: Array) -> Array:
    """A colour as a light wash on paper."""
    return 0.62 * np.array([0.97, 0.96, 0.92]) + 0.38 * colour


# --- Captions -----------------------------------------------------------------------------------------------------

_COUNTS = {2: "two", 3: "three", 4: "four"}
_MANY = "many"
_BACKDROPS = {"mountain": "mountains", "hill": "hills", "cloud": "clouds"}
_SEEN = 0.004  # share of the picture from which a thing is worth a word
_GRAMMAR = "a an on in over and front of with the sun moon sky under"
PART_WORDS = {
    "wall": "wall", "roof": "roof", "door": "door", "house window": "windows", "chimney": "chimney",
    "trunk": "trunk", "crown": "crown", "needles": "needles", "petals": "petals", "stem": "stem",
    "car body": "body", "wheel": "wheels", "car window": "windows",
    "head": "head", "torso": "torso", "arms": "arms", "legs": "legs",
    "animal head": "head", "animal body": "body", "animal legs": "legs",
    "hull": "hull", "sail": "sail", "pole": "pole", "lamp head": "head", "sign board": "board",
    "envelope": "envelope", "basket": "basket", "canopy": "canopy",
}  # fmt: skip
"""The word of captions for each part of a thing, where it has one."""
_ALWAYS_PLURAL = {"windows", "needles", "petals", "wheels", "arms", "legs"}


def _caption(plan: Plan, look: Look, scene: Scene) -> str:
    """What the picture shows, in at most a few phrases: the largest things and, of the first two, parts as well."""
    total = scene.parts.size
    seen = np.bincount(scene.instances.ravel(), minlength=len(plan.things) + 1) / total
    things = sorted(
        (thing for thing in plan.things if seen[thing.instance] >= _SEEN), key=lambda thing: -seen[thing.instance]
    )
    objects = np.bincount(scene.objects.ravel(), minlength=len(OBJECT_NAMES)) / total
    grounds = [name for name in (*GROUNDS, "water", "road") if objects[OBJECT_INDEX[name]] >= 0.03]
    groups = Counter(thing.kind.noun for thing in things)
    phrases = [
        _group_phrase(noun, count, things, look, scene, parts)
        for (noun, count), parts in zip(groups.items(), (2, 1, 0), strict=False)
    ]
    sky_colour = look.named_colour(PART_INDEX["sky"], 0)
    words = [STYLES[look.style]]
    if phrases:
        words.append(phrases[0])
        words.append(_place(things[0].kind, plan, grounds))
        words.append("in front of " + " and ".join(phrases[1:]) if phrases[1:] else "")
    else:
        words.append(_article(grounds[0]) if grounds else f"a {sky_colour} sky")
    behind = [plural for name, plural in _BACKDROPS.items() if objects[OBJECT_INDEX[name]] >= 0.02]
    if behind:
        words.append("with " + " and ".join(behind))
    if phrases and objects[OBJECT_INDEX["sky"]] > 0.1:
        words.append("under " + _article(f"{sky_colour} sky"))
    text = " ".join(word for word in words if word)
    return f"{text}, {look.light.words}" if look.light.words else text


def _group_phrase(noun: str, count: int, things: list[Thing], look: Look, scene: Scene, parts: int) -> str:
    """One thing with its colour and its largest `parts`, or a number of things."""
    thing = next(thing for thing in things if thing.kind.noun == noun)
    if count > 1:
        return f"{_COUNTS.get(count, _MANY)} {thing.kind.plural}"
    coloured = PART_INDEX[thing.kind.colour]
    phrase = _article(f"{look.named_colour(coloured, thing.instance)} {noun}")
    sizes = np.bincount(scene.parts[scene.instances == thing.instance], minlength=len(PARTS)) / scene.parts.size
    largest = [int(part) for part in np.argsort(-sizes, kind="stable") if part != coloured and sizes[part] >= _SEEN]
    named = [
        _article(f"{look.named_colour(part, thing.instance)} {PART_WORDS[PART_NAMES[part]]}")
        for part in largest[:parts]
    ]
    return f"{phrase} with {' and '.join(named)}" if named else phrase


def _article(phrase: str) -> str:
    if phrase in (*GROUNDS, "water"):
        return "a field" if phrase == "field" else phrase
    if phrase.rsplit(maxsplit=1)[-1] in _ALWAYS_PLURAL:
        return phrase
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _place(kind: Kind, plan: Plan, grounds: list[str]) -> str:
    """Where the first thing is; nothing where no ground of it is in sight."""
    if kind.place == "air":
        return f"over {_article(grounds[-1])}" if grounds else "in the sky"
    if kind.place == "water":
        return "on water" if "water" in grounds else ""
    if plan.road == "across" and "road" in grounds and kind.thing in ("car", "bus", "person"):
        return "on a road"
    ground = plan.near if plan.near in GROUNDS else plan.far
    return f"on {_article(ground)}" if ground in grounds else ""


def caption_vocabulary() -> tuple[str, ...]:
    """Every word that a caption can contain, sorted; captions are these words, blanks and commas."""
    phrases = [
        _GRAMMAR,
        _MANY,
        "water",
        "road",
        *_COUNTS.values(),
        *GROUNDS,
        *COLOURS,
        *STYLES.values(),
        *_BACKDROPS.values(),
        *PART_WORDS.values(),
    ]
    phrases += [light.words for light in LIGHTS.values()]
    phrases += [word for kind in KINDS for word in (kind.noun, kind.plural)]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


# --- Scenes -------------------------------------------------------------------------------------------------------


def _check(seed: int, height: int, width: int) -> None:
    if not is_integer(seed, 0):
        raise InputError(f"seed: given {seed!r}, accepted: an integer of 0 or more, below 2^63")
    for name, value in (("height", height), ("width", width)):
        if not is_integer(value, SMALLEST, LARGEST):
            raise InputError(f"scene {name}: given {value!r}, accepted: an integer of {SMALLEST} to {LARGEST} (pixels)")


def _paint(plan: Plan, look: Look, factors: Factors, height: int, width: int) -> Scene:
    """The scene before anybody tells what is in it: without a caption."""
    painter = _Painter(plan, look, height, width)
    for piece in plan.pieces():
        painter.paint(piece)
    canvas = painter.canvas
    return Scene(painter.finish(), canvas.parts, canvas.objects, canvas.instances, "", plan.seed, factors)


def _paint_and_tell(plan: Plan, factors: Factors, height: int, width: int) -> Scene:
    look = Look(plan.seed, factors)
    scene = _paint(plan, look, factors, height, width)
    return replace(scene, caption=_caption(plan, look, scene))


def draw_scene(seed: int, *, height: int = 256, width: int = 256, factors: Factors = Factors()) -> Scene:
    """Draw the scene of `seed` (0 or more) with its ground truth, `height` x `width` pixels (16 or more each).

    The same seed at another size is the same scene at another resolution; another width sees more or less to the
    sides. `factors` holds some of the factors fixed. Raises InputError for a bad seed, size or factor.
    """
    _check(seed, height, width)
    resolved = _resolve(int(seed), factors)
    return _paint_and_tell(_plan(int(seed), resolved), resolved, height, width)


def draw_closeups(
    seed: int,
    windows: Sequence[tuple[int, int, int, int]],
    *,
    height: int = 256,
    width: int = 256,
    factors: Factors = Factors(),
) -> list[Scene]:
    """Parts of the scene of `seed`, drawn once: each a scene of its own, whose caption tells only what is seen in it.

    `windows` are (top, left, height, width) in pixels of the scene of `height` x `width`. Raises InputError for a
    window that is empty or not all inside, or as `draw_scene` does.
    """
    _check(seed, height, width)
    resolved = _resolve(int(seed), factors)
    plan = _plan(int(seed), resolved)
    look = Look(plan.seed, resolved)
    whole = _paint(plan, look, resolved, height, width)
    closeups = []
    for top, left, high, wide in windows:
        if not (0 <= top < top + high <= height and 0 <= left < left + wide <= width):
            raise InputError(f"window: given {(top, left, high, wide)}, accepted: pixels inside {height} x {width}")
        inside = np.s_[top : top + high, left : left + wide]
        layers = {name: getattr(whole, name)[inside].copy() for name in ("image", "parts", "objects", "instances")}
        closeup = replace(whole, **layers)
        closeups.append(replace(closeup, caption=_caption(plan, look, closeup)))
    return closeups


def _other(factor: str, given: Factors) -> Factors:
    """`given` (resolved) with one factor clearly changed."""
    value = getattr(given, factor)
    changed: int | float | str
    if factor in ("palette", "texture"):
        changed = value + 1
    elif factor in ("clutter", "size"):
        changed = 0.15 if value > 0.5 else 0.85
    else:
        known = list(LIGHTS if factor == "light" else STYLES)
        changed = known[(known.index(value) + 1) % len(known)]
    return Factors(**{**vars(given), factor: changed})


def counterfactual_pair(
    seed: int, factor: str, *, height: int = 256, width: int = 256, factors: Factors = Factors()
) -> tuple[Scene, Scene]:  # fmt: skip
    """The scene of `seed`, and the same scene with one of `FACTORS` changed and all else held fixed.

    For palette, light, texture and style the label maps of the two are identical. Raises InputError for an unknown
    factor, or as `draw_scene` does.
    """
    if factor not in FACTORS:
        raise InputError(f"counterfactual factor: given {factor!r}, accepted: {', '.join(FACTORS)}")
    first = draw_scene(seed, height=height, width=width, factors=factors)
    return first, draw_scene(seed, height=height, width=width, factors=_other(factor, first.factors))


def draw_clip(
    seed: int,
    frames: int = 8,
    *,
    motion: str = "camera",
    height: int = 256,
    width: int = 256,
    factors: Factors = Factors(),
) -> list[Scene]:
    """`frames` scenes in which the camera moves to the side and a little forwards, or the main thing moves.

    `motion` is "camera" or "object". Instance ids, colours and patterns stay with their things. Raises InputError for
    an unknown motion, fewer than one frame, or as `draw_scene` does.
    """
    _check(seed, height, width)
    if motion not in MOTIONS:
        raise InputError(f"clip motion: given {motion!r}, accepted: {', '.join(MOTIONS)}")
    if frames < 1:
        raise InputError(f"clip frames: given {frames!r}, accepted: 1 or more")
    resolved = _resolve(int(seed), factors)
    plan = _plan(int(seed), resolved)
    times = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    moments = [_at_time(plan, float(time), motion) for time in times]
    return [_paint_and_tell(moment, resolved, height, width) for moment in moments]


def _at_time(plan: Plan, time: float, motion: str) -> Plan:
    """The plan at `time` in -0.5..0.5 of a clip."""
    if motion == "camera":
        view = replace(plan.camera.view, zoom=1.06 + 0.12 * time)
        return replace(plan, camera=replace(plan.camera, pan=0.35 * time, view=view))
    main, *others = plan.things
    moved = replace(main, x=main.x + 0.5 * time * main.facing)
    return replace(plan, things=(moved, *others))


# --- Files --------------------------------------------------------------------------------------------------------


def write_world(
    folder: str | Path,
    count: int,
    seed: int,
    *,
    height: int = 256,
    width: int = 256,
    factors: Factors = Factors(),
) -> list[Path]:
    """Write the scenes of `count` seeds from `seed` on into `folder`, and return the paths of the pictures.

    For each scene NAME.png, NAME.parts.png and NAME.objects.png (8-bit indexed PNG), and for all of them captions.json
    ({NAME: caption}) and classes.json (names by index). Raises InputError for a count under 1 or as `draw_scene` does.
    """
    if not is_integer(count, 1, MOST):
        raise InputError(f"count of scenes: given {count!r}, accepted: 1 or more, up to {MOST:,}")
    _check(seed, height, width)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    captions, paths = {}, []
    for number in range(seed, seed + count):
        scene, name = draw_scene(number, height=height, width=width, factors=factors), f"scene-{number:06d}"
        paths.append(folder / f"{name}.png")
        Image.fromarray(scene.image).save(paths[-1])
        save_labels(scene.parts, folder / f"{name}.parts.png")
        save_labels(scene.objects, folder / f"{name}.objects.png")
        captions[name] = scene.caption
    (folder / "captions.json").write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")
    classes = {"parts": PART_NAMES, "objects": OBJECT_NAMES}
    (folder / "classes.json").write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
    return paths
