"""Every layout in miniature: what is paired, what labels mean, and what is said of files that do not fit."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from emerdiff_probe.data import classes, datasets
from emerdiff_probe.data.datasets import IGNORED, FolderDataset, LabelMap, World
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import save_labels
from emerdiff_probe.metrics.overlaps import covering, mean_iou, overlaps
from emerdiff_probe.metrics.protocols import Majority, confusions
from emerdiff_probe.pocket.world import OBJECT_NAMES, PART_NAMES, draw_scene, write_world

HEIGHT, WIDTH = 18, 24


def picture(path, seed=0, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def label_map(path, *numbers):
    """A PNG of columns with these numbers, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.array(numbers), -(-WIDTH // len(numbers)))[:WIDTH] * np.ones((HEIGHT, 1), int)
    save_labels(labels, path)
    return labels


def matrix(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def values(sample):
    """Labels in the order in which they appear along the first row."""
    row = sample.labels[0]
    return row[np.r_[True, row[1:] != row[:-1]]].tolist()


# --- Class lists


@pytest.mark.parametrize(
    ("listed", "count", "known"),
    [
        (classes.ADE20K_150, 150, {0: "wall", 12: "person", 20: "car", 125: "pot", 149: "flag"}),
        (classes.COCO_STUFF_171, 171, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        (tuple(classes.COCO_STUFF_27), 27, {0: "electronic", 9: "person", 12: "ceiling", 23: "sky", 26: "water"}),
        (classes.PASCAL_VOC_21, 21, {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}),
        (classes.PASCAL_CONTEXT_59, 59, {0: "aeroplane", 1: "bag", 3: "bedclothes", 36: "person", 58: "wood"}),
        (classes.CITYSCAPES_27, 27, {0: "road", 17: "person", 26: "bicycle"}),
        (classes.CITYSCAPES_19, 19, {0: "road", 10: "sky", 11: "person", 16: "train", 18: "bicycle"}),
        (classes.CAMVID_11, 11, {0: "sky", 3: "road", 10: "bicyclist"}),
    ],
)
def test_class_lists_have_the_published_lengths_and_places(listed, count, known):
    assert len(listed) == len(set(listed)) == count
    assert {place: listed[place] for place in known} == known
    assert all(name == name.strip().lower() and name for name in listed)


def test_context_is_in_the_order_in_which_its_converter_writes_it():
    assert list(classes.PASCAL_CONTEXT_59) == sorted(classes.PASCAL_CONTEXT_59)


def test_groups_of_coco_stuff_share_out_all_its_classes():
    members = [name for group in classes.COCO_STUFF_27.values() for name in group]
    assert sorted(members) == sorted(classes.COCO_STUFF_171)
    assert [len(classes.COCO_STUFF_27[name]) for name in ("person", "animal", "vehicle", "wall")] == [1, 10, 8, 7]
    assert len(classes.COCO_STUFF_LABELS) == 171
    labels = dict(zip(classes.COCO_STUFF_171, classes.COCO_STUFF_LABELS, strict=True))
    assert [labels[name] for name in ("person", "stop sign", "toothbrush", "banner", "wood")] == [0, 12, 89, 91, 181]


# --- The project's own world


@pytest.mark.parametrize(("kind", "names"), [("parts", PART_NAMES), ("objects", OBJECT_NAMES)])
def test_the_world_draws_its_scenes_when_asked(kind, names):
    drawn = []

    def draw(seed):
        drawn.append(seed)
        return draw_scene(seed, height=32, width=32)

    world = World(draw, names, range(5, 9), kind)
    assert len(world) == 4
    assert world.names[0] == "scene-000005"
    assert not drawn
    sample = world[-1]
    assert drawn == [8]
    scene = draw_scene(8, height=32, width=32)
    assert np.array_equal(sample.pixels(), scene.image)
    assert np.array_equal(sample.labels, getattr(scene, kind))
    assert world[1:3].names == ("scene-000006", "scene-000007")
    assert world.ignore_index == IGNORED
    assert kind in world.name
    assert "4 images" in repr(world)
    with pytest.raises(IndexError):
        world[4]


def test_a_world_with_too_few_classes_or_other_labels_is_refused():
    with pytest.raises(InputError, match="'parts', 'objects'"):
        World(draw_scene, PART_NAMES, range(2), "instances")
    small = World(partial(draw_scene, height=16, width=16), ("sky",), range(2))
    with pytest.raises(InputError, match="accepted: 0 to 0"):
        small[0]


def test_a_written_world_is_read_back(tmp_path):
    write_world(tmp_path, 2, 3, height=32, width=32)
    names = list(json.loads((tmp_path / "captions.json").read_text()))
    given = {"ignore_index": None, "image_ending": ".png", "label_ending": ".parts.png", "names": names}
    found = FolderDataset.from_folders(tmp_path, tmp_path, PART_NAMES, **given)
    world = World(partial(draw_scene, height=32, width=32), PART_NAMES, range(3, 5))
    assert found.names == world.names
    for ours, theirs in zip(found, world, strict=True):
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.pixels(), theirs.pixels())


# --- Folders


@pytest.fixture
def folder(tmp_path):
    """Two photographs with indexed label maps of 3 classes from 1 on, 0 ignored."""
    for seed, name in enumerate(("b", "a")):
        picture(tmp_path / "images" / f"{name}.jpg", seed)
        label_map(tmp_path / "labels" / f"{name}.png", 0, 1, 3, 2)
    return tmp_path


def three(folder, **given):
    return FolderDataset.from_folders(folder / "images", folder / "labels", ("x", "y", "z"), **given)


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    found = three(folder, ignore_index=0, offset=1)
    assert found.names == ("a", "b")
    assert values(found[0]) == [IGNORED, 0, 2, 1]
    assert found[0].labels.dtype == np.int32
    assert found[0].pixels().shape == (HEIGHT, WIDTH, 3)
    assert found[1:].names == ("b",)
    assert [sample.name for sample in found] == ["a", "b"]
    assert three(folder, ignore_index=0, offset=1, names=["b"]).names == ("b",)
    (folder / "list.txt").write_text("b\n\na 7\n")
    assert three(folder, ignore_index=0, offset=1, names=folder / "list.txt").names == ("b", "a")


def test_nothing_is_read_before_it_is_asked_for(folder):
    (folder / "labels" / "a.png").write_bytes(b"no picture")
    (folder / "images" / "b.jpg").write_bytes(b"no picture")
    found = three(folder, ignore_index=0, offset=1)
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        found[0]
    sample = found[1]
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read"):
        sample.pixels()


def test_all_mismatches_are_named_in_one_error(folder):
    for name in ("c", "d"):
        picture(folder / "images" / f"{name}.png")
    label_map(folder / "labels" / "e.png", 1)
    with pytest.raises(InputError, match=r"1 without images: e; 2 without labels: c, d$"):
        three(folder)
    with pytest.raises(InputError, match=r"1 without images: q; 2 without labels: c, q$"):
        three(folder, names=["a", "c", "q"])
    for number in range(10):
        picture(folder / "images" / f"f{number}.png")
    with pytest.raises(InputError, match=r"12 without labels: c, d, f0, f1, f2 and 7 more"):
        three(folder)


def test_an_image_of_another_size_than_its_labels_is_named(folder):
    picture(folder / "images" / "a.jpg", size=(20, 24))
    with pytest.raises(InputError, match=r"a: image of \(20, 24\) with labels of \(18, 24\)"):
        three(folder, ignore_index=0, offset=1)[0].pixels()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "labels 3 are no class; accepted: 0 to 2, ignored: 255"),
        ({"ignore_index": None, "offset": 1}, "labels 0 are no class; accepted: 1 to 3, ignored: none"),
        ({"ignore_index": [2, 3], "offset": 1}, "labels 0 are no class; accepted: 1 to 3, ignored: 2, 3"),
    ],
)
def test_numbers_that_are_no_class_are_named(folder, given, message):
    with pytest.raises(InputError, match=message):
        three(folder, **given)[0]


