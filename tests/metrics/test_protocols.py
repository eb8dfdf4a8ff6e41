"""Protocols against exhaustive search, brute force and cases worked out by hand; laws of all of them."""

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import confusion_matrix, jaccard_score

from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import Overlap, boundary_f, mean_iou, overlaps, pixel_accuracy
from emerdiff_probe.metrics.protocols import (
    HungarianPerDataset,
    HungarianPerImage,
    Majority,
    NearestConcept,
    OpenVocabulary,
    Supervised,
    average,
    average_difference,
    compare,
    concept_embeddings,
    confusions,
    evaluate,
    judge,
    region_sums,
    shared_segments,
)

CLASSES = 4
LABELS = arrays.arrays(np.int64, (3, 5, 6), elements=st.integers(0, CLASSES - 1))
"""Three images."""
PROTOCOLS = (Majority(), HungarianPerImage(), HungarianPerDataset())


def made(predicted, truth, classes=CLASSES, **more):
    return [overlaps(ours, theirs, classes, **more) for ours, theirs in zip(predicted, truth, strict=True)]


def total(images, protocol):
    return sum(confusions(images, protocol))


@pytest.mark.parametrize("protocol", [*PROTOCOLS, OpenVocabulary()], ids=lambda protocol: protocol.name)
@settings(max_examples=20, deadline=None)
@given(truth=LABELS)
def test_the_truth_itself_scores_one(protocol, truth):
    images = made(truth, truth)
    score = evaluate(images, protocol, draws=20)
    assert (score.value, score.low, score.high) == (1, 1, 1)
    assert evaluate(images, protocol, "pixel accuracy", draws=20).value == 1


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@settings(max_examples=30, deadline=None)
@given(predicted=LABELS, truth=LABELS, order=st.permutations(range(CLASSES)))
def test_the_numbering_of_segments_does_not_matter(protocol, predicted, truth, order):
    renamed = np.array(order)[predicted] * 10 - 3
    assert np.array_equal(total(made(predicted, truth), protocol), total(made(renamed, truth), protocol))


@settings(max_examples=20, deadline=None)
@given(
    predicted=LABELS,
    truth=LABELS,
    orders=st.lists(st.permutations(range(CLASSES)), min_size=3, max_size=3),
)
def test_only_the_matching_once_a_data_set_needs_numbers_that_images_share(predicted, truth, orders):
    renamed = np.stack([np.array(order)[labels] for order, labels in zip(orders, predicted, strict=True)])
    for protocol in (Majority(), HungarianPerImage()):
        assert np.array_equal(total(made(predicted, truth), protocol), total(made(renamed, truth), protocol))


@settings(max_examples=30, deadline=None)
@given(predicted=LABELS, truth=LABELS)
def test_no_pixel_is_dropped_and_protocols_are_ordered_by_what_they_know(predicted, truth):
    images = made(predicted, truth)
    found = {type(protocol): total(images, protocol) for protocol in PROTOCOLS}
    for confusion in found.values():
        assert np.array_equal(confusion.sum(1), np.bincount(truth.ravel(), minlength=CLASSES))
    right = {kind: pixel_accuracy(confusion) for kind, confusion in found.items()}
    assert right[Majority] >= right[HungarianPerImage] >= right[HungarianPerDataset]


@settings(max_examples=30, deadline=None)
@given(predicted=LABELS, truth=LABELS)
def test_hungarian_finds_what_trying_every_pairing_finds(predicted, truth):
    images = made(predicted, truth)

    def most_hits(truths, segments):
        counts = confusion_matrix(truths.ravel(), segments.ravel(), labels=range(CLASSES))
        return max(sum(counts[order[k], k] for k in range(CLASSES)) for order in permutations(range(CLASSES)))

    assert np.trace(total(images, HungarianPerDataset())[:, :-1]) == most_hits(truth, predicted)
    apart = sum(most_hits(theirs, ours) for theirs, ours in zip(truth, predicted, strict=True))
    assert np.trace(total(images, HungarianPerImage())[:, :-1]) == apart


