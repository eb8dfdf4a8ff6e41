"""Label maps of other tools: found by name, read as they are, of the image's size, or refused."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import save_labels
from emerdiff_probe.methods.catalogue import find_method, find_methods, identity
from emerdiff_probe.methods.naming import Words
from emerdiff_probe.methods.predictions import Predictions, parse_predictions

LABELS = np.array([[3, 3, 9, 9], [3, 3, 0, 9], [7, 7, 0, 9]])
NUMBERED = np.array([[1, 1, 3, 3], [1, 1, 0, 3], [2, 2, 0, 3]])


def write(path, labels=LABELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".npz":
        np.savez(path, labels=labels, scores=np.zeros(3))
    elif path.suffix == ".json":
        annotations = [
            {
                "image_id": 1,
                "mask": int(number),
                "segmentation": rle.encode(np.asfortranarray(labels == number, np.uint8)),
            }
            for number in np.unique(labels)
        ]
        for each in annotations:
            each["segmentation"]["counts"] = each["segmentation"]["counts"].decode()
        image = {"id": 1, "file_name": "a.jpg", "height": labels.shape[0], "width": labels.shape[1]}
        path.write_text(json.dumps({"images": [image], "annotations": annotations}))
    else:
        save_labels(labels, path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg.png", "a.tif", "a/labels.png", "a.npy", "a.npz"])
def test_a_label_map_is_found_by_the_name_of_its_image(tmp_path, name):
    write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("mine")
    assert np.array_equal(Predictions.open(tmp_path).labels("a", 3, 4), NUMBERED)


@pytest.mark.parametrize("name", ["coco.json", "labels.npz"])
def test_a_file_holds_many(tmp_path, name):
    path = tmp_path / name
    if name == "labels.npz":
        np.savez(path, **{"a": LABELS, "street/b.jpg": LABELS.T})
        assert np.array_equal(Predictions.open(path).labels("street/b", 4, 3), NUMBERED.T)
    else:
        write(path)
    assert np.array_equal(Predictions.open(path).labels("a", 3, 4), NUMBERED)


def test_sixteen_bits_negative_numbers_and_whole_floats_are_segments(tmp_path):
    write(tmp_path / "deep.png", LABELS * 1000)
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    write(tmp_path / "void.npy", LABELS - 1)
    write(tmp_path / "float.npy", LABELS.astype(np.float32))
    opened = Predictions.open(tmp_path)
    for name in ("deep", "void", "float"):
        assert np.array_equal(opened.labels(name, 3, 4), NUMBERED)


def test_images_in_folders_have_label_maps_in_folders(tmp_path):
    write(tmp_path / "street" / "a.png")
    opened = Predictions.open(tmp_path)
    assert np.array_equal(opened.labels("street/a", 3, 4), NUMBERED)
    with pytest.raises(InputError, match="no label map of this image"):
        opened.labels("a", 3, 4)
    with pytest.raises(InputError, match=r"Images: park/a; label maps: street/a"):
        opened.require_some(["park/a"])
    opened.require_some(["park/a", "street/a"])


def test_the_source_changes_with_the_file(tmp_path):
    path = write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    opened = Predictions.open(tmp_path)
    before = opened.source("a"), opened.source("b")
    write(path, LABELS.clip(max=8))
    assert (opened.source("a") != before[0], opened.source("b") == before[1], opened.source("c")) == (True, True, "")


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("a.png", LABELS.T, r"shape \(4, 3\) for an image of 3 x 4"),
        ("a.npy", np.zeros((3, 4, 3), np.uint8), "colours are no labels"),
        ("a.npy", LABELS + 0.5, "no integers"),
        ("a.npy", np.full((3, 4), np.nan), "no integers"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused(tmp_path, name, labels, message):
    write(tmp_path / name, labels)
    with pytest.raises(InputError, match=message):
        Predictions.open(tmp_path).labels("a", 3, 4)


@pytest.mark.parametrize("suffix", ["png", "npy", "npz"])
def test_a_damaged_file_is_refused_by_name(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=rf"a\.{suffix}: cannot be read"):
        Predictions.open(tmp_path).labels("a", 3, 4)


def test_two_label_maps_of_one_image_are_refused(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "a.npy")
    with pytest.raises(InputError, match="both of a"):
        Predictions.open(tmp_path)


def test_names_on_the_command_line(tmp_path):
    folder = tmp_path / "masks+more"
    write(folder / "a.png")
    assert parse_predictions("emerdiff") is None
    assert find_method(f"predictions:{folder}").name == "predictions:masks+more"
    one, two = find_methods([f"predictions:SAM 2={folder}", f"Predictions: daam = {folder}"], list)
    assert (one.name, two.name) == ("predictions:SAM 2", "predictions:daam")
    assert identity(one) == {"class": "Predictions"}
    for text, message in (
        ("predictions:", "accepted: predictions:FOLDER, or predictions:NAME=FOLDER"),
        (f"predictions:{tmp_path / 'nowhere'}", "no such folder"),
        (f"predictions:{folder / 'a.png'}", "no folder"),
    ):
        with pytest.raises(InputError, match=message):
            find_method(text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label maps in it"):
        find_method(f"predictions:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="label maps of another tool are not named"):
        find_method(f"maskclip + predictions:{folder}", words=Words(None))
