"""Normalised cuts find blocks, and cost what their definition says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.ncut import bipartition, cosine_affinity, normalised_cut, recursive_cut


def blocks(labels, between=0.0):
    return np.where(labels[:, None] == labels, 1.0, between)


def same_partition(first, second):
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def random_affinity(n, seed):
    values = np.random.default_rng(seed).random((n, n))
    return values + values.T


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 200), st.sampled_from([0.0, 1e-3]))
def test_blocks_of_an_affinity_are_found(count, seed, between):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(count), 3), rng.integers(0, count, 20)]))
    assert same_partition(recursive_cut(blocks(labels, between), threshold=0.5), labels)
    assert same_partition(recursive_cut(blocks(labels, between), threshold=0.1, clusters=count), labels)


def test_many_nodes_are_cut_by_lanczos_as_by_all_eigenvectors(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 4, 400)
    affinity = blocks(labels, 0.02) * (0.5 + random_affinity(400, 1) / 4)
    found = recursive_cut(affinity, threshold=0.5)
    assert same_partition(found, labels)
    monkeypatch.setattr("emerdiff_probe.segmentation.ncut.DENSE", 1000)
    assert np.array_equal(recursive_cut(affinity, threshold=0.5), found)


def test_the_cost_is_cut_over_volume_on_both_sides():
    affinity = random_affinity(7, 0)
    for nodes in itertools.islice(itertools.product([False, True], repeat=7), 1, 127):
        side = np.array(nodes)
        cut = affinity[side][:, ~side].sum()
        expected = cut / affinity[side].sum() + cut / affinity[~side].sum()
        assert np.isclose(normalised_cut(affinity, side[:, None])[0], expected)


def test_the_best_threshold_is_near_the_best_of_all_cuts():
    labels = np.array([0, 1, 0, 1, 1, 0, 1])
    affinity = blocks(labels, 0.1) * random_affinity(7, 3)
    every = [np.array(nodes) for nodes in itertools.islice(itertools.product([False, True], repeat=7), 1, 127)]
    best = min(normalised_cut(affinity, nodes[:, None])[0] for nodes in every)
    cut = bipartition(affinity)
    assert np.isclose(cut.value, best)
    assert np.isclose(cut.value, normalised_cut(affinity, cut.first[:, None])[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_a_permutation_of_cells_permutes_the_parts(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 24)
    affinity = blocks(labels, 0.05) * (0.8 + random_affinity(24, seed) / 10)
    order = rng.permutation(24)
    plain = recursive_cut(affinity, threshold=0.5)
    assert same_partition(recursive_cut(affinity[np.ix_(order, order)], threshold=0.5), plain[order])


def test_numbers_follow_first_appearance_and_are_as_many_as_asked_for():
    affinity = random_affinity(12, 0)
    for count in (1, 2, 5, 12):
        labels = recursive_cut(affinity, threshold=1e-6, clusters=count)
        assert list(dict.fromkeys(labels.tolist())) == list(range(count))
    assert not recursive_cut(affinity, threshold=1e-6).any()  # nothing is that cheap to cut


def test_cheaper_cuts_come_first():
    labels = np.repeat([0, 1, 2, 3], 4)
    halves = labels // 2
    affinity = np.where(labels[:, None] == labels, 1.0, np.where(halves[:, None] == halves, 0.2, 0.01))
    assert same_partition(recursive_cut(affinity, threshold=0.1), halves)
    assert same_partition(recursive_cut(affinity, threshold=0.1, clusters=2), halves)
    assert same_partition(recursive_cut(affinity, threshold=0.6), labels)


def test_nodes_that_are_all_alike_stay_together():
    assert bipartition(np.ones((1, 1))) is None
    assert recursive_cut(np.ones((1, 1)), threshold=2).tolist() == [0]
    assert recursive_cut(np.ones((9, 9)), threshold=0.5).tolist() == [0] * 9


def test_cosines_go_from_0_to_1_and_do_not_see_lengths():
    features = np.random.default_rng(0).normal(size=(10, 4))
    affinity = cosine_affinity(features, 1.0)
    assert affinity.min() == 0
    assert np.isclose(affinity.max(), 1)
    assert np.allclose(affinity, affinity.T)
    assert np.allclose(affinity, cosine_affinity(features * np.arange(1, 11)[:, None], 1.0))
    assert np.allclose(affinity**10, cosine_affinity(features, 10.0))
    assert np.array_equal(cosine_affinity(np.ones((3, 2)), 10.0), np.ones((3, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recursive_cut(np.ones((2, 3)), threshold=0.5), "symmetric"),
        (lambda: recursive_cut(np.arange(4.0).reshape(2, 2), threshold=0.5), "symmetric"),
        (lambda: recursive_cut(np.full((2, 2), np.nan), threshold=0.5), "finite"),
        (lambda: recursive_cut(-np.ones((2, 2)), threshold=0.5), "0 or more"),
        (lambda: recursive_cut(np.ones((4, 4)), threshold=0.5, clusters=5), "5 clusters of 4 cells; accepted: 1 to 4"),
        (lambda: cosine_affinity(np.full((2, 2), np.inf), 1), "overflowed"),
    ],
)
def test_what_cannot_be_cut_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
