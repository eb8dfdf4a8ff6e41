"""The things of the procedural world: what they are made of, and outlines of their parts in metres.

Every builder works in a thing's own frame: x to the side, y up, the foot at (0, 0). Shapes come back to front.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from emerdiff_probe.pocket.drawing import Array, blob, ellipse, limb, polygon, rectangle

Rng = np.random.Generator


@dataclass(frozen=True)
class Part:
    """How a part class is painted.

    `textures` are the patterns it may carry, `period` their size in metres (in image heights for what has no
    size of its own: sky, mountains), `contrast` the range of their strength, `natural` the colour that the class
    has in some scenes (RGB in 0..1), `shading` is (towards the light, towards the top, roundness).
    """

    name: str
    textures: tuple[str, ...]
    period: float
    contrast: tuple[float, float]
    natural: tuple[float, float, float]
    shading: tuple[float, float, float] = (0.1, 0.08, 0.0)


_FLAT = (0.04, 0.0, 0.0)
_ROUND = (0.22, 0.08, 0.3)
_BALL = (0.2, 0.2, 0.2)

PARTS = (
    Part("sky", ("wisps", "puffs", "plaster"), 0.3, (0.51, 0.88), (0.5, 0.7, 0.95), (0.08, 0.25, 0.0)),
    Part("cloud", ("puffs",), 0.3, (0.61, 0.88), (0.93, 0.94, 0.96), (0.1, 0.25, 0.1)),
    Part("sun or moon", ("plaster",), 0.3, (0.51, 0.79), (1.0, 0.92, 0.6), (0.0, 0.1, 0.1)),
    Part("mountain", ("strata", "fractal"), 0.12, (0.78, 1.0), (0.45, 0.45, 0.5), (0.2, 0.15, 0.0)),
    Part("snowcap", ("plaster", "strata"), 0.2, (0.56, 0.85), (0.95, 0.96, 1.0), (0.15, 0.1, 0.0)),
    Part("hill", ("foliage", "patches", "diagonals"), 0.11, (0.73, 1.0), (0.4, 0.55, 0.3), (0.12, 0.25, 0.0)),
    Part("grass", ("blades",), 0.5, (0.83, 1.0), (0.4, 0.6, 0.25), _FLAT),
    Part("sand", ("ripples",), 0.5, (0.67, 0.91), (0.87, 0.77, 0.55), _FLAT),
    Part("snow", ("puffs", "plaster"), 1.5, (0.73, 0.94), (0.93, 0.95, 1.0), _FLAT),
    Part("field", ("furrows",), 0.8, (0.83, 1.0), (0.62, 0.5, 0.28), _FLAT),
    Part("pavement", ("tiles", "checks"), 1.0, (0.78, 1.0), (0.65, 0.63, 0.6), _FLAT),
    Part("water", ("waves",), 1.6, (0.83, 1.0), (0.25, 0.45, 0.65), _FLAT),
    Part("road", ("gravel", "fractal"), 1.2, (0.56, 0.85), (0.35, 0.35, 0.37), _FLAT),
    Part("road marking", ("plaster",), 1.0, (0.51, 0.79), (0.95, 0.93, 0.8), _FLAT),
    Part("wall", ("bricks", "planks", "boards", "plaster"), 0.6, (0.73, 1.0), (0.85, 0.75, 0.62)),
    Part("roof", ("shingles",), 0.7, (0.78, 1.0), (0.6, 0.3, 0.22), (0.2, 0.2, 0.0)),
    Part("door", ("boards", "planks", "plaster"), 0.35, (0.67, 0.94), (0.4, 0.25, 0.15)),
    Part("house window", ("diagonals", "wisps", "puffs"), 2.2, (0.67, 0.97), (0.45, 0.6, 0.7)),
    Part("chimney", ("bricks",), 0.35, (0.73, 0.97), (0.6, 0.35, 0.3), _ROUND),
    Part("trunk", ("bark",), 0.35, (0.78, 1.0), (0.42, 0.3, 0.2), _ROUND),
    Part("crown", ("foliage",), 0.7, (0.83, 1.0), (0.3, 0.5, 0.2), _BALL),
    Part("needles", ("needles",), 0.7, (0.83, 1.0), (0.18, 0.38, 0.28), _ROUND),
    Part("bush", ("foliage", "blotches"), 0.35, (0.83, 1.0), (0.35, 0.52, 0.2), _BALL),
    Part("petals", ("bands", "plaster", "spots"), 0.08, (0.56, 0.91), (0.9, 0.3, 0.45), _BALL),
    Part("stem", ("plaster",), 0.2, (0.56, 0.85), (0.3, 0.5, 0.2)),
    Part("fence", ("bark", "plaster"), 0.4, (0.61, 0.91), (0.9, 0.88, 0.8)),
    Part("car body", ("wisps", "stripes", "bands", "checks", "patches"), 0.7, (0.53, 0.94), (0.75, 0.15, 0.15),
         (0.12, 0.25, 0.0)),
    Part("wheel", ("plaster", "puffs"), 0.5, (0.51, 0.82), (0.12, 0.12, 0.13), (0.1, 0.1, 0.0)),
    Part("car window", ("diagonals", "wisps"), 1.2, (0.67, 0.97), (0.4, 0.5, 0.58)),
    Part("head", ("plaster", "puffs"), 0.3, (0.51, 0.77), (0.85, 0.65, 0.5), _BALL),
    Part("torso", ("stripes", "bands", "checks", "diagonals", "spots"), 0.2, (0.61, 1.0), (0.3, 0.4, 0.75), _ROUND),
    Part("arms", ("stripes", "puffs"), 0.2, (0.56, 0.94), (0.85, 0.65, 0.5), _ROUND),
    Part("legs", ("puffs", "checks", "bands", "stripes"), 0.2, (0.56, 0.88), (0.2, 0.25, 0.4), _ROUND),
    Part("hull", ("planks", "stripes", "plaster"), 0.7, (0.67, 1.0), (0.6, 0.25, 0.2), (0.12, 0.25, 0.1)),
    Part("sail", ("stripes", "bands", "plaster"), 1.3, (0.53, 0.97), (0.95, 0.93, 0.88), (0.2, 0.1, 0.1)),
    Part("animal head", ("patches", "fractal"), 0.3, (0.56, 0.85), (0.45, 0.32, 0.22), _BALL),
    Part("animal body", ("patches", "spots", "zebra", "fractal", "blotches"), 0.4, (0.73, 1.0), (0.6, 0.45, 0.3),
         (0.12, 0.28, 0.1)),
    Part("animal legs", ("patches", "zebra", "stripes"), 0.3, (0.56, 0.88), (0.4, 0.3, 0.2), (0.1, 0.2, 0.0)),
    Part("bird", ("plaster", "stripes"), 0.25, (0.56, 0.91), (0.25, 0.25, 0.28), _BALL),
    Part("pole", ("plaster", "stripes"), 0.5, (0.56, 0.88), (0.3, 0.3, 0.32), _ROUND),
    Part("lamp head", ("plaster",), 0.4, (0.51, 0.76), (1.0, 0.92, 0.7), _BALL),
    Part("sign board", ("diagonals", "stripes", "checks"), 0.5, (0.73, 1.0), (0.85, 0.2, 0.2)),
    Part("envelope", ("bands", "checks", "diagonals", "stripes"), 3.0, (0.78, 1.0), (0.9, 0.5, 0.2), _BALL),
    Part("basket", ("checks", "planks"), 0.5, (0.67, 0.94), (0.55, 0.4, 0.25), _ROUND),
    Part("rock", ("strata", "gravel", "fractal"), 0.6, (0.73, 0.97), (0.5, 0.48, 0.46), _BALL),
    Part("canopy", ("bands", "spots", "checks"), 0.6, (0.73, 1.0), (0.9, 0.35, 0.3), (0.2, 0.2, 0.2)),
)  # fmt: skip

PART_NAMES = tuple(part.name for part in PARTS)
"""Names of the drawn world's parts, in the order of the part labels."""
PART_INDEX = {name: index for index, name in enumerate(PART_NAMES)}


