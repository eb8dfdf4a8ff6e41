"""Laws of the interventions, checked against plain arithmetic and an independent slow implementation."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import InputError, InterventionError, SiteError
from emerdiff_probe.hooks.attach import Capture, attached
from emerdiff_probe.interventions import Apply, InjectAttention, Modulate, Noise, Replace, Scale, attention_part
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.correspondence import Modulation
from emerdiff_probe.reading.features import capture
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.criteria import Eigengap, Fixed, NormalisedCut, ResponseOverlap, Silhouette
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import conditionings, denoise, predict

MASK = torch.zeros(8, 8)
MASK[2:5, 1:7] = 1


@pytest.fixture(scope="module")
def site(model):
    return find_site(model, "up8.cross2.output")


def modulate(site, strength=10.0, **settings):
    return Modulate(site, MASK, strength, **{"modulate_at": (301,), **settings})


def difference(one, other):
    return float((one - other).abs().max())


def captured(model, latents, site, interventions, timestep=301):
    """What `site` holds in the changed row and in the unchanged one."""
    conditioning, _ = conditionings(model, latents, "", 1.0)
    edits = [edit for intervention in interventions for edit in intervention.edits(model, [1], [0])]
    with attached(model, edits=edits, captures=[Capture(site)]) as record:
        predict(model, latents.repeat(2, 1, 1, 1), timestep, conditioning)
    unchanged, changed = record[site, timestep]
    return changed, unchanged


def test_modulate_adds_strength_times_mask_times_direction(model, latents, site):
    direction = torch.linspace(-1, 1, site.channels)
    changed, unchanged = captured(model, latents, site, [modulate(site, 3.0, direction=direction)])
    expected = 3.0 * MASK.flatten()[:, None] * direction
    assert torch.allclose(changed - unchanged, expected, atol=1e-5)


def test_the_direction_is_all_ones_by_default(model, trajectory, site):
    ones = modulate(site, direction=torch.ones(site.channels))
    assert torch.equal(*denoise(model, trajectory, [[modulate(site)], [ones]]))


def test_any_site_of_the_layer_names_it(model, trajectory, site):
    query = attention_part(model, site, "query")
    assert torch.equal(*denoise(model, trajectory, [[modulate(site)], [modulate(query)]]))


def test_before_the_projection_equals_after_it_with_the_projected_direction(model, trajectory, site):
    """The output projection is linear: W (h + c m d) + b = W h + b + c m W d."""
    direction = torch.randn(site.channels, generator=torch.Generator().manual_seed(0))
    weight = model.denoiser.get_submodule(site.path).to_out[0].weight
    before = modulate(site, placement="before", direction=direction)
    after = modulate(site, placement="after", direction=weight @ direction)
    one, other = denoise(model, trajectory, [[before], [after]])
    assert torch.allclose(one, other, atol=1e-4)
    assert difference(one, trajectory.final[0]) > 1e-2


def test_strength_zero_equals_the_baseline(model, trajectory, site):
    for placement in ("after", "before"):
        result = denoise(model, trajectory, [[modulate(site, 0.0, placement=placement)]])
        assert torch.allclose(result, trajectory.final, atol=1e-5)


def test_the_effect_vanishes_with_the_strength(model, trajectory, site):
    strengths = (10.0, 0.1, 0.001)
    results = denoise(model, trajectory, [[modulate(site, strength)] for strength in strengths])
    effects = [difference(result, trajectory.final[0]) for result in results]
    assert effects[0] > 10 * effects[1] > 0
    assert effects[2] < 1e-2 * effects[0]


def test_modulations_of_several_timesteps_and_layers_compose(model, trajectory, site):
    other = modulate(find_site(model, "up8.cross0.output"))
    both = modulate(site, modulate_at=(301, 101))
    alone, twice, together = denoise(model, trajectory, [[modulate(site)], [both], [modulate(site), other]])
    assert difference(alone, twice) > 1e-3
    assert difference(alone, together) > 1e-3


def test_self_injection_reproduces_the_baseline(model, trajectory):
    plain, injected = denoise(model, trajectory, [[], [InjectAttention()]])
    assert torch.allclose(injected, plain, atol=1e-5)
    assert torch.allclose(plain, trajectory.final[0], atol=1e-4)


def test_injection_changes_a_modulated_result_and_its_selections_differ(model, trajectory, site):
    change = modulate(site, 30.0)
    chosen = InjectAttention(sites=(find_site(model, "up8.self2.query"), find_site(model, "up16.cross0.key")))
    late = InjectAttention(timesteps=(1,))
    injections = [(), (InjectAttention(),), (InjectAttention(("self",)),), (InjectAttention(("cross",)),)]
    results = denoise(model, trajectory, [[change, *extra] for extra in [*injections, (chosen,), (late,)]])
    for i in range(len(results)):
        for j in range(i):
            assert difference(results[i], results[j]) > 1e-4, (i, j)


def test_injected_queries_and_keys_are_the_references_and_values_are_not(model, latents, site):
    later = find_site(model, "up16.self2.output")
    pair = [modulate(site, 30.0), InjectAttention()]
    for part in ("query", "key"):
        assert torch.equal(*captured(model, latents, attention_part(model, later, part), pair))
    assert difference(*captured(model, latents, attention_part(model, later, "value"), pair)) > 1e-3


class ExplicitAttention:
    """A slow attention layer that stores its probabilities on one run and uses the stored ones on another."""

    def __init__(self, name, state, offset=None):
        self.name, self.state, self.offset = name, state, offset

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(tensor):
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        key = (self.name, self.state["timestep"])
        if self.state["record"]:
            scores = heads(attn.to_q(hidden_states)) @ heads(attn.to_k(context)).transpose(-1, -2) * attn.scale
            self.state["maps"][key] = scores.softmax(-1)
        weighted = self.state["maps"][key] @ heads(attn.to_v(context))
        output = attn.to_out[0](weighted.transpose(1, 2).flatten(2))
        if self.offset is not None and not self.state["record"] and key[1] == self.state["modulate_at"]:
            output = output + self.offset
        return output


@torch.no_grad()
def explicit_modulated_denoising(model, trajectory, layer, offset):
    """Modulated denoising as the paper words it: stored attention maps, the DDPM step written out."""
    denoiser = copy.deepcopy(model.denoiser)
    state = {"maps": {}, "timestep": None, "record": True, "modulate_at": 301}
    denoiser.set_attn_processor(
        {
            name: ExplicitAttention(name, state, offset if name == f"{layer}.processor" else None)
            for name in denoiser.attn_processors
        }
    )
    text = model.embed("", 64, 64).hidden_states
    alphas = model.scheduler.alphas_cumprod
    for state["record"] in (True, False):
        x = trajectory.latents[0]
        for timestep, residual in zip(trajectory.timesteps, trajectory.residuals, strict=True):
            state["timestep"] = timestep
            noise = denoiser(x, timestep, encoder_hidden_states=text).sample
            now, then = alphas[timestep], alphas[max(timestep - 100, 0)]
            variance = (1 - then) / (1 - now) * (1 - now / then)
            clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
            x = then.sqrt() * clean + (1 - then - variance).sqrt() * noise + residual
    return x


def test_injection_equals_an_independent_implementation_with_stored_maps(model, trajectory, site):
    offset = 10.0 * MASK.flatten()[:, None]
    expected = explicit_modulated_denoising(model, trajectory, site.path, offset)
    ours = denoise(model, trajectory, [[modulate(site), InjectAttention()]])
    assert torch.allclose(ours, expected, atol=1e-4)
    assert difference(ours, trajectory.final) > 1e-2
    assert difference(ours, denoise(model, trajectory, [[modulate(site)]])) > 1e-3


def test_injection_equals_it_in_the_family_with_linear_projections_too():
    model = load_model(tiny.sdxl(), device="cpu")
    site = find_site(model, "up4.cross2.output")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pair = [Modulate(site, torch.ones(4, 4), 30.0), InjectAttention()]
    for part in ("query", "key"):
        later = find_site(model, f"up8.self0.{part}")
        assert torch.equal(*captured(model, latents, later, pair, 281))


@pytest.mark.parametrize("name", ["up8.cross0.query", "up8.resnet1.output", "down8.block0.output"])
def test_scale_replace_and_noise_do_what_they_say(model, trajectory, name):
    site = find_site(model, name)
    latents = trajectory.at(301)
    values = torch.randn(64, site.channels, generator=torch.Generator().manual_seed(0))
    inside = MASK.flatten().bool()

    def cells(tensors):
        return [tensor if tensor.ndim == 2 else tensor.flatten(1).T for tensor in tensors]

    changed, old = cells(captured(model, latents, site, [Scale(site, 0.5, MASK)]))
    assert torch.allclose(changed[inside], old[inside] / 2, atol=1e-6)
    assert torch.equal(changed[~inside], old[~inside])
    changed, old = cells(captured(model, latents, site, [Replace(site, values, MASK)]))
    assert torch.allclose(changed[inside], values[inside], atol=1e-6)
    assert torch.equal(changed[~inside], old[~inside])
    changed, old = cells(captured(model, latents, site, [Noise(site, 2.0, seed=1)]))
    assert 1.8 < float((changed - old).std()) < 2.2


def test_neutral_values_leave_the_result_unchanged(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    own = capture(model, trajectory, [site], [301])[site, 301][0]
    variants = [[Scale(site, 1.0)], [Noise(site, 0.0)], [Replace(site, own, timesteps=(301,))]]
    for result in denoise(model, trajectory, variants):
        assert torch.allclose(result, trajectory.final[0], atol=1e-4)


def test_noise_follows_its_seed(model, trajectory):
    site = find_site(model, "up8.cross0.query")
    one, same, other = denoise(model, trajectory, [[Noise(site, 2.0, seed)] for seed in (1, 1, 2)])
    assert torch.equal(one, same)
    assert difference(one, other) > 1e-3


def test_patching_in_another_images_activation_gives_its_activation(model, trajectory):
    """Activation patching with the whole of a site: everything after it is the other image's."""
    site = find_site(model, "up8.cross0.query")
    other = torch.flip(trajectory.at(301), (2,))
    conditioning, _ = conditionings(model, other, "", 1.0)
    with attached(model, captures=[Capture(site)]) as record:
        predict(model, other, 301, conditioning)
    theirs = record[site, 301][0]
    changed, unchanged = captured(model, trajectory.at(301), site, [Replace(site, theirs)])
    assert torch.equal(changed, theirs)
    assert difference(unchanged, theirs) > 1e-3


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda site, block: Modulate(block, MASK), "no attention layer"),
        (lambda site, block: Modulate(site, MASK, NAN), "finite"),
        (lambda site, block: Modulate(site, MASK, float("inf")), "finite"),
        (lambda site, block: Modulate(site, MASK * NAN), "finite"),
        (lambda site, block: Modulate(site, MASK[0]), "grid_height"),
        (lambda site, block: Modulate(site, MASK, placement="inside"), "'after', 'before'"),
        (lambda site, block: Modulate(site, MASK, modulate_at=()), "timesteps"),
        (lambda site, block: Modulate(site, MASK, modulate_at=(1001,)), "0 to 1000"),
        (lambda site, block: Modulate(site, MASK, modulate_at=(-1,)), "0 to 1000"),
        (lambda site, block: Modulate(site, MASK, modulate_at=(0.5,)), "0 to 1000"),
        (lambda site, block: Modulate(site, MASK, direction=torch.ones(2, 2)), "channel"),
        (lambda site, block: Modulate(site, MASK, direction=torch.tensor([NAN])), "finite"),
        (lambda site, block: InjectAttention(()), "accepted"),
        (lambda site, block: InjectAttention(("linear",)), "'self', 'cross', 'joint'"),
        (lambda site, block: InjectAttention(sites=()), "one or more sites"),
        (lambda site, block: InjectAttention(sites=(block,)), "no attention layer"),
        (lambda site, block: InjectAttention(timesteps=(2000,)), "0 to 1000"),
        (lambda site, block: Scale(site, NAN), "finite"),
        (lambda site, block: Scale(site, 1.0, MASK * NAN), "finite"),
        (lambda site, block: Replace(site, torch.ones(3)), "cell"),
        (lambda site, block: Replace(site, torch.full((64, site.channels), NAN)), "finite"),
        (lambda site, block: Noise(site, -1.0), "0 or more"),
        (lambda site, block: Noise(site, 1.0, timesteps=()), "timesteps"),
    ],
)
def test_ill_formed_interventions_are_refused_when_made(model, site, make, message):
    with pytest.raises(InterventionError, match=message):
        make(site, find_site(model, "up8.block0.output"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda site: Modulate(site, torch.ones(4, 4), modulate_at=(301,)), r"\(4, 4\).*\(8, 8\)"),
        (lambda site: Modulate(site, MASK, modulate_at=(301,), direction=torch.ones(3)), "3 channels.*16"),
        (lambda site: Scale(site, 0.0, torch.ones(4, 4)), r"\(4, 4\).*\(8, 8\)"),
        (lambda site: Replace(site, torch.ones(5, site.channels)), r"\(5, 16\).*\(64, 16\)"),
    ],
)
def test_what_does_not_fit_the_image_is_refused_with_what_would(model, trajectory, site, make, message):
    with pytest.raises(InterventionError, match=message):
        denoise(model, trajectory, [[make(site)]])
    assert not tiny.hooks_of(model.denoiser)


