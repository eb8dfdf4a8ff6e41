"""Pictures of every kind come in as 8-bit RGB or are refused in one line, whatever was done to the file."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import (
    colour_labels,
    contact_sheet,
    contours,
    draw_segments,
    heatmap,
    load_colours,
    load_image,
    load_labels,
    overlay,
    palette,
    save_labels,
    write_names,
)

RGB = tiny.picture(20, 30)


def saved(picture, tmp_path, name="picture.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def header(width, height):
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


def test_rgb_comes_back_as_it_is_from_file_picture_and_array(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path)
    for source in (path, str(path), Image.fromarray(RGB), RGB):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, RGB)


def test_the_result_is_the_callers_own():
    source = RGB.copy()
    load_image(source)[:] = 0
    assert np.array_equal(source, RGB)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_become_the_rgb_that_pillow_gives(tmp_path, mode):
    picture = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(load_image(picture), np.array(picture.convert("RGB")))
    if mode in {"1", "L", "P"}:
        assert np.array_equal(load_image(saved(picture, tmp_path)), np.array(picture.convert("RGB")))
    if mode == "CMYK":
        path = saved(picture, tmp_path, "picture.jpg")
        assert np.array_equal(load_image(path), np.array(Image.open(path).convert("RGB")))


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = RGB[:, :, 0]
    loaded = load_image(saved(Image.fromarray(grey), tmp_path))
    assert all(np.array_equal(loaded[:, :, channel], grey) for channel in range(3))


def test_transparency_is_laid_over_white(tmp_path):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    loaded = load_image(saved(Image.fromarray(np.dstack([RGB, alpha])), tmp_path))
    assert (loaded[:, :15] == 255).all()
    assert np.array_equal(loaded[:, 15:], RGB[:, 15:])
    half = load_image(np.dstack([np.zeros_like(RGB), np.full((20, 30), 128, np.uint8)]))
    assert abs(int(half[0, 0, 0]) - 127) <= 1


def test_a_transparent_palette_colour_is_laid_over_white(tmp_path):
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putpixel((3, 3), 1)
    loaded = load_image(saved(picture, tmp_path, transparency=0))
    assert tuple(loaded[0, 0]) == (255, 255, 255)
    assert tuple(loaded[3, 3]) == (200, 100, 0)


def test_grey_with_alpha(tmp_path):
    picture = Image.new("LA", (20, 20), (40, 0))
    picture.putpixel((0, 0), (40, 255))
    loaded = load_image(saved(picture, tmp_path))
    assert tuple(loaded[0, 0]) == (40, 40, 40)
    assert tuple(loaded[1, 1]) == (255, 255, 255)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_integers_that_are_not_sixteen_bit_are_taken_as_they_are(dtype):
    assert np.array_equal(load_image(RGB.astype(dtype)), RGB)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    wide = Image.fromarray(ramp.astype(np.int32))
    assert wide.mode == "I"
    for source in (saved(Image.fromarray(ramp), tmp_path), Image.fromarray(ramp), ramp, ramp.astype(">u2"), wide):
        loaded = load_image(source)
        assert np.array_equal(loaded[:, :, 0], ramp // 257)
        assert (loaded.min(), loaded.max()) == (0, 255)


def test_bool_and_float_arrays_span_black_to_white():
    mask = np.zeros((20, 20), bool)
    mask[5:] = True
    assert set(np.unique(load_image(mask))) == {0, 255}
    assert np.array_equal(load_image(mask.astype(float)), load_image(mask))
    assert np.array_equal(load_image(RGB / 255), RGB)
    assert np.array_equal(load_image((RGB / 255).astype(np.float16)), RGB)
    assert np.array_equal(load_image(RGB[:, :, :1]), load_image(RGB[:, :, 0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(tmp_path, orientation):
    stored = Image.fromarray(RGB)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = stored.transpose(turns[orientation]) if orientation in turns else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(saved(stored, tmp_path, exif=exif)), np.array(upright))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such image file"),
        (lambda path: path.mkdir(), "no such image file"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("a note"), "cannot be read"),
        (lambda path: path.write_bytes(header(64, 64)), "cannot be read"),
        (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "1 x 1 pixels is too small"),
        (lambda path: Image.new("RGB", (300, 15)).save(path, "PNG"), "too small"),
        (lambda path: Image.new("RGB", (800, 20)).save(path, "PNG"), "too elongated"),
        (lambda path: Image.new("1", (8193, 8192)).save(path, "PNG"), "67,117,056 pixels"),
        (lambda path: path.write_bytes(header(12000, 12000)), "144,000,000 pixels|cannot be read"),
        (lambda path: path.write_bytes(header(60000, 60000)), "cannot be read|3,600,000,000 pixels"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_their_name(tmp_path, make, message):
    path = tmp_path / "picture.png"
    make(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a second line on the command line
        with pytest.raises(InputError, match=message) as caught:
            load_image(path)
    assert "picture.png" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / "picture"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_image(path)


def test_a_photograph_of_24_megapixels_is_taken(tmp_path):
    path = saved(Image.new("RGB", (6000, 4000), (1, 2, 3)), tmp_path, "photo.jpg")
    loaded = load_image(path)
    assert loaded.shape == (4000, 6000, 3)
    assert loaded[::1999, ::2999].std(axis=(0, 1)).max() == 0


@pytest.mark.parametrize("error", [RuntimeError("AVIF"), struct.error("unpack"), KeyError(3), MemoryError()])
@pytest.mark.parametrize("read", [load_image, load_labels, load_colours])
def test_whatever_a_decoder_raises_is_an_input_error(tmp_path, monkeypatch, error, read):
    path = saved(Image.fromarray(RGB), tmp_path)

    def fail(self):
        raise error

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(InputError, match=r"picture\.png: cannot be read"):
        read(path)


def test_malformed_exif_is_an_input_error_or_nothing(tmp_path):
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x05\x00\x00\x00\x01"
    path = saved(Image.fromarray(RGB), tmp_path, "photo.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert load_image(path).shape == RGB.shape
        except InputError as error:
            assert "photo.jpg" in str(error)  # noqa: PT017


def test_label_files_that_cannot_be_read_are_input_errors(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)).save(buffer, "PNG")
    path = tmp_path / "labels.png"
    path.write_bytes(buffer.getvalue()[:300])
    for read in (load_labels, load_colours):
        with pytest.raises(InputError, match=r"labels\.png: cannot be read"):
            read(path)
        with pytest.raises(InputError, match="no such image file"):
            read(tmp_path / "none.png")
    path.write_bytes(header(9000, 9000))
    with pytest.raises(InputError, match="81,000,000 pixels"):
        load_labels(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "picture"


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"]), st.data())
def test_a_damaged_file_loads_or_is_refused_and_nothing_else(scratch, kind, data):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load_image(scratch)
        except InputError as error:
            assert str(scratch) in str(error)  # noqa: PT017
        else:
            assert loaded.dtype == np.uint8
            assert loaded.shape[2] == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((20, 20), np.nan), "NaN"),
        (np.full((20, 20, 3), np.inf), "infinite"),
        (np.full((20, 20), 1.5), "0 to 1"),
        (np.full((20, 20), -0.1), "0 to 1"),
        (np.full((20, 20), -1), "int64: 0 to 255"),
        (np.full((20, 20), 256, np.uint32), "uint32: 0 to 255"),
        (np.zeros((20, 20, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 20, 20), np.uint8), "1, 3 or 4 channels"),
        (np.zeros(20, np.uint8), "no image"),
        (np.zeros((1, 20, 20, 3), np.uint8), "no image"),
        (np.zeros((0, 20, 3), np.uint8), "no pixels"),
        (np.zeros((1, 1, 3), np.uint8), "too small"),
        (np.zeros((20, 20), complex), "accepted"),
        (np.full((20, 20), "a"), "accepted"),
        (np.full((20, 20), None), "accepted"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array, message):
    with pytest.raises(InputError, match=message):
        load_image(array)


@pytest.mark.parametrize("top", [3, 255, 256, 65535])
def test_labels_come_back_as_written(tmp_path, top):
    labels = np.random.default_rng(0).integers(0, top + 1, (20, 30))
    labels[0, 0] = top
    path = tmp_path / "labels.png"
    save_labels(labels, path)
    loaded = load_labels(path)
    assert np.array_equal(loaded, labels)
    assert loaded.dtype == (np.uint8 if top < 256 else np.uint16)
    assert Image.open(path).mode == ("P" if top < 256 else "I;16")


@settings(max_examples=20, deadline=None)
@given(arrays.arrays(np.int64, (5, 7), elements=st.integers(0, 65535)))
def test_any_labels_come_back_as_written(scratch, labels):
    path = scratch.with_suffix(".png")
    save_labels(labels, path)
    assert np.array_equal(load_labels(path), labels)


@pytest.mark.parametrize("bad", [-1, 65536])
def test_labels_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(InputError, match="0 to 65535"):
        save_labels(np.full((20, 20), bad), tmp_path / "labels.png")
    assert not (tmp_path / "labels.png").exists()


def test_colours_are_distinct_and_do_not_depend_on_their_number():
    assert len(np.unique(palette(64), axis=0)) == 64
    assert np.array_equal(palette(256)[:10], palette(10))


def test_an_overlay_of_full_opacity_is_the_label_colours_inside_the_borders():
    labels = np.zeros((20, 30), int)
    labels[:, 15:] = 1
    drawn = overlay(RGB, labels, 1.0)
    assert np.array_equal(drawn[:, :10], colour_labels(labels)[:, :10])
    assert (drawn[:, 14] == 255).all()
    assert np.array_equal(drawn[:, 15:], colour_labels(labels)[:, 15:])


def test_contours_change_only_the_borders_and_treat_all_labels_alike():
    labels = np.zeros((20, 30), int)
    labels[:10] = 1
    for numbering in (labels, 1 - labels, labels + 7):
        drawn = contours(RGB, numbering, (1, 2, 3))
        assert (drawn[9] == (1, 2, 3)).all()
        assert np.array_equal(np.delete(drawn, 9, 0), np.delete(RGB, 9, 0))
    assert np.array_equal(contours(RGB, np.zeros((20, 30), int)), RGB)


@pytest.mark.parametrize("columns", [None, 2])
def test_a_contact_sheet_holds_every_picture_unchanged(columns):
    pictures = [RGB, 255 - RGB, RGB // 2]
    sheet = np.array(contact_sheet(pictures, ["one", "two", "three"], columns=columns, gap=4))
    across, down = (3, 1) if columns is None else (2, 2)
    height = sheet.shape[0] // down
    assert sheet.shape == (height * down, across * 34 - 4, 3)
    for i, picture in enumerate(pictures):
        bottom, left = (i // across + 1) * height, i % across * 34
        assert np.array_equal(sheet[bottom - 20 : bottom, left : left + 30], picture)


def test_a_contact_sheet_enlarges_small_pictures_to_the_largest_in_blocks():
    """Cells of a layer's grid become blocks, also of a picture that comes first; the largest is unchanged."""
    cells = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    sheet = np.array(contact_sheet([cells, RGB], ["cells", "picture"], gap=4))
    assert np.array_equal(sheet[-20:, 34:64], RGB)
    assert np.array_equal(sheet[-20:, :30], cells.repeat(10, 0).repeat(10, 1))


