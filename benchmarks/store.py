"""Where benchmarks keep what is finished, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from emerdiff_probe.files import write_whole

Arrays = dict[str, np.ndarray]


def folder_of(store: Path, *identity: object) -> Path:
    """A folder of its own for everything that must be the same for results to be used again, as JSON values."""
    text = json.dumps(identity, sort_keys=True)
    folder = store / hashlib.sha256(text.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.json").write_text(text)
    return folder


def kept(path: Path, compute: Callable[[], Arrays]) -> Arrays:
    """What a file holds; computed and written first where it is not there."""
    if not path.exists():
        arrays = {name: np.array(array, order="C") for name, array in compute().items()}  # others are written garbled
        write_whole(path, lambda partial: save_file(arrays, partial))
    return load_file(path)
