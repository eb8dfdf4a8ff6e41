"""Explorers show what the library answers, for the newest request, and say when something failed."""

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from plotly.serializers import Undefined
from traitlets import TraitError

import emerdiff_probe
from emerdiff_probe import explore_layers, explore_modulation, explore_segmentation, explore_study
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError, ModelError, TimestepError
from emerdiff_probe.images import load_labels, palette
from emerdiff_probe.interventions import InjectAttention
from emerdiff_probe.models.pixels import to_pixels
from emerdiff_probe.reading.atlas import response_atlas
from emerdiff_probe.reading.correspondence import difference_map, modulated_images
from emerdiff_probe.reading.features import pca_view
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.presets import FAST
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.sites import find_site
from emerdiff_probe.studies.run import load_result, run_study, stored_study
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study
from emerdiff_probe.viz.figures import study_figure
from emerdiff_probe.viz.naming import Naming
from emerdiff_probe.viz.widgets import explorer as explorer_module
from emerdiff_probe.viz.widgets import layers as layers_module
from emerdiff_probe.viz.widgets.explorer import data_uri
from emerdiff_probe.viz.widgets.figure import PANEL, Page, arrange, columns_that_fit, panels
from emerdiff_probe.viz.widgets.modulation import PUSHED, require_finite
from emerdiff_probe.viz.widgets.worker import MODELS_IN_USE, Worker, _Cell

SOON = 60
"""Seconds within which work has to end; a test that waits as long has failed."""
COARSE = {"clusters": 3, "steps": 10, "modulate_at": 101, "smoothing": 1.0}


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, **COARSE)


@pytest.fixture(scope="module")
def probed(model, config):
    return config.probe(model, tiny.picture(), start=901)


@pytest.fixture(scope="module")
def atlas(model, probed, config):
    return response_atlas(model, probed.trajectory, resolve_modulation(model, config))


@pytest.fixture(scope="module")
def stores(model, config, tmp_path_factory):
    """A stored study of two axes, and the study."""
    study = Study(
        name="made",
        question="How much?",
        axes={"speed": Axis((1, 2, 3), "m/s", "speed"), "way": Axis(("a", "b"), "", "way")},
        measures={"value": Measure("a value", "m"), "hits": Measure("hits", "%", "confusion")},
        config=config,
        measure=lambda subject, unit: {
            (way,): {"value": unit["speed"] * (1 + int(subject.sample.name[-1])), "hits": np.eye(46, dtype=int)}
            for way in ("a", "b")
        },
        together=("way",),
        start=101,
        directions=(Direction("faster is more", "value", {"speed": 3}, {"speed": 1}),),
    )
    store = tmp_path_factory.mktemp("studies") / "made"
    run_study(model, study, World(range(2), side=64), store=store)
    return store, study


def answered(explorer):
    assert explorer.wait(SOON)
    assert explorer.error is None
    return explorer


def hover(explorer, trace, x, y):
    """What plotly's page sends when the pointer moves."""
    explorer.figure._js2py_pointsCallback = {
        "event_type": "plotly_hover",
        "points": {"trace_indexes": [trace], "point_indexes": [0], "xs": [x], "ys": [y]},
        "device_state": dict.fromkeys(("alt", "ctrl", "meta", "shift"), False) | {"button": 0, "buttons": 0},
    }


def page_of(explorer):
    (page,) = (child for child in explorer.children if isinstance(child, Page))
    return page


def click(explorer, panel, x, y, shift=False):
    """What the explorer's page sends for a click."""
    page_of(explorer)._handle_custom_msg({"click": {"panel": panel, "x": x, "y": y, "shift": shift}}, [])


def draw(explorer, panel, x, y, shift=False):
    """What the explorer's page sends for an outline."""
    page_of(explorer)._handle_custom_msg({"outline": {"panel": panel, "x": x, "y": y, "shift": shift}}, [])


def pushed(explorer):
    """Numbers of the cells that are orange."""
    return np.flatnonzero(np.array(explorer.figure.data[-1].marker.color) == PUSHED).tolist()


