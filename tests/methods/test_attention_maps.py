"""Self-attention of many layers on one grid."""

import weakref

import numpy as np
import pytest
import tiny
import torch

from emerdiff_probe import probe
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.attention import aggregated_attention, spread
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading import attention as reading
from emerdiff_probe.reading.attention import attentions
from emerdiff_probe.sites import list_sites

SIZES = {"square": (64, 64), "wide": (64, 96)}


@pytest.fixture(scope="module", params=SIZES)
def probed(request, model):
    return ProbedImage(model, tiny.picture(*SIZES[request.param]), start=301, steps=10)


def layers(probed):
    return list_sites(probed.model, kind="self", part="query")


def test_rows_sum_to_one(probed):
    for site in layers(probed):
        assert torch.allclose(probed.attention(site, 101).sum(1), torch.tensor(1.0), atol=1e-5)
    for weighting in ("layer", "resolution", "uniform"):
        total = aggregated_attention(probed, layers(probed), 101, weighting=weighting)
        finest = max(np.prod(probed.grid(site)) for site in layers(probed))
        assert total.shape == (finest, finest)
        assert (total >= 0).all()
        assert torch.allclose(total.sum(1), torch.tensor(1.0), atol=1e-5)


def test_any_part_of_a_layer_names_it(probed):
    sites = list_sites(probed.model, kind="self", resolution=8, stage="up", nth=0)
    maps = [probed.attention(site, 1) for site in sites]
    assert len(maps) == 5
    assert all(torch.equal(each, maps[0]) for each in maps)


def test_one_layer_on_its_own_grid_stays_as_it_is(probed):
    site = layers(probed)[3]
    alone = aggregated_attention(probed, [site], 1)
    assert torch.allclose(alone, probed.attention(site, 1), atol=1e-6)


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
        own = spread(probed.attention(coarse, 1), (height, width), (2 * height, 2 * width))
        assert torch.allclose(block, own[row * width + column].expand(4, -1))


def test_a_weighted_sum_holds_one_layer_at_a_time(probed, monkeypatch):
    """Where a pass may hold no more, what a layer's maps took is free before the next layer's are made."""
    alive, most = [], 0

    def watched(*args, **kwargs):
        nonlocal most
        for site, maps in attentions(*args, **kwargs):
            alive.append(weakref.ref(maps))
            most = max(most, sum(reference() is not None for reference in alive))
            yield site, maps
            del maps

    expected = aggregated_attention(probed, layers(probed), 1)
    monkeypatch.setattr(reading, "BYTES_AT_ONCE", 1)
    monkeypatch.setattr(probe, "attentions", watched)
    assert torch.allclose(aggregated_attention(probed, layers(probed), 1), expected, atol=1e-6)
    assert len(alive) == len(layers(probed))
    assert most <= 3  # the loop's names still hold the last layer's while the next one's are made


def test_other_layers_are_refused(probed):
    cross = list_sites(probed.model, kind="cross", part="query")[0]
    with pytest.raises(InputError, match="no self-attention"):
        aggregated_attention(probed, [cross], 1)
    with pytest.raises(InputError, match="0 sites"):
        aggregated_attention(probed, [], 1)
    with pytest.raises(InputError, match="layer, resolution, uniform"):
        aggregated_attention(probed, layers(probed), 1, weighting="area")
