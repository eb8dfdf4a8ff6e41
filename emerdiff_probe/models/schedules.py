"""A model's noise schedule on a grid of timesteps: forward noise, the reverse step, and the x_0 that is predicted."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from fractions import Fraction
from functools import cached_property
from typing import overload

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from emerdiff_probe.errors import InputError


class Schedule(ABC):
    """Everything that a trajectory needs to know about noise. Latents are float32 throughout.

    Attributes:
        steps: of the grid.
        timesteps: the grid, falling; integers, by which everything names a timestep.
        eta: of the reverse step that the model's noise process has: 1 for DDPM, whose steps draw noise; 0 for flow
            matching, whose steps draw none.
    """

    steps: int
    timesteps: tuple[int, ...]
    eta: float

    @overload
    def exact(self, timestep: int) -> int | float: ...
    @overload
    def exact(self, timestep: Tensor) -> Tensor: ...
    def exact(self, timestep: int | Tensor) -> int | float | Tensor:
        """What the denoiser is told at a timestep, or at each of many (batch,): the grid's value before rounding."""
        return timestep

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The noisy latents x_t that follow from clean ones and noise, both (batch, channel, height, width)."""

    @abstractmethod
    def step(
        self,
        prediction: Tensor,
        timestep: int,
        latents: Tensor,
        *,
        eta: float,
        noise: Tensor | None = None,
        to: int | None = None,
    ) -> Tensor:
        """The reverse step from x_t: its mean, or with noise one draw of it.

        Args:
            prediction: of the denoiser at x_t.
            timestep: of x_t; on the grid.
            latents: x_t.
            eta: how much of a step is drawn, 0 to 1.
            noise: as the latents.
            to: the timestep that is stepped to; the next one on the grid when None, x_0 after the last.

        Raises:
            InputError: an eta that the noise process does not have.
        """

    @abstractmethod
    def step_up(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """The deterministic step upwards that ends at a timestep, from the next lower one on the grid."""

    @abstractmethod
    def predict_original(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """The x_0 that the denoiser's prediction at x_t stands for."""


class DiffusionSchedule(Schedule):
    """Variance-preserving diffusion (DDPM) by diffusers' own `DDIMScheduler`, whatever the denoiser predicts.

    Raises:
        InputError: `steps` that the training timesteps cannot be divided into.
    """

    eta = 1.0

    def __init__(self, scheduler: DDIMScheduler, steps: int) -> None:
        total = scheduler.config.num_train_timesteps
        require_steps(steps, total - 1)
        self._scheduler = copy.deepcopy(scheduler)
        self._scheduler.set_timesteps(steps)
        self.steps = steps
        self.timesteps = tuple(int(timestep) for timestep in self._scheduler.timesteps)

    @cached_property
    def _inverse(self) -> DDIMInverseScheduler:
        inverse = DDIMInverseScheduler.from_config(self._scheduler.config)
        inverse.set_timesteps(self.steps)
        return inverse

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """As in `Schedule`."""
        return self._scheduler.add_noise(latents, noise, torch.tensor([timestep]))

    def step(
        self,
        prediction: Tensor,
        timestep: int,
        latents: Tensor,
        *,
        eta: float,
        noise: Tensor | None = None,
        to: int | None = None,
    ) -> Tensor:
        """As in `Schedule`, by the scheduler's own formula."""
        scheduler = self._scheduler
        if to is not None:  # a scheduler goes back by its number of training timesteps // num_inference_steps
            scheduler = copy.copy(scheduler)
            scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timestep - to)
        drawn = torch.zeros_like(latents) if noise is None else noise
        return scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=drawn).prev_sample

    def step_up(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """As in `Schedule`: DDIM inversion (Song et al. 2021)."""
        return self._inverse.step(prediction, timestep, latents).prev_sample

    def predict_original(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """As in `Schedule`."""
        return self._scheduler.step(prediction, timestep, latents).pred_original_sample


def require_steps(steps: int, most: int) -> None:
    """Refuse a number of denoising steps that is no number from 1 to `most`.

    Raises:
        InputError: that.
    """
    if not 1 <= steps <= most:
        raise InputError(f"{steps} denoising steps; accepted: 1 to {most}")
