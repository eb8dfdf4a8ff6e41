"""Scores against scikit-learn, scikit-image and torchmetrics, and against cases worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.metrics import adapted_rand_error
from skimage.morphology import thin
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, mutual_info_score
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.segmentation import mean_iou as torchmetrics_mean_iou

from emerdiff_probe.arrays import find_borders
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import bootstrap, student_interval
from emerdiff_probe.metrics.overlaps import (
    adjusted_rand,
    assigned_confusion,
    boundary_f,
    consensus,
    covering,
    majority_confusion,
    mean_iou,
    overlaps,
    pixel_accuracy,
    tallied_accuracy,
    tallied_iou,
    tallies,
    variation_of_information,
)

LABELS = arrays.arrays(np.int64, (6, 7), elements=st.integers(0, 4))
PARTITION_METRICS = (
    adjusted_rand,
    covering,
    boundary_f,
    lambda predicted, truth, **given: variation_of_information(predicted, truth, **given).total,
)


def entropy(labels):
    return mutual_info_score(labels.ravel(), labels.ravel()) / np.log(2)


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
    assert pixel_accuracy(majority_confusion(truth, truth, 5)) == 1
    assert boundary_f(truth, truth) == adjusted_rand(truth, truth) == covering(truth, truth) == 1
    assert variation_of_information(truth, truth).total < 1e-12


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_pixel_scores_agree_with_torchmetrics(predicted, truth):
    confusion = assigned_confusion(overlaps(predicted, truth, 5), np.unique(predicted))
    ours, theirs = torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None]
    by_class = multiclass_jaccard_index(ours, theirs, 5, average="none").double().numpy()
    occurs = np.unique(truth)
    assert np.isclose(mean_iou(confusion), by_class[occurs].mean())
    segmentation = torchmetrics_mean_iou(ours, theirs, 5, per_class=True, input_format="index").double().numpy()
    assert np.isclose(mean_iou(confusion), segmentation[0, occurs].mean())
    assert np.isclose(pixel_accuracy(confusion), accuracy_score(truth.ravel(), predicted.ravel()))
    assert tallied_iou(tallies(confusion)) == mean_iou(confusion)
    assert tallied_accuracy(tallies(confusion)) == pixel_accuracy(confusion)


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_variation_of_information_agrees_with_entropies(predicted, truth):
    shared = mutual_info_score(truth.ravel(), predicted.ravel()) / np.log(2)
    found = variation_of_information(predicted, truth)
    assert np.allclose([found.split, found.merged], [entropy(predicted) - shared, entropy(truth) - shared], atol=1e-9)
    swapped = variation_of_information(truth, predicted)
    assert np.allclose(found, swapped[::-1], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_adjusted_rand_agrees_with_its_definition(predicted, truth):
    """By pairs of pixels; scikit-image's precision and recall of pairs count a pixel's pair with itself, so not it."""
    together, in_truth = (np.equal.outer(labels.ravel(), labels.ravel()) for labels in (predicted, truth))
    pairs = np.triu_indices(truth.size, 1)
    ours, theirs = together[pairs], in_truth[pairs]
    expected = ours.sum() * theirs.sum() / len(ours)
    highest = (ours.sum() + theirs.sum()) / 2
    if highest != expected:
        by_definition = ((ours & theirs).sum() - expected) / (highest - expected)
        assert np.isclose(adjusted_rand(predicted, truth), by_definition)


def test_consensus_is_the_mean_adjusted_rand_index_with_the_others_at_the_largest_size():
    rng = np.random.default_rng(0)
    fine, other, coarse = rng.integers(0, 4, (8, 12)), rng.integers(3, 9, (8, 12)), rng.integers(0, 3, (4, 6))
    large = coarse.repeat(2, 0).repeat(2, 1)
    pairs = [[adjusted_rand(one, two) for two in (fine, other, large)] for one in (fine, other, large)]
    expected = (np.sum(pairs, axis=1) - 1) / 2
    assert consensus([fine, other, coarse]) == pytest.approx(expected)
    assert consensus([fine, fine, fine + 7]).tolist() == [1, 1, 1]
    whole = np.zeros((8, 12), int)
    assert consensus([whole, whole, fine]) == pytest.approx([0.5, 0.5, 0])
    assert np.isnan(consensus([fine])).all()


def test_adjusted_rand_follows_scikit_images_error_and_counts_label_0():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 6, (4, 4)), np.ones((16, 16), int))
    ours, errors = [], []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        predicted = np.where(rng.random(truth.shape) < share, rng.integers(0, 6, truth.shape), truth)
        ours.append(adjusted_rand(predicted, truth))
        errors.append(adapted_rand_error(truth, predicted, ignore_labels=())[0])
    assert ours[0] == 1
    assert errors[0] == 0
    assert sorted(ours, reverse=True) == ours
    assert sorted(errors) == errors
    assert adjusted_rand(np.where(truth == 0, rng.integers(0, 6, truth.shape), truth), truth) < 1


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_covering_agrees_with_its_definition(predicted, truth):
    total = 0.0
    for region in np.unique(truth):
        segments = [predicted == segment for segment in np.unique(predicted)]
        inside = truth == region
        total += inside.sum() * max((inside & segment).sum() / (inside | segment).sum() for segment in segments)
    assert np.isclose(covering(predicted, truth), total / truth.size)


def test_partition_metrics_by_hand():
    """Two halves against one segment: half of each union is shared, and one bit is lost."""
    truth = np.array([[0, 0, 1, 1]])
    whole = np.zeros((1, 4), int)
    assert covering(whole, truth) == 0.5
    assert adjusted_rand(whole, truth) == 0
    assert variation_of_information(whole, truth) == (0, 1)
    assert variation_of_information(truth, whole) == (1, 0)
    assert variation_of_information(truth, whole).total == 1


@settings(max_examples=30, deadline=None)
@given(LABELS, LABELS, LABELS, st.permutations(range(5)))
def test_no_partition_metric_sees_ignored_pixels_or_the_numbering(predicted, truth, other, order):
    truth[0, 0] = 1
    predicted_elsewhere = np.where(truth == 4, other, predicted)
    renamed = np.array(order)[predicted] * 1000 - 7
    for metric in PARTITION_METRICS:
        assert np.isclose(metric(predicted, truth, ignore_index=4), metric(predicted_elsewhere, truth, ignore_index=4))
        assert np.isclose(metric(predicted, truth), metric(renamed, truth))


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_ignored_pixels_are_left_out_of_the_confusion_as_scikit_learn_would_without_them(predicted, truth):
    truth[0, 0] = 1
    counted = truth != 4
    ignored = np.where(counted, truth, 255)
    confusion = majority_confusion(predicted, ignored, 4, ignore_index=255)
    assigned = by_majority(predicted[counted], truth[counted])
    assert np.array_equal(confusion, confusion_matrix(truth[counted], assigned, labels=range(4)))
    overlap = overlaps(predicted, ignored, 4, ignore_index=255)
    labels = torch.from_numpy(np.where(predicted < 4, predicted, 0))[None]
    theirs = multiclass_jaccard_index(labels, torch.from_numpy(ignored)[None], 4, average="none", ignore_index=255)
    direct = assigned_confusion(overlap, np.where(overlap.segments < 4, overlap.segments, 0))
    assert np.isclose(mean_iou(direct), theirs.double().numpy()[np.unique(truth[counted])].mean())


def test_segments_without_a_class_are_misses_and_false_positives_of_none():
    overlap = overlaps(np.array([[0, 0, 1, 1, 2, 2]]), np.array([[0, 0, 0, 1, 1, 1]]), 2)
    confusion = assigned_confusion(overlap, np.array([0, -1, 1]))
    assert confusion.tolist() == [[2, 0, 1], [0, 2, 1]]
    assert pixel_accuracy(confusion) == 4 / 6
    assert mean_iou(confusion) == 2 / 3  # 2 of 3 pixels of either class, and nothing wrong beside them


def test_nothing_counted_scores_zero_and_adds_nothing():
    nothing = overlaps(np.zeros((2, 2), int), np.full((2, 2), 255), 3, ignore_index=255)
    assert nothing.segments.size == 0
    assert nothing.counts.shape == (3, 0)
    confusion = assigned_confusion(nothing, np.zeros(0, int))
    assert confusion.sum() == mean_iou(confusion) == pixel_accuracy(confusion) == 0


def test_embeddings_follow_the_numbers_of_the_segments():
    embeddings = np.arange(8.0).reshape(4, 2)
    predicted, truth = np.array([[3, 3, 1, 0]]), np.array([[0, 0, 1, 9]])
    overlap = overlaps(predicted, truth, 2, ignore_index=9, embeddings=embeddings)
    assert overlap.segments.tolist() == [1, 3]
    assert overlap.embeddings.tolist() == [[2, 3], [6, 7]]
    with pytest.raises(InputError, match="3 embeddings"):
        overlaps(predicted, truth, 2, ignore_index=9, embeddings=embeddings[:3])


def test_a_border_beside_an_ignored_pixel_is_none_of_either():
    truth = halves(10)
    truth[:, 10:12] = 255  # the truth's only border lies in a band that is not counted
    assert boundary_f(halves(11), truth, ignore_index=255) == 1
    assert boundary_f(halves(5), truth, ignore_index=255) == 0
    assert boundary_f(halves(11), truth, 0) < 1


@pytest.mark.parametrize("metric", [adjusted_rand, covering, variation_of_information])
def test_an_image_without_a_counted_pixel_has_no_partition_score(metric):
    with pytest.raises(InputError, match="ignored label 255"):
        metric(np.zeros((2, 2), int), np.full((2, 2), 255), ignore_index=255)


@pytest.mark.parametrize("metric", [adjusted_rand, covering, boundary_f, variation_of_information])
def test_labels_that_are_no_integers_or_of_other_shape_are_refused(metric):
    with pytest.raises(InputError, match="integers"):
        metric(np.zeros((2, 2)), np.zeros((2, 2), int))
    with pytest.raises(InputError, match="one shape"):
        metric(np.zeros((2, 3), int), np.zeros((2, 2), int))


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


def stripes(width, shift=0, size=200):
    """Bands of alternating labels, `width` pixels each."""
    return np.tile((np.arange(size) + shift) // width % 2, (size, 1))


@pytest.mark.parametrize(
    ("shift", "pixels", "expected"), [(0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 2, 1), (3, 2.9, 0), (3, 3, 1)]
)
def test_a_shifted_border_counts_within_the_tolerance(shift, pixels, expected):
    """The tolerance is a share of the diagonal; of one of 25 pixels, 0.04 is one pixel."""
    shifted, truth = (halves(column)[:15] for column in (10 + shift, 10))
    assert truth.shape == (15, 20)
    assert boundary_f(shifted, truth, pixels / 25 * (1 + 1e-9)) == expected


def test_boundary_f_by_hand():
    flat = np.zeros((20, 20), int)
    assert boundary_f(flat, flat) == 1
    assert boundary_f(halves(10), flat) == 0
    assert boundary_f(flat, halves(10)) == 0
    both = halves(5) + halves(15)
    # precision 1/2 and recall 1, whichever has the line too many
    assert np.isclose(boundary_f(both, halves(5)), 2 / 3)
    assert np.isclose(boundary_f(halves(5), both), 2 / 3)


def test_one_border_is_found_once_however_many_lie_beside_it():
    """Bands of four pixels have 49 borders, of eight 24 of them: one of each pair is matched, the other is wrong.

    Each lies within the tolerance (two pixels) of a true one or not at all. Were two allowed to share one, a border
    drawn three times would be right three times.
    """
    assert np.isclose(boundary_f(stripes(4), stripes(8)), 2 * 24 / (49 + 24), atol=1e-3)
    thrice = sum((halves(column, 200) for column in (99, 100, 101)), np.zeros((200, 200), int))
    thrice[:, 99:101] = [7, 8]
    apart = halves(97, 200) + halves(100, 200) + halves(103, 200)
    assert np.isclose(boundary_f(apart, halves(100, 200), 0.02), 2 * 1 / (3 + 1))


def test_bands_that_are_shifted_match_but_for_what_leaves_the_image():
    """25 bands have 24 borders; by one pixel all match, by half a band none within two pixels, but all within four."""
    truth = stripes(8)
    assert np.isclose(boundary_f(stripes(8, 1), truth), 2 * 24 / (25 + 24), atol=0.03)
    assert boundary_f(stripes(8, 4), truth) == 0
    assert boundary_f(stripes(8, 4), truth, 4.01 / np.hypot(200, 200)) > 0.95


def test_as_many_borders_are_matched_as_can_be():
    """Ours at 10 and 12, theirs at 11 and 14, within two pixels: the nearest of 12 is 11, which 10 needs."""
    ours = (halves(10, 40) + halves(12, 40)) % 2
    theirs = (halves(11, 40) + halves(14, 40)) % 2
    tolerance = 2.01 / np.hypot(40, 40)
    assert boundary_f(ours, theirs, tolerance) == boundary_f(theirs, ours, tolerance) == 1


@settings(max_examples=30, deadline=None)
@given(LABELS, LABELS)
def test_the_matching_is_the_largest_there_is(predicted, truth):
    ours, theirs = (thin(find_borders(labels)) for labels in (predicted, truth))
    if not ours.any() or not theirs.any():
        return
    near = np.linalg.norm(np.argwhere(ours)[:, None] - np.argwhere(theirs), axis=2) <= 1.5
    matched = (maximum_bipartite_matching(csr_array(near), "column") >= 0).sum()
    expected = 2 * matched / (ours.sum() + theirs.sum())
    assert np.isclose(boundary_f(predicted, truth, 1.5 / np.hypot(*truth.shape)), expected)


def test_borders_of_a_large_image_score_as_those_of_a_small_one():
    """Twice as large in both ways: the tolerance grows with it, and the time does not."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 4, (8, 10)), np.ones((60, 60), int))
    moved = np.roll(truth, 3, 1)
    large, small = (np.kron(labels, np.ones((2, 2), int)) for labels in (moved, truth)), (moved, truth)
    assert boundary_f(*large) == boundary_f(*small)