@dataclass(frozen=True)
class Shape:
    """One part of a thing: the union of `outlines`, lighter or darker than its part's colour by `tone`."""

    part: str
    outlines: list[Array]
    tone: float = 0.0


Builder = Callable[[Rng], Iterator[Shape]]


def _house(rng: Rng) -> Iterator[Shape]:
    storeys, half = int(rng.integers(1, 4)), rng.uniform(2.4, 4.6)
    storey = rng.uniform(2.4, 3.0)
    high, rise = storeys * storey, rng.uniform(1.4, 3.4)
    eave = half + rng.uniform(0.2, 0.7)
    kind = rng.choice(["gable", "hip", "shed"])
    top = {
        "gable": polygon((-eave, high - 0.1), (0, high + rise), (eave, high - 0.1)),
        "hip": polygon((-eave, high - 0.1), (-half * 0.6, high + rise), (half * 0.6, high + rise), (eave, high - 0.1)),
        "shed": polygon((-eave, high), (-eave, high + 0.5), (eave, high + 0.5 * rise), (eave, high)),
    }[str(kind)]
    if rng.random() < 0.7:
        at = rng.uniform(0.3, 0.6) * half * rng.choice([-1, 1])
        yield Shape("chimney", [rectangle(at - 0.4, high, at + 0.4, high + rise + rng.uniform(0.0, 0.8))])
    yield Shape("wall", [rectangle(-half, 0, half, high + 0.05)])
    yield Shape("roof", [top])
    columns = int(rng.integers(2, 4))
    door_column = int(rng.integers(columns))
    pitch = 2 * half / columns
    centres = [-half + pitch * (column + 0.5) for column in range(columns)]
    wide, tall = pitch * rng.uniform(0.22, 0.34), storey * rng.uniform(0.2, 0.3)
    panes = []
    for level in range(storeys):
        for column, x in enumerate(centres):
            if level == 0 and column == door_column:
                continue
            y = storey * (level + 0.55)
            panes += [
                rectangle(x - wide, y - tall, x - 0.04, y + tall),
                rectangle(x + 0.04, y - tall, x + wide, y + tall),
            ]
    yield Shape("house window", panes)
    x, half_door = centres[door_column], min(pitch * 0.3, rng.uniform(0.5, 0.8))
    yield Shape("door", [rectangle(x - half_door, 0, x + half_door, storey * 0.78)])


