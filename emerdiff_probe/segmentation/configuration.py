"""Every choice of the method: a value made of parts, what a model fills in, and checks of it against a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

import numpy as np
import torch

from emerdiff_probe.errors import InputError, ProbeWarning, SiteError
from emerdiff_probe.interventions import InjectAttention
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage, require_draws
from emerdiff_probe.reading.correspondence import Modulation
from emerdiff_probe.reading.features import finest_grid
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.criteria import CRITERIA, accepted_clusters
from emerdiff_probe.segmentation.presets import Preset, adding_preset, approximations, find_preset, paper_preset
from emerdiff_probe.segmentation.settings import OPEN, Settings
from emerdiff_probe.sites import Site, coarsest_blocks, find_site, list_sites
from emerdiff_probe.trajectories.trajectory import require_on_grid


@dataclass(frozen=True)
class EmerDiffConfig(Settings):
    """Every choice of the method. What is None is left open: `resolve` fills it in, and nothing else.

    Every leaf has one option name, in `OPTIONS`: its own, with ``feature_`` before those of `features`. `change`,
    `for_model`, `fast`, `draft`, `paper` and the command line take these names; `change` also takes whole parts.

    Attributes:
        clusters: number of masks K, 1 or more; or "auto", or the name of a criterion in `CRITERIA` that finds it.
        features: which features are clustered.
        modulation: what is pushed, when and how.
        readout: how the response is read, exactly or by approximations.
        inversion: how the image is inverted.
        smoothing: standard deviation in pixels of the Gaussian over difference maps (width is ours, not the paper's).
        sharpen: how labels take the picture's own borders: "none" (the paper's), "wls", "bilateral" or "crf"; see
            `read_labels`.
        seed: of the inversion's noise, of k-means and of the readout's sign patterns.

    Raises:
        InputError: a value out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        criteria = ("auto", *CRITERIA)
        if isinstance(self.clusters, str) and self.clusters not in criteria:
            raise InputError(f"clusters {self.clusters!r}; accepted: {accepted_clusters()}")
        if self.features.draws is not OPEN and self.inversion.method is not OPEN:
            require_draws(self.features.draws, self.inversion.method)

    @classmethod
    def for_model(cls, model: ProbeModel, **options: Any) -> Self:
        """The best known settings for a model, under these options."""
        return cls().change(**options).resolve(model)

    @classmethod
    def fast(cls, model: ProbeModel, **options: Any) -> Self:
        """The settings of `for_model`, several times as fast and nearly as good, under these options."""
        return cls._approximate("fast", model, options)

    @classmethod
    def draft(cls, model: ProbeModel, **options: Any) -> Self:
        """The settings of `for_model`, as fast as two denoising steps are, under these options."""
        return cls._approximate("draft", model, options)

    @classmethod
    def _approximate(cls, mode: str, model: ProbeModel, options: dict[str, Any]) -> Self:
        return cls.for_model(model, **({} if "readout" in options else approximations(mode, model)) | options)

    @classmethod
    def paper(cls, model: ProbeModel, **options: Any) -> Self:
        """The paper's settings, its layers in the block of this model's own resolution, under these options."""
        return cls().change(**options)._fill_from(model, paper_preset(model))

    @classmethod
    def for_atlas(cls, model: ProbeModel, **options: Any) -> Self:
        """The settings of `for_model`, pushed where answers to single cells add up, as an atlas needs it."""
        return cls().change(**options)._fill_from(model, adding_preset(model))

    def resolve(self, model: ProbeModel, timesteps: Sequence[int] | None = None) -> Self:
        """A copy in which nothing is left open: the best known settings for a model fill in what was.

        Args:
            model: whose preset it is.
            timesteps: what open timesteps are chosen from, the nearest to the preset's; the scheduler's grid when None.

        Raises:
            InputError: a number of steps that the scheduler does not take.
        """
        return self if self.is_resolved else self._fill_from(model, find_preset(model), timesteps)

    def _fill_from(self, model: ProbeModel, preset: Preset, timesteps: Sequence[int] | None = None) -> Self:
        given, best = self.options(), preset.options
        if not {"feature_sites", "layer"} <= set(given):
            for note in preset.notes:
                warnings.warn(note, ProbeWarning, stacklevel=4)
        filled = dict(best)
        if not {"feature_timesteps", "modulate_at"} <= set(given):
            grid = timesteps or model.schedule(given.get("steps", best["steps"])).timesteps
            filled["modulate_at"] = _nearest(grid, best["modulate_at"])
            filled["feature_timesteps"] = tuple(
                dict.fromkeys(_nearest(grid, each) for each in best["feature_timesteps"])
            )
        if self.readout is OPEN:
            filled |= asdict(Readout())
        return self.fill(filled)

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
        config = self.resolve(model)
        return ProbedImage(
            model,
            image,
            start=config.start if start is None else start,
            scale=scale,
            steps=config.inversion.steps,
            method=config.inversion.method,
            prompt=config.inversion.prompt,
            seed=config.seed,
            draws=config.features.draws,
        )


