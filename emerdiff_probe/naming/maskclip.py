"""MaskCLIP (Zhou et al. 2022): any CLIP scores the patches of an image for phrases, without training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from einops import reduce
from torch import Tensor, nn

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.clip import Clip
from emerdiff_probe.naming.vocabulary import ScoreMap, Vocabulary

PLAIN: tuple[str, ...] = ("{}", "a {}")
"""Templates for CLIPs that know no photographs, such as those of the world."""
PHOTOS: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
    "there is a {} in the scene.",
)
"""Templates for CLIPs of photographs, some of those that Radford et al. (2021) use."""


class MaskClip:
    """Scores of phrases at every patch: the cosine of patch embeddings and of an ensemble of prompts.

    Args:
        clip: any, from `load_clip`.
        vocabulary: what to look for.
        templates: each with one "{}" for the phrase; a phrase's embedding is the mean over them. When None, `PHOTOS`
            if the CLIP knows the word "photo", else `PLAIN`.
        scale: times the native size at which images are seen, along their shorter side.

    Raises:
        InputError: no templates, or one without "{}".
    """

    def __init__(
        self, clip: Clip, vocabulary: Vocabulary, *, templates: Sequence[str] | None = None, scale: float = 1.0
    ) -> None:
        if templates is None:
            templates = PHOTOS if clip.knows("photo") else PLAIN
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise InputError(f"templates {wrong or 'none'}; accepted: one or more, each with one {{}}")
        self.clip, self.vocabulary, self.templates, self.scale = clip, vocabulary, tuple(templates), scale

    @cached_property
    def text_embeddings(self) -> Tensor:
        """Embeddings (phrase, channel) of the prompt ensemble, of unit length."""
        prompts = [template.format(phrase) for phrase in self.vocabulary.all_phrases for template in self.templates]
        each = self.clip.text_embeddings(prompts)
        mean = reduce(each, "(phrase template) channel -> phrase channel", "mean", template=len(self.templates))
        return nn.functional.normalize(mean, dim=-1)

    def __call__(self, image: np.ndarray) -> ScoreMap:
        """Score an image (height, width, 3) uint8: cosines in -1 … 1.

        Raises:
            InputError: a phrase that is too long for the CLIP, or a scale that leaves no patch.
        """
        return ScoreMap(self.clip.patch_embeddings(image, scale=self.scale) @ self.text_embeddings.T, self.vocabulary)
