"""Rows in batches that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

BYTES_AT_ONCE = {"cpu": 2**30, "mps": 4 * 2**30, "cuda": 2 * 2**30}
"""Activations that a batch may hold; more rows are not faster. On CUDA, where nothing has been timed yet, so many that
memory stays near a tenth of what stored attention maps take: 16 rows of Stable Diffusion in half precision."""

Rows = TypeVar("Rows", Tensor, Sequence)


def rows_that_fit(device: torch.device, row_bytes: int, most: int) -> int:
    """How many rows a batch should have, 1 to `most`, if every row takes about `row_bytes` on the device."""
    budget = BYTES_AT_ONCE[device.type]
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = min(budget, (free + unused) * 3 // 4)
    return max(1, min(most, budget // row_bytes))


def run_in_batches(run: Callable[[Rows], Tensor], rows: Rows, size: int) -> Tensor:
    """What `run` gives for slices of at most `size` rows, one after the other; halved when memory runs out.

    Slices are as even as they can be: no more of them for it, and the largest is smaller.

    Raises:
        torch.OutOfMemoryError: one row alone does not fit.
    """
    results: list[Tensor] = []
    begin = 0
    while begin < len(rows):
        left = len(rows) - begin
        size = math.ceil(left / math.ceil(left / size))
        try:
            results.append(run(rows[begin : begin + size]))
            begin += size
            continue
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size = math.ceil(size / 2)  # out of the handler, where the traceback would still hold what did not fit
        torch.cuda.empty_cache()
    return torch.cat(results)
