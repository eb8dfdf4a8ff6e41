"""A model's noise schedule on a grid of timesteps: forward noise, the reverse step, and the x_0 that is predicted."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from fractions import Fraction
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from emerdiff_probe.errors import InputError, ModelError


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
    def noise_to_signal(self, timestep: int) -> float:
        """Standard deviation of the noise in x_t where that of x_0 is 1: what makes schedules comparable."""

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

    def noise_to_signal(self, timestep: int) -> float:
        """As in `Schedule`."""
        alpha = float(self._scheduler.alphas_cumprod[timestep])
        return math.sqrt((1 - alpha) / alpha) if alpha else math.inf

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


class FlowSchedule(Schedule):
    """Flow matching: x_t = (1 - s) x_0 + s noise, the denoiser predicts the velocity noise - x_0, a step is Euler's.

    A timestep is what the denoiser is told, 1000 s, rounded; `exact` gives it unrounded. The reverse step draws nothing
    (eta is 0): its mean is Euler's, as in the models' own samplers. Edit-friendly inversion (Huberman-Spiegelglas et
    al. 2023) asks no more of a noise process than x_t that are drawn independently and some function of x_t as the
    mean: residuals make up the difference, so that the replay is exact under any mean. Of those that keep the
    marginals, the stochastic analogue of DDPM's step, (1 - s') x_0 + s' fresh noise, would forget x_t at every step,
    and with it what a modulation did to it.

    Args:
        sigmas: s of every step, falling, above 0 and at most 1; shifted as the model was trained.
        told: what the model's own sampler tells the denoiser at each, about 1000 s.

    Raises:
        InputError: steps so many that two of them round to one timestep.
    """

    eta = 0.0

    def __init__(self, sigmas: Tensor, told: Tensor) -> None:
        values, times = sigmas.double().tolist(), told.double().tolist()
        self.steps = len(values)
        self.timesteps = tuple(round(time) for time in times)
        if len(set(self.timesteps)) < self.steps or min(self.timesteps) < 1:
            raise InputError(f"{self.steps} denoising steps round to one timestep, or to 0; accepted: fewer")
        self._sigmas = dict(zip(self.timesteps, values, strict=True))
        self._told = dict(zip(self.timesteps, times, strict=True))
        self._next = dict(zip(self.timesteps, (*self.timesteps[1:], None), strict=True))

    @overload
    def exact(self, timestep: int) -> int | float: ...
    @overload
    def exact(self, timestep: Tensor) -> Tensor: ...
    def exact(self, timestep: int | Tensor) -> int | float | Tensor:
        """As in `Schedule`: about 1000 s."""
        if isinstance(timestep, Tensor):
            told = [self._told[int(one)] for one in timestep.tolist()]
            return torch.tensor(told, dtype=torch.float32, device=timestep.device)
        return self._told[timestep]

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """As in `Schedule`."""
        sigma = self._sigmas[timestep]
        return (1 - sigma) * latents + sigma * noise

    def noise_to_signal(self, timestep: int) -> float:
        """As in `Schedule`."""
        sigma = self._sigmas[timestep]
        return sigma / (1 - sigma) if sigma < 1 else math.inf

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
        """As in `Schedule`: Euler's step."""
        if eta or noise is not None:
            raise InputError(f"eta {eta}: a step of flow matching draws no noise; accepted: 0")
        return latents + (self._below(timestep, to) - self._sigmas[timestep]) * prediction

    def step_up(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """As in `Schedule`: Euler's step the other way."""
        return latents + (self._sigmas[timestep] - self._below(timestep, None)) * prediction

    def predict_original(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """As in `Schedule`: x_t - s velocity."""
        return latents - self._sigmas[timestep] * prediction

    def _below(self, timestep: int, to: int | None) -> float:
        following = self._next[timestep] if to is None else to
        return 0.0 if following is None else self._sigmas[following]


def make_flow(scheduler: Any, steps: int, *, even: bool, tokens: int) -> FlowSchedule:
    """The schedule of so many steps by a model's own flow-matching scheduler, as its pipeline asks for them.

    Args:
        scheduler: a `FlowMatchEulerDiscreteScheduler`, or a solver with `use_flow_sigmas`.
        steps: 1 to 1000.
        even: the pipeline asks for 1, 1 - 1 / steps, …, 1 / steps before the shift.
        tokens: image tokens of the native square, by which a dynamic shift is found; the same for images of every
            size, so that all have one grid.
    """
    require_steps(steps, 1000)
    made = copy.deepcopy(scheduler)
    options: dict[str, Any] = {}
    config = made.config
    if even:
        options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
        options["mu"] = tokens * slope + config.get("base_shift", 0.5) - slope * low
    made.set_timesteps(**({"num_inference_steps": steps} | options))
    return FlowSchedule(made.sigmas[:steps], made.timesteps)


def require_flow(scheduler: Any, name: str) -> None:
    """Refuse a scheduler that holds no plain flow matching.

    Raises:
        ModelError: that.
    """
    config = scheduler.config
    euler = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    solver = config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    odd = [key for key in ("invert_sigmas", "stochastic_sampling") if config.get(key)]
    if not (euler or solver) or odd or config.num_train_timesteps != 1000:
        what = f"{type(scheduler).__name__} with {', '.join(odd)}" if odd else type(scheduler).__name__
        raise ModelError(
            f"{name}: the noise schedule is {what}; accepted: FlowMatchEulerDiscreteScheduler over 1000 timesteps, or "
            "a solver with use_flow_sigmas and flow_prediction"
        )
