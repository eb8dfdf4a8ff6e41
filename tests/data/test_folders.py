"""Folders of images: what is paired, what labels mean, and what is said of files that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from small_files import HEIGHT, WIDTH, label_map, picture, values

from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.labels import LabelMap
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import mean_iou, overlaps
from emerdiff_probe.metrics.protocols import Majority, confusions


@pytest.fixture
def folder(tmp_path):
    """Two photographs with indexed label maps of 3 classes from 1 on, 0 ignored."""
    for seed, name in enumerate(("b", "a")):
        picture(tmp_path / "images" / f"{name}.jpg", seed)
        label_map(tmp_path / "labels" / f"{name}.png", 0, 1, 3, 2)
    return tmp_path


def three(folder, **given):
    """Classes x, y and z from 1 on, unless a reader is given."""
    return FolderDataset.from_folders(
        folder / "images", folder / "labels", ("x", "y", "z"), **{"reader": LabelMap(1, (0,)), **given}
    )


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    found = three(folder)
    assert found.names == ("a", "b")
    assert values(found[0]) == [IGNORED, 0, 2, 1]
    assert found[0].labels.dtype == np.int32
    assert found[0].pixels().shape == (HEIGHT, WIDTH, 3)
    assert found[1:].names == ("b",)
    assert [sample.name for sample in found] == ["a", "b"]
    assert three(folder, names=["b"]).names == ("b",)
    (folder / "list.txt").write_text("b 3\n\na 7\n")
    assert three(folder, names=folder / "list.txt").names == ("b", "a")


def test_nothing_is_read_before_it_is_asked_for(folder):
    (folder / "labels" / "a.png").write_bytes(b"no picture")
    (folder / "images" / "b.jpg").write_bytes(b"no picture")
    found = three(folder)
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        found[0]
    sample = found[1]
    with pytest.raises(InputError, match=r"b\.jpg: cannot be read"):
        sample.pixels()


def test_what_does_not_pair_is_left_out_and_counted(folder):
    for name in ("c", "d"):
        picture(folder / "images" / f"{name}.png")
    label_map(folder / "labels" / "e.png", 1)
    (folder / "images" / "f.heic").write_bytes(b"a format that is not taken")
    (folder / "labels" / "notes").write_text("no suffix")
    found = three(folder)
    assert found.names == ("a", "b")
    assert sorted(found.notes) == [
        "left out, 1 without images: e",
        "left out, 2 without labels: c, d",
        f"left out, files in {folder / 'images'} of formats that are not taken: .heic (1)",
        f"left out, files in {folder / 'labels'} of formats that are not taken: no suffix (1)",
    ]
    assert three(folder, names=["a"]).notes == found.notes[:2]
    for number in range(10):
        picture(folder / "images" / f"f{number}.png")
    assert "left out, 12 without labels: c, d, f0, f1, f2 and 7 more" in three(folder).notes


def test_names_that_are_asked_for_and_not_there_are_named_in_one_error(folder):
    picture(folder / "images" / "c.png")
    with pytest.raises(InputError, match=r"2 without labels: c, q; 1 without images: q$"):
        three(folder, names=["a", "c", "q"])


@pytest.mark.parametrize(
    ("images", "labels", "option"),
    [("c.jpg", "c_mask.png", "label_ending=_mask.png"), ("c_rgb.jpg", "c.png", "image_ending=_rgb.jpg"),
     ("c.jpg", "d.png", "image_ending=…, label_ending=…")],
)  # fmt: skip
def test_a_folder_in_which_nothing_pairs_says_the_option_that_mends_it(tmp_path, images, labels, option):
    picture(tmp_path / "images" / images)
    label_map(tmp_path / "labels" / labels, 1)
    with pytest.raises(InputError, match=f"do not pair.* {option}"):
        three(tmp_path)


@pytest.mark.parametrize(
    "lines",
    [["my photo 1", "deep/b"], ["my photo 1.jpg", "images/deep/b.jpg"], ["\ufeffmy photo 1", ".\\deep\\b.png"],
     ["my photo 1", "deep/b", "my photo 1"]],
)  # fmt: skip
def test_names_in_a_list_may_hold_spaces_folders_and_suffixes(tmp_path, lines):
    for name in ("my photo 1", "my", "deep/b"):
        picture(tmp_path / "images" / f"{name}.jpg")
        label_map(tmp_path / "labels" / f"{name}.png", 1)
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    assert three(tmp_path, names=tmp_path / "list.txt").names == ("my photo 1", "deep/b")


def test_columns_after_a_name_are_left_but_words_are_not(folder):
    (folder / "list.txt").write_text("/images/b.jpg /labels/b.png\n/images/a.jpg /labels/a.png\n")
    assert three(folder, names=folder / "list.txt").names == ("b", "a")
    (folder / "list.txt").write_text("a photo 1\n")
    with pytest.raises(InputError, match="a photo 1"):
        three(folder, names=folder / "list.txt")


def test_names_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    picture(tmp_path / "images" / f"{decomposed}.jpg")
    label_map(tmp_path / "labels" / f"{composed}.png", 1)
    assert three(tmp_path).names == three(tmp_path, names=[decomposed]).names == (composed,)


def test_a_folder_of_pictures_has_neither_labels_nor_classes(folder):
    picture(folder / "images" / "deep" / "c.jpg", size=(20, 30))
    (folder / "images" / "d.heic").write_bytes(b"")
    found = FolderDataset.from_pictures(folder / "images")
    assert (found.names, found.classes, found.labelled) == (("a", "b", "deep/c"), (), False)
    sample = found[2]
    assert sample.labels is None
    assert sample.pixels().shape == (20, 30, 3)
    assert sample.origin == found.origins[2] == str((folder / "images" / "deep" / "c.jpg").resolve())
    assert found.notes == (f"left out, files in {folder / 'images'} of formats that are not taken: .heic (1)",)
    assert len(found.stamp(0)) == 2
    with pytest.raises(InputError, match="deep/c: no labels"):
        sample.truth()
    (folder / "images" / "deep" / "list.txt").write_text("c\n")
    assert FolderDataset.from_pictures(folder / "images", names=["a.jpg"]).names == ("a",)
    with pytest.raises(InputError, match="1 without images: q"):
        FolderDataset.from_pictures(folder / "images", names=["q"])


def test_a_digest_tells_pixels_and_truth_and_not_names(folder):
    one, other = three(folder)
    digests = {
        one.digest(),
        other.digest(),
        replace(one, labels=None).digest(),
        replace(one, labels=one.labels + 1).digest(),
    }
    assert len(digests) == 4
    assert all(len(digest) == 16 for digest in digests)
    assert replace(one, name="c", image=one.pixels(), origin="elsewhere").digest() == one.digest()


def test_an_image_of_another_size_than_its_labels_is_named(folder):
    picture(folder / "images" / "a.jpg", size=(20, 24))
    with pytest.raises(InputError, match=r"a: image of \(20, 24\) with labels of \(18, 24\)"):
        three(folder)[0].pixels()


def test_hidden_files_are_left_out_and_folders_inside_are_searched(folder):
    (folder / "images" / "._a.jpg").write_bytes(b"")
    (folder / "images" / "Thumbs.db").write_bytes(b"")
    for hidden in (".ipynb_checkpoints", ".Trash-1000/files"):
        picture(folder / "images" / hidden / "a.jpg")
        label_map(folder / "labels" / hidden / "a.png", 1)
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


def test_samples_go_straight_into_a_protocol(folder):
    found = three(folder)
    images = [
        overlaps(sample.labels + 5, sample.labels, len(found.classes), ignore_index=found.ignore_index)
        for sample in found
    ]
    confusion = sum(confusions(images, Majority()))
    assert mean_iou(confusion) == 1
    assert confusion.sum() == 2 * HEIGHT * WIDTH * 3 // 4
