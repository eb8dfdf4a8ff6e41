"""Laws of one image under the probe."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.sites import find_site


@pytest.fixture(scope="module")
def model() -> ProbeModel:
    return load_model(tiny.pocket(), device="cpu")


def probe(model: ProbeModel, draws: int = 1, seed: int = 0) -> ProbedImage:
    return ProbedImage(model, tiny.picture(), start=301, steps=10, seed=seed, draws=draws)


def test_features_over_many_draws_depend_less_on_the_seed(model):
    site = find_site(model, "up8.self1.query")

    def apart(draws: int) -> float:
        first, second = (probe(model, draws, seed).features(site, 301) for seed in (0, 1))
        return float(torch.linalg.vector_norm(first - second))

    assert apart(16) < 0.5 * apart(1)  # independent draws: a quarter


def test_draws_are_of_features_only(model):
    site = find_site(model, "up8.self1.query")
    one, many = probe(model), probe(model, 4)
    assert torch.equal(one.trajectory.latents, many.trajectory.latents)
    assert not torch.allclose(one.features(site, 301), many.features(site, 301))
    assert torch.equal(many.features(site, 301), probe(model, 4).features(site, 301))
    assert many.features(site, 301).shape == one.features(site, 301).shape


def test_the_first_draw_is_the_trajectory(model):
    many = probe(model, 3)
    assert torch.equal(many._drawn.at(101)[:1], many.trajectory.at(101))


def test_the_first_draws_are_those_of_an_image_probed_with_so_few(model):
    site, four = find_site(model, "up8.self1.query"), probe(model, 4)
    four.features(site, 301)
    two = four.with_draws(2)
    assert torch.equal(two.features(site, 301), probe(model, 2).features(site, 301))
    assert (two.draws, four.draws) == (2, 4)
    assert not torch.equal(two.features(site, 301), four.features(site, 301))
    for draws in (0, 5):
        with pytest.raises(InputError, match="accepted: 1 to 4"):
            four.with_draws(draws)


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_a_bad_number_of_draws_is_refused(model, draws):
    with pytest.raises(InputError, match="draws of noise"):
        probe(model, draws)
    with pytest.raises(InputError, match="feature_draws"):
        EmerDiffConfig().change(feature_draws=draws)


def test_ddim_has_no_draws_to_average(model):
    with pytest.raises(InputError, match="DDIM"):
        EmerDiffConfig().change(feature_draws=2, method="ddim")
    assert EmerDiffConfig.for_model(model, method="ddim").features.draws == 1


def test_a_configuration_probes_as_it_says(model):
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=101, feature_timesteps=301, feature_draws=2, seed=3)
    probed = config.probe(model, tiny.picture())
    assert (probed.trajectory.timesteps[0], probed.draws, probed.seed) == (301, 2, 3)
    assert config.probe(model, tiny.picture(), start=101).trajectory.timesteps[0] == 101


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_the_replay_error_is_small_and_would_be_large_for_a_broken_trajectory(model, method):
    probed = ProbedImage(model, tiny.picture(), start=301, steps=10, method=method)
    assert probed.replay_error() < 1e-4
    whole = probed.trajectory
    for broken in (
        replace(whole, latents=whole.latents * 1.1),
        replace(whole, prompt="red car"),
        replace(whole, eta=1 - whole.eta),
    ):
        probed.trajectory = broken
        assert probed.replay_error() > 1e-3


def test_pictures_of_every_kind_are_probed_as_load_image_reads_them(model):
    image = tiny.picture()
    latents = ProbedImage(model, image, start=1).latents
    assert torch.equal(ProbedImage(model, image / 255, start=1).latents, latents)
    flipped = image[:, ::-1]
    assert torch.equal(
        ProbedImage(model, flipped, start=1).latents, ProbedImage(model, flipped.copy(), start=1).latents
    )
    grey = ProbedImage(model, image[..., 0], start=1)
    assert torch.equal(grey.latents, ProbedImage(model, np.repeat(image[..., :1], 3, 2), start=1).latents)
    assert grey.image.shape == image.shape


@pytest.mark.parametrize("image", [np.full((64, 64, 3), np.nan), np.zeros((3, 64, 64)), np.zeros((4, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(model, image):
    with pytest.raises(InputError):
        ProbedImage(model, image, start=1)
