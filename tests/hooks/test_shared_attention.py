"""Shared attention equals attention row by row, whatever the rows share, and runs no projection twice."""

from dataclasses import dataclass

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from emerdiff_probe.hooks import shared_attention as module
from emerdiff_probe.hooks.attach import Capture, attached
from emerdiff_probe.hooks.shared_attention import SharedAttention, weigh
from emerdiff_probe.interventions import InjectAttention, Modulate, Scale
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.inversion import invert


@dataclass(frozen=True, eq=False)
class InjectByHooks:
    """The same injection as replaced outputs of the projections, under the layer's own processor."""

    injection: InjectAttention

    def edits(self, model, rows, references):
        return [edit for injection in self.injection.edits(model, rows, references) for edit in injection.edits()]


def modulated(model, site, strength=30.0, timestep=301):
    rows, columns = (int(model.denoiser.config.sample_size) // site.scale,) * 2
    mask = torch.zeros(rows, columns)
    mask[0] = 1
    return Modulate(site, mask, strength, (timestep,))


@pytest.mark.parametrize(("make", "layer"), [(tiny.pocket, "up8"), (tiny.sdxl, "up4"), (tiny.sd2, "up4")])
@pytest.mark.parametrize(
    "injection", [InjectAttention(), InjectAttention(("self",)), InjectAttention(("cross",), timesteps=(201, 1))]
)
def test_denoising_with_shared_attention_equals_denoising_with_hooks(make, layer, injection):
    model = load_model(make(), device="cpu")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    trajectory = invert(model, latents, start=301, steps=10)
    changes = [modulated(model, find_site(model, f"{layer}.cross2.output"), sign * 30.0) for sign in (-1, 1)]
    ours = denoise(model, trajectory, [[change, injection] for change in changes])
    plain = denoise(model, trajectory, [[change, InjectByHooks(injection)] for change in changes])
    assert torch.allclose(ours, plain, atol=1e-5 * float(plain.abs().max()))
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_rows_that_inject_beside_rows_that_do_not(model, trajectory):
    change, injection = modulated(model, find_site(model, "up8.cross2.output")), InjectAttention()
    mixed = denoise(model, trajectory, [[change], [change, injection], []])
    alone = [denoise(model, trajectory, [variant]) for variant in ([change], [change, injection], [])]
    assert torch.allclose(mixed, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("part", ["query", "key", "value", "heads", "output"])
def test_an_edit_inside_an_injected_layer_acts_as_it_does_with_hooks(model, trajectory, part):
    edit = Scale(find_site(model, f"up8.cross1.{part}"), 0.5)
    change, injection = modulated(model, find_site(model, "up8.cross0.output")), InjectAttention()
    ours, without = denoise(model, trajectory, [[change, injection, edit], [change, injection]])
    plain = denoise(model, trajectory, [[change, InjectByHooks(injection), edit]])
    assert torch.allclose(ours, plain[0], atol=1e-5)
    assert (ours - without).abs().max() > 1e-4


@pytest.mark.parametrize("part", ["query", "key", "value", "heads", "output"])
def test_what_a_capture_sees_is_what_it_sees_with_hooks(model, latents, part):
    site = find_site(model, f"up8.cross1.{part}")
    rows = torch.cat([latents, latents + 1])
    text = model.embed("", 64, 64).expand(2).hidden_states
    seen = []
    for intervention in (InjectAttention(), InjectByHooks(InjectAttention())):
        edits = intervention.edits(model, [1], [0])
        with attached(model, edits=edits, captures=[Capture(site)]) as record, torch.no_grad():
            model.denoiser(rows, 301, encoder_hidden_states=text)
        seen.append(record[site, 301])
    assert seen[0].shape == seen[1].shape
    assert torch.allclose(*seen, atol=1e-5)


class Foreign:
    """Some other processor, which is none of ours to replace."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, *args, **kwargs):
        return self.plain(*args, **kwargs)


def test_a_processor_of_another_kind_stays_and_is_served_by_hooks(trajectory, model):
    other = load_model(tiny.pocket(), device="cpu")
    change = modulated(other, find_site(other, "up8.cross2.output"))
    expected = denoise(model, trajectory, [[change, InjectAttention()]])
    processors = {name: Foreign(plain) for name, plain in other.denoiser.attn_processors.items()}
    other.denoiser.set_attn_processor(dict(processors))  # it empties what it is given
    assert torch.allclose(denoise(other, trajectory, [[change, InjectAttention()]]), expected, atol=1e-5)
    assert other.denoiser.attn_processors == processors


def test_processors_are_the_old_ones_afterwards_whatever_was_raised(model, latents):
    before = model.denoiser.attn_processors
    with pytest.raises(KeyboardInterrupt), attached(model, edits=InjectAttention().edits(model, [1], [0])):  # noqa: PT012
        within = model.denoiser.attn_processors
        raise KeyboardInterrupt
    assert all(isinstance(processor, SharedAttention) for processor in within.values())
    after = model.denoiser.attn_processors
    assert all(after[name] is before[name] for name in before)


def test_queries_and_keys_are_projected_for_the_reference_alone(model, trajectory):
    """And the whole of a cross-attention layer, as all rows read one text."""
    rows = {}
    handles = [
        model.denoiser.get_submodule(site.path).register_forward_pre_hook(
            lambda _, args, site=site: rows.setdefault(site, set()).add(len(args[0]))
        )
        for site in list_sites(model)
        if site.part in {"query", "key", "value"} and site.stage == "up"
    ]
    try:
        change = modulated(model, find_site(model, "up4.cross0.output"))
        denoise(model, trajectory, [[change, InjectAttention()]] * 3)
    finally:
        for handle in handles:
            handle.remove()
    for site, seen in rows.items():
        alone = site.kind == "cross" or site.part in {"query", "key"}
        assert seen == ({1} if alone else {4} if site.nth or site.resolution > 4 else {1, 4}), site


def test_a_mask_over_the_text_is_the_same_however_attention_is_injected(model, latents):
    text = model.embed("red car", 64, 64).expand(2).hidden_states
    mask = torch.ones(text.shape[:2])
    mask[:, 5:] = 0
    injections = InjectAttention().edits(model, [1], [0])
    rows = torch.cat([latents, latents.flip(-1)])
    results = []
    for edits in (injections, [edit for injection in injections for edit in injection.edits()]):
        with attached(model, edits=edits):
            results.append(model.denoiser(rows, 301, text, encoder_attention_mask=mask).sample)
    assert torch.allclose(*results, atol=1e-4)
    with attached(model, edits=injections):
        unmasked = model.denoiser(rows, 301, text).sample
    assert not torch.allclose(results[0], unmasked, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    cells=st.integers(1, 9),
    tokens=st.integers(1, 9),
    limit=st.sampled_from([1, 300, 2**20]),
)
def test_weighing_equals_torchs_own_attention_row_by_row(rows, heads, cells, tokens, limit):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads, length, 4, generator=generator) for length in (cells, tokens))
    values = torch.randn(rows, heads, tokens, 4, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_PROBABILITY_BYTES", limit)
        ours = weigh(query, key, values, 0.5)
    for row in range(rows):
        expected = scaled_dot_product_attention(query, key, values[row], scale=0.5)
        assert torch.allclose(ours[row], expected.transpose(0, 1).flatten(1), atol=1e-5)
