"""Files that are there as a whole or not at all, and the files of a folder that count."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from emerdiff_probe.errors import InputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under another name and then take its own, so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def list_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, but for hidden ones and what lies in hidden folders (`.Trash-1000`).

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for path in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file():
            yield path


def compose(name: str) -> str:
    """A name in Unicode's form NFC, in which names are compared whatever system wrote them."""
    return unicodedata.normalize("NFC", name)
