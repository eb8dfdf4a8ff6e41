"""Attention probabilities that are read are those that diffusers' own processor computes inside a pass."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor

from emerdiff_probe.errors import InputError, ModelError, TimestepError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading import attention as reading
from emerdiff_probe.reading.attention import attention, attentions
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import predict
from emerdiff_probe.trajectories.inversion import invert

SIZES = {"square": (64, 64), "wide": (64, 96)}


@pytest.fixture(scope="module", params=SIZES)
def probed(request, model):
    return ProbedImage(model, tiny.picture(*SIZES[request.param]), start=301, steps=10, prompt="red car")


def computed_by_diffusers(model, latents, site, timestep, prompt):
    """Probabilities (head, cell, token) of one layer, as its own plain processor uses them."""
    layer = model.denoiser.get_submodule(site.attention)
    seen, plain, processor = [], layer.get_attention_scores, layer.processor

    def watched(*args):
        seen.append(plain(*args))
        return seen[-1]

    layer.set_processor(AttnProcessor())
    layer.get_attention_scores = watched
    try:
        height, width = (side * model.factor for side in latents.shape[-2:])
        predict(model, latents, timestep, model.embed(prompt, height, width))
    finally:
        del layer.get_attention_scores
        layer.set_processor(processor)
    (probabilities,) = seen
    return probabilities


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("timestep", [301, 1])
def test_probabilities_are_those_of_diffusers_own_processor(probed, kind, timestep):
    model = probed.model
    sites = list_sites(model, kind=kind, part="query")
    for site in (sites[0], sites[len(sites) // 2], sites[-1]):
        expected = computed_by_diffusers(model, probed.trajectory.at(timestep), site, timestep, "red car")
        assert expected.shape[0] == model.denoiser.get_submodule(site.attention).heads > 1
        assert torch.allclose(probed.attention(site, timestep, per_head=True), expected, atol=1e-6)
        mean = probed.attention(site, timestep)
        assert torch.allclose(mean, expected.mean(0), atol=1e-6)
        assert torch.allclose(mean.sum(1), torch.tensor(1.0), atol=1e-5)
        cells = int(np.prod(probed.grid(site)))
        assert mean.shape == ((cells, cells) if kind == "self" else (cells, 16))


@pytest.mark.parametrize("build", [tiny.sd2, tiny.sdxl])
def test_other_families_and_head_counts_too(build):
    model = load_model(build(), device="cpu")
    trajectory = invert(model, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), start=1)
    for kind in ("self", "cross"):
        for site, maps in attentions(model, trajectory, list_sites(model, kind=kind, part="query")[::3], 1):
            expected = computed_by_diffusers(model, trajectory.final * 0 + trajectory.at(1), site, 1, "")
            assert torch.allclose(maps, expected.mean(0), atol=1e-6)


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(1)])
def test_the_processor_does_not_matter(model, probed, processor):
    own = load_model(tiny.pocket(), device="cpu")
    own.denoiser.set_attn_processor(processor())
    for name in ("up8.self1.query", "up8.cross2.key"):
        site = find_site(own, name)
        for per_head in (False, True):
            expected = attention(model, probed.trajectory, site, 101, per_head=per_head)
            ours = attention(own, probed.trajectory, site, 101, per_head=per_head)
            assert torch.allclose(ours, expected, atol=1e-6)


def test_a_mean_over_draws_is_taken_after_the_softmax(model):
    """Of what each run attended to: a run of mean queries and keys never was."""
    many = ProbedImage(model, tiny.picture(), start=301, steps=10, draws=4)
    site = find_site(model, "up8.self0.query")
    draws = [invert(model, many.latents, start=301, steps=10, draw=draw, residuals=False) for draw in range(4)]
    each = torch.stack([attention(model, draw, site, 301) for draw in draws])
    assert torch.allclose(many.attention(site, 301), each.mean(0), atol=1e-6)
    assert (each - each[0]).abs().max() > 1e-5


@pytest.mark.parametrize("budget", [1, 2**40])
def test_many_layers_are_each_as_if_alone(probed, monkeypatch, budget):
    """Whatever a pass may hold, in the order that is asked for, and twice where asked twice."""
    monkeypatch.setattr(reading, "BYTES_AT_ONCE", budget)
    model = probed.model
    sites = [find_site(model, name) for name in ("up8.cross1.output", "down16.self0.key", "up8.cross1.query")]
    read = dict(probed.attentions(sites, 101))
    assert list(read) == sites
    for site, maps in read.items():
        assert torch.equal(maps, probed.attention(site, 101))


def test_any_part_of_a_layer_names_it(probed):
    sites = list_sites(probed.model, kind="self", resolution=8, stage="up", nth=0)
    maps = [probed.attention(site, 1) for site in sites]
    assert len(maps) == 5
    assert all(torch.equal(each, maps[0]) for each in maps)


def test_stripes_of_cells_and_batches_of_draws_do_not_matter(model, monkeypatch):
    many = ProbedImage(model, tiny.picture(), start=301, steps=10, draws=3)
    site = find_site(model, "up8.self0.query")
    whole = many.attention(site, 301)
    monkeypatch.setattr("emerdiff_probe.hooks.attention_reader.STRIPE_BYTES", 4 * 64 * 5)
    monkeypatch.setattr(reading, "denoiser_rows_that_fit", lambda *_: 1)
    assert torch.allclose(many.attention(site, 301), whole, atol=1e-6)


def test_reading_changes_nothing(model, probed):
    latents, condition = probed.trajectory.at(101), model.embed("", *probed.image.shape[:2])
    before = predict(model, latents, 101, condition)
    probed.attention(find_site(model, "up8.self0.query"), 101)
    assert torch.equal(predict(model, latents, 101, condition), before)
    assert tiny.hooks_of(model.denoiser) == []


class Other:
    """A processor that attends in a way of its own: everything to everything, without a softmax."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return attn.to_v(hidden_states).mean(1, keepdim=True).expand_as(hidden_states)


