"""Models on the Hugging Face hub, or in its cache here: the few files that are needed, as a folder."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.folders import read_index, require_served
from emerdiff_probe.models.weights import choose_variant, find_variants

SMALL = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers; everything that is checked before weights are fetched."""


def fetch_folder(name: str, revision: str | None, variant: str | None) -> Path:
    """A model of the hub as a folder in the cache, fetched where it is not there yet.

    Without the hub (`HF_HUB_OFFLINE`, or no connection) it is what the cache has.

    Args:
        name: id, such as "CompVis/stable-diffusion-v1-4".
        revision: branch, tag or commit; "main" by default.
        variant: of the weights, see `weights.choose_variant`.

    Raises:
        ModelError: no such id or revision, or neither the hub nor the cache has it.
    """
    accepted = (
        "accepted: 'pocket', 'photo', a local diffusers folder, or a hub id such as 'CompVis/stable-diffusion-v1-4' "
        f"where the hub is reachable or its cache ({constants.HF_HUB_CACHE}) has it"
    )
    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        validate_repo_id(name)
        folder = _snapshot(name, revision, SMALL)
        files = _list_weights(name, revision)
        if files is None:  # offline
            return folder
        wanted = {""}  # a model of transformers lies at the top
        if (folder / "model_index.json").is_file():
            index = read_index(folder)
            require_served(folder, index)
            wanted = set(index.models)
        return _snapshot(name, revision, [*SMALL, *_choose_files(files, variant, name, wanted)])
    except HFValidationError as error:
        raise ModelError(f"cannot load model {where}: no folder here, and no id of the hub; {accepted}") from error
    except ModelError:
        raise
    except Exception as error:  # huggingface_hub's own, httpx's and the system's
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"cannot load model {where}; {accepted} ({reason})") from error


def _snapshot(name: str, revision: str | None, patterns: list[str] | tuple[str, ...]) -> Path:
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def _list_weights(name: str, revision: str | None) -> list[str] | None:
    """Files of a model on the hub; None where it cannot be reached."""
    if constants.is_offline_mode():
        return None
    try:
        return list(huggingface_hub.HfApi().list_repo_files(name, revision=revision))
    except Exception:  # as above; the cache may still have what is needed
        return None


def _choose_files(files: list[str], variant: str | None, name: str, wanted: set[str]) -> list[str]:
    """Safetensors of one variant for each wanted folder, of all that a repository has."""
    chosen = []
    for folder in sorted(wanted):
        prefix = f"{folder}/" if folder else ""
        names = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        one = choose_variant([last for last in names if "/" not in last], variant, f"{name}/{folder}") or ""
        chosen += [f"{prefix}{last}" for last in names if find_variants([last]) == {one}]
    return chosen
