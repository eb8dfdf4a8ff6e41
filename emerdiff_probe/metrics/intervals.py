"""Bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import t as student

from emerdiff_probe.errors import InputError

IMAGES_FOR_A_VERDICT = 5
"""Over fewer images a bootstrap interval is too narrow to mean anything."""


class Interval(NamedTuple):
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """In words, each number as the format says: f"{interval:.1f}" is "27.2 (24.1 to 30.0)"."""
        value, low, high = (format(number, spec) for number in self)
        return f"{value} ({low} to {high})"


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    images: int,
    *,
    draws: int = 2000,
    seed: int = 0,
    method: Literal["percentile", "basic"] = "percentile",
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """A figure of a set of images with its 95% interval by bootstrap over the images.

    Compare two methods by a statistic that is their difference: both then see the same images in every draw.

    Args:
        statistic: takes weights (draw, image), how often each image was drawn, and gives one figure a draw.
        images: number of images.
        draws: of the bootstrap.
        seed: of the draws.
        method: "percentile", or "basic", which mirrors the percentiles at the figure and keeps the figure inside. A
            draw repeats images and so loses classes, which biases its mIoU just as a smaller set is biased: the
            percentiles sit low (measured on 200 scenes with 46 classes: they held the true mIoU in 74% of trials, the
            basic interval in 96%). In a difference most of this bias cancels, and the percentiles are the better ones
            (93% against 89%).
        within: the range of the figure, which its interval does not leave: mirrored bounds may.

    Raises:
        InputError: no images, or an unknown method.
    """
    if images < 1 or method not in {"percentile", "basic"}:
        raise InputError(f"{images} images, method {method!r}; accepted: 1 or more, 'percentile' or 'basic'")
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    value = float(statistic(np.ones((1, images), int))[0])
    low, high = (float(bound) for bound in np.percentile(statistic(weights), [2.5, 97.5]))
    if method == "basic":
        low, high = min(2 * value - high, value), max(2 * value - low, value)  # never beside the figure
    return Interval(value, max(low, within[0]), min(high, within[1]))


def student_interval(values: np.ndarray) -> Interval:
    """The mean of a few values with its 95% interval by Student's t, for which a bootstrap is too narrow.

    Args:
        values: (image,), finite, one or more; of one the interval is unbounded.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    reach = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - reach, mean + reach)