def test_a_tolerance_below_zero_is_refused():
    with pytest.raises(InputError, match="tolerance -1"):
        boundary_f(halves(10), halves(10), -1)


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


def scenes_of_many_classes(images, seed):
    """Confusions of images that each show a few of 40 classes, the rarer ones the worse segmented."""
    rng = np.random.default_rng(seed)
    confusions = np.zeros((images, 40, 40))
    frequency = 1 / np.arange(1, 41)
    for confusion in confusions:
        shown = rng.choice(40, 6, replace=False, p=frequency / frequency.sum())
        hit = rng.random(6) * (1 - shown / 50)
        confusion[shown, shown] = 100 * hit
        confusion[shown, np.roll(shown, 1)] = 100 * (1 - hit)
    return confusions


def test_basic_intervals_hold_the_true_mean_iou_more_often_than_percentiles():
    population = scenes_of_many_classes(2000, 0)
    true = mean_iou(population.sum(0))
    held = {"percentile": 0, "basic": 0}
    for trial in range(40):
        sample = population[np.random.default_rng(trial).choice(2000, 60)]

        def score(weights, sample=sample):
            return mean_iou(np.tensordot(weights, sample, 1))

        for method in held:
            interval = bootstrap(score, 60, draws=200, method=method)
            held[method] += interval.low <= true <= interval.high
    assert held["basic"] > held["percentile"]
    assert held["basic"] >= 34


