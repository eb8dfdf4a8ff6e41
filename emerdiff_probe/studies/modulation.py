"""Studies of modulated denoising: when, how strongly, where, and with which attention injected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.interventions import InjectAttention, attention_part
from emerdiff_probe.models.addresses import ATTENTION_KINDS
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation
from emerdiff_probe.reading.features import capture
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, resolve_modulation
from emerdiff_probe.segmentation.segment import segment_probed
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.studies.study import (
    Axis,
    Cell,
    Direction,
    Measure,
    Measured,
    Study,
    Subject,
    on_grid,
    strengths_around,
)
from emerdiff_probe.studies.truth import Truth

STRUCTURE = Measure("structural similarity of the modulated images and the unchanged one", "SSIM", "mean", True)
RELATIVE = Measure("strength relative to the norm of the layer's output", "", "mean")


def modulate_at(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 7: the timestep of the modulation; a readout that shares levels needs a second step, after any of them."""
    grid = model.schedule(config.inversion.steps).timesteps
    if config.resolve(model).readout.shared_levels:
        grid = grid[:-1]
    values = on_grid(grid, (101, 281, 481) if quick else (21, 101, 181, 281, 381, 481, 681, 881))
    low, middle, high = values[0], on_grid(grid, (281,))[0], values[-1]
    claims = [
        Direction(f"Table 7: t_m = 281 to 481 is best: {middle} beats {other}", "emerdiff", {"modulate_at": middle},
                  {"modulate_at": other})
        for other in (low, high) if other != middle
    ]  # fmt: skip
    return _modulated(
        "modulate_at",
        "When should the modulation happen?",
        data,
        config,
        {"modulate_at": Axis(values, "timestep", "timestep of the modulation, t_m")},
        lambda unit: resolve_modulation(model, config.change(**unit)),
        claims,
        start=max(values),
    )


