"""Label files: what numbers and colours mean, and which option is named where they mean nothing."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from small_files import HEIGHT, WIDTH, label_map, matrix, picture

from emerdiff_probe.data.labels import ColourMap, LabelMap, map_colours, map_numbers, read_colours
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError

STREET = "# a comment\nvarious 0 0 0\nroad 128 64 0\ntraffic light 255 170 0\nlane, 10,20,30\n1 2 3\tlane\n"


@pytest.fixture
def path(tmp_path):
    """Columns of 0, 1, 3 and 2."""
    label_map(tmp_path / "a.png", 0, 1, 3, 2)
    return tmp_path / "a.png"


def row(labels):
    """Labels in the order in which they appear along the first row."""
    return labels[0][np.r_[True, labels[0][1:] != labels[0][:-1]]].tolist()


def test_numbers_are_classes_from_the_offset_on(path):
    found = LabelMap(offset=1, ignore=(0,))(path, 3)
    assert row(found) == [IGNORED, 0, 2, 1]
    assert (found.dtype, found.shape) == (np.int32, (HEIGHT, WIDTH))
    assert row(LabelMap(1, (0, 3))(path, 3)) == [IGNORED, 0, IGNORED, 1]
    assert row(LabelMap(numbers=(3, 0, 2, 1))(path, 4)) == [1, 3, 0, 2]
    assert row(LabelMap(table={3: 0})(path, 1)) == [IGNORED, 0, IGNORED]


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (LabelMap(), "labels 3 are no class; accepted: 0 to 2, ignored: 255. offset=1,ignore=255+0 would make them"),
        (LabelMap(1, ()), "labels 0 are no class; accepted: 1 to 3, ignored: none. offset=1,ignore=0 would"),
        (LabelMap(1, (2, 3)), "labels 0 are no class; accepted: 1 to 3, ignored: 2, 3. offset=0 would make them"),
        (LabelMap(7, (0,)), "labels 1, 2, 3 are no class; accepted: 7 to 9, ignored: 0. offset=1 would make them"),
        (LabelMap(numbers=(0, 1, 5)), "labels 2, 3 are no class; accepted: 0, 1, 5, ignored: 255"),
    ],
)
def test_numbers_that_are_no_class_are_named_with_the_option_that_mends_it(path, reader, message):
    with pytest.raises(InputError) as raised:
        reader(path, 3)
    assert message in str(raised.value)


def test_masks_of_0_and_255_are_two_classes_when_that_is_said(tmp_path):
    label_map(tmp_path / "a.png", 0, 255)
    with pytest.raises(InputError, match=r"labels 255 are no class.* numbers=0\+255 would say"):
        LabelMap(ignore=())(tmp_path / "a.png", 2)
    classes, reader = map_numbers(("background", "cat"), numbers=(0, 255))
    assert row(reader(tmp_path / "a.png", len(classes))) == [0, 1]


def test_names_can_be_ignored_and_make_no_class(path):
    classes, reader = map_numbers(("various", "road", "sky", "car"), ("various", 3))
    assert classes == ("road", "sky", "car")
    assert row(reader(path, 3)) == [IGNORED, 0, IGNORED, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ignore": ("void",)}, "ignore void; accepted: sky, sea"),
        ({"ignore": ("sky", "sea")}, "leaves no class"),
        ({"numbers": (1,)}, "numbers 1 of 2 classes"),
        ({"numbers": (1, 1)}, "each once"),
    ],
)
def test_numbers_that_do_not_fit_names_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        map_numbers(("sky", "sea"), **given)
    with pytest.raises(InputError, match="classes sky named twice"):
        map_numbers(("sky", "sea", "sky"), **given)


def paint(path, *colours, mode="RGB"):
    """A PNG of columns with these colours."""
    pixels = np.repeat(np.array(colours, np.uint8), -(-WIDTH // len(colours)), 0)[:WIDTH] * np.ones((HEIGHT, 1, 1), int)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)


def test_colours_are_classes_by_their_names(tmp_path):
    (tmp_path / "colours.txt").write_text(STREET, encoding="utf-8-sig")
    colours = read_colours(tmp_path / "colours.txt")
    assert colours == {
        (0, 0, 0): "various",
        (128, 64, 0): "road",
        (255, 170, 0): "traffic light",
        (10, 20, 30): "lane",
        (1, 2, 3): "lane",
    }
    classes, reader = map_colours(colours, ["various"])
    assert classes == ("road", "traffic light", "lane")
    for mode in ("RGB", "P", "RGBA"):
        paint(tmp_path / "a.png", (0, 0, 0), (10, 20, 30), (255, 170, 0), (1, 2, 3), (128, 64, 0), mode=mode)
        found = reader(tmp_path / "a.png", 3)
        assert (found.dtype, found.shape) == (np.int32, (HEIGHT, WIDTH))
        assert row(found) == [IGNORED, 2, 1, 2, 0]
    assert map_colours(colours)[0] == ("various", "road", "traffic light", "lane")
    assert map_colours(colours, ["various"], order=("lane", "road"))[0] == ("lane", "road", "traffic light")


def test_a_header_and_commas_are_taken(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nMisc Text,128,128,64\nLane 2,1,2,3\n")
    assert read_colours(tmp_path / "class_dict.csv") == {(128, 128, 64): "Misc Text", (1, 2, 3): "Lane 2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road 1 2\n", "'road 1 2'; accepted: a name, and red"),
        ("road 1 2 256\n", "0 to 255"),
        (f"road 1 2 {'9' * 5000}\n", "0 to 255"),
        ("road 1 2 3\nsky 1 2 3\n", "'sky 1 2 3' is the colour of road"),
        ("1 2 3\n", "a name"),
        ("name red green blue\n", "no colours in it"),
    ],
)
def test_lists_that_are_no_colours_are_refused(tmp_path, text, message):
    (tmp_path / "colours.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_colours(tmp_path / "colours.txt")


def test_colours_that_are_not_listed_are_named(tmp_path):
    paint(tmp_path / "a.png", (0, 0, 0), (1, 2, 3), (7, 8, 9))
    with pytest.raises(InputError, match=r"a\.png: 2 colours are no class: 1 2 3, 7 8 9; accepted: the 1 that are"):
        ColourMap(((0, 0, 0),), (0,))(tmp_path / "a.png", 1)
    with pytest.raises(InputError, match="ignore sky; accepted: road"):
        map_colours({(0, 0, 0): "road"}, ["sky"])


def test_colour_pictures_are_no_label_maps(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"\(18, 24, 3\); accepted: one number a pixel.* colours=FILE"):
        LabelMap()(tmp_path / "a.png", 3)


def test_labels_of_16_bits_are_read(tmp_path):
    label_map(tmp_path / "a.png", 300, 301)
    assert row(LabelMap(offset=300)(tmp_path / "a.png", 2)) == [0, 1]


def test_matrices_are_read_from_mat_files(tmp_path):
    path = tmp_path / "a.mat"
    matrix(path, LabelMap=np.arange(12.0).reshape(3, 4) % 3)
    assert np.array_equal(LabelMap()(path, 3), np.arange(12).reshape(3, 4) % 3)
    matrix(path, one=np.ones((3, 4)), two=np.full((3, 4), 2), words="text")
    with pytest.raises(InputError, match="must be named; it holds one, two"):
        LabelMap()(path, 3)
    assert row(LabelMap(variable="two")(path, 3)) == [2]
    with pytest.raises(InputError, match="no matrix 'three'"):
        LabelMap(variable="three")(path, 3)
    matrix(path, one=np.zeros((0, 4)))
    with pytest.raises(InputError, match=r"shape \(0, 4\)"):
        LabelMap()(path, 3)
    matrix(path, one=np.array([[-7.0, 2.0**40]]))
    assert LabelMap(numbers=(2**40, -7))(path, 2).tolist() == [[1, 0]]
    matrix(path, one=np.full((3, 4), 0.5))
    with pytest.raises(InputError, match="no integers"):
        LabelMap()(path, 3)


@pytest.mark.parametrize("keep", [0, 20, 150, 400])
def test_a_damaged_mat_file_is_an_input_error(tmp_path, keep):
    path = tmp_path / "a.mat"
    savemat(path, {"labels": np.random.default_rng(0).integers(0, 3, (40, 40))}, do_compression=True)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.mat"):
        LabelMap()(path, 3)
