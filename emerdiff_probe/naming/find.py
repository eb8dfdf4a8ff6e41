"""Finding a concept by its name: the masks that attend to the word answer for it, pixel by pixel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.filters import threshold_otsu

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.images import heatmap, overlay
from emerdiff_probe.models.clip import Clip
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.naming.maskclip import MaskClip
from emerdiff_probe.naming.vocabulary import Vocabulary
from emerdiff_probe.naming.words import WordAttention
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.segmentation.segment import segment


@dataclass(frozen=True, eq=False)
class Found:
    """Where a concept is in an image.

    Attributes:
        concept: the word or phrase.
        mask: (height, width) booleans: pixels that answer more to a chosen mask than to any other.
        score: (height, width) float32 in 0 … 1: the strongest answer to a chosen mask as a share of it and of the
            strongest to another, before sharpening; without it above one half inside `mask`, and there alone.
        attention: (mask,) mean attention of each low-resolution mask to the concept, or its mean cosine for a CLIP.
        chosen: (mask,) booleans, the masks that attend to it.
        separation: share of the variance of that over cells that the choice explains (Otsu's criterion), in 0 … 1.
            A concept that is not in the image gets a mask too; it separates less well.
        image: (height, width, 3) uint8.
    """

    concept: str
    mask: np.ndarray
    score: np.ndarray
    attention: np.ndarray
    chosen: np.ndarray
    separation: float
    image: np.ndarray

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The mask over the image."""
        return Image.fromarray(overlay(self.image, self.mask.astype(np.uint8), opacity))

    def heatmap(self) -> Image.Image:
        """The score as colours."""
        return Image.fromarray(heatmap(self.score, 1.0))


def find(
    model: ProbeModel,
    image: Segmentation | str | Path | Image.Image | np.ndarray,
    concept: str,
    config: EmerDiffConfig | None = None,
    *,
    prompt: str | None = None,
    attention: WordAttention | None = None,
    clip: Clip | None = None,
    progress: bool = False,
) -> Found:
    """Find a concept by its name: without any other model, or with a CLIP to say which masks are meant.

    The low-resolution masks whose mean attention to the concept is above Otsu's threshold are those that attend to it:
    the threshold (Otsu 1979) leaves the least variance within the two groups of cells and has no parameter. Every mask
    is modulated, as EmerDiff does, and a pixel belongs to the concept if it answers most to one of those.

    Args:
        model: from `load_model`.
        image: as `segment` takes it; or what `segment` gave for it, so that several concepts share its work.
        concept: a word or phrase, such as "roof".
        config: of EmerDiff, where the image is not segmented yet; the best known one for the model when None.
        prompt: what the denoiser is told, with the concept in it; "a roof" when None.
        attention: where attention is read; `WordAttention()` when None.
        clip: whose dense scores (`MaskClip`) choose the masks in the place of attention, for denoisers that hardly
            look at their text; from `load_clip`.
        progress: show a progress bar over denoiser passes.

    Raises:
        InputError: a concept that is not in the prompt, a configuration given for a segmented image, a CLIP beside a
            prompt or attention, or as `segment`, `WordAttention` and `MaskClip` do.
        SiteError, TimestepError, ModelError: as `WordAttention` does.
    """
    if clip is not None and (prompt, attention) != (None, None):
        raise InputError("a CLIP beside a prompt or attention; accepted: one or the other")
    if isinstance(image, Segmentation):
        if config is not None and config.resolve(model) != image.config:
            raise InputError("a configuration other than the segmentation's; accepted: None, or an image")
        result = image
    else:
        result = segment(model, image, config, progress=progress)
    coarse = result.low_resolution_masks
    if clip is None:
        settings, attention = result.config, attention or WordAttention()
        probed = settings.probe(
            model, result.image, start=max(attention.timesteps or (settings.modulation.modulate_at,))
        )
        scores = attention.of_prompt(probed, f"a {concept}" if prompt is None else prompt, [concept])
    else:
        scores = MaskClip(clip, Vocabulary.of([concept]))(result.image)
    means = scores.segments(coarse)[:, 0]
    chosen, separation = choose(means, np.bincount(coarse.ravel(), minlength=len(means)))
    ours, theirs = (_highest(result, np.flatnonzero(which)) for which in (chosen, ~chosen))
    return Found(
        concept=concept,
        mask=chosen[result.labels],
        score=(ours / np.maximum(ours + theirs, np.finfo(np.float32).tiny)).astype(np.float32),
        attention=means,
        chosen=chosen,
        separation=separation,
        image=result.image,
    )


def _highest(result: Segmentation, masks: np.ndarray) -> np.ndarray:
    """The highest difference at every pixel over some masks, (height, width) float32; 0 where there are none."""
    highest = np.zeros(result.labels.shape, np.float32)
    for mask in masks.tolist():
        np.maximum(highest, result.difference_map(mask), out=highest)
    return highest


def name_files(concepts: Sequence[str]) -> list[str]:
    """Names of files for concepts, different ones for different concepts: letters and digits, the rest as "-"."""
    plain = [re.sub(r"[^\w]+", "-", concept).strip("-")[:60] or "concept" for concept in concepts]
    lower = [name.lower() for name in plain]  # some file systems do not tell case
    return [name if lower.count(name.lower()) == 1 else f"{name}-{place}" for place, name in enumerate(plain)]


def write_found(found: Found, folder: Path, name: str) -> Path:
    """Write what was found as NAME.png (0 and 255), NAME_score.png (0 to 255) and NAME_overlay.png; gives the first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        f"{name}_overlay.png": found.overlay(),
        f"{name}_score.png": Image.fromarray(np.round(255 * found.score).astype(np.uint8)),
        f"{name}.png": Image.fromarray(255 * found.mask.astype(np.uint8)),
    }
    for file, picture in pictures.items():
        write_whole(folder / file, partial(picture.save, format="PNG"))
    return folder / f"{name}.png"


def choose(values: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, float]:
    """Which values stand out, by Otsu's threshold over cells, and the share of the variance that the choice explains.

    Args:
        values: (mask,) one for each mask.
        cells: (mask,) how many cells each mask has.

    Returns:
        (mask,) booleans, none where all values are equal; and a share in 0 … 1.
    """
    levels, place = np.unique(values.astype(np.float64), return_inverse=True)
    if len(levels) == 1:
        return np.zeros(len(values), bool), 0.0
    chosen = values > threshold_otsu(hist=(np.bincount(place, cells), levels))
    per_cell, inside = np.repeat(values, cells).astype(np.float64), np.repeat(chosen, cells)
    share = inside.mean()
    between = share * (1 - share) * (per_cell[inside].mean() - per_cell[~inside].mean()) ** 2
    return chosen, float(between / per_cell.var())
