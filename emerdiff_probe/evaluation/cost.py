"""What a method costs: its time, and the most memory held meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Cost(NamedTuple):
    """What some work took."""

    seconds: float
    peak_mib: float | None
    """The most memory held meanwhile: on CUDA what the device had allocated, else what the process had resident, the
    model included in both; None where the system does not tell."""


def measured(work: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """What work gives, and what it took; the device is waited for."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forgotten = _forget_peak()
    began = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if cuda:
        return result, Cost(seconds, torch.cuda.max_memory_allocated(device) / 2**20)
    return result, Cost(seconds, _peak() if forgotten else None)


def _forget_peak() -> bool:
    """Start the process's peak of resident memory anew; Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> float:
    """The process's peak of resident memory since `_forget_peak`, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def together(first: Cost, second: Cost) -> Cost:
    """Of one piece of work after the other."""
    peaks = [cost.peak_mib for cost in (first, second) if cost.peak_mib is not None]
    return Cost(first.seconds + second.seconds, max(peaks, default=None))


def on_host(cost: Cost, device: torch.device) -> Cost:
    """Of a method that sees only the image: memory of another device says nothing about it."""
    return cost if device.type == "cpu" else cost._replace(peak_mib=None)
