"""What segmentation finds in an image: labels, maps, tree; pictures of it, saving and loading."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import (
    colour_labels,
    contact_sheet,
    contours,
    heatmap,
    load_image,
    load_labels,
    overlay,
    save_labels,
    written,
)
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.tree import SegmentTree


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `segment` found in one image.

    Attributes:
        image: (height, width, 3) uint8, as given.
        labels: (height, width) integers in 0 … K - 1.
        low_resolution_masks: (grid_height, grid_width) integers, the k-means clusters, or unions of them where the
            criterion for their number merged some.
        difference_maps: (mask, height, width) float32; `labels` is their argmax.
        mask_embeddings: (mask, channel) float32, the mean feature inside every low-resolution mask.
        linkage: (mask - 1, 4) float64, SciPy's linkage matrix of the difference maps by their cosine; see `tree`.
        config: every setting.
        model: name of the model; fingerprint: of its weights; precision: of the denoiser.
        seconds: of every stage.
    """

    image: np.ndarray
    labels: np.ndarray
    low_resolution_masks: np.ndarray
    difference_maps: np.ndarray
    mask_embeddings: np.ndarray
    linkage: np.ndarray
    config: EmerDiffConfig
    model: str
    fingerprint: str
    precision: str
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def masks(self) -> int:
        """Number of masks, K (or fewer, where the image has fewer distinct cells)."""
        return len(self.difference_maps)

    @cached_property
    def tree(self) -> SegmentTree:
        """The segments merged step by step into larger ones; `tree.cut(k)` gives the labels of any level."""
        return SegmentTree(self.labels, self.linkage)

    def overlay(self, opacity: float = 0.55, names: Mapping[int, str] | None = None) -> Image.Image:
        """Label colours over the image, borders in white; with the names of labels, such as `ScoreMap.names` gives."""
        return Image.fromarray(written(overlay(self.image, self.labels, opacity), self.labels, names or {}))

    def contours(self) -> Image.Image:
        """Borders between labels over the image."""
        return Image.fromarray(contours(self.image, self.labels))

    def side_by_side(self) -> Image.Image:
        """Image, low-resolution masks, segmentation and contours in a row."""
        height, width = self.labels.shape
        coarse = Image.fromarray(colour_labels(self.low_resolution_masks)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        pictures = [self.image, np.array(coarse), np.array(self.overlay(1.0)), np.array(self.contours())]
        return contact_sheet(pictures, ["image", "low-resolution masks", "EmerDiff", "contours"])

    def difference_sheet(self) -> Image.Image:
        """The image and every difference map under its mask's number, all on one scale."""
        top = float(self.difference_maps.max())
        pictures = [self.image, *(heatmap(values, top) for values in self.difference_maps)]
        titles = ["image", *(f"mask {i}" for i in range(self.masks))]
        return contact_sheet(pictures, titles, columns=7)

    def save(self, folder: str | Path) -> Path:
        """Write the result as open formats; a folder is written as a whole or not at all, replacing an older one.

        Files: image.png, labels.png (indexed), overlay.png, contours.png, side_by_side.png, difference_maps.png,
        levels.png (of the tree), segmentation.safetensors (difference_maps, low_resolution_masks, mask_embeddings,
        linkage) and result.json.

        Raises:
            InputError: the folder exists and holds something else, or is or holds the current one.
        """
        require_replaceable(folder)
        place = Path(folder).resolve()  # of "out/.." the name is not ".."
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
            partial = Path(scratch) / place.name
            partial.mkdir()
            Image.fromarray(self.image).save(partial / "image.png")
            save_labels(self.labels, partial / "labels.png")
            self.overlay().save(partial / "overlay.png")
            self.contours().save(partial / "contours.png")
            self.side_by_side().save(partial / "side_by_side.png")
            self.difference_sheet().save(partial / "difference_maps.png")
            self.tree.levels(self.image).save(partial / "levels.png")
            tensors = {
                "difference_maps": torch.from_numpy(self.difference_maps).contiguous(),
                "low_resolution_masks": torch.from_numpy(self.low_resolution_masks).contiguous(),
                "mask_embeddings": torch.from_numpy(self.mask_embeddings).contiguous(),
                "linkage": torch.from_numpy(self.linkage).contiguous(),
            }
            save_file(tensors, partial / "segmentation.safetensors")
            (partial / "result.json").write_text(json.dumps(self.summary(), indent=2) + "\n")
            if place.exists():
                place.rename(Path(scratch) / "old")
            partial.rename(place)
        return Path(folder)

    def summary(self) -> dict[str, Any]:
        """What result.json holds: settings, model fingerprint, precision, seconds, sizes and versions."""
        return {
            "masks": self.masks,
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "grid": list(self.low_resolution_masks.shape),
            "model": self.model,
            "seconds": self.seconds,
            **_origin(self.config, self.fingerprint, self.precision),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Segmentation:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "result.json").read_text())
            tensors = load_file(folder / "segmentation.safetensors")
            return cls(
                image=load_image(folder / "image.png"),
                labels=load_labels(folder / "labels.png"),
                low_resolution_masks=tensors["low_resolution_masks"].numpy(),
                difference_maps=tensors["difference_maps"].numpy(),
                mask_embeddings=tensors["mask_embeddings"].numpy(),
                linkage=tensors["linkage"].numpy(),
                config=EmerDiffConfig(**summary["configuration"]),
                model=summary["model"],
                fingerprint=summary["fingerprint"],
                precision=summary["precision"],
                seconds=summary["seconds"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"{folder}: no readable segmentation in it ({error})") from error

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.side_by_side().save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({self.masks} masks, {height} x {width} pixels, model {self.model!r})"


def require_replaceable(folder: str | Path) -> None:
    """Refuse a folder that `Segmentation.save` would not write.

    Raises:
        InputError: it exists and holds something else, or is or holds the current one.
    """
    folder = Path(folder)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "result.json").is_file():
        raise InputError(f"{folder} exists and holds no segmentation; accepted: a new, empty or earlier result folder")
    if Path.cwd().is_relative_to(folder.resolve()):  # replaced, it would leave the process in a deleted folder
        raise InputError(f"{folder} is or holds the current folder, which cannot be replaced; accepted: another folder")


def is_finished(
    folder: str | Path,
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    config: EmerDiffConfig,
) -> bool:
    """Whether a folder holds what `segment` would find: of the same pixels, weights, settings, precision and versions.

    It does not hold what would be found in an image that cannot be read.
    """
    try:
        summary = json.loads((Path(folder) / "result.json").read_text())
        origin = json.loads(json.dumps(_origin(config, model.fingerprint, _precision(model))))
        before = Path(folder) / "image.png"
        return summary == summary | origin and np.array_equal(load_image(before), load_image(image))
    except (OSError, ValueError, TypeError, InputError):
        return False


def _origin(config: EmerDiffConfig, fingerprint: str, precision: str) -> dict[str, Any]:
    """What a result depends on, but for the image."""
    return {
        "fingerprint": fingerprint,
        "precision": precision,
        "configuration": asdict(config),
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Of this package and those that its results depend on."""
    return {name: version(name) for name in ("emerdiff_probe", "torch", "diffusers", "scikit-learn")}


def _precision(model: ProbeModel) -> str:
    return str(model.dtype).removeprefix("torch.")
