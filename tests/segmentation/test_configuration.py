import json
import tomllib

import numpy as np
import pytest
import tomli_w
import torch

from emerdiff_probe.errors import InputError, SiteError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.features import combine
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.presets import DRAFT, FAST, POCKET, find_preset
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.settings import OPTIONS, FeatureSettings, ModulationSettings
from emerdiff_probe.sites import find_site
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.pocket(), device="cpu")


@pytest.fixture(scope="module")
def sd1():
    return load_model(tiny.sd1(), device="cpu")


def test_what_is_left_open_is_filled_in_by_the_model(model, sd1):
    config = EmerDiffConfig(clusters=7)
    pocket, stable = config.resolve(model), config.resolve(sd1)
    assert (pocket.modulation.strength, pocket.inversion.steps) == (POCKET["strength"], POCKET["steps"])
    assert (stable.modulation.strength, stable.inversion.steps) == (10.0, 50)
    assert pocket.clusters == stable.clusters == 7
    assert set(pocket.options()) == set(OPTIONS), "nothing is left open"
    assert pocket.resolve(model) == pocket
    assert segment(model, tiny.picture(), EmerDiffConfig(clusters=2)).config == EmerDiffConfig.for_model(
        model, clusters=2
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_given_is_never_overridden(model, name):
    values = {
        "clusters": 5, "feature_sites": ("up16.self0.query",), "feature_timesteps": (21,), "feature_draws": 3,
        "layer": "up16.self0.output", "modulate_at": 901, "strength": 0.5, "placement": "before", "injection": (),
        "denoising_steps": 2, "skip_after": 9, "compare": "latents", "one_sided": True, "sign_patterns": 4,
        "shared_levels": 1, "steps": 25, "method": "ddim", "prompt": "a car", "smoothing": 0.0,
        "sharpen": "crf", "seed": 9,
    }  # fmt: skip
    for made in (EmerDiffConfig.for_model, EmerDiffConfig.fast, EmerDiffConfig.draft, EmerDiffConfig.paper):
        assert made(model, **{name: values[name]}).options()[name] == values[name]


def test_the_papers_settings_are_those_of_stable_diffusion(sd1):
    paper = EmerDiffConfig.paper(sd1)
    assert paper == EmerDiffConfig.for_model(sd1, sharpen="none")
    assert (paper.features.timesteps, paper.features.draws, paper.modulation.modulate_at) == ((1,), 1, 281)
    assert (paper.features.sites, paper.modulation.layer) == (("up16.cross0.query",), "up16.cross2.output")
    assert (paper.modulation.placement, paper.modulation.injection) == ("after", ("self", "cross"))
    assert (paper.modulation.strength, paper.inversion.steps, paper.inversion.method) == (10.0, 50, "ddpm")
    assert paper.readout == Readout()


@pytest.mark.parametrize(("made", "readout"), [(EmerDiffConfig.fast, FAST), (EmerDiffConfig.draft, DRAFT)])
def test_approximate_modes_change_the_readout_alone(model, made, readout):
    approximate, exact = made(model), EmerDiffConfig.for_model(model)
    assert approximate.change(readout=Readout()) == exact
    assert approximate.readout == Readout(**readout)
    assert made(model, readout=Readout()) == exact
    assert made(model, one_sided=False, seed=3) == approximate.change(one_sided=False, seed=3)


def test_an_open_timestep_is_the_nearest_on_the_grid_and_a_given_one_stays(model):
    made = EmerDiffConfig.for_model(model, steps=4)  # 751, 501, 251, 1
    assert (made.modulation.modulate_at, made.features.timesteps) == (501, (1, 251, 501, 751))
    assert EmerDiffConfig.for_model(model, steps=2).features.timesteps == (1, 501), "each once"
    made = EmerDiffConfig.for_model(model, steps=4, modulate_at=600)
    assert made.modulation.modulate_at == 600, "the model refuses it by name when it is run"


def test_ddim_draws_no_noise(model):
    assert EmerDiffConfig.for_model(model, method="ddim").features.draws == 1
    with pytest.raises(InputError, match="DDIM inversion draws none"):
        EmerDiffConfig.for_model(model, method="ddim", feature_draws=2)


def test_changes_by_option_name_and_by_part_are_the_same():
    flat = EmerDiffConfig().change(strength=5, modulate_at=281, feature_sites="up16.cross0.query", seed=3)
    parts = EmerDiffConfig(
        features=FeatureSettings(sites=("up16.cross0.query",)),
        modulation=ModulationSettings(strength=5, modulate_at=281),
        seed=3,
    )
    assert flat == parts
    assert flat.change(strength=None, modulate_at=None, feature_sites=None, seed=None) == EmerDiffConfig()
    assert parts.change(modulation=ModulationSettings(), strength=7) == parts.change(strength=7, modulate_at=None)
    assert EmerDiffConfig().change(feature_timesteps=np.array([1, 21])).features.timesteps == (1, 21)
    with pytest.raises(InputError, match="no such setting: strengths; near ones: strength"):
        EmerDiffConfig().change(strengths=5)


@pytest.mark.parametrize("made", ["open", "resolved", "fast"])
def test_settings_survive_json_and_toml(model, made):
    config = {
        "open": EmerDiffConfig().change(strength=2.5, feature_sites=("up16.*", "up8.self0.query"), injection=()),
        "resolved": EmerDiffConfig.for_model(model, clusters="auto"),
        "fast": EmerDiffConfig.fast(model, prompt='a "red" car', denoising_steps=3),
    }[made]
    assert EmerDiffConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert EmerDiffConfig.from_dict(tomllib.loads(tomli_w.dumps(config.to_dict()))) == config
    flat = {name: value for name, value in config.options().items() if value is not None}
    assert EmerDiffConfig.from_dict(flat) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "up8.cross0.output", "feature_site": "up8.cross0.query"}, "no such setting: feature_site"),
        ({"modulation": {"strength": 1, "lambda": 2}}, "no such setting: modulation.lambda"),
        ({"modulation": {"seed": 1}}, "no such setting: modulation.seed"),
        ({"inversion": "ddpm"}, "inversion 'ddpm'; accepted: "),
        ({"modulation": {"strength": -1}}, "strength -1; accepted: a finite number above 0"),
    ],
)
def test_settings_of_a_file_that_do_not_exist_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        EmerDiffConfig.from_dict(settings)


