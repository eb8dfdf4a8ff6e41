"""Files and folders that are there as a whole or not at all and tell when they are damaged; the files that count."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from emerdiff_probe.errors import InputError

PARTIAL = ".partial"
"""End of the names of what is being written."""
CHECKSUM = "checksum"
"""Key under which sealed JSON has its own checksum."""
NAME_BYTES = 255
"""Bytes of a name that file systems take."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under another name and then take its own, so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path.parent)
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Have a folder written under another name and then take its own, in the place of an older one.

    Killed at any moment, it leaves the older folder, the new one, or in the moment between them none. Of two writers at
    once, the last one's folder stays. What killed writers left beside it is swept first.
    """
    place = resolve(folder)  # of "out/.." the name is not ".."
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place.parent)
    scratch = _partial(place.parent)
    scratch.mkdir()
    try:
        made = scratch / "new"
        made.mkdir()
        write(made)
        for attempt in range(100):  # another writer may put its own there between the two steps
            with contextlib.suppress(FileNotFoundError):
                place.rename(scratch / f"old{attempt}")
            try:
                made.rename(place)
                return
            except OSError:
                if not place.exists():
                    raise
        raise OSError(f"{place}: written by others all the time")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed writers of this machine left in a folder; what is being written stays.

    Returns:
        What was removed.
    """
    host, removed = socket.gethostname(), []
    for left in folder.glob(f".*{PARTIAL}") if folder.is_dir() else ():
        *machine, process, _ = left.name.removeprefix(".").removesuffix(PARTIAL).split("-")
        if "-".join(machine) == host and process.isdigit() and not psutil.pid_exists(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
            removed.append(left)
    return removed


def _partial(folder: Path) -> Path:
    """A new name that says who writes; it does not hold the final name, which may be as long as names can be."""
    return folder / f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"


def resolve(path: str | Path) -> Path:
    """The absolute path, without links.

    Raises:
        InputError: links in a loop.
    """
    try:
        return Path(path).resolve()
    except RuntimeError as error:  # what Python 3.11 and 3.12 make of a loop
        raise InputError(f"{path}: symbolic links in a loop; accepted: a path that leads somewhere") from error


def require_names(names: Mapping[str, object], folder: Path) -> None:
    """Refuse names of files or folders that the file system does not take.

    Raises:
        InputError: a name of more than 255 bytes.
    """
    for name in names:
        if len(os.fsencode(name)) > NAME_BYTES:
            raise InputError(
                f"{folder / name[:40]}…: a name of {len(os.fsencode(name))} bytes; accepted: up to {NAME_BYTES}"
            )


def require_writable(folder: Path) -> None:
    """Refuse a place for results that is, or lies below, a file, or cannot be written to; nothing is made there.

    Raises:
        InputError: such a place; also links in a loop and names that are too long.
    """
    require_names(dict.fromkeys(folder.parts), folder.parent)
    resolve(folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{folder}: {existing} is a file; accepted: a folder, there already or not")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(f"{folder}: {existing} cannot be written to ({error.strerror or error})") from error


def list_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file in a folder, by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def find_damage(folder: Path, checksums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the files of a folder, a text for every file that is not what `list_checksums` saw."""
    damage = []
    for name, written in checksums.items():
        path = folder / name
        if not path.exists():
            damage.append(f"{name} is missing")
        elif not path.is_file():
            damage.append(f"{name} is not a file")
        elif path.stat().st_size != written["bytes"]:
            damage.append(f"{name} has {path.stat().st_size} bytes where {written['bytes']} were written")
        elif _sha256(path) != written["sha256"]:
            damage.append(f"{name} is not what was written")
    return damage


def seal(content: Mapping[str, Any]) -> str:
    """JSON text that carries its own checksum; see `unseal`."""
    return json.dumps({**content, CHECKSUM: _checksum(content)}, indent=2) + "\n"


def unseal(text: str) -> dict[str, Any]:
    """What was sealed, without the checksum.

    Raises:
        InputError: text that is no JSON object, or is not what `seal` gave.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"damaged ({error})") from error
    if not isinstance(content, dict) or content.pop(CHECKSUM, None) != _checksum(content):
        raise InputError("damaged: its checksum is not that of its content")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but for hidden ones and what lies in hidden folders (`.Trash-1000`).

    Links to folders are followed, each folder once.

    Raises:
        InputError: no such folder, or a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: no such folder, or one that cannot be read ({error.strerror})") from error

    found: list[Path] = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        found += [] if real in seen else [Path(place, name) for name in files if not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def compose(name: str) -> str:
    """A name in Unicode's form NFC, in which names are compared whatever system wrote them."""
    return unicodedata.normalize("NFC", name)
