"""Where records are kept: a file a sample and cell, written whole or not at all, that tells when it is damaged.

    STORE/run.json                          format, identity, what readers need
    STORE/cells/CELL.json                   what a cell's records depend on beyond that, where there is such
    STORE/samples/SAMPLE/sample.json        digest of the sample, stamp of its files
    STORE/samples/SAMPLE/CELL.npz           a record
    STORE/weights                           what a job trained

Several runs may share a store, each with a part of the samples or of the cells.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import seal, sweep, unseal, write_whole
from emerdiff_probe.runs.job import Cell, Record

FORMAT = 2
"""Of stores; raised when what is in one would mean something else."""
READABLE = 60
"""Characters of a sample's or cell's name that stand in the name of its file, before a few digits of its own."""
_RUN, _SAMPLE = "run.json", "sample.json"
_FOLDERS = ("samples", "cells", "weights")


class Known(NamedTuple):
    """A sample that a store has records of.

    Attributes:
        name: of the sample.
        digest: of its pixels and truth.
        stamp: of its files, see `DataSet.stamp`.
        labels: pixels of every class, and ignored ones; see `emerdiff_probe.data.summary.count_labels`.
    """

    name: str
    digest: str
    stamp: tuple[int, ...]
    labels: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Known:
        """What `Store.keep_sample` wrote.

        Raises:
            InputError: the file is damaged.
        """
        held = _read_sealed(path)
        return cls(str(held["name"]), str(held["digest"]), tuple(held["stamp"]), tuple(held["labels"]))


class Store:
    """Records of one job of one model on disk.

    Nothing is written before the first sample is kept: a command that is refused leaves no folder behind.

    Args:
        path: a new folder, or one that holds records of the same identity.
        identity: what must be the same for any record to be used again, as JSON values.
        description: what readers need besides; never compared.
        warn: told of what is damaged.

    Raises:
        InputError: an address, a file, or a folder that holds something else; the message says what differs.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        description: Mapping[str, Any] | None = None,
        *,
        warn: Callable[[str], None] = print,
    ) -> None:
        self.path, self.identity, self.description = require_local(path), _plain(identity), _plain(description or {})
        self._digest = _sha256(json.dumps(self.identity, sort_keys=True))
        self._parts: dict[Cell, str] = {}
        self._began, self._warn = False, warn
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            self._require_same()

    @classmethod
    def open(cls, path: str | Path, *, warn: Callable[[str], None] = print) -> Store:
        """A store that is there, to be read.

        Raises:
            InputError: no store there, one of another format, or one whose run.json is damaged.
        """
        place = require_local(path)
        if not (place / _RUN).is_file():
            raise InputError(f"{place}: no {_RUN} in it, so no run is stored there")
        about = _read_run(place / _RUN)
        return cls(place, about["identity"], about["description"], warn=warn)

    def require_cells(self, cells: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Refuse records of cells that depend on something else than now.

        Raises:
            InputError: the store has such records; the message says what differs.
        """
        for cell, part in cells.items():
            path, plain = self.path / "cells" / f"{_file_name(*cell)}.json", _plain(part)
            self._parts[cell] = json.dumps(plain, sort_keys=True) if plain else ""
            if path.exists():
                try:
                    held = _read_sealed(path)
                except InputError as error:
                    self._warn(f"{error}; written anew, records say themselves what they are of")
                    _remove(path)
                else:
                    require_same(path, held["depends_on"], plain, "the same, or a new folder")

    def known(self, name: str) -> Known | None:
        """What is kept of a sample; None where nothing is, or where it is damaged, which is told."""
        path = self._folder(name) / _SAMPLE
        if not path.exists():
            return None
        try:
            return Known.read(path)
        except InputError as error:
            self._warn(f"{error}; the sample is read again")
            _remove(path)
            return None

    def samples(self) -> list[Known]:
        """All samples that are kept, by name."""
        return sorted(Known.read(path) for path in (self.path / "samples").glob(f"*/{_SAMPLE}"))

    def keep_sample(self, known: Known) -> None:
        """Keep what is known of a sample before its first record.

        Raises:
            InputError: the sample of this name had other pixels or another truth.
        """
        held = self.known(known.name)
        if held is not None and held.digest != known.digest:
            raise InputError(
                f"{self._folder(known.name)}: sample {known.name} had other pixels or another truth; accepted: the "
                "same samples, or a new folder"
            )
        self.begin()
        if held != known:
            self._write(self._folder(known.name) / _SAMPLE, seal(_plain(known._asdict())))

    def state(self, sample: Known, cell: Cell) -> str | None:
        """What is wrong with a record: None where it is there and whole, "" where there is none, else in words."""
        path = self._record(sample.name, cell)
        if not path.exists():
            return ""
        try:
            self._content(sample, cell)
        except InputError as error:
            return str(error)
        return None

    def read(self, sample: Known, cell: Cell) -> dict[str, np.ndarray]:
        """What `write` kept.

        Raises:
            InputError: there is no such record, or it is damaged, or not of this sample, cell and identity.
        """
        with np.load(io.BytesIO(self._content(sample, cell)), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}

    def write(self, sample: Known, cell: Cell, record: Record) -> None:
        """Keep a record, in the place of a damaged one."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{name: np.asarray(value) for name, value in record.items()})
        body = buffer.getvalue()[:-2]  # without the length of the archive's comment, which will be the checksum
        check = self._check(sample, cell, body).encode()
        path = self._record(sample.name, cell)
        if path.is_dir():
            shutil.rmtree(path)
        write_whole(path, lambda partial: partial.write_bytes(body + len(check).to_bytes(2, "little") + check))

    def _content(self, sample: Known, cell: Cell) -> bytes:
        """The archive of a record, if its checksum is right."""
        path = self._record(sample.name, cell)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: no readable record ({error.strerror or error})") from error
        body, check = content[:-66], content[-64:]
        if content[-66:-64] != (64).to_bytes(2, "little") or check != self._check(sample, cell, body).encode():
            raise InputError(f"{path}: damaged, or not the record of {brief(cell)} of sample {sample.name}")
        return body + b"\0\0"

    def _check(self, sample: Known, cell: Cell, body: bytes) -> str:
        """Of everything that a record depends on, so that no record is taken for another."""
        key = [self._digest, self._parts.get(cell, ""), sample.name, sample.digest, cell]
        return _sha256(json.dumps(key).encode() + body)

    def _folder(self, name: str) -> Path:
        return self.path / "samples" / _file_name(name)

    def _record(self, name: str, cell: Cell) -> Path:
        return self._folder(name) / f"{_file_name(*cell)}.npz"

    def begin(self) -> None:
        """Write what every reader asks for first, where it is not there, and sweep what killed writers left; once."""
        if self._began:
            return
        about = {"format": FORMAT, "identity": self.identity, "description": self.description}
        self._write(self.path / _RUN, seal(about))
        for cell, part in self._parts.items():
            path = self.path / "cells" / f"{_file_name(*cell)}.json"
            if part and not path.exists():
                self._write(path, seal({"cell": list(cell), "depends_on": json.loads(part)}))
        for folder in (self.path, *self.path.glob("cells"), *self.path.glob("samples/*")):
            sweep(folder)
        self._began = True

    @staticmethod
    def _write(path: Path, text: str) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))

    def _require_same(self) -> None:
        ours = (self.path / _RUN).exists() or any((self.path / name).is_dir() for name in _FOLDERS)
        earlier = [name for name in ("evaluation.json", "zarr.json") if (self.path / name).exists()]
        if earlier and not ours:
            raise InputError(
                f"{self.path / earlier[0]}: a store of format 1; accepted: {FORMAT}. Measure anew into another folder"
            )
        if not ours:
            raise InputError(f"{self.path} exists and holds no run; accepted: a new folder, or a run's")
        try:
            stored = _read_run(self.path / _RUN)
        except _DamagedError as error:
            self._warn(f"{error}; written anew, records say themselves what they are of")
            return
        require_same(self.path, stored["identity"], self.identity, "the same run of the same model, or a new folder")
        self.description = self.description or stored["description"]


