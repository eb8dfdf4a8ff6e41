"""Which pixels answer when low-resolution cells are modulated: difference maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from einops import einsum, rearrange
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import is_integer, is_one_of, is_positive, require
from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import InjectAttention, Intervention, Modulate, Placement
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.sites import Site
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.trajectory import Trajectory

PRIOR_CELLS = 1.0
"""Standard deviation, in cells, of the Gaussian that blurs a mask to where its response is expected."""
UNEXPLAINED = 0.1
"""Variance of a response that the masks do not explain, where that of a pixel inside one mask is 1."""
MASKS_AT_ONCE = 8
"""Masks whose images are held at once: what is kept of them is one map a mask."""


@dataclass(frozen=True, eq=False)
class Modulation:
    """How masks are modulated and their response read; one value for all masks of a run.

    Attributes:
        site: any site of the attention layer to modulate.
        strength: the paper's lambda, above 0.
        modulate_at: the paper's t_m.
        placement: "after" the output projection (the paper's) or "before" it.
        injection: attention of the unchanged image to inject; none when None.
        direction: (channel,) vector; all ones, the paper's, when None.
        readout: exact, or which approximations.
        seed: of the readout's sign patterns.

    Raises:
        InputError: any of these is ill-formed.
    """

    site: Site
    strength: float = 10.0
    modulate_at: int = 281
    placement: Placement = "after"
    injection: InjectAttention | None = field(default_factory=InjectAttention)
    direction: Tensor | None = None
    readout: Readout = field(default_factory=Readout)
    seed: int = 0

    def __post_init__(self) -> None:
        injected = self.injection is None or isinstance(self.injection, InjectAttention)
        directed = self.direction is None or isinstance(self.direction, (Tensor, np.ndarray))
        require(
            self,
            [
                ("site", isinstance(self.site, Site), "a site, such as `find_site` gives"),
                ("strength", is_positive(self.strength), "a finite number above 0"),
                ("modulate_at", is_integer(self.modulate_at, 0), "an integer, 0 or more"),
                ("placement", is_one_of(self.placement, ("after", "before")), "'after', 'before'"),
                ("injection", injected, "InjectAttention(…), or None"),
                ("direction", directed, "a tensor (channel,), or None"),
                ("readout", isinstance(self.readout, Readout), "Readout(…)"),
                ("seed", is_integer(self.seed, 0), "an integer, 0 or more"),
            ],
        )

    def variant(self, mask: Tensor, sign: float) -> list[Intervention]:
        """Interventions that modulate one mask with one sign."""
        modulate = Modulate(self.site, mask, sign * self.strength, (self.modulate_at,), self.placement, self.direction)
        return [modulate] if self.injection is None else [modulate, self.injection]


def modulated_images(
    model: ProbeModel,
    trajectory: Trajectory,
    masks: Tensor,
    modulation: Modulation,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Modulated denoising (EmerDiff, section 3.2): the image after -strength and +strength on every mask.

    Args:
        model: to run.
        trajectory: of one image, from `modulate_at` or earlier.
        masks: (mask, grid_height, grid_width), on the grid of the modulated layer.
        modulation: how; read exactly, whatever its readout.
        batch_size: variants a batch; chosen by the device when None.
        progress: show a progress bar.

    Returns:
        I- and I+, each (mask, 3, height, width) float32 on the CPU, about [-1, 1] and not clipped.

    Raises:
        TimestepError: `modulate_at` is not on the trajectory.
        InterventionError: masks of another grid.
    """
    _require_masks(masks)
    exact = replace(modulation, readout=Readout())
    minus, plus = _both_sides(model, trajectory, masks, exact, batch_size, progress)
    return model.decode(minus).cpu(), model.decode(plus).cpu()


def _both_sides(
    model: ProbeModel,
    trajectory: Trajectory,
    masks: Tensor,
    modulation: Modulation,
    batch_size: int | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Latents (mask, channel, latent_height, latent_width) of I- and I+; one-sided, the first are of one row."""
    readout = modulation.readout
    signs = (1.0,) if readout.one_sided else (-1.0, 1.0)
    variants = [modulation.variant(mask, sign) for mask in masks for sign in signs]
    rest = trajectory.since(modulation.modulate_at)
    steps = readout.denoising_steps
    if readout.skip_after is not None:
        rest = rest.skipping(readout.skip_after)
        steps = steps or len(rest.timesteps)
    latents = denoise(
        model,
        rest,
        [[], *variants] if readout.one_sided else variants,
        steps=steps and min(steps, len(rest.timesteps)),
        shared_levels=readout.shared_levels,
        batch_size=batch_size,
        progress=progress,
    )
    return (latents[:1], latents[1:]) if readout.one_sided else (latents[0::2], latents[1::2])


def difference_map(minus: Tensor, plus: Tensor, smoothing: float = 0.0) -> Tensor:
    """How strongly every pixel answers: the RGB distance of I- and I+, smoothed by a Gaussian.

    Args:
        minus, plus: (mask, 3, height, width); latents in the place of pixels are compared alike.
        smoothing: standard deviation of the Gaussian in pixels; 0 is none.

    Returns:
        (mask, height, width) float32, 0 or more, the norm over three channels that span 2 each: black to white is 3.46.
    """
    return magnitude(minus - plus, smoothing)


def magnitude(response: Tensor, smoothing: float = 0.0) -> Tensor:
    """Norm of a response (mask, channel, height, width) over its channels, smoothed: (mask, height, width)."""
    return smoothed(response.square().sum(1).sqrt(), smoothing)  # vector_norm over planes takes 50 times as long


def smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Maps (mask, height, width) under a Gaussian of this standard deviation in pixels; 0 is none.

    SciPy's filter, mirrored at the border, as two matrix products: with what it makes of the unit matrices.
    """
    if deviation == 0:
        return maps
    down, across = (
        torch.from_numpy(gaussian_filter1d(np.eye(side), deviation, axis=0)).to(maps) for side in maps.shape[1:]
    )
    return down @ maps @ across.T


def assign(difference_maps: Tensor) -> Tensor:
    """Every pixel's mask, the one whose difference map is highest there: (mask, height, width) -> (height, width)."""
    return difference_maps.max(0).indices  # argmax takes four times as long


def difference_maps(
    model: ProbeModel,
    trajectory: Trajectory,
    masks: Tensor,
    modulation: Modulation,
    *,
    smoothing: float = 0.0,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Difference maps of masks, (mask, height, width) float32 on the CPU.

    Arguments as in `modulated_images` and `difference_map`; read as the modulation says. Where that compares decoded
    images of single masks (`Readout.sees_images`), `watch` is given I- and I+ of a few masks at a time, each
    (mask, 3, height, width).
    """
    readout = modulation.readout
    _require_masks(masks)
    codes = sign_codes(len(masks), readout.patterns(len(masks)), seed=modulation.seed)
    together = masks if codes is None else einsum(codes, masks, "pattern mask, mask h w -> pattern h w")
    if codes is not None:  # one way only, what masks answer together is too far from the sum of their answers
        modulation = replace(modulation, readout=replace(readout, one_sided=False))
    minus, plus = _both_sides(model, trajectory, together, modulation, batch_size, progress)
    seen = model.decode if readout.compare == "pixels" else nn.Identity()
    if codes is not None:
        maps = magnitude(untangle(seen(plus) - seen(minus), codes, masks))
    elif readout.one_sided:
        unchanged = seen(minus)
        maps = torch.cat([difference_map(unchanged, seen(some)) for some in plus.split(MASKS_AT_ONCE)])
    else:
        found = []
        for before, after in zip(minus.split(MASKS_AT_ONCE), plus.split(MASKS_AT_ONCE), strict=True):
            sides = seen(before), seen(after)
            found.append(difference_map(*sides))
            if watch is not None and readout.sees_images:
                watch(*sides)
        maps = torch.cat(found)
    if readout.compare == "latents":
        maps = enlarge(maps, [side * model.factor for side in maps.shape[1:]])
    return smoothed(maps, smoothing).cpu()


def sign_codes(masks: int, patterns: int | None, *, seed: int = 0) -> Tensor | None:
    """Random signs (pattern, mask), no two masks alike or opposite; None where every mask had better run alone.

    There are `patterns` of them, or more where so few cannot tell the masks apart.
    """
    if patterns is None:
        return None
    patterns = max(patterns, 1 + math.ceil(math.log2(masks)))
    if patterns >= masks:
        return None
    draw = np.random.default_rng(seed)
    bits = math.ceil(math.log2(masks))
    distinct = 1 - 2 * (draw.permutation(2**bits)[:masks] >> np.arange(bits)[:, None] & 1)
    more = draw.choice([-1, 1], (patterns - bits - 1, masks))
    codes = np.concatenate([np.ones((1, masks)), distinct, more]) * draw.choice([-1, 1], masks)
    return torch.from_numpy(codes).float()


def untangle(responses: Tensor, codes: Tensor, masks: Tensor) -> Tensor:
    """Every mask's own response, from responses to sums of all masks with known signs.

    Responses nearly add up, so that a pixel answers to pattern p by sum_i codes[p, i] g_i. Fewer patterns than masks
    leave g open; it is taken as its mean under a Gaussian prior by which g_i has the variance of mask i, blurred, at
    that pixel: a mask is heard near its own cells.

    Args:
        responses: (pattern, channel, height, width).
        codes: (pattern, mask) of -1 and 1.
        masks: (mask, grid_height, grid_width), 0 or more.

    Returns:
        (mask, channel, height, width).
    """
    height, width = responses.shape[-2:]
    prior = smoothed(enlarge(masks.to(responses), (height, width)), PRIOR_CELLS * height / masks.shape[1])
    codes = codes.to(responses)
    expected = einsum(prior, codes, "mask h w, pattern mask -> h w mask pattern")
    covariance = expected.mT @ codes.T + UNEXPLAINED * torch.eye(len(codes)).to(codes)
    solved = torch.linalg.solve(covariance, rearrange(responses, "pattern channel h w -> h w pattern channel"))
    return rearrange(expected @ solved, "h w mask channel -> mask channel h w")


def _require_masks(masks: Tensor) -> None:
    if masks.ndim != 3 or len(masks) == 0:
        raise InputError(f"masks of shape {tuple(masks.shape)}; accepted: (mask, grid_height, grid_width)")
