"""Labels that take the picture's borders: on photographs, at any size, for every kind of sharpening."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from sklearn.datasets import load_sample_image

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.cost import measured
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.segmentation import sharpen
from emerdiff_probe.segmentation.crf import BilateralKernel, mean_field
from emerdiff_probe.segmentation.sharpen import SHARPENINGS, read_labels

SETTINGS = {"appearance": 10.0, "smoothness": 3.0, "smoothing": 2.0, "iterations": 5}
SHARP = SHARPENINGS[1:]


def photograph(height, width, name="china.jpg"):
    """A part of a photograph at a small size: textures, gradients and noise."""
    picture = astronaut() if name == "astronaut" else load_sample_image(name)
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def gradient(height, width):
    """From dark red to bright blue, without a border."""
    share = np.linspace(0, 1, width)[None, :, None] * np.ones((height, 1, 1))
    return np.round((1 - share) * [90, 20, 30] + share * [150, 180, 250]).astype(np.uint8)


def two_colours(height=40, width=60, border=33):
    """An image of two colours with a little noise, and the column where they meet."""
    image = np.full((height, width, 3), (200, 60, 60), np.uint8)
    image[:, border:] = (60, 60, 200)
    noise = np.random.default_rng(0).integers(-4, 5, image.shape)
    return (image + noise).astype(np.uint8), border


def step(height=40, width=60, border=30):
    """Two coarse masks that meet at a place that is a little wrong."""
    right = torch.sigmoid((torch.arange(width) - border + 0.5) / 6).expand(height, width)
    return torch.stack([1 - right, right])


def blobs(masks, height, width, seed=0):
    """Coarse maps, 0 or more."""
    return torch.rand(masks, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sharpen", SHARP)
def test_borders_go_where_the_colours_change(sharpen):
    image, border = two_colours()
    truth = np.arange(60) >= border
    plain, sharp = (read_labels(step(), image, kind)[0] for kind in ("none", sharpen))
    wrong, left = ((labels != truth).mean() for labels in (plain, sharp))
    assert wrong > 0.04
    assert left < wrong if sharpen == "bilateral" else left == 0  # means alone reach no farther than their kernel


def test_nothing_sharpened_is_the_argmax_of_the_enlarged_maps():
    maps, image = blobs(5, 12, 16), photograph(48, 64)
    labels, responses = read_labels(maps, image)
    large = enlarge(maps, (48, 64))
    assert np.array_equal(labels, assign(large))
    expected = [float(large[mask].numpy()[labels == mask].mean()) for mask in range(5)]
    assert np.allclose(responses, expected, atol=1e-5)


@pytest.mark.parametrize("sharpen", SHARP)
def test_a_permutation_of_the_masks_permutes_the_labels(sharpen):
    maps, image = blobs(6, 8, 12), photograph(40, 60, "flower.jpg")
    order = [3, 0, 5, 1, 4, 2]
    labels, responses = read_labels(maps, image, sharpen)
    permuted, others = read_labels(maps[order], image, sharpen)
    assert np.mean(np.array(order)[permuted] == labels) > 0.999
    assert np.allclose(others, responses[order], atol=1e-3)


@pytest.mark.parametrize("sharpen", SHARP)
def test_a_mask_alone_and_maps_without_a_difference_give_one_label(sharpen):
    image = photograph(40, 60)
    for maps in (torch.ones(1, 8, 12), torch.zeros(3, 8, 12)):
        labels, _ = read_labels(maps, image, sharpen)
        assert labels.shape == (40, 60)
        assert not labels.any()


@pytest.mark.parametrize("sharpen", SHARP)
def test_a_picture_has_the_same_segments_at_another_size(sharpen):
    """A photograph and the same at twice the size, larger than what is worked at."""
    maps = blobs(4, 6, 8, seed=1)
    large = photograph(800, 1000, "astronaut")
    small = np.array(Image.fromarray(large).resize((500, 400), Image.Resampling.BOX))
    one, other = (read_labels(maps, image, sharpen)[0] for image in (small, large))
    assert np.mean(one == other[::2, ::2]) > 0.95


def test_a_large_picture_in_stripes_has_the_labels_of_the_whole(monkeypatch):
    maps, image = blobs(4, 6, 8, seed=1), photograph(1400, 640)
    whole, responses = read_labels(maps, image, "wls")
    monkeypatch.setattr(sharpen, "STRIPE_PIXELS", 0)  # of 40 rows, which see 20 beyond
    parts, others = read_labels(maps, image, "wls")
    assert (whole != parts).sum() <= 2
    assert np.allclose(responses, others, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "wls"])
def test_memory_grows_by_a_byte_of_label_a_pixel(kind, monkeypatch):
    """Not by a float, of which a map of the size of the picture holds four bytes, and the filter seven such maps."""
    monkeypatch.setattr(sharpen, "STRIPE_PIXELS", 2**17)
    maps, small, large = blobs(3, 6, 8), photograph(1024, 1024), photograph(2048, 2048)

    def peak(image):
        return measured(lambda: read_labels(maps, image, kind), torch.device("cpu"))[1].peak_mib

    peak(small)  # libraries are loaded
    peaks = [peak(small), peak(large)]
    if None in peaks:
        pytest.skip("this system does not tell a process's peak of memory")
    assert peaks[1] - peaks[0] <= 2 * 3  # three megapixels more


@pytest.mark.parametrize("sharpen", SHARPENINGS)
def test_many_masks_have_labels_of_two_bytes(sharpen):
    maps = torch.zeros(300, 4, 4)
    maps[299] = 1
    labels, responses = read_labels(maps, photograph(32, 48), sharpen)
    assert labels.dtype == np.uint16
    assert (labels == 299).all()
    assert np.allclose(responses[[0, 299]], [0, 1])


def test_an_unknown_sharpening_is_refused():
    with pytest.raises(InputError, match="sharpen 'knife'; accepted: none, wls, bilateral, crf"):
        read_labels(torch.ones(1, 4, 4), photograph(32, 32), "knife")


def exact_means(image, values, space, colour):
    """By all pairs of pixels."""
    places = np.indices(image.shape[:2]).reshape(2, -1).T
    points = np.concatenate([places / space, image.reshape(-1, 3) / colour], 1)
    squares = (points**2).sum(1)
    weights = np.exp(points @ points.T - squares[:, None] / 2 - squares / 2)
    return (values.reshape(len(values), -1) @ weights / weights.sum(0)).reshape(values.shape)


@pytest.mark.parametrize(
    "image",
    [gradient(40, 56), photograph(40, 56), photograph(40, 56, "flower.jpg"), photograph(40, 56, "astronaut")],
    ids=["gradient", "china", "flower", "astronaut"],
)
@pytest.mark.parametrize(("space", "colour"), [(4.0, 20.0), (8.0, 40.0)])
def test_the_bilateral_kernel_is_near_the_exact_one(image, space, colour):
    values = enlarge(blobs(3, 5, 7), (40, 56)).numpy()
    found, expected = BilateralKernel(image, space, colour)(values), exact_means(image, values, space, colour)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_means_of_a_constant_are_the_constant():
    image = photograph(40, 60)
    masks = np.stack([np.full((40, 60), value) for value in (0.0, 0.3, 1.0)])
    assert np.allclose(BilateralKernel(image, 20, 13)(masks), masks, atol=1e-5)


def test_a_crf_follows_an_edge_and_gives_probabilities():
    image, border = two_colours()
    before = step().numpy()
    after = mean_field(before, BilateralKernel(image, 15, 13), **SETTINGS)
    assert np.allclose(after.sum(0), 1, atol=1e-5)
    wrong = [(masks.argmax(0) != (np.arange(60) >= border)).mean() for masks in (before, after)]
    assert wrong[0] > 0.04
    assert wrong[1] == 0


def energy(labels, shares, image, space, colour, appearance, smoothness, smoothing):
    """Of labels, by all pairs of pixels; messages are weighted means."""
    masks = np.stack([labels == mask for mask in range(len(shares))]).astype(float)
    near = np.full_like(image, 0)
    own = -np.log(np.maximum(shares, 1e-3))[labels, *np.indices(labels.shape)].sum()
    alike = appearance * exact_means(image, masks, space, colour) + smoothness * exact_means(near, masks, smoothing, 1)
    return own - alike[labels, *np.indices(labels.shape)].sum() / 2


def test_a_crf_lowers_the_energy_of_a_photograph():
    image = photograph(32, 48, "flower.jpg")
    shares = torch.softmax(3 * enlarge(blobs(4, 4, 6), (32, 48)), 0).numpy()
    found = mean_field(shares, BilateralKernel(image, 6, 20), **SETTINGS).argmax(0)
    weights = {name: SETTINGS[name] for name in ("appearance", "smoothness", "smoothing")}
    before, after = (energy(labels, shares, image, 6, 20, **weights) for labels in (shares.argmax(0), found))
    assert after < before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BilateralKernel(np.zeros((4, 4), np.uint8), 3, 3), r"\(height, width, 3\)"),
        (
            lambda: mean_field(np.ones((2, 4, 5)), BilateralKernel(np.zeros((4, 4, 3), np.uint8), 3, 3), **SETTINGS),
            "4, 4",
        ),
        (
            lambda: mean_field(-np.ones((2, 4, 4)), BilateralKernel(np.zeros((4, 4, 3), np.uint8), 3, 3), **SETTINGS),
            "0 or more",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
