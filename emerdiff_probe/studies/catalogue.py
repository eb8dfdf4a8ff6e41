"""All studies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.studies.appearance import counterfactual, small_parts
from emerdiff_probe.studies.features import clusters, feature_layer, feature_timestep, layers
from emerdiff_probe.studies.modulation import injection, modulate_at, placement, strength
from emerdiff_probe.studies.responses import additivity, locality
from emerdiff_probe.studies.study import Study
from emerdiff_probe.studies.video import video

Maker = Callable[..., Study]

STUDIES: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        layers,
        feature_timestep,
        clusters,
        feature_layer,
        modulate_at,
        strength,
        placement,
        injection,
        locality,
        additivity,
        counterfactual,
        small_parts,
        video,
    )
}
"""What makes every study that ships, by name; take them through `make_study`."""


def make_study(
    name: str,
    model: ProbeModel,
    data: DataSet,
    config: EmerDiffConfig | None = None,
    *,
    quick: bool = False,
    fit_on: DataSet | None = None,
) -> Study:
    """A study by name, with its grid for a model and its measures for what the data knows.

    Args:
        name: a key of `STUDIES`.
        model: whose sites and timesteps make the grid.
        data: that is to be measured: its classes, or that there are none, make the measures.
        config: settings that no axis changes; what they leave open is filled in for the model.
        quick: a small grid, for notebooks and tests.
        fit_on: samples of the same classes that linear probes are fitted on; of the world, scenes of its own when None,
            else there are no linear probes.

    Raises:
        InputError: no such study, or one that this data or these settings do not allow.
        SiteError, TimestepError: settings that the model does not have.
    """
    if name not in STUDIES:
        raise InputError(f"no study {name!r}; accepted: {', '.join(STUDIES)}")
    config = (config or EmerDiffConfig()).resolve(model)
    check_config(model, config, model.native_size, model.native_size)
    if name != "layers":
        return STUDIES[name](model, data, config, quick=quick)
    if fit_on is None and isinstance(data, World):
        fit_on = replace(data, seeds=PROBE_SEEDS[:6] if quick else PROBE_SEEDS)
    return layers(model, data, config, quick=quick, fit_on=fit_on)


PROBE_SEEDS = range(510_000, 510_024)
"""Scenes that linear probes are fitted on: held out from training, and far from those that are measured."""
