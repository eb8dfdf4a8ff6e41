"""Names from the diffusion model itself: how much each cell attends to a word (DAAM, Tang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import require
from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import attention_part
from emerdiff_probe.models.probe_model import Conditioning, ProbeModel
from emerdiff_probe.naming.vocabulary import ScoreMap, Vocabulary
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.attention import attentions
from emerdiff_probe.sites import Site, find_site, list_sites

Positions = Sequence[tuple[int, ...]]
"""Of each word the places of its tokens."""


@dataclass(frozen=True)
class WordAttention:
    """Where attention to words is read: the mean over layers, heads and timesteps of its probabilities.

    Maps of coarser layers are enlarged bilinearly, those of finer ones averaged, as in DAAM without its threshold.

    Attributes:
        layers: names of sites, one of each cross-attention layer; every such layer when None.
        timesteps: on the image's trajectory; all of them when None.

    Raises:
        InputError: an empty list.
    """

    layers: tuple[str, ...] | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require(self, [(name, getattr(self, name) != (), "some, or None for all") for name in ("layers", "timesteps")])

    def of_prompt(self, probed: ProbedImage, prompt: str, words: Sequence[str]) -> ScoreMap:
        """Attention to words of a prompt, while the denoiser is told the whole of it.

        Args:
            probed: the image; its trajectory may have another prompt.
            prompt: such as the image's caption.
            words: words or phrases that occur in it. The tokens of one, and all its occurrences, are averaged.

        Raises:
            InputError: a prompt that is too long, or a word that is not in it.
            SiteError, TimestepError, ModelError: as `attention_to` does.
        """
        positions = token_positions(probed.model, prompt, words)
        height, width = (side * probed.model.factor for side in probed.latents.shape[-2:])
        conditioning = probed.model.embed(prompt, height, width)
        return ScoreMap(self.attention_to(probed, conditioning, positions), Vocabulary.of(words))

    def of_classes(self, probed: ProbedImage, words: ClassWords) -> ScoreMap:
        """Attention to the phrases of a vocabulary, all offered to the denoiser side by side."""
        height, width = (side * probed.model.factor for side in probed.latents.shape[-2:])
        conditioning, positions = words.conditioning(height, width)
        return ScoreMap(self.attention_to(probed, conditioning, positions), words.vocabulary)

    def attention_to(self, probed: ProbedImage, conditioning: Conditioning, positions: Positions) -> Tensor:
        """Mean attention of every cell to groups of tokens.

        Args:
            probed: the image.
            conditioning: what the denoiser is told, one row.
            positions: groups of token positions; a group's tokens are averaged.

        Returns:
            (grid_height, grid_width, group) float32 on the CPU, on the finest of the layers' grids; 0 … 1.

        Raises:
            SiteError: the model has no such layer.
            InputError: a site that is no part of a cross-attention layer.
            TimestepError: a timestep that the trajectory does not pass.
            ModelError: a layer whose probabilities cannot be read; see `attention`.
        """
        model, sites = probed.model, self._sites(probed.model)
        grids = {site: probed.grid(site) for site in sites}
        finest = max(grids.values())
        timesteps = self.timesteps or probed.trajectory.timesteps
        total = torch.zeros(*finest, len(positions))
        for timestep in timesteps:
            read = attentions(model, probed.trajectory, sites, timestep, conditioning=conditioning)
            for site, maps in read:
                grouped = torch.stack([maps[:, list(group)].mean(1) for group in positions])
                grouped = rearrange(grouped, "group (h w) -> group h w", h=grids[site][0])
                total += rearrange(enlarge(grouped, finest, antialias=True), "group h w -> h w group")
        return total / (len(sites) * len(timesteps))

    def _sites(self, model: ProbeModel) -> list[Site]:
        """Query sites of the layers."""
        if self.layers is None:
            return list(list_sites(model, kind="cross", part="query"))
        named = [find_site(model, name) for name in self.layers]
        other = [site for site in named if site.kind != "cross"]
        if other:
            raise InputError(f"{other[0]} is no cross-attention layer; accepted: sites of kind 'cross'")
        return [attention_part(model, site, "query") for site in named]


class ClassWords:
    """The phrases of a vocabulary as a denoiser is told them: each embedded by itself, then put side by side.

    A list of classes is no sentence: one prompt of them all would be too long, and what comes first would change what
    follows. Here every phrase stands at the same place of its own prompt. Beside them stand the tokens of the empty
    prompt, to which a cell can turn that none of the phrases is about.

    Args:
        model: whose text encoder embeds them.
        vocabulary: the classes.
        template: with one "{}" for the phrase.

    Raises:
        InputError: a template without "{}", or a phrase that is too long.
    """

    def __init__(self, model: ProbeModel, vocabulary: Vocabulary, *, template: str = "a {}") -> None:
        if template.count("{}") != 1:
            raise InputError(f"template {template!r}; accepted: one {{}} in it")
        self.model, self.vocabulary = model, vocabulary
        size = model.native_size
        rows, positions = [], []
        reached = model.embed("", size, size).hidden_states.shape[1]
        for phrase in vocabulary.all_phrases:
            prompt = template.format(phrase)
            (places,) = token_positions(model, prompt, [phrase])
            rows.append(model.embed(prompt, size, size).hidden_states[:, list(places)])
            positions.append(tuple(range(reached, reached + len(places))))
            reached += len(places)
        self._states, self._positions = torch.cat(rows, 1), positions

    def conditioning(self, height: int, width: int) -> tuple[Conditioning, Positions]:
        """What the denoiser is told for an image of this size in pixels, and where the tokens of each phrase are."""
        empty = self.model.embed("", height, width)
        return Conditioning(torch.cat([empty.hidden_states, self._states], 1), empty.added), self._positions


def token_positions(model: ProbeModel, prompt: str, words: Sequence[str]) -> Positions:
    """The places in a prompt of the tokens of every word, all its occurrences together.

    Raises:
        InputError: no words, a prompt that is too long, or a word that is not in it.
    """
    tokenizer = model.pipeline.tokenizer
    ids = tokenizer(prompt, truncation=False).input_ids
    if len(ids) > tokenizer.model_max_length:
        raise InputError(f"prompt of {len(ids)} tokens; {model.name} accepts: up to {tokenizer.model_max_length}")
    if not words:
        raise InputError("no words; accepted: one or more that are in the prompt")
    found = []
    for word in words:
        sought = tokenizer(word, add_special_tokens=False).input_ids
        starts = [at for at in range(len(ids)) if sought and ids[at : at + len(sought)] == sought]
        if not starts:
            raise InputError(f"word {word!r} is not in the prompt {prompt!r}; accepted: words of it")
        found.append(tuple(sorted({at + n for at in starts for n in range(len(sought))})))
    return found