class Reports(list):
    """Progress of a worker, and the worker."""

    def __init__(self):
        self.worker = Worker(self.append)


def test_only_the_newest_of_the_waiting_requests_runs():
    reports = Reports()
    began, go_on, ran, shown = threading.Event(), threading.Event(), [], []

    def slow():
        began.set()
        assert go_on.wait(SOON)
        return ran.append(0)

    reports.worker.ask(slow, lambda _: shown.append(0))
    assert began.wait(SOON)
    for number in range(1, 50):
        reports.worker.ask(lambda number=number: ran.append(number), lambda _, number=number: shown.append(number))
    assert not reports.worker.wait(0.01)
    go_on.set()
    assert reports.worker.wait(SOON)
    assert ran == shown == [0, 49]
    assert [report.busy for report in reports] == [True, False]


def test_work_runs_elsewhere_and_is_shown_on_the_loop():
    where = {}

    async def main():
        reports = Reports()
        done = asyncio.Event()
        reports.worker.ask(threading.get_ident, lambda thread: (where.update(worked=thread), done.set()))
        where["shown"] = threading.get_ident()
        await asyncio.wait_for(done.wait(), SOON)
        await asyncio.sleep(0)
        assert [report.busy for report in reports] == [True, False]

    asyncio.run(main())
    assert where["worked"] != where["shown"]


@pytest.mark.parametrize("broken", ["work", "show"])
def test_an_error_is_reported_with_its_traceback_and_the_worker_goes_on(broken):
    def fail(*_):
        raise ValueError("on purpose")

    reports, shown = Reports(), []
    reports.worker.ask(*((fail, shown.append) if broken == "work" else (int, fail)))
    assert reports.worker.wait(SOON)
    assert str(reports[-1].error) == "on purpose"
    assert reports[-1].error.__traceback__ is not None
    reports.worker.ask(lambda: 7, shown.append)
    assert reports.worker.wait(SOON)
    assert shown == [7]
    assert reports[-1].error is None


def test_the_error_of_an_overtaken_request_is_dropped():
    reports, began, go_on = Reports(), threading.Event(), threading.Event()

    def fail():
        began.set()
        assert go_on.wait(SOON)
        raise ValueError("stale")

    reports.worker.ask(fail, lambda _: None)
    assert began.wait(SOON)
    reports.worker.ask(int, lambda _: None)
    go_on.set()
    assert reports.worker.wait(SOON)
    assert [report.error for report in reports] == [None, None]


def test_the_layers_explorer_shows_the_features_of_the_chosen_site_timestep_and_cell(model, config, probed):
    explorer = answered(explore_layers(model, tiny.picture(), config=config))
    explorer.site.value, explorer.timestep.value, explorer.clusters.value = "up16.self0.key", 201, 5
    explorer.row.value, explorer.column.value = 3, 14
    answered(explorer)
    site = find_site(model, "up16.self0.key")
    features = probed.features(site, 201)
    image, components, clusters, similarity, *pointers = explorer.figure.data
    assert image.source == data_uri(tiny.picture())
    assert components.source == data_uri(np.kron(pca_view(features, (16, 16)), np.ones((4, 4, 1), np.uint8)))
    assert np.array_equal(clusters.z, probed.low_resolution_masks(site, 5, 201))
    cell = 3 * 16 + 14
    expected = torch.nn.functional.cosine_similarity(features, features[cell : cell + 1]).reshape(16, 16)
    assert np.allclose(similarity.z, expected, atol=1e-6)
    assert similarity.z[3, 14] == pytest.approx(1)
    assert {(trace.x[0], trace.y[0]) for trace in pointers} == {(14 * 4 + 1.5, 3 * 4 + 1.5)}


def test_pointing_at_a_pixel_chooses_its_cell_on_the_grid_of_the_site(model, config):
    explorer = answered(explore_layers(model, tiny.picture(), config=config))
    hover(explorer, 0, 20, 50)
    assert (explorer.row.value, explorer.column.value) == (6, 2)
    explorer.site.value = "up16.self0.key"
    assert (explorer.row.max, explorer.column.max) == (15, 15)
    hover(explorer, 3, 63, 0)
    assert (explorer.row.value, explorer.column.value) == (0, 15)
    explorer.site.value = "mid4.self0.key"
    answered(explorer)
    assert (explorer.row.value, explorer.column.value) == (0, 3)
    assert explorer.figure.data[2].z.shape == (4, 4)
    assert explorer.clusters.max == 16


