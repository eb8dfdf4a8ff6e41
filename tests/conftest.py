"""Fixtures: one tiny model, one inverted image, built once for the whole session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny

from emerdiff_probe.models.loading import load_model
from emerdiff_probe.trajectories.inversion import invert


@pytest.fixture(scope="session")
def model():
    """A pocket model of random weights: 64 x 64 pixels, latents of 16 x 16, probed block at 8 x 8."""
    return load_model(tiny.pocket(), device="cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The same pipeline as a folder on disk; not to be written to."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    tiny.parts().save(place)
    return place


@pytest.fixture(scope="session")
def latents(model):
    """One encoded image."""
    return model.encode(model.to_tensor(tiny.picture()))


@pytest.fixture(scope="session")
def trajectory(model, latents):
    """Its inversion with a coarse grid: 301, 201, 101, 1."""
    return invert(model, latents, start=301, steps=10)


@pytest.fixture
def image_file(tmp_path):
    """A PNG of 64 x 64 pixels."""
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(tiny.picture()).save(path)
    return path
