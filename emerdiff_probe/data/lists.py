"""Lists that people write, and how errors and notes list what could be long."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import compose

NAMED = 5
"""How many names a list holds of each kind."""


def list_some(items: Iterable[object]) -> str:
    """The first few, and how many more."""
    texts = [str(item) for item in (sorted(items, key=str) if isinstance(items, frozenset) else items)]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file that are not empty, stripped, in NFC, with or without a byte-order mark.

    Raises:
        InputError: it cannot be read; `what` says what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a {what} ({error})") from error
    return [compose(line.strip()) for line in lines if line.strip()]
