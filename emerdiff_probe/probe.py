"""One image under the probe: encoded and inverted once, then asked for features, masks and difference maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.attention import attention, attentions
from emerdiff_probe.reading.correspondence import Modulation, difference_maps
from emerdiff_probe.reading.features import capture, cluster, combine, finest_grid, one_hot_masks
from emerdiff_probe.sites import Site
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.inversion import InversionMethod, invert
from emerdiff_probe.trajectories.trajectory import Trajectory

Value = TypeVar("Value", Site, int)


class ProbedImage:
    """An image with its trajectory; features and clusters are kept, so that many questions share one pass.

    Every answer depends on its arguments alone, never on what was asked before: the same to the bit.

    Args:
        model: to probe.
        image: an array that `load_image` takes; run with its shorter side at the model's native size.
        scale: times which the image is larger than that.
        start: the highest timestep that will be asked for.
        steps, method, prompt, seed: as in `invert`.
        draws: features are means over so many draws of the inversion's noise, 1 or more, read in one batch (as DIFT
            does, Tang et al. 2023: one draw of noise hides part of what the denoiser knows about the image).

    Raises:
        TimestepError: `start` is not on the grid.
        InputError: a bad image; `draws` below 1, or above 1 for an inversion that draws nothing.
    """

    def __init__(
        self,
        model: ProbeModel,
        image: np.ndarray,
        *,
        start: int,
        scale: int = 1,
        steps: int = 50,
        method: InversionMethod = "ddpm",
        prompt: str = "",
        seed: int = 0,
        draws: int = 1,
    ) -> None:
        require_draws(draws, method)
        self.model, self.image, self.seed = model, load_image(image), seed
        height, width = model.working_size(*self.image.shape[:2])
        self.latents = model.encode(model.to_tensor(self.image, (scale * height, scale * width)))
        self.draws = draws
        self._invert = partial(invert, model, self.latents, start=start, steps=steps, method=method, prompt=prompt)
        drawn = partial(self._invert, seed=seed, residuals=False)
        self.trajectory: Trajectory = drawn()
        # The trajectory and those of the same image under further draws of noise, as one batch.
        paths = [self.trajectory.latents, *(drawn(draw=draw).latents for draw in range(1, draws))]
        self._drawn = replace(self.trajectory, latents=torch.cat(paths, dim=1))
        self._features: dict[tuple[Site, int], Tensor] = {}
        self._coarse: dict[tuple[tuple[Site, ...], int, tuple[int, ...]], np.ndarray] = {}

    def afresh(self) -> ProbedImage:
        """The same inverted image with nothing kept, so that the time of an answer is the time of all its work."""
        other = copy(self)
        other._features, other._coarse = {}, {}
        return other

    def with_draws(self, draws: int) -> ProbedImage:
        """The same inverted image, whose features are means over the first of its draws of noise alone; nothing kept.

        As if it had been probed with so many.

        Raises:
            InputError: none, or more than it was probed with.
        """
        if not is_integer(draws, 1, self.draws):
            raise InputError(f"{draws!r} draws of an image probed with {self.draws}; accepted: 1 to {self.draws}")
        other = self.afresh()
        other.draws = draws
        other._drawn = replace(self.trajectory, latents=self._drawn.latents[:, :draws])
        return other

    @cached_property
    def reconstruction(self) -> Tensor:
        """The image as the autoencoder paints it: (3, height, width) float32 on the CPU, about [-1, 1]."""
        return self.model.decode(self.latents)[0].cpu()

    def grid(self, sites: Site | Sequence[Site]) -> tuple[int, int]:
        """Height and width of a site's grid for this image, of several the finest."""
        return finest_grid(_as_tuple(sites), *self.latents.shape[-2:])

    def holds(self, site: Site, timestep: int) -> bool:
        """Whether the features of a site at a timestep have been read already."""
        return (site, timestep) in self._features

    def capture(self, sites: Iterable[Site], timestep: int) -> None:
        """Read many sites at one timestep in one pass, and keep what they hold."""
        missing = [site for site in sites if (site, timestep) not in self._features]
        if missing:
            captured = capture(self.model, self._drawn, missing, [timestep])
            self._features |= {key: features.mean(0) for key, features in captured.items()}

    def features(self, sites: Site | Sequence[Site], timesteps: int | Sequence[int] = 1) -> Tensor:
        """Features (cell, channel) float32 at a site and timestep, their mean over the draws of noise.

        Of several sites or timesteps, those of each are brought to one scale and stand side by side; see `combine`.
        """
        sites, timesteps = _as_tuple(sites), _as_tuple(timesteps)
        for timestep in timesteps:
            self.capture(sites, timestep)
        held = [(self._features[site, timestep], self.grid(site)) for site in sites for timestep in timesteps]
        return held[0][0] if len(held) == 1 else combine(*held)

    def attention(self, site: Site, timestep: int = 1, *, per_head: bool = False) -> Tensor:
        """Attention probabilities (cell, cell) or (cell, token) of a layer, their mean over the draws of noise.

        Or (head, cell, …) `per_head`; see `attention`.
        """
        return attention(self.model, self._drawn, site, timestep, per_head=per_head)

    def attentions(self, sites: Sequence[Site], timestep: int = 1) -> Iterator[tuple[Site, Tensor]]:
        """Every site and the probabilities of its layer, as by `attention`, in as few passes as memory allows."""
        return attentions(self.model, self._drawn, sites, timestep)

    def low_resolution_masks(
        self, sites: Site | Sequence[Site], clusters: int, timesteps: int | Sequence[int] = 1
    ) -> np.ndarray:
        """Labels (grid_height, grid_width) by k-means over the features; see `cluster`."""
        key = _as_tuple(sites), clusters, _as_tuple(timesteps)
        if key not in self._coarse:
            self._coarse[key] = cluster(self.features(sites, timesteps), clusters, self.grid(sites), seed=self.seed)
        return self._coarse[key]

    def masks(self, low_resolution_masks: np.ndarray, site: Site) -> Tensor:
        """Masks (mask, grid_height, grid_width) on the grid of another layer, by nearest neighbour."""
        masks = one_hot_masks(low_resolution_masks)
        if masks.shape[1:] == self.grid(site):
            return masks
        return nn.functional.interpolate(masks[None], size=self.grid(site), mode="nearest-exact")[0]

    def difference_maps(
        self,
        low_resolution_masks: np.ndarray,
        modulation: Modulation,
        *,
        smoothing: float = 0.0,
        watch: Callable[[Tensor, Tensor], None] | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Difference maps (mask, height, width) at the model's working size, one for every label.

        `watch` is given the images that they are made of; see `emerdiff_probe.reading.correspondence.difference_maps`.
        """
        masks = self.masks(low_resolution_masks, modulation.site)
        return difference_maps(
            self.model, self.trajectory, masks, modulation, smoothing=smoothing, watch=watch, progress=progress
        )

    def replay_error(self) -> float:
        """Largest difference between the encoded latent and the end of the replayed trajectory.

        With residuals found beforehand: those that are left to the replay lead back whatever it does.
        """
        residuals = self._invert(seed=self.seed).residuals
        replayed = denoise(self.model, replace(self.trajectory, residuals=residuals), [[]])
        return float(torch.abs(replayed - self.latents).max())


def _as_tuple(values: Value | Sequence[Value]) -> tuple[Value, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,)


def require_draws(draws: int, method: InversionMethod) -> None:
    """Refuse a number of draws that the inversion cannot give.

    Raises:
        InputError: below 1, or above 1 for DDIM inversion, which draws no noise.
    """
    if not is_integer(draws, 1):
        raise InputError(f"{draws!r} draws of noise; accepted: an integer, 1 or more")
    if draws > 1 and method == "ddim":
        raise InputError(f"{draws} draws of noise, but DDIM inversion draws none; accepted: 1, or method 'ddpm'")
