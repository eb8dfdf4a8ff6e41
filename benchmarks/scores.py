"""Figures of each bootstrap draw, for ratios and differences that no protocol has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emerdiff_probe.metrics.intervals import Interval
from emerdiff_probe.metrics.overlaps import tallied_iou, tallies

Statistic = Callable[[np.ndarray], np.ndarray]
"""A figure of each bootstrap draw, from how often every scene was drawn: (draw, scene) -> (draw,)."""


def difference(first: Statistic, second: Statistic) -> Statistic:
    """How much higher the first is, on the same draws."""
    return lambda weights: first(weights) - second(weights)


def miou(confusions: Sequence[np.ndarray]) -> Statistic:
    """The mIoU in percent from the confusion (class, class) of every scene."""
    tally = tallies(np.stack(confusions).astype(np.float64))
    return lambda weights: 100 * tallied_iou(np.tensordot(weights, tally, 1))


def rounded(interval: Interval, name: str = "miou") -> dict[str, float]:
    """An interval as a JSON object with two decimals, its value under a name."""
    return {name: round(interval.value, 2), "low": round(interval.low, 2), "high": round(interval.high, 2)}