def find_feature_sites(model: ProbeModel, config: EmerDiffConfig) -> tuple[Site, ...]:
    """The sites that a configuration clusters, each once, in the order in which they are named.

    Raises:
        SiteError: the model has no site of a name, or of a pattern.
        InputError: keys and values of cross-attention, which hold text tokens.
    """
    found: dict[Site, None] = {}
    for name in config.resolve(model).features.sites:
        matching = [site for site in list_sites(model) if fnmatchcase(site.name, name) and site.holds_cells]
        if not matching or not any(letter in name for letter in "*?["):
            matching = [_find_named(model, name, "--feature-layer")]
        for site in matching:
            if not site.holds_cells:
                raise InputError(f"{site} holds text tokens, not cells; accepted: any site with a grid")
            found[site] = None
    return tuple(found)


def resolve_modulation(model: ProbeModel, config: EmerDiffConfig) -> Modulation:
    """The configuration's modulation, with its layer found in the model."""
    config = config.resolve(model)
    settings = config.modulation
    return Modulation(
        _find_named(model, settings.layer, "--layer"),
        settings.strength,
        settings.modulate_at,
        settings.placement,
        InjectAttention(settings.injection) if settings.injection else None,
        readout=config.readout,
        seed=config.seed,
    )


def check_config(
    model: ProbeModel, config: EmerDiffConfig, height: int, width: int
) -> tuple[tuple[Site, ...], Modulation]:
    """The feature sites and the modulation that a configuration names, if the model can run it at this size.

    Raises:
        SiteError, TimestepError, InputError: as in `segment`.
    """
    config = config.resolve(model)
    sites = find_feature_sites(model, config)
    modulation = resolve_modulation(model, config)
    modulation.variant(torch.zeros(1, 1), 1.0)  # refuses a layer that cannot be modulated
    grid = model.schedule(config.inversion.steps).timesteps
    for timestep in (*config.features.timesteps, modulation.modulate_at):
        require_on_grid(timestep, grid)
    single = config.readout.denoising_steps == 1 or modulation.modulate_at == grid[-1]
    levels = config.readout.shared_levels
    if coarsest_blocks(model, levels) and single:
        raise InputError(f"shared_levels {levels} in a single denoising step; accepted: 0, or more steps")
    rows, columns = finest_grid(sites, height // model.factor, width // model.factor)
    if not isinstance(config.clusters, str) and config.clusters > rows * columns:
        raise InputError(
            f"{config.clusters} clusters, but {', '.join(site.name for site in sites[:3])} "
            f"{'has' if len(sites) == 1 else 'have'} {rows} x {columns} cells at "
            f"{height} x {width} pixels; accepted: 1 to {rows * columns}"
        )
    return sites, modulation


def _find_named(model: ProbeModel, name: str, option: str) -> Site:
    """The site of a name or a path; an error says which option names another."""
    try:
        return find_site(model, name)
    except SiteError as error:
        raise SiteError(f"{error}; on the command line, {option} names another") from error


def _nearest(grid: Sequence[int], timestep: int) -> int:
    return min(grid, key=lambda other: abs(other - timestep))
