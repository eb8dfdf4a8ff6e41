"""Many pictures: what is damaged is done again, and nothing is held."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image

from emerdiff_probe.batch import list_pictures, load_batch, segment_pictures
from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment


@pytest.fixture
def config(model):
    return EmerDiffConfig.for_model(model, clusters=3, modulate_at=101, steps=10)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(((64, 64), (40, 72), (64, 80))):
        Image.fromarray(tiny.picture(*size, number)).save(folder / f"photo {number}.png")
    return folder


def silent(_):
    """Tell nobody."""


def test_every_result_is_that_of_segment(model, config, photos, tmp_path):
    batch = segment_pictures(model, list_pictures([str(photos)]), config, tmp_path / "out", maps=True, report=silent)
    assert list(batch.folders) == ["photo 0", "photo 1", "photo 2"]
    assert (batch.finished, batch.skipped) == (frozenset(), {})
    for name, result in load_batch(batch):
        alone = segment(model, photos / f"{name}.png", config)
        for part in ("labels", "low_resolution_masks", "responses", "mask_embeddings", "linkage"):
            assert np.array_equal(getattr(result, part), getattr(alone, part)), part
        assert np.array_equal(result.difference_maps, alone.difference_maps.astype(np.float16).astype(np.float32))
        assert result.seconds.keys() == alone.seconds.keys() | {"write"}


def test_what_is_damaged_is_done_again_and_nothing_else(model, config, photos, tmp_path):
    pictures, out = list_pictures([str(photos)]), tmp_path / "out"
    segment_pictures(model, pictures, config, out, report=silent)
    (out / "photo 1" / "overlay.png").write_bytes(b"")
    again = segment_pictures(model, pictures, config, out, report=silent)
    assert again.finished == {"photo 0", "photo 2"}
    assert segment_pictures(model, pictures, config, out, report=silent).finished == set(pictures.names)
    assert segment_pictures(model, pictures, config, out, maps=True, report=silent).finished == set()


def test_results_with_something_against_them_are_named_also_those_finished_before(model, config, photos, tmp_path):
    pictures, out = list_pictures([str(photos)]), tmp_path / "out"
    for _ in range(2):
        batch = segment_pictures(model, pictures, config, out, report=silent)
        doubtful = [name for name, result in load_batch(batch) if result.notes]
        assert list(batch.doubtful) == doubtful
        assert (batch.note == "") == (not doubtful)
    batch = replace(batch, doubtful=("photo 1",))
    assert batch.note.startswith("1 of 3 results explain much less of the picture's colours")
    assert "emerdiff-probe calibrate" in batch.note


def test_one_picture_at_a_time_is_held(model, config, photos, tmp_path, monkeypatch):
    loaded, alive = [], []

    def held(self):
        image = tiny.picture(64, 64, len(loaded))
        loaded.append(weakref.ref(image))
        return image

    def tell(_):
        gc.collect()
        alive.append(sum(image() is not None for image in loaded))

    monkeypatch.setattr("emerdiff_probe.data.sample.Sample.pixels", held)
    segment_pictures(model, list_pictures([str(photos)]), config, tmp_path / "out", report=tell)
    assert max(alive) <= 1


def test_what_fits_no_picture_is_the_error(model, config, photos, tmp_path):
    pictures, elsewhere = list_pictures([str(photos)]), config.change(layer="up9.cross0")
    for strict, message in ((False, "none of 3 .* near ones"), (True, "photo 0: .*near ones")):
        with pytest.raises(InputError, match=message):
            segment_pictures(model, pictures, elsewhere, tmp_path / "out", strict=strict, warn=silent)
    assert not (tmp_path / "out").exists()


def test_pictures_are_files_folders_patterns_and_lists(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("photos/photo 0.png\nphotos/photo [12].png\n")
    whole = list_pictures(["photos"])
    assert whole.names == list_pictures(["@list.txt"]).names == list_pictures(["photos/*"]).names
    assert list_pictures(["nothing.png", "photos"]).names == ("nothing", *whole.names)
    (tmp_path / "@odd.png").write_bytes(b"")
    assert list_pictures(["@odd.png"]).names == ("@odd",)
    for given, message in (([], "no pictures"), (["photos", "photos/photo 0.png"], "different names")):
        with pytest.raises(InputError, match=message):
            list_pictures(given)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        list_pictures(["none"])


def test_a_result_is_never_written_inside_another(model, config, tmp_path):
    for place in ("a", "photos/a"):
        path = tmp_path / "photos" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture()).save(path)
    (tmp_path / "photos" / "a").mkdir()
    Image.fromarray(tiny.picture()).save(tmp_path / "photos" / "a" / "b.png")
    with pytest.raises(InputError, match="inside the result of a"):
        segment_pictures(model, list_pictures([str(tmp_path / "photos")]), config, tmp_path / "out", report=silent)
    assert not (tmp_path / "out").exists()