def test_several_numbers_can_be_ignored(folder):
    assert values(three(folder, ignore_index=[0, 3], offset=1)[0]) == [IGNORED, 0, IGNORED, 1]


def test_colour_pictures_are_no_label_maps(folder):
    picture(folder / "labels" / "a.png")
    with pytest.raises(InputError, match=r"\(18, 24, 3\); accepted: one number a pixel"):
        three(folder)[0]


def test_labels_of_16_bits_are_read(folder):
    label_map(folder / "labels" / "a.png", 300, 301)
    found = three(folder, offset=300, ignore_index=[0, 1, 2, 3])
    assert values(found[0]) == [0, 1]


def test_matrices_are_read_from_mat_files(folder):
    for name in ("a", "b"):
        (folder / "labels" / f"{name}.png").unlink()
        matrix(folder / "labels" / f"{name}.mat", LabelMap=np.arange(12.0).reshape(3, 4) % 3)
    assert np.array_equal(three(folder)[0].labels, np.arange(12).reshape(3, 4) % 3)
    matrix(folder / "labels" / "a.mat", one=np.ones((3, 4)), two=np.full((3, 4), 2), words="text")
    with pytest.raises(InputError, match="must be named; it holds one, two"):
        three(folder)[0]
    assert values(three(folder, variable="two")[0]) == [2]
    with pytest.raises(InputError, match="no matrix 'three'"):
        three(folder, variable="three")[0]
    matrix(folder / "labels" / "a.mat", one=np.full((3, 4), 0.5))
    with pytest.raises(InputError, match="no integers"):
        three(folder)[0]


