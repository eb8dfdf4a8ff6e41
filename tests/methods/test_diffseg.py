"""Merging of attention maps by symmetric KL divergence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.diffseg import DiffSeg, anchor_cells, highest, merge_near, merge_until, symmetric_kl


def random_maps(count, cells, seed):
    maps = np.random.default_rng(seed).random((count, cells)) ** 3 + 1e-9
    return maps / maps.sum(1, keepdims=True)


def attention_of(labels, leak=1e-3):
    """Every cell attends to the cells of its own group."""
    maps = np.where(labels.ravel()[:, None] == labels.ravel(), 1.0, leak)
    return maps / maps.sum(1, keepdims=True)


def same_partition(first, second):
    pairs = set(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(first)) == len(np.unique(second))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 100))
def test_the_divergence_is_zero_for_equal_maps_symmetric_and_by_definition(count, cells, seed):
    maps, others = random_maps(count, cells, seed), random_maps(count + 1, cells, seed + 1)
    assert np.allclose(np.diag(symmetric_kl(maps, maps)), 0, atol=1e-12)
    assert np.allclose(symmetric_kl(maps, others), symmetric_kl(others, maps).T)
    p, q = maps[0], others[-1]
    assert np.isclose(symmetric_kl(maps, others)[0, -1], (rel_entr(p, q).sum() + rel_entr(q, p).sum()) / 2)
    assert (symmetric_kl(maps, others) >= 0).all()


def test_a_permutation_of_cells_leaves_divergences():
    maps, order = random_maps(5, 20, 0), np.random.default_rng(1).permutation(20)
    assert np.allclose(symmetric_kl(maps, maps), symmetric_kl(maps[:, order], maps[:, order]))


def test_zero_probabilities_give_finite_divergences():
    assert np.isfinite(symmetric_kl(np.eye(3), np.eye(3))).all()


@pytest.mark.parametrize(
    ("grid", "points", "count"), [((64, 64), 16, 256), ((8, 8), 16, 64), ((8, 12), 4, 24), ((5, 5), 1, 1)]
)
def test_anchors_are_spread_evenly_over_the_grid(grid, points, count):
    anchors = anchor_cells(grid, points)
    assert len(set(anchors.tolist())) == count
    rows, columns = np.unravel_index(anchors, grid)
    for places, side in ((rows, grid[0]), (columns, grid[1])):
        assert abs(places.min() - (side - 1 - places.max())) <= 1
        assert len(np.unique(np.diff(np.unique(places)))) <= 1


def test_anchors_of_a_square_of_64_are_those_of_the_public_code():
    rows, columns = np.unravel_index(anchor_cells((64, 64), 16), (64, 64))
    assert np.unique(rows).tolist() == np.unique(columns).tolist() == list(range(1, 64, 4))[:16]


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("clusters", [None, 3])
def test_clearly_separate_groups_are_found(refine, clusters):
    labels = np.zeros((8, 12), int)
    labels[:, 6:] = 1
    labels[5:, :5] = 2
    maps = DiffSeg(refine=refine).proposals(attention_of(labels), labels.shape, clusters)
    assert np.allclose(maps.sum(1), 1)
    assert same_partition(highest(maps, labels.shape, 8, 12), labels)


def test_groups_need_not_hang_together():
    labels = np.indices((8, 8)).sum(0) % 2
    maps = DiffSeg().proposals(attention_of(labels), (8, 8))
    assert same_partition(highest(maps, (8, 8), 8, 8), labels)


def test_a_larger_threshold_leaves_fewer_proposals():
    attention = attention_of(np.arange(36).reshape(6, 6) // 4, 0.05)
    counts = [
        len(DiffSeg(threshold=threshold, refine=False).proposals(attention, (6, 6))) for threshold in (1e-6, 1, 50)
    ]
    assert counts == [9, 9, 1]


def test_merging_averages_what_is_near():
    maps = np.array([[0.9, 0.1], [0.1, 0.9], [0.88, 0.12]])
    assert np.allclose(merge_near(maps, 0.1), [[0.89, 0.11], [0.1, 0.9]])
    assert np.allclose(merge_near(maps, 1e-9), maps)
    assert np.allclose(merge_until(maps, 2), [[0.89, 0.11], [0.1, 0.9]])
    assert np.allclose(merge_until(maps, 1), [maps.mean(0)])
    assert np.allclose(merge_until(maps, 3), maps)


def test_the_highest_map_wins_a_pixel():
    maps = np.array([[0.9, 0.0, 0.9, 0.0], [0.1, 1.0, 0.1, 1.0]])
    labels = highest(maps, (2, 2), 4, 6)
    assert labels.shape == (4, 6)
    assert labels[:, :2].max() == 0
    assert labels[:, 4:].min() == 1


@pytest.mark.parametrize(
    "given", [{"points": 0}, {"threshold": 0}, {"threshold": np.nan}, {"iterations": 0}, {"weighting": "area"}]
)
def test_parameters_out_of_range_are_refused(given):
    with pytest.raises(InputError, match=f"DiffSeg: {next(iter(given))} .*accepted"):
        DiffSeg(**given)


def test_more_clusters_than_anchors_are_refused():
    with pytest.raises(InputError, match="5 clusters of 4 anchors; accepted: 1 to 4"):
        DiffSeg(points=2).proposals(attention_of(np.zeros((6, 6))), (6, 6), 5)
