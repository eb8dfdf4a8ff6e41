"""References trained when they are needed, kept, and the same when they are read again."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image

from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.labels import LabelMap
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.methods.supervised import ProbeTraining, UNetTraining, train_linear_probe, train_unet
from emerdiff_probe.segmentation.configuration import EmerDiffConfig

UNET = UNetTraining(width=4, levels=2, crop=32, steps=4, batch=2)
PROBE = ProbeTraining(sites=("up16.self0.query", "up8.cross0.query"), pixels=128, steps=20)


@pytest.fixture(scope="module")
def scenes():
    return open_data("world:3,first=500000", side=64)


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, steps=10, modulate_at=101, feature_timesteps=101, feature_draws=2)


@pytest.mark.parametrize("training", [UNET, PROBE, ProbeTraining(pixels=64, steps=5)], ids=["unet", "probe", "site"])
def test_a_reference_is_what_training_gives_and_is_read_again(training, model, scenes, config, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "weights.safetensors"
    first = Reference(training, scenes).trained(model, config, path)
    if training is UNET:
        direct = train_unet([(sample.pixels(), sample.labels) for sample in scenes], len(scenes.classes), training)
    else:
        probed = ((config.probe(model, each.pixels()), each.labels) for each in scenes)
        direct = train_linear_probe(probed, len(scenes.classes), training)
    image = config.probe(model, tiny.picture())
    expected = direct.segment(image)
    assert np.mean(first.segment(image) == expected) > 0.999
    assert list(path.parent.iterdir()) == [path]
    written = path.read_bytes()
    again = Reference(replace(training, steps=1), scenes).trained(model, config, path)
    assert np.array_equal(again.segment(image), first.segment(image))
    assert path.read_bytes() == written


def test_what_it_was_trained_on_has_one_identity_until_labels_or_their_reading_change(tmp_path):
    for kind, values in (("images", tiny.picture()), ("labels", np.zeros((64, 64), np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(values).save(tmp_path / kind / "a.png")
    folders = tmp_path / "images", tmp_path / "labels"

    def identity(**changes):
        return Reference(UNET, FolderDataset.from_folders(*folders, ("sky", "sea"), **changes)).identity()

    first = identity()
    assert identity() == first
    assert identity(reader=LabelMap(offset=1)) != first
    assert identity(reader=LabelMap(ignore=())) != first
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(folders[1] / "a.png")
    assert identity() != first


def test_training_images_that_cannot_be_read_are_left_out_and_told(model, scenes, config, tmp_path):
    class Torn(type(scenes)):
        def _read(self, place):
            if place == 1:
                raise InputError("truncated")
            return super()._read(place)

    torn = Torn(scenes.seeds, scenes.labels, scenes.side)
    told = []
    left = Reference(UNET, torn).trained(model, config, tmp_path / "torn.safetensors", warn=told.append)
    assert told == ["scene-500001 is not trained on: truncated"]
    samples = [(scenes[place].pixels(), scenes[place].labels) for place in (0, 2)]
    expected = train_unet(samples, len(scenes.classes), UNET).network.state_dict()
    assert all(np.array_equal(value, expected[name]) for name, value in left.network.state_dict().items())


def test_pictures_without_labels_train_nothing(tmp_path):
    Image.fromarray(tiny.picture()).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"1 images, no labels\): nothing to train unet on"):
        Reference(UNET, FolderDataset.from_pictures(tmp_path))
