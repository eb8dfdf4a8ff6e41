"""The whole of EmerDiff, from an image to a `Segmentation`; the only orchestrator."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emerdiff_probe.checks import is_integer, is_one_of
from emerdiff_probe.correspondence import Modulation, Readout, Space, assign
from emerdiff_probe.criteria import CRITERIA, accepted_clusters, find_criterion
from emerdiff_probe.diffusion import make_scheduler, require_on_grid
from emerdiff_probe.errors import InputError
from emerdiff_probe.features import mask_embeddings
from emerdiff_probe.hierarchy import SegmentTree, likeness_linkage, merged_maps
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
from emerdiff_probe.interventions import AttentionKind, InjectAttention, Placement
from emerdiff_probe.inversion import Inversion
from emerdiff_probe.layers import Site, coarsest_blocks, find_site
from emerdiff_probe.models import Family, ProbeModel
from emerdiff_probe.probe import ProbedImage, require_draws


@dataclass(frozen=True)
class EmerDiffConfig:
    """Every choice of the method. The defaults are the paper's for Stable Diffusion v1.4 where it states them.

    Attributes:
        clusters: number of masks K, 1 or more; or "auto", or the name of a criterion in `CRITERIA` that finds it.
        feature_site: name of the site whose features are clustered.
        feature_timestep: the paper's t_f.
        feature_draws: draws of the inversion's noise that features are averaged over, 1 or more (the paper's is 1).
        layer: name of a site of the attention layer that is modulated.
        modulate_at: the paper's t_m; the inversion starts there.
        strength: the paper's lambda, above 0.
        placement: offset "after" or "before" the layer's output projection.
        injection: kinds of attention layers whose attention is injected; empty, or None, for none.
        smoothing: standard deviation in pixels of the Gaussian over difference maps (width is ours, not the paper's).
        steps: of the scheduler's grid.
        inversion: "ddpm" (edit-friendly, the paper's) or "ddim".
        prompt: text for the denoiser; the paper's is empty.
        seed: of the inversion's noise and of k-means.
        denoising_steps, skip_after, compare, one_sided, sign_patterns, shared_levels: approximations, see `Readout`;
            the defaults are exact.

    Raises:
        InputError: a value out of range.
    """

    clusters: int | str = 20
    feature_site: str = "up16.cross0.query"
    feature_timestep: int = 1
    feature_draws: int = 1
    layer: str = "up16.cross2.output"
    modulate_at: int = 281
    strength: float = 10.0
    placement: Placement = "after"
    injection: tuple[AttentionKind, ...] = ("self", "cross")
    smoothing: float = 2.0
    steps: int = 50
    inversion: Inversion = "ddpm"
    prompt: str = ""
    seed: int = 0
    denoising_steps: int | None = None
    skip_after: int | None = None
    compare: Space = "pixels"
    one_sided: bool = False
    sign_patterns: int | Literal["auto"] | None = None
    shared_levels: int = 0

    def __post_init__(self) -> None:
        for known in fields(self):
            value = getattr(self, known.name)
            if isinstance(value, np.generic):  # a loop over np.arange gives them, and JSON does not take them
                object.__setattr__(self, known.name, value.item())
        kinds = () if self.injection is None else self.injection
        listed = isinstance(kinds, Collection) and all(is_one_of(kind, ("self", "cross")) for kind in kinds)
        if listed:
            object.__setattr__(self, "injection", tuple(kinds))
        criteria = ("auto", *CRITERIA)
        checks: list[tuple[str, bool, str]] = [
            ("clusters", is_integer(self.clusters, 1) or is_one_of(self.clusters, criteria), accepted_clusters()),
            ("feature_site", isinstance(self.feature_site, str), "the name of a site"),
            ("layer", isinstance(self.layer, str), "the name of a site"),
            ("feature_timestep", is_integer(self.feature_timestep, 0), "an integer, 0 or more"),
            ("modulate_at", is_integer(self.modulate_at, 0), "an integer, 0 or more"),
            ("prompt", isinstance(self.prompt, str), "text"),
            ("steps", is_integer(self.steps, 1), "an integer, 1 or more"),
            ("seed", is_integer(self.seed, 0), "an integer, 0 or more"),
            ("strength", _is_finite(self.strength) and self.strength > 0, "a finite number above 0"),
            ("smoothing", _is_finite(self.smoothing) and self.smoothing >= 0, "a finite number, 0 or more"),
            ("placement", is_one_of(self.placement, ("after", "before")), "'after', 'before'"),
            ("inversion", is_one_of(self.inversion, ("ddpm", "ddim")), "'ddpm', 'ddim'"),
            ("injection", listed, "any of 'self', 'cross', or None"),
        ]
        for name, holds, accepted in checks:
            if not holds:
                raise InputError(f"{name} {getattr(self, name)!r}; accepted: {accepted}")
        require_draws(self.feature_draws, self.inversion)
        _ = self.readout  # refuses values out of range

    @property
    def readout(self) -> Readout:
        """How the response to a modulation is read."""
        return Readout(**{known.name: getattr(self, known.name) for known in fields(Readout)})

    @property
    def given_clusters(self) -> int:
        """The number of masks, for what takes no other.

        Raises:
            InputError: it is to be found for every image.
        """
        if isinstance(self.clusters, str):
            raise InputError(f"clusters {self.clusters!r}; accepted here: an integer, 1 or more")
        return self.clusters

    def probe(self, model: ProbeModel, image: np.ndarray, *, start: int | None = None, scale: int = 1) -> ProbedImage:
        """An image inverted as these settings say, up to the highest timestep that they need.

        Args:
            model: to probe.
            image: an array that `load_image` takes.
            start: another highest timestep.
            scale: times which the image is run larger than the model's native size.

        Raises:
            TimestepError: the highest timestep is not on the grid.
        """
        return ProbedImage(
            model,
            image,
            start=max(self.modulate_at, self.feature_timestep) if start is None else start,
            scale=scale,
            steps=self.steps,
            method=self.inversion,
            prompt=self.prompt,
            seed=self.seed,
            draws=self.feature_draws,
        )

    @classmethod
    def for_model(cls, model: ProbeModel, **changes: Any) -> Self:
        """The best known settings for a model, with changes: the paper's, or for the pocket model its measured ones.

        Layers are named for the model's own grid: a quarter of Stable Diffusion's latent grid, half of the pocket
        model's.
        """
        divisor, settings = PRESETS[model.family]
        resolution = int(model.denoiser.config.sample_size) // divisor
        unknown = set(changes) - {known.name for known in fields(cls)}
        if unknown:
            raise InputError(f"no such setting: {', '.join(sorted(unknown))}")
        settings = {**LAYERS, **settings}
        settings |= {name: settings[name].format(resolution=resolution) for name in LAYERS}
        if changes.get("inversion") == "ddim":
            settings["feature_draws"] = 1  # it draws no noise
        return cls(**{**settings, **changes})

    @classmethod
    def fast(cls, model: ProbeModel, **changes: Any) -> Self:
        """The settings of `for_model` with the approximations of `FAST`, and changes."""
        return cls.for_model(model, **{**FAST, **changes})


FAST: dict[str, Any] = {
    "skip_after": 2,
    "compare": "latents",
    "one_sided": True,
    "sign_patterns": "auto",
    "shared_levels": 1,
}
"""Approximations of the fast mode: the fastest of those that `python -m benchmarks.fast_modes` found to keep 98% of
the pocket model's mIoU."""

LAYERS = {"feature_site": "up{resolution}.cross0.query", "layer": "up{resolution}.cross2.output"}
"""The paper's layers, in the block of a model's own resolution."""

PRESETS: dict[Family, tuple[int, dict[str, Any]]] = {
    "sd1": (4, {}),
    "sd2": (4, {}),
    "sdxl": (4, {}),
    "pocket": (
        2,
        {
            "clusters": 12,
            "feature_site": "up{resolution}.self1.query",
            "feature_timestep": 301,
            "feature_draws": 16,
            "layer": "up{resolution}.cross1.output",
            "modulate_at": 601,
            "strength": 300.0,
            "smoothing": 3.0,
            "steps": 20,
        },
    ),
}
"""For every family: latent cells a cell of the probed grid along one side, and what differs from the defaults."""


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and bool(np.isfinite(value))


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


class _Stopwatch:
    """Seconds of every stage; waits for the device, so that work is charged to its own stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = round(time.perf_counter() - began, 4)


def resolve_modulation(model: ProbeModel, config: EmerDiffConfig) -> Modulation:
    """The configuration's modulation, with its layer found in the model."""
    injection = InjectAttention(config.injection) if config.injection else None
    return Modulation(
        find_site(model, config.layer),
        config.strength,
        config.modulate_at,
        config.placement,
        injection,
        readout=config.readout,
    )


def segment(
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    config: EmerDiffConfig | None = None,
    *,
    progress: bool = False,
) -> Segmentation:
    """Segment one image by EmerDiff (Namekata et al. 2024).

    The image is processed with its shorter side at the model's native size, and difference maps are brought back to
    the image's own size before the labels are read off.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image or an array; see `load_image`.
        config: settings; `EmerDiffConfig.for_model(model)` when None.
        progress: show a progress bar over denoiser passes.

    Raises:
        InputError: a bad image, or more clusters than the image has cells.
        SiteError, TimestepError: a layer or timestep that the model does not have. All before any model runs.
    """
    config = config or EmerDiffConfig.for_model(model)
    pixels = load_image(image)
    check_config(model, config, *model.working_size(*pixels.shape[:2]))
    stage = _Stopwatch(model.device)
    with stage("invert"):
        probed = config.probe(model, pixels)
    result = segment_probed(probed, config, progress=progress)
    return replace(result, seconds=stage.seconds | result.seconds)


def segment_probed(probed: ProbedImage, config: EmerDiffConfig, *, progress: bool = False) -> Segmentation:
    """As `segment`, of an image that is inverted already, whatever the configuration says about the inversion.

    Raises:
        InputError, SiteError, TimestepError: as in `segment`; also for a timestep that the trajectory does not pass.
    """
    model, pixels = probed.model, probed.image
    height, width = pixels.shape[:2]
    feature_site, modulation = check_config(model, config, *(side * model.factor for side in probed.latents.shape[-2:]))
    criterion = find_criterion(config.clusters)
    stage = _Stopwatch(model.device)
    with stage("features"):
        features = probed.features(feature_site, config.feature_timestep)
    with stage("cluster"):
        count = criterion.clusters(features, probed.grid(feature_site), seed=config.seed)
        coarse = probed.low_resolution_masks(feature_site, count, config.feature_timestep)
    with stage("modulate"):
        maps = probed.difference_maps(coarse, modulation, smoothing=config.smoothing, progress=progress)
    with stage("assign"):
        groups = criterion.merged(maps)
        linkage = likeness_linkage(merged_maps(maps, groups))
        maps = merged_maps(_resize(maps, height, width), groups)
        coarse = groups[coarse]
        labels = assign(maps).numpy()
    return Segmentation(
        image=pixels,
        labels=labels.astype(np.uint8 if len(maps) <= 256 else np.uint16),
        low_resolution_masks=coarse,
        difference_maps=maps.numpy(),
        mask_embeddings=mask_embeddings(features, coarse).numpy(),
        linkage=linkage,
        config=config,
        model=model.name,
        fingerprint=model.fingerprint,
        precision=_precision(model),
        seconds=stage.seconds,
    )


def segment_all(
    model: ProbeModel,
    images: Sequence[str | Path | Image.Image | np.ndarray],
    config: EmerDiffConfig | None = None,
    *,
    progress: bool = False,
) -> Iterator[Segmentation]:
    """Segment images of any sizes one after the other; every one is read and checked before the first is run.

    One at a time is held: each is read again when its turn comes.
    """
    config = config or EmerDiffConfig.for_model(model)
    for height, width in {model.working_size(*load_image(image).shape[:2]) for image in images}:
        check_config(model, config, height, width)
    return (segment(model, image, config, progress=progress) for image in images)


def check_config(model: ProbeModel, config: EmerDiffConfig, height: int, width: int) -> tuple[Site, Modulation]:
    """The feature site and the modulation that a configuration names, if the model can run it at this size.

    Raises:
        SiteError, TimestepError, InputError: as in `segment`.
    """
    feature_site = find_site(model, config.feature_site)
    if feature_site.kind == "cross" and feature_site.part in {"key", "value"}:
        raise InputError(f"{feature_site} holds text tokens, not cells; accepted: any site with a grid")
    modulation = resolve_modulation(model, config)
    modulation.variant(torch.zeros(1, 1), 1.0)  # refuses a layer that cannot be modulated
    _, grid = make_scheduler(model, config.steps)
    require_on_grid(config.feature_timestep, grid)
    require_on_grid(config.modulate_at, grid)
    single = config.denoising_steps == 1 or config.modulate_at == grid[-1]
    if coarsest_blocks(model, config.shared_levels) and single:
        raise InputError(f"shared_levels {config.shared_levels} in a single denoising step; accepted: 0, or more steps")
    rows, columns = feature_site.grid(height // model.factor, width // model.factor)
    if not isinstance(config.clusters, str) and config.clusters > rows * columns:
        raise InputError(
            f"{config.clusters} clusters, but {feature_site.name} has {rows} x {columns} cells at "
            f"{height} x {width} pixels; accepted: 1 to {rows * columns}"
        )
    return feature_site, modulation


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[1:] == (height, width):
        return maps
    return nn.functional.interpolate(maps[None], size=(height, width), mode="bilinear")[0]
