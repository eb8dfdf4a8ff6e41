"""Pictures that are at hand as a data set without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image


@dataclass(frozen=True, repr=False)
class Pictures(DataSet):
    """Pictures in memory or in files, without labels, named by their numbers.

    Attributes:
        images: files, or (height, width, 3) uint8.
    """

    images: tuple[Path | np.ndarray, ...] = field(hash=False)
    first: int = 0
    step: int = 1
    name = "pictures"
    classes = ()
    labelled = False

    @classmethod
    def of(cls, images: Sequence[str | Path | Image.Image | np.ndarray]) -> Self:
        """Anything that `load_image` takes; files are read when their turn comes.

        Raises:
            InputError: no pictures, or what is no image.
        """
        if not len(images):
            raise InputError("no pictures; accepted: one or more")
        return cls(tuple(Path(one) if isinstance(one, str | Path) else load_image(one) for one in images))

    @property
    def names(self) -> tuple[str, ...]:
        """Numbers of the pictures, from 0."""
        return tuple(f"picture {self.first + place * self.step}" for place in range(len(self.images)))

    def _read(self, place: int) -> Sample:
        image = self.images[place]
        pixels = image if isinstance(image, np.ndarray) else load_image(image)
        return Sample(self.names[place], pixels, None, f"pixels {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}")

    def _part(self, places: slice) -> Self:
        start, _, step = places.indices(len(self.images))
        return replace(self, images=self.images[places], first=self.first + start * self.step, step=self.step * step)
