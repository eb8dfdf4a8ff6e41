"""The search: one setting after the other, few pictures first, and nothing measured twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emerdiff_probe.calibration.control import PICTURES, TWINS
from emerdiff_probe.calibration.criteria import CRITERION
from emerdiff_probe.calibration.job import SECONDS, CalibrationJob
from emerdiff_probe.calibration.space import Setting, Space
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.run import run
from emerdiff_probe.runs.store import Store

MAIN, SIDE = ("strength", "modulate_at", "layer"), ("placement", "injection", "steps")
"""What matters most is searched again and again until nothing changes, the rest once after that."""
ROUNDS = 3
"""How often the main settings are gone through, at most."""
STRIDES = (4, 2, 1)
"""Every so many pictures are looked at first, by all variants; then by the better half of them; then by a quarter."""
FEWEST = 3
"""Pictures that variants are compared on, at least."""

Record = dict[str, np.ndarray]


class BudgetSpent(Exception):
    """The time that was given is over; never leaves the search."""


@dataclass(eq=False)
class Search:
    """A search under way.

    Attributes:
        model, data: what is measured.
        space: what may be chosen.
        job: measures settings.
        store: folder of the records.
        seconds: of measuring that may be used, those of records that are found in the store included.
        warn: told of what is skipped or damaged.
        show: told the best setting so far and its criterion.
        records: by setting and picture.
        used: seconds of the records so far.
        best: the best setting so far.
    """

    model: ProbeModel
    data: DataSet
    space: Space
    job: CalibrationJob
    store: Path
    seconds: float = math.inf
    warn: Callable[[str], None] = print
    show: Callable[[Setting, float], None] = field(default=lambda setting, value: None)
    records: dict[Setting, dict[str, Record]] = field(default_factory=dict)
    used: float = 0.0

    def __post_init__(self) -> None:
        self.best = self.space.unify(self.space.preset)
        self.skipped: dict[str, str] = {}

    def run(self) -> bool:
        """Search until nothing gets better; gives whether it came to its end before the time was over.

        Raises:
            InputError: no picture that can be used, or a store of something else.
        """
        self._look()
        try:
            for _ in range(ROUNDS):
                before = self.best
                for name in MAIN:
                    self._choose(name)
                if self.best == before:
                    break
            before = self.best
            for name in SIDE:
                self._choose(name)
            if self.best != before:
                self._choose(MAIN[0])
        except BudgetSpent:
            return False
        return True

    def control(self, setting: Setting, pictures: Sequence[str]) -> list[dict[str, float]]:
        """The criterion of a setting under every untrained twin, by picture; whatever time is left.

        Of the pictures that have it `PICTURES`, evenly spread.
        """
        data = self.data[:: max(1, len(self.data) // PICTURES)]
        self.job.settings, self.job.twins, self.job.seconds = (setting,), TWINS, math.inf
        made = run(self.model, self.job, data, store=self.store, warn=self._warn_once)
        found = []
        for twin in range(TWINS):
            held = {one.name: made.record(one.name, (*setting, twin)) for one in made.samples if one.name in pictures}
            found.append({name: float(record[CRITERION]) for name, record in held.items()})
        self.job.twins = 0
        return found

    def _choose(self, name: str) -> None:
        """Give the best setting the best value of one field, to within half of the distance of those tried first."""
        if name not in self.space.values:
            return
        tried = self.space.variants(self.best, name)
        self._race(tried)
        while more := self.space.refine(self.best, name, tried):
            tried += more
            before = self.best
            self._race(more)
            if self.best == before:
                break

    def _race(self, variants: Sequence[Setting]) -> None:
        """The best of some settings and the best so far, by successive halving."""
        left = list(dict.fromkeys([self.best, *variants]))
        strides = [stride for stride in STRIDES if -(-len(self.data) // stride) >= FEWEST] or [1]
        for stride in strides:
            left = self._rank(left, stride)
            if stride != strides[-1]:
                left = list(dict.fromkeys([self.best, *left[: max(2, math.ceil(len(left) / 2))]]))
        self.best = left[0]
        self.show(self.best, self._mean(self.best, list(self.records[self.best])))

    def _rank(self, settings: Sequence[Setting], stride: int = 1) -> list[Setting]:
        """Settings from the best to the worst, of equals the earlier one first, by every so many pictures.

        Raises:
            BudgetSpent: before all of them were measured.
        """
        data = self.data[::stride]
        names = self._measure(settings, data)
        means = {setting: self._mean(setting, names) for setting in settings}
        return sorted(settings, key=lambda setting: -means[setting])

    def _mean(self, setting: Setting, names: Sequence[str]) -> float:
        values = [float(self.records[setting][name][CRITERION]) for name in names]
        return float(np.mean(values)) if np.isfinite(values).all() else -math.inf

    def _look(self) -> None:
        """Read all pictures, without measuring any: which cannot be used, and whether the store is of the same."""
        self.job.settings, self.job.seconds = (self.best,), 0
        made = run(self.model, self.job, self.data, store=self.store, warn=self.warn)
        self.skipped = dict(made.skipped)

    def _measure(self, settings: Sequence[Setting], data: DataSet) -> list[str]:
        """Have records of settings for some pictures; gives the names of those that can be used."""
        names = self._recall(settings, data)
        if self._lacks(settings, names) and self.used < self.seconds:
            self.job.settings, self.job.seconds = tuple(settings), self.seconds - self.used
            made = run(self.model, self.job, data, store=self.store, warn=self._warn_once)
            self.skipped |= made.skipped
            names = self._recall(settings, data)
        if self._lacks(settings, names):
            raise BudgetSpent
        return names

    def _lacks(self, settings: Sequence[Setting], names: Sequence[str]) -> bool:
        return any(name not in self.records.get(one, {}) for one in settings for name in names)

    def _recall(self, settings: Sequence[Setting], data: DataSet) -> list[str]:
        """Read what the store holds already, and count its seconds."""
        names = [name for name in data.names if name not in self.skipped]
        kept = Store.open(self.store, warn=self.warn)
        kept.require_cells({tuple(setting): {} for setting in settings})
        for sample in kept.samples():
            for setting in settings:
                held = self.records.setdefault(setting, {})
                if sample.name in names and sample.name not in held and kept.state(sample, tuple(setting)) is None:
                    held[sample.name] = kept.read(sample, tuple(setting))
                    self.used += float(held[sample.name][SECONDS])
        return names

    def _warn_once(self, message: str) -> None:
        """Tell what was not told before: a picture that cannot be read is tried again with every round."""
        if not any(message == f"{name} is skipped: {reason}" for name, reason in self.skipped.items()):
            self.warn(message)
