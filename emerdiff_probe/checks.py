"""Checks of parameters, with one wording for what was given and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

import numpy as np

from emerdiff_probe.errors import InputError

FLOAT32_MAX = float(np.finfo(np.float32).max)
LONGEST = 120
"""Characters of a value that an error shows."""
LARGEST = 2**63 - 1
"""The largest integer that is taken anywhere: that of torch's and NumPy's 64 bits."""


def require(owner: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Check parameters: name, whether it holds, and what is accepted.

    Raises:
        InputError: the first that does not hold.
    """
    for name, holds, accepted in checks:
        if not holds:
            raise InputError(f"{type(owner).__name__}: {name} {show(getattr(owner, name))}; accepted: {accepted}")


def show(value: object) -> str:
    """What was given, in a line of an error: shortened, and whatever it is."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as an integer of more digits than Python writes
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def is_integer(value: object, low: int, high: int = LARGEST) -> bool:
    """Whether this is an integer from `low` to `high`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(low <= value <= high)


def is_one_of(value: object, accepted: Iterable[str]) -> bool:
    """Whether this is one of the accepted words."""
    return isinstance(value, str) and value in accepted


def is_finite(value: object) -> TypeGuard[float]:
    """Whether this is a number, and finite as a float32."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return False
    return bool(-FLOAT32_MAX <= value <= FLOAT32_MAX)


def is_positive(value: object) -> bool:
    """Whether this is a number above 0, finite as a float32."""
    return is_finite(value) and value > 0
