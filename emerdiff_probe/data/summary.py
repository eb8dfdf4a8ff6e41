"""What the labels of a data set hold: which classes occur, and how much is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError

MOST_IGNORED = 0.99
"""Share of pixels from which on labels are nearly all ignored."""


@dataclass(frozen=True)
class LabelSummary:
    """Pixels by class.

    Attributes:
        classes: names by class number; empty where labels are regions without classes.
        pixels: of every class; of all regions together where there are no classes.
        ignored: pixels that no score counts.
    """

    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    ignored: int

    @property
    def occurring(self) -> tuple[str, ...]:
        """Names of the classes that have a pixel."""
        return tuple(name for name, pixels in zip(self.classes, self.pixels, strict=False) if pixels)

    @property
    def ignored_share(self) -> float:
        """Ignored pixels among all, 0 to 1; NaN where there is none."""
        total = self.ignored + sum(self.pixels)
        return self.ignored / total if total else float("nan")

    def __str__(self) -> str:
        found = f"{len(self.occurring)} of {len(self.classes)} classes occur" if self.classes else "regions, no classes"
        return f"{found}, {100 * self.ignored_share:.1f}% of the pixels are ignored"

    def to_json(self) -> dict[str, Any]:
        """For a report, as JSON values: numbers of classes, the share, and pixels by class."""
        return {
            "classes": len(self.classes),
            "occurring": len(self.occurring),
            "ignored_share": self.ignored_share,
            "pixels": dict(zip(self.classes, self.pixels, strict=False)),
        }

    def require_scorable(self) -> None:
        """Refuse labels on which every method would score alike.

        Raises:
            InputError: fewer than two classes occur, or 99% of the pixels or more are ignored.
        """
        mended = (
            "offset=, numbers= or colours= say what in the files is which class, ignore= what is none; masks of 0 and "
            "255 are two classes under numbers=0+255,ignore=none"
        )
        if self.ignored_share >= MOST_IGNORED:
            raise InputError(f"{self}: nearly nothing is left to score; accepted: less than 99% ignored. {mended}")
        if self.classes and len(self.occurring) < 2:
            only = f"only {self.occurring[0]}" if self.occurring else "none"
            raise InputError(f"{self} ({only}): every method would be right; accepted: two or more. {mended}")


def count_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of every class of one sample, and last of `IGNORED`: (classes + 1,) int64; sums over samples add up.

    Args:
        labels: as `Sample.labels`.
        classes: how many; where there are none, all regions count as one.
    """
    regions = np.where(labels == IGNORED, IGNORED, 0) if classes == 0 else labels
    places = max(classes, 1)
    return np.bincount(np.where(regions == IGNORED, places, regions).ravel(), minlength=places + 1)


def summarize(counts: np.ndarray, classes: Sequence[str]) -> LabelSummary:
    """What labels hold, by the sum of the `count_labels` of samples."""
    *pixels, ignored = counts.tolist()
    return LabelSummary(tuple(classes), tuple(pixels), ignored)