def _broadleaf(rng: Rng) -> Iterator[Shape]:
    high, wide = rng.uniform(2.4, 4.5), rng.uniform(1.6, 2.8)
    thick = rng.uniform(0.4, 0.75)
    yield Shape("trunk", [limb((0, 0), (rng.uniform(-0.3, 0.3), high), thick, 0.7),
                          limb((0, high * 0.55), (wide * 0.5, high + 0.3), thick * 0.45, 0.6)])  # fmt: skip
    lobes = [blob(rng, 0, high + wide * 0.7, wide, wide * 0.9)]
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(4, 8)), endpoint=False) + rng.uniform(0, 1):
        x, y = wide * 0.75 * np.cos(angle), high + wide * (0.7 + 0.55 * np.sin(angle))
        lobes.append(blob(rng, x, y, wide * 0.5, wide * 0.45))
    yield Shape("crown", lobes)


def _conifer(rng: Rng) -> Iterator[Shape]:
    trunk, high, wide = rng.uniform(0.6, 1.4), rng.uniform(5.0, 8.0), rng.uniform(1.3, 2.3)
    tiers = int(rng.integers(3, 6))
    yield Shape("trunk", [rectangle(-0.3, 0, 0.3, trunk + 0.5)])
    step = high / (tiers + 0.6)
    cones = []
    for tier in range(tiers):
        low, half = trunk + tier * step, wide * (1 - 0.75 * tier / tiers)
        cones.append(polygon((-half, low), (-half * 0.4, low + 0.2), (half * 0.4, low + 0.2), (half, low),
                             (0, low + 1.75 * step)))  # fmt: skip
    yield Shape("needles", cones)