def test_sites_that_hold_tokens_are_not_offered(model, config):
    offered = explore_layers(model, tiny.picture(), config=config).site.options
    assert "up8.cross0.query" in offered
    assert "up8.self0.key" in offered
    assert "up8.cross0.key" not in offered


def test_cells_inside_what_was_drawn_are_pushed_and_with_shift_added(model, config):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config))
    first = [row * 8 + column for row in (0, 1, 2, 3) for column in (3, 4, 5, 6)]
    draw(explorer, 1, [20, 58, 58, 20], [3, 3, 32, 32])
    assert list(explorer.cells) == pushed(explorer) == first
    draw(explorer, 1, [0, 7, 7, 0], [56, 56, 63, 63], shift=True)
    assert list(answered(explorer).cells) == pushed(explorer) == [*first, 56]
    assert explorer.figure.layout.annotations[0].text == "cells to push: 17"
    for panel, side in ((1, 0.5), (2, 60)):  # no cell's centre in it, and another panel
        draw(explorer, panel, [1, 1 + side, 1 + side, 1], [1, 1, 1 + side, 1 + side])
        assert list(explorer.cells) == [*first, 56]


def test_plotlys_own_outline_is_taken_off_the_page(model, config, monkeypatch):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config))
    sent = []
    monkeypatch.setattr(explorer.figure, "_send_relayout_msg", lambda layout, *_, **__: sent.append(layout))
    for told, cleared in (({"dragmode": "zoom"}, False), ({"selections": [{"path": "M20,4L60,4L60,32Z"}]}, True)):
        explorer.figure._js2py_relayout = {"relayout_data": told, "source_view_id": "page"}
        assert ({"selections": []} in sent) == cleared


def test_the_modulation_explorer_shows_what_the_model_paints(model, config, probed):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config))
    assert explorer.strength.value == config.modulation.strength
    explorer.strength.value, explorer.timestep.value, explorer.placement.value = 100.0, 201, "before"
    explorer.injection.value, explorer.site.value = "self", "up16.cross1.output"
    explorer.row.value, explorer.column.value, explorer.size.value = 2, 5, 3
    answered(explorer)
    mask = torch.zeros(1, 16, 16)
    mask[0, 2:5, 5:8] = 1
    assert explorer.cells == tuple(np.flatnonzero(mask).tolist())
    settings = config.change(strength=100.0, modulate_at=201, placement="before", injection=("self",))
    modulation = resolve_modulation(model, settings.change(layer="up16.cross1.output"))
    minus, plus = modulated_images(model, probed.trajectory, mask, modulation)
    shown = explorer.figure.data[3]
    assert np.allclose(shown.z, difference_map(minus, plus)[0], atol=1e-5)
    assert shown.zmax == pytest.approx(float(shown.z.max()))
    pixels = ((plus[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert explorer.figure.data[2].source == data_uri(pixels)
    explorer.injection.value = "none"
    answered(explorer)
    minus, plus = modulated_images(model, probed.trajectory, mask, replace(modulation, injection=None))
    assert np.allclose(explorer.figure.data[3].z, difference_map(minus, plus)[0], atol=1e-5)
    assert isinstance(modulation.injection, InjectAttention)


def test_a_push_that_an_atlas_holds_is_shown_before_it_is_run(model, config, probed, atlas, monkeypatch):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config, atlas=atlas))
    asked = []
    monkeypatch.setattr(explorer, "_ask", lambda work, show: asked.append((work, show)))
    mask = torch.zeros(1, *atlas.grid)
    mask[0, 2:4, 3:5] = 1
    cells = tuple(np.flatnonzero(mask).tolist())
    explorer.choose(cells)
    *_, difference, _ = explorer.figure.data
    assert np.allclose(difference.z, atlas.difference_maps(mask)[0], atol=1e-5)
    assert "atlas" in explorer.figure.layout.annotations[3].text
    response = atlas.respond(mask)[0]
    for trace, sign in ((1, -1), (2, 1)):
        shown = to_pixels(probed.reconstruction + sign * response)
        assert explorer.figure.data[trace].source == data_uri(shown)
    [(work, show)] = asked
    show(work())
    assert explorer.figure.layout.annotations[3].text == f"difference at timestep {config.modulation.modulate_at}"
    minus, plus = modulated_images(model, probed.trajectory, mask, resolve_modulation(model, config))
    assert np.allclose(difference.z, difference_map(minus, plus)[0], atol=1e-5)


def test_an_atlas_answers_to_its_own_push_only_and_no_older_answer_replaces_it(model, config, atlas, monkeypatch):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config, atlas=atlas))
    asked = []
    monkeypatch.setattr(explorer, "_ask", lambda work, show: asked.append((work, show)))
    other = next(value for _, value in explorer.strength.options if value != explorer.strength.value)
    for control, value in ((explorer.strength, other), (explorer.placement, "before"), (explorer.injection, "none")):
        before, own = explorer.figure.data[3].z.copy(), control.value
        control.value = value
        assert np.array_equal(explorer.figure.data[3].z, before)
        control.value = own
        assert "atlas" in explorer.figure.layout.annotations[3].text
    explorer.choose((1,))
    explorer.choose((2,))
    shown = explorer.figure.data[3].z.copy()
    work, show = asked[-2]  # of cell 1, that was running when cell 2 was asked for
    show(work())
    assert np.array_equal(explorer.figure.data[3].z, shown)
    with pytest.raises(InputError, match="size"):
        explore_modulation(model, tiny.picture(64, 96), config=config, atlas=atlas)


