"""The noise schedule that a U-Net was trained with, as a `DDIMScheduler`, or a refusal by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import DDIMScheduler

from emerdiff_probe.errors import ModelError

SERVED = frozenset(
    {
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Samplers of one forward process, x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise at whole timesteps. A sampler that
is not here has another process (flow matching, EDM, cosine in unCLIP) or a model distilled for it (LCM, TCD)."""

PREDICTIONS = ("epsilon", "v_prediction", "sample")
DDIM_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def make_ddim(scheduler: Any, name: str) -> DDIMScheduler:
    """A scheduler with the model's own noise schedule and prediction, on the paper's grid.

    Args:
        scheduler: the pipeline's own, of any class in `SERVED`.
        name: of the model, for messages.

    Returns:
        "leading" spacing and offset 1 (981, …, 281, …, 21, 1 for 50 steps), nothing clipped, the last step to the first
        training timestep's noise.

    Raises:
        ModelError: another forward process, a prediction that is not known, or a schedule that is none.
    """
    kind = type(scheduler).__name__
    if kind not in SERVED:
        raise ModelError(
            f"{name}: the scheduler is {kind}; accepted: one of a U-Net's discrete noise schedule "
            f"({', '.join(sorted(SERVED))}); flow matching, EDM, consistency, LCM, TCD and VQ are other processes. Was "
            "the model trained with a discrete schedule, then give its pipeline a DDIMScheduler with those betas"
        )
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS or config.get("use_flow_sigmas"):
        told = "use_flow_sigmas" if prediction in PREDICTIONS else f"prediction_type {prediction!r}"
        raise ModelError(f"{name}: the scheduler has {told}; accepted: {', '.join(PREDICTIONS)}, without flow matching")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ModelError(f"{name}: the scheduler's timesteps are {config['timestep_type']}; accepted: discrete")
    own = torch.as_tensor(scheduler.alphas_cumprod).detach().cpu().float()
    _require_schedule(own, config.get("num_train_timesteps"), name)
    settings: dict[str, Any] = {
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "clip_sample": False,
        "thresholding": False,
        "set_alpha_to_one": False,
    }
    if config.get("beta_schedule") not in DDIM_BETAS or config.get("trained_betas") is not None:
        # DDIM does not know "sigmoid", "laplace" and "exp"; their betas as they are it does.
        settings |= {"trained_betas": scheduler.betas.tolist(), "beta_schedule": "linear"}
        settings |= {"rescale_betas_zero_snr": False}  # done already in those
    # The sampler's other options change nothing here, and would make one model's fingerprint depend on its sampler.
    known = inspect.signature(DDIMScheduler.__init__).parameters
    made = DDIMScheduler(**{key: value for key, value in config.items() if key in known} | settings)
    if made.alphas_cumprod.shape != own.shape or not torch.allclose(made.alphas_cumprod, own, rtol=1e-4, atol=1e-6):
        raise ModelError(f"{name}: the noise levels of its {kind} are not those of its configuration")
    return made


def _require_schedule(alphas: torch.Tensor, timesteps: Any, name: str) -> None:
    if alphas.ndim != 1 or len(alphas) < 2 or len(alphas) != timesteps:
        raise ModelError(
            f"{name}: noise levels of shape {tuple(alphas.shape)} for {timesteps} training timesteps; accepted: one a "
            "timestep, 2 or more"
        )
    falls = bool((alphas.diff() < 0).all())
    if not torch.isfinite(alphas).all() or not falls or alphas[0] > 1 or alphas[-1] < 0:
        raise ModelError(
            f"{name}: the scheduler's betas are no noise schedule; accepted: betas above 0 and at most 1, so that the "
            "signal falls from timestep to timestep"
        )
