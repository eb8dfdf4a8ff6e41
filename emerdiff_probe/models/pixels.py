"""What a model paints, as a picture."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (..., 3, height, width) about [-1, 1], as a model paints them, as (..., height, width, 3) uint8."""
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "... c height width -> ... height width c").cpu().numpy()
