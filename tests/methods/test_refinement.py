"""Soft masks sharpened by the colours of the image."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.refinement import guided_filter
from emerdiff_probe.methods.upsampling import soft_masks


def two_colours(height=40, width=60, border=33):
    """An image of two colours with a little noise, and the column where they meet."""
    image = np.full((height, width, 3), (200, 60, 60), np.uint8)
    image[:, border:] = (60, 60, 200)
    noise = np.random.default_rng(0).integers(-4, 5, image.shape)
    return (image + noise).astype(np.uint8), border


def blurred_step(height=40, width=60, border=30, sigma=6):
    """Two masks that change over, softly, and at a place that is a little wrong."""
    right = gaussian_filter((np.arange(width) >= border).astype(float), sigma)
    return np.stack([1 - np.tile(right, (height, 1)), np.tile(right, (height, 1))])


def test_constant_masks_stay_as_they_are():
    image, _ = two_colours()
    masks = np.stack([np.full((40, 60), value) for value in (0.0, 0.3, 1.0)])
    assert np.allclose(guided_filter(masks, image, 5, 1e-3), masks, atol=1e-9)


def test_masks_under_a_flat_image_are_only_averaged():
    masks = blurred_step()
    filtered = guided_filter(masks, np.full((40, 60, 3), 90, np.uint8), 3, 1e-3)
    assert np.allclose(filtered.sum(0), 1)
    assert np.abs(np.diff(filtered[0], axis=1)).max() <= np.abs(np.diff(masks[0], axis=1)).max()


def test_a_guided_filter_follows_an_edge():
    image, border = two_colours()
    before, after = blurred_step(), guided_filter(blurred_step(), image, 8, 1e-3)
    step = after[1][:, border] - after[1][:, border - 1]
    assert step.mean() > 5 * (before[1][:, border] - before[1][:, border - 1]).mean()
    wrong = [(masks.argmax(0) != (np.arange(60) >= border)).mean() for masks in (before, after)]
    assert wrong[1] < wrong[0] / 2
    assert np.allclose(after.sum(0), 1)


def test_a_permutation_of_masks_permutes_the_result():
    image, _ = two_colours()
    masks = np.concatenate([blurred_step() * 0.7, np.full((1, 40, 60), 0.3)])
    order = [2, 0, 1]
    assert np.allclose(guided_filter(masks[order], image, 4, 1e-3), guided_filter(masks, image, 4, 1e-3)[order])


def test_soft_masks_are_probabilities_that_change_over_between_cells():
    coarse = np.array([[0, 1, 1], [2, 2, 1]])
    masks = soft_masks(coarse, 20, 30)
    assert masks.shape == (3, 20, 30)
    assert np.allclose(masks.sum(0), 1)
    assert masks[0, 0, 0] == 1
    assert 0 < masks[0, 2, 10] < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guided_filter(np.zeros((1, 4, 4)), np.zeros((4, 5, 3), np.uint8), 1, 1e-3), "height, width"),
        (lambda: guided_filter(np.full((1, 4, 4), np.nan), np.zeros((4, 4, 3), np.uint8), 1, 1e-3), "NaN"),
        (lambda: guided_filter(np.zeros((1, 4, 4)), np.zeros((4, 4, 3), np.uint8), 0, 1e-3), "radius 0"),
    ],
)
def test_masks_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
