"""What segmentation finds in an image: labels, maps, tree; pictures of it, saving and loading."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.ndimage import find_objects

from emerdiff_probe.arrays import count_labels, enlarge_by_rows
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import find_damage, list_checksums, resolve, seal, unseal, write_folder
from emerdiff_probe.images import (
    colour_labels,
    contact_sheet,
    contours,
    draw_segments,
    heatmap,
    load_image,
    load_labels,
    overlay,
    save_labels,
    save_picture,
    write_names,
)
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.features import upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.sharpen import Sharpening, read_labels
from emerdiff_probe.segmentation.tree import SegmentTree

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

FORMAT = 2
"""Of result folders. Those of format 1 (before formats were numbered) held maps at the picture's own size."""
EXACT_PIXELS = 2**20
"""Pictures up to so many pixels are kept without loss; of larger ones a JPEG, and the checksum of the pixels."""
SHOWN = 1024
"""Pixels of the longer side that pictures of a result have at most."""
PANEL = 384
"""Pixels of the longer side that one of several pictures in a sheet has at most."""


WAY_OUT = "a lower strength may help, or the settings that `emerdiff-probe calibrate` finds on such pictures"
"""Where labels explain less of a picture's colours than the masks that they were made of."""
DOUBTFUL = -0.06
"""Colour gain below which most results had lost mIoU against their own enlarged masks (benchmarks/NOTES.md, Settings
without labels); above it every fifth had."""


