"""Segmentations in the formats of other tools: COCO, CSV, NPZ and Zarr, one of each for many results; and read back."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

import numpy as np
import xarray as xr
from pycocotools import mask as rle

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_folder, write_whole
from emerdiff_probe.segmentation.result import Segmentation, summarise_segments

SEGMENT = "segment"
"""Category in COCO of a segment that has no name."""

Names = Mapping[int, str]
"""Names of masks by their number."""


def to_coco(results: Iterable[tuple[str, Segmentation, Names]]) -> dict[str, Any]:
    """Segmentations as a COCO object: images, annotations and categories.

    Args:
        results: file name, segmentation and names of masks. Masks without a name are of the category "segment".

    Returns:
        What `json.dump` takes. An annotation has, beside COCO's own keys, the number of its `mask` and its mean
        `response`; its `segmentation` is a run-length encoding, as pycocotools writes it, and no polygon.
    """
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    writer = _Categories()
    for file_name, result, names in results:
        image, annotations = _describe(file_name, result, names, writer, len(coco["images"]) + 1)
        start = len(coco["annotations"]) + 1
        coco["images"].append(image)
        coco["annotations"] += [{"id": start + place, **each} for place, each in enumerate(annotations)]
    coco["categories"] = writer.listed()
    return coco


def to_xarray(result: Segmentation) -> xr.Dataset:
    """A segmentation as labelled arrays, ready for Zarr or NetCDF; settings are among the attributes, as JSON."""
    variables: dict[str, Any] = {
        "labels": (("height", "width"), result.labels),
        "low_resolution_masks": (("grid_height", "grid_width"), result.low_resolution_masks),
        "responses": (("mask",), result.responses),
        "mask_embeddings": (("mask", "channel"), result.mask_embeddings),
        "linkage": (("merge", "of"), result.linkage),
    }
    if result.maps is not None:
        variables["difference_maps"] = (("mask", "map_height", "map_width"), result.maps)
    summary = result.summary()
    return xr.Dataset(
        variables,
        coords={"mask": np.arange(result.masks)},
        attrs={
            "model": result.model,
            "fingerprint": result.fingerprint,
            "precision": result.precision,
            "configuration": json.dumps(summary["configuration"]),
            "versions": json.dumps(summary["versions"]),
        },
    )


class _Writer(Protocol):
    """What takes one result after the other and then stands in its place as a whole."""

    def add(self, name: str, result: Segmentation, names: Names) -> None:
        """Take a result."""

    def finish(self, path: Path) -> None:
        """Write the file or folder."""


class _Categories:
    """Categories of COCO, numbered from 1 as they appear."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers) + 1)

    def listed(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": name} for name, number in self._numbers.items()]


def _describe(
    file_name: str, result: Segmentation, names: Names, categories: _Categories, number: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An image of COCO and its annotations, which still lack numbers."""
    height, width = result.labels.shape
    annotations = []
    for row in summarise_segments(result):
        mask = np.asfortranarray(result.labels == row["id"], np.uint8)
        encoded = rle.encode(mask)
        annotations.append(
            {
                "image_id": number,
                "category_id": categories.number(names.get(row["id"], SEGMENT)),
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                "area": row["area"],
                "bbox": [float(row[side]) for side in ("left", "top", "width", "height")],
                "iscrowd": 0,
                "mask": row["id"],
                "response": row["mean_response"],
            }
        )
    return {"id": number, "file_name": file_name, "height": height, "width": width}, annotations


class _Coco:
    """COCO JSON; annotations are written as they come, so that a thousand photographs are not held at once."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "annotations"
        self._file = self._path.open("w", encoding="utf-8")
        self._images: list[dict[str, Any]] = []
        self._categories, self._count = _Categories(), 0

    def add(self, name: str, result: Segmentation, names: Names) -> None:
        image, annotations = _describe(name, result, names, self._categories, len(self._images) + 1)
        self._images.append(image)
        for each in annotations:
            self._count += 1
            self._file.write((",\n" if self._count > 1 else "") + json.dumps({"id": self._count, **each}))

    def finish(self, path: Path) -> None:
        self._file.close()
        images, categories = json.dumps(self._images), json.dumps(self._categories.listed())

        def write(partial: Path) -> None:
            with partial.open("w", encoding="utf-8") as whole, self._path.open(encoding="utf-8") as annotations:
                whole.write(f'{{"images": {images}, "categories": {categories}, "annotations": [\n')
                shutil.copyfileobj(annotations, whole)
                whole.write("\n]}\n")

        write_whole(path, write)


class _Csv:
    """A table of all segments."""

    COLUMNS = ("image", "id", "name", "area", "left", "top", "width", "height", "mean_response")

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "segments"
        self._file: IO[str] = self._path.open("w", encoding="utf-8", newline="")
        self._rows = csv.DictWriter(self._file, self.COLUMNS, lineterminator="\n")
        self._rows.writeheader()

    def add(self, name: str, result: Segmentation, names: Names) -> None:
        self._rows.writerows(
            {"image": name, "name": names.get(row["id"], ""), **row} for row in summarise_segments(result)
        )

    def finish(self, path: Path) -> None:
        self._file.close()
        write_whole(path, lambda partial: shutil.copyfile(self._path, partial))


class _Npz:
    """Label maps as one NumPy archive, an array an image."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "labels"
        self._archive = zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED)

    def add(self, name: str, result: Segmentation, names: Names) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, result.labels, allow_pickle=False)

    def finish(self, path: Path) -> None:
        self._archive.close()
        write_whole(path, lambda partial: shutil.copyfile(self._path, partial))


class _Zarr:
    """A Zarr hierarchy, a group an image, as `xarray.open_datatree` opens it."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "labels"
        self._groups: list[str] = []

    def add(self, name: str, result: Segmentation, names: Names) -> None:
        group = f"image{len(self._groups)}"  # Zarr does not take every name
        self._groups.append(name)
        dataset = to_xarray(result).assign_attrs(image=name, names=json.dumps({str(k): v for k, v in names.items()}))
        dataset.to_zarr(self._path, group=group, mode="a", zarr_format=3, consolidated=False)

    def finish(self, path: Path) -> None:
        if path.exists() and not (path / "zarr.json").is_file():
            raise InputError(f"{path} exists and is no Zarr hierarchy; accepted: a new one, or one to replace")
        write_folder(path, lambda partial: shutil.copytree(self._path, partial, dirs_exist_ok=True))


FORMATS: Mapping[str, tuple[str, Callable[[Path], _Writer] | None]] = MappingProxyType(
    {
        "png": ("", None),  # labels.png of every result folder
        "coco": ("coco.json", _Coco),
        "csv": ("segments.csv", _Csv),
        "npz": ("labels.npz", _Npz),
        "zarr": ("labels.zarr", _Zarr),
    }
)
"""For every format the file or folder that `export` writes, and what writes it. Polygons are not among them: COCO's
have no holes, and a label map has many."""


def require_formats(formats: Iterable[str]) -> None:
    """Refuse formats that are not known.

    Raises:
        InputError: such a format.
    """
    for each in formats:
        if each not in FORMATS:
            raise InputError(f"format {each!r}; accepted: {', '.join(FORMATS)}")


def export(
    results: Iterable[tuple[str, Segmentation, Names]], folder: str | Path, formats: Sequence[str]
) -> list[Path]:
    """Write results in the formats of other tools: coco.json, segments.csv, labels.npz, labels.zarr of a folder.

    One result is held at a time. Every file is there as a whole or not at all.

    Args:
        results: name of the image, segmentation, and names of masks, empty where they have none.
        folder: to write to.
        formats: keys of `FORMATS`; "png" is what every result folder holds anyway.

    Returns:
        What was written.

    Raises:
        InputError: an unknown format.
    """
    require_formats(formats)
    chosen = [FORMATS[each] for each in dict.fromkeys(formats)]
    with ExitStack() as stack:
        writers = [
            (Path(folder) / name, make(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            for name, make in chosen
            if make is not None
        ]
        if not writers:
            return []
        for name, result, names in results:
            told = name.encode("utf-8", "backslashreplace").decode()  # file names may hold bytes that are no text
            for _, writer in writers:
                writer.add(told, result, names)
        for path, writer in writers:
            writer.finish(path)
    return [path for path, _ in writers]


def read_coco(path: str | Path) -> dict[str, np.ndarray]:
    """The label maps of a coco.json that `export` wrote, by image: (height, width) integers.

    Raises:
        InputError: a file that cannot be read, or annotations that leave pixels without a mask.
    """
    try:
        coco = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {}
        for image in coco["images"]:
            labels = np.full((image["height"], image["width"]), -1)
            for each in coco["annotations"]:
                if each["image_id"] == image["id"]:
                    labels[rle.decode(each["segmentation"]).astype(bool)] = each["mask"]
            found[image["file_name"]] = labels
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no COCO file of segmentations ({error})") from error
    for name, labels in found.items():
        if (labels < 0).any():
            raise InputError(f"{path}: {name} has pixels without a mask; accepted: what `export` writes")
    return found


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The label maps of a labels.npz that `export` wrote, by image: (height, width) integers.

    Raises:
        InputError: a file that cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no archive of label maps ({error})") from error


def read_zarr(path: str | Path) -> dict[str, xr.Dataset]:
    """What a labels.zarr holds, by image; see `to_xarray`.

    Raises:
        InputError: a folder that cannot be read.
    """
    try:
        tree = xr.open_datatree(Path(path), engine="zarr", consolidated=False)
        found = [group.to_dataset() for group in tree.children.values()]
        return {str(each.attrs["image"]): each for each in found}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no Zarr hierarchy of segmentations ({error})") from error