@settings(max_examples=30, deadline=None)
@given(predicted=LABELS, truth=LABELS)
def test_open_vocabulary_agrees_with_scikit_learn_over_the_whole_data_set(predicted, truth):
    confusion = total(made(predicted, truth), OpenVocabulary())
    assert np.array_equal(confusion[:, :-1], confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(CLASSES)))
    expected = jaccard_score(
        truth.ravel(), predicted.ravel(), labels=np.unique(truth), average="macro", zero_division=0
    )
    assert np.isclose(mean_iou(confusion), expected)


def test_clusters_beyond_the_classes_are_misses():
    """Two classes, three clusters: the third has no class, and its pixels stay in the count."""
    truth, predicted = np.array([[[0, 0, 0, 1, 1, 1]]]), np.array([[[5, 5, 7, 7, 9, 9]]])
    confusion = total(made(predicted, truth, 2), HungarianPerDataset())
    assert confusion.tolist() == [[2, 0, 1], [0, 2, 1]]
    score = evaluate(made(predicted, truth, 2), HungarianPerDataset(), draws=10)
    assert score.value == 2 / 3
    # the oracle gives the third cluster the lower of its two classes
    assert total(made(predicted, truth, 2), Majority()).tolist() == [[3, 0, 0], [1, 2, 0]]


def test_classes_without_a_cluster_score_zero():
    truth, predicted = np.array([[[0, 0, 0, 1, 2, 2]]]), np.zeros((1, 1, 6), int)
    confusion = total(made(predicted, truth, 5), HungarianPerDataset())
    assert confusion[:3, 0].tolist() == [3, 1, 2]
    assert mean_iou(confusion) == (1 / 2 + 0 + 0) / 3  # classes 3 and 4 do not occur


def test_one_pairing_for_a_data_set_against_one_an_image():
    """The second image has its numbers swapped: only pairing anew repairs that."""
    truth = np.array([[[0, 0, 1, 1]], [[0, 0, 1, 1]]])
    predicted = np.array([[[0, 0, 1, 1]], [[1, 1, 0, 0]]])
    images = made(predicted, truth, 2)
    assert mean_iou(total(images, HungarianPerImage())) == 1
    assert pixel_accuracy(total(images, HungarianPerDataset())) == 0.5


def test_ignored_pixels_weigh_on_no_matching():
    truth = np.array([[[0, 0, 9, 9, 9, 1]]])
    predicted = np.array([[[0, 1, 0, 0, 0, 1]]])
    for protocol in PROTOCOLS:
        confusion = total(made(predicted, truth, 2, ignore_index=9), protocol)
        assert confusion.sum() == 3
        assert confusion[0].sum() == 2
    everything = made(predicted, np.full_like(truth, 9), 2, ignore_index=9)
    for protocol in (*PROTOCOLS, OpenVocabulary()):
        assert total(everything, protocol).sum() == 0


def test_an_image_without_a_counted_pixel_changes_no_score():
    truth, predicted = np.array([[[0, 1, 1]]]), np.array([[[4, 4, 6]]])
    images = made(predicted, truth, 2)
    empty = overlaps(predicted[0], np.full((1, 3), 9), 2, ignore_index=9)
    for protocol in PROTOCOLS:
        assert np.array_equal(total([*images, empty], protocol), total(images, protocol))


def test_labels_that_are_no_class_are_refused_unless_they_mean_none():
    images = made(np.array([[[0, 1, 7]]]), np.array([[[0, 1, 1]]]), 2)
    with pytest.raises(InputError, match="predicted labels 7; accepted: classes 0 to 1"):
        confusions(images, OpenVocabulary())
    assert total(images, OpenVocabulary(unnamed=7)).tolist() == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(InputError, match="-1"):
        confusions(made(np.array([[[-1, 1]]]), np.array([[[0, 1]]]), 2), OpenVocabulary())