def test_a_mask_over_tokens_is_refused(model, trajectory):
    key = find_site(model, "up8.cross0.key")
    with pytest.raises(InterventionError, match="cells"):
        denoise(model, trajectory, [[Scale(key, 0.0, MASK)]])
    assert difference(*denoise(model, trajectory, [[], [Scale(key, 0.0)]])) > 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda site: Modulate(site, MASK, modulate_at=(281,)),
        lambda site: Modulate(site, MASK, modulate_at=(401, 501)),
        lambda site: Modulate(site, MASK, modulate_at=(301, 281)),
        lambda site: InjectAttention(timesteps=(281,)),
        lambda site: InjectAttention(timesteps=(301, 281)),
        lambda site: Scale(site, 0.0, timesteps=(281,)),
        lambda site: Noise(site, 1.0, timesteps=(281,)),
        lambda site: Replace(site, torch.ones(64, site.channels), timesteps=(281,)),
    ],
)
def test_an_intervention_that_never_takes_effect_is_an_error(model, trajectory, site, make):
    """281 is not on the grid of ten steps; one timestep of two that is never run is as wrong."""
    with pytest.raises(InterventionError, match="never took effect"):
        denoise(model, trajectory, [[], [make(site)]])
    assert not tiny.hooks_of(model.denoiser)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([int, float, lambda value: torch.tensor(value).item()]))
