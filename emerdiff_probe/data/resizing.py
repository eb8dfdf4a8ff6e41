"""What of an image a segmenter sees and at which size; its labels come back to the image's own pixels to be scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError

MOST_SIDE = 4096
"""Of the shorter side; the longer one is up to eight times as long."""


@dataclass(frozen=True)
class Resizing:
    """How images are prepared for a segmenter. The default changes nothing.

    Scores are taken at the original resolution: `restore` brings labels back to the pixels of `window`, against which
    the truth is cut by the same window.

    Attributes:
        side: the shorter side after resizing, in pixels; None keeps the size.
        shape: "keep" the proportions, "crop" the central square, or "squash" the whole image into a square.
        multiple: both sides become the nearest multiple of this, at least one.

    Raises:
        InputError: a side or multiple below 1 or above 4096, another shape, or a side that is no multiple.
    """

    side: int | None = None
    shape: Literal["keep", "crop", "squash"] = "keep"
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.shape not in {"keep", "crop", "squash"}:
            raise InputError(f"shape {self.shape!r}; accepted: 'keep', 'crop', 'squash'")
        sides = [self.multiple] + ([] if self.side is None else [self.side])
        if not all(is_integer(side, 1) and side <= MOST_SIDE for side in sides) or sides[-1] % self.multiple:
            raise InputError(
                f"side {self.side}, multiple {self.multiple}; accepted: 1 to {MOST_SIDE}, a side that divides by it"
            )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image that the segmenter sees."""
        if self.shape != "crop":
            return slice(0, height), slice(0, width)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the segmenter gets for an image of this size."""
        shorter = min(height, width)
        scale = (self.side or shorter) / shorter
        sides = (height * scale, width * scale) if self.shape == "keep" else (shorter * scale, shorter * scale)
        rows, columns = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
        return rows, columns

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The image (height, width, 3) uint8 as the segmenter gets it, by Lanczos resampling."""
        seen = image[self.window(*image.shape[:2])]
        rows, columns = self.target(*image.shape[:2])
        if seen.shape[:2] == (rows, columns):
            return seen
        return np.array(Image.fromarray(seen).resize((columns, rows), Image.Resampling.LANCZOS))

    def restore(self, labels: np.ndarray, height: int, width: int) -> np.ndarray:
        """Labels of what the segmenter got, at the pixels of the window of an image of the given size.

        Args:
            labels: (rows, columns) integers, of the size that `target` names.
            height, width: of the original image.

        Returns:
            (window height, window width) of the same type, each pixel with the label of the nearest.

        Raises:
            InputError: labels of another size.
        """
        if labels.shape != self.target(height, width):
            raise InputError(
                f"labels of shape {labels.shape} for an image of {height} x {width}; accepted: "
                f"{self.target(height, width)}"
            )
        sizes = (window.stop - window.start for window in self.window(height, width))
        nearest = [
            ((np.arange(size) + 0.5) * cells / size).astype(int)
            for size, cells in zip(sizes, labels.shape, strict=True)
        ]
        return labels[np.ix_(*nearest)]

    def seen(self, truth: np.ndarray) -> np.ndarray:
        """The truth (..., height, width) inside the window."""
        return truth[(..., *self.window(*truth.shape[-2:]))]
