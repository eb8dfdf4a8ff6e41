"""The best known settings of every family of models, by the names of `EmerDiffConfig`'s options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from emerdiff_probe.models.addresses import ATTENTION_KINDS
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.sites import default_sites, list_sites

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
LAYERS = {"feature_sites": "up{resolution}.cross0.query", "layer": "up{resolution}.cross2.output"}
"""The paper's layers, in the block of a model's own resolution."""
DIVISORS: Mapping[str, int] = MappingProxyType({"sd1": 4, "sd2": 4, "sdxl": 4, "pocket": 2})
"""Latent cells a cell of the probed grid along one side."""
POCKET: Mapping[str, Any] = MappingProxyType(
    {
        "clusters": 12,
        "feature_sites": "up{resolution}.self1.query",
        "feature_timesteps": (301,),
        "feature_draws": 16,
        "layer": "up{resolution}.cross1.output",
        "modulate_at": 601,
        "strength": 300.0,
        "smoothing": 3.0,
        "steps": 20,
    }
)
"""What was measured to be best for the pocket model."""
PAPER_NOISE: Mapping[int, float] = MappingProxyType({1: 0.0413, 281: 0.7789})
"""Noise to signal of Stable Diffusion v1.4 at the paper's timesteps."""


def paper_preset(model: ProbeModel) -> dict[str, Any]:
    """The paper's settings, its layers in the block of this model's own resolution."""
    return {**DEFAULTS, **_named(model, LAYERS)}


def find_preset(model: ProbeModel) -> dict[str, Any]:
    """The best known settings for a model: the paper's, the measured ones of the pocket model, else a rule's."""
    if model.family not in DIVISORS:
        return {**DEFAULTS, **_settings_by_rule(model)}
    measured = POCKET if model.family == "pocket" else {}
    return {**DEFAULTS, **_named(model, {**LAYERS, **measured})}


def _settings_by_rule(model: ProbeModel) -> dict[str, Any]:
    """Settings for a family that nobody has measured: `study layers` and `study modulate_at` find better ones.

    Sites by `default_sites`, every kind of attention that has probabilities, and those timesteps of the model's own
    grid at which there is as much noise as at the paper's.
    """
    feature_site, layer = default_sites(model)
    kinds = {site.kind for site in list_sites(model, part="query")}
    schedule = model.schedule(DEFAULTS["steps"])

    def as_noisy_as(timestep: int) -> int:
        wanted = math.log(PAPER_NOISE[timestep])
        return min(schedule.timesteps, key=lambda other: abs(math.log(schedule.noise_to_signal(other)) - wanted))

    return {
        "feature_sites": feature_site.name,
        "layer": layer.name,
        "feature_timesteps": tuple(map(as_noisy_as, DEFAULTS["feature_timesteps"])),
        "modulate_at": as_noisy_as(DEFAULTS["modulate_at"]),
        "injection": tuple(kind for kind in ATTENTION_KINDS if kind in kinds),
    }


def _named(model: ProbeModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    resolution = model.latent_side // DIVISORS.get(model.family, 4)
    return {**settings, **{name: settings[name].format(resolution=resolution) for name in LAYERS}}