def test_cells_are_chosen_by_click_and_sliders(model, config):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config))
    cells = len(explorer.figure.data) - 1
    assert explorer.cells == (36,)
    click(explorer, 1, 11.5, 11.5)
    assert explorer.cells == (9,)
    click(explorer, 1, 18, 9, shift=True)
    assert explorer.cells == (9, 10)
    click(explorer, 1, 11.5, 11.5, shift=True)
    assert explorer.cells == (10,)
    assert pushed(explorer) == [10]
    click(explorer, 4, 3.5, 3.5)
    assert explorer.cells == (10,)
    explorer.size.value = 2
    assert explorer.cells == (36, 37, 44, 45)
    explorer.site.value = "up16.cross0.output"
    assert len(explorer.figure.data[cells].x) == 256
    assert (explorer.row.value, explorer.column.value, explorer.size.value) == (8, 8, 4)
    answered(explorer)
    assert explorer.figure.layout.annotations[0].text == "cells to push: 16"


def test_what_cannot_be_pushed_is_told_and_the_next_answer_is_shown(model, config):
    explorer = answered(explore_modulation(model, tiny.picture(), config=config))
    click(explorer, 1, 35.5, 35.5, shift=True)
    assert explorer.cells == ()
    assert explorer.wait(SOON)
    explorer.strength.value = 20.0
    assert explorer.wait(SOON)
    assert "ready" in explorer.status.value
    explorer._ask(lambda: find_site(model, "up8.crossed0"), print)
    assert explorer.wait(SOON)
    assert "SiteError" in explorer.status.value
    assert "up8.cross0" in explorer.status.value
    explorer.strength.value = 10.0
    assert "ready" in answered(explorer).status.value


def test_bad_settings_are_refused_before_the_model_runs(model, config):
    with pytest.raises(TimestepError):
        explore_layers(model, tiny.picture(), config=config.change(feature_timesteps=2))
    with pytest.raises(InputError):
        explore_modulation(model, np.zeros((2, 2)))


