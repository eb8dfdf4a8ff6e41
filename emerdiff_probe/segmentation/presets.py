"""The best known settings of every family of models, by the names of `EmerDiffConfig`'s options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from emerdiff_probe.models.addresses import ATTENTION, ATTENTION_KINDS
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
"""Approximations of the fast mode: the fastest that keeps exact mode's mIoU on drawn scenes (`python -m
benchmarks.fast_modes`) and on photographs as well, where two to five steps without the rest lose 3 points."""
DRAFT: dict[str, Any] = {
    "denoising_steps": 2,
    "compare": "latents",
    "one_sided": True,
    "sign_patterns": "auto",
    "shared_levels": 1,
}
"""Approximations of the draft mode: two steps tell what belongs together, and sharpening finds where it ends. Its
labels beat the paper's exact ones; those of one step are the enlarged masks', and masks of one draw of noise are worse
(benchmarks/NOTES.md, "Approximations")."""
MODES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"fast": FAST, "draft": DRAFT})
"""Approximate modes by name."""
KNOWN = ("sd1", "sd2", "sdxl", "pocket")
"""Families that settings are known for; others get them by rule."""
MEASURED: Mapping[str, Any] = MappingProxyType({"sharpen": "wls"})
"""What was measured to be better than the paper's for every model."""
POCKET: Mapping[str, Any] = MappingProxyType(
    {
        "clusters": 12,
        "feature_timesteps": (101, 301, 501, 701),
        "feature_draws": 4,
        "modulate_at": 601,
        "strength": 300.0,
        "smoothing": 3.0,
        "steps": 20,
    }
)
"""What was measured to be best for the pocket model."""
POCKET_LAYER = "up{resolution}.cross1.output"
"""Its layer that is pushed, on the grid that is half as fine as its latents'."""
CALIBRATED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"photo": {"layer": "down16.self0.output", "modulate_at": 601, "strength": 300.0}}
)
"""Where models that ship are pushed by what `emerdiff-probe calibrate` found on pictures without labels, by name, where
labels (benchmarks/NOTES.md, "Settings without labels") did not speak against it."""
CLUSTERED = ("query", "key", "value", "output")
"""What is clustered of every attention layer of a stage, all together."""
NOISE: Mapping[int, float] = MappingProxyType(
    {1: 0.0413, 101: 0.3462, 281: 0.7789, 301: 0.8357, 501: 1.6237, 701: 3.3478}
)
"""Noise to signal of Stable Diffusion v1.4, and of the pocket model, at timesteps that models' own are found by."""


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
        return Preset({**options, **_settings_by_rule(model)}, (_note_of_rule(model, feature.name, layer.name),))
    layers = list_sites(model, stage=layer.stage, resolution=layer.resolution, kind=layer.kind, part="output")
    if model.family in {"sd1", "sd2"} and (len(layers), layer.kind) != (3, "cross"):
        note = (
            f"{model.name} has {len(layers)} {layer.kind}-attention layers at {layer.resolution} x {layer.resolution}, "
            f"Stable Diffusion 3 of cross-attention: the last, {layer.name}, is pushed; --layer names another"
        )
        return Preset(options, (note,))
    return Preset(options)


def find_preset(model: ProbeModel) -> Preset:
    """The best known settings for a model: the paper's and `MEASURED`, for the pocket model with its own.

    The pocket model's features are all of its probed stage at several timesteps (`stage_features`), which made better
    masks of drawn scenes and of photographs than the single site before (`python -m benchmarks.features`). Other U-Nets
    that nobody has measured get the same by rule. Stable Diffusion's families keep the paper's query, as do
    transformers, whose depth is no stage: nothing else has been measured there.
    """
    found = adding_preset(model)
    return replace(found, options={**found.options, **CALIBRATED.get(model.name, {})})


def adding_preset(model: ProbeModel) -> Preset:
    """As `find_preset`, but always pushed in the decoder, as in the paper, where answers to single cells add up.

    Answers to cells that are pushed in the encoder do not: the difference map of a mask is another than their sum
    (`python -m benchmarks.atlas`).
    """
    paper = paper_preset(model)
    options = {**paper.options, **MEASURED}
    if model.family in KNOWN and model.family != "pocket":
        return replace(paper, options=options)
    stage = _probed_stage(model)
    if stage is not None:
        options["feature_sites"] = stage_features(model, stage)
    if model.family != "pocket":
        if stage is None:
            return Preset(options, paper.notes)
        options["feature_timesteps"] = _as_noisy_as(model, POCKET["feature_timesteps"])
        options["feature_draws"] = POCKET["feature_draws"]
        return Preset(options, (_note_of_rule(model, f"all of up{stage}", options["layer"]),))
    wanted = POCKET_LAYER.format(resolution=model.latent_side // 2)
    if wanted in {site.name for site in list_sites(model)}:
        return Preset({**options, **POCKET, "layer": wanted})
    note = f"{model.name} has no {wanted} as the pocket model has: {paper.options['layer']} takes its place"
    return Preset({**options, **POCKET}, (note,))


def stage_features(model: ProbeModel, resolution: int) -> tuple[str, ...]:
    """Patterns of the queries, keys, values and outputs of all attention layers upwards on a grid."""
    held = [site for site in list_sites(model, stage="up", resolution=resolution) if site.holds_cells]
    kinds = [(site.kind, site.part) for site in held if site.kind in ATTENTION and site.part in CLUSTERED]
    return tuple(f"up{resolution}.{kind}*.{part}" for kind, part in dict.fromkeys(kinds))


def approximations(mode: str, model: ProbeModel) -> dict[str, Any]:
    """The approximations of a mode, by its name in `MODES`, as far as the model's levels have them."""
    return {**MODES[mode], "shared_levels": min(MODES[mode]["shared_levels"], model.levels - 1)}


def _paper_sites(model: ProbeModel) -> tuple[Site, Site]:
    """The site whose features are clustered, and the output that is modulated."""
    if model.family == "pocket":  # its probed grid is half as fine as its latents', not a quarter
        half = model.latent_side // 2
        inside = [site for site in list_sites(model, stage="up", kind="cross") if site.resolution == half]
        if inside:
            queries, outputs = ([site for site in inside if site.part == part] for part in ("query", "output"))
            return queries[0], outputs[-1]
    return default_sites(model)


def _probed_stage(model: ProbeModel) -> int | None:
    """The grid upwards that is clustered: the pocket model's, else the nearest to cells of 16 pixels; None for none."""
    upwards = [site.resolution for site in list_sites(model, stage="up", part="query")]
    if model.family == "pocket" and model.latent_side // 2 in upwards:
        return model.latent_side // 2
    return min(upwards, key=lambda side: abs(math.log(16 * side / model.native_size)), default=None)


def _note_of_rule(model: ProbeModel, clustered: str, pushed: str) -> str:
    return (
        f"no paper gives settings for family {model.family} ({model.name}): by rule, {clustered} is clustered "
        f"and {pushed} pushed; `study layers` and `calibrate` find better ones"
    )


def _settings_by_rule(model: ProbeModel) -> dict[str, Any]:
    """Kinds of attention that have probabilities, and the model's own timesteps of as much noise as the paper's."""
    kinds = {site.kind for site in list_sites(model, part="query")}
    return {
        "feature_timesteps": _as_noisy_as(model, DEFAULTS["feature_timesteps"]),
        "modulate_at": _as_noisy_as(model, [DEFAULTS["modulate_at"]])[0],
        "injection": tuple(kind for kind in ATTENTION_KINDS if kind in kinds),
    }


def _as_noisy_as(model: ProbeModel, timesteps: Sequence[int]) -> tuple[int, ...]:
    """The timesteps of a model's grid with as much noise as Stable Diffusion's at these, each once."""
    schedule = model.schedule(DEFAULTS["steps"])

    def nearest(noise: float) -> int:
        return min(schedule.timesteps, key=lambda other: abs(math.log(schedule.noise_to_signal(other) / noise)))

    return tuple(dict.fromkeys(nearest(NOISE[timestep]) for timestep in timesteps))
