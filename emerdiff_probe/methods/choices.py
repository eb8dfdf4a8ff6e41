"""Choices that rivals leave to the model: the layer and the timestep that come nearest to a paper's."""

from __future__ import annotations

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.sites import Site, find_site, list_sites


def feature_sites(model: ProbeModel, *names: str) -> tuple[Site, ...]:
    """The sites of these names or patterns; without any, those whose features EmerDiff clusters.

    Raises:
        SiteError: the model has no such site.
        InputError: keys and values of cross-attention, which hold text tokens.
    """
    return find_feature_sites(model, EmerDiffConfig().change(feature_sites=names or None))


def resolve_for(probed: ProbedImage, config: EmerDiffConfig) -> EmerDiffConfig:
    """Settings in which what is left open is the best known for the model, as far as the probed image has it."""
    inverted = config.fill({"steps": probed.trajectory.steps, "feature_draws": probed.draws})
    return inverted.resolve(probed.model, probed.trajectory.timesteps)


def self_attention_sites(model: ProbeModel, names: tuple[str, ...] | None) -> list[Site]:
    """Query sites of the self-attention layers of these names, or of every one; in the order of execution.

    Raises:
        SiteError: the model has no such site.
        InputError: a site that is no part of a self-attention layer, or no layer at all.
    """
    every = list_sites(model, kind="self", part="query")
    if names is None:
        return list(every)
    layers = {}
    for site in (find_site(model, name) for name in names):
        if site.kind != "self":
            raise InputError(f"{site} is no self-attention layer; accepted: {', '.join(each.name for each in every)}")
        layers[site.attention] = site
    if not layers:
        raise InputError("no self-attention layer given; accepted: one or more, or None for all")
    return [site for site in every if site.attention in layers]


def native_grid(model: ProbeModel, *sites: Site) -> tuple[int, int]:
    """Height and width of the finest grid of some sites, for an image of the model's native size."""
    side = model.native_size // model.factor
    return max((site.grid(side, side) for site in sites), key=lambda sides: sides[0] * sides[1])


def middle_timestep(config: EmerDiffConfig) -> int:
    """The middle one of the timesteps that EmerDiff clusters at, of two the earlier, for what takes one alone."""
    timesteps = sorted(config.features.timesteps)
    return timesteps[(len(timesteps) - 1) // 2]


def timestep_near(probed: ProbedImage, timestep: int | None, preferred: int) -> int:
    """The timestep that was asked for, or the one of the trajectory that is nearest to a preferred one."""
    if timestep is not None:
        return timestep
    return min(probed.trajectory.timesteps, key=lambda other: abs(other - preferred))