def test_the_segmentation_explorer_shows_what_the_atlas_gives_for_every_k_and_smoothing(model, probed, atlas, config):
    explorer = answered(explore_segmentation(model, tiny.picture(), atlas=atlas, config=config))
    assert f"strength {config.modulation.strength:g}" in " ".join(
        getattr(child, "value", "") for child in explorer.children
    )
    for clusters, smoothing in ((3, 1.0), (6, 0.0), (6, 3.0)):
        explorer.clusters.value, explorer.smoothing.value = clusters, smoothing
        answered(explorer)
        site = find_feature_sites(probed.model, config)
        coarse = probed.low_resolution_masks(site, clusters, config.features.timesteps)
        maps = atlas.difference_maps(torch.eye(clusters)[coarse].permute(2, 0, 1), smoothing=smoothing)
        assert np.array_equal(explorer.labels, read_labels(maps, tiny.picture(), config.sharpen)[0])
        assert np.array_equal(explorer.figure.data[1].z, explorer.labels)
        hover(explorer, 1, 7, 30)
        bars = explorer.figure.data[2]
        assert np.allclose(bars.x, maps[:, 30, 7])
        assert bars.marker.color[1] == "rgb({}, {}, {})".format(*palette(2)[1])
        winner = bars.y[int(np.argmax(bars.x))]
        assert winner == f"segment {explorer.labels[30, 7]}"
        assert explorer.figure.layout.annotations[2].text == f"pixel (30, 7): {winner}"


def test_segments_are_named_merged_undone_and_exported(model, atlas, config, tmp_path):
    explorer = answered(
        explore_segmentation(model, tiny.picture(), atlas=atlas, config=config, folder=tmp_path / "labels")
    )
    masks = explorer.labels.copy()
    first, second = sorted(set(masks.flat))[:2]
    row, column = np.argwhere(masks == second)[0]
    click(explorer, 2, int(column), int(row))
    assert explorer.segment.value == second
    assert (explorer.row.value, explorer.column.value) == (row, column)
    assert np.array_equal(explorer.figure.data[-1].z == 0, masks == second)
    hover(explorer, 0, *(int(place) for place in np.argwhere(masks == first)[0][::-1]))
    assert explorer.segment.value == second, "hovering only previews"
    explorer.name.value = "sky"
    assert ("sky", second) in explorer.segment.options
    assert "sky" in explorer.figure.data[2].y
    explorer.into.value = first
    explorer.merge.click()
    assert second not in explorer.figure.data[1].z
    assert np.array_equal(explorer.figure.data[1].z == first, (masks == first) | (masks == second))
    explorer.undo.click()
    assert np.array_equal(explorer.figure.data[1].z, masks)
    assert explorer.segment.options[second] == ("sky", second)
    explorer.segment.value, explorer.into.value = first, second
    explorer.merge.click()
    explorer.smoothing.value = 2.0
    answered(explorer)
    assert explorer.naming.segments[second] == "sky"
    explorer.export.click()
    assert "saved" in explorer.outcome.value
    assert np.array_equal(load_labels(tmp_path / "labels" / "labels.png"), explorer.figure.data[1].z)
    with Image.open(tmp_path / "labels" / "labels.png") as picture:
        assert picture.mode == "P"
    names = json.loads((tmp_path / "labels" / "names.json").read_text())
    assert names == {str(number): name for number, name in explorer.naming.segments.items()}
    assert "sky" in names.values()
    explorer.clusters.value = 5
    assert answered(explorer).naming == Naming.fresh(5)
    assert explorer.undo.disabled
    explorer.clusters.value = 3
    assert "sky" in answered(explorer).naming.segments.values()


def test_refused_names_and_folders_are_told(model, atlas, config, tmp_path):
    explorer = answered(
        explore_segmentation(model, tiny.picture(), atlas=atlas, config=config, folder=tmp_path / "file")
    )
    explorer.name.value = "segment 1"
    assert "accepted: a name that no other segment has" in explorer.outcome.value
    assert explorer.name.value == "segment 0"
    explorer.into.value = explorer.segment.value
    explorer.merge.click()
    assert "accepted: two segments" in explorer.outcome.value
    (tmp_path / "file").write_text("no folder")
    explorer.export.click()
    assert "FileExistsError" in explorer.outcome.value


