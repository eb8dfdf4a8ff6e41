"""The best known settings of every family of models, by the names of `EmerDiffConfig`'s options."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from emerdiff_probe.models.probe_model import ProbeModel

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


def paper_preset(model: ProbeModel) -> dict[str, Any]:
    """The paper's settings, its layers in the block of this model's own resolution."""
    return {**DEFAULTS, **_named(model, LAYERS)}


def find_preset(model: ProbeModel) -> dict[str, Any]:
    """The best known settings for a model: the paper's, or for the pocket model its measured ones."""
    measured = POCKET if model.family == "pocket" else {}
    return {**DEFAULTS, **_named(model, {**LAYERS, **measured})}


def _named(model: ProbeModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    resolution = model.latent_side // DIVISORS.get(model.family, 4)
    return {**settings, **{name: settings[name].format(resolution=resolution) for name in LAYERS}}