def _bush(rng: Rng) -> Iterator[Shape]:
    wide = rng.uniform(0.5, 0.9)
    lobes = [blob(rng, x, wide * rng.uniform(0.45, 0.7), wide * 0.55, wide * 0.55, 0.1)
             for x in np.linspace(-0.7 * wide, 0.7 * wide, int(rng.integers(3, 6)))]  # fmt: skip
    yield Shape("bush", lobes)
    if rng.random() < 0.4:
        spots = rng.uniform((-wide, 0.3 * wide), (wide, 1.0 * wide), (7, 2))
        yield Shape("petals", [ellipse(x, y, 0.1, 0.1, 10) for x, y in spots])


def _flowers(rng: Rng) -> Iterator[Shape]:
    stems, petals, hearts = [], [], []
    count, leaves = int(rng.integers(1, 5)), int(rng.integers(5, 9))
    size = rng.uniform(0.12, 0.17) if count > 1 else rng.uniform(0.17, 0.26)
    tulip = rng.random() < 0.35
    for x in (np.arange(count) - (count - 1) / 2) * size * 2.1:
        high, lean = rng.uniform(0.45, 0.85), rng.uniform(-0.08, 0.08)
        stems += [limb((x, 0), (x + lean, high), 0.045), blob(rng, x + 0.1, high * 0.4, 0.11, 0.045)]
        if tulip:
            petals.append(polygon((x + lean - size * 0.6, high), (x + lean - size * 0.75, high + size * 1.5),
                                  (x + lean - size * 0.3, high + size), (x + lean, high + size * 1.6),
                                  (x + lean + size * 0.3, high + size), (x + lean + size * 0.75, high + size * 1.5),
                                  (x + lean + size * 0.6, high), (x + lean, high - size * 0.3)))  # fmt: skip
            continue
        around = ellipse(x + lean, high, size * 0.6, size * 0.6, leaves)
        petals.extend(ellipse(px, py, size * 0.42, size * 0.42, 14) for px, py in around)
        hearts.append(ellipse(x + lean, high, size * 0.36, size * 0.36, 16))
    yield Shape("stem", stems)
    yield Shape("petals", petals)
    if hearts:
        yield Shape("petals", hearts, tone=-0.3)


def _fence(rng: Rng) -> Iterator[Shape]:
    half, high, gap = rng.uniform(2.5, 5.0), rng.uniform(0.9, 1.4), rng.uniform(0.4, 0.6)
    width = gap * rng.uniform(0.4, 0.6)
    rails = [rectangle(-half, high * level, half, high * level + 0.14) for level in (0.25, 0.7)]
    tip = 0.9 * high
    pale = polygon((-width / 2, 0), (-width / 2, tip), (0, high), (width / 2, tip), (width / 2, 0))
    yield Shape("fence", [*rails, *(pale + np.array([x, 0]) for x in np.arange(-half, half + 0.01, gap))])


def _wheels(centres: list[float], radius: float) -> Iterator[Shape]:
    yield Shape("wheel", [ellipse(x, radius, radius, radius) for x in centres])
    yield Shape("wheel", [ellipse(x, radius, radius * 0.5, radius * 0.5) for x in centres], tone=0.45)


