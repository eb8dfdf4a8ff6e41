"""What tells a good setting from a bad one without labels: the criterion, and others beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from emerdiff_probe.arrays import find_borders
from emerdiff_probe.metrics.colour import explained_variance, lab_colours
from emerdiff_probe.metrics.overlaps import adjusted_rand
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.reading.features import one_hot_masks, upsampled
from emerdiff_probe.segmentation.sharpen import Sharpening, read_labels

CRITERION = "colour_gain"
"""The one that settings are chosen by."""
CRITERIA: Mapping[str, str] = MappingProxyType(
    {
        CRITERION: "colour variance (Lab) explained by the labels, less that of the enlarged masks",
        "colour": "colour variance (Lab) explained by the labels",
        "latents_gain": "variance of the latents explained by the labels, less that of the enlarged masks",
        "strongest": "share of the strongest map in the sum of maps",
        "margin": "distance of the two highest maps, as a share of the highest",
        "agreement": "adjusted Rand index with the enlarged masks",
        "contrast": "response inside the enlarged mask, as a share of that inside and outside",
        "edges": "colour gradient on the labels' borders, over that everywhere",
    }
)
"""What is measured of every setting, by name; of all of them more is said to be better."""
SEEDS = "seeds"
"""The criterion that takes twice as long."""
SHARPENED = "sharpened_gain"
"""The criterion by the labels as they will be read, where that is sharpened; settings are left out by it."""
OPTIONAL: Mapping[str, str] = MappingProxyType(
    {
        SEEDS: "adjusted Rand index of the labels under two draws of the noise",
        SHARPENED: "colour variance (Lab) explained by the sharpened labels, less that of masks sharpened alike",
    }
)
"""What is measured where it is asked for, by name."""
RANKED = (CRITERION, "latents_gain", "strongest")
"""Those whose ranks are averaged in `mean_rank`."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What labels of one picture are held against, at the size that the model works at.

    Attributes:
        image: (height, width, 3) uint8, of any size.
        latents: (channel, latent_height, latent_width), the encoded picture.
        low_resolution_masks: (grid_height, grid_width) labels, the same for all settings.
        size: height and width of difference maps.
        sharpen: how labels will be read.
    """

    image: np.ndarray
    latents: Tensor
    low_resolution_masks: np.ndarray
    size: tuple[int, int]
    sharpen: Sharpening = "none"

    @cached_property
    def small(self) -> np.ndarray:
        """The image at the maps' size, (height, width, 3) uint8."""
        return np.array(Image.fromarray(self.image).resize(self.size[::-1], Image.Resampling.BOX))

    @cached_property
    def colours(self) -> np.ndarray:
        """Lab, (height, width, 3)."""
        return lab_colours(self.small)

    @cached_property
    def enlarged(self) -> np.ndarray:
        """The masks enlarged, (height, width)."""
        return upsampled(self.low_resolution_masks, *self.size)

    @cached_property
    def gradient(self) -> np.ndarray:
        """How fast colours change, (height, width)."""
        return np.sqrt(sum(np.square(part).sum(-1) for part in np.gradient(self.colours, axis=(0, 1))))

    def explained(self, labels: np.ndarray) -> tuple[float, float]:
        """Shares of the variance of colours, and of that of latents, each of which takes the label at its middle."""
        values = rearrange(self.latents, "channel h w -> h w channel").float().cpu().numpy()
        steps = [whole // part for whole, part in zip(labels.shape, values.shape[:2], strict=True)]
        cells = labels[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]]
        return explained_variance(labels, self.colours), explained_variance(cells, values)

    def sharpened(self, maps: Tensor) -> float:
        """Share of the variance of colours that the sharpened labels of maps (mask, height, width) explain."""
        return explained_variance(read_labels(maps, self.small, self.sharpen)[0], self.colours)

    @cached_property
    def unpushed_sharpened(self) -> float:
        """`sharpened` of the low-resolution masks."""
        return self.sharpened(one_hot_masks(self.low_resolution_masks))

    @cached_property
    def unpushed(self) -> tuple[float, float]:
        """`explained` of the enlarged masks."""
        return self.explained(self.enlarged)

    def measure(self, maps: Tensor) -> dict[str, float]:
        """`CRITERIA` of difference maps (mask, height, width), and `SHARPENED` where labels will be."""
        labels = assign(maps).numpy()
        colour, latents = self.explained(labels)
        highest, second = torch.topk(maps, 2, dim=0).values if len(maps) > 1 else (maps[0], torch.zeros_like(maps[0]))
        nothing = 1e-12
        inside = np.array([float(own[self.enlarged == mask].mean()) for mask, own in enumerate(maps.numpy())])
        outside = [float(own[self.enlarged != mask].mean()) for mask, own in enumerate(maps.numpy())]
        borders = find_borders(labels)
        told = {} if self.sharpen == "none" else {SHARPENED: self.sharpened(maps) - self.unpushed_sharpened}
        return told | {
            CRITERION: colour - self.unpushed[0],
            "colour": colour,
            "latents_gain": latents - self.unpushed[1],
            "strongest": float((highest / maps.sum(0).clamp(min=nothing)).mean()),
            "margin": float(((highest - second) / highest.clamp(min=nothing)).mean()),
            "agreement": adjusted_rand(labels, self.enlarged),
            "contrast": float(np.nanmean(inside / np.maximum(inside + outside, nothing))),
            "edges": float(self.gradient[borders].mean() / max(self.gradient.mean(), nothing))
            if borders.any()
            else 0.0,
        }
