"""Segments of clips: what is kept is told by shares of segments, whatever moves."""

import numpy as np
import pytest

from emerdiff_probe.data.world import World
from emerdiff_probe.pocket.world import draw_clip
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.catalogue import make_study
from emerdiff_probe.studies.study import Subject
from emerdiff_probe.studies.video import ANEW, kept


@pytest.fixture(scope="module")
def clip():
    return draw_clip(712, 3, motion="camera")


def by_region(scene):
    """A segment of its own for every part of every thing."""
    return scene.instances.astype(int) * 64 + scene.parts


def test_segments_that_follow_their_parts_are_kept_whatever_moves(clip):
    first, _, last = clip
    assert (first.parts != last.parts).mean() > 0.1
    assert kept(by_region(first), first, by_region(last), last) == pytest.approx(1)


def test_segments_that_stay_in_place_are_not(clip):
    first, _, last = clip
    still = by_region(first)
    assert 0.3 < kept(still, first, still, last) < 0.95
    assert kept(still, first, still, clip[1]) > kept(still, first, still, last)


def test_what_is_kept_does_not_depend_on_the_numbers_of_segments(clip):
    first, _, last = clip
    labels, later = by_region(first) % 7, by_region(last) % 5
    order = np.random.default_rng(0).permutation(7)
    assert kept(order[labels], first, order[later], last) == pytest.approx(kept(labels, first, later, last))
    assert kept(labels, first, labels + 7, first) == 0
    assert kept(labels // 9, first, later // 9, last) == pytest.approx(1), "one segment is always kept"


def test_every_carrier_is_measured_on_the_same_frames(model):
    config = EmerDiffConfig.paper(
        model,
        clusters=3,
        feature_sites="up8.cross0.query",
        layer="up8.cross2.output",
        modulate_at=101,
        steps=10,
        strength=1.0,
    )
    data = World(range(3, 4), side=64)
    study = make_study("video", model, data, config, quick=True)
    for motion in study.axes["motion"].values:
        found = study.measure(Subject(model, data[0], config, study.start), {"motion": motion})
        assert set(found) == set(study.cells({"motion": motion}))
        frames = dict(zip((0, 1, 7), (draw_clip(3, 8, motion=motion, height=64, width=64)[i] for i in (0, 1, 7)),
                          strict=True))  # fmt: skip
        for (gap, carrier), measured in found.items():
            assert measured["emerdiff"].sum() == 64 * 64
            assert np.isnan(measured["kept"]) == np.isnan(measured["same_part"]) == (carrier == ANEW)
            if carrier == "place":
                first, later = (frames[i].parts.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64) for i in (0, gap))
                same = [np.bincount(a).argmax() == np.bincount(b).argmax() for a, b in zip(first, later, strict=True)]
                assert measured["same_part"] == pytest.approx(100 * np.mean(same))
