"""All studies by name."""

from __future__ import annotations

from collections.abc import Callable

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


def make_study(name: str, model: ProbeModel, config: EmerDiffConfig | None = None, *, quick: bool = False) -> Study:
    """A study by name, with its grid for a model.

    Args:
        name: a key of `STUDIES`.
        model: whose sites and timesteps make the grid.
        config: settings that no axis changes; the best known ones for the model when None.
        quick: a small grid, for notebooks and tests.

    Raises:
        InputError: no such study.
        SiteError, TimestepError: settings that the model does not have.
    """
    if name not in STUDIES:
        raise InputError(f"no study {name!r}; accepted: {', '.join(STUDIES)}")
    config = (config or EmerDiffConfig()).resolve(model)
    check_config(model, config, model.native_size, model.native_size)
    return STUDIES[name](model, config, quick=quick)