def _car(rng: Rng) -> Iterator[Shape]:
    half, waist, top = rng.uniform(1.8, 2.3), rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.85)
    radius, floor = rng.uniform(0.32, 0.42), 0.28
    front, slope = rng.uniform(0.3, 0.9), rng.uniform(0.2, 0.55)
    rear = {"sedan": 0.55, "hatch": 0.12, "pickup": 1.6}[str(rng.choice(["sedan", "hatch", "pickup"]))]
    cabin = (
        (-half + rear, waist),
        (-half + rear + slope * 0.6, top),
        (half - front - slope, top),
        (half - front, waist),
    )
    yield Shape("car body", [
        polygon((-half, floor), (-half, waist * 0.92), (-half + 0.1, waist), (half - front, waist),
                (half - 0.1, waist * 0.85), (half, waist * 0.6), (half, floor)),
        polygon(*cabin),
    ])  # fmt: skip
    low, high = waist + 0.02, top - 0.1
    left, right = cabin[0][0] + 0.16, cabin[3][0] - 0.16
    left_top, right_top = cabin[1][0] + 0.1, cabin[2][0] - 0.06
    middle = (left + right) / 2
    yield Shape("car window", [
        polygon((left, low), (left_top, high), (middle - 0.05, high), (middle - 0.05, low)),
        polygon((middle + 0.05, low), (middle + 0.05, high), (right_top, high), (right, low)),
    ])  # fmt: skip
    yield from _wheels([-half * 0.6, half * 0.6], radius)


def _bus(rng: Rng) -> Iterator[Shape]:
    half, high = rng.uniform(3.2, 4.6), rng.uniform(2.7, 3.3)
    yield Shape("car body", [polygon((-half, 0.35), (-half, high - 0.2), (-half + 0.25, high), (half - 0.35, high),
                                     (half, high - 0.5), (half, 0.35))])  # fmt: skip
    count = int(rng.integers(4, 7))
    edges = np.linspace(-half + 0.25, half - 0.15, count + 1)
    yield Shape("car window", [rectangle(a + 0.07, high * 0.52, b - 0.07, high * 0.85)
                               for a, b in pairwise(edges)])  # fmt: skip
    yield from _wheels([-half * 0.65, half * 0.6], 0.48)


def _person(rng: Rng) -> Iterator[Shape]:
    hip, shoulder, wide = rng.uniform(0.8, 0.95), rng.uniform(1.38, 1.5), rng.uniform(0.2, 0.27)
    stride, swing = rng.uniform(0.06, 0.3), rng.uniform(0.1, 0.45)
    lift = rng.uniform(0.0, 0.7) if rng.random() < 0.3 else 0.0
    legs = [limb((way * 0.09, hip), (way * stride, 0), 0.2, 0.7) for way in (-1, 1)]
    yield Shape("legs", [*legs, *(ellipse(way * stride + 0.05, 0.04, 0.13, 0.05, 12) for way in (-1, 1))])
    hand = (wide + swing, 0.85 + lift)
    if rng.random() < 0.35:  # a skirt or coat
        body = polygon((-wide, shoulder), (-wide * 0.75, hip + 0.1), (-wide * 1.5, hip - 0.3), (wide * 1.5, hip - 0.3),
                       (wide * 0.75, hip + 0.1), (wide, shoulder))  # fmt: skip
    else:
        body = polygon((-wide, shoulder), (-wide * 0.8, hip - 0.05), (wide * 0.8, hip - 0.05), (wide, shoulder))
    yield Shape("torso", [body, ellipse(0, shoulder - 0.02, wide, 0.08)])
    yield Shape("arms", [
        limb((-wide, shoulder - 0.05), (-wide - swing * 0.6, 1.12), 0.14, 0.85),
        limb((-wide - swing * 0.6, 1.14), (-wide - swing * 0.5, 0.82), 0.12, 0.8),
        limb((wide, shoulder - 0.05), (wide + swing * 0.6, 1.12 + lift * 0.3), 0.14, 0.85),
        limb((wide + swing * 0.6, 1.13 + lift * 0.3), hand, 0.12, 0.8),
    ])  # fmt: skip
    yield Shape("head", [rectangle(-0.05, shoulder, 0.05, shoulder + 0.15), ellipse(0, shoulder + 0.22, 0.13, 0.16)])
    if rng.random() < 0.75:
        angle = np.linspace(-0.15, np.pi + 0.15, 14)
        hair = np.stack([0.145 * np.cos(angle), shoulder + 0.25 + 0.15 * np.sin(angle)], axis=1)
        yield Shape("head", [hair], tone=-0.5)


