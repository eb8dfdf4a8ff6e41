"""The response atlas says what running the masks themselves would."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emerdiff_probe.errors import InputError, TimestepError
from emerdiff_probe.interventions import InjectAttention
from emerdiff_probe.reading.atlas import ResponseAtlas, response_atlas
from emerdiff_probe.reading.correspondence import Modulation, difference_map, modulated_images
from emerdiff_probe.sites import find_site


@pytest.fixture(scope="module")
def modulation(model):
    return Modulation(find_site(model, "up8.cross2.output"), strength=0.5, modulate_at=101)


@pytest.fixture(scope="module")
def atlas(model, trajectory, modulation):
    return response_atlas(model, trajectory, modulation)


@pytest.fixture(scope="module")
def halves():
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    return torch.stack([left, 1 - left])


def test_one_cell_of_the_atlas_is_that_cell_modulated(atlas, model, trajectory, modulation):
    mask = torch.zeros(1, 8, 8)
    mask[0, 5, 2] = 1
    minus, plus = modulated_images(model, trajectory, mask, modulation)
    torch.testing.assert_close(atlas.respond(mask), (plus - minus) / 2, rtol=2e-3, atol=2e-4)


def test_the_atlas_comes_close_to_running_a_mask(atlas, model, trajectory, modulation, halves):
    minus, plus = modulated_images(model, trajectory, halves, modulation)
    ours, theirs = atlas.difference_maps(halves), difference_map(minus, plus)
    assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] > 0.9


def test_responses_are_linear_and_a_permutation_of_masks_permutes_the_maps(atlas, halves):
    union = atlas.respond(halves.sum(0, keepdim=True))
    torch.testing.assert_close(union[0], atlas.respond(halves).sum(0))
    torch.testing.assert_close(atlas.difference_maps(halves.flip(0)), atlas.difference_maps(halves).flip(0))


def test_the_norm_is_taken_after_the_sum(halves):
    """Opposite answers of two cells cancel in their union."""
    response = torch.rand(1, 3, 4, 4)
    atlas = ResponseAtlas(torch.cat([response, -response]).half(), (1, 2), torch.zeros(4, 2, 2), {})
    assert atlas.difference_maps(torch.ones(1, 1, 2)).max() == 0
    assert atlas.difference_maps(torch.tensor([[[1.0, 0.0]]])).min() > 0


def test_an_atlas_holds_the_push_and_the_trajectory_that_it_was_made_with_and_no_other(
    atlas, trajectory, modulation, tmp_path
):
    for each in (atlas, ResponseAtlas.load(atlas.save(tmp_path / "atlas.safetensors"))):
        assert each.holds(modulation, trajectory)
        assert not each.holds(replace(modulation, strength=0.6), trajectory)
        assert not each.holds(replace(modulation, injection=None), trajectory)
        assert not each.holds(modulation, replace(trajectory, prompt="a car"))
        assert not each.holds(modulation, replace(trajectory, eta=trajectory.eta / 2))


def test_an_atlas_knows_its_own_image_by_the_latents(atlas, trajectory, tmp_path):
    own, noise = trajectory.final[0], torch.randn(trajectory.final[0].shape, generator=torch.manual_seed(0))
    for each in (atlas, ResponseAtlas.load(atlas.save(tmp_path / "atlas.safetensors"))):
        assert each.is_of(own)
        assert each.is_of((own + 0.02 * own.std() * noise).half()), "as another machine rounds them"
        assert not each.is_of(own.flip(-1))
        assert not each.is_of(own[..., :-1])


def test_a_saved_atlas_reads_back(atlas, tmp_path, halves):
    again = ResponseAtlas.load(atlas.save(tmp_path / "deep" / "atlas.safetensors"))
    assert torch.equal(again.responses, atlas.responses)
    assert again.grid == (8, 8)
    assert dict(again.settings) == dict(atlas.settings)
    assert again.responses.dtype == torch.float16
    assert torch.equal(again.respond(halves), atlas.respond(halves))


def test_an_atlas_says_all_that_made_it(model, trajectory, modulation, tmp_path):
    layer = modulation.site
    made = replace(
        modulation,
        strength=np.float32(0.5),
        modulate_at=np.int64(1),
        direction=torch.arange(float(layer.channels)),
        injection=InjectAttention(("cross",), (layer,), (1,)),
    )
    told = replace(trajectory, prompt="red car", residuals=None)
    settings = ResponseAtlas.load(response_atlas(model, told, made).save(tmp_path / "atlas")).settings
    expected = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "layer": layer.name,
        "strength": 0.5,
        "modulate_at": 1,
        "placement": "after",
        "direction": list(range(layer.channels)),
        "injection": ["cross"],
        "injection_sites": [layer.name],
        "injection_timesteps": [1],
        "steps": 10,
        "eta": 1.0,
        "prompt": "red car",
        "guidance": 1.0,
    }
    assert settings == expected
    plain = response_atlas(model, trajectory, replace(modulation, modulate_at=1, injection=None)).settings
    assert (plain["direction"], plain["injection"], plain["injection_sites"], plain["prompt"]) == (None, [], None, "")


def test_responses_are_the_product_of_any_weights_with_all_cells(atlas):
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    product = torch.einsum("mhw,hwcyx->mcyx", weights, atlas.responses.float().unflatten(0, (8, 8)))
    torch.testing.assert_close(atlas.respond(weights), product)
    assert torch.equal(atlas.respond(weights > 0), atlas.respond((weights > 0).float()))


@pytest.mark.parametrize("shape", [(8, 8), (1, 4, 4), (1, 64, 1)])
def test_masks_of_another_grid_are_refused(atlas, shape):
    with pytest.raises(InputError, match=r"accepted: \(mask, 8, 8\)"):
        atlas.respond(torch.ones(shape))


def test_bad_files_and_timesteps_are_refused(model, trajectory, modulation, tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("missing.safetensors", "junk.safetensors"):
        with pytest.raises(InputError, match="no readable response atlas"):
            ResponseAtlas.load(tmp_path / name)
    with pytest.raises(TimestepError):
        response_atlas(model, trajectory, Modulation(modulation.site, modulate_at=150))


def test_responses_lie_cell_by_cell(atlas):
    """A sum of cells is read several times as slowly where the colours of a pixel lie together."""
    assert atlas.responses.is_contiguous()
