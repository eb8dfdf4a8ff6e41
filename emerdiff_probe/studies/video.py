"""Study of clips: whether matches, and the segments made of them, stay on what moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.frames import Clip, Clips
from emerdiff_probe.metrics.overlaps import adjusted_rand, majority_confusion
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import MOTIONS, PART_NAMES, Scene, draw_clip
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import mask_embeddings
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.studies.appearance import nearest, nearest_colour
from emerdiff_probe.studies.features import by_cell, majority_label
from emerdiff_probe.studies.study import Axis, Cell, Direction, Measure, Measured, Study, Subject
from emerdiff_probe.studies.truth import NO_LABELS, edge_distance, require_scenes, scene_of

FRAMES = 8
"""Of a drawn clip; the first one is segmented, and later ones inherit its masks."""
ANEW = "anew"
"""Masks of a later frame's own, which have nothing to do with the first one's."""
CARRIERS = ("feature", "colour", "place", ANEW)
"""How masks are carried to a later frame."""


def video(model: ProbeModel, data: DataSet, config: EmerDiffConfig, *, quick: bool = False) -> Study:
    """Question 5: whether masks carried to later frames stay on what they were on, when the camera or a thing moves.

    Of the world every scene is drawn as a clip of each motion; frames of one's own (`frames:PATH`) are taken as they
    are, and have no truth.
    """
    drawn = not isinstance(data, Clips)
    if drawn:
        require_scenes("video", data, "frames:PATH")
    gaps = _gaps(data, quick)
    by = {"frames": Axis(gaps, "frames", f"from the first one of a clip{f' of {FRAMES}' * drawn}"),
          "by": Axis(CARRIERS, "", "how masks are carried to the later frame")}  # fmt: skip
    motion = {"motion": Axis(MOTIONS, "", "what moves")} if drawn else {}
    carry = _Carrier(model, config)

    def measure(subject: Subject, unit: Mapping[str, Any]) -> dict[Cell, Measured]:
        clip = subject.sample.scene
        if isinstance(clip, Clip):
            return carry.without_truth({gap: clip[gap] for gap in (0, *gaps)})
        scene = scene_of(subject.sample)
        scenes = draw_clip(scene.seed, FRAMES, motion=str(unit["motion"]), height=scene.parts.shape[0],
                           width=scene.parts.shape[1], factors=scene.factors)  # fmt: skip
        return carry.with_truth({gap: scenes[gap] for gap in (0, *gaps)})

    return Study(
        name="video",
        question="Are masks consistent in time, when the camera or a thing moves?",
        axes={**motion, **by},
        measures=DRAWN if drawn else BARE,
        config=config,
        measure=measure,
        together=tuple(by),
        start=config.start,
        directions=_directions(gaps[-1]) if drawn else (),
        left_out={} if drawn else dict.fromkeys(DRAWN, NO_LABELS),
    )


DRAWN = {
    "kept": Measure("of every part's pixels, those whose segments are as in the first frame", "%",
                    higher_is_better=True),
    "same_part": Measure("cells whose match in the later frame lies in the same part", "%", higher_is_better=True),
    "emerdiff": Measure("majority mIoU in the later frame", "%", "confusion", True),
}  # fmt: skip
"""What is measured of drawn clips."""
BARE = {
    "agreement": Measure("adjusted Rand index with the segments that the later frame has of its own"),
    "edges": Measure("distance of segment borders from the later frame's own edges", "px", "mean", False),
}
"""What is measured of frames without truth."""


def _gaps(data: DataSet, quick: bool) -> tuple[int, ...]:
    wanted = (1, FRAMES - 1) if quick else (1, 2, 4, FRAMES - 1)
    if not isinstance(data, Clips):
        return wanted
    shortest = min(len(clip) for _, clip in data.clips)
    return tuple(gap for gap in wanted if gap < shortest)


def _directions(last: int) -> tuple[Direction, ...]:
    def beyond(other: str, measure: str, claim: str) -> Direction:
        return Direction(f"{claim}, {last} frames later", measure, {"by": "feature", "frames": last},
                         {"by": other, "frames": last})  # fmt: skip

    return (
        beyond("place", "kept", "masks carried by features stay on parts better than masks that stay in place"),
        beyond("colour", "kept", "masks carried by features stay on parts better than by colours"),
        beyond(ANEW, "emerdiff", "masks carried by features segment better than the frame's own"),
    )


class _Carrier:
    """Masks of the first frame of a clip, carried to later ones."""

    def __init__(self, model: ProbeModel, config: EmerDiffConfig) -> None:
        self.model, self.config = model, config
        self.sites, self.modulation = find_feature_sites(model, config), resolve_modulation(model, config)

    def with_truth(self, scenes: Mapping[int, Scene]) -> dict[Cell, Measured]:
        """What is measured of drawn frames, by how many frames later they are."""
        frames = self._probe({gap: scene.image for gap, scene in scenes.items()})
        cells = frames[0].grid(self.sites)
        parts = {gap: majority_label(scene.parts, cells) for gap, scene in scenes.items()}
        whole = self._segment(frames[0], self._masks(frames[0]))
        measured: dict[Cell, Measured] = {}
        for gap, frame in list(frames.items())[1:]:
            matched = self._matched(frames[0], frame)
            for by, coarse in self._carried(frames[0], frame).items():
                labels, known = self._segment(frame, coarse), by != ANEW
                measured[gap, by] = {
                    "same_part": 100 * float(np.mean(parts[gap][matched[by]] == parts[0])) if known else np.nan,
                    "kept": 100 * kept(whole, scenes[0], labels, scenes[gap]) if known else np.nan,
                    "emerdiff": majority_confusion(labels, scenes[gap].parts, len(PART_NAMES)).astype(np.int32),
                }
        return measured

    def without_truth(self, images: Mapping[int, np.ndarray]) -> dict[Cell, Measured]:
        """What is measured of frames that have no truth."""
        frames = self._probe(images)
        measured: dict[Cell, Measured] = {}
        for gap, frame in list(frames.items())[1:]:
            labels = {by: self._segment(frame, coarse) for by, coarse in self._carried(frames[0], frame).items()}
            for by, found in labels.items():
                measured[gap, by] = {
                    "agreement": adjusted_rand(found, labels[ANEW]),
                    "edges": edge_distance(found, images[gap]),
                }
        return measured

    def _probe(self, images: Mapping[int, np.ndarray]) -> dict[int, ProbedImage]:
        return {gap: self.config.probe(self.model, image) for gap, image in images.items()}

    def _masks(self, frame: ProbedImage) -> np.ndarray:
        return frame.low_resolution_masks(self.sites, self.config.given_clusters, self.config.features.timesteps)

    def _features(self, frame: ProbedImage) -> torch.Tensor:
        return frame.features(self.sites, self.config.features.timesteps)

    def _colours(self, frame: ProbedImage) -> np.ndarray:
        return by_cell(frame.image, frame.grid(self.sites)).mean(1)

    def _matched(self, first: ProbedImage, later: ProbedImage) -> dict[str, np.ndarray]:
        """For every cell of the first frame its match in the later one."""
        return {
            "feature": nearest(self._features(first), self._features(later)),
            "colour": nearest_colour(self._colours(first), self._colours(later)),
            "place": np.arange(self._masks(first).size),
        }

    def _carried(self, first: ProbedImage, later: ProbedImage) -> dict[str, np.ndarray]:
        """Low-resolution masks of the later frame by every carrier."""
        masks, grid = self._masks(first), later.grid(self.sites)
        colours = mask_embeddings(torch.from_numpy(self._colours(first)).float(), masks).numpy()
        return {
            "feature": nearest(self._features(later), mask_embeddings(self._features(first), masks)).reshape(grid),
            "colour": nearest_colour(self._colours(later), colours).reshape(grid),
            "place": masks,
            ANEW: self._masks(later),
        }

    def _segment(self, frame: ProbedImage, coarse: np.ndarray) -> np.ndarray:
        maps = frame.difference_maps(coarse, self.modulation, smoothing=self.config.smoothing)
        return read_labels(maps, frame.image, self.config.sharpen)[0]


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
