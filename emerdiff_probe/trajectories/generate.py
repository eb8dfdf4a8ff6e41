"""Images drawn from the model, as trajectories that can be probed like inverted ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.trajectories.denoise import conditionings, predict
from emerdiff_probe.trajectories.noise import noise
from emerdiff_probe.trajectories.trajectory import Trajectory


def generate(
    model: ProbeModel,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 50,
    eta: float | None = None,
    guidance: float = 5.0,
    size: tuple[int, int] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Trajectory:
    """Draw one image from the model and keep the trajectory, so that it can be probed like an inverted one.

    Args:
        model: to draw from.
        prompt: text; "" draws unconditionally.
        seed: of the starting noise and of what every step adds; see `noise`.
        steps: of the schedule's grid.
        eta: 1 for DDPM steps, 0 for DDIM and flow matching; what the model's own noise process has when None.
        guidance: classifier-free guidance scale; 1 is none.
        size: height and width in pixels; the model's native square when None.
        callback: called with every timestep and the latents after it.

    Returns:
        A trajectory over the whole grid, of one image; `model.decode(trajectory.final)` is the image.

    Raises:
        InputError: a size that is no whole multiple.
        ModelError: the denoiser overflowed.
    """
    height, width = size or (model.native_size, model.native_size)
    if height % model.multiple or width % model.multiple:
        raise InputError(f"size {height} x {width}; accepted: multiples of {model.multiple}")
    schedule = model.schedule(steps)
    timesteps = schedule.timesteps
    eta = schedule.eta if eta is None else eta
    shape = (model.latent_channels, height // model.factor, width // model.factor)
    # what x holds at each timestep, and at last the image
    drawn = [noise(seed, timestep, shape)[None].to(model.device) for timestep in (*timesteps, 0)]
    latents, residuals = [drawn[0]], []
    conditioning, free = conditionings(model, drawn[0], prompt, guidance)
    for timestep, added in zip(timesteps, drawn[1:], strict=True):
        prediction = predict(
            model, latents[-1], schedule.exact(timestep), conditioning, unconditional=free, guidance=guidance
        )
        mean = schedule.step(prediction, timestep, latents[-1], eta=eta)
        latents.append(schedule.step(prediction, timestep, latents[-1], eta=eta, noise=added if eta else None))
        residuals.append(latents[-1] - mean)
        if callback is not None:
            callback(timestep, latents[-1])
    model.require_finite(latents[-1])
    return Trajectory(timesteps, torch.stack(latents), torch.stack(residuals), steps, eta, prompt, float(guidance))