class _DamagedError(InputError):
    """A file of the store that is not what was written."""


def _read_run(path: Path) -> dict[str, Any]:
    held = _read_sealed(path)
    if held.get("format") != FORMAT:
        raise InputError(f"{path}: format {held.get('format')!r}; accepted: {FORMAT}. Measure anew into another folder")
    return held


def _read_sealed(path: Path) -> dict[str, Any]:
    try:
        return unseal(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _DamagedError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # bytes that are no text, and what unseal refuses
        raise _DamagedError(f"{path}: damaged ({error})") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _file_name(*parts: object) -> str:
    """A name that every file system takes, the same for the same parts and different for others."""
    text = ", ".join("auto" if part is None else str(part) for part in parts)
    return f"{quote(text, safe=' ,.+=')[:READABLE]}-{_sha256(json.dumps(parts))[:12]}"


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def require_local(path: str | Path) -> Path:
    """Refuse addresses of object stores and the like, which would become folders of odd names.

    Raises:
        InputError: an address.
    """
    text = str(path)
    if "::" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # Path makes "s3:/" of "s3://"
        raise InputError(f"{text}: an address; accepted: a folder on this machine, or on a drive that is mounted")
    return Path(path)


def require_same(
    path: Path, stored: Mapping[str, Any], fresh: Mapping[str, Any], accepted: str, inside: str = ""
) -> None:
    """Refuse to go on with what was kept under another configuration.

    Args:
        path: where it is kept, for the message.
        stored: the configuration that was kept, read from JSON.
        fresh: the one of now; values that JSON can hold.
        accepted: for the message.
        inside: names of the mappings around, with points, for the message.

    Raises:
        InputError: a value differs; the message says which, inside mappings too.
    """
    for name, value in _plain(fresh).items():
        held = stored.get(name)
        if isinstance(value, dict) and isinstance(held, dict) and set(value) == set(held):
            require_same(path, held, value, accepted, f"{inside}{name}.")
        elif held != value:
            raise InputError(
                f"{path}: {inside}{name} was {brief(held)} there and is {brief(value)} now; accepted: {accepted}"
            )


def brief(value: object) -> str:
    """A value in at most 80 characters, its beginning and its end."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"


def require_complete(names: Sequence[str], store: str | Path) -> None:
    """Refuse to show a run of which no sample is complete.

    Raises:
        InputError: there is none.
    """
    if not names:
        raise InputError(f"{store}: no sample is complete yet")
