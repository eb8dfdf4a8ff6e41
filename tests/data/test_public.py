"""Public data sets in miniature: every layout, and what labels mean in it."""

import numpy as np
import pytest
from PIL import Image
from small_files import HEIGHT, WIDTH, label_map, matrix, picture, values

from emerdiff_probe.data import classes, public
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import covering


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


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    picture(root / "images" / "validation" / "ADE_val_00000001.jpg")
    label_map(root / "annotations" / "validation" / "ADE_val_00000001.png", 0, 1, 13, 150)
    for given in (tmp_path, root):
        found = public.ade20k(given)
        assert found.names == ("ADE_val_00000001",)
        assert len(found.classes) == 150
        assert values(found[0]) == [IGNORED, 0, 12, 149]
        assert found.classes[12] == "person"
    with pytest.raises(InputError, match="no such folder"):
        public.ade20k(root, "training")


@pytest.mark.parametrize("places", [("images/val2017", "stuffthingmaps_trainval2017"), ("val2017", "annotations")])
def test_coco_stuff(tmp_path, places):
    images, labels = places
    for name in ("000000000139", "000000000285"):
        picture(tmp_path / images / f"{name}.jpg")
        label_map(tmp_path / labels / "val2017" / f"{name}.png", 0, 12, 91, 181, 255)
    all_classes, groups = public.coco_stuff(tmp_path), public.coco_stuff(tmp_path, classes=27)
    assert [len(found.classes) for found in (all_classes, groups)] == [171, 27]
    assert values(all_classes[0]) == [0, 11, 80, 170, IGNORED]
    names = [found.classes[label] for found in (all_classes, groups) for label in values(found[0])[:4]]
    assert names == ["person", "stop sign", "banner", "wood", "person", "outdoor", "textile", "solid"]
    (tmp_path / "list.txt").write_text("000000000285\n")
    assert public.coco_stuff(tmp_path, names=tmp_path / "list.txt").names == ("000000000285",)
    with pytest.raises(InputError, match="171, 27"):
        public.coco_stuff(tmp_path, classes=80)


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
        found = public.pascal_voc(given)
        assert found.names == ("2007_000039",)
        assert values(found[0]) == [0, IGNORED, 15, 20]
        assert found.classes[20] == "tvmonitor"
    listed.write_text("2007_000039\nno_labels\n")
    with pytest.raises(InputError, match="1 without labels: no_labels"):
        public.pascal_voc(root)
    with pytest.raises(InputError, match=r"test\.txt: cannot be read"):
        public.pascal_voc(root, "test")


def test_pascal_context(tmp_path):
    root = tmp_path / "VOC2010"
    picture(root / "JPEGImages" / "2008_000002.jpg")
    label_map(root / "SegmentationClassContext" / "2008_000002.png", 0, 1, 59)
    listed = root / "ImageSets" / "SegmentationContext" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2008_000002\n")
    found = public.pascal_context(tmp_path)
    assert len(found.classes) == 59
    assert values(found[0]) == [IGNORED, 0, 58]


def test_cityscapes(tmp_path):
    for city, number in (("munster", 1), ("lindau", 0)):
        stem = f"{city}_00000{number}_000019"
        picture(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png")
        truth = tmp_path / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png"
        label_map(truth, 0, 7, 9, 24, 33)
        label_map(truth.with_name(f"{stem}_gtFine_instanceIds.png"), 24000)
    scored, everything = public.cityscapes(tmp_path), public.cityscapes(tmp_path, classes=27)
    assert scored.names == ("lindau/lindau_000000_000019", "munster/munster_000001_000019")
    assert values(scored[0]) == [IGNORED, 0, IGNORED, 11, 18]
    assert values(everything[0]) == [IGNORED, 0, 2, 17, 26]
    assert [len(found.classes) for found in (scored, everything)] == [19, 27]
    assert everything.classes[2] == "parking"
    with pytest.raises(InputError, match="19, 27"):
        public.cityscapes(tmp_path, classes=34)


def test_camvid(tmp_path):
    picture(tmp_path / "CamVid" / "test" / "Seq05VD_f00000.png")
    label_map(tmp_path / "CamVid" / "testannot" / "Seq05VD_f00000.png", 0, 10, 11)
    for given in (tmp_path, tmp_path / "CamVid"):
        found = public.camvid(given)
        assert values(found[0]) == [0, 10, IGNORED]
        assert len(found.classes) == 11


COLOURS = """64 128 64\tAnimal
192 0 128\tArchway
64 192 0\tWall
128 128 128\tSky
0 0 0\tVoid
"""


def test_camvid_as_its_authors_hand_it_out(tmp_path):
    (tmp_path / "label_colors.txt").write_text(COLOURS)
    for name in ("0001TP_006690", "Seq05VD_f00000"):
        picture(tmp_path / "701_StillsRaw_full" / f"{name}.png")
        painted = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for column, colour in enumerate([(128, 128, 128), (192, 0, 128), (64, 192, 0), (64, 128, 64)]):
            painted[:, column * 6 : column * 6 + 6] = colour
        painted[:, :3] = 0
        (tmp_path / "LabeledApproved_full").mkdir(exist_ok=True)
        Image.fromarray(painted).save(tmp_path / "LabeledApproved_full" / f"{name}_L.png")
    found = public.camvid(tmp_path, "all")
    assert found.names == ("0001TP_006690", "Seq05VD_f00000")
    assert found.classes == classes.CAMVID_11
    assert values(found[0]) == [IGNORED, 0, 1, 9]
    own = public.camvid(tmp_path, "all", 32)
    assert own.classes == ("Animal", "Archway", "Wall", "Sky")
    assert values(own[0]) == [IGNORED, 3, 1, 2, 0]
    assert public.camvid(tmp_path, names=["Seq05VD_f00000_L.png", "0001TP_006690.png"]).names == found.names[::-1]
    with pytest.raises(InputError, match=r"no split 'test'; accepted: split=all, or names=FILE"):
        public.camvid(tmp_path)
    with pytest.raises(InputError, match="accepted: 11, 32"):
        public.camvid(tmp_path, "all", 12)
    (tmp_path / "label_colors.txt").write_text(COLOURS + "1 1 1 Horse\n")
    with pytest.raises(InputError, match="Horse; accepted: the names of CamVid"):
        public.camvid(tmp_path, "all")


def test_the_groups_of_camvid_are_its_11_classes_of_31():
    assert tuple(classes.CAMVID_GROUPS) == classes.CAMVID_11
    members = [name for group in classes.CAMVID_GROUPS.values() for name in group]
    assert len(members) == len(set(members)) == 31


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
        found = public.bsds500(given)
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
        public.ade20k,
        public.coco_stuff,
        public.pascal_voc,
        public.pascal_context,
        public.cityscapes,
        public.camvid,
        public.bsds500,
    ):
        with pytest.raises(InputError, match="no such folder") as raised:
            read(tmp_path)
        assert str(tmp_path) in str(raised.value)
