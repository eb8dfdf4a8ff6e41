"""The model's scheduler on a grid of timesteps, and the mean of its reverse step."""

from __future__ import annotations

import copy
from fractions import Fraction

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel


def make_scheduler(model: ProbeModel, steps: int) -> tuple[DDIMScheduler, tuple[int, ...]]:
    """The model's scheduler set to `steps` steps, and its falling grid of timesteps.

    Raises:
        InputError: `steps` that the training timesteps cannot be divided into.
    """
    total = model.scheduler.config.num_train_timesteps
    if not 1 <= steps < total:
        raise InputError(f"{steps} denoising steps; accepted: 1 to {total - 1}")
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.set_timesteps(steps)
    return scheduler, tuple(int(timestep) for timestep in scheduler.timesteps)


def reverse_mean(
    scheduler: DDIMScheduler, prediction: Tensor, timestep: int, latents: Tensor, eta: float, to: int | None = None
) -> Tensor:
    """Mean of the reverse step from one timestep to another, by the scheduler's own formula, float32.

    Without another it goes to the next one on the scheduler's grid.
    """
    if to is not None:  # a scheduler goes back by its number of training timesteps // num_inference_steps
        scheduler = copy.copy(scheduler)
        scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timestep - to)
    step = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=torch.zeros_like(latents))
    return step.prev_sample
