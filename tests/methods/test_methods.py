"""All methods by name, and what of them must not change for their results to be used again."""

import json
from dataclasses import replace

import pytest

from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.catalogue import METHODS, TRAININGS, configure, find_method, find_methods, identity, vary
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.naming import Words
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.methods.sharpening import Sharpened
from emerdiff_probe.methods.upsampling import Bilinear
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import DRAFT, FAST
from emerdiff_probe.segmentation.settings import FeatureSettings


def data():
    return open_data("world:2,first=500000", side=64)


def test_names_are_unique_and_those_of_the_methods():
    assert len(METHODS) == 16
    assert all(method.name == name for name, method in METHODS.items())
    assert not set(METHODS) & set(TRAININGS)
    assert [Reference(training, data()).name for training in TRAININGS.values()] == list(TRAININGS)


def test_a_method_is_found_by_name():
    assert find_method("diffseg") is METHODS["diffseg"]
    assert find_method("RGB_k-means") is METHODS["rgb k-means"]
    assert find_method("guided-filter") is METHODS["guided filter"]
    assert find_method("emerdiff-without-injection").config.modulation.injection == ()
    with pytest.raises(InputError, match="near ones: diffseg"):
        find_method("difseg")
    with pytest.raises(InputError, match=r"accepted: emerdiff, .*coordinate k-means, linear probe, unet"):
        find_method("zzz")


def test_what_needs_training_asks_for_data_and_nothing_else_does():
    opened = []
    assert find_methods(["all"], opened.append) == tuple(METHODS.values())
    assert find_methods(["slic", "bilinear + crf"], opened.append) == (METHODS["slic"], METHODS["bilinear + crf"])
    assert not opened
    assert find_methods(["all", "unet"], data)[:-1] == tuple(METHODS.values())
    unet, probe = find_methods(["UNet", "linear-probe"], data)
    assert (unet.training, probe.training) == (TRAININGS["unet"], TRAININGS["linear probe"])
    assert unet.data.names[0] == "scene-500000"
    with pytest.raises(InputError, match="unet: no data to train on"):
        find_method("unet")


def test_settings_reach_emerdiff_and_what_starts_from_its_masks():
    config = EmerDiffConfig().change(feature_sites="up8.cross1.query", feature_timesteps=21, strength=7.0)
    assert configure(METHODS["emerdiff"], config).config == config
    for name in ("nearest", "bilinear", "guided filter"):
        made = configure(METHODS[name], config)
        assert made.features == config.features
        assert replace(made, features=FeatureSettings()) == METHODS[name]
    assert configure(METHODS["diffcut"], config) is METHODS["diffcut"]


def test_what_a_method_was_given_is_never_overridden():
    config = EmerDiffConfig().change(feature_sites="up8.cross1.query", feature_timesteps=21, strength=7.0, **FAST)
    given = EmerDiffConfig().change(strength=3.0, readout=Readout())
    kept = configure(EmerDiff(given), config).config
    assert (kept.modulation.strength, kept.readout) == (3.0, Readout())
    assert kept.features == config.features, "what was left open is filled in"
    some = configure(Bilinear(FeatureSettings(sites="up16.self0.query")), config)
    assert (some.features.sites, some.features.timesteps) == (("up16.self0.query",), (21,))
    kept = configure(METHODS["emerdiff without injection"], config.change(injection=("self",))).config
    assert kept.modulation.injection == ()


def test_a_name_follows_from_resolved_settings():
    fast = EmerDiffConfig().change(**FAST)
    assert configure(METHODS["emerdiff"], fast).name == "emerdiff fast"
    assert configure(METHODS["emerdiff"], fast.change(skip_after=5)).name == "emerdiff approximate"
    assert configure(METHODS["emerdiff"], EmerDiffConfig().change(**DRAFT)).name == "emerdiff draft"
    assert configure(METHODS["emerdiff"], EmerDiffConfig(readout=Readout())).name == "emerdiff"
    assert configure(METHODS["emerdiff"], EmerDiffConfig().change(injection=())).name == "emerdiff without injection"


def test_every_variant_of_the_settings_is_a_method_of_its_own_name():
    methods = (METHODS["emerdiff"], METHODS["emerdiff without injection"], METHODS["bilinear"])
    variants = [{"strength": value, "injection": kinds} for value in (1.0, 10.0) for kinds in ((), ("self",))]
    made = vary(methods, variants)
    assert [method.name for method in made] == [
        "emerdiff without injection, strength 1, injection none",
        "emerdiff, strength 1, injection self",
        "emerdiff without injection, strength 10, injection none",
        "emerdiff, strength 10, injection self",
        "emerdiff without injection, strength 1",
        "emerdiff without injection, strength 10",
        "bilinear",
    ]
    assert made[3].config == EmerDiffConfig().change(strength=10.0, injection=("self",))
    assert vary(methods, [{"strength": 5.0}]) == methods, "one value is the evaluation's own"
    with pytest.raises(InputError, match="several values of steps, which all methods share"):
        vary(methods, [{"steps": 10}, {"steps": 20}])


def test_an_identity_is_plain_and_changes_with_every_parameter():
    methods = [*METHODS.values(), *find_methods(list(TRAININGS), data)]
    made = [json.dumps(identity(method), sort_keys=True) for method in methods]
    assert len(set(made)) == len(methods)
    assert identity(replace(METHODS["bilinear + crf"], sharpen="bilateral")) != identity(METHODS["bilinear + crf"])
    assert identity(Sharpened(METHODS["slic"], "crf")) != identity(METHODS["bilinear + crf"])
    slower = EmerDiff(EmerDiffConfig().change(**{**FAST, "skip_after": 7}))
    assert identity(METHODS["emerdiff fast"]) != identity(slower), "records of another fast mode would be used again"
    unet = find_method("unet", data)
    assert identity(replace(unet, data=unet.data[:1])) != identity(unet)


@pytest.mark.parametrize(
    "plain", ["emerdiff", "emerdiff fast", "nearest", "bilinear", "diffcut", "slic", "felzenszwalb"]
)
@pytest.mark.parametrize("sharpen", ["wls", "bilateral", "crf"])
def test_every_method_can_be_sharpened_by_name(plain, sharpen):
    found = find_method(f"{plain}+{sharpen}")
    assert found == Sharpened(METHODS[plain], sharpen)
    assert found.name == f"{plain} + {sharpen}"
    assert (found.counts, found.probes) == (METHODS[plain].counts, METHODS[plain].probes)
    assert find_method(found.name) == found


def test_names_with_a_plus_are_not_ambiguous():
    """A namer stands first, a sharpening last."""
    words = Words(data())
    named = find_method("cross-attention + bilinear + crf", words=words)
    assert (named.name, named.masks) == ("cross-attention + bilinear + crf", METHODS["bilinear + crf"])
    assert find_method("emerdiff + none").name == "emerdiff + none"
    for name, message in {
        "slic + maskclip": "no sharpening 'maskclip'; accepted: none, wls, bilateral, crf",
        "slic + none": "sharpen 'none'",
        "slick + crf": "near ones: slic",
        "linear probe + crf": "labels by classes",
        "maskclip + crf": "no method",
    }.items():
        with pytest.raises(InputError, match=message):
            find_method(name, data, words)


def test_sharpened_methods_take_the_settings_of_theirs():
    config = EmerDiffConfig().change(feature_sites="up8.cross1.query", feature_timesteps=21)
    assert configure(METHODS["bilinear + crf"], config).method == configure(METHODS["bilinear"], config)
    assert configure(find_method("slic + crf"), config) == find_method("slic + crf")
