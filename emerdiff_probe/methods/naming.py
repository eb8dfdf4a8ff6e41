"""Methods that name what they segment: a namer by itself, or the mean of its scores inside the segments of a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.interface import Counts, Segmenter, refuse_count
from emerdiff_probe.models.clip import Clip, load_clip
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.naming.maskclip import MaskClip
from emerdiff_probe.naming.vocabulary import ScoreMap, Vocabulary
from emerdiff_probe.naming.words import ClassWords, WordAttention
from emerdiff_probe.pocket.prompts import OBJECT_PHRASES, PART_PHRASES
from emerdiff_probe.probe import ProbedImage

Namer = Literal["maskclip", "cross-attention"]
NAMERS: tuple[Namer, ...] = get_args(Namer)


@dataclass(frozen=True, eq=False)
class Words:
    """What namers need to speak of a data set; read and loaded when one of them is asked for.

    Attributes:
        data: whose classes they name.
        names: a file with phrases for them, see `Vocabulary.read`. Without one, the world's classes have phrases of
            their own, and those of all else stand for themselves.
        source: of the CLIP, see `load_clip`.
        device: for the CLIP.
    """

    data: DataSet
    names: Path | None = None
    source: str | Path = "pocket"
    device: str | torch.device | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes, in the order of the data's.

        Raises:
            InputError: data without classes, or a file that names other classes.
        """
        if self.names is None:
            known = {tuple(phrases): phrases for phrases in (PART_PHRASES, OBJECT_PHRASES)}
            return Vocabulary.of(known.get(self.data.classes, self.data.classes))
        read = Vocabulary.read(self.names)
        unknown, missing = (
            ", ".join([name for name in some if name not in others][:8]) or "none"
            for some, others in ((read.classes, self.data.classes), (self.data.classes, read.classes))
        )
        if (unknown, missing) != ("none", "none"):
            raise InputError(
                f"{self.names}: unknown classes {unknown}; missing {missing}; accepted: those of {self.data!r}"
            )
        phrases = dict(zip(read.classes, read.phrases, strict=True))
        return Vocabulary.of({name: phrases[name] for name in self.data.classes})

    @cached_property
    def clip(self) -> Clip:
        """The CLIP.

        Raises:
            ModelError, InputError: as `load_clip` does.
        """
        return load_clip(self.source, device=self.device)


@dataclass(frozen=True, eq=False)
class Naming:
    """A way of naming that is yet to meet its model (the paper's Table 3).

    Attributes:
        namer: "maskclip", or "cross-attention", the denoiser's own.
        vocabulary: the classes, in the order of the data's.
        masks: the method whose segments take the class of their mean score; None lets every pixel take its own, scores
            enlarged bilinearly.
        clip: for "maskclip".
        attention: where "cross-attention" is read.

    Raises:
        InputError: "maskclip" without a CLIP.
    """

    namer: Namer
    vocabulary: Vocabulary
    masks: Segmenter | None = None
    clip: Clip | None = None
    attention: WordAttention = field(default_factory=WordAttention)

    def __post_init__(self) -> None:
        if self.namer == "maskclip" and self.clip is None:
            raise InputError("maskclip without a CLIP; accepted: one from load_clip")

    @property
    def name(self) -> str:
        """For tables, unique among methods."""
        return self.namer if self.masks is None else f"{self.namer} + {self.masks.name}"

    @property
    def counts(self) -> Counts:
        """Who says how many segments there are."""
        return "own" if self.masks is None else self.masks.counts

    def identity(self) -> dict[str, Any]:
        """What must be the same for results to be used again, as JSON values; that of the masks is theirs to say."""
        seen = {"attention": asdict(self.attention)} if self.clip is None else {"clip": self.clip.fingerprint}
        return {"namer": self.namer, "phrases": [list(phrases) for phrases in self.vocabulary.phrases], **seen}

    def bind(self, model: ProbeModel) -> Named:
        """The segmenter, once the model is known.

        Raises:
            InputError: a phrase that the model or the CLIP cannot take.
        """
        if self.clip is not None:
            maskclip = MaskClip(self.clip, self.vocabulary)
            return Named(self, lambda probed: maskclip(probed.image))
        words = ClassWords(model, self.vocabulary)
        return Named(self, lambda probed: self.attention.of_classes(probed, words))


@dataclass(frozen=True, eq=False)
class Named:
    """A segmenter whose labels are classes by their words; from `Naming.bind`.

    Attributes:
        naming: how.
        scores: of a probed image.
    """

    naming: Naming
    scores: Callable[[ProbedImage], ScoreMap]

    @property
    def name(self) -> str:
        """That of the naming."""
        return self.naming.name

    @property
    def counts(self) -> Counts:
        """That of the naming."""
        return self.naming.counts

    @property
    def probes(self) -> bool:
        """Whether it asks the denoiser; MaskCLIP by itself does not."""
        masks = self.naming.masks
        return self.naming.namer == "cross-attention" or (masks is not None and masks.probes)

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; labels are classes."""
        masks = self.naming.masks
        if masks is None:
            refuse_count(self, clusters)
            return self.scores(probed).pixels(*probed.image.shape[:2])
        return self.scores(probed).named(masks.segment(probed, clusters))
