"""Where a study's results are kept: a Zarr group that xarray reads, one chunk an image and grid cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.store import brief, require_same
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import package_versions
from emerdiff_probe.studies.study import Axis, Cell, Direction, Measure, Measured, Study

DONE = "done"
"""Array of what has been measured; a cell's mark is written after all its values."""
DIGEST = "digest"
"""Array of what tells images of one seed apart."""
_DTYPES = {"mean": "float64", "confusion": "int32"}


class StudyStore:
    """Measured cells on disk. Every chunk is written whole or not at all, so that killing a run costs one unit.

    Args:
        path: a new folder, or one that holds the same study of the same model.
        study, model: what is measured.
        seeds, digests: of the images, in order; more images than are stored make the arrays grow. Digests are of
            pixels and truth, which a seed alone does not fix.
        resume: whether stored cells may be used.

    Raises:
        InputError: the folder holds something else; the message says what differs.
    """

    def __init__(
        self,
        path: str | Path,
        study: Study,
        model: ProbeModel,
        seeds: Sequence[int],
        digests: Sequence[int],
        *,
        resume: bool = True,
    ) -> None:
        self.path, self.study = Path(path), study
        identity = study.identity() | {"model": model.name, "fingerprint": model.fingerprint}
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            self._require_same(identity, resume)
        else:
            self._create(identity)
        self._group = zarr.open_group(self.path, mode="r+")
        self._grow(list(seeds), np.array(digests, np.uint64))

    def done(self, image: int, cell: tuple[int, ...]) -> bool:
        """Whether a cell of an image has been measured."""
        return bool(self._done[(image, *cell)])

    def write(self, image: int, cell: tuple[int, ...], measured: Measured) -> None:
        """Keep what was measured in one cell, its mark last.

        Raises:
            InputError: a measure is missing or not one of the study's.
        """
        if set(measured) != set(self.study.measures):
            raise InputError(
                f"study {self.study.name} measured {', '.join(sorted(measured))}; "
                f"accepted: {', '.join(sorted(self.study.measures))}"
            )
        place = (image, *cell)
        for name, value in measured.items():
            self._array(name)[place] = value
        self._array(DONE)[place] = 1
        self._done[place] = 1

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _create(self, identity: Mapping[str, Any]) -> None:
        study = self.study
        coordinates = {
            name: xr.Variable(name, _array(axis), {"units": axis.units, "description": axis.description})
            for name, axis in study.axes.items()
        }
        attributes = {
            "question": study.question,
            "identity": json.dumps(identity),
            "directions": json.dumps([asdict(direction) for direction in study.directions]),
            "versions": json.dumps(package_versions()),
        }
        partial = self.path.with_name(f".{self.path.name}.partial")
        xr.Dataset(coords=coordinates, attrs=attributes).to_zarr(partial, mode="w", consolidated=False)
        group = zarr.open_group(partial, mode="r+")
        dimensions = ("image", *study.axes)
        group.create_array("image", shape=(0,), chunks=(1,), dtype="int64", dimension_names=("image",))
        group.create_array(DIGEST, shape=(0,), chunks=(1,), dtype="uint64", dimension_names=("image",))
        self._create_array(group, DONE, "uint8", dimensions, {}, {"description": "1 where measured"})
        for name, measure in study.measures.items():
            attributes = {"units": measure.units, "description": measure.description, "kind": measure.kind}
            self._create_array(group, name, _DTYPES[measure.kind], dimensions, measure.dimensions, attributes)
        if self.path.exists():
            self.path.rmdir()
        partial.rename(self.path)

    def _create_array(
        self,
        group: zarr.Group,
        name: str,
        dtype: str,
        dimensions: tuple[str, ...],
        inner: Mapping[str, int],
        attributes: Mapping[str, str],
    ) -> None:
        group.create_array(
            name,
            shape=(0, *self.study.shape, *inner.values()),
            chunks=(*(1 for _ in dimensions), *inner.values()),
            dtype=dtype,
            fill_value=np.nan if dtype.startswith("float") else 0,
            dimension_names=(*dimensions, *inner),
            attributes=dict(attributes),
        )

    def _require_same(self, identity: Mapping[str, Any], resume: bool) -> None:
        try:
            stored = json.loads(str(zarr.open_group(self.path, mode="r").attrs["identity"]))
        except (KeyError, ValueError, OSError) as error:
            raise InputError(f"{self.path} exists and holds no study; accepted: a new folder or a study's") from error
        if not resume:
            raise InputError(f"{self.path} holds a study already; accepted without resume: a new folder")
        require_same(self.path, stored, identity, "the same study of the same model, or a new folder")

    def _grow(self, seeds: list[int], digests: np.ndarray) -> None:
        """Make room for the images; those that are stored must come first and be the same."""
        image, digest = self._array("image"), self._array(DIGEST)
        stored = [int(seed) for seed in np.asarray(image[:])]
        common = min(len(stored), len(seeds))
        if stored[:common] != seeds[:common]:
            raise InputError(
                f"{self.path}: images of seeds {brief(stored)} there and {brief(seeds)} now; "
                "accepted: the same, or more"
            )
        other = np.flatnonzero(np.asarray(digest[:common]) != digests[:common])
        if len(other):
            raise InputError(
                f"{self.path}: images of seeds {brief([seeds[index] for index in other])} had other pixels or another "
                "truth there; accepted: the same images, or a new folder"
            )
        if len(seeds) > len(stored):
            for name in (DONE, *self.study.measures):
                array = self._array(name)
                array.resize((len(seeds), *array.shape[1:]))
            digest.resize((len(seeds),))
            digest[len(stored) :] = digests[len(stored) :]
            image.resize((len(seeds),))
            image[len(stored) :] = np.array(seeds[len(stored) :])
        self._done = np.asarray(self._array(DONE)[...]).copy()


def open_study(path: str | Path) -> xr.Dataset:
    """A stored study as a dataset: dimension `image` (seeds of the scenes) and one for every axis.

    Cells that have not been measured yet are NaN (counts: 0), and 0 in `done`.

    Raises:
        InputError: no study there.
    """
    try:
        dataset = xr.open_zarr(path, consolidated=False, chunks=None, mask_and_scale=False)
        json.loads(dataset.attrs["identity"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no stored study there ({error})") from error
    return dataset


def stored_study(path: str | Path) -> Study:
    """The study that a store holds, from the folder alone: to be shown, not to be measured again.

    Raises:
        InputError: no study there.
    """
    dataset = open_study(path)
    try:
        identity = json.loads(dataset.attrs["identity"])
        return Study(
            name=identity["study"],
            question=dataset.attrs["question"],
            axes={
                name: Axis(tuple(values), dataset[name].attrs["units"], dataset[name].attrs["description"])
                for name, values in identity["axes"].items()
            },
            measures={name: Measure(**measure) for name, measure in identity["measures"].items()},
            config=EmerDiffConfig.from_dict(identity["configuration"]),
            measure=_only_shown,
            together=tuple(identity["together"]),
            start=identity["start"],
            parameters=identity.get("parameters", {}),
            directions=tuple(Direction(**kept) for kept in json.loads(dataset.attrs.get("directions", "[]"))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the stored study cannot be read ({type(error).__name__}: {error})") from error


def _only_shown(*_: Any) -> Mapping[Cell, Measured]:
    raise InputError("this study was read from its store to be shown; accepted for measuring: one from make_study")


def _array(axis: Axis) -> np.ndarray:
    """Values of an axis; text of any length, which other Zarr libraries read too."""
    values = np.array(axis.values)
    return values.astype(object) if values.dtype.kind == "U" else values
