"""The whole of EmerDiff, from an image to a `Segmentation`; the only orchestrator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emerdiff_probe.images import load_image
from emerdiff_probe.metrics.colour import colour_gain, lab_colours
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation, assign
from emerdiff_probe.reading.features import mask_embeddings, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.segmentation.criteria import find_criterion
from emerdiff_probe.segmentation.result import Segmentation, model_precision
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.segmentation.tree import likeness_linkage, merged_maps


class _Stopwatch:
    """Seconds of every stage; waits for the device, so that work is charged to its own stage."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = round(time.perf_counter() - began, 4)


def segment(
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    config: EmerDiffConfig | None = None,
    *,
    progress: bool = False,
) -> Segmentation:
    """Segment one image by EmerDiff (Namekata et al. 2024).

    The image is processed with its shorter side at the model's native size; difference maps are held at that size, and
    enlarged to the image's own, a few rows or one map at a time, to read the labels off; see `read_labels`.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image or an array; see `load_image`.
        config: settings; what they leave open is filled in by `EmerDiffConfig.resolve`.
        progress: show a progress bar over denoiser passes.

    Raises:
        InputError: a bad image, or more clusters than the image has cells.
        SiteError, TimestepError: a layer or timestep that the model does not have. All before any model runs.
    """
    config = (config or EmerDiffConfig()).resolve(model)
    stage = _Stopwatch(model.device)
    with stage("read"):
        pixels = load_image(image)
    check_config(model, config, *model.working_size(*pixels.shape[:2]))
    with stage("invert"):
        probed = config.probe(model, pixels)
    result = segment_probed(probed, config, progress=progress)
    return replace(result, seconds=stage.seconds | result.seconds)


def segment_probed(
    probed: ProbedImage,
    config: EmerDiffConfig,
    *,
    modulation: Modulation | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    progress: bool = False,
) -> Segmentation:
    """As `segment`, of an image that is inverted already, whatever the configuration says about the inversion.

    Args:
        probed: the image.
        config: settings.
        modulation: in the place of the configuration's, for what no option can say.
        watch: given the images that difference maps are made of; see `difference_maps`.
        progress: show a progress bar over denoiser passes.

    Raises:
        InputError, SiteError, TimestepError: as in `segment`; also for a timestep that the trajectory does not pass.
    """
    model, pixels = probed.model, probed.image
    config = config.resolve(model)
    sites, own = check_config(model, config, *(side * model.factor for side in probed.latents.shape[-2:]))
    criterion = find_criterion(config.clusters)
    stage = _Stopwatch(model.device)
    with stage("features"):
        features = probed.features(sites, config.features.timesteps)
    with stage("cluster"):
        count = criterion.clusters(features, probed.grid(sites), seed=config.seed)
        coarse = probed.low_resolution_masks(sites, count, config.features.timesteps)
    with stage("modulate"):
        maps = probed.difference_maps(
            coarse, modulation or own, smoothing=config.smoothing, watch=watch, progress=progress
        )
    with stage("assign"):
        groups = criterion.merged(maps)
        linkage = likeness_linkage(merged_maps(maps, groups))
        maps, coarse = merged_maps(maps, groups), groups[coarse]
        labels, responses = read_labels(maps, pixels, config.sharpen)
        gain = measure_colour_gain(maps, coarse, pixels)
    return Segmentation(
        image=pixels,
        labels=labels,
        low_resolution_masks=coarse,
        maps=maps.numpy(),
        responses=responses,
        mask_embeddings=mask_embeddings(features, coarse).numpy(),
        linkage=linkage,
        colour_gain=gain,
        config=config,
        model=model.name,
        fingerprint=model.fingerprint,
        precision=model_precision(model),
        seconds=stage.seconds,
    )


def measure_colour_gain(maps: Tensor, low_resolution_masks: np.ndarray, image: np.ndarray) -> float:
    """`colour_gain` of the plain labels of difference maps, at the maps' size: milliseconds, whatever the picture's.

    Args:
        maps: (mask, map_height, map_width).
        low_resolution_masks: (grid_height, grid_width) labels that the maps are of.
        image: (height, width, 3) uint8.
    """
    height, width = maps.shape[1:]
    enlarged = upsampled(low_resolution_masks, height, width)
    return colour_gain(assign(maps).numpy(), enlarged, lab_colours(image, (height, width)))


def segment_all(
    model: ProbeModel,
    images: Sequence[str | Path | Image.Image | np.ndarray],
    config: EmerDiffConfig | None = None,
    *,
    progress: bool = False,
) -> Iterator[Segmentation]:
    """Segment images of any sizes one after the other; every one is read and checked before the first is run.

    One at a time is held: each is read again when its turn comes.
    """
    config = (config or EmerDiffConfig()).resolve(model)
    for height, width in {model.working_size(*load_image(image).shape[:2]) for image in images}:
        check_config(model, config, height, width)
    return (segment(model, image, config, progress=progress) for image in images)
