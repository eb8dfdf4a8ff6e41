"""Study of clips: whether matches, and the segments made of them, stay on what moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import MOTIONS, PART_NAMES, Scene, draw_clip
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.reading.features import mask_embeddings
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.studies.appearance import nearest, nearest_colour
from emerdiff_probe.studies.features import by_cell, majority_part
from emerdiff_probe.studies.study import Axis, Cell, Direction, Measure, Measured, Study

FRAMES = 8
"""Of a clip; the first one is segmented, and later ones inherit its masks."""
ANEW = "anew"
"""Masks of a later frame's own, which have nothing to do with the first one's."""


def video(model: ProbeModel, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Question 5: whether masks carried to later frames stay on what they were on, when the camera or a thing moves."""
    gaps = (1, FRAMES - 1) if quick else (1, 2, 4, FRAMES - 1)
    site, modulation = find_feature_sites(model, config), resolve_modulation(model, config)
    start = config.start

    def measure(probed: ProbedImage, scene: Scene, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        height, width = scene.parts.shape
        clip = draw_clip(scene.seed, FRAMES, motion=str(unit["motion"]), height=height, width=width,
                         factors=scene.factors)  # fmt: skip
        frames = {gap: config.probe(model, clip[gap].image, start=start) for gap in (0, *gaps)}
        cells = frames[0].grid(site)
        masks = {gap: frame.low_resolution_masks(site, config.given_clusters, config.features.timesteps)
                 for gap, frame in frames.items()}  # fmt: skip
        features = {gap: frame.features(site, config.features.timesteps) for gap, frame in frames.items()}
        colours = {gap: by_cell(clip[gap].image, cells).mean(1) for gap in frames}
        parts = {gap: majority_part(clip[gap], cells) for gap in frames}
        whole = segmented(frames[0], masks[0])
        mask_features = mask_embeddings(features[0], masks[0])
        mask_colours = mask_embeddings(torch.from_numpy(colours[0]).float(), masks[0]).numpy()
        measured: dict[Cell, Measured] = {}
        for gap in gaps:
            matched = {
                "feature": nearest(features[0], features[gap]),
                "colour": nearest_colour(colours[0], colours[gap]),
                "place": np.arange(len(parts[0])),
            }
            carried = {
                "feature": nearest(features[gap], mask_features).reshape(cells),
                "colour": nearest_colour(colours[gap], mask_colours).reshape(cells),
                "place": masks[0],
                ANEW: masks[gap],
            }
            for carrier, coarse in carried.items():
                labels, known = segmented(frames[gap], coarse), carrier != ANEW
                measured[gap, carrier] = {
                    "same_part": 100 * float(np.mean(parts[gap][matched[carrier]] == parts[0])) if known else np.nan,
                    "kept": 100 * kept(whole, clip[0], labels, clip[gap]) if known else np.nan,
                    "emerdiff": majority_confusion(labels, clip[gap].parts, len(PART_NAMES)),
                }
        return measured

    def segmented(frame: ProbedImage, coarse: np.ndarray) -> np.ndarray:
        return assign(frame.difference_maps(coarse, modulation, smoothing=config.smoothing)).numpy()

    def beyond(other: str, measure: str, claim: str) -> Direction:
        last = gaps[-1]
        return Direction(f"{claim}, {last} frames later", measure, {"by": "feature", "frames": last},
                         {"by": other, "frames": last})  # fmt: skip

    return Study(
        name="video",
        question="Are masks consistent in time, when the camera or a thing moves?",
        axes={
            "motion": Axis(MOTIONS, "", "what moves"),
            "frames": Axis(gaps, "frames", f"from the first one of a clip of {FRAMES}"),
            "by": Axis(("feature", "colour", "place", ANEW), "", "how masks are carried to the later frame"),
        },
        measures={
            "kept": Measure("of every part's pixels, those whose segments are as in the first frame", "%",
                            higher_is_better=True),
            "same_part": Measure("cells whose match in the later frame lies in the same part", "%",
                                 higher_is_better=True),
            "emerdiff": Measure("majority mIoU in the later frame", "%", "confusion", True),
        },
        config=config,
        measure=measure,
        together=("frames", "by"),
        directions=(
            beyond("place", "kept", "masks carried by features stay on parts better than masks that stay in place"),
            beyond("colour", "kept", "masks carried by features stay on parts better than by colours"),
            beyond(ANEW, "emerdiff", "masks carried by features segment better than the frame's own"),
        ),
    )  # fmt: skip


def kept(labels: np.ndarray, scene: Scene, later_labels: np.ndarray, later: Scene) -> float:
    """How much of what is seen in two frames is made of the same segments in both, 0 to 1.

    Things may move and grow: compared are the shares that segments have of every part of every thing, as the
    intersection of two histograms; parts count by their mean area.

    Args:
        labels, later_labels: (height, width) segments, numbered alike in both frames.
        scene, later: what was drawn.
    """
    segments = int(max(labels.max(), later_labels.max())) + 1

    def table(labels: np.ndarray, scene: Scene) -> dict[tuple[int, int], np.ndarray]:
        regions = np.stack([scene.instances.ravel(), scene.parts.ravel()]).astype(np.int64)
        found, inverse = np.unique(regions, axis=1, return_inverse=True)
        counts = np.bincount(inverse.ravel() * segments + labels.ravel(), minlength=found.shape[1] * segments)
        return dict(zip(map(tuple, found.T.tolist()), counts.reshape(-1, segments), strict=True))

    before, after = table(labels, scene), table(later_labels, later)
    both = before.keys() & after.keys()
    areas = [before[region].sum() + after[region].sum() for region in both]
    alike = [np.minimum(before[region] / before[region].sum(), after[region] / after[region].sum()).sum()
             for region in both]  # fmt: skip
    return float(np.average(alike, weights=areas))
