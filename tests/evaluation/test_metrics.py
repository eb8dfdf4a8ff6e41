"""Scores against scikit-learn and against cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import confusion_matrix, jaccard_score

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.metrics import bootstrap, boundary_f, majority_confusion, mean_iou

LABELS = arrays.arrays(np.int64, (6, 7), elements=st.integers(0, 4))


def by_majority(predicted, truth):
    """Every segment's most frequent class, the lowest of equals."""
    assigned = np.empty_like(truth)
    for segment in np.unique(predicted):
        inside = predicted == segment
        assigned[inside] = np.bincount(truth[inside]).argmax()
    return assigned


@settings(max_examples=60, deadline=None)
@given(LABELS, LABELS)
def test_confusion_and_mean_iou_agree_with_scikit_learn(predicted, truth):
    assigned = by_majority(predicted, truth)
    confusion = majority_confusion(predicted, truth, 6)
    assert np.array_equal(confusion, confusion_matrix(truth.ravel(), assigned.ravel(), labels=range(6)))
    expected = jaccard_score(truth.ravel(), assigned.ravel(), labels=np.unique(truth), average="macro", zero_division=0)
    assert np.isclose(mean_iou(confusion), expected)


@settings(max_examples=30, deadline=None)
@given(LABELS, LABELS, st.permutations(range(5)))
def test_the_numbering_of_segments_does_not_matter(predicted, truth, order):
    renamed = np.array(order)[predicted] + 100
    assert np.array_equal(majority_confusion(renamed, truth, 5), majority_confusion(predicted, truth, 5))
    assert boundary_f(renamed, truth) == boundary_f(predicted, truth)


@given(LABELS)
@settings(max_examples=30, deadline=None)
def test_truth_itself_scores_one(truth):
    assert mean_iou(majority_confusion(truth, truth, 5)) == 1
    assert boundary_f(truth, truth) == 1


def test_mean_iou_by_hand():
    """One segment over both classes: 3 of 4 pixels right for class 1, class 2 lost."""
    predicted, truth = np.zeros((2, 2), int), np.array([[1, 1], [1, 2]])
    confusion = majority_confusion(predicted, truth, 3)
    assert confusion.tolist() == [[0, 0, 0], [0, 3, 0], [0, 1, 0]]
    assert mean_iou(confusion) == (0.75 + 0) / 2


def test_classes_that_do_not_occur_are_left_out_and_images_add_up():
    one = majority_confusion(np.array([[0, 1]]), np.array([[0, 1]]), 9)
    two = majority_confusion(np.array([[0, 0]]), np.array([[0, 1]]), 9)
    assert mean_iou(one) == 1
    # over both images: class 0 has 2 hits and 1 wrong, class 1 has 1 hit and 1 missed
    assert np.isclose(mean_iou(one + two), (2 / 3 + 1 / 2) / 2)
    assert np.allclose(mean_iou(np.stack([one, two])), [1, 0.25])


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "one shape"),
        (np.zeros((0, 2), int), np.zeros((0, 2), int), "one shape"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(predicted, truth, message):
    with pytest.raises(InputError, match=message):
        majority_confusion(predicted, truth, 3)


def halves(column, size=20):
    return (np.arange(size) >= column) * np.ones((size, 1), int)


@pytest.mark.parametrize(
    ("shift", "tolerance", "expected"), [(0, 0.0, 1), (1, 0.0, 0), (1, 1.0, 1), (2, 2.0, 1), (3, 2.0, 0), (3, 3.0, 1)]
)
def test_a_shifted_border_counts_within_the_tolerance(shift, tolerance, expected):
    assert boundary_f(halves(10 + shift), halves(10), tolerance) == expected


def test_boundary_f_by_hand():
    flat = np.zeros((20, 20), int)
    assert boundary_f(flat, flat) == 1
    assert boundary_f(halves(10), flat) == 0
    assert boundary_f(flat, halves(10)) == 0
    both = halves(5) + halves(15)
    # precision 1/2 and recall 1, whichever has the line too many
    assert np.isclose(boundary_f(both, halves(5)), 2 / 3)
    assert np.isclose(boundary_f(halves(5), both), 2 / 3)


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(-1)


def test_the_interval_contains_the_estimate_and_is_deterministic():
    values = np.random.default_rng(0).normal(3, 1, 50)
    one, same, other = (bootstrap(mean_of(values), 50, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert np.isclose(one.value, values.mean())
    assert one.low < one.value < one.high


def test_the_interval_has_the_width_that_theory_gives_and_shrinks_with_more_images():
    widths = []
    for images in (50, 800):
        values = np.random.default_rng(0).normal(3, 1, images)
        interval = bootstrap(mean_of(values), images)
        widths.append(interval.high - interval.low)
        assert np.isclose(widths[-1], 2 * 1.96 * values.std() / np.sqrt(images), rtol=0.12)
    assert widths[1] < widths[0] / 3


def test_the_paired_difference_of_identical_methods_is_exactly_zero():
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (30, 4, 4))

    def score(weights):
        return mean_iou(np.einsum("di,ijk->djk", weights, confusions))

    assert bootstrap(lambda weights: score(weights) - score(weights), 30) == (0, 0, 0)
    assert bootstrap(score, 30).low > 0


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 5, 100)
    better = base + rng.normal(1, 0.1, 100)
    paired = bootstrap(lambda weights: mean_of(better)(weights) - mean_of(base)(weights), 100)
    assert 0.9 < paired.low < paired.high < 1.1
