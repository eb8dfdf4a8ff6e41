"""The best known settings of every family of models, by the names of `EmerDiffConfig`'s options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from emerdiff_probe.models.addresses import ATTENTION_KINDS
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.sites import Site, default_sites, list_sites

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "clusters": 20,
        "feature_timesteps": (1,),
        "feature_draws": 1,
        "modulate_at": 281,
        "strength": 10.0,
        "placement": "after",
        "injection": ("self", "cross"),
        "smoothing": 2.0,
        "sharpen": "none",
        "steps": 50,
        "method": "ddpm",
        "prompt": "",
        "seed": 0,
    }
)
"""The paper's for Stable Diffusion v1.4, where it states them; its number of clusters and its smoothing are ours."""
FAST: dict[str, Any] = {
    "skip_after": 2,
    "compare": "latents",
    "one_sided": True,
    "sign_patterns": "auto",
    "shared_levels": 1,
}
"""Approximations of the fast mode: the fastest of those that `python -m benchmarks.fast_modes` found to keep 98% of
the pocket model's mIoU."""
KNOWN = ("sd1", "sd2", "sdxl", "pocket")
"""Families that settings are known for; others get them by rule."""
MEASURED: Mapping[str, Any] = MappingProxyType({"sharpen": "wls"})
"""What was measured to be better than the paper's for every model."""
POCKET: Mapping[str, Any] = MappingProxyType(
    {
        "clusters": 12,
        "feature_timesteps": (301,),
        "feature_draws": 16,
        "modulate_at": 601,
        "strength": 300.0,
        "smoothing": 3.0,
        "steps": 20,
    }
)
"""What was measured to be best for the pocket model."""
POCKET_LAYERS = {"feature_sites": "up{resolution}.self1.query", "layer": "up{resolution}.cross1.output"}
"""Its layers, on the grid that is half as fine as its latents'."""
PAPER_NOISE: Mapping[int, float] = MappingProxyType({1: 0.0413, 281: 0.7789})
"""Noise to signal of Stable Diffusion v1.4 at the paper's timesteps."""


@dataclass(frozen=True)
class Preset:
    """Settings for a model.

    Attributes:
        options: a value for every option but the readout's.
        notes: what is not as the paper has it, a line each.
    """

    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def paper_preset(model: ProbeModel) -> Preset:
    """The paper's settings, its layers at their places in this model.

    Features are the query of the first cross-attention layer of the probed stage; what is modulated is the stage's last
    one. In Stable Diffusion that is the third, which the paper's Figure 14 finds best: it is the last transformer block
    at 16 x 16, so that all of the stage's features are there, and everything finer comes after it. Counted as "the
    third", the layer would be the third of ten sub-blocks of XL's first transformer, where the stage has hardly begun;
    and distilled models with two layers a stage (BK-SDM, tiny-sd) would have none. Where no stage is the paper's,
    `default_sites` names the layers, and timesteps are those with as much noise as the paper's.
    """
    feature, layer = _paper_sites(model)
    options = {**DEFAULTS, "feature_sites": feature.name, "layer": layer.name}
    if model.family not in KNOWN:
        note = (
            f"no paper gives settings for family {model.family} ({model.name}): by rule, {feature.name} is clustered "
            f"and {layer.name} pushed; `study layers` and `calibrate` find better ones"
        )
        return Preset({**options, **_settings_by_rule(model)}, (note,))
    layers = list_sites(model, stage=layer.stage, resolution=layer.resolution, kind=layer.kind, part="output")
    if model.family in {"sd1", "sd2"} and (len(layers), layer.kind) != (3, "cross"):
        note = (
            f"{model.name} has {len(layers)} {layer.kind}-attention layers at {layer.resolution} x {layer.resolution}, "
            f"Stable Diffusion 3 of cross-attention: the last, {layer.name}, is pushed; --layer names another"
        )
        return Preset(options, (note,))
    return Preset(options)


def find_preset(model: ProbeModel) -> Preset:
    """The best known settings for a model: the paper's and `MEASURED`, for the pocket model with its own."""
    paper = paper_preset(model)
    paper = replace(paper, options={**paper.options, **MEASURED})
    if model.family != "pocket":
        return paper
    names = {site.name for site in list_sites(model)}
    measured = {name: value.format(resolution=model.latent_side // 2) for name, value in POCKET_LAYERS.items()}
    notes = [
        f"{model.name} has no {value} as the pocket model has: {paper.options[name]} takes its place"
        for name, value in measured.items()
        if value not in names
    ]
    layers = {name: value for name, value in measured.items() if value in names}
    return Preset({**paper.options, **POCKET, **layers}, tuple(notes))


def fast_preset(model: ProbeModel) -> dict[str, Any]:
    """The approximations of the fast mode, as far as the model's levels have them."""
    return {**FAST, "shared_levels": min(FAST["shared_levels"], model.levels - 1)}


def _paper_sites(model: ProbeModel) -> tuple[Site, Site]:
    """The site whose features are clustered, and the output that is modulated."""
    if model.family == "pocket":  # its probed grid is half as fine as its latents', not a quarter
        half = model.latent_side // 2
        inside = [site for site in list_sites(model, stage="up", kind="cross") if site.resolution == half]
        if inside:
            queries, outputs = ([site for site in inside if site.part == part] for part in ("query", "output"))
            return queries[0], outputs[-1]
    return default_sites(model)


def _settings_by_rule(model: ProbeModel) -> dict[str, Any]:
    """Kinds of attention that have probabilities, and the model's own timesteps of as much noise as the paper's."""
    kinds = {site.kind for site in list_sites(model, part="query")}
    schedule = model.schedule(DEFAULTS["steps"])

    def as_noisy_as(timestep: int) -> int:
        wanted = math.log(PAPER_NOISE[timestep])
        return min(schedule.timesteps, key=lambda other: abs(math.log(schedule.noise_to_signal(other)) - wanted))

    return {
        "feature_timesteps": tuple(map(as_noisy_as, DEFAULTS["feature_timesteps"])),
        "modulate_at": as_noisy_as(DEFAULTS["modulate_at"]),
        "injection": tuple(kind for kind in ATTENTION_KINDS if kind in kinds),
    }
