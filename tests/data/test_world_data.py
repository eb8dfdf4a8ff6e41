"""The drawn world as a data set."""

import json

import numpy as np
import pytest

from emerdiff_probe.data import world as drawn_world
from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.labels import LabelMap
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.world import OBJECT_NAMES, PART_NAMES, draw_scene, write_world


@pytest.mark.parametrize(("kind", "names"), [("parts", PART_NAMES), ("objects", OBJECT_NAMES)])
def test_the_world_draws_its_scenes_when_asked(kind, names, monkeypatch):
    drawn = []

    def draw(seed, **size):
        drawn.append(seed)
        return draw_scene(seed, **size)

    monkeypatch.setattr(drawn_world, "draw_scene", draw)
    world = World(range(5, 9), kind, 32)
    assert (len(world), world.classes, world.names[0]) == (4, names, "scene-000005")
    assert not drawn
    sample = world[-1]
    assert drawn == [8]
    scene = draw_scene(8, height=32, width=32)
    assert np.array_equal(sample.pixels(), scene.image)
    assert np.array_equal(sample.labels, getattr(scene, kind))
    assert np.array_equal(sample.scene.instances, scene.instances)
    assert (sample.name, sample.origin) == (world.names[3], world.origins[3])
    assert world[1:3].names == ("scene-000006", "scene-000007")
    assert world.labelled
    assert world.ignore_index == IGNORED
    assert kind in world.name
    assert "4 images" in repr(world)
    with pytest.raises(IndexError):
        world[4]


def test_a_scene_has_one_origin_whatever_its_labels_and_size():
    assert World(range(3)).origins == World(range(3), "objects", 64).origins


@pytest.mark.parametrize(
    ("given", "message"), [({"labels": "instances"}, "'parts', 'objects'"), ({"side": 8}, "side 8")]
)
def test_a_world_of_other_labels_or_sizes_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        World(range(2), **given)


def test_a_written_world_is_read_back(tmp_path):
    write_world(tmp_path, 2, 3, height=32, width=32)
    names = list(json.loads((tmp_path / "captions.json").read_text()))
    given = {"reader": LabelMap(ignore=()), "image_ending": ".png", "label_ending": ".parts.png", "names": names}
    found = FolderDataset.from_folders(tmp_path, tmp_path, PART_NAMES, **given)
    world = World(range(3, 5), side=32)
    assert found.names == world.names
    for ours, theirs in zip(found, world, strict=True):
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.pixels(), theirs.pixels())
