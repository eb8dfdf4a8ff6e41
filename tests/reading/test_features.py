"""Capturing features and clustering them into low-resolution masks."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import InputError, TimestepError
from emerdiff_probe.hooks.attach import Capture, attached
from emerdiff_probe.interventions import Scale
from emerdiff_probe.reading.features import capture, capture_replayed, cluster, mask_embeddings, one_hot_masks, pca_view
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import conditionings, predict
from emerdiff_probe.trajectories.inversion import invert


def blobs(labels, seed=0):
    """Features (cell, channel) of well separated groups."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 50, (int(labels.max()) + 1, 6))
    return torch.from_numpy(centres[labels.ravel()] + rng.normal(0, 0.1, (labels.size, 6))).float()


def test_a_capture_of_several_sites_and_timesteps_equals_one_pass_each(model, trajectory):
    sites = [find_site(model, name) for name in ("up8.cross0.query", "down16.resnet1.output", "up8.cross2.key")]
    features = capture(model, trajectory, sites, (301, 1))
    conditioning, _ = conditionings(model, trajectory.final, "", 1.0)
    assert set(features) == {(site, timestep) for site in sites for timestep in (301, 1)}
    for (site, timestep), tensor in features.items():
        with attached(model, captures=[Capture(site)]) as record:
            predict(model, trajectory.at(timestep), timestep, conditioning)
        plain = record[site, timestep]
        plain = plain.flatten(2).mT if plain.ndim == 4 else plain
        assert torch.allclose(tensor, plain, atol=1e-5)
    assert features[sites[1], 1].shape == (1, 256, sites[1].channels)
    assert not tiny.hooks_of(model.denoiser)


def test_a_batch_of_images_keeps_its_order(model):
    latents = torch.randn(3, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    inverted = invert(model, latents, start=101, steps=10)
    site = find_site(model, "up8.cross0.query")
    together = capture(model, inverted, [site], (101, 1))
    assert together[site, 1].shape == (3, 8 * 12, site.channels)
    for index in range(3):
        alone = capture(model, inverted.image(index), [site], (101, 1))
        for timestep in (101, 1):
            assert torch.allclose(together[site, timestep][index], alone[site, timestep][0], atol=1e-5)


def test_sites_and_timesteps_named_twice_are_captured_once(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    twice = capture(model, trajectory, [site, site], (101, 1, 101))
    once = capture(model, trajectory, [site], (101, 1))
    assert set(twice) == set(once)
    assert all(torch.equal(twice[key], once[key]) for key in once)


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_capture_that_runs_out_of_memory_takes_more_passes(model, limit):
    """Slices cut through the rows of one timestep, and hold some of the timesteps only."""
    inverted = invert(model, torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)), start=201, steps=10)
    sites = [find_site(model, name) for name in ("up8.cross0.query", "down16.resnet1.output", "up8.cross2.key")]
    whole = capture(model, inverted, sites, (201, 101, 1))
    passes = []

    def hungry(_, args):
        passes.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("out of memory")

    handle = model.denoiser.conv_in.register_forward_pre_hook(hungry)
    try:
        sliced = capture(model, inverted, sites, (201, 101, 1))
    finally:
        handle.remove()
    assert sum(rows for rows in passes if rows <= limit) == 9
    assert list(sliced) == list(whole)
    assert all(torch.allclose(sliced[key], whole[key], atol=1e-5) for key in whole)
    assert not tiny.hooks_of(model.denoiser)


def test_every_site_can_be_captured_last_and_first(model, trajectory):
    sites = list_sites(model)
    backwards = capture(model, trajectory, sites[::-1], (1,))
    for site in (sites[0], sites[-1]):
        assert torch.allclose(backwards[site, 1], capture(model, trajectory, [site], (1,))[site, 1], atol=1e-6)


def test_nothing_to_capture_is_refused(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    with pytest.raises(InputError, match="one or more of each"):
        capture(model, trajectory, [], (1,))
    with pytest.raises(InputError, match="one or more of each"):
        capture(model, trajectory, [site], ())
    with pytest.raises(TimestepError, match=r"near ones: .*301"):
        capture(model, trajectory, [site], (281,))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100), st.tuples(st.integers(2, 6), st.integers(2, 6)))
def test_separated_groups_are_found_and_numbered_by_first_appearance(groups, seed, grid):
    wanted = np.random.default_rng(seed).integers(0, groups, grid)
    _, wanted = np.unique(wanted, return_inverse=True)
    found = cluster(blobs(wanted), int(wanted.max()) + 1, grid, seed=seed)
    assert found.shape == grid
    appearance = list(dict.fromkeys(found.ravel().tolist()))
    assert appearance == list(range(len(appearance)))
    pairs = set(zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True))
    assert len(pairs) == len(appearance) == len(np.unique(wanted))


def test_clustering_is_deterministic_by_seed():
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    one, same = (cluster(features, 9, (8, 8), seed=4) for _ in range(2))
    assert np.array_equal(one, same)
    assert any(not np.array_equal(one, cluster(features, 9, (8, 8), seed=seed)) for seed in range(5, 9))


@pytest.mark.parametrize("clusters", [0, -1, 17])
def test_a_number_of_clusters_out_of_range_is_refused(clusters):
    with pytest.raises(InputError, match=f"{clusters} clusters of 16 cells; accepted: 1 to 16"):
        cluster(torch.zeros(16, 3), clusters, (4, 4))