@pytest.mark.parametrize("keep", [0, 20, 150, 400])
def test_a_damaged_mat_file_is_an_input_error(folder, keep):
    path = folder / "labels" / "a.mat"
    savemat(path, {"labels": np.random.default_rng(0).integers(0, 3, (40, 40))}, do_compression=True)
    path.write_bytes(path.read_bytes()[:keep])
    (folder / "labels" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.mat"):
        three(folder)[0]


def test_hidden_files_are_left_out_and_folders_inside_are_searched(folder):
    (folder / "images" / "._a.jpg").write_bytes(b"")
    (folder / "images" / "Thumbs.db").write_bytes(b"")
    picture(folder / "images" / "deep" / "a.jpg")
    label_map(folder / "labels" / "deep" / "a.png", 1)
    assert three(folder).names == ("a", "b", "deep/a")


def test_two_files_of_one_name_are_refused(folder):
    picture(folder / "images" / "a.png")
    with pytest.raises(InputError, match="both a"):
        three(folder)


def test_a_folder_that_cannot_be_used_is_refused(folder):
    with pytest.raises(InputError, match="no such folder"):
        FolderDataset.from_folders(folder / "missing", folder / "labels", ("x",))
    with pytest.raises(InputError, match="one name or more"):
        FolderDataset.from_folders(folder / "images", folder / "labels", ())
    with pytest.raises(InputError, match="list of names"):
        three(folder, names=folder / "missing.txt")
    with pytest.raises(InputError, match="no names"):
        three(folder, names=[])
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        FolderDataset.from_folders(folder / "empty", folder / "empty", ("x",))


# --- Public data sets


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    picture(root / "images" / "validation" / "ADE_val_00000001.jpg")
    label_map(root / "annotations" / "validation" / "ADE_val_00000001.png", 0, 1, 13, 150)
    for given in (tmp_path, root):
        found = datasets.ade20k(given)
        assert found.names == ("ADE_val_00000001",)
        assert len(found.classes) == 150
        assert values(found[0]) == [IGNORED, 0, 12, 149]
        assert found.classes[12] == "person"
    with pytest.raises(InputError, match="no such folder"):
        datasets.ade20k(root, "training")


@pytest.mark.parametrize("places", [("images/val2017", "stuffthingmaps_trainval2017"), ("val2017", "annotations")])
def test_coco_stuff(tmp_path, places):
    images, labels = places
    for name in ("000000000139", "000000000285"):
        picture(tmp_path / images / f"{name}.jpg")
        label_map(tmp_path / labels / "val2017" / f"{name}.png", 0, 12, 91, 181, 255)
    all_classes, groups = datasets.coco_stuff(tmp_path), datasets.coco_stuff(tmp_path, classes=27)
    assert [len(found.classes) for found in (all_classes, groups)] == [171, 27]
    assert values(all_classes[0]) == [0, 11, 80, 170, IGNORED]
    names = [found.classes[label] for found in (all_classes, groups) for label in values(found[0])[:4]]
    assert names == ["person", "stop sign", "banner", "wood", "person", "outdoor", "textile", "solid"]
    (tmp_path / "list.txt").write_text("000000000285\n")
    assert datasets.coco_stuff(tmp_path, names=tmp_path / "list.txt").names == ("000000000285",)
    with pytest.raises(InputError, match="171, 27"):
        datasets.coco_stuff(tmp_path, classes=80)


def test_pascal_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_000033", "2007_000039", "no_labels"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000033", "2007_000039"):
        label_map(root / "SegmentationClass" / f"{name}.png", 0, 255, 15, 20)
    listed = root / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2007_000039\n")
    for given in (tmp_path, tmp_path / "VOCdevkit", root):
        found = datasets.pascal_voc(given)
        assert found.names == ("2007_000039",)
        assert values(found[0]) == [0, IGNORED, 15, 20]
        assert found.classes[20] == "tvmonitor"
    listed.write_text("2007_000039\nno_labels\n")
    with pytest.raises(InputError, match="1 without labels: no_labels"):
        datasets.pascal_voc(root)
    with pytest.raises(InputError, match=r"test\.txt: cannot be read"):
        datasets.pascal_voc(root, "test")


