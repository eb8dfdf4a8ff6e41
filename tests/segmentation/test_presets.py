"""A preset for every model, by what its layers are and not by their number."""

import warnings

import pytest
import tiny
from diffusers import UNet2DConditionModel

from benchmarks.families import SMALL
from emerdiff_probe.errors import ProbeWarning, SiteError
from emerdiff_probe.models.addresses import ATTENTION
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config, find_feature_sites
from emerdiff_probe.segmentation.presets import FAST, POCKET, find_preset
from emerdiff_probe.segmentation.settings import OPTIONS, FeatureSettings
from emerdiff_probe.sites import find_site, list_sites


def variant(pipeline, **changes):
    """A pipeline whose U-Net differs in its configuration."""
    settings = {**pipeline.unet.config, **changes}
    pipeline.unet = UNet2DConditionModel(**{name: v for name, v in settings.items() if not name.startswith("_")})
    return load_model(pipeline, device="cpu")


def paths(model):
    config = EmerDiffConfig.for_model(model)
    (site,) = config.features.sites
    return find_site(model, site).path, find_site(model, config.modulation.layer).path


def test_stable_diffusion_has_the_papers_layers_and_nothing_to_say():
    model = load_model(tiny.sd1(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paths(model)
    block = "up_blocks.1.attentions"
    assert found == (f"{block}.0.transformer_blocks.0.attn2.to_q", f"{block}.2.transformer_blocks.0.attn2")


def test_a_copy_of_stable_diffusion_for_256_pixels_is_probed_in_the_same_block_as_strongly():
    model = load_model(tiny.sd1(), device="cpu")
    small = variant(tiny.sd1(), sample_size=32)
    small.told_family = "sd1"
    assert paths(small) == paths(model)
    assert EmerDiffConfig.for_model(small).modulation.strength == 10.0


def test_xl_is_pushed_in_the_last_transformer_block_of_its_stage():
    model = load_model(tiny.sdxl(), device="cpu")
    cross = list_sites(model, stage="up", resolution=4, kind="cross", part="output")
    first, last = paths(model)
    assert len(cross) == 6  # three transformers of two blocks
    assert first == "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    assert last == cross[-1].path == "up_blocks.0.attentions.2.transformer_blocks.1.attn2"


def test_a_distilled_model_with_two_layers_a_stage_is_pushed_in_the_last_one_and_it_is_said():
    model = variant(tiny.sd1(), layers_per_block=1)
    with pytest.warns(ProbeWarning, match=r"2 cross-attention layers at 16 x 16.*up16\.cross1\.output, is pushed"):
        config = EmerDiffConfig.for_model(model)
    assert config.modulation.layer == "up16.cross1.output"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was given needs no preset
        EmerDiffConfig.for_model(model, layer="up16.cross0.output", feature_sites="up16.cross0.query")
    check_config(model, config, model.native_size, model.native_size)


def test_a_pocket_model_without_its_layers_gets_the_papers():
    pipeline = tiny.pocket()
    model = variant(pipeline, layers_per_block=1, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
    assert find_preset(model).options["layer"] == "up8.cross1.output"
    bare = variant(tiny.pocket(), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"))
    with pytest.warns(ProbeWarning, match=r"no up8\.cross1\.output as the pocket model has"):
        made = EmerDiffConfig.for_model(bare)
    assert made.modulation.layer == "up4.cross2.output"
    assert {site.resolution for site in find_feature_sites(bare, made)} == {4}


def test_a_u_net_without_a_preset_clusters_a_whole_stage_and_the_papers_settings_one_query():
    stage = [f"up8.{kind}*.{part}" for kind in ("self", "cross") for part in ("query", "key", "value", "output")]
    stage = [pattern for pattern in stage if pattern not in {"up8.cross*.key", "up8.cross*.value"}]
    pocket = load_model(tiny.pocket(), device="cpu")
    made = EmerDiffConfig.for_model(pocket)
    assert sorted(made.features.sites) == sorted(stage)
    assert (made.features.timesteps, made.features.draws) == (POCKET["feature_timesteps"], POCKET["feature_draws"])
    assert all(site.holds_cells and site.kind in ATTENTION for site in find_feature_sites(pocket, made))
    assert EmerDiffConfig.paper(pocket).features == FeatureSettings("up8.cross0.query", 1, 1)


@pytest.mark.parametrize("name", SMALL)
def test_every_family_has_a_preset_that_it_can_run(name):
    model = load_model(SMALL[name](), device="cpu")
    preset = find_preset(model)
    assert {*preset.options, *FAST, "denoising_steps"} == set(OPTIONS)
    assert model.family in {"sdxl", "sd1", "sd2", "pocket"} or "no paper gives settings" in preset.notes[0]
    with pytest.warns(ProbeWarning):
        exact = EmerDiffConfig.for_model(model, clusters=2)
    with pytest.warns(ProbeWarning):
        fast = EmerDiffConfig.fast(model, clusters=2)
    for config in (exact, fast):
        sites, modulation = check_config(model, config, model.native_size, model.native_size)
        assert all(site.holds_cells for site in sites)
        kinds = set() if modulation.injection is None else set(modulation.injection.kinds)
        assert kinds <= {site.kind for site in list_sites(model)}


def test_a_missing_site_names_the_option_that_mends_it():
    model = load_model(tiny.pocket(), device="cpu")
    for option, name in (("--layer", "layer"), ("--feature-layer", "feature_sites")):
        with pytest.raises(SiteError, match=rf"near ones: .*, {option} names another"):
            check_config(model, EmerDiffConfig.for_model(model, **{name: "up99.cross0.output"}), 64, 64)
