"""Checks of parameters, with one wording for what was given and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from emerdiff_probe.errors import InputError


def require(owner: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Check parameters: name, whether it holds, and what is accepted.

    Raises:
        InputError: the first that does not hold.
    """
    for name, holds, accepted in checks:
        if not holds:
            raise InputError(f"{type(owner).__name__}: {name} {getattr(owner, name)!r}; accepted: {accepted}")


def is_integer(value: object, low: int) -> bool:
    """Whether this is an integer of at least `low`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= low)


def is_one_of(value: object, accepted: Iterable[str]) -> bool:
    """Whether this is one of the accepted words."""
    return isinstance(value, str) and value in accepted


def is_positive(value: object) -> bool:
    """Whether this is a finite number above 0."""
    return isinstance(value, (int, float, np.integer, np.floating)) and bool(np.isfinite(value) and value > 0)
