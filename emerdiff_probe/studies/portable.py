"""A study's result as one small file that can be kept beside a notebook: everything but the pictures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import xarray as xr
import zarr.storage

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.studies.run import StudyJob, StudyResult, restore_study, write_zarr

FORMAT = 1
_MOMENT = (1980, 1, 1, 0, 0, 0)


def write_result(result: StudyResult, path: str | Path, *, about: Mapping[str, str] | None = None) -> Path:
    """Write what was measured of every image as one file: a zipped Zarr group that xarray and other tools open, too.

    The same result gives the same bytes. Measures are kept, pictures are not, so that fifty images of a study of a
    few places make some tens of kilobytes.

    Args:
        result: of a study.
        path: of the file, such as "strength.zarr.zip"; replaced as a whole.
        about: what readers should know besides, a sentence each by its name, such as the model and the command; it
            stands in the result's notes when it is read.
    """
    path = Path(path)
    job = StudyJob(result.study)
    held = {
        "format": FORMAT,
        "identity": job.identity(),
        "description": job.describe(),
        "skipped": dict(result.skipped),
        "notes": list(result.notes),
        "about": dict(about or {}),
    }
    dataset = result.dataset.assign_attrs(emerdiff_probe=json.dumps(held))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "result.zarr"
        write_zarr(dataset, folder)
        write_whole(path, lambda partial: _zip(folder, partial))
    return path


def _zip(folder: Path, path: Path) -> None:
    """The files of a folder in the order of their names, all of one moment: chunks are compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.writestr(
                zipfile.ZipInfo(file.relative_to(folder).as_posix(), _MOMENT),
                file.read_bytes(),
                zipfile.ZIP_DEFLATED,
            )


def read_result(path: str | Path) -> StudyResult:
    """What `write_result` wrote, to be shown: tables, verdicts and figures, without a model.

    Raises:
        InputError: no such file, or it holds no study's result.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; accepted: one that write_result wrote")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: no zipped Zarr group; accepted: what write_result wrote")
    try:
        with zarr.storage.ZipStore(path, mode="r") as store, xr.open_zarr(store, consolidated=False) as opened:
            dataset = opened.load()
        held = json.loads(dataset.attrs.pop("emerdiff_probe"))
        if held["format"] != FORMAT:
            raise InputError(f"{path}: of format {held['format']}; accepted: {FORMAT}")
        study = restore_study(held["identity"], held["description"], path)
        notes = (*held["notes"], *(f"{name}: {said}" for name, said in held["about"].items()))
        return StudyResult(study, dataset, path, 0, 0, held["skipped"], notes)
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no readable result of a study ({type(error).__name__}: {error})") from error
