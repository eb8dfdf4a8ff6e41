"""Colour variance that labels explain: values known by hand."""

import numpy as np
import pytest
import tiny
from skimage.color import rgb2lab

from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.colour import colour_gain, explained_variance, lab_colours

VALUES = np.array([[0.0, 0.0, 6.0, 6.0], [2.0, 2.0, 8.0, 8.0]])[..., None]
"""Columns differ by 6 and rows by 2: sums of squares 72 between columns' halves, 8 between rows, 80 in all."""


def test_the_share_is_that_of_sums_of_squares():
    halves = np.array([[0, 0, 1, 1]] * 2)
    rows = np.array([[0] * 4, [1] * 4])
    assert explained_variance(halves, VALUES) == pytest.approx(72 / 80)
    assert explained_variance(rows, VALUES) == pytest.approx(8 / 80)
    assert explained_variance(halves + 2 * rows, VALUES) == 1.0
    assert explained_variance(np.zeros((2, 4), int), VALUES) == 0.0
    assert explained_variance(5 * halves + 3, VALUES) == explained_variance(1 - halves, VALUES), "names do not count"


def test_channels_add_up_and_what_does_not_vary_is_explained_by_nothing():
    halves = np.array([[0, 0, 1, 1]] * 2)
    both = np.concatenate([VALUES, VALUES.swapaxes(0, 1).reshape(2, 4, 1) * 0 + 5], -1)
    assert explained_variance(halves, both) == pytest.approx(72 / 80)
    assert explained_variance(halves, np.full((2, 4, 3), 0.1)) == 0.0


def test_a_split_never_explains_less():
    values = lab_colours(tiny.picture())
    labels = np.arange(64)[:, None] // 16 + np.zeros((1, 64), int)
    finer = 4 * (np.arange(64)[None] // 32) + labels
    assert explained_variance(finer, values) >= explained_variance(labels, values) > 0


def test_gain_is_the_difference_and_colours_are_lab():
    picture = tiny.picture()
    assert np.allclose(lab_colours(picture), rgb2lab(picture), atol=1e-3)
    assert lab_colours(picture, (16, 32)).shape == (16, 32, 3)
    labels, enlarged = np.indices((64, 64)) // 8
    colours = lab_colours(picture)
    gain = colour_gain(labels, enlarged, colours)
    assert gain == explained_variance(labels, colours) - explained_variance(enlarged, colours)
    assert gain == -colour_gain(enlarged, labels, colours) != 0


@pytest.mark.parametrize("labels", [np.zeros((2, 3), int), np.full((2, 4), -1), np.zeros((2, 4))])
def test_bad_labels_are_refused(labels):
    with pytest.raises(InputError, match="accepted:"):
        explained_variance(labels, VALUES)
