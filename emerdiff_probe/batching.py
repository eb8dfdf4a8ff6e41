"""Rows in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

BYTES_AT_ONCE = {"cpu": 2**30, "mps": 4 * 2**30}
"""Activations that a batch may hold where the device does not tell what is free; more is not faster on a CPU."""

Rows = TypeVar("Rows", Tensor, Sequence)


def rows_that_fit(device: torch.device, row_bytes: int, most: int) -> int:
    """How many rows a batch should have, 1 to `most`, if every row takes about `row_bytes` on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = (free + unused) * 3 // 4
    else:
        budget = BYTES_AT_ONCE[device.type]
    return max(1, min(most, budget // row_bytes))


def run_in_batches(run: Callable[[Rows], Tensor], rows: Rows, size: int) -> Tensor:
    """What `run` gives for slices of at most `size` rows, one after the other; halved when memory runs out.

    Raises:
        torch.OutOfMemoryError: one row alone does not fit.
    """
    results: list[Tensor] = []
    begin, size = 0, min(size, len(rows))
    while begin < len(rows):
        try:
            results.append(run(rows[begin : begin + size]))
            begin += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
            torch.cuda.empty_cache()
    return torch.cat(results)