def test_timesteps_are_kept_as_integers_alone_or_in_a_tuple(model, timestep, kind):
    site = find_site(model, "up8.cross2.output")
    assert Modulate(site, MASK, modulate_at=(kind(timestep),)).modulate_at == (timestep,)
    assert Modulate(site, MASK, modulate_at=timestep).modulate_at == (timestep,)


def test_an_injection_into_no_layer_is_refused(model):
    query = find_site(model, "up8.cross0.query")
    with pytest.raises(InterventionError, match="kinds"):
        InjectAttention(("self",), (query,))
    elsewhere = replace(query, layer="elsewhere")
    with pytest.raises(SiteError, match="another model"):
        InjectAttention(sites=(query, elsewhere)).edits(model, [1], [0])
    twice = InjectAttention(sites=(query, find_site(model, "up8.cross0.key"))).edits(model, [1], [0])
    assert [injection.site for injection in twice] == [query]


def test_every_attention_layer_is_injected(model):
    injections = InjectAttention().edits(model, [1], [0])
    layers = [site.attention for site in list_sites(model, part="query")]
    assert [injection.site.attention for injection in injections] == layers
    assert [[site.part for site in injection.sites] for injection in injections] == [["query", "key"]] * len(layers)
    assert all(site.layer == injection.site.layer for injection in injections for site in injection.sites)


