"""Which family serves a pipeline: by the class of its denoiser, or refused by that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.auraflow import AuraFlowModel
from emerdiff_probe.models.flux import FluxModel
from emerdiff_probe.models.pixart import DiTModel, PixArtModel
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.models.sana import SanaModel
from emerdiff_probe.models.sd3 import SD3Model
from emerdiff_probe.models.unconditional import UnconditionalModel
from emerdiff_probe.models.unet import UNetModel

FAMILIES: dict[type, type[ProbeModel]] = {
    diffusers.UNet2DConditionModel: UNetModel,
    diffusers.UNet2DModel: UnconditionalModel,
    diffusers.SD3Transformer2DModel: SD3Model,
    diffusers.FluxTransformer2DModel: FluxModel,
    diffusers.PixArtTransformer2DModel: PixArtModel,
    diffusers.DiTTransformer2DModel: DiTModel,
    diffusers.SanaTransformer2DModel: SanaModel,
    diffusers.AuraFlowTransformer2DModel: AuraFlowModel,
}
"""The family of every class of denoisers that is served."""
DENOISERS = ("transformer", "unet")
"""What pipelines call their denoiser."""


def wrap(pipeline: DiffusionPipeline, name: str) -> ProbeModel:
    """The pipeline as a model to probe, by the family of its denoiser.

    Raises:
        ModelError: as in `find_family`; and what the family refuses.
    """
    return find_family({part: getattr(pipeline, part, None) for part in DENOISERS}, name)(pipeline, name)


def find_family(parts: Mapping[str, Any], name: str) -> type[ProbeModel]:
    """The family that serves a denoiser; weights are not looked at.

    Args:
        parts: of the pipeline, by name; those called as in `DENOISERS` are looked at.
        name: of the model, for messages.

    Raises:
        ModelError: a denoiser that is compiled, or of a class that no family serves, or none.
    """
    found = {part: parts[part] for part in DENOISERS if parts.get(part) is not None}
    for part, denoiser in found.items():
        if hasattr(denoiser, "_orig_mod"):
            raise ModelError(
                f"{name}: the denoiser is compiled, so hooks would be bypassed; put the original module back first: "
                f"pipeline.{part} = pipeline.{part}._orig_mod"
            )
        if type(denoiser) in FAMILIES:
            return FAMILIES[type(denoiser)]
    accepted = ", ".join(sorted(kind.__name__ for kind in FAMILIES))
    if not found:
        raise ModelError(f"{name}: the pipeline has no unet and no transformer; accepted: pipelines with {accepted}")
    given = type(next(iter(found.values()))).__name__
    raise ModelError(f"{name}: the denoiser is {given}; accepted: pipelines with {accepted}")
