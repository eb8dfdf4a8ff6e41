"""Difference maps: arithmetic, order, batching, and what they do not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.ndimage import gaussian_filter

from emerdiff_probe.correspondence import Modulation, assign, difference_map, difference_maps, modulated_images
from emerdiff_probe.diffusion import denoise
from emerdiff_probe.errors import InputError, InterventionError, TimestepError
from emerdiff_probe.interventions import InjectAttention, Modulate
from emerdiff_probe.layers import find_site


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
