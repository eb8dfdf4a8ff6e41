"""Data sets by their description on a command line."""

import numpy as np
import pytest
import tiny
from PIL import Image

from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.world import OBJECT_NAMES, PART_NAMES, draw_scene


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for place, name in enumerate("abc"):
        Image.fromarray(tiny.picture(seed=place)).save(tmp_path / "images" / f"{name}.png")
        labels = np.full((64, 64), place + 1, np.uint8)
        labels[0] = 0
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("sky\nsea\n\nsand\n")
    return tmp_path


def test_the_world_is_drawn_from_a_seed_on():
    data = open_data("world:3,first=7", side=64)
    assert (len(data), data.classes, data.names[0]) == (3, PART_NAMES, "scene-000007")
    scene = draw_scene(8, height=64, width=64)
    assert np.array_equal(data[1].pixels(), scene.image)
    assert np.array_equal(data[1].labels, scene.parts)
    objects = open_data("world:1,labels=objects", side=64)
    assert objects.classes == OBJECT_NAMES
    assert np.array_equal(objects[0].labels, draw_scene(0, height=64, width=64).objects)


def test_a_folder_has_images_labels_and_a_list_of_classes(folder):
    data = open_data(f"folder:{folder},offset=1,ignore=0", side=64)
    assert (data.names, data.classes) == (("a", "b", "c"), ("sky", "sea", "sand"))
    assert [np.unique(sample.labels).tolist() for sample in data] == [[IGNORED, 0], [IGNORED, 1], [IGNORED, 2]]
    assert open_data(f"folder:{folder},offset=1,ignore=0,first=1,count=1", side=64).names == ("b",)
    assert open_data(f"folder:{folder},first=2", side=64).names == ("c",)
    (folder / "some.txt").write_text("c\na\n")
    assert open_data(f"folder:{folder},names=some.txt", side=64).names == ("c", "a")
    with pytest.raises(InputError, match="labels 3 are no class"):
        open_data(f"folder:{folder},ignore=none", side=64)[2]


def test_numbers_of_a_folder_may_be_negative(folder):
    labels = np.repeat(np.arange(-2, 2), 16)[:, None] * np.ones((1, 64))
    Image.fromarray(labels.astype(np.float32)).save(folder / "labels" / "a.tif")
    (folder / "labels" / "a.png").unlink()
    data = open_data(f"folder:{folder},offset=-1,ignore=-2", side=64)
    assert data[0].labels[::16, 0].tolist() == [IGNORED, 0, 1, 2]


def test_a_folder_is_the_same_however_it_is_written(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert open_data(f"folder:{folder.name}", side=64).name == open_data(f"folder:{folder}", side=64).name


def test_public_data_sets_are_opened_with_their_options(tmp_path):
    for kind, ending, values in (
        ("images", "jpg", tiny.picture()),
        ("annotations", "png", np.ones((64, 64), np.uint8)),
    ):
        place = tmp_path / kind / "training"
        place.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(values).save(place / f"ADE_{number}.{ending}")
    data = open_data(f"ade20k:{tmp_path},split=training,count=2", side=64)
    assert (data.names, len(data.classes)) == (("ADE_0", "ADE_1"), 150)
    assert data[0].labels.max() == 0
    with pytest.raises(InputError, match="no such folder"):
        open_data(f"ade20k:{tmp_path}", side=64)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("world", "accepted: world, folder, images, ade20k, coco-stuff"),
        ("moon:3", "accepted: world, folder"),
        ("world:0", "number of scenes 0"),
        ("world:many", "number of scenes 'many'"),
        ("world:3,first=-1", "first -1; accepted: an integer, 0 or more"),
        ("FOLDER,offset=x", "offset 'x'; accepted: an integer"),
        ("FOLDER,offset=none", "offset None; accepted: an integer"),
        ("FOLDER,offset=1.5", "offset '1.5'; accepted: an integer"),
        ("FOLDER,ignore=x", "ignore 'x'; accepted: an integer"),
        ("FOLDER,labels=7", "no such folder"),
        ("FOLDER,labels=none", "no such folder"),
        ("world:3,labels=colours", "accepted: 'parts', 'objects'"),
        ("world:3,side=9", "option 'side=9'; accepted: first, labels, each as name=value"),
        ("world:3,first", "option 'first'"),
        ("voc:nowhere,split=val,year=2007", "option 'year=2007'; accepted: split, first, count"),
        ("folder:nowhere", "as a list of classes"),
        ("FOLDER,first=3", "first 3; accepted: 0 to 2"),
        ("FOLDER,count=0", "count 0"),
        ("FOLDER,classes=none.txt", "as a list of classes"),
    ],
)
def test_what_cannot_be_opened_is_refused(spec, message, folder):
    with pytest.raises(InputError, match=message):
        open_data(spec.replace("FOLDER", f"folder:{folder}"), side=64)


def test_a_folder_of_pictures_is_opened_without_labels(folder):
    data = open_data(f"images:{folder / 'images'},first=1", side=64)
    assert (data.names, data.labelled, data.classes) == (("b", "c"), False, ())
    assert data[0].pixels().shape == (64, 64, 3)


def test_a_list_of_classes_may_begin_with_a_byte_order_mark(folder):
    (folder / "classes.txt").write_text("sky\nsea\nsand\n", encoding="utf-8-sig")
    assert open_data(f"folder:{folder}", side=64).classes == ("sky", "sea", "sand")