def with_embeddings(count, seed=0):
    """Images of four segments each; a segment's embedding lies near its own class's corner of a cube."""
    rng = np.random.default_rng(seed)
    images, corners = [], np.eye(4) * 10
    for _ in range(count):
        order = rng.permutation(4)
        truth = np.repeat(np.arange(4), 4).reshape(4, 4)
        predicted = np.argsort(order)[truth]  # segment i is class order[i]
        images.append(overlaps(predicted, truth, 4, embeddings=corners[order] + rng.normal(0, 0.5, (4, 4))))
    return images, corners


def test_clusters_of_embeddings_give_numbers_that_images_share():
    images, _ = with_embeddings(6)
    assert evaluate(images, HungarianPerDataset(clusters=4), draws=10).value == 1
    assert evaluate(images, HungarianPerDataset(), draws=10).value < 1
    shared = shared_segments(images, 4)
    assert evaluate(shared, HungarianPerDataset(), draws=10).value == 1
    # with fewer clusters than classes some class has none; with more, some cluster has no class
    assert evaluate(images, HungarianPerDataset(clusters=3), draws=10).value < 1
    assert total(images, HungarianPerDataset(clusters=8))[:, -1].sum() > 0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_nearest_concept_names_a_segment(distance):
    images, corners = with_embeddings(6)
    assert evaluate(images, NearestConcept(corners, distance), draws=10).value == 1
    swapped = NearestConcept(corners[[1, 0, 2, 3]], distance)
    assert np.isclose(evaluate(images, swapped, "pixel accuracy", draws=10).value, 0.5)
    absent = corners.copy()
    absent[2] = np.nan
    assert total(images, NearestConcept(absent, distance))[:, 2].sum() == 0


def test_sums_over_regions_are_those_of_the_upsampled_features():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(3, 4, 5)), rng.integers(-1, 4, (10, 13))
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(features).permute(2, 0, 1)[None], size=(10, 13), mode="bilinear"
    )[0].numpy()
    sums, pixels = region_sums(features, labels, 5)
    for region in range(4):
        assert np.allclose(sums[region], upsampled[:, labels == region].sum(1))
        assert pixels[region] == (labels == region).sum()
    assert pixels[4] == 0
    concepts = concept_embeddings(sums, pixels)
    assert np.isnan(concepts[4]).all()
    assert np.allclose(concepts[0], upsampled[:, labels == 0].mean(1))


def test_on_its_own_grid_a_region_has_its_mean_feature():
    features, labels = np.arange(24.0).reshape(2, 3, 4), np.array([[0, 0, 1], [1, 1, 1]])
    sums, pixels = region_sums(features, labels, 2)
    assert np.allclose(sums / pixels[:, None], [features[labels == 0].mean(0), features[labels == 1].mean(0)])


def test_a_score_names_its_protocol_wherever_it_is_shown():
    score = evaluate(made(np.zeros((2, 1, 4), int), np.array([[[0, 0, 1, 1]]] * 2), 2), Majority(), draws=10)
    for text in (str(score), repr(score), f"{score}"):
        assert "majority (oracle)" in text
    assert str(score) == "mIoU 0.2500 [0.2500, 0.2500], protocol: majority (oracle), 2 images"
    names = [protocol.name for protocol in (*PROTOCOLS, OpenVocabulary(), HungarianPerDataset(5))]
    assert len(set(names)) == 5


def noisy(truth, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(truth.shape) < share, rng.integers(0, CLASSES, truth.shape), truth)


