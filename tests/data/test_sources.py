"""Data sets by their description on a command line."""

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
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
        ("world", "accepted: world, folder, images, frames, ade20k"),
        ("moon:3", "accepted: world, folder"),
        ("world:0", "number of scenes 0"),
        ("world:many", "number of scenes 'many'"),
        ("world:3,first=-1", "first -1; accepted: an integer, 0 to 2147483647"),
        ("world:1000001", "number of scenes 1000001; accepted: an integer, 1 to 1000000"),
        ("world:2,first=2147483647", "number of scenes 2; accepted: an integer, 1 to 1"),
        (f"world:{'9' * 5000}", "number of scenes '999"),
        (f"folder:{'long' * 100}", "as a list of classes"),
        (f"images:{'long' * 100}", "no such folder, or one that cannot be read"),
        ("FOLDER,offset=x", "offset 'x'; accepted: an integer"),
        ("FOLDER,offset=none", "offset None; accepted: an integer"),
        ("FOLDER,offset=1.5", "offset '1.5'; accepted: an integer"),
        ("FOLDER,ignore=x", "ignore x; accepted: sky, sea, sand"),
        ("FOLDER,numbers=1+x+3", "numbers 'x'; accepted: an integer"),
        ("FOLDER,classes=classes.txt,colours=colours.txt", "accepted: one of them"),
        ("FOLDER,colours=colours.txt", "as a list of colours"),
        ("frames:nowhere,step=0", "step 0; accepted: an integer, 1 or more"),
        ("FOLDER,labels=7", "no such folder"),
        ("FOLDER,labels=none", "no such folder"),
        ("world:3,labels=colours", "accepted: 'parts', 'objects'"),
        ("world:3,side=9", "option 'side'; accepted: first, labels, each as name=value"),
        ("world:3,first", "option 'first'"),
        ("voc:nowhere,split=val,year=2007", "option 'year'; accepted: split, first, count"),
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


def test_colours_are_taken_where_they_are_listed(folder):
    (folder / "classes.txt").rename(folder / "colours.txt")
    (folder / "colours.txt").write_text("various 0 0 0\nroad 128 64 0\nsky 0 128 128\n")
    for name in "abc":
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[32:] = (0, 128, 128)
        Image.fromarray(pixels).save(folder / "labels" / f"{name}.png")
    data = open_data(f"folder:{folder},ignore=various", side=64)
    assert data.classes == ("road", "sky")
    assert np.unique(data[0].labels).tolist() == [IGNORED, 1]
    assert open_data(f"folder:{folder}", side=64).classes == ("various", "road", "sky")


def test_several_names_and_numbers_are_ignored(folder):
    data = open_data(f"folder:{folder},ignore=0+sea,offset=1", side=64)
    assert data.classes == ("sky", "sand")
    assert [np.unique(sample.labels).tolist() for sample in data] == [[IGNORED, 0], [IGNORED], [IGNORED, 1]]
    masks = open_data(f"folder:{folder},numbers=1+2+3,ignore=0", side=64)
    assert [sample.labels.max() for sample in masks] == [0, 1, 2]


def test_a_folder_can_describe_itself_once(folder):
    (folder / "dataset.toml").write_text(
        'name = "beach"\nclasses = ["sky", "sea", "sand"]\nignore = [0]\noffset = 1\n', encoding="utf-8-sig"
    )
    data = open_data(str(folder), side=64)
    assert (data.name, data.names, data.classes) == ("beach", ("a", "b", "c"), ("sky", "sea", "sand"))
    assert [np.unique(sample.labels).tolist() for sample in data] == [[IGNORED, 0], [IGNORED, 1], [IGNORED, 2]]
    assert open_data(f"{folder},first=1,ignore=0+sea", side=64).classes == ("sky", "sand")
    (folder / "dataset.toml").write_text('kind = "images"\npath = "images"\ncount = 2\n')
    data = open_data(str(folder), side=64)
    assert (data.names, data.labelled) == (("a", "b"), False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = ", "cannot be read as TOML"),
        ('kind = "world"', "kind 'world'; accepted: folder, images"),
        ("offset = 1.5", "offset; accepted: texts"),
        ("kind = 3", "kind; accepted: texts"),
        ("classes = [1, 2]", r"classes \[1, 2\]; accepted: str"),
        ("label_ending = 3", r"label_ending 3; accepted: str | None"),
        ("strange = 1", "option 'strange'; accepted: images, labels, classes, colours"),
        ('path = "none"', "as a list of classes"),
        (None, r"each with a colon and a place or number, or dataset\.toml in"),
    ],
)
def test_descriptions_that_say_nothing_are_refused(text, message, folder):
    if text is not None:
        (folder / "dataset.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        open_data(str(folder), side=64)


def test_frames_are_opened_as_clips(folder):
    data = open_data(f"frames:{folder / 'images'},step=2", side=64)
    assert [len(sample.scene) for sample in data] == [2]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder with one image and labels."""
    place = tmp_path_factory.mktemp("scratch")
    for name in ("images", "labels"):
        (place / name).mkdir()
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(place / name / "a.png")
    return place


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["world", "folder", "images", "frames", "voc", "camvid", "bsds500", "moon", ""]),
    st.text(max_size=30) | st.integers().map(str),
    st.lists(st.tuples(st.sampled_from(["first", "count", "offset", "ignore", "names", "labels", "step"]), st.text())),
)
@example("images", "\0", [])
@example("folder", "\ud800", [])
def test_any_description_opens_or_is_refused(kind, place, options):
    spec = f"{kind}:{place}" + "".join(f",{name}={value}" for name, value in options)
    try:
        open_data(spec, side=16)
    except InputError as error:
        assert str(error)  # noqa: PT017


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["classes.txt", "colours.txt", "dataset.toml", "list.txt"]),
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
)
@example("dataset.toml", b'kind = "folder"\nimages = 3')
@example("dataset.toml", b"offset = 3\nnames = []")
@example("dataset.toml", b"classes = [1, 2]\nlabel_ending = 3")
@example("dataset.toml", b'name = 3\nclasses = ["a", "b"]')
@example("dataset.toml", b'kind = ["a"]')
@example("dataset.toml", b"path = 3")
def test_whatever_is_written_in_a_list_opens_or_is_refused(scratch, name, content):
    for other in ("classes.txt", "colours.txt", "dataset.toml"):
        (scratch / other).unlink(missing_ok=True)
    (scratch / name).write_bytes(content)
    if name == "list.txt":
        (scratch / "classes.txt").write_text("sky\nsea\n")
    spec = {"dataset.toml": str(scratch), "list.txt": f"folder:{scratch},names=list.txt"}.get(name, f"folder:{scratch}")
    try:
        data = open_data(spec, side=16)
        data[0].pixels()
        repr(data)
    except InputError as error:
        assert str(error)  # noqa: PT017
