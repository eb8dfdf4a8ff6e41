"""Sites: their order, names, grids and channels agree with what the denoiser really does."""

from collections import Counter

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import InputError, SiteError
from emerdiff_probe.hooks.attach import Capture, Edit, attached
from emerdiff_probe.models.addresses import KINDS, PARTS, STAGES
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import conditionings, predict

FAMILIES = {"pocket": tiny.pocket, "sd2": tiny.sd2, "sdxl": tiny.sdxl}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return load_model(FAMILIES[request.param](), device="cpu")


@pytest.fixture(scope="module")
def stable_diffusion():
    return load_model(tiny.sd1(), device="cpu")


def run(model, height, width, **hooks):
    latents = torch.zeros(1, 4, height, width)
    conditioning, _ = conditionings(model, latents, "", 1.0)
    with attached(model, **hooks) as record:
        predict(model, latents, 1, conditioning)
    return record


def test_sites_are_listed_in_the_order_in_which_they_run(family):
    fired = []

    def watch(site):
        def replace(activation, rows, grid):
            fired.append(site)
            return activation[rows]

        return Edit(site, None, None, replace, "Watch")

    sites = list_sites(family)
    run(family, 16, 16, edits=[watch(site) for site in sites])
    assert fired == list(sites)
    assert [site.index for site in sites] == list(range(len(sites)))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (10, 13)])
def test_channels_and_grid_agree_with_the_tensor(family, height, width):
    sites = list_sites(family)
    record = run(family, height, width, captures=[Capture(site) for site in sites])
    for site in sites:
        tensor = record[site, 1]
        rows, columns = site.grid(height, width)
        if tensor.ndim == 4:
            assert tensor.shape == (1, site.channels, rows, columns), site
        elif site.kind == "cross" and site.part in {"key", "value"}:
            assert tensor.shape == (1, 16, site.channels), site  # tokens in the place of cells
        else:
            assert tensor.shape == (1, rows * columns, site.channels), site


def test_resolution_is_the_side_of_the_grid_at_the_native_size(family):
    size = family.denoiser.config.sample_size
    assert all(site.grid(size, size) == (site.resolution, site.resolution) for site in list_sites(family))


def test_names_are_unique_and_find_their_site(family):
    sites = list_sites(family)
    assert max(Counter(site.name for site in sites).values()) == 1
    for site in sites:
        assert find_site(family, site.name) == site
        family.denoiser.get_submodule(site.path)
    assert len({(site.path, site.tap) for site in sites}) == len(sites)


def test_every_attention_layer_and_resnet_has_its_sites(family):
    """A release that renames layers must not make them vanish silently."""
    by_class = Counter(type(module).__name__ for module in family.denoiser.modules())
    sites = list_sites(family)
    assert len({site.path for site in sites if site.kind == "resnet"}) == by_class["ResnetBlock2D"]
    assert len({site.attention for site in sites if site.kind in {"self", "cross"}}) == by_class["Attention"]
    assert len([site for site in sites if site.kind == "feedforward"]) == by_class["FeedForward"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "stage": st.sampled_from(STAGES),
            "resolution": st.sampled_from([4, 8, 16, 64]),
            "kind": st.sampled_from(KINDS),
            "part": st.sampled_from(PARTS),
            "nth": st.integers(0, 3),
        },
    )
)
def test_a_filtered_list_holds_exactly_what_matches(model, wanted):
    sites = list_sites(model, **wanted)
    assert list(sites) == [
        site for site in list_sites(model) if all(getattr(site, key) == value for key, value in wanted.items())
    ]
    if len(sites) == 1:
        assert find_site(model, **wanted) == sites[0]
    else:
        with pytest.raises(SiteError):
            find_site(model, **wanted)


def test_a_module_path_finds_its_site(model):
    query = find_site(model, "up8.cross0.query")
    assert find_site(model, query.path) == query
    assert query.attention == query.path.removesuffix(".to_q")


def test_an_unmatched_site_lists_near_names_that_exist(model):
    with pytest.raises(SiteError, match=r"no site .*up9\.cross0\.query.*near ones: .*up8\.cross0\.query"):
        find_site(model, "up9.cross0.query")
    with pytest.raises(SiteError, match="near ones: ") as caught:
        find_site(model, stage="up", resolution=7, kind="cross", part="query", nth=0)
    near = str(caught.value).split("near ones: ")[1].split(", ")
    assert all(find_site(model, name).kind == "cross" for name in near)


def test_a_name_unlike_any_still_lists_sites(model):
    with pytest.raises(SiteError, match=r"near ones: down16"):
        find_site(model, "§§§")


def test_an_ambiguous_site_lists_candidates(model):
    with pytest.raises(SiteError, match=r"3 sites match .*up8\.cross0\.query, up8\.cross1\.query"):
        find_site(model, stage="up", resolution=8, kind="cross", part="query")
    with pytest.raises(SiteError, match="sites match everything"):
        find_site(model)


@pytest.mark.parametrize("given", [{"stage": "upward"}, {"kind": "attention"}, {"part": "q"}])
def test_a_property_that_does_not_exist_names_the_accepted_ones(model, given):
    with pytest.raises(InputError, match="accepted"):
        list_sites(model, **given)


def test_a_site_that_is_no_attention_layer_says_so(model):
    with pytest.raises(SiteError, match="no part of an attention layer"):
        _ = find_site(model, "up8.resnet0.output").attention


def test_the_table_shows_every_site_as_text_and_in_a_notebook(model):
    sites = list_sites(model)
    assert len(str(sites).splitlines()) == len(sites) + 1
    assert sites._repr_html_().count("<tr>") == len(sites) + 1
    assert all(site.path in str(sites) and site.name in sites._repr_html_() for site in sites)


def test_the_papers_sites_resolve_in_stable_diffusion(stable_diffusion):
    for nth in range(3):
        layer = f"up_blocks.1.attentions.{nth}.transformer_blocks.0.attn2"
        for part in ("query", "key", "value", "heads", "output"):
            site = find_site(stable_diffusion, stage="up", resolution=16, kind="cross", part=part, nth=nth)
            assert site.attention == layer
            assert find_site(stable_diffusion, f"up16.cross{nth}.{part}") == site
            assert site.grid(64, 64) == (16, 16)
    assert len(list_sites(stable_diffusion, stage="up", resolution=16, kind="cross", part="query")) == 3


def test_stable_diffusion_has_the_attention_layers_that_the_paper_counts(stable_diffusion):
    assert stable_diffusion.family == "sd1"
    queries = [site for site in list_sites(stable_diffusion, part="query") if site.kind == "cross"]
    assert Counter((site.stage, site.resolution) for site in queries) == {
        ("down", 64): 2,
        ("down", 32): 2,
        ("down", 16): 2,
        ("mid", 8): 1,
        ("up", 16): 3,
        ("up", 32): 3,
        ("up", 64): 3,
    }