def is_doubtful(colour_gain: float | None) -> bool:
    """Whether there is something to say against a result of this `colour_gain`; nothing where it was not measured."""
    return colour_gain is not None and colour_gain < DOUBTFUL


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `segment` found in one image.

    Attributes:
        image: (height, width, 3) uint8, as given; loaded from a folder, see `load`.
        labels: (height, width) integers in 0 … K - 1, read off the maps as the configuration's `sharpen` says.
        low_resolution_masks: (grid_height, grid_width) integers, the k-means clusters, or unions of them where the
            criterion for their number merged some.
        maps: (mask, map_height, map_width) float32, the difference maps at the size that the model works at; None
            where a folder holds none. Read them as `difference_maps`, and enlarged by `difference_map`.
        responses: (mask,) float32, the mean over a segment's pixels of its mask's difference map; 0 of an empty one.
        mask_embeddings: (mask, channel) float32, the mean feature inside every low-resolution mask.
        linkage: (mask - 1, 4) float64, SciPy's linkage matrix of the difference maps by their cosine; see `tree`.
        config: every setting.
        model: name of the model; fingerprint: of its weights; precision: of the denoiser.
        seconds: of every stage, reading the image and writing the result included.
        colour_gain: how much more of the picture's colour variance the labels explain, before they are sharpened, than
            the enlarged low-resolution masks do, -1 … 1; see `notes`. None where it was not measured.
    """

    image: np.ndarray
    labels: np.ndarray
    low_resolution_masks: np.ndarray
    maps: np.ndarray | None
    responses: np.ndarray
    mask_embeddings: np.ndarray
    linkage: np.ndarray
    config: EmerDiffConfig
    model: str
    fingerprint: str
    precision: str
    seconds: dict[str, float] = field(default_factory=dict)
    colour_gain: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say against the result, a sentence each; nothing is the usual."""
        if self.colour_gain is None or not is_doubtful(self.colour_gain):
            return ()
        lost = f"{-100 * self.colour_gain:.1f} points"
        return (f"the labels explain {lost} less of the picture's colours than the enlarged masks do; {WAY_OUT}",)

    @property
    def masks(self) -> int:
        """Number of masks, K (or fewer, where the image has fewer distinct cells)."""
        return len(self.mask_embeddings)

    @property
    def difference_maps(self) -> np.ndarray:
        """The difference maps (mask, map_height, map_width) float32, at the size that the model works at.

        Raises:
            InputError: the result was loaded from a folder without them.
        """
        if self.maps is None:
            raise InputError(
                "a result loaded from a folder without difference maps; accepted: one saved with them "
                "(`segment --maps`, `save(folder, maps=True)`)"
            )
        return self.maps

    def difference_map(self, mask: int) -> np.ndarray:
        """One difference map enlarged to the image's size, (height, width) float32.

        Raises:
            InputError: no such mask, or a result without maps.
        """
        if not 0 <= mask < self.masks:
            raise InputError(f"mask {mask}; accepted: 0 to {self.masks - 1}")
        own = torch.from_numpy(self.difference_maps[mask : mask + 1]).float()
        height, width = self.labels.shape
        return torch.cat([stripe[0] for _, stripe in enlarge_by_rows(own, height, width)]).numpy()

    @cached_property
    def tree(self) -> SegmentTree:
        """The segments merged step by step into larger ones; `tree.cut(k)` gives the labels of any level."""
        return SegmentTree(self.labels, self.linkage)

    def read(self, sharpen: Sharpening) -> Segmentation:
        """The result with its labels read off the same difference maps in another way; see `read_labels`.

        The same to the bit as segmenting anew with that `sharpen`, in the time that reading takes.

        Raises:
            InputError: no such sharpening, or a result without maps.
        """
        began = time.perf_counter()
        labels, responses = read_labels(torch.from_numpy(self.difference_maps), self.image, sharpen)
        return replace(
            self,
            labels=labels,
            responses=responses,
            config=self.config.change(sharpen=sharpen),
            seconds=self.seconds | {"assign": round(time.perf_counter() - began, 4)},
        )

    def overlay(self, opacity: float = 0.55, names: Mapping[int, str] | None = None) -> Image.Image:
        """Label colours over the image, borders in white; with the names of labels, such as `ScoreMap.names` gives."""
        return Image.fromarray(write_names(overlay(self.image, self.labels, opacity), self.labels, names or {}))

    def contours(self) -> Image.Image:
        """Borders between labels over the image."""
        return Image.fromarray(contours(self.image, self.labels))

    def side_by_side(self) -> Image.Image:
        """Image, low-resolution masks, segmentation and contours in a row, each at most 384 pixels long."""
        small = self.shrink(PANEL)
        height, width = small.labels.shape
        coarse = Image.fromarray(colour_labels(self.low_resolution_masks)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        pictures = [small.image, np.array(coarse), draw_segments(small.labels), np.array(small.contours())]
        return contact_sheet(pictures, ["image", "low-resolution masks", "EmerDiff", "contours"])

    def readings(self) -> Image.Image:
        """Image, enlarged masks, maps read as in the paper, and labels in a row, each at most 384 pixels long.

        What pushing adds to the masks, and what the picture's own borders add to that; without `sharpen` the last two
        are one.

        Raises:
            InputError: a result without maps.
        """
        small = self.shrink(PANEL)
        height, width = small.labels.shape
        shown = {
            "low-resolution masks, enlarged bilinearly": upsampled(self.low_resolution_masks, height, width),
            "EmerDiff, read as in the paper": read_labels(torch.from_numpy(self.difference_maps), small.image)[0],
        }
        if self.config.sharpen != "none":
            shown[f'EmerDiff, sharpened ("{self.config.sharpen}")'] = small.labels
        return contact_sheet([small.image, *map(draw_segments, shown.values())], ["image", *shown])

    def difference_sheet(self) -> Image.Image:
        """The image and every difference map under its mask's number, all on one scale, at most 384 pixels long.

        Raises:
            InputError: a result without maps.
        """
        top = float(self.difference_maps.max())
        size = self.difference_maps.shape[:0:-1]
        image = np.array(Image.fromarray(self.image).resize(size, Image.Resampling.BILINEAR))
        shown = [image, *(heatmap(values, top) for values in self.difference_maps)]
        pictures = [_shrink(picture, PANEL) for picture in shown]
        titles = ["image", *(f"mask {i}" for i in range(self.masks))]
        return contact_sheet(pictures, titles, columns=4, tops=[None, *[top] * self.masks])

    def shrink(self, longest: int) -> Segmentation:
        """The same result of a smaller image, whose longer side has at most so many pixels: for pictures of it."""
        if max(self.labels.shape) <= longest:
            return self
        image = _shrink(self.image, longest)
        size = image.shape[1::-1]
        labels = np.array(Image.fromarray(self.labels).resize(size, Image.Resampling.NEAREST))
        return replace(self, image=image, labels=labels)

    def save(self, folder: str | Path, *, maps: bool = False) -> Path:
        """Write the result as open formats; a folder is written as a whole or not at all, replacing an older one.

        Files: image.png (of more than a megapixel image.jpg, for looking at), labels.png (indexed, the image's size),
        segmentation.safetensors (low_resolution_masks, responses, mask_embeddings, linkage; with `maps` also
        difference_maps, float16 at the size that the model works at), pictures of at most 1,024 pixels (overlay.png,
        contours.png, side_by_side.png, readings.png, difference_maps.png, levels.png of the tree), and result.json with
        settings and a checksum of every file.

        Args:
            folder: new, empty, or of an earlier result.
            maps: keep the difference maps.

        Raises:
            InputError: the folder exists and holds something else, or is or holds the current one; maps are asked for
                and the result has none.
        """
        require_replaceable(folder)
        tensors = {
            "low_resolution_masks": self.low_resolution_masks,
            "responses": self.responses,
            "mask_embeddings": self.mask_embeddings,
            "linkage": self.linkage,
        }
        if maps:
            small = float(self.difference_maps.max()) <= np.finfo(np.float16).max
            tensors["difference_maps"] = self.difference_maps.astype(np.float16 if small else np.float32)
        write_folder(Path(folder), lambda partial: self._write(partial, tensors))
        return Path(folder)

    def _write(self, folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
        began = time.perf_counter()
        image = Image.fromarray(self.image)
        if self._is_exact:
            save_picture(image, folder / "image.png")
        else:
            image.save(folder / "image.jpg", quality=90)
        save_labels(self.labels, folder / "labels.png")
        shown = self.shrink(SHOWN)
        save_picture(shown.overlay(), folder / "overlay.png")
        save_picture(shown.contours(), folder / "contours.png")
        save_picture(shown.side_by_side(), folder / "side_by_side.png")
        panel = self.shrink(PANEL)
        save_picture(panel.tree.levels(panel.image), folder / "levels.png")
        if self.maps is not None:
            save_picture(self.readings(), folder / "readings.png")
            save_picture(self.difference_sheet(), folder / "difference_maps.png")
        content = save({name: np.ascontiguousarray(values) for name, values in tensors.items()})
        (folder / "segmentation.safetensors").write_bytes(content)  # the library's own file would be for its owner only
        seconds = self.seconds | {"write": round(time.perf_counter() - began, 4)}
        summary = self.summary() | {"seconds": seconds, "files": list_checksums(folder)}
        (folder / "result.json").write_text(seal(summary), encoding="utf-8")

    @property
    def _is_exact(self) -> bool:
        return self.labels.size <= EXACT_PIXELS

    def summary(self) -> dict[str, Any]:
        """What result.json holds: settings, model fingerprint, precision, seconds, sizes and versions."""
        return {
            "format": FORMAT,
            "image": _digest(self.image),
            "masks": self.masks,
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "grid": list(self.low_resolution_masks.shape),
            "model": self.model,
            "seconds": self.seconds,
            "colour_gain": self.colour_gain,
            **_origin(self.config, self.fingerprint, self.precision),
        }

    @classmethod
    def load(cls, folder: str | Path, image: str | Path | Image.Image | np.ndarray | None = None) -> Segmentation:
        """Read what `save` wrote, every file checked against its checksum.

        Args:
            folder: of a result.
            image: the image that was segmented. When None, the one in the folder: the same pixels up to a megapixel,
                a JPEG of them above.

        Raises:
            InputError: a file is missing or damaged (each is named), a folder of another format, or another image.
        """
        folder = Path(folder)
        try:
            summary = read_summary(folder)
            if damage := find_damage(folder, summary["files"]):
                raise InputError("; ".join(damage))
            kept = folder / ("image.png" if (folder / "image.png").exists() else "image.jpg")
            pixels = load_image(kept if image is None else image)
            if image is not None and _digest(pixels) != summary["image"]:
                raise InputError("the image given is not the one that was segmented")
            tensors = load((folder / "segmentation.safetensors").read_bytes())
            maps = tensors.get("difference_maps")
            return cls(
                image=pixels,
                labels=load_labels(folder / "labels.png"),
                low_resolution_masks=tensors["low_resolution_masks"],
                maps=None if maps is None else maps.astype(np.float32),
                responses=tensors["responses"],
                mask_embeddings=tensors["mask_embeddings"],
                linkage=tensors["linkage"],
                config=EmerDiffConfig.from_dict(summary["configuration"]),
                model=summary["model"],
                fingerprint=summary["fingerprint"],
                precision=summary["precision"],
                seconds=summary["seconds"],
                colour_gain=summary.get("colour_gain"),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"{folder}: no readable segmentation in it ({error})") from error

    def to_coco(self, file_name: str = "image", names: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The segments as a COCO object, encoded by runs; see `export.to_coco`."""
        from emerdiff_probe.segmentation.export import to_coco

        return to_coco([(file_name, self, names or {})])

    def to_xarray(self) -> xr.Dataset:
        """The arrays with named axes, and the settings; see `export.to_xarray`."""
        from emerdiff_probe.segmentation.export import to_xarray

        return to_xarray(self)

    def to_table(self, names: Mapping[int, str] | None = None) -> pd.DataFrame:
        """A row a segment; see `summarise_segments`; with a column `name` where there are names."""
        import pandas as pd

        table = pd.DataFrame(summarise_segments(self))
        if names is not None:
            table.insert(1, "name", [names.get(number, "") for number in table["id"]])
        return table

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.side_by_side().save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        """The picture under the notes, where there are any."""
        if not self.notes:
            return None
        picture = base64.b64encode(self._repr_png_()).decode()
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f'{notes}<img src="data:image/png;base64,{picture}">'

    def __repr__(self) -> str:
        height, width = self.labels.shape
        notes = "".join(f"; {note}" for note in self.notes)
        return f"Segmentation({self.masks} masks, {height} x {width} pixels, model {self.model!r}{notes})"


def summarise_segments(result: Segmentation) -> list[dict[str, Any]]:
    """What is known of every segment that has pixels.

    Returns:
        `id` of its mask, `area` in pixels, box as `left`, `top`, `width`, `height` in pixels, and `mean_response`, the
        mean of its mask's difference map over it.
    """
    one = np.uint16(1) if result.masks < 2**16 else np.int64(1)  # as narrow as can be: photographs are large
    boxes = find_objects(result.labels + one)
    areas = count_labels(result.labels, len(boxes))
    return [
        {
            "id": number,
            "area": int(areas[number]),
            "left": box[1].start,
            "top": box[0].start,
            "width": box[1].stop - box[1].start,
            "height": box[0].stop - box[0].start,
            "mean_response": float(result.responses[number]),
        }
        for number, box in enumerate(boxes)
        if box is not None
    ]


def _shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """A picture (height, width, 3) uint8 whose longer side has at most so many pixels."""
    small = Image.fromarray(picture)
    small.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return np.array(small)


def _digest(image: np.ndarray) -> dict[str, Any]:
    """What tells an image from another: its size and the SHA-256 of its pixels."""
    return {"size": list(image.shape[:2]), "sha256": hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()}


def read_summary(folder: str | Path) -> dict[str, Any]:
    """What result.json of a folder holds; see `Segmentation.summary`.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / "result.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    try:
        summary = unseal(text)
    except InputError as error:
        if '"configuration"' in text and '"format"' not in text:
            raise InputError(f"{path}: of format 1, an earlier version's; accepted: {FORMAT}, segment again") from error
        raise InputError(f"{path}: {error}") from error
    if summary.get("format") != FORMAT:
        raise InputError(f"{path}: of format {summary.get('format')}; accepted: {FORMAT}")
    return summary


def require_replaceable(folder: str | Path) -> None:
    """Refuse a folder that `Segmentation.save` would not write.

    Raises:
        InputError: it exists and holds something else, or is or holds the current one.
    """
    folder = Path(folder)
    place = resolve(folder)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "result.json").exists():
        raise InputError(f"{folder} exists and holds no segmentation; accepted: a new, empty or earlier result folder")
    if Path.cwd().is_relative_to(place):  # replaced, it would leave the process in a deleted folder
        raise InputError(f"{folder} is or holds the current folder, which cannot be replaced; accepted: another folder")


def is_finished(
    folder: str | Path,
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    config: EmerDiffConfig,
    *,
    maps: bool = False,
) -> bool:
    """Whether a folder holds what `segment` would find: of the same pixels, weights, settings, precision and versions.

    It does not where a file is missing or damaged, where `maps` are asked for that it lacks, or where the image cannot
    be read.
    """
    folder = Path(folder)
    try:
        summary = read_summary(folder)
        origin = json.loads(json.dumps(_origin(config.resolve(model), model.fingerprint, model_precision(model))))
        return (
            summary == summary | origin
            and not find_damage(folder, summary["files"])
            and (not maps or "difference_maps" in load((folder / "segmentation.safetensors").read_bytes()))
            and summary["image"] == _digest(load_image(image))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return False


def _origin(config: EmerDiffConfig, fingerprint: str, precision: str) -> dict[str, Any]:
    """What a result depends on, but for the image."""
    return {
        "fingerprint": fingerprint,
        "precision": precision,
        "configuration": config.to_dict(),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Of this package and those that its results depend on."""
    return {name: version(name) for name in ("emerdiff_probe", "torch", "diffusers", "scikit-learn")}


def model_precision(model: ProbeModel) -> str:
    """Of the denoiser, as results say it: "float32", "float16" or "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")
