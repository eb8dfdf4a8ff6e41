"""Trees of segments: levels are nested, the finest is the labels themselves, and merging moves no border."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import dendrogram, fcluster

from emerdiff_probe.errors import InputError
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.segmentation.tree import SegmentTree, groups_within, likeness_linkage, merged_maps

SIDE = 12


def maps_of(masks, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((masks, SIDE, SIDE), np.float32))


def tree_of(masks, seed=0, ties=False):
    maps = maps_of(masks, seed)
    if ties:
        maps = maps.round()
    return SegmentTree(assign(maps).numpy().astype(np.uint8), likeness_linkage(maps))


def is_refined_by(coarse, fine):
    return all(len(np.unique(coarse[fine == label])) == 1 for label in np.unique(fine))


trees = st.builds(tree_of, st.integers(1, 9), st.integers(0, 1000), st.booleans())


@settings(deadline=None, max_examples=50)
@given(trees)
def test_levels_by_number_are_nested_from_the_labels_to_one_segment(tree):
    levels = [tree.cut(count) for count in range(1, tree.masks + 1)]
    assert np.array_equal(levels[-1], tree.labels)
    assert not levels[0].any()
    for count, level in enumerate(levels, 1):
        assert level.dtype == tree.labels.dtype
        assert level.max() < count
        assert len(np.unique(level)) <= count
    for coarse, fine in itertools.pairwise(levels):
        assert is_refined_by(coarse, fine)


@settings(deadline=None, max_examples=50)
@given(trees, st.floats(-0.5, 2), st.floats(-0.5, 2))
def test_levels_by_threshold_are_nested_and_are_levels_by_number(tree, one, other):
    low, high = sorted((one, other))
    assert is_refined_by(tree.cut(threshold=high), tree.cut(threshold=low))
    left = tree.masks - int((tree.linkage[:, 2] <= high).sum())
    assert np.array_equal(tree.cut(threshold=high), tree.cut(left))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_a_level_by_number_is_scipys_where_distances_differ(masks, seed):
    tree = tree_of(masks, seed)
    distances = tree.linkage[:, 2]
    if len(np.unique(distances)) < len(distances):
        return
    for count in range(1, masks + 1):
        theirs = fcluster(tree.linkage, count, "maxclust")[tree.labels]
        ours = tree.cut(count)
        assert is_refined_by(theirs, ours)
        assert is_refined_by(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0, 1))
def test_merging_maps_moves_no_border(masks, seed, threshold):
    maps = maps_of(masks, seed)
    groups = groups_within(likeness_linkage(maps), threshold)
    merged = merged_maps(maps, groups)
    assert len(merged) == groups.max() + 1
    assert torch.equal(assign(merged), torch.from_numpy(groups)[assign(maps)])


def test_merging_nothing_changes_no_bit():
    maps = maps_of(5)
    assert torch.equal(merged_maps(maps, np.arange(5)), maps)


@pytest.mark.parametrize("distance", ["cosine", "correlation", "braycurtis"])
def test_masks_that_answer_alike_are_merged_first(distance):
    patterns = maps_of(3, 7) ** 4
    noise = maps_of(9, 8) / 50
    of_pattern = np.array([0, 1, 2, 1, 0, 2, 2, 0, 1])
    linkage = likeness_linkage(patterns[of_pattern] + noise, distance)
    tree = SegmentTree(np.arange(9).reshape(3, 3), linkage)
    assert np.array_equal(tree.cut(3).ravel(), of_pattern)
    assert np.array_equal(tree.cut(threshold=0.1).ravel(), of_pattern)


def test_the_cosine_does_not_see_how_strong_an_answer_is_and_overlap_does():
    maps = torch.stack([torch.ones(4, 4), 3 * torch.ones(4, 4)])
    assert likeness_linkage(maps)[0, 2] == pytest.approx(0, abs=1e-12)
    assert likeness_linkage(maps, "braycurtis")[0, 2] == pytest.approx(1 - 2 * 1 / 4)


def test_masks_without_any_answer_are_apart_from_all():
    maps = torch.zeros(3, 4, 4)
    maps[0, 0] = 1
    assert likeness_linkage(maps)[:, 2].tolist() == [1, 1]
    assert groups_within(likeness_linkage(maps), 0.9).tolist() == [0, 1, 2]


def test_one_mask_is_a_tree():
    tree = SegmentTree(np.zeros((4, 4), np.uint8), likeness_linkage(torch.ones(1, 4, 4)))
    assert tree.masks == 1
    assert not tree.cut(1).any()
    assert not tree.cut(threshold=0.5).any()
    assert tree.levels(np.zeros((4, 4, 3), np.uint8)).width > 4


def test_scipy_draws_the_linkage():
    assert sorted(dendrogram(tree_of(6).linkage, no_plot=True)["leaves"]) == list(range(6))


def test_levels_show_merged_segments_in_the_colour_of_their_first_mask():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 32)[None].repeat(32, 0)
    merges = np.array([[2, 3, 0.1, 2], [0, 1, 0.2, 2], [4, 5, 0.9, 4]], float)
    sheet = np.array(SegmentTree(labels, merges).levels(np.zeros((32, 128, 3), np.uint8), [4, 3, 2]))
    body = sheet[-16]  # a row of pixels through all pictures
    picture = [body[index * (128 + 8) : index * (128 + 8) + 128] for index in range(4)]
    assert not picture[0].any()
    places = (8, 40, 72, 104)
    colours = [[tuple(shown[place]) for place in places] for shown in picture[1:]]
    first, second, third, _ = colours[0]
    assert len(set(colours[0])) == 4
    assert colours[1] == [first, second, third, third]
    assert colours[2] == [first, first, third, third]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tree: tree.cut(0), "0 segments of 4 masks; accepted: 1 to 4"),
        (lambda tree: tree.cut(5), "5 segments of 4 masks; accepted: 1 to 4"),
        (lambda tree: tree.cut(2.0), "accepted: 1 to 4"),
        (lambda tree: tree.cut(), "one of both"),
        (lambda tree: tree.cut(2, threshold=0.1), "one of both"),
        (lambda tree: tree.cut(threshold=float("nan")), "nan"),
        (lambda tree: tree.levels(np.zeros((SIDE, SIDE, 3), np.uint8), []), "one number of segments or more"),
        (lambda tree: SegmentTree(tree.labels + 1, tree.linkage), "integers 0 to 3"),
        (lambda tree: SegmentTree(tree.labels.astype(float), tree.linkage), "integers 0 to 3"),
        (lambda tree: SegmentTree(tree.labels, tree.linkage[1:]), "accepted"),
        (lambda tree: SegmentTree(tree.labels, tree.linkage[::-1].copy()), "distances rising"),
        (lambda tree: SegmentTree(tree.labels, np.ones(4)), "distances rising"),
        (lambda tree: likeness_linkage(np.zeros((0, 3))), "one mask or more"),
        (lambda tree: likeness_linkage(np.full((2, 3), np.nan)), "finite"),
        (lambda tree: likeness_linkage(np.ones((2, 3)), "euclidean"), "'braycurtis'"),
    ],
)
def test_what_is_no_level_or_no_tree_is_refused(call, message):
    maps = maps_of(4)
    tree = SegmentTree(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 4, likeness_linkage(maps))
    with pytest.raises(InputError, match=message):
        call(tree)