@dataclass(frozen=True)
class Species:
    """An animal's measures in metres; `neck` is (forwards, up) from the shoulder to the head."""

    length: float
    depth: float
    legs: float
    leg_width: float
    neck: tuple[float, float]
    neck_width: float
    head: tuple[float, float]
    ears: float
    horns: float = 0.0
    woolly: bool = False


SPECIES = {
    "horse": Species(1.6, 0.6, 0.95, 0.13, (0.5, 0.65), 0.32, (0.32, 0.15), 0.12),
    "cow": Species(1.7, 0.75, 0.65, 0.15, (0.35, 0.2), 0.4, (0.3, 0.2), 0.1, 0.2),
    "sheep": Species(1.0, 0.6, 0.4, 0.09, (0.22, 0.2), 0.22, (0.18, 0.14), 0.08, woolly=True),
    "dog": Species(0.8, 0.3, 0.4, 0.08, (0.2, 0.25), 0.17, (0.19, 0.12), 0.12),
    "giraffe": Species(1.6, 0.75, 1.5, 0.14, (0.75, 1.8), 0.3, (0.32, 0.15), 0.12, 0.15),
    "deer": Species(1.2, 0.45, 0.85, 0.09, (0.35, 0.55), 0.2, (0.22, 0.12), 0.1, 0.45),
    "elephant": Species(2.6, 1.4, 1.0, 0.36, (0.45, 0.25), 0.8, (0.5, 0.45), 0.4),
}


def _animal(species: Species) -> Builder:
    def build(rng: Rng) -> Iterator[Shape]:
        grow = rng.uniform(0.88, 1.12, 3)
        half, depth, legs = species.length / 2 * grow[0], species.depth * grow[1], species.legs * grow[2]
        width, step = species.leg_width, species.leg_width * rng.uniform(0.2, 1.6)
        hips, middle = legs + 0.2 * depth, legs + depth / 2
        near = [
            limb((x, hips), (x + way * step, 0), width * 1.25, 0.75)
            for x, way in ((-half * 0.78, -1), (half * 0.62, 1))
        ]
        far = [
            limb((x, hips), (x - way * step, 0), width * 1.25, 0.75) for x, way in ((-half * 0.5, -1), (half * 0.85, 1))
        ]
        yield Shape("animal legs", far, tone=-0.2)
        yield Shape("animal legs", near)
        shoulder = (half * 0.75, middle + depth * 0.12)
        skull = (shoulder[0] + species.neck[0], shoulder[1] + species.neck[1])
        tail = limb((-half * 0.95, middle + depth * 0.25), (-half - 0.2, middle - depth * 0.2), width * 0.6, 0.5)
        neck = limb(shoulder, skull, species.neck_width * 1.3, 0.65)
        if species.woolly:
            trunk = [ellipse(x, middle + y * depth, half * 0.42, depth * 0.36)
                     for x in (-half * 0.65, 0.0, half * 0.65) for y in (-0.12, 0.14)]  # fmt: skip
        else:
            trunk = [
                ellipse(0, middle, half * 1.06, depth * 0.5),
                ellipse(half * 0.6, middle, half * 0.42, depth * 0.52),
                ellipse(-half * 0.62, middle + 0.02, half * 0.4, depth * 0.5),
            ]
        yield Shape("animal body", [tail, neck, *trunk])
        x, y = skull
        long, tall = species.head
        head = [
            ellipse(x + long * 0.2, y, long * 0.75, tall),
            ellipse(x + long * 0.75, y - tall * 0.4, long * 0.45, tall * 0.6),
        ]
        if species.ears > 0.3:  # an elephant's trunk
            head += [limb((x + long, y), (x + long * 1.3, y - 1.2), 0.3, 0.5)]
        head += [
            limb(
                (x - long * 0.2, y + tall * 0.4),
                (x - long * 0.4, y + tall * 0.6 + species.ears),
                species.ears * 0.8,
                0.4,
            )
        ]
        if species.horns:
            head += [limb((x, y + tall * 0.6), (x + way * species.horns * 0.5, y + tall + species.horns), 0.07, 0.6)
                     for way in (-0.4, 1)]  # fmt: skip
        yield Shape("animal head", head)
        yield Shape("animal head", [ellipse(x + long * 0.3, y + tall * 0.25, tall * 0.16, tall * 0.16, 10)], tone=-0.7)

    return build


