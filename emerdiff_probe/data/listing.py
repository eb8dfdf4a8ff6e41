"""How errors and notes list what could be long."""

from __future__ import annotations

from collections.abc import Iterable

NAMED = 5
"""How many names a list holds of each kind."""


def list_some(items: Iterable[object]) -> str:
    """The first few, and how many more."""
    texts = [str(item) for item in (sorted(items, key=str) if isinstance(items, frozenset) else items)]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")