def test_names_and_merges_are_values():
    naming = Naming.fresh(4).rename(2, " tree ").merge(1, 2).merge(2, 3)
    assert naming.segments == {0: "segment 0", 3: "segment 3"}
    assert naming.apply(np.arange(4)).tolist() == [0, 3, 3, 3]
    assert naming.apply(np.arange(4)).dtype == np.uint8
    for refused in (lambda: naming.rename(1, "gone"), lambda: naming.merge(0, 2), lambda: naming.rename(0, "  ")):
        with pytest.raises(InputError, match="accepted:"):
            refused()


@pytest.mark.parametrize("explore", [explore_segmentation, explore_modulation])
def test_an_atlas_of_another_image_is_refused(model, atlas, config, explore):
    with pytest.raises(InputError, match="another image"):
        explore(model, tiny.picture(seed=1), atlas=atlas, config=config)


def test_an_atlas_of_another_model_or_size_is_refused(model, atlas, config):
    other = replace(atlas, settings={**atlas.settings, "fingerprint": "0"})
    with pytest.raises(InputError, match="accepted: both of one model"):
        explore_segmentation(model, tiny.picture(), atlas=other, config=config)
    cut = replace(atlas, responses=atlas.responses[..., :32])
    with pytest.raises(InputError, match="accepted: the same size"):
        explore_segmentation(model, tiny.picture(), atlas=cut, config=config)


def test_without_an_atlas_the_fast_mode_answers_until_it_is_made(model, config, atlas):
    explorer = explore_segmentation(model, tiny.picture(), config=config)
    assert "Fast mode" in explorer.made_with.value or explorer.atlas is not None
    with MODELS_IN_USE:
        probed = config.probe(model, tiny.picture())
        modulation = resolve_modulation(model, config.change(**FAST))
        coarse = probed.low_resolution_masks(find_feature_sites(model, config), 3, config.features.timesteps)
        if explorer.atlas is None:
            maps = probed.difference_maps(coarse, modulation, smoothing=1.0)
            assert np.array_equal(explorer.labels, read_labels(maps, tiny.picture(), config.sharpen)[0])
    assert explorer._maker.wait(SOON)
    answered(explorer)
    assert torch.equal(explorer.atlas.responses, atlas.responses)
    expected = atlas.difference_maps(torch.eye(3)[coarse].permute(2, 0, 1), smoothing=1.0)
    assert np.array_equal(explorer.labels, read_labels(expected, tiny.picture(), config.sharpen)[0])


def test_showing_an_explorer_changes_no_setting(model, config):
    for strength in (300.0, 30_000.0, 0.001):
        explorer = answered(explore_modulation(model, tiny.picture(), config=config.change(strength=strength)))
        assert explorer.strength.value == strength
    with pytest.raises(TraitError):
        explorer.strength.value = 1e9


def test_pictures_that_are_no_numbers_are_told_with_the_way_out():
    broken = torch.zeros(1, 3, 2, 2)
    broken[0, 1, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"strength 9 drives 25% .* accepted: a smaller strength"):
        require_finite(broken, torch.zeros(1, 3, 2, 2), 9.0)


def test_each_trace_is_sent_what_is_its_own():
    figure = panels(("a", "b"), 8, 8)
    figure.add_heatmap(z=np.zeros((8, 8)), colorscale="RdBu", zmin=-1, zmax=1, row=1, col=1)
    figure.add_scatter(x=[1], y=[1], marker={"color": "rgba(0,0,0,0)"}, row=1, col=2)
    sent = []
    figure.observe(lambda change: change["new"] and sent.append(change["new"]), "_py2js_restyle")
    with figure.batch_update():
        figure.data[0].z = np.ones((8, 8))
        figure.data[1].x = [2]
        figure.data[1].marker.size = 4
    by_trace = {trace: set(message["restyle_data"]) for message in sent for trace in message["restyle_traces"]}
    assert by_trace == {0: {"z"}, 1: {"x", "marker.size"}}


