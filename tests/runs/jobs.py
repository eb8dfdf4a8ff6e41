"""A job whose records are known by hand, and pictures to run it over."""

from dataclasses import dataclass, field, replace

import numpy as np
import tiny

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError, ModelError

CELLS = {("mean", 1): {}, ("mean", 2): {}, ("shape", None): {"digits": 3}}


@dataclass(frozen=True, repr=False)
class Pictures(DataSet):
    """Drawn pictures by seed; `bad` ones cannot be read."""

    seeds: tuple[int, ...]
    bad: tuple[int, ...] = ()
    shade: int = 0
    name = "pictures"
    classes = ()
    labelled = False

    @property
    def names(self):
        return tuple(f"p{seed}" for seed in self.seeds)

    def _read(self, place):
        seed = self.seeds[place]
        if seed in self.bad:
            raise InputError(f"p{seed}: truncated")
        return Sample(f"p{seed}", tiny.picture(seed=seed) // 2 + self.shade, None, f"p{seed}")

    def _part(self, places):
        return replace(self, seeds=self.seeds[places])


@dataclass(frozen=True)
class Means:
    """A job whose records are known by hand: times the mean of a picture, and its shape."""

    cells: dict = field(default_factory=lambda: dict(CELLS))
    factor: float = 1.0
    dark: float = -1.0
    calls: list = field(default_factory=list, compare=False)
    name = "means"

    def identity(self):
        return {"factor": self.factor}

    def describe(self):
        return {"title": "Means"}

    def prepare(self, model, cells):
        self.calls.append(("prepare", tuple(cells)))

    def measure(self, model, sample, cells):
        mean = float(sample.image.mean())
        for cell in cells:
            if cell[0] == "shape":
                if mean < self.dark:
                    raise ModelError("too dark")
                yield cell, {"shape": np.array(sample.image.shape), "label": np.arange(3, dtype=np.uint8)}
            else:
                self.calls.append((sample.name, cell))
                yield cell, {"mean": self.factor * cell[1] * mean}