def test_as_many_clusters_as_cells_gives_every_cell_its_own():
    features = torch.arange(16.0)[:, None] * 10
    assert np.array_equal(cluster(features, 16, (4, 4)), np.arange(16).reshape(4, 4))
    assert not cluster(features, 1, (4, 4)).any()


def test_fewer_distinct_cells_than_clusters_give_fewer_labels_without_a_warning(recwarn):
    features = torch.tensor([[0.0], [5.0], [0.0], [9.0]]).repeat(4, 1)
    assert np.array_equal(cluster(features, 8, (4, 4)), np.tile([0, 1, 0, 2], (4, 1)))
    assert len(recwarn) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    features = torch.zeros(16, 3)
    features[3, 1] = bad
    with pytest.raises(InputError, match="overflowed"):
        cluster(features, 2, (4, 4))


def test_features_of_another_grid_are_refused():
    with pytest.raises(InputError, match="accepted: \\(20, channel\\)"):
        cluster(torch.zeros(16, 3), 2, (4, 5))
    with pytest.raises(InputError, match="channel"):
        cluster(torch.zeros(1, 16, 3), 2, (4, 4))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_embeddings_are_the_means_and_masks_partition_the_grid(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, 20 - count)])).reshape(4, 5)
    features = torch.from_numpy(rng.normal(size=(20, 3))).float()
    masks = one_hot_masks(labels)
    assert masks.shape == (count, 4, 5)
    assert torch.equal(masks.sum(0), torch.ones(4, 5))
    assert np.array_equal(masks.argmax(0).numpy(), labels)
    expected = torch.stack([features[torch.from_numpy(labels.ravel() == i)].mean(0) for i in range(count)])
    assert torch.allclose(mask_embeddings(features, labels), expected, atol=1e-5)


def test_the_pca_view_gives_like_cells_like_colours():
    labels = np.repeat(np.arange(4), 16).reshape(8, 8)
    view = pca_view(blobs(labels), (8, 8))
    assert view.shape == (8, 8, 3)
    assert view.dtype == np.uint8
    for label in range(4):
        assert np.ptp(view[labels == label].astype(int), axis=0).max() < 30
    assert len({tuple(view[labels == label][0] // 32) for label in range(4)}) == 4


def test_replayed_features_are_those_of_the_trajectory_where_nothing_is_changed(model, trajectory):
    sites = [find_site(model, name) for name in ("up8.cross0.query", "up16.resnet0.output")]
    scale = [Scale(find_site(model, "up8.self0.output"), 0.0)]
    expected = capture(model, trajectory, sites, trajectory.timesteps)
    found = capture_replayed(model, trajectory, [[], scale], [*sites, sites[0]])
    assert found.keys() == expected.keys()
    for key, features in found.items():
        assert features.shape == (2, *expected[key].shape[1:])
        assert features.dtype == torch.float32
        assert torch.allclose(features[:1], expected[key], atol=1e-4)
        assert (features[1] - features[0]).abs().max() > 1e-3
    assert set(capture_replayed(model, trajectory, [scale], sites[:1], [201], steps=2)) == {(sites[0], 201)}


def test_replayed_features_need_a_site_and_timesteps_that_are_run(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    with pytest.raises(InputError, match="no sites"):
        capture_replayed(model, trajectory, [[]], [])
    with pytest.raises(TimestepError, match="never run at timestep 101"):
        capture_replayed(model, trajectory, [[]], [site], [301, 101], steps=2)


def test_a_reduction_is_kept_in_the_place_of_whole_activations(model, trajectory):
    """The same as of the whole activations afterwards; convolutions' too are given cell by cell."""
    sites = [find_site(model, name) for name in ("up8.cross0.query", "up16.resnet0.output")]
    whole = capture(model, trajectory, sites, [1, 101])
    grids = []

    def reduce(activation, grid):
        assert not activation.requires_grad
        grids.append((grid, activation.shape[1]))
        return activation.square().mean(1)

    reduced = capture(model, trajectory, sites, [1, 101], reduce=reduce)
    assert set(grids) == {((8, 8), 64), ((16, 16), 256)}
    for key, activation in whole.items():
        assert reduced[key].shape == (1, activation.shape[2])
        assert torch.allclose(reduced[key], activation.square().mean(1), atol=1e-5)
    lit = capture(model, trajectory, sites[:1], [1], reduce=lambda activation, grid: activation.argmax(2))
    assert torch.equal(lit[sites[0], 1], whole[sites[0], 1].argmax(2))


def test_a_reduction_of_a_replay_sees_every_variant(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    late = find_site(model, "up16.cross0.query")
    variants = [[], [Scale(site, 0.0)]]
    whole = capture_replayed(model, trajectory, variants, [late])
    reduced = capture_replayed(model, trajectory, variants, [late], reduce=lambda held, grid: held.mean((1, 2)))
    assert set(reduced) == set(whole)
    for key, activation in whole.items():
        assert torch.allclose(reduced[key], activation.mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    "reduce", [3, "mean", lambda held, grid: held.sum(), lambda *_: None, lambda held, grid: held[:0]]
)
def test_a_reduction_that_keeps_no_value_for_each_row_is_refused(model, trajectory, reduce):
    site = find_site(model, "up8.cross0.query")
    with pytest.raises(InputError, match=r"reduce .*accepted: a (tensor \(row, …\)|function)"):
        capture(model, trajectory, [site], [1], reduce=reduce)
    assert tiny.hooks_of(model.denoiser) == []
