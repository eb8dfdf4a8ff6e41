"""From an image to a `Trajectory` that ends at exactly its latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.batching import run_in_batches
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.models.schedules import Schedule
from emerdiff_probe.trajectories.denoise import conditionings, denoiser_rows_that_fit, predict
from emerdiff_probe.trajectories.noise import noise
from emerdiff_probe.trajectories.trajectory import Trajectory, require_on_grid

InversionMethod = Literal["ddpm", "ddim"]


@torch.no_grad()
def invert(
    model: ProbeModel,
    latents: Tensor,
    *,
    start: int = 281,
    steps: int = 50,
    method: InversionMethod = "ddpm",
    prompt: str = "",
    seed: int = 0,
    draw: int = 0,
    batch_size: int | None = None,
    residuals: bool = True,
) -> Trajectory:
    """Invert encoded images: find noise under which the reverse process gives them back.

    "ddpm" is edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023): every x_t is drawn from q(x_t | x_0)
    with independent noise, then the residuals follow from mean(x_t). As the x_t are independent, only the timesteps
    up to `start` are drawn and their denoiser passes run as one batch. "ddim" integrates the deterministic process
    upwards (Song et al. 2021) and keeps what the replay would miss as residuals, so that it too is exact.

    Args:
        model: to invert with.
        latents: (batch, channel, latent_height, latent_width), from `model.encode`.
        start: the highest timestep wanted; on the grid.
        steps: of the whole grid.
        method: "ddpm" (the paper's) or "ddim".
        prompt: the text for all images; the paper's is empty.
        seed: of the noise, which depends on it, the timestep and the size of the latents only; every image of a batch
            gets the same, as if it were alone.
        draw: which of the independent draws of noise under this seed; see `noise`.
        batch_size: denoiser rows a pass; chosen by the device when None.
        residuals: find them now, so that they can be looked at or replayed under another prompt; else they are left
            to the replay, which is the same at no pass of its own.

    Returns:
        A trajectory from `start` to x_0 that replays to `latents` within 1e-4 (float32).

    Raises:
        TimestepError: `start` is not on the grid.
        InputError: an unknown method, or a seed below 0.
        ModelError: the denoiser overflowed.
    """
    if method not in {"ddpm", "ddim"}:
        raise InputError(f"inversion {method!r}; accepted: ddpm, ddim")
    schedule = model.schedule(steps)
    require_on_grid(start, schedule.timesteps)
    timesteps = schedule.timesteps[schedule.timesteps.index(start) :]
    eta = schedule.eta if method == "ddpm" else 0.0
    if method == "ddpm":
        path = _draw_path(schedule, latents.float(), timesteps, seed, draw)
    else:
        path = _integrate_path(model, schedule, latents.float(), timesteps, prompt)
    if not residuals:
        return Trajectory(timesteps, path, None, steps, eta, prompt)
    predictions = _predict_all(model, schedule, path[:-1], timesteps, prompt, batch_size)
    means = torch.stack(
        [
            schedule.step(prediction, timestep, x, eta=eta)
            for prediction, timestep, x in zip(predictions, timesteps, path[:-1], strict=True)
        ]
    )
    return Trajectory(timesteps, path, path[1:] - means, steps, eta, prompt)


def _draw_path(schedule: Schedule, latents: Tensor, timesteps: Sequence[int], seed: int, draw: int) -> Tensor:
    """x_t ~ q(x_t | x_0), independent for every t; (step + 1, batch, …), x_0 itself last."""
    shape = latents.shape[1:]
    drawn = [
        schedule.add_noise(latents, noise(seed, timestep, shape, draw=draw).to(latents).expand_as(latents), timestep)
        for timestep in timesteps
    ]
    return torch.stack([*drawn, latents])


def _integrate_path(
    model: ProbeModel, schedule: Schedule, latents: Tensor, timesteps: Sequence[int], prompt: str
) -> Tensor:
    """DDIM inversion: x_0 carried upwards with the noise that the denoiser predicts; shaped as `_draw_path`'s."""
    conditioning, _ = conditionings(model, latents, prompt, 1.0)
    path = [latents]
    for timestep in reversed(timesteps):
        prediction = predict(model, path[-1], schedule.exact(timestep), conditioning)
        path.append(schedule.step_up(prediction, timestep, path[-1]))
    return model.require_finite(torch.stack(path[::-1]))


def _predict_all(
    model: ProbeModel,
    schedule: Schedule,
    path: Tensor,
    timesteps: Sequence[int],
    prompt: str,
    batch_size: int | None,
) -> Tensor:
    """The denoiser's output at every (timestep, image) of a path, in batches; shaped as the path."""
    steps, batch = path.shape[:2]
    conditioning, _ = conditionings(model, path, prompt, 1.0)
    rows = path.flatten(0, 1)
    asked = schedule.exact(torch.tensor(timesteps, device=model.device).repeat_interleave(batch))
    outputs = run_in_batches(
        lambda some: predict(model, rows[some], asked[some], conditioning),
        torch.arange(steps * batch),
        batch_size or denoiser_rows_that_fit(model, rows),
    )
    return model.require_finite(outputs).unflatten(0, (steps, batch))