def test_a_colour_bar_under_a_heat_map_runs_from_zero_to_its_top_and_none_stands_under_other_panels():
    grey = np.full((64, 64, 3), 128, np.uint8)
    plain = np.array(contact_sheet([grey, grey], ["picture", "map"]))
    sheet = np.array(contact_sheet([grey, grey], ["picture", "map"], tops=[None, 2.0]))
    assert np.array_equal(sheet[: len(plain)], plain)
    under = sheet[len(plain) :]
    assert (under[:, :64] == 255).all()
    assert np.array_equal(under[5, 72:], heatmap(np.linspace(0, 2, 64)[None], 2.0)[0])


def test_a_title_wider_than_its_panel_is_broken_into_lines():
    one, two = (contact_sheet([RGB], [title]).height for title in ("one", "a title of words"))
    assert two > one


def test_a_heat_map_over_an_image_shows_both():
    values, image = np.full((20, 30), 0.5), np.repeat(RGB[..., :1], 3, -1)
    assert np.array_equal(heatmap(values, 1.0, over=image, opacity=1.0), heatmap(values, 1.0))
    assert np.array_equal(heatmap(values, 1.0, over=image, opacity=0.0), image)


def test_segments_of_two_panels_have_the_colours_of_those_that_they_overlap():
    labels = np.zeros((60, 60), int)
    labels[:, 30:] = 1
    drawn, matched = draw_segments(labels), draw_segments(1 - labels, like=labels.astype(np.uint8))
    assert np.array_equal(drawn, matched)
    assert (drawn[1, 1] == colour_labels(labels)[0, 0]).all()
    assert (drawn != overlay(np.zeros((60, 60, 3), np.uint8), labels, 1.0)).any(), "numbers stand in them"
    named = draw_segments(labels, names={0: "sky"})
    assert np.array_equal(named[:, 31:], overlay(np.zeros((60, 60, 3), np.uint8), labels, 1.0)[:, 31:])


