"""Arrays of pixels and cells, with values known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from emerdiff_probe.arrays import (
    count_labels,
    enlarge,
    enlarge_by_rows,
    find_borders,
    match_labels,
    number_in_order,
)

LABELS = arrays.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3))


def test_labels_are_numbered_in_reading_order():
    assert number_in_order(np.array([[7, 7, 2], [9, 2, 7]])).tolist() == [[0, 0, 1], [2, 1, 0]]


def test_enlarging_puts_pixel_centres_between_cell_centres():
    cells = torch.tensor([[[0.0, 4.0]]])
    assert enlarge(cells, (1, 4)).tolist() == [[[0, 1, 3, 4]]]
    assert enlarge(cells[0], (2, 4)).tolist() == [[0, 1, 3, 4]] * 2
    assert enlarge(cells, (1, 4), mode="nearest").tolist() == [[[0, 0, 4, 4]]]


def test_only_antialiasing_sees_every_pixel_of_what_gets_smaller():
    pixels = torch.zeros(1, 1, 8)
    pixels[..., 0] = 8
    assert enlarge(pixels, (1, 1)).item() == 0
    assert enlarge(pixels, (1, 1), antialias=True).item() > 0
    wide = torch.rand(2, 3, 4)
    assert torch.allclose(enlarge(wide, (7, 9), antialias=True), enlarge(wide, (7, 9)), atol=1e-6)


def test_a_few_rows_at_a_time_are_the_whole():
    maps = torch.rand(3, 5, 7)
    stripes = dict(enlarge_by_rows(maps, 37, 30))
    assert list(stripes) == [0, 16, 32]
    assert torch.allclose(torch.cat(list(stripes.values()), 1), enlarge(maps, (37, 30)), atol=1e-6)


def test_labels_are_counted_over_all_rows():
    labels = np.arange(40 * 3).reshape(40, 3).astype(np.uint8) % 5
    assert count_labels(labels, 6).tolist() == [24, 24, 24, 24, 24, 0]
    assert count_labels(labels[:0], 2).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 5, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_axes_before_and_types_stay(shape, dtype):
    maps = torch.rand(shape).to(dtype)
    assert enlarge(maps, (3, 4)) is maps
    larger = enlarge(maps, (6, 9))
    assert (larger.shape, larger.dtype) == ((*shape[:-2], 6, 9), dtype)


def test_matched_labels_have_the_numbers_that_agree_on_most_pixels():
    reference = np.array([[4, 4, 4, 9], [4, 4, 9, 9], [-1, -1, 9, 9]])
    labels = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 1, 1]])
    assert match_labels(labels, reference).tolist() == [[4, 4, 9, 9], [4, 4, 9, 9], [1, 1, 0, 0]]


@given(LABELS, st.permutations(range(4)))
def test_matching_renames_and_undoes_a_permutation(labels, order):
    permuted = np.array(order)[labels]
    assert np.array_equal(match_labels(permuted, labels), labels)
    other = match_labels(labels, np.zeros(labels.shape, int))
    assert np.array_equal(number_in_order(other), number_in_order(labels)), "segments stay what they are"


def test_a_border_is_left_of_and_above_another_label():
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    assert find_borders(labels).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert find_borders(labels, labels != 2).astype(int).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


@given(LABELS)
def test_borders_lie_where_a_neighbour_differs(labels):
    found, counted = find_borders(labels), np.ones(labels.shape, bool)
    assert np.array_equal(found, find_borders(labels, counted))
    assert not find_borders(labels, ~counted).any()
    assert found.any() == (len(np.unique(labels)) > 1)
