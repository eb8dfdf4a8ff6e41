"""Criteria for the number of segments: groups that are plain are counted, bounds hold, and nothing else is taken."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.criteria import (
    CRITERIA,
    Eigengap,
    Fixed,
    NormalisedCut,
    ResponseOverlap,
    Silhouette,
    find_criterion,
)

ON_FEATURES = [Eigengap(), NormalisedCut(), Silhouette()]
GRID = (8, 8)


def features_of(groups, seed, noise=0.02):
    """Cells of so many directions at right angles, 4 or more each, in any order."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(groups), 4), rng.integers(0, groups, 64 - 4 * groups)])
    return torch.from_numpy(np.eye(12)[rng.permutation(labels)] + noise * rng.normal(size=(64, 12))).float()


def maps_of(patterns, of_pattern, seed=0):
    rng = np.random.default_rng(seed)
    shapes = np.kron(np.eye(patterns), np.ones((3, 3)))[::3].reshape(patterns, 1, -1)
    return torch.from_numpy(shapes[of_pattern] + 0.05 * rng.random((len(of_pattern), 4, shapes.shape[2]))).float()


@pytest.mark.parametrize("criterion", ON_FEATURES, ids=lambda criterion: criterion.name)
@settings(deadline=None, max_examples=12)
@given(st.integers(2, 8), st.integers(0, 500))
def test_plain_groups_are_counted(criterion, groups, seed):
    assert criterion.clusters(features_of(groups, seed), GRID) == groups


@pytest.mark.parametrize("criterion", ON_FEATURES, ids=lambda criterion: criterion.name)
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 500))
def test_the_order_of_cells_and_the_length_of_all_features_do_not_matter(criterion, seed):
    features = features_of(5, seed, noise=0.2)
    found = criterion.clusters(features, GRID)
    assert criterion.clusters(4 * features, GRID) == found
    if criterion.name != "silhouette":  # k-means starts from cells by their place
        order = np.random.default_rng(seed).permutation(64)
        assert criterion.clusters(features[order], GRID) == found


@pytest.mark.parametrize("kind", [Eigengap, NormalisedCut, Silhouette])
@settings(deadline=None, max_examples=10)
@given(st.integers(2, 5), st.integers(0, 5), st.integers(0, 500))
def test_bounds_hold(kind, fewest, more, seed):
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(64, 6))).float()
    assert fewest <= kind(fewest=fewest, most=fewest + more).clusters(features, GRID) <= fewest + more


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
@pytest.mark.parametrize("cells", [1, 2, 3, 5])
@pytest.mark.parametrize("alike", [True, False])
def test_there_are_never_more_masks_than_cells(criterion, cells, alike):
    features = torch.ones(cells, 4) if alike else torch.eye(cells, 5)
    assert 1 <= criterion.clusters(features, (1, cells)) <= cells


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_features_that_are_all_alike_have_some_number(criterion):
    assert 1 <= criterion.clusters(torch.ones(64, 4), GRID) <= 64


def test_a_threshold_of_cuts_is_monotone():
    features = features_of(6, 0, noise=0.3)
    found = [NormalisedCut(tau=tau).clusters(features, GRID) for tau in (0.05, 0.2, 0.5, 0.8, 1.0)]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.parametrize("criterion", [*ON_FEATURES, Fixed(7)], ids=lambda criterion: criterion.name)
def test_criteria_on_features_merge_nothing(criterion):
    assert criterion.merged(maps_of(2, [0, 0, 1])).tolist() == [0, 1, 2]


def test_masks_whose_responses_overlap_are_one_segment():
    of_pattern = [0, 1, 0, 2, 1, 0]
    assert ResponseOverlap().merged(maps_of(3, of_pattern)).tolist() == of_pattern
    assert ResponseOverlap().merged(100 * maps_of(3, of_pattern)).tolist() == of_pattern
    assert ResponseOverlap(threshold=1e-9).merged(maps_of(3, of_pattern)).tolist() == [0, 1, 2, 3, 4, 5]
    assert ResponseOverlap(threshold=1.0).merged(maps_of(3, of_pattern)).tolist() == [0] * 6


def test_overlap_starts_from_its_masks_or_every_cell():
    assert ResponseOverlap(masks=20).clusters(torch.zeros(64, 3), GRID) == 20
    assert ResponseOverlap(masks=20).clusters(torch.zeros(6, 3), (2, 3)) == 6


def test_a_number_is_a_criterion():
    assert find_criterion(5) == Fixed(5)
    assert find_criterion(5).clusters(torch.zeros(64, 3), GRID) == 5


def test_criteria_are_found_by_name():
    assert find_criterion("auto") in CRITERIA.values()
    for name, criterion in CRITERIA.items():
        assert find_criterion(name) is criterion
    with pytest.raises(InputError, match="clusters 'elbow'; accepted: an integer, 1 or more, 'auto', 'eigengap'"):
        find_criterion("elbow")


@pytest.mark.parametrize("criterion", [Eigengap(), NormalisedCut(), Silhouette()], ids=lambda criterion: criterion.name)
def test_features_with_nan_are_refused(criterion):
    with pytest.raises(InputError, match="overflowed"):
        criterion.clusters(torch.full((64, 4), torch.nan), GRID)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(0), "number 0"),
        (lambda: Eigengap(fewest=0), "fewest 0"),
        (lambda: Eigengap(fewest=5, most=4), "most 4; accepted: an integer, 5 or more"),
        (lambda: Eigengap(alpha=0), "alpha 0"),
        (lambda: NormalisedCut(tau=2.5), "tau 2.5"),
        (lambda: NormalisedCut(alpha=-1), "alpha -1"),
        (lambda: Silhouette(most=2.5), "most 2.5"),
        (lambda: ResponseOverlap(masks=0), "masks 0"),
        (lambda: ResponseOverlap(threshold=float("nan")), "threshold nan"),
        (lambda: ResponseOverlap(distance="euclidean"), "distance 'euclidean'"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
