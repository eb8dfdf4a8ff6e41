"""Which family serves a pipeline: by the class of its denoiser, or refused by that name."""

from __future__ import annotations

import diffusers
from diffusers import DiffusionPipeline

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.flux import FluxModel
from emerdiff_probe.models.pixart import DiTModel, PixArtModel
from emerdiff_probe.models.probe_model import ProbeModel
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
}
"""The family of every class of denoisers that is served."""


def wrap(pipeline: DiffusionPipeline, name: str) -> ProbeModel:
    """The pipeline as a model to probe, by the family of its denoiser.

    Raises:
        ModelError: a denoiser that is compiled or of a class that no family serves; and what the family refuses.
    """
    found = {part: getattr(pipeline, part, None) for part in ("transformer", "unet")}
    for part, denoiser in found.items():
        if hasattr(denoiser, "_orig_mod"):
            raise ModelError(
                f"{name}: the denoiser is compiled, so hooks would be bypassed; put the original module back first: "
                f"pipeline.{part} = pipeline.{part}._orig_mod"
            )
    for denoiser in found.values():
        if type(denoiser) in FAMILIES:
            return FAMILIES[type(denoiser)](pipeline, name)
    denoiser = next((part for part in found.values() if part is not None), None)
    accepted = ", ".join(sorted(kind.__name__ for kind in FAMILIES))
    raise ModelError(f"{name}: the denoiser is {type(denoiser).__name__}; accepted: pipelines with {accepted}")