def test_a_heat_map_is_one_scale_for_all_values():
    """The same value has the same colour in every map, and more is lighter."""
    values = np.linspace(0, 2, 12).reshape(3, 4)
    colours = heatmap(values, 2.0)
    assert colours.shape == (3, 4, 3)
    assert (np.diff(colours.reshape(-1, 3).astype(float) @ [0.2126, 0.7152, 0.0722]) > 0).all()
    assert np.array_equal(heatmap(values[:1], 2.0), colours[:1])
    assert np.array_equal(heatmap(values + 5, 2.0), np.broadcast_to(colours[-1, -1], (3, 4, 3)))


def test_reading_a_picture_imports_neither_torch_nor_plotly(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path)
    code = (
        "import sys; from emerdiff_probe.images import load_image, load_labels, overlay; load_image(sys.argv[1]); "
        "import emerdiff_probe.arrays; print(*sorted({'torch', 'plotly', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_names_are_written_where_their_label_is_widest():
    labels = np.zeros((96, 96), int)
    labels[:64, :64] = 1
    labels[90:, 90:] = 2
    picture = np.full((96, 96, 3), 128, np.uint8)
    changed = (write_names(picture, labels, {1: "sky", 2: "speck"}) != picture).any(-1)
    rows, columns = np.nonzero(changed)
    assert 25 < rows.mean() < 39
    assert 25 < columns.mean() < 39
    assert not changed[64:].any()
    assert np.array_equal(write_names(picture, labels, {}), picture)
    edge = (write_names(picture, labels[:, ::-1] == 2, {1: "a long name"}) != picture).any(-1)
    assert not edge[:, -1].any()
