"""What can be measured of segments on a data set: against its labels or, where there are none, without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2gray
from skimage.feature import canny

from emerdiff_probe.arrays import find_borders
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import adjusted_rand, boundary_f, covering, majority_confusion
from emerdiff_probe.pocket.world import Scene
from emerdiff_probe.studies.study import Measure

EDGE_SIGMA = 2.0
"""Pixels of the Gaussian in Canny's detector of the image's own edges."""
NO_LABELS = "the data has no labels"


@dataclass(frozen=True)
class Truth:
    """What a data set knows of its samples, and with it what segments can be measured by.

    Attributes:
        classes: names by label; empty where labels are regions without classes, or where there are none.
        labelled: whether there are labels.
    """

    classes: tuple[str, ...]
    labelled: bool

    @classmethod
    def of(cls, data: DataSet) -> Truth:
        """That of a data set."""
        return cls(data.classes, data.labelled)

    def require_classes(self, study: str) -> None:
        """Refuse data without classes.

        Raises:
            InputError: there are none.
        """
        if not self.classes:
            raise InputError(f"study {study} needs labels with classes; accepted: world:COUNT, folder:PATH, …")

    def score(self, name: str, what: str) -> dict[str, Measure]:
        """The measure of how good segments are, under this name: mIoU, or covering of regions that have no classes."""
        if self.classes:
            return {name: Measure(f"majority mIoU of {what}", "%", "confusion", True)}
        return {name: Measure(f"covering of the drawn regions by {what}", "%", "mean", True)} if self.labelled else {}

    def boundaries(self) -> dict[str, Measure]:
        """The measure of how well borders are met."""
        return {"boundary": Measure("boundary F-score of EmerDiff, 2 px", "%", "mean", True)} if self.labelled else {}

    def alone(self) -> dict[str, Measure]:
        """Measures that need no labels, where there are none."""
        if self.labelled:
            return {}
        return {
            "agreement": Measure("adjusted Rand index with the segments of the configuration's own settings"),
            "covering": Measure("covering of the segments of the configuration's own settings", "%"),
            "seeds": Measure("adjusted Rand index of the segments under two seeds", "", "mean", True),
            "edges": Measure("distance of segment borders from the image's own edges", "px", "mean", False),
        }

    def left_out(self, *names: str) -> dict[str, str]:
        """Measures that there are none of, by name, and why."""
        return {} if self.labelled else dict.fromkeys(names, NO_LABELS)

    def measure_score(self, name: str, labels: np.ndarray, sample: Sample) -> dict[str, float | np.ndarray]:
        """The value of `score` for labels (height, width) of the sample's size."""
        if self.classes:
            confusion = majority_confusion(labels, one_truth(sample), len(self.classes), ignore_index=IGNORED)
            return {name: confusion.astype(np.int32)}
        return {name: 100 * over_people(covering, labels, sample)} if self.labelled else {}

    def measure_boundaries(self, labels: np.ndarray, sample: Sample) -> dict[str, float]:
        """The value of `boundaries`."""
        return {"boundary": 100 * over_people(boundary_f, labels, sample)} if self.labelled else {}

    def measure_alone(
        self,
        labels: np.ndarray,
        image: np.ndarray,
        own: Callable[[], np.ndarray],
        reseeded: Callable[[], np.ndarray],
    ) -> dict[str, float]:
        """The values of `alone`: of labels, against those under the configuration's own settings and another seed."""
        if self.labelled:
            return {}
        ours = own()
        return {
            "agreement": adjusted_rand(labels, ours),
            "covering": 100 * covering(labels, ours),
            "seeds": adjusted_rand(labels, reseeded()),
            "edges": edge_distance(labels, image),
        }

    def describe(self) -> str:
        """For people: what segments are measured by."""
        if self.classes:
            return f"labels of {len(self.classes)} classes"
        return "regions without classes" if self.labelled else "no labels: measured is what needs none"


def one_truth(sample: Sample) -> np.ndarray:
    """Labels (height, width), the first person's where several drew."""
    truth = sample.truth()
    return truth[0] if truth.ndim == 3 else truth


def require_scenes(study: str, data: DataSet, *others: str) -> None:
    """Refuse data of which nothing can be drawn anew.

    Raises:
        InputError: it is not the drawn world.
    """
    if not isinstance(data, World):
        raise InputError(
            f"study {study} draws scenes anew and needs the world, not {data!r}; accepted: "
            f"{', '.join(('world:COUNT', *others))}"
        )


def scene_of(sample: Sample) -> Scene:
    """What was drawn, for studies that `require_scenes`.

    Raises:
        InputError: the sample was not drawn.
    """
    if not isinstance(sample.scene, Scene):
        raise InputError(f"{sample.name}: no drawn scene; accepted here: samples of world:COUNT")
    return sample.scene


def over_people(metric: Callable[..., float], labels: np.ndarray, sample: Sample) -> float:
    """A metric of labels against the truth, averaged over the people who drew it."""
    truth = sample.truth()
    return float(np.mean([metric(labels, drawn, ignore_index=IGNORED) for drawn in np.atleast_3d(truth.T).T]))


def edge_distance(labels: np.ndarray, image: np.ndarray) -> float:
    """Mean distance of the borders of segments from the nearest edge of the image itself (Canny 1986), in pixels.

    Args:
        labels: (height, width) integers.
        image: (height, width, 3) uint8.

    Returns:
        0 or more; NaN where the segments have no border or the image no edge.
    """
    edges, borders = canny(rgb2gray(image), sigma=EDGE_SIGMA), find_borders(labels)
    if not edges.any() or not borders.any():
        return float("nan")
    return float(distance_transform_edt(~edges)[borders].mean())


def require_disjoint(fit_on: DataSet, data: DataSet, what: str) -> None:
    """Refuse to learn from samples that are measured.

    Raises:
        InputError: the same sample in both, or other classes.
    """
    if fit_on.classes != data.classes:
        raise InputError(f"{what}: fitted on classes of {fit_on!r}, asked for those of {data!r}")
    both = set(fit_on.origins) & set(data.origins)
    if both:
        raise InputError(f"{what}: {len(both)} samples are fitted on and measured, such as {min(both)}; accepted: none")