class Twice(AttnProcessor2_0):
    """A processor of two products, as with an adapter's image prompt."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) + super().__call__(*args, **kwargs)


@pytest.mark.parametrize("processor", [Other, Twice])
def test_a_processor_that_cannot_be_read_is_refused_by_its_name(probed, processor):
    own = load_model(tiny.pocket(), device="cpu")
    site = find_site(own, "up8.self0.query")
    own.denoiser.get_submodule(site.attention).processor = processor()
    with pytest.raises(ModelError, match=rf"{site.attention}: .*{processor.__name__}.*accepted"):
        attention(own, probed.trajectory, site, 1)
    assert tiny.hooks_of(own.denoiser) == []


def test_norms_of_queries_are_in_what_is_read(probed):
    """What the projections give is not what such a layer multiplies."""
    own = load_model(tiny.pocket(), device="cpu")
    site = find_site(own, "up8.self0.query")
    plain = attention(own, probed.trajectory, site, 1)

    class Double(torch.nn.Module):
        def forward(self, queries):
            return 2 * queries

    layer = own.denoiser.get_submodule(site.attention)
    layer.norm_q = Double()
    normed = attention(own, probed.trajectory, site, 1)
    layer.norm_q = None
    layer.to_q.weight *= 2
    assert torch.allclose(normed, attention(own, probed.trajectory, site, 1), atol=1e-6)
    assert not torch.equal(normed, plain)


def test_what_is_no_such_layer_or_not_passed_is_refused(model, probed):
    with pytest.raises(InputError, match=r"up8\.resnet0\.output.*accepted: sites of a layer of kind 'self' or 'cross'"):
        probed.attention(find_site(model, "up8.resnet0.output"), 1)
    with pytest.raises(InputError, match="joint"):
        attention(model, probed.trajectory, replace(find_site(model, "up8.self0.query"), kind="joint"), 1)
    with pytest.raises(TimestepError, match="401"):
        probed.attention(find_site(model, "up8.self0.query"), 401)
