"""Which pixels answer when low-resolution cells are modulated: difference maps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from emerdiff_probe.diffusion import Trajectory, denoise
from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import InjectAttention, Intervention, Modulate, Placement
from emerdiff_probe.layers import Site
from emerdiff_probe.models import ProbeModel


@dataclass(frozen=True, eq=False)
class Modulation:
    """How masks are modulated; one value for all masks of a run.

    Attributes:
        site: any site of the attention layer to modulate.
        strength: the paper's lambda, above 0.
        modulate_at: the paper's t_m.
        placement: "after" the output projection (the paper's) or "before" it.
        injection: attention of the unchanged image to inject; none when None.
        direction: (channel,) vector; all ones, the paper's, when None.
    """

    site: Site
    strength: float = 10.0
    modulate_at: int = 281
    placement: Placement = "after"
    injection: InjectAttention | None = field(default_factory=InjectAttention)
    direction: Tensor | None = None

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
        modulation: how.
        batch_size: variants a batch; chosen by the device when None.
        progress: show a progress bar.

    Returns:
        I- and I+, each (mask, 3, height, width) float32 on the CPU, about [-1, 1] and not clipped.

    Raises:
        TimestepError: `modulate_at` is not on the trajectory.
        InterventionError: masks of another grid.
    """
    if masks.ndim != 3 or len(masks) == 0:
        raise InputError(f"masks of shape {tuple(masks.shape)}; accepted: (mask, grid_height, grid_width)")
    variants = [modulation.variant(mask, sign) for mask in masks for sign in (-1.0, 1.0)]
    latents = denoise(
        model,
        trajectory.since(modulation.modulate_at),
        variants,
        batch_size=batch_size,
        progress=progress,
    )
    images = torch.cat([model.decode(part).cpu() for part in latents.split(8)])
    return images[0::2], images[1::2]


def difference_map(minus: Tensor, plus: Tensor, smoothing: float = 0.0) -> Tensor:
    """How strongly every pixel answers: the RGB distance of I- and I+, smoothed by a Gaussian.

    Args:
        minus, plus: (mask, 3, height, width).
        smoothing: standard deviation of the Gaussian in pixels; 0 is none.

    Returns:
        (mask, height, width) float32, 0 or more, in units of pixel values where black to white is 2.
    """
    distance = torch.linalg.vector_norm(minus - plus, dim=1)
    if smoothing == 0:
        return distance
    return torch.from_numpy(gaussian_filter(distance.numpy(), smoothing, axes=(1, 2)))


def assign(difference_maps: Tensor) -> Tensor:
    """Every pixel's mask, the one whose difference map is highest there: (mask, height, width) -> (height, width)."""
    return difference_maps.argmax(0)


def difference_maps(
    model: ProbeModel,
    trajectory: Trajectory,
    masks: Tensor,
    modulation: Modulation,
    *,
    smoothing: float = 0.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Difference maps of masks, (mask, height, width); arguments as in `modulated_images` and `difference_map`."""
    minus, plus = modulated_images(model, trajectory, masks, modulation, batch_size=batch_size, progress=progress)
    return difference_map(minus, plus, smoothing)