BAD = [
    None,
    "a",
    b"281",
    np.array([1.0, np.nan]),
    float("nan"),
    float("inf"),
    True,
    10**400,
    -(10**5000),
    1e300,
    [],
    {},
]
BAD += [(), [[1]], object(), np.array("a"), torch.tensor(1 + 2j), torch.zeros(0), [None], ["a"], {"a": 1}, lambda: 1]


def calls(model):
    """Of every constructor a call that is good, each of whose arguments is to be spoiled."""
    site = find_site(model, "up8.cross2.output")
    mask = torch.ones(8, 8)
    return [
        (Modulate, {"site": site, "mask": mask, "strength": 1.0, "modulate_at": (1,), "placement": "after",
                    "direction": torch.ones(site.channels)}),
        (InjectAttention, {"kinds": ("cross",), "sites": (site,), "timesteps": (1,)}),
        (Scale, {"site": site, "factor": 1.0, "mask": mask, "timesteps": (1,)}),
        (Replace, {"site": site, "values": torch.ones(64, site.channels), "mask": mask, "timesteps": (1,)}),
        (Noise, {"site": site, "strength": 1.0, "seed": 0, "mask": mask, "timesteps": (1,)}),
        (Apply, {"site": site, "fn": abs, "timesteps": (1,)}),
        (Modulation, {"site": site, "strength": 1.0, "modulate_at": 1, "placement": "after", "injection": None,
                      "direction": None, "readout": Readout(), "seed": 0}),
        (Readout, {"denoising_steps": 1, "skip_after": 1, "compare": "pixels", "one_sided": True, "sign_patterns": 1,
                   "shared_levels": 0}),
        (Fixed, {"number": 1}),
        (Eigengap, {"fewest": 2, "most": 3, "alpha": 1.0}),
        (NormalisedCut, {"fewest": 2, "most": 3, "alpha": 1.0, "tau": 0.5}),
        (Silhouette, {"fewest": 2, "most": 3}),
        (ResponseOverlap, {"masks": 2, "distance": "cosine", "threshold": 0.3}),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(13))