def test_the_better_of_two_methods_is_found_with_a_paired_interval():
    truth = np.random.default_rng(0).integers(0, CLASSES, (30, 12, 12))
    good, bad = made(noisy(truth, 0.2, 1), truth), made(noisy(truth, 0.4, 2), truth)
    score = compare(good, bad, Majority(), draws=300)
    apart = [evaluate(images, Majority(), draws=300).value for images in (good, bad)]
    assert np.isclose(score.value, apart[0] - apart[1])
    assert 0 < score.low < score.value < score.high
    reverse = compare(bad, good, Majority(), draws=300)
    assert np.allclose([reverse.value, reverse.low, reverse.high], [-score.value, -score.high, -score.low])
    same = compare(good, good, Majority(), draws=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert "difference" in str(same)
    assert compare(good, bad, Majority(), draws=300) == score
    accuracy = compare(good, bad, Majority(), "pixel accuracy", draws=300)
    assert accuracy.low > 0


def test_an_mean_over_images_has_an_interval_and_says_that_nothing_was_matched():
    truth = np.kron(np.random.default_rng(0).integers(0, 3, (8, 2, 2)), np.ones((1, 8, 8), int))
    values = [boundary_f(noisy(labels, 0.05, 3), labels) for labels in truth]
    score = average("boundary F", values, draws=200)
    assert np.isclose(score.value, np.mean(values))
    assert score.low <= score.value <= score.high
    assert "no matching" in str(score)
    with pytest.raises(InputError, match="finite"):
        average("covering", [0.5, np.nan])
    with pytest.raises(InputError, match="0 values"):
        average("covering", [])


IMAGES = made(np.array([[[0, 0, 1]], [[0, 1, 1]]]), np.array([[[0, 1, 1]], [[0, 0, 1]]]), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate([], Majority()), "one or more images"),
        (lambda: evaluate([*IMAGES, *made(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), 3)], Majority()), "2, 3"),
        (lambda: evaluate(IMAGES, Majority(), "dice"), "mIoU, pixel accuracy"),
        (lambda: compare(IMAGES, IMAGES[:1], Majority()), "2 images against 1"),
        (lambda: compare(IMAGES, IMAGES[::-1], Majority()), "image 0"),
        (lambda: compare(IMAGES, IMAGES, Majority(), second_protocol=HungarianPerImage()), "one protocol"),
        (lambda: evaluate(IMAGES, NearestConcept(np.eye(2))), "without embeddings"),
        (lambda: NearestConcept(np.eye(2), "manhattan"), "'euclidean', 'cosine'"),
        (lambda: NearestConcept(np.full((2, 2), np.nan)), "without NaN"),
        (lambda: HungarianPerDataset(clusters=0), "1 or more"),
        (lambda: evaluate(IMAGES, HungarianPerDataset(clusters=2)), "without embeddings"),
        (lambda: shared_segments(with_embeddings(1)[0], 5), "1 to 4"),
        (lambda: evaluate(with_embeddings(1)[0], NearestConcept(np.eye(3))), "3 channels and 3 classes"),
        (lambda: shared_segments([Overlap(np.zeros(1), np.ones((2, 1)), np.array([[np.inf]]))], 1), "NaN or infinite"),
        (lambda: region_sums(np.zeros((2, 2)), np.zeros((2, 2), int), 1), "grid_height"),
        (lambda: region_sums(np.full((2, 2, 1), np.nan), np.zeros((2, 2), int), 1), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_what_is_accepted(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_average_of_differences_is_between_them_and_of_one_pair_is_its_difference():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (6, 8, 8))
    good, fair, poor = (np.where(rng.random(truth.shape) < share, truth, 0) for share in (0.9, 0.6, 0.3))
    one, two, three = (judge(made(predicted, truth), Majority()) for predicted in (good, fair, poor))
    first, second = (average_difference([(one, other)]) for other in (two, three))
    both = average_difference([(one, two), (one, three)])
    assert first == compare(one.images, two.images, Majority())
    assert both.value == pytest.approx((first.value + second.value) / 2)
    assert first.low < both.low < second.low
    assert average_difference([(one, two), (two, one)]).low == pytest.approx(0)
    with pytest.raises(InputError, match="of nothing"):
        average_difference([])
    with pytest.raises(InputError, match="one protocol"):
        average_difference([(one, judge(made(fair, truth), OpenVocabulary()))])


def test_a_score_holds_one_confusion_matrix_at_a_time():
    one, classes, images = made(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), 300)[0], 300, 60
    tracemalloc.start()
    evaluate([one] * images, Majority(), draws=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images * classes**2 * 8 / 4


def test_classes_that_are_given_once_score_as_those_given_anew():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, CLASSES, (2, 5, 6, 6))
    images = made(predicted, truth)
    for protocol in (*PROTOCOLS, Supervised()):
        assert evaluate(*judge(images, protocol)) == evaluate(images, protocol)
