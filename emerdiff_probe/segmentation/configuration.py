"""Every choice of the method, its presets for models, and checks of it against a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import torch

from emerdiff_probe.checks import is_integer, is_one_of
from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import AttentionKind, InjectAttention, Placement
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage, require_draws
from emerdiff_probe.reading.correspondence import Modulation, Readout, Space
from emerdiff_probe.segmentation.criteria import CRITERIA, accepted_clusters
from emerdiff_probe.sites import Site, coarsest_blocks, find_site
from emerdiff_probe.trajectories.inversion import Inversion
from emerdiff_probe.trajectories.trajectory import require_on_grid


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
        resolution = model.latent_side // divisor
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
PRESETS: dict[str, tuple[int, dict[str, Any]]] = {
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
    grid = model.schedule(config.steps).timesteps
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