def test_a_bad_value_is_a_typed_error_that_names_the_argument(model, number):
    """Or it is accepted, as None and long integers are in places; never another error."""
    make, good = calls(model)[number]
    make(**good)
    messages = []
    for name, value in itertools.product(good, BAD):
        try:
            make(**{**good, name: value})
        except (InputError, InterventionError) as error:
            messages.append(str(error))
    assert all(make.__name__ in message and "accepted" in message and len(message) < 400 for message in messages)
    assert len(messages) > len(good) * len(BAD) / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda site: Scale(site, "a"),
        lambda site: Scale(site, True),
        lambda site: Scale(site, 1e39),
        lambda site: Replace(site, "values"),
        lambda site: Replace("up8.cross2.output", torch.ones(64, 8)),
        lambda site: Noise(site, 1.0, seed=-1),
        lambda site: Modulate(site, torch.ones(8, 8), modulate_at=None),
        lambda site: Modulate(site, torch.ones(8, 8), modulate_at="281"),
        lambda site: InjectAttention(sites=site),
        lambda site: InjectAttention(kinds="self"),
        lambda site: Apply(site, "abs"),
    ],
)
def test_what_raised_a_type_error_is_an_intervention_error(site, make):
    with pytest.raises(InterventionError, match="accepted"):
        make(site)


