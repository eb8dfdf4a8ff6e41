"""One image, what is known about it, and where it comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image

IGNORED = -1
"""Label of pixels that no score counts, in the samples of every data set."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and, where there is one, its truth.

    Attributes:
        name: unique in its data set.
        image: a file, or (height, width, 3) uint8.
        labels: (height, width) int32 classes or `IGNORED`, or (annotator, height, width) where several people drew;
            None where nobody did.
        origin: where it comes from, the same for the same sample of another data set.
        scene: what a drawn image shows (`emerdiff_probe.pocket.world.Scene`), or the clip that the image begins;
            None for any other.
    """

    name: str
    image: Path | np.ndarray
    labels: np.ndarray | None
    origin: str
    scene: object = None

    def pixels(self) -> np.ndarray:
        """The image, (height, width, 3) uint8.

        Raises:
            InputError: it cannot be read (see `load_image`), or has another size than its labels.
        """
        pixels = load_image(self.image)
        if self.labels is not None and pixels.shape[:2] != self.labels.shape[-2:]:
            raise InputError(
                f"{self.name}: image of {pixels.shape[:2]} with labels of {self.labels.shape[-2:]}; accepted: one size"
            )
        return pixels

    def truth(self) -> np.ndarray:
        """The labels, as in `labels`, for what cannot do without.

        Raises:
            InputError: there are none.
        """
        if self.labels is None:
            raise InputError(f"{self.name}: no labels; accepted here: an image with labels")
        return self.labels

    def digest(self) -> str:
        """16 hexadecimal digits that tell samples apart whose pixels, labels or scenes differ, whatever their names.

        Raises:
            InputError: as `pixels`.
        """
        drawn = [] if self.scene is None else [one for one in vars(self.scene).values() if isinstance(one, np.ndarray)]
        found = hashlib.sha256(getattr(self.scene, "digest", str)().encode())
        for array in (self.pixels(), *(() if self.labels is None else (self.labels,)), *drawn):
            found.update(f"{array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]
