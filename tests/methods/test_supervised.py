"""Upper references learn what they are shown, and the same way twice."""

import numpy as np
import pytest
import tiny
import torch

from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.supervised import ProbeTraining, UNet, UNetTraining, train_linear_probe, train_unet
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.sites import find_site

SITES = ("up16.resnet2.output", "up8.cross0.query")
TINY_UNET = UNetTraining(width=8, levels=2, crop=32, steps=40, batch=4, rate=1e-2)
TINY_PROBE = ProbeTraining(sites=SITES, pixels=512, steps=150)


class Picture:
    def __init__(self, image):
        self.image = image


def scene(seed, height=64, width=64):
    """A picture of two colours with noise; the truth is which colour."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), int)
    labels[rng.integers(10, 40) :, rng.integers(10, 40) :] = 1
    image = np.array([[200, 60, 40], [40, 80, 200]])[labels] + rng.integers(-15, 16, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def probed(model):
    made = [(scene(seed), seed) for seed in range(4)]
    return [(ProbedImage(model, image, start=1, steps=10, seed=seed), labels) for (image, labels), seed in made]


@pytest.fixture(scope="module")
def fitted(probed):
    return train_linear_probe(probed[:3], 2, TINY_PROBE)


def test_a_linear_probe_learns_what_it_is_shown(fitted, probed):
    for image, labels in probed:
        predicted = fitted.segment(image)
        assert predicted.shape == labels.shape
        assert np.mean(predicted == labels) > 0.85
    assert fitted.sites == SITES
    assert [part.shape for part in fitted.weights] == [(2, find_site(image.model, name).channels) for name in SITES]


def test_a_linear_probe_is_linear_in_upsampled_features(fitted, probed):
    image, _ = probed[3]
    sites = [find_site(image.model, name) for name in SITES]
    maps = [image.features(site).T.reshape(1, -1, *image.grid(site)) for site in sites]
    pixels = torch.cat([torch.nn.functional.interpolate(each, size=(64, 64), mode="bilinear")[0] for each in maps])
    scores = torch.einsum("chw,kc->khw", pixels, torch.cat(fitted.weights, 1)) + fitted.bias[:, None, None]
    assert np.mean(scores.argmax(0).numpy() == fitted.segment(image)) > 0.999


def test_a_linear_probe_is_trained_the_same_way_twice(fitted, probed):
    again = train_linear_probe(probed[:3], 2, TINY_PROBE)
    assert all(torch.equal(one, two) for one, two in zip(fitted.weights, again.weights, strict=True))
    assert torch.equal(fitted.bias, again.bias)


def test_a_linear_probe_runs_on_another_size(fitted, model):
    image = ProbedImage(model, tiny.picture(70, 101), start=1, steps=10)
    assert fitted.segment(image).shape == (70, 101)


def test_ignored_pixels_teach_nothing(probed):
    """Where half of the picture says the opposite but is not counted, the probe is as if it were not there."""
    image, labels = probed[0]
    hidden = labels.copy()
    hidden[:, ::2] = -1
    shown = train_linear_probe([(image, hidden)], 2, TINY_PROBE)
    assert np.mean(shown.segment(image) == labels) > 0.85
    other = train_linear_probe([(image, np.where(hidden < 0, 9, hidden))], 2, TINY_PROBE, ignore_index=9)
    assert torch.equal(shown.bias, other.bias)


def test_a_u_net_learns_what_it_is_shown():
    losses = []
    trained = train_unet([scene(seed) for seed in range(6)], 2, TINY_UNET, report=lambda _, loss: losses.append(loss))
    assert len(losses) == TINY_UNET.steps
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    for seed in (20, 21):
        image, labels = scene(seed, 48, 77)
        assert np.mean(trained.segment(Picture(image)) == labels) > 0.95
    assert not any(parameter.requires_grad for parameter in trained.network.parameters())


def test_a_u_net_is_trained_the_same_way_twice_and_leaves_the_global_generator():
    training = UNetTraining(width=4, levels=2, crop=16, steps=3, batch=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = (train_unet([scene(0)], 2, training).network.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = train_unet([scene(0)], 2, UNetTraining(width=4, levels=2, crop=16, steps=3, batch=2, seed=1))
    assert not torch.equal(other.network.out.weight, one["out.weight"])


def test_a_u_net_takes_images_smaller_than_its_squares_and_ignored_pixels():
    image, labels = scene(0, 20, 25)
    labels[:, :10] = -1
    trained = train_unet([(image, labels)], 3, UNetTraining(width=4, levels=3, crop=32, steps=2, batch=2))
    assert trained.segment(Picture(image)).shape == (20, 25)
    assert all(torch.isfinite(parameter).all() for parameter in trained.network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 16), (33, 20)])
@pytest.mark.parametrize(("levels", "scale"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_a_u_net_keeps_the_size_of_any_image(size, levels, scale):
    assert UNet(5, 4, levels, scale)(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("clusters", [3, 0])
def test_references_name_classes_and_take_no_number(fitted, probed, clusters):
    assert fitted.counts == "own"
    with pytest.raises(InputError, match="accepted: None"):
        fitted.segment(probed[0][0], clusters)


IMAGE, LABELS = scene(0)


@pytest.mark.parametrize(
    ("samples", "classes", "message"),
    [
        ([], 2, "no samples"),
        ([(IMAGE, np.full((64, 64), -1))], 2, "no samples"),
        ([(IMAGE, LABELS[:10])], 2, "accepted: integers"),
        ([(IMAGE, LABELS.astype(float))], 2, "accepted: integers"),
        ([(IMAGE, LABELS)], 1, "classes 0 to 1; accepted: 0 to 0, and -1"),
    ],
)
def test_truth_that_cannot_be_learnt_is_refused(samples, classes, message, model):
    with pytest.raises(InputError, match=message):
        train_unet(samples, classes, TINY_UNET)
    if samples:
        image = ProbedImage(model, IMAGE, start=1, steps=10)
        message = message.replace("no samples", "1 samples without a pixel")
        with pytest.raises(InputError, match=message):
            train_linear_probe([(image, labels) for _, labels in samples], classes, TINY_PROBE)


def test_no_probed_images_are_refused():
    with pytest.raises(InputError, match="0 samples"):
        train_linear_probe([], 2, TINY_PROBE)


@pytest.mark.parametrize(
    "given", [{"width": 6}, {"levels": 0}, {"crop": 12}, {"steps": 0}, {"rate": 0}, {"seed": -1}, {"batch": 0}]
)
def test_unet_parameters_out_of_range_are_refused(given):
    with pytest.raises(InputError, match=f"UNetTraining: {next(iter(given))} .*accepted"):
        UNetTraining(**given)


@pytest.mark.parametrize("given", [{"sites": ()}, {"pixels": 0}, {"decay": -1}, {"timestep": -1}, {"rate": np.nan}])
def test_probe_parameters_out_of_range_are_refused(given):
    with pytest.raises(InputError, match=f"ProbeTraining: {next(iter(given))} .*accepted"):
        ProbeTraining(**given)