def test_a_basic_interval_is_the_percentiles_mirrored_at_the_figure():
    values = np.random.default_rng(0).exponential(1, 40)
    percentile, basic = (bootstrap(mean_of(values), 40, method=method) for method in ("percentile", "basic"))
    assert np.isclose(basic.low, 2 * percentile.value - percentile.high)
    assert np.isclose(basic.high, 2 * percentile.value - percentile.low)


def test_a_basic_interval_holds_its_figure_even_where_every_draw_is_biased():
    """The number of different images drawn: always fewer than there are."""
    interval = bootstrap(lambda weights: (weights > 0).sum(-1).astype(float), 200, method="basic")
    assert interval.low == interval.value == 200 < interval.high


@pytest.mark.parametrize(("images", "method"), [(0, "basic"), (3, "bca")])
def test_a_bootstrap_that_cannot_be_is_refused(images, method):
    with pytest.raises(InputError, match="accepted"):
        bootstrap(lambda weights: weights.sum(-1), images, method=method)


def test_the_interval_of_a_few_values_is_students():
    found = student_interval(np.array([1.0, 3.0]))
    assert found == pytest.approx((2, 2 - 12.706, 2 + 12.706), abs=1e-3)
    assert student_interval(np.array([5.0])) == (5, -np.inf, np.inf)
