"""What EmerDiff and every rival is here: a frozen value with a name and parameters that labels a probed image.

Loads no torch, so that worker processes can run the rivals that need no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError

if TYPE_CHECKING:
    from emerdiff_probe.models.probe_model import ProbeModel
    from emerdiff_probe.probe import ProbedImage

Counts = Literal["given", "either", "own"]
"""Who says how many segments there are: the caller, the caller or the method itself, or the method alone."""


class Pictured(Protocol):
    """Anything with an image, such as a `ProbedImage`; all that rivals without a model ask for."""

    @property
    def image(self) -> np.ndarray:
        """(height, width, 3) uint8."""
        ...


class Segmenter(Protocol):
    """A method. Its attributes are its parameters; the same probed image gives the same labels to the bit."""

    @property
    def name(self) -> str:
        """For tables, unique among methods."""
        ...

    @property
    def counts(self) -> Counts:
        """Who says how many segments there are."""
        ...

    @property
    def probes(self) -> bool:
        """Whether it asks the model; else it sees nothing but the image."""
        ...

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """Label every pixel.

        Args:
            probed: the image, inverted once for all rivals.
            clusters: number of segments; None leaves it to the method, where it has a criterion of its own.

        Returns:
            (height, width) integers from 0, of the size of the image itself. Fewer labels than asked for may occur.

        Raises:
            InputError: a number that the method does not take (see `counts`), or more than the image can have.
            SiteError, TimestepError: a layer or timestep that the model or its trajectory does not have.
        """
        ...


@runtime_checkable
class Bounded(Protocol):
    """A method that can tell from the model alone how many segments are too many."""

    def capacity(self, model: ProbeModel) -> int:
        """The most segments of a square image of the model's native size; one of another shape can have more.

        Raises:
            SiteError: a layer that the model does not have.
        """
        ...


def require_count(segmenter: Segmenter, clusters: int | None) -> int:
    """The number of segments of a rival that has no criterion of its own.

    Raises:
        InputError: none, or one below 1.
    """
    checked = check_count(segmenter, clusters)
    if checked is None:
        raise InputError(f"{segmenter.name}: no number of clusters; accepted: an integer, 1 or more")
    return checked


def check_count(segmenter: Segmenter, clusters: int | None) -> int | None:
    """The number of segments of a rival that can also find it itself.

    Raises:
        InputError: one below 1.
    """
    if clusters is not None and not is_integer(clusters, 1):
        raise InputError(f"{segmenter.name}: {clusters!r} clusters; accepted: an integer, 1 or more")
    return clusters


def refuse_count(segmenter: Segmenter, clusters: int | None) -> None:
    """Refuse a number of segments, for a reference that names classes.

    Raises:
        InputError: a number was given.
    """
    if clusters is not None:
        raise InputError(f"{segmenter.name}: {clusters!r} clusters; accepted: None, as it names classes")
