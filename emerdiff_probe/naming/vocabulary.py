"""Classes and the phrases that stand for them, and what images score for each phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.protocols import region_sums


@dataclass(frozen=True)
class Vocabulary:
    """Classes by their words.

    Attributes:
        classes: names, in the order of their labels.
        phrases: of each class the phrases that stand for it, one or more.

    Raises:
        InputError: no class, one twice, or one without a phrase or with an empty one.
    """

    classes: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise InputError(f"classes {', '.join(repeated) or 'none'}; accepted: one or more, each once")
        if len(self.phrases) != len(self.classes):
            raise InputError(f"phrases of {len(self.phrases)} classes; accepted: of {len(self.classes)}")
        for name, phrases in zip(self.classes, self.phrases, strict=True):
            if not phrases or not all(phrase.strip() for phrase in phrases):
                raise InputError(f"class {name!r}: phrases {list(phrases)}; accepted: one or more, none of them empty")

    @classmethod
    def of(cls, phrases: Mapping[str, Sequence[str]] | Sequence[str]) -> Self:
        """A vocabulary from phrases by class, or from names that stand for themselves."""
        if not isinstance(phrases, Mapping):
            phrases = {name: (name,) for name in _each_once(phrases)}
        return cls(tuple(phrases), tuple(tuple(listed) for listed in phrases.values()))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A vocabulary from a text file: one class a line, its phrases with commas between; the first names it.

        Empty lines are skipped, but not lines of commas alone.

        Raises:
            InputError: the file cannot be read, or as the class says.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no list of classes, one a line ({error})") from error
        listed = [[phrase.strip() for phrase in line.split(",")] for line in lines if line.strip()]
        _each_once([phrases[0] for phrases in listed])
        return cls.of({phrases[0]: phrases for phrases in listed})

    @property
    def all_phrases(self) -> tuple[str, ...]:
        """The phrases of all classes, one after the other."""
        return tuple(chain.from_iterable(self.phrases))

    def of_classes(self, scores: Tensor) -> Tensor:
        """Scores of classes from those of phrases, (…, phrase) -> (…, class): the highest of a class's phrases."""
        parts = scores.split([len(phrases) for phrases in self.phrases], dim=-1)
        return torch.stack([part.amax(-1) for part in parts], -1)


def _each_once(names: Sequence[str]) -> Sequence[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"classes {', '.join(repeated)} more than once; accepted: each once")
    return names


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """How much each cell of one image speaks for each phrase.

    Attributes:
        scores: (grid_height, grid_width, phrase) float32, finite; of one kind, so that the highest wins.
        vocabulary: whose phrases they are.

    Raises:
        InputError: another shape, or values that are not finite.
    """

    scores: Tensor
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        phrases = len(self.vocabulary.all_phrases)
        if self.scores.ndim != 3 or self.scores.shape[2] != phrases or not torch.isfinite(self.scores).all():
            raise InputError(
                f"scores of shape {tuple(self.scores.shape)}; accepted: (grid_height, grid_width, {phrases}), finite"
            )

    def pixels(self, height: int, width: int) -> np.ndarray:
        """The class of every pixel, (height, width) integers: scores enlarged bilinearly, the highest wins."""
        grid = rearrange(self.vocabulary.of_classes(self.scores), "h w name -> name h w")
        return enlarge(grid, (height, width)).argmax(0).numpy()

    def segments(self, labels: np.ndarray) -> np.ndarray:
        """What every segment scores for every class, from the mean of its pixels.

        For cosines of unit embeddings the highest class is that of the mean embedding inside the segment, as the
        paper names masks: only the length of the mean differs, and that is the same for all classes.

        Args:
            labels: (height, width) integers from 0; coarser ones than the scores are enlarged by nearest neighbour.

        Returns:
            (segment, class) float64, row i that of the segment numbered i; NaN where there is none.

        Raises:
            InputError: labels that are no integers from 0.
        """
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0 or int(labels.min()) < 0:
            raise InputError(
                f"labels of shape {labels.shape}, {labels.dtype}; accepted: (height, width) integers from 0"
            )
        rows, columns = (
            np.arange(max(cells, sides)) * sides // max(cells, sides)
            for cells, sides in zip(self.scores.shape, labels.shape, strict=False)
        )
        fine = labels[rows[:, None], columns]
        sums, pixels = region_sums(self.scores.numpy(), fine, int(labels.max()) + 1)
        with np.errstate(invalid="ignore"):
            means = sums / pixels[:, None]
        return self.vocabulary.of_classes(torch.from_numpy(means)).numpy()

    def named(self, labels: np.ndarray) -> np.ndarray:
        """The class of every pixel when each segment takes its best one, (height, width) integers."""
        scores = self.segments(labels)
        best = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
        return best[labels]

    def names(self, labels: np.ndarray) -> dict[int, str]:
        """The name of every segment that occurs, by its number."""
        classes = self.named(labels)
        numbers, first = np.unique(labels, return_index=True)
        return {
            int(number): self.vocabulary.classes[classes.flat[at]] for number, at in zip(numbers, first, strict=True)
        }