def test_eigengap_of_a_word_is_an_input_error():
    with pytest.raises(InputError, match="fewest '2'; accepted: an integer, 1 or more"):
        Eigengap(fewest="2")


def test_values_to_put_may_be_an_array(model, trajectory, site):
    values = np.random.default_rng(0).normal(size=(64, site.channels))
    both = [[Replace(site, values)], [Replace(site, torch.from_numpy(values))]]
    one, other = denoise(model, trajectory, both)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["up8.cross2.output", "up8.resnet0.output", "down8.block0.output", "up8.cross0.key"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_function_of_ones_own_does_what_an_intervention_does(model, trajectory, name, guided):
    """Under guidance, too, and where the activation is a convolution's, and beside injection and other edits."""
    site = find_site(model, name)
    trajectory = replace(trajectory, guidance=2.0, prompt="red car") if guided else trajectory
    half = Apply(site, lambda activation, grid: activation * 0.5, (301, 101))
    variants = [
        [half, InjectAttention(("self",))],
        [Scale(site, 0.5, timesteps=(301, 101)), InjectAttention(("self",))],
    ]
    one, other = denoise(model, trajectory, variants)
    assert torch.allclose(one, other, atol=1e-5)
    assert (one - trajectory.final[0]).abs().max() > 1e-4
    twice = denoise(model, trajectory, [[half, half], [Scale(site, 0.25, timesteps=(301, 101))]])
    assert torch.allclose(*twice, atol=1e-5)


def test_a_function_is_given_its_rows_as_cells_and_the_grid(model, trajectory):
    site, given = find_site(model, "up8.resnet0.output"), []

    def fn(activation, grid):
        given.append((tuple(activation.shape), grid))
        activation += 1  # its own copy
        return activation

    shared = Apply(site, fn, (301,))
    one, other, plain = denoise(model, trajectory, [[shared], [shared, Noise(site, 0.1)], []])
    assert given == [((2, 64, site.channels), (8, 8))]
    assert torch.allclose(plain, trajectory.final[0], atol=1e-4)
    assert not torch.equal(one, other)


def test_what_a_function_leaves_as_it_is_changes_no_bit(model, trajectory, site):
    plain = denoise(model, trajectory, [[Scale(site, 1.0)]])
    assert torch.equal(denoise(model, trajectory, [[Apply(site, lambda activation, grid: activation)]]), plain)


@pytest.mark.parametrize(
    "fn",
    [
        lambda activation, grid: activation[:, :1],
        lambda activation, grid: activation.numpy(),
        lambda activation, grid: None,
        lambda activation, grid: activation.long(),
        lambda activation, grid: activation / 0,
        lambda activation, grid: activation.double() * 1e300,
    ],
)
def test_a_function_that_gives_anything_else_is_refused_by_the_name_of_the_site(model, trajectory, site, fn):
    with pytest.raises(InterventionError, match=rf"Apply.* at {site.name}.*gave .*; accepted"):
        denoise(model, trajectory, [[Apply(site, fn)]])
    assert tiny.hooks_of(model.denoiser) == []


def test_a_function_that_is_never_reached_is_an_error(model, trajectory, site):
    with pytest.raises(InterventionError, match=r"Apply\(abs\) never took effect"):
        denoise(model, trajectory, [[Apply(site, abs, (981,))]])


def test_a_function_inside_a_shared_level_is_refused(model, trajectory):
    deep = find_site(model, "mid4.cross0.output")
    keep = Apply(deep, lambda activation, grid: activation)
    with pytest.raises(InterventionError, match="shared levels"):
        denoise(model, trajectory, [[keep]], shared_levels=1)