def strength(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 8: the strength of the modulation, also relative to the activations that it is added to."""
    values = strengths_around(config, *((0.1, 1, 10) if quick else (0.03, 0.1, 0.3, 1, 3, 10, 30)))
    low, own, high = strengths_around(config, 0.1, 1, 10)
    claims = [
        Direction(f"Table 8: quality peaks at strength 10, ours at {own:g}: it beats {other:g}", "emerdiff",
                  {"strength": own}, {"strength": other})
        for other in (low, high)
    ]  # fmt: skip
    return _modulated(
        "strength",
        "How strong should the modulation be?",
        data,
        config,
        {"strength": Axis(values, "", "strength of the modulation, lambda")},
        lambda unit: resolve_modulation(model, config.change(**unit)),
        claims,
    )


def placement(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Figure 14: which layer is modulated, before or after its output projection, how strongly."""
    own = find_site(model, config.modulation.layer)
    sites = list_sites(model, stage=own.stage, resolution=own.resolution, kind=own.kind, part="output")
    layers = tuple(site.name for site in sites)
    ours = {"layer": layers[-1], "placement": "after"}
    strengths = strengths_around(config, *((1,) if quick else (0.3, 1, 3)))
    claims = [
        Direction(f"the paper's choice, the last layer: {layers[-1]} beats {other}", "emerdiff", ours,
                  {"layer": other, "placement": "after"})
        for other in layers[:-1]
    ]  # fmt: skip
    claims.append(
        Direction("the paper's choice: after the output projection beats before it", "emerdiff", ours,
                  {**ours, "placement": "before"})
    )  # fmt: skip
    return _modulated(
        "placement",
        "Where should the offset be added?",
        data,
        config,
        {
            "layer": Axis(layers, "", "attention layer that is modulated"),
            "placement": Axis(("after", "before"), "", "side of the output projection"),
            "strength": Axis(strengths, "", "strength of the modulation, lambda"),
        },
        lambda unit: resolve_modulation(model, config.change(**unit)),
        claims,
    )


def injection(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Table 9: which attention is injected, by kind and by block, and how far the image's structure survives."""
    attention = [site for site in list_sites(model, part="query") if site.kind in ATTENTION_KINDS]
    kinds = tuple(kind for kind in ATTENTION_KINDS if any(site.kind == kind for site in attention))
    choices: dict[str, InjectAttention | None] = {
        "none": None,
        **{kind: InjectAttention((kind,)) for kind in kinds},
        "all": InjectAttention(kinds),
    }
    if not quick:
        for site in attention:
            block = f"only {site.stage}{site.resolution}"
            inside = tuple(s for s in attention if (s.stage, s.resolution) == (site.stage, site.resolution))
            choices[block] = InjectAttention(sites=inside)
    plain = resolve_modulation(model, config)
    claims = [
        Direction("Table 9: injecting all attention beats none", "emerdiff", {"injection": "all"},
                  {"injection": "none"}),
        Direction("injecting all attention preserves more structure than none", "structure", {"injection": "all"},
                  {"injection": "none"}),
    ]  # fmt: skip
    return _modulated(
        "injection",
        "What does fixing attention preserve?",
        data,
        config,
        {"injection": Axis(tuple(choices), "", "attention that is injected")},
        lambda unit: replace(plain, injection=choices[str(unit["injection"])]),
        claims,
    )


def _modulated(
    name: str,
    question: str,
    data: DataSet,
    config: EmerDiffConfig,
    axes: Mapping[str, Axis],
    modulation_of: Callable[[Mapping[str, Any]], Modulation],
    directions: Sequence[Direction],
    start: int | None = None,
) -> Study:
    """A study whose axes are settings of the modulation; the low-resolution masks are the same in all cells."""
    truth, whole = Truth.of(data), config.readout.sees_images
    left_out = truth.left_out("emerdiff", "boundary")
    if not whole:
        left_out["structure"] = "this readout does not see whole images of single masks"

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        modulation, similar = modulation_of(unit), list[float]()

        def watch(minus: Tensor, plus: Tensor) -> None:
            similar.extend(structures(torch.cat([minus, plus]).cpu(), subject.probed.reconstruction))

        found = segment_probed(subject.probed, config, modulation=modulation, watch=watch if whole else None)
        values: dict[str, Any] = {
            **truth.measure_score("emerdiff", found.labels, subject.sample),
            **truth.measure_boundaries(found.labels, subject.sample),
            **truth.measure_alone(
                found.labels,
                subject.image,
                lambda: subject.segments,
                lambda: segment_probed(subject.reseeded.probed, subject.reseeded.config, modulation=modulation).labels,
            ),
            "relative_strength": relative_strength(subject.probed, modulation),
        }
        return {(): values | ({"structure": float(np.mean(similar))} if whole else {})}

    return Study(
        name=name,
        question=question,
        axes=axes,
        measures=truth.score("emerdiff", "EmerDiff")
        | truth.boundaries()
        | truth.alone()
        | ({"structure": STRUCTURE} if whole else {})
        | {"relative_strength": RELATIVE},
        config=config,
        measure=measure,
        start=max(config.start, start or 0),
        directions=tuple(directions),
        left_out=left_out,
    )


def structures(images: Tensor, reference: Tensor) -> list[float]:
    """Structural similarity (SSIM), in -1 … 1, of images (batch, 3, height, width) to one (3, height, width)."""
    reference_array = reference.clamp(-1, 1).numpy()
    return [
        float(structural_similarity(image.clamp(-1, 1).numpy(), reference_array, channel_axis=0, data_range=2.0))
        for image in images
    ]


def relative_strength(probed: ProbedImage, modulation: Modulation) -> float:
    """Norm of the offset at a modulated cell, over the mean norm of what it is added to at that timestep.

    That is the activation of the trajectory itself: features are means over draws of noise, which nothing is added to.
    """
    site = attention_part(probed.model, modulation.site, "output" if modulation.placement == "after" else "heads")
    captured = capture(probed.model, probed.trajectory, [site], [modulation.modulate_at])
    norm = torch.linalg.vector_norm(captured[site, modulation.modulate_at][0], dim=1).mean()
    direction = torch.ones(site.channels) if modulation.direction is None else modulation.direction
    return float(modulation.strength * torch.linalg.vector_norm(direction.float()) / norm)