def test_panels_wrap_where_the_page_is_narrow(model, config):
    explorer = answered(explore_layers(model, tiny.picture(), config=config))
    page, layout = page_of(explorer), explorer.figure.layout
    assert layout.width == 4 * PANEL + 70
    page._handle_custom_msg({"look": {"width": 900, "background": "#111111", "foreground": "#eeeeee"}}, [])
    assert layout.width == 2 * PANEL + 70 <= 900
    assert layout.xaxis3.domain[0] == layout.xaxis.domain[0]
    assert layout.yaxis3.domain[1] < layout.yaxis.domain[0]
    assert layout.annotations[3].y == layout.yaxis4.domain[1]
    assert (layout.paper_bgcolor, layout.font.color) == ("#111111", "#eeeeee")
    assert [columns_that_fit(explorer.figure, width) for width in (1150, 1149, 610, 600)] == [4, 2, 2, 1]
    arrange(explorer.figure, 4)
    assert layout.width == 4 * PANEL + 70


def test_a_cell_that_runs_has_the_model_to_itself():
    cell, ran = _Cell(), threading.Event()

    def work():
        with MODELS_IN_USE:
            ran.set()

    cell.begin()
    try:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert not ran.wait(0.1)
        with cell.released():
            assert ran.wait(SOON)
    finally:
        cell.end()
    assert not cell.running


def test_a_saved_notebook_keeps_a_picture_of_the_last_state(model, config, atlas):
    for explorer in (
        explore_layers(model, tiny.picture(), config=config),
        explore_modulation(model, tiny.picture(), config=config),
        explore_segmentation(model, tiny.picture(), atlas=atlas, config=config),
    ):
        kept = answered(explorer)._keepsake()
        assert "run the cell again" in kept
        assert "data:image/png" in kept


def test_the_kept_picture_is_renewed_at_once_and_then_once_a_while(model, config, monkeypatch):
    monkeypatch.setattr(explorer_module, "KEEPING", 0.2)
    renewed = []

    async def hovered():
        explorer = explore_layers(model, tiny.picture(), config=config)
        explorer._kept = SimpleNamespace(update=renewed.append)
        for _ in range(5):
            explorer._keep()
        assert len(renewed) == 1
        await asyncio.sleep(0.4)
        assert len(renewed) == 2

    asyncio.run(hovered())


def test_another_cell_sends_no_picture_of_the_site_again(model, config, monkeypatch):
    explorer = answered(explore_layers(model, tiny.picture(), config=config))
    counted = []
    monkeypatch.setattr(layers_module, "pca_view", lambda *given: counted.append(1) or pca_view(*given))
    before = explorer.figure.data[1].source
    for x, y, cell in ((5, 5, "(0, 0)"), (60, 20, "(2, 7)")):
        hover(explorer, 0, x, y)
        answered(explorer)
        assert explorer.figure.layout.annotations[3].text == f"similarity to cell {cell}"
    assert (counted, explorer.figure.data[1].source) == ([], before)
    explorer.site.value = "up16.self0.query"
    answered(explorer)
    assert len(counted) == 1
    assert explorer.figure.data[1].source != before


def test_a_stored_study_is_read_from_its_folder_alone(stores):
    store, study = stores
    read = stored_study(store)
    assert read.identity() == study.identity()
    assert read.question == study.question
    assert read.axes == study.axes
    assert read.directions == study.directions
    with pytest.raises(InputError, match="make_study"):
        read.measure(None, {})


def test_a_folder_that_holds_no_study_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run is stored there"):
        explore_study(tmp_path)


def test_a_part_of_a_result_has_the_same_numbers(stores):
    store, _ = stores
    result = load_result(store)
    part = result.within({"way": "b"})
    assert list(part.study.axes) == ["speed"]
    assert part.interval("value", {"speed": 2}) == result.interval("value", {"speed": 2, "way": "b"})
    assert part.interval("hits", {"speed": 2}) == result.interval("hits", {"speed": 2, "way": "b"})
    for bad in ({"way": "c"}, {"width": 1}, {"way": "a", "speed": 1}):
        with pytest.raises(InputError, match="accepted:"):
            result.within(bad)


