"""What a calibration found: the setting to use, those that cannot be told from it, and how far to trust it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from emerdiff_probe.calibration.criteria import CRITERIA, CRITERION, OPTIONAL, RANKED, SEEDS, SHARPENED
from emerdiff_probe.calibration.job import ENLARGED, PUSHED
from emerdiff_probe.calibration.space import Setting, Space
from emerdiff_probe.metrics.intervals import Interval, bootstrap, student_interval
from emerdiff_probe.metrics.overlaps import mean_iou
from emerdiff_probe.segmentation.configuration import EmerDiffConfig

FEW = 6
"""Pictures below which a calibration is no ground to leave the preset, unless the difference is beyond doubt."""
SHOWN = 12
"""Rows of the table that are shown; `Calibration.table` has all."""
MEAN_RANK = "mean_rank"
"""Name of the criterion that averages the ranks of `RANKED`."""
THRESHOLDS = (0, -1, -2, -3, -4, -6, -8, -12)
"""Points of the criterion below which a single result might be doubted; see `Calibration.guard`."""
TRUTH = "mIoU gain"
"""Column of the table that criteria are held against."""
POINTS = 100.0
"""Shares are told in points: hundredths."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` found.

    Attributes:
        base: the configuration that was calibrated, resolved: the preset's modulation, and all that was not searched.
        space: what could be chosen.
        records: what was measured, by setting and picture.
        pictures: names of those that were used.
        skipped: of the others the name, and what was wrong.
        finished: whether the search came to its end before the time was over.
        seconds: of measuring.
        labelled: whether pictures have classes, so that criteria can be held against mIoU.
        store: folder of the records; None where they were not kept.
        control: of the best setting the criterion under every untrained denoiser, by picture; empty where it was not
            measured, because nothing was ahead without it.
    """

    base: EmerDiffConfig
    space: Space
    records: Mapping[Setting, Mapping[str, Mapping[str, np.ndarray]]]
    pictures: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    finished: bool = True
    seconds: float = 0.0
    labelled: bool = False
    store: Path | None = None
    control: Sequence[Mapping[str, float]] = ()

    @property
    def preset(self) -> Setting:
        """Where the search began."""
        return self.space.unify(self.space.preset)

    @cached_property
    def complete(self) -> tuple[Setting, ...]:
        """Settings that were measured on every picture, from the best to the worst; of equals the preset first."""
        held = [one for one, known in self.records.items() if all(name in known for name in self.pictures)]
        held.sort(key=lambda setting: setting != self.preset)
        values = {setting: self.values(setting, CRITERION).mean() for setting in held}
        return tuple(sorted(held, key=lambda setting: -np.nan_to_num(values[setting], nan=-np.inf)))

    @cached_property
    def best(self) -> Setting:
        """The setting of the highest criterion that `keeps_sharpened`; it may not be told from the preset."""
        return next((setting for setting in self.complete if self.keeps_sharpened(setting)), self.preset)

    def keeps_sharpened(self, setting: Setting) -> bool:
        """Whether its sharpened labels, where they will be, explain as much as the preset's do; as far as is known."""
        if SHARPENED not in self.criteria:
            return True
        return self.difference(setting, self.preset, SHARPENED).value >= 0

    @cached_property
    def equals(self) -> tuple[Setting, ...]:
        """Settings that these pictures cannot tell from the best, itself first: their paired intervals hold zero."""
        return tuple(one for one in self.complete if one == self.best or not self.difference(self.best, one).low > 0)

    @cached_property
    def found(self) -> bool:
        """Whether there is a setting that is better than the preset and at which the labels explain something.

        The best of many settings looks better than it is: both must exceed what the best of so many could by chance.
        And a denoiser that was never trained must not do as well: an answer may follow colours without any knowledge.
        """
        return self.leads and self._beats_untrained

    @cached_property
    def leads(self) -> bool:
        """As `found`, whatever untrained denoisers do."""
        return self.best != self.preset and self.preset not in self.equals and self._beyond_chance(self.preset)

    @property
    def _beats_untrained(self) -> bool:
        return all(apart.low > 0 for apart in self.over_untrained())

    def over_untrained(self) -> list[Interval]:
        """How much higher the best setting's criterion is than under every untrained denoiser."""
        return [
            _interval(self.values(self.best, CRITERION, list(twin)) - np.array(list(twin.values())))
            for twin in self.control
        ]

    def _beyond_chance(self, other: Setting | None = None) -> bool:
        """Whether the best setting's criterion is above 0, or above another's, by more than the luckiest of all.

        By the bootstrap of the largest of all settings' means about their own, each in its own standard deviations
        (White's reality check, 2000, as Hansen 2005 scales it).
        """
        if not self.gain(self.best).low > 0 or (other is not None and not self._beyond_chance()):
            return False
        if len(self.pictures) < FEW:
            return True
        known = [self.best, *(setting for setting in self.complete if setting != self.best)]
        gains = np.array([self.values(setting, CRITERION) for setting in known])
        gains = gains[np.isfinite(gains).all(1)] - (0 if other is None else self.values(other, CRITERION))
        gains /= np.maximum(gains.std(1, keepdims=True), 1e-9)
        centred = gains - gains.mean(1, keepdims=True)
        luck = bootstrap(lambda weights: (weights @ centred.T / len(self.pictures)).max(1), len(self.pictures))
        return bool(gains[0].mean() > luck.high)

    @property
    def chosen(self) -> Setting:
        """The setting to use: the best, or the preset where nothing was found."""
        return self.best if self.found else self.preset

    @property
    def config(self) -> EmerDiffConfig:
        """The configuration with the chosen setting, resolved."""
        return self.base.change(**self.options) if self.found else self.base

    @property
    def options(self) -> dict[str, Any]:
        """The settings that were searched, by option names, with the chosen values."""
        chosen = self.chosen.options() if self.found else Setting.of(self.base).options()
        return {name: value for name, value in chosen.items() if name in self.space.values}

    def values(self, setting: Setting, criterion: str, pictures: Sequence[str] | None = None) -> np.ndarray:
        """A criterion by picture, (picture,)."""
        return np.array(
            [
                float(self.records[setting][name][criterion])
                for name in (self.pictures if pictures is None else pictures)
            ]
        )

    def gain(self, setting: Setting) -> Interval:
        """The criterion of a setting over its pictures with its 95% interval: a share, -1 … 1."""
        return _interval(self.values(setting, CRITERION, self._pictures_of(setting)))

    def difference(self, one: Setting, other: Setting, criterion: str = CRITERION) -> Interval:
        """How much higher a criterion of one setting is than another's, over the pictures that both have."""
        both = [name for name in self._pictures_of(one) if name in self.records[other]]
        return _interval(self.values(one, criterion, both) - self.values(other, criterion, both))

    @property
    def criteria(self) -> tuple[str, ...]:
        """Names of the criteria that were measured."""
        records = [one for held in self.records.values() for one in held.values()]
        return (*CRITERIA, *(name for name in OPTIONAL if any(name in one for one in records)))

    def table(self) -> pd.DataFrame:
        """A row for every setting that was measured, the best first, those of all pictures before the others.

        Columns: the setting; `same` layers that cannot differ; `pictures`; `gain` with its interval and `over preset`
        with its, in points of colour variance; `note`; the other criteria; with labels `mIoU gain` in points.
        """
        others = [one for one, known in self.records.items() if known and one not in self.complete]
        others.sort(key=lambda one: (-len(self.records[one]), -self.gain(one).value))
        rows = []
        for setting in (*self.complete, *others):
            gain, over = self.gain(setting), self.difference(setting, self.preset)
            row: dict[str, Any] = dict(setting._asdict())
            row["same"] = ", ".join(name for name in self.space.names(setting) if name != setting.layer)
            row["pictures"] = len(self._pictures_of(setting))
            row |= {"gain": POINTS * gain.value, "low": POINTS * gain.low, "high": POINTS * gain.high}
            row |= {f"over preset{end}": POINTS * value for end, value in zip(("", " low", " high"), over, strict=True)}
            row["note"] = self._note(setting)
            for name in self.criteria[1:]:
                row[name] = float(self.values(setting, name, self._pictures_of(setting)).mean())
            if self.labelled:
                row[TRUTH] = self.true_gain(setting)
            rows.append(row)
        return pd.DataFrame(rows)

    def true_gain(self, setting: Setting, pictures: Sequence[str] | None = None) -> float:
        """MIoU of the labels less that of the enlarged masks, majority protocol, points; over a setting's pictures."""
        held = [self.records[setting][name] for name in pictures or self._pictures_of(setting)]
        scores = [mean_iou(np.sum([one[which] for one in held], axis=0)) for which in (PUSHED, ENLARGED)]
        return float(POINTS * (scores[0] - scores[1]))

    def correlations(self) -> pd.DataFrame:
        """Spearman's rank correlation of every criterion with the true gain in mIoU, over settings; the best first.

        A setting that was measured on a part of the pictures is held against the preset on that part. `all pictures`
        has the correlation over those settings alone that were measured on every picture.
        """
        settings = [one for one, known in self.records.items() if known]
        whole = np.array([one in self.complete for one in settings])
        truth, found = list[float](), dict[str, list[float]]((name, []) for name in self.criteria)
        for setting in settings:
            names = [name for name in self._pictures_of(setting) if name in self.records[self.preset]]
            truth.append(self.true_gain(setting, names) - self.true_gain(self.preset, names))
            for name, values in found.items():
                apart = self.values(setting, name, names) - self.values(self.preset, name, names)
                values.append(float(np.nan_to_num(apart.mean(), nan=-np.inf)))
        averaged = [*RANKED, SEEDS] if SEEDS in found else RANKED
        found[MEAN_RANK] = list(np.mean([rankdata(found[name]) for name in averaged], axis=0))
        told = {**CRITERIA, **OPTIONAL}
        told[MEAN_RANK] = f"mean of the ranks of {', '.join(averaged)}"
        rows = [
            {
                "criterion": name,
                "rank correlation": _spearman(values, truth),
                "settings": len(settings),
                "all pictures": _spearman(np.array(values)[whole], np.array(truth)[whole]),
                "of them": int(whole.sum()),
                "what": told[name],
            }
            for name, values in found.items()
        ]
        return pd.DataFrame(rows).sort_values("rank correlation", ascending=False, kind="stable", ignore_index=True)

    def regret(self) -> dict[str, float]:
        """True gains in mIoU, points, over all pictures: of the best setting that was measured on all of them, of the
        chosen one and of the preset; and the regret, the best less the chosen.
        """
        gains = {setting: self.true_gain(setting, self.pictures) for setting in self.complete}
        best = max(gains.values())
        return {
            "best": best,
            "chosen": gains[self.chosen],
            "preset": gains[self.preset],
            "regret": best - gains[self.chosen],
        }

    def guard(self) -> pd.DataFrame:
        """What the criterion of a single result tells about its mIoU, over the settings of all pictures.

        A row a threshold, in points: how many `results` are below it, how many of them `lost` mIoU against the enlarged
        masks (majority protocol, picture by picture; percent) and their mean `change` in points; and the same of the
        `others`.
        """
        held = [(setting, name) for setting in self.complete for name in self.pictures]
        values = POINTS * np.array([float(self.records[setting][name][CRITERION]) for setting, name in held])
        changes = np.array([self.true_gain(setting, [name]) for setting, name in held])
        rows = []
        for threshold in THRESHOLDS:
            row: dict[str, float] = {"below": threshold}
            for which, prefix in ((values < threshold, ""), (~(values < threshold), "others ")):
                part = changes[which]
                row[f"{prefix}results"] = len(part)
                row[f"{prefix}lost %"] = POINTS * float((part < 0).mean()) if len(part) else np.nan
                row[f"{prefix}change"] = float(part.mean()) if len(part) else np.nan
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found, and what there is to say about it, a sentence each."""
        told = [self._verdict()]
        if len(self.pictures) < FEW:
            told.append(
                f"{len(self.pictures)} pictures are too few: with fewer than {FEW} the preset is kept unless the "
                "difference is beyond doubt"
            )
        ahead = self.complete.index(self.best) if self.best in self.complete else 0
        if ahead:
            told.append(
                f"{ahead} settings that are ahead by plain labels are left out: sharpened, as labels will be read, "
                "theirs explain less than the preset's"
            )
        if not self.finished:
            told.append("the time was over before the search was; with more --minutes the same command goes on")
        if self.skipped:
            told.append(f"{len(self.skipped)} pictures could not be used")
        return tuple(told)

    def _verdict(self) -> str:
        best, preset = self.gain(self.best), self.gain(self.preset)
        if self.found:
            over = self.difference(self.best, self.preset)
            return (
                f"found: {_points(over)} more of the pictures' colour variance than with the preset "
                f"(gain over the enlarged masks {POINTS * best.value:+.1f}, the preset's {POINTS * preset.value:+.1f}"
                f"{self._told_control()})"
            )
        if len(self.complete) == 1:
            return "the preset is kept: no other setting was measured on every picture"
        if not self._beats_untrained:
            apart = min(self.over_untrained(), key=lambda one: one.low)
            return (
                "nothing found: a denoiser of random weights does as well at the best setting "
                f"(the model is {_points(apart)} ahead of it); the preset is kept"
            )
        if not self._beyond_chance():
            return (
                "nothing found: at no setting do the labels explain more of the pictures' colours than the enlarged "
                f"masks do, beyond chance (the best {_points(best)}); the preset is kept"
            )
        if self.best == self.preset:
            return "the preset is kept: of all settings that were measured it is the best"
        ahead = _points(self.difference(self.best, self.preset))
        if self.preset in self.equals:
            return f"the preset is kept: these pictures cannot tell it from the best setting ({ahead})"
        return f"the preset is kept: the best of {len(self.complete)} settings may exceed it so far by chance ({ahead})"

    def _told_control(self) -> str:
        values = [value for twin in self.control for value in twin.values()]
        return f", a denoiser's of random weights {POINTS * np.mean(values):+.1f}" if values else ""

    @property
    def heading(self) -> tuple[str, ...]:
        """What stands above the table."""
        settings = sum(bool(known) for known in self.records.values())
        return (
            *self.notes,
            f"{len(self.pictures)} pictures, {settings} settings, {len(self.complete)} of them on every picture, "
            f"{self.seconds / 60:.1f} minutes of measuring; gain: points of colour variance (CIE Lab) that EmerDiff's "
            "plain labels explain more than its enlarged masks, with 95% intervals over pictures",
        )

    def shown(self) -> pd.DataFrame:
        """The table as it is shown: a few rows, the preset's among them, and intervals in one column."""
        table = self.table()
        chosen = table.head(SHOWN).index.union(table.index[table["note"].str.contains("preset")])
        table = table.loc[chosen]
        for name, ends in (("gain", ("low", "high")), ("over preset", ("over preset low", "over preset high"))):
            parts = [table[column] for column in (name, *ends)]
            table[name] = [f"{value:+.1f} [{low:.1f}, {high:.1f}]" for value, low, high in zip(*parts, strict=True)]
        searched = [name for name in Setting._fields if name in self.space.values]
        columns = [*searched, "same", "pictures", "gain", "over preset", "note"]
        columns += [TRUTH] if self.labelled else []
        return table[columns].round(2)

    def _note(self, setting: Setting) -> str:
        names = {"chosen": self.chosen, "preset": self.preset}
        told = [name for name, one in names.items() if one == setting]
        told += ["equal to the best"] if setting in self.equals and setting != self.best else []
        return ", ".join(told if self.keeps_sharpened(setting) else [*told, "less when sharpened"])

    def _pictures_of(self, setting: Setting) -> list[str]:
        return [name for name in self.pictures if name in self.records[setting]]

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        tables = [("", self.shown())]
        if self.labelled:
            told = ", ".join(f"{name} {value:+.2f}" for name, value in self.regret().items())
            title = f"Against the labels (majority protocol), gain in mIoU: {told}. Criteria and the true gain:"
            tables.append((title, self.correlations().round(2)))
        return tables

    def __str__(self) -> str:
        parts = ["\n".join(self.heading)]
        for title, table in self._tables():
            parts.append((title + "\n" if title else "") + table.to_string(index=False))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        first, *more = self.heading
        shown = f"<b>{html.escape(first)}</b><br>{'<br>'.join(map(html.escape, more))}"
        for title, table in self._tables():
            shown += f"<p>{html.escape(title)}</p>{table.to_html(index=False)}"
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{shown}<code>EmerDiffConfig.for_model(model, {html.escape(given)})</code>"


def _interval(values: np.ndarray) -> Interval:
    """The mean over pictures with its 95% interval; NaN below any other, as of a setting that overflows."""
    if not np.isfinite(values).all() or not len(values):
        return Interval(-np.inf, -np.inf, -np.inf)
    if len(values) < FEW:
        return student_interval(values)
    return bootstrap(lambda weights: weights @ values / len(values), len(values))


def _spearman(values: Sequence[float] | np.ndarray, truth: Sequence[float] | np.ndarray) -> float:
    if len(values) < 3 or np.ptp(rankdata(values)) == 0 or np.ptp(truth) == 0:
        return float("nan")
    return float(spearmanr(values, truth).statistic)


def _points(interval: Interval) -> str:
    return f"{POINTS * interval.value:+.1f} points [{POINTS * interval.low:.1f}, {POINTS * interval.high:.1f}]"
