"""Self-attention maps from captured queries and keys are the probabilities that diffusers computes."""

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.methods.attention import aggregated_attention, self_attention, spread
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.sites import list_sites
from emerdiff_probe.trajectories.denoise import conditionings, predict

SIZES = {"square": (64, 64), "wide": (64, 96)}


@pytest.fixture(scope="module", params=SIZES)
def probed(request, model):
    return ProbedImage(model, tiny.picture(*SIZES[request.param]), start=301, steps=10)


def layers(probed):
    return list_sites(probed.model, kind="self", part="query")


def computed_by_diffusers(probed, site, timestep):
    """Probabilities (head, cell, cell) of one layer, as its own plain processor uses them."""
    model = probed.model
    layer = model.denoiser.get_submodule(site.attention)
    seen, plain, processor = [], layer.get_attention_scores, layer.processor

    def watched(*args):
        seen.append(plain(*args))
        return seen[-1]

    layer.set_processor(AttnProcessor())
    layer.get_attention_scores = watched
    try:
        conditioning, _ = conditionings(model, probed.trajectory.final, "", 1.0)
        predict(model, probed.trajectory.at(timestep), timestep, conditioning)
    finally:
        del layer.get_attention_scores
        layer.set_processor(processor)
    (probabilities,) = seen
    return probabilities


@pytest.mark.parametrize("timestep", [301, 1])
def test_maps_are_those_of_diffusers_own_processor(probed, timestep):
    sites = layers(probed)
    for site in (sites[0], sites[len(sites) // 2], sites[-1]):
        heads = probed.model.denoiser.get_submodule(site.attention).heads
        expected = computed_by_diffusers(probed, site, timestep)
        assert heads > 1
        assert expected.shape[0] == heads
        maps = self_attention(probed, site, timestep)
        assert torch.allclose(maps, expected.mean(0), atol=1e-6)
        assert maps.shape == (np.prod(probed.grid(site)),) * 2


def test_layers_of_other_head_counts_too():
    model = load_model(tiny.sd2(), device="cpu")
    probed = ProbedImage(model, tiny.picture(), start=301, steps=10)
    sites = layers(probed)
    heads = {model.denoiser.get_submodule(site.attention).heads for site in sites}
    assert len(heads) > 1
    for site in sites[::3]:
        expected = computed_by_diffusers(probed, site, 1)
        assert torch.allclose(self_attention(probed, site, 1), expected.mean(0), atol=1e-6)


def test_rows_sum_to_one(probed):
    for site in layers(probed):
        assert torch.allclose(self_attention(probed, site, 101).sum(1), torch.tensor(1.0), atol=1e-5)
    for weighting in ("layer", "resolution", "uniform"):
        total = aggregated_attention(probed, layers(probed), 101, weighting=weighting)
        finest = max(np.prod(probed.grid(site)) for site in layers(probed))
        assert total.shape == (finest, finest)
        assert (total >= 0).all()
        assert torch.allclose(total.sum(1), torch.tensor(1.0), atol=1e-5)


def test_any_part_of_a_layer_names_it(probed):
    sites = list_sites(probed.model, kind="self", resolution=8, stage="up", nth=0)
    maps = [self_attention(probed, site, 1) for site in sites]
    assert len(maps) == 5
    assert all(torch.equal(each, maps[0]) for each in maps)


def test_one_layer_on_its_own_grid_stays_as_it_is(probed):
    site = layers(probed)[3]
    alone = aggregated_attention(probed, [site], 1)
    assert torch.allclose(alone, self_attention(probed, site, 1), atol=1e-6)


def test_layers_are_weighted_by_the_side_of_their_grid(probed):
    fine, coarse = (next(site for site in layers(probed) if site.resolution == side) for side in (16, 8))
    parts = [aggregated_attention(probed, [site], 1, grid=probed.grid(fine)) for site in (fine, coarse)]
    together = aggregated_attention(probed, [fine, coarse], 1)
    assert torch.allclose(together, (2 * parts[0] + parts[1]) / 3, atol=1e-6)
    alike = aggregated_attention(probed, [fine, coarse], 1, weighting="uniform")
    assert torch.allclose(alike, (parts[0] + parts[1]) / 2, atol=1e-6)
    twice = aggregated_attention(probed, [fine, coarse, coarse], 1, weighting="resolution")
    assert torch.allclose(twice, together, atol=1e-6)


def test_cells_of_a_coarse_layer_are_repeated_where_they_lie(probed):
    coarse = next(site for site in layers(probed) if site.resolution == 8)
    height, width = probed.grid(coarse)
    total = aggregated_attention(probed, [coarse], 1, grid=(2 * height, 2 * width))
    maps = total.reshape(2 * height, 2 * width, -1)
    for row, column in ((0, 0), (1, 2), (height - 1, width - 1)):
        block = maps[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(0, 1)
        own = spread(self_attention(probed, coarse, 1), (height, width), (2 * height, 2 * width))
        assert torch.allclose(block, own[row * width + column].expand(4, -1))


def test_a_weighted_sum_holds_one_layer_at_a_time(probed, monkeypatch):
    """What a layer's maps took is free before the next layer's are made."""
    import weakref

    from emerdiff_probe.methods import attention

    alive, most = [], 0

    def watched(*args):
        nonlocal most
        maps = self_attention(*args)
        alive.append(weakref.ref(maps))
        most = max(most, sum(reference() is not None for reference in alive))
        return maps

    monkeypatch.setattr(attention, "self_attention", watched)
    aggregated_attention(probed, layers(probed), 1)
    assert len(alive) == len(layers(probed))
    assert most <= 2  # the name of the last layer's maps is free once the next ones are bound


def test_other_layers_are_refused(probed):
    cross = list_sites(probed.model, kind="cross", part="query")[0]
    with pytest.raises(InputError, match="no self-attention"):
        self_attention(probed, cross, 1)
    with pytest.raises(InputError, match="0 sites"):
        aggregated_attention(probed, [], 1)
    with pytest.raises(InputError, match="layer, resolution, uniform"):
        aggregated_attention(probed, layers(probed), 1, weighting="area")


def test_normalised_queries_are_refused():
    probed = ProbedImage(load_model(tiny.pocket(), device="cpu"), tiny.picture(), start=301, steps=10)
    site = layers(probed)[0]
    probed.model.denoiser.get_submodule(site.attention).norm_q = torch.nn.Identity()
    with pytest.raises(ModelError, match="normalises"):
        self_attention(probed, site, 1)