def test_the_study_explorer_draws_the_figure_that_its_menus_ask_for(stores):
    store, _ = stores
    result = load_result(store)
    explorer = answered(explore_study(store))

    def drawn():
        return [figure.data for figure in answered(explorer).figures]

    def expected(*asked):
        return study_figure(*asked).data

    def same(one, other):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert left.name == right.name
            assert list(left.x) == list(right.x)
            assert np.allclose(left.y, right.y)

    same(drawn()[0], expected(result, "value", "speed"))
    (first,) = explorer.figures
    explorer.along.value = "way"
    same(drawn()[0], expected(result, "value", "way"))
    assert first.comm is None, "a figure that was replaced is still kept for pages to come"
    explorer.kept["speed"].value = 3
    same(drawn()[0], expected(result.within({"speed": 3}), "value", "way"))
    explorer.kept["speed"].value = "every value"
    explorer.facet.value, explorer.measure.value = "speed", "hits"
    three = drawn()
    assert len(three) == 3
    same(three[1], expected(result.within({"speed": 2}), "hits", "way"))
    assert "faster is more" in explorer.children[3].value


def test_two_segmentations_share_pointer_and_zoom(model, config):
    one = segment(model, tiny.picture(), config)
    other = segment(model, tiny.picture(), config.change(clusters=5, strength=50.0))
    explorer = answered(emerdiff_probe.compare(one, other))
    layout = explorer.figure.layout
    assert layout.xaxis2.matches == layout.xaxis3.matches == "x"
    assert layout.yaxis2.matches == layout.yaxis3.matches == "y"
    hover(explorer, 2, 11, 40)
    answered(explorer)
    assert {(trace.x[0], trace.y[0]) for trace in explorer.figure.data[3:]} == {(11, 40)}
    masks = int(one.labels[40, 11]), int(other.labels[40, 11])
    assert f"one: mask {masks[0]} " in explorer.pointed.value
    assert f"other: mask {masks[1]} " in explorer.pointed.value
    assert np.array_equal(explorer.figure.data[2].z, other.labels)
    explorer.view.value = "low-resolution masks"
    assert np.array_equal(answered(explorer).figure.data[1].z, one.low_resolution_masks)
    explorer.view.value = "difference map of the mask at the pointer"
    assert np.array_equal(answered(explorer).figure.data[2].z, other.difference_maps[masks[1]])
    table = explorer.children[4].value
    assert f"<th>strength</th><td>{config.modulation.strength}</td><td>50.0</td>" in table
    assert "<th>smoothing</th>" not in table


def test_segmentations_of_different_sizes_are_refused(model, config):
    one = segment(model, tiny.picture(), config)
    with pytest.raises(InputError, match="accepted: the same size"):
        emerdiff_probe.compare(one, replace(one, labels=one.labels[:10]))


def test_a_page_that_is_reloaded_gets_what_is_shown_now(model, config):
    explorer = answered(explore_layers(model, tiny.picture(), config=config))
    state = explorer.figure.get_state()
    assert np.array_equal(state["_widget_data"][2]["z"], explorer.figure.data[2].z)
    assert state["_widget_layout"]["annotations"][3]["text"].startswith("similarity to cell")
    assert len(state["_esm"]) < 10_000, "plotly.js is sent with every figure"


def test_a_page_can_be_reloaded_after_plotly_left_something_undefined(model, config):
    figure = answered(explore_modulation(model, tiny.picture(), config=config)).figure
    figure._layout["selections"] = [{"templateitemname": Undefined}]  # as the page's reports of a lasso do
    assert json.dumps(figure.get_state()["_widget_layout"]["selections"]) == '[{"templateitemname": "_undefined_"}]'


def test_every_control_has_a_description(model, config, atlas, stores):
    explorers = [
        explore_layers(model, tiny.picture(), config=config),
        explore_modulation(model, tiny.picture(), config=config),
        explore_segmentation(model, tiny.picture(), atlas=atlas, config=config),
        explore_study(stores[0]),
    ]
    for explorer in explorers:
        answered(explorer)
        boxes = [child for child in explorer.children if hasattr(child, "children")]
        controls = [control for box in boxes for control in box.children if hasattr(control, "description")]
        assert controls
        assert all(control.description for control in controls if "HTML" not in type(control).__name__)