def _boat(rng: Rng) -> Iterator[Shape]:
    half, deep = rng.uniform(1.8, 3.2), rng.uniform(0.6, 1.1)
    if rng.random() < 0.7:
        mast = rng.uniform(3.2, 5.5)
        yield Shape("pole", [rectangle(-0.07, deep * 0.8, 0.07, deep + mast)])
        yield Shape("sail", [polygon((-0.15, deep + 0.35), (-0.15, deep + mast * 0.97), (-half * 0.85, deep + 0.4))])
        if rng.random() < 0.75:
            yield Shape(
                "sail", [polygon((0.15, deep + 0.3), (0.15, deep + mast * 0.8), (half * 0.9, deep + 0.35))], tone=-0.1
            )
    else:
        yield Shape("wall", [rectangle(-half * 0.5, deep, half * 0.3, deep + 1.3)])
        yield Shape(
            "house window", [rectangle(x, deep + 0.6, x + half * 0.2, deep + 1.1) for x in (-half * 0.4, -half * 0.05)]
        )
    yield Shape("hull", [polygon((-half * 0.8, -0.1), (-half, deep), (half * 1.15, deep * 1.15), (half * 0.75, -0.1))])


def _bird(rng: Rng) -> Iterator[Shape]:
    beat, span = rng.uniform(-0.2, 0.55), rng.uniform(0.5, 0.8)
    wings = [polygon((-0.16, 0.04), (0.16, 0.08), (way * span * 0.5 + 0.08, beat * 0.8 + 0.12), (way * span, beat),
                     (way * span * 0.45 - 0.06, beat * 0.6 - 0.02)) for way in (-1, 1)]  # fmt: skip
    beak = polygon((0.36, 0.08), (0.5, 0.04), (0.36, 0.0))
    tail = polygon((-0.25, 0.02), (-0.5, 0.08), (-0.5, -0.08))
    yield Shape("bird", [ellipse(0, 0, 0.3, 0.11), ellipse(0.3, 0.06, 0.1, 0.09), beak, tail])
    yield Shape("bird", wings, tone=-0.25)


def _lamp(rng: Rng) -> Iterator[Shape]:
    high, radius = rng.uniform(2.6, 4.0), rng.uniform(0.25, 0.4)
    yield Shape("pole", [rectangle(-0.09, 0, 0.09, high), rectangle(-0.2, 0, 0.2, 0.3)])
    if rng.random() < 0.5:
        yield Shape("lamp head", [ellipse(0, high + radius * 0.8, radius, radius)])
    else:
        top = high + radius * 1.8
        lantern = polygon((-radius * 0.6, high), (-radius, top), (radius, top), (radius * 0.6, high))
        yield Shape("lamp head", [lantern])


def _sign(rng: Rng) -> Iterator[Shape]:
    high, size = rng.uniform(1.8, 2.4), rng.uniform(0.4, 0.6)
    yield Shape("pole", [rectangle(-0.06, 0, 0.06, high)])
    corners = int(rng.choice([3, 4, 8, 24]))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + np.pi / 2
    board = np.stack([size * np.cos(angle), high + size * np.sin(angle)], axis=1)
    yield Shape("sign board", [board])
    yield Shape("sign board", [(board - (0, high)) * 0.55 + (0, high)], tone=0.4)


