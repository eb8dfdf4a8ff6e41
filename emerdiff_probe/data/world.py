"""The project's own drawn world as a data set: every sample carries its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from emerdiff_probe.checks import is_integer, is_one_of, require
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.pocket.world import OBJECT_NAMES, PART_NAMES, draw_scene

CLASSES = {"parts": PART_NAMES, "objects": OBJECT_NAMES}
"""What a scene's labels name."""


@dataclass(frozen=True, repr=False)
class World(DataSet):
    """Scenes of the procedural world, each drawn when it is asked for: `World(range(200))`.

    Attributes:
        seeds: one a scene. Training begins at 1,000,000.
        labels: "parts" or "objects".
        side: of the drawn square, in pixels.

    Raises:
        InputError: other labels, or a side under 16 pixels.
    """

    seeds: Sequence[int]
    labels: Literal["parts", "objects"] = "parts"
    side: int = 256

    def __post_init__(self) -> None:
        require(
            self,
            (
                ("labels", is_one_of(self.labels, CLASSES), ", ".join(map(repr, CLASSES))),
                ("side", is_integer(self.side, 16), "an integer, 16 or more"),
            ),
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The data set's name."""
        return f"world {self.labels}"

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of parts, or of objects."""
        return CLASSES[self.labels]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scenes, as `write_world` gives them."""
        return tuple(map(_name, self.seeds))

    @property
    def origins(self) -> tuple[str, ...]:
        """The scenes, whatever their labels say and however large they are drawn."""
        return tuple(map(_origin, self.seeds))

    def _read(self, place: int) -> Sample:
        seed = self.seeds[place]
        scene = draw_scene(seed, height=self.side, width=self.side)
        labels = np.asarray(getattr(scene, self.labels)).astype(np.int32)
        return Sample(_name(seed), scene.image, labels, _origin(seed), scene)

    def _part(self, places: slice) -> Self:
        return replace(self, seeds=self.seeds[places])


def _name(seed: int) -> str:
    return f"scene-{seed:06d}"


def _origin(seed: int) -> str:
    return f"world: {_name(seed)}"
