"""The control: the same model with a denoiser that was never trained, which must not do as well."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn

from emerdiff_probe.models.probe_model import ProbeModel

TWINS = 2
"""Untrained denoisers that a setting has to beat, each."""
PICTURES = 6
"""Pictures that they are compared on, where there are so many."""


def forget(model: ProbeModel, seed: int) -> ProbeModel:
    """The same model with a denoiser of random weights, as its architecture begins training; the given one stays.

    Latents, noise, prompt and schedule are the model's own. Takes as much memory as the denoiser once more.
    """
    twin = copy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model.denoiser).from_config(model.denoiser.config)
    fresh = nn.Module.to(fresh, model.device, model.dtype)  # diffusers' own warns of every cast
    twin.denoiser = fresh.eval().requires_grad_(False)
    return twin