def test_pascal_context(tmp_path):
    root = tmp_path / "VOC2010"
    picture(root / "JPEGImages" / "2008_000002.jpg")
    label_map(root / "SegmentationClassContext" / "2008_000002.png", 0, 1, 59)
    listed = root / "ImageSets" / "SegmentationContext" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2008_000002\n")
    found = datasets.pascal_context(tmp_path)
    assert len(found.classes) == 59
    assert values(found[0]) == [IGNORED, 0, 58]


def test_cityscapes(tmp_path):
    for city, number in (("munster", 1), ("lindau", 0)):
        stem = f"{city}_00000{number}_000019"
        picture(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png")
        truth = tmp_path / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png"
        label_map(truth, 0, 7, 9, 24, 33)
        label_map(truth.with_name(f"{stem}_gtFine_instanceIds.png"), 24000)
    scored, everything = datasets.cityscapes(tmp_path), datasets.cityscapes(tmp_path, classes=27)
    assert scored.names == ("lindau/lindau_000000_000019", "munster/munster_000001_000019")
    assert values(scored[0]) == [IGNORED, 0, IGNORED, 11, 18]
    assert values(everything[0]) == [IGNORED, 0, 2, 17, 26]
    assert [len(found.classes) for found in (scored, everything)] == [19, 27]
    assert everything.classes[2] == "parking"
    with pytest.raises(InputError, match="19, 27"):
        datasets.cityscapes(tmp_path, classes=34)


def test_camvid(tmp_path):
    picture(tmp_path / "CamVid" / "test" / "Seq05VD_f00000.png")
    label_map(tmp_path / "CamVid" / "testannot" / "Seq05VD_f00000.png", 0, 10, 11)
    for given in (tmp_path, tmp_path / "CamVid"):
        found = datasets.camvid(given)
        assert values(found[0]) == [0, 10, IGNORED]
        assert len(found.classes) == 11


def annotations(*people):
    cells = np.empty((1, len(people)), object)
    for place, regions in enumerate(people):
        cells[0, place] = {"Segmentation": regions.astype(np.uint16), "Boundaries": np.zeros(regions.shape, np.uint8)}
    return cells


def test_bsds500(tmp_path):
    root = tmp_path / "BSDS500" / "data"
    picture(root / "images" / "test" / "100007.jpg")
    (root / "images" / "test" / "Thumbs.db").write_bytes(b"")
    first = 1 + np.arange(WIDTH) // 12 * np.ones((HEIGHT, 1), int)
    second = np.ones((HEIGHT, WIDTH), int)
    matrix(root / "groundTruth" / "test" / "100007.mat", groundTruth=annotations(first, second))
    for given in (tmp_path, tmp_path / "BSDS500", root):
        found = datasets.bsds500(given)
        sample = found[0]
        assert found.classes == ()
        assert sample.labels.shape == (2, HEIGHT, WIDTH)
        assert sample.pixels().shape == (HEIGHT, WIDTH, 3)
    assert [covering(first, regions) for regions in sample.labels] == [1, 0.5]
    matrix(root / "groundTruth" / "test" / "100007.mat", groundTruth=np.zeros((3, 3)))
    with pytest.raises(InputError, match="no ground truth of BSDS500"):
        found[0]
    matrix(root / "groundTruth" / "test" / "100007.mat", groundTruth=annotations(first, second[:5]))
    with pytest.raises(InputError, match="all of one size"):
        found[0]


def test_a_folder_without_the_layout_names_where_it_looked(tmp_path):
    for read in (
        datasets.ade20k,
        datasets.coco_stuff,
        datasets.pascal_voc,
        datasets.pascal_context,
        datasets.cityscapes,
        datasets.camvid,
        datasets.bsds500,
    ):
        with pytest.raises(InputError, match="no such folder") as raised:
            read(tmp_path)
        assert str(tmp_path) in str(raised.value)


def test_samples_go_straight_into_a_protocol(folder):
    found = three(folder, ignore_index=0, offset=1)
    images = [
        overlaps(sample.labels + 5, sample.labels, len(found.classes), ignore_index=found.ignore_index)
        for sample in found
    ]
    confusion = sum(confusions(images, Majority()))
    assert mean_iou(confusion) == 1
    assert confusion.sum() == 2 * HEIGHT * WIDTH * 3 // 4


def test_a_table_ignores_what_it_does_not_list(folder):
    found = three(folder)
    reader = LabelMap(table={3: 0})
    labels = reader(found.pairs[0].labels, 1)
    assert np.unique(labels).tolist() == [IGNORED, 0]
