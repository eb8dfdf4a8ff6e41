"""Difference maps: arithmetic, order, batching, and what they do not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from emerdiff_probe.errors import InputError, InterventionError, TimestepError
from emerdiff_probe.interventions import InjectAttention, Modulate
from emerdiff_probe.reading import correspondence
from emerdiff_probe.reading.correspondence import (
    Modulation,
    assign,
    difference_map,
    difference_maps,
    modulated_images,
    sign_codes,
    smoothed,
    untangle,
)
from emerdiff_probe.reading.readout import RUN_ALONE, Readout
from emerdiff_probe.sites import find_site
from emerdiff_probe.trajectories.denoise import denoise


@pytest.fixture(scope="module")
def modulation(model):
    return Modulation(find_site(model, "up8.cross2.output"), strength=20.0, modulate_at=301)


@pytest.fixture(scope="module")
def masks():
    """Four quarters of the grid."""
    made = torch.zeros(4, 8, 8)
    made[0, :4, :4] = made[1, :4, 4:] = made[2, 4:, :4] = made[3, 4:, 4:] = 1
    return made


@pytest.fixture(scope="module")
def maps(model, trajectory, masks, modulation):
    return difference_maps(model, trajectory, masks, modulation)


def test_maps_are_what_the_paper_writes(model, trajectory, masks, modulation, maps):
    """d = || I- - I+ || over RGB, with the images made one by one."""
    for i, mask in enumerate(masks):
        pair = []
        for sign in (-1, 1):
            change = Modulate(modulation.site, mask, sign * 20.0, (301,))
            pair.append(model.decode(denoise(model, trajectory, [[change, InjectAttention()]])))
        assert torch.allclose(maps[i], (pair[0] - pair[1]).square().sum(1).sqrt()[0], atol=1e-3)
    assert maps.shape == (4, 64, 64)
    assert maps.min() >= 0
    assert maps.max() > 1e-2


def test_a_permutation_of_the_masks_permutes_the_maps(model, trajectory, masks, modulation, maps):
    order = [2, 0, 3, 1]
    permuted = difference_maps(model, trajectory, masks[order], modulation)
    assert torch.allclose(permuted, maps[order], atol=1e-4)
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


def test_batched_equals_one_at_a_time(model, trajectory, masks, modulation, maps):
    assert torch.allclose(
        difference_maps(model, trajectory, masks, modulation, batch_size=1), maps, atol=1e-3 * float(maps.max())
    )


def test_same_call_same_bits(model, trajectory, masks, modulation, maps):
    assert torch.equal(difference_maps(model, trajectory, masks, modulation), maps)


def test_a_direction_and_its_opposite_give_the_same_map(model, trajectory, masks, modulation):
    direction = torch.randn(modulation.site.channels, generator=torch.Generator().manual_seed(0))
    one, other = (
        difference_maps(model, trajectory, masks[:1], replace(modulation, direction=sign * direction))
        for sign in (1, -1)
    )
    assert torch.allclose(one, other, atol=1e-4)


def test_an_earlier_start_of_the_trajectory_does_not_matter(model, trajectory, masks, modulation):
    later = replace(modulation, modulate_at=101)
    one = difference_maps(model, trajectory, masks, later)
    assert torch.equal(one, difference_maps(model, trajectory.since(101), masks, later))


@pytest.mark.parametrize(
    "change", [{"strength": 5.0}, {"modulate_at": 101}, {"placement": "before"}, {"injection": None}]
)
def test_every_setting_matters(model, trajectory, masks, modulation, maps, change):
    other = difference_maps(model, trajectory, masks, replace(modulation, **change))
    assert (other - maps).abs().max() > 1e-3


def test_minus_and_plus_lie_on_either_side_of_the_image(model, trajectory, masks, modulation):
    """To first order the unchanged image is half-way between."""
    minus, plus = modulated_images(model, trajectory, masks, replace(modulation, strength=0.05))
    image = model.decode(trajectory.final)
    assert minus.shape == plus.shape == (4, 3, 64, 64)
    middle_error = ((minus + plus) / 2 - image).abs().max()
    assert middle_error < 0.2 * (plus - minus).abs().max()


def test_errors_come_before_any_pass_or_name_what_fits(model, trajectory, masks, modulation):
    with pytest.raises(InputError, match=r"accepted: \(mask, grid_height, grid_width\)"):
        difference_maps(model, trajectory, masks[0], modulation)
    with pytest.raises(InputError, match="accepted"):
        difference_maps(model, trajectory, masks[:0], modulation)
    with pytest.raises(TimestepError, match="near ones"):
        difference_maps(model, trajectory, masks, replace(modulation, modulate_at=281))
    with pytest.raises(InterventionError, match=r"\(8, 8\)"):
        difference_maps(model, trajectory, torch.ones(2, 4, 4), modulation)
    assert not tiny.hooks_of(model.denoiser)


def test_distance_by_hand():
    minus, plus = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    plus[0, :, 0, 1] = torch.tensor([1.0, -2.0, 2.0])
    assert difference_map(minus, plus).tolist() == [[[0.0, 3.0], [0.0, 0.0]]]


def test_smoothing_is_a_gaussian_of_each_map_alone():
    minus, plus = torch.zeros(3, 3, 20, 24), torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    sharp, smooth = difference_map(minus, plus), difference_map(minus, plus, 2.0)
    for i in range(3):
        assert np.allclose(smooth[i], gaussian_filter(sharp[i].numpy(), 2.0), atol=1e-6)
    assert smooth.std() < sharp.std() / 2


def test_assignment_is_the_argmax_without_normalising_maps():
    maps = torch.tensor([[[1.0, 5.0]], [[2.0, 4.0]], [[0.0, 9.0]]])
    assert assign(maps).tolist() == [[1, 2]]


def test_smoothing_of_maps_that_are_not_square_and_none_at_all():
    maps = torch.rand(2, 9, 31, generator=torch.Generator().manual_seed(0))
    assert smoothed(maps, 0) is maps
    assert np.allclose(smoothed(maps, 4.0), gaussian_filter(maps.numpy(), 4.0, axes=(1, 2)), atol=1e-6)


def by_hand(model, trajectory, masks, modulation, signs, steps=None):
    variants = [modulation.variant(mask, sign) for mask in masks for sign in signs]
    return denoise(model, trajectory, variants, steps=steps)


@pytest.mark.parametrize("changes", [{}, {"one_sided": True}, {"compare": "latents"}])
def test_maps_do_not_depend_on_how_many_images_are_held_at_once(
    model, trajectory, masks, modulation, monkeypatch, changes
):
    modulation = replace(modulation, readout=Readout(**changes))
    whole = difference_maps(model, trajectory, masks, modulation)
    monkeypatch.setattr(correspondence, "MASKS_AT_ONCE", 3)
    assert torch.allclose(difference_maps(model, trajectory, masks, modulation), whole, atol=1e-5)


def test_latents_compared_are_those_before_decoding_enlarged(model, trajectory, masks, modulation):
    ours = difference_maps(model, trajectory, masks, replace(modulation, readout=Readout(compare="latents")))
    latents = by_hand(model, trajectory, masks, modulation, (-1, 1))
    distance = (latents[0::2] - latents[1::2]).square().sum(1).sqrt()
    expected = torch.nn.functional.interpolate(distance[None], size=(64, 64), mode="bilinear")[0]
    assert torch.allclose(ours, expected, atol=1e-4 * float(ours.max()))


def test_images_are_read_exactly_whatever_the_readout(model, trajectory, masks, modulation):
    quick = replace(modulation, readout=Readout(1, 1, "latents", one_sided=True, sign_patterns=3))
    for ours, exact in zip(
        *(modulated_images(model, trajectory, masks, one) for one in (quick, modulation)), strict=True
    ):
        assert torch.equal(ours, exact)


def test_one_sided_compares_with_the_unchanged_image(model, trajectory, masks, modulation):
    ours = difference_maps(model, trajectory, masks, replace(modulation, readout=Readout(one_sided=True)))
    plus = model.decode(by_hand(model, trajectory, masks, modulation, (1,)))
    assert torch.allclose(ours, (plus - model.decode(trajectory.final)).norm(dim=1), atol=1e-3 * float(ours.max()))


def test_fewer_steps_compare_the_images_predicted_then(model, trajectory, masks, modulation):
    ours = difference_maps(model, trajectory, masks, replace(modulation, readout=Readout(denoising_steps=2)))
    read = model.decode(by_hand(model, trajectory, masks, modulation, (-1, 1), steps=2))
    assert torch.allclose(ours, (read[0::2] - read[1::2]).norm(dim=1), atol=1e-3 * float(ours.max()))
    most = [Readout(denoising_steps=steps) for steps in (len(trajectory.timesteps), 99)]
    whole, more = (difference_maps(model, trajectory, masks, replace(modulation, readout=each)) for each in most)
    assert torch.equal(whole, more)


def test_longer_steps_go_where_the_unchanged_image_went(model, trajectory, masks, modulation, maps):
    timesteps = trajectory.timesteps
    thinned = trajectory.skipping(1)
    assert thinned.timesteps[:2] == timesteps[:2]
    assert thinned.timesteps[-1] == timesteps[-1]
    assert set(thinned.timesteps) < set(timesteps)
    assert torch.allclose(denoise(model, thinned, [[]]), trajectory.final, atol=1e-5)
    assert all(torch.equal(thinned.at(timestep), trajectory.at(timestep)) for timestep in thinned.timesteps)
    assert trajectory.skipping(len(timesteps)).timesteps == timesteps

    ours = difference_maps(model, trajectory, masks, replace(modulation, readout=Readout(skip_after=1)))
    assert torch.corrcoef(torch.stack([ours.flatten(), maps.flatten()]))[0, 1] > 0.9
    assert not torch.allclose(ours, maps)


def test_a_step_to_the_next_timestep_is_the_schedulers_own(model, trajectory):
    schedule = model.schedule(trajectory.steps)
    grid = schedule.timesteps
    prediction = torch.randn_like(trajectory.final)
    steps = [schedule.step(prediction, grid[3], trajectory.final, eta=1.0, to=to) for to in (None, grid[4], grid[5])]
    assert torch.equal(steps[0], steps[1])
    half = model.schedule(trajectory.steps // 2)
    assert torch.equal(steps[2], half.step(prediction, grid[3], trajectory.final, eta=1.0))


def test_patterns_that_save_nothing_are_not_used(model, trajectory, masks, modulation, maps):
    """Three masks run as well alone."""
    coded = replace(modulation, readout=Readout(sign_patterns=3))
    assert torch.equal(
        difference_maps(model, trajectory, masks[:3], coded), difference_maps(model, trajectory, masks[:3], modulation)
    )
    assert not torch.equal(difference_maps(model, trajectory, masks, coded), maps)


def test_masks_in_few_runs_give_maps_of_every_mask(model, trajectory, modulation):
    masks = torch.eye(8).reshape(8, 8, 1).repeat(1, 1, 8)  # rows of the grid
    coded = replace(modulation, readout=Readout(sign_patterns=5, denoising_steps=1))
    rows = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        maps = difference_maps(model, trajectory, masks, coded)
    finally:
        handle.remove()
    assert rows == [1 + 2 * 5]
    assert maps.shape == (8, 64, 64)
    middles = maps[:, 4::8, 4::8].argmax(0)
    assert (middles == torch.arange(8)[:, None]).float().mean() > 0.8


def test_patterns_are_run_both_ways_whatever_masks_alone_are(model, trajectory, masks, modulation):
    both, one = (Readout(sign_patterns=3, one_sided=sided) for sided in (False, True))
    maps = [difference_maps(model, trajectory, masks, replace(modulation, readout=each)) for each in (both, one)]
    assert torch.equal(*maps)


def test_patterns_found_for_a_number_of_masks_save_a_third_of_the_runs_or_are_none():
    """Both ways, beside masks that are pushed one way."""
    for masks in range(1, 300):
        codes = sign_codes(masks, Readout(sign_patterns="auto").patterns(masks))
        assert (codes is None) == (masks <= RUN_ALONE)
        assert codes is None or len(codes) == np.ceil(masks / 3)
    assert (Readout().patterns(99), Readout(sign_patterns=7).patterns(99)) == (None, 7)


@settings(max_examples=50, deadline=None)
@given(masks=st.integers(1, 70), patterns=st.integers(1, 12), seed=st.integers(0, 5))
def test_signs_tell_all_masks_apart_in_fewer_runs_than_masks(masks, patterns, seed):
    codes = sign_codes(masks, patterns, seed=seed)
    least = max(patterns, 1 + int(np.ceil(np.log2(masks))))
    if codes is None:
        assert least >= masks
        return
    assert codes.shape == (least, masks)
    likeness = (codes.T @ codes / least).abs() - torch.eye(masks)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert likeness.max() < 1
    assert torch.equal(codes, sign_codes(masks, patterns, seed=seed))


def test_untangling_finds_which_mask_a_pixel_answers_to():
    """Responses that reach beyond their cells, up to a border that the grid does not know."""
    masks = torch.zeros(9, 6, 6)
    for i in range(9):
        masks[i, 2 * (i // 3) : 2 * (i // 3) + 2, 2 * (i % 3) : 2 * (i % 3) + 2] = 1
    rows, columns = (torch.tensor([0] * 13 + [1] * 19 + [2] * 16) for _ in range(2))
    truth = rows[:, None] * 3 + columns
    own = (
        torch.nn.functional.one_hot(truth, 9).permute(2, 0, 1)[:, None] * torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    )
    codes = sign_codes(9, 8)
    responses = torch.einsum("pm,mchw->pchw", codes, own)
    found = untangle(responses, codes, masks).norm(dim=1).argmax(0)
    nearest = masks.repeat_interleave(8, 1).repeat_interleave(8, 2).argmax(0)
    assert (found == truth).float().mean() > 0.98
    assert (nearest == truth).float().mean() < 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"denoising_steps": 0},
        {"skip_after": 0},
        {"compare": "features"},
        {"one_sided": 1},
        {"sign_patterns": 2.5},
        {"sign_patterns": "few"},
        {"shared_levels": -1},
    ],
)
def test_a_readout_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*accepted"):
        Readout(**wrong)