def test_one_seed_is_every_seed(model):
    config = EmerDiffConfig.for_model(model, seed=5)
    assert resolve_modulation(model, config).seed == config.probe(model, tiny.picture()).seed == 5


def test_patterns_take_every_site_with_a_grid(model):
    sites = find_feature_sites(model, EmerDiffConfig().change(feature_sites="up8.cross*"))
    assert {site.part for site in sites} == {"query", "heads", "output"}, "keys and values of text have no grid"
    assert {(site.stage, site.resolution, site.kind) for site in sites} == {("up", 8, "cross")}
    both = find_feature_sites(model, EmerDiffConfig().change(feature_sites=("up8.cross1.query", "up8.cross*.query")))
    assert [site.nth for site in both] == [1, 0, 2], "each once, in the order named"
    with pytest.raises(SiteError, match="near ones"):
        find_feature_sites(model, EmerDiffConfig().change(feature_sites="up9.*"))
    with pytest.raises(InputError, match="text tokens"):
        find_feature_sites(model, EmerDiffConfig().change(feature_sites="up8.cross0.key"))


def test_one_site_at_one_timestep_is_taken_as_it_is(model):
    probed = EmerDiffConfig.for_model(model).probe(model, tiny.picture())
    site = find_site(model, "up8.cross0.query")
    assert torch.equal(probed.features([site], [301]), probed.features(site, 301))
    assert np.array_equal(probed.low_resolution_masks((site,), 3, (301,)), probed.low_resolution_masks(site, 3, 301))


def test_several_count_by_their_channels_alone(model):
    probed = EmerDiffConfig.for_model(model).probe(model, tiny.picture())
    sites = [find_site(model, name) for name in ("up8.cross0.query", "up8.self0.output")]
    both = probed.features(sites, (1, 301))
    widths = [site.channels for site in sites for _ in range(2)]
    assert both.shape == (64, sum(widths))
    for part in both.split(widths, dim=1):
        assert torch.allclose(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5)
        assert part.square().mean().item() == pytest.approx(1, abs=1e-5)
    alone = probed.features(sites[0], 1)
    scaled = combine((alone, (8, 8)), (1000 * alone + 7, (8, 8)))
    assert torch.allclose(scaled[:, : alone.shape[1]], scaled[:, alone.shape[1] :], atol=1e-4)


def test_features_of_two_grids_meet_on_the_finer_one():
    coarse, fine = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    both = combine((coarse, (1, 2)), (fine, (1, 4)))
    assert both[:, 0].tolist() == pytest.approx([-1, -0.5, 0.5, 1])  # bilinear between cell centres
    assert both[:, 1].tolist() == pytest.approx([-1, 1, -1, 1])
    assert combine((torch.ones(4, 2), (2, 2)), (torch.ones(4, 1), (2, 2))).tolist() == [[0, 0, 0]] * 4


def test_a_segmentation_of_several_sites_and_timesteps_runs_and_differs(model):
    config = EmerDiffConfig.fast(model, clusters=4, feature_draws=1)
    one = config.change(feature_sites="up8.self1.query", feature_timesteps=301)
    result = segment(model, tiny.picture(), config)
    assert result.labels.shape == (64, 64)
    assert result.mask_embeddings.shape[1] > segment(model, tiny.picture(), one).mask_embeddings.shape[1]


def test_every_preset_is_complete(model, sd1):
    for each in (model, sd1):
        assert {*find_preset(each).options, *FAST, "denoising_steps"} == set(OPTIONS)