def _balloon(rng: Rng) -> Iterator[Shape]:
    radius = rng.uniform(2.6, 3.4)
    yield Shape("pole", [limb((way * 0.45, 0.8), (way * radius * 0.4, radius), 0.07) for way in (-1, 1)])
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    squeeze = np.where(np.sin(angle) < 0, 1 + 0.3 * np.sin(angle), 1)
    body = np.stack([radius * np.cos(angle) * squeeze, radius * (2.0 + 1.15 * np.sin(angle))], axis=1)
    yield Shape("envelope", [body])
    yield Shape("basket", [polygon((-0.5, 0.9), (0.5, 0.9), (0.42, 0), (-0.42, 0))])


def _rock(rng: Rng) -> Iterator[Shape]:
    angle = np.sort(rng.uniform(0, np.pi, 7))
    radius = rng.uniform(0.75, 1.1, 7)
    top = np.stack([radius * np.cos(angle), 0.75 * radius * np.sin(angle)], axis=1)
    yield Shape("rock", [np.concatenate([[(1.1, -0.03)], top, [(-1.1, -0.03)]])])


def _umbrella(rng: Rng) -> Iterator[Shape]:
    high, radius = rng.uniform(1.8, 2.3), rng.uniform(1.1, 1.6)
    yield Shape("pole", [rectangle(-0.05, 0, 0.05, high + 0.1)])
    angle = np.linspace(0, np.pi, 20)
    yield Shape("canopy", [np.stack([radius * np.cos(angle), high + radius * 0.6 * np.sin(angle)], axis=1)])


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its object class, builder, size in metres, where it stands and how often it is drawn.

    `place` is "land", "water" or "air"; `colour` names the part whose colour a caption mentions.
    """

    noun: str
    plural: str
    thing: str
    build: Builder
    size: float
    place: str
    colour: str
    weight: float


KINDS = (
    Kind("house", "houses", "house", _house, 8.5, "land", "wall", 2.2),
    Kind("tree", "trees", "tree", _broadleaf, 6.5, "land", "crown", 1.5),
    Kind("pine", "pines", "tree", _conifer, 7.0, "land", "needles", 1.1),
    Kind("bush", "bushes", "bush", _bush, 1.7, "land", "bush", 1.0),
    Kind("flower", "flowers", "flower", _flowers, 0.9, "land", "petals", 1.1),
    Kind("fence", "fences", "fence", _fence, 5.0, "land", "fence", 0.8),
    Kind("car", "cars", "car", _car, 4.2, "land", "car body", 1.6),
    Kind("bus", "buses", "bus", _bus, 7.8, "land", "car body", 0.8),
    Kind("person", "people", "person", _person, 1.75, "land", "torso", 2.0),
    *(
        Kind(noun, {"sheep": "sheep", "deer": "deer"}.get(noun, noun + "s"), "animal", _animal(species),
             max(species.length * 1.5, species.legs + species.depth + species.neck[1]), "land", "animal body", 0.4)
        for noun, species in SPECIES.items()
    ),
    Kind("boat", "boats", "boat", _boat, 5.5, "water", "hull", 1.6),
    Kind("bird", "birds", "bird", _bird, 1.3, "air", "bird", 1.2),
    Kind("lamp", "lamps", "lamp", _lamp, 4.0, "land", "lamp head", 0.8),
    Kind("sign", "signs", "sign", _sign, 2.7, "land", "sign board", 0.8),
    Kind("balloon", "balloons", "balloon", _balloon, 9.5, "air", "envelope", 1.0),
    Kind("rock", "rocks", "rock", _rock, 1.8, "land", "rock", 0.9),
    Kind("umbrella", "umbrellas", "umbrella", _umbrella, 3.0, "land", "canopy", 0.9),
)  # fmt: skip

OBJECT_NAMES = (
    "sky", "cloud", "sun or moon", "mountain", "hill", "grass", "sand", "snow", "field", "pavement", "water", "road",
    *dict.fromkeys(kind.thing for kind in KINDS),
)  # fmt: skip
"""Names of the drawn world's things, in the order of the object labels."""
OBJECT_INDEX = {name: index for index, name in enumerate(OBJECT_NAMES)}
