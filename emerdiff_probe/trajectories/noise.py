"""Noise as a function of seed, timestep and size, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emerdiff_probe.checks import LARGEST, is_integer
from emerdiff_probe.errors import InputError


def noise(seed: int, timestep: int, shape: Sequence[int], *, draw: int = 0) -> Tensor:
    """Standard normal noise at one timestep, independent of that at any other.

    However many timesteps are asked for, in whatever order and from whatever start: a path that is drawn from 981 down
    and one from 281 down hold the same noise where they meet (as k-diffusion's `BrownianTreeNoiseSampler`).

    Args:
        seed: 0 to 2^63 - 1.
        timestep: of the model's schedule; 0 stands for the image itself.
        shape: (channel, latent_height, latent_width).
        draw: which of many independent draws under one seed, 0 or more.

    Returns:
        Of this shape, float32 on the CPU: the same on every device.

    Raises:
        InputError: a seed, timestep or draw that is no integer from 0 to 2^63 - 1.
    """
    for name, value in (("seed", seed), ("timestep", timestep), ("draw", draw)):
        if not is_integer(value, 0):
            raise InputError(f"noise: {name} {value!r}; accepted: an integer from 0 to {LARGEST}")
    # as a spawn key, so that no other seed, timestep and draw give the same words
    words = np.random.SeedSequence(int(seed), spawn_key=(int(timestep), int(draw))).generate_state(1, np.uint64)
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(words[0])))
