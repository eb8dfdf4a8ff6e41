"""The explorers in a real JupyterLab: run all, drag, click, hover, and see what the page then shows."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from emerdiff_probe.data.world import World
from emerdiff_probe.images import load_labels
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import response_atlas
from emerdiff_probe.reading.correspondence import difference_map, modulated_images
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites, resolve_modulation
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.studies.run import run_study
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study
from emerdiff_probe.viz.widgets.modulation import PUSHED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

playwright = pytest.importorskip("playwright.sync_api")
from lab import NotebookPage, jupyter_lab, write_notebook  # noqa: E402

TESTS = Path(__file__).parent.parent
SCREENSHOTS = TESTS.parent / "out" / "screenshots"
COARSE = {
    "clusters": 3,
    "strength": 10.0,
    "steps": 10,
    "modulate_at": 101,
    "smoothing": 1.0,
    "feature_sites": "up8.self1.query",
    "feature_timesteps": 1,
    "feature_draws": 1,
}
CELLS = [
    f"""import sys
sys.path.insert(0, {str(TESTS)!r})
import tiny
from emerdiff_probe import *
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import resolve_modulation
model = load_model(tiny.pocket(), device="cpu")
image = tiny.picture()
config = EmerDiffConfig.for_model(model, **{COARSE!r})""",
    "explore_layers(model, image, config=config)",
    "explore_modulation(model, image, config=config)",
    """start, steps = config.modulation.modulate_at, config.inversion.steps
probed = ProbedImage(model, image, start=start, steps=steps)
atlas = response_atlas(model, probed.trajectory, resolve_modulation(model, config), progress=False)
explore_segmentation(model, image, atlas=atlas, config=config, folder="labels")""",
    "explore_study('study')",
    "compare(segment(model, image, config), segment(model, image, EmerDiffConfig.for_model(model, **{**"
    f"{COARSE!r}, 'clusters': 5}})))",
]
LAYERS, MODULATION, SEGMENTATION, STUDY, COMPARISON = range(1, 6)


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, **COARSE)


@pytest.fixture(scope="module")
def probed(model, config):
    return ProbedImage(model, tiny.picture(), start=901, steps=config.inversion.steps)


@pytest.fixture(scope="module")
def place(model, config, tmp_path_factory):
    """The folder that the notebook is in, with a small study."""
    folder = tmp_path_factory.mktemp("lab")
    study = Study(
        name="made",
        question="Does the answer grow with the speed?",
        axes={"speed": Axis((1, 2, 3), "m/s", "speed"), "way": Axis(("before", "after"), "", "way")},
        measures={"value": Measure("how far it came", "m"), "other": Measure("something else", "s")},
        config=config,
        measure=lambda subject, unit: {
            (way,): {
                "value": unit["speed"] * (2 + int(subject.sample.name[-1])) + len(way),
                "other": float(subject.sample.name[-1]),
            }
            for way in ("before", "after")
        },
        together=("way",),
        directions=(Direction("faster is more", "value", {"speed": 3}, {"speed": 1}),),
    )
    run_study(model, study, World(range(3), side=model.native_size), store=folder / "study")
    write_notebook(folder / "explorers.ipynb", CELLS)
    return folder


@pytest.fixture(scope="module")
def notebook(place):
    """The notebook in a page, all of it run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with jupyter_lab(place) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        opened = NotebookPage(page)
        page.goto(address("doc/tree/explorers.ipynb"))
        try:
            opened.run_all()
            yield opened
        finally:
            page.screenshot(path=SCREENSHOTS / "last.png")
            browser.close()


def orange(shown):
    """Numbers of the cells that the page shows as pushed."""
    colours = shown.values(4, "marker.color")
    return [cell for cell, colour in enumerate(colours) if colour == PUSHED]


def similarity(probed, config, row, column):
    site = find_feature_sites(probed.model, config)
    features, (rows, columns) = probed.features(site, config.features.timesteps), probed.grid(site)
    cell = row * columns + column
    return torch.nn.functional.cosine_similarity(features, features[cell : cell + 1]).reshape(rows, columns).numpy()


def test_hover_and_arrow_keys_show_what_is_like_the_cell(notebook, probed, config):
    shown = notebook.explorer(LAYERS).ready()
    assert shown.readout("row of cells") == shown.readout("column of cells") == "3"
    assert np.allclose(shown.values(3), similarity(probed, config, 3, 3), atol=1e-3)
    shown.hover(1, 50, 12)
    shown.until("gd.layout.annotations[3].text.includes('(1, 6)')")
    assert (shown.readout("row of cells"), shown.readout("column of cells")) == ("1", "6")
    assert np.allclose(shown.values(3), similarity(probed, config, 1, 6), atol=1e-3)
    shown.slider("row of cells").focus()
    for _ in range(3):
        notebook.page.keyboard.press("ArrowUp")
    shown.until("gd.layout.annotations[3].text.includes('(4, 6)')")
    assert np.allclose(shown.values(3), similarity(probed, config, 4, 6), atol=1e-3)
    assert shown.look("gd._fullData[6].y[0]") == 4 * 8 + 3.5
    shown.screenshot(SCREENSHOTS / "layers.png")


def test_dragging_a_slider_shows_the_last_value_and_menus_change_the_grid(notebook, probed, config):
    shown = notebook.explorer(LAYERS).ready()
    handle = shown.slider("clusters K").bounding_box()
    track = shown.control("clusters K").locator(".noUi-target").bounding_box()
    notebook.page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    notebook.page.mouse.down()
    notebook.page.mouse.move(track["x"] + track["width"] / 2, handle["y"] + 5, steps=25)
    notebook.page.mouse.up()
    clusters = int(shown.readout("clusters K"))
    assert clusters > 10
    shown.until(f"gd.layout.annotations[2].text.endsWith('= {clusters}')")
    shown.ready()
    expected = probed.low_resolution_masks(
        find_feature_sites(probed.model, config), clusters, config.features.timesteps
    )
    assert np.array_equal(shown.values(2), expected)
    shown.choose("site", "up16.self0.query")
    shown.until("gd._fullData[3].z.length === 16")
    shown.screenshot(SCREENSHOTS / "layers_dragged.png")


def test_clicks_choose_the_cells_that_are_pushed(notebook, probed, config):
    shown = notebook.explorer(MODULATION).ready()
    shown.click(1, 2 * 8 + 3.5, 5 * 8 + 3.5)
    shown.until("gd.layout.annotations[0].text.endsWith(': 1')")
    shown.ready()
    mask = torch.zeros(1, 8, 8)
    mask[0, 5, 2] = 1
    minus, plus = modulated_images(probed.model, probed.trajectory, mask, resolve_modulation(probed.model, config))
    assert np.allclose(shown.values(3), difference_map(minus, plus)[0], atol=1e-3)
    shown.click(1, 4 * 8 + 3.5, 2 * 8 + 3.5)
    shown.until(f"gd._fullData[4].marker.color[{2 * 8 + 4}] === '{PUSHED}'")
    assert orange(shown) == [2 * 8 + 4]
    shown.click(1, 5 * 8 + 3.5, 2 * 8 + 3.5, modifiers=("Shift",))
    shown.until("gd.layout.annotations[0].text.endsWith(': 2')")
    assert orange(shown) == [2 * 8 + 4, 2 * 8 + 5]
    assert not shown.look("gd._fullLayout.selections.length")


def test_what_is_orange_is_what_is_pushed_after_lasso_click_shift_and_slider(notebook):
    shown = notebook.explorer(MODULATION).ready()

    def cells(rows, columns):
        return [row * 8 + column for row in rows for column in columns]

    def pushes(expected):
        shown.until(f"gd.layout.annotations[0].text.endsWith(': {len(expected)}')")
        shown.ready()
        assert orange(shown) == expected
        assert not shown.look("gd._fullLayout.selections.length")
        opacity = shown.look("Array.from(gd.querySelectorAll('.scatterlayer .point'), point => point.style.opacity)")
        assert opacity == ["1"] * 64  # none dimmed, whichever plotly takes for selected

    lasso = [(24, 8), (56, 8), (56, 30), (24, 30)]
    shown.click(1, 3.5, 3.5)
    pushes([0])
    shown.drag(1, [*lasso, (24, 9)])  # ends where it began, as one draws by hand: no click
    pushes(cells((1, 2, 3), (3, 4, 5, 6)))
    shown.screenshot(SCREENSHOTS / "modulation_lasso.png")
    shown.click(1, 3 * 8 + 3.5, 1 * 8 + 3.5)  # inside what was drawn
    shown.drag(1, [*lasso, (24, 20)])  # while the click's answer comes
    pushes(cells((1, 2, 3), (3, 4, 5, 6)))
    shown.click(1, 3.5, 3.5, modifiers=("Shift",))
    pushes([0, *cells((1, 2, 3), (3, 4, 5, 6))])
    shown.slider("cells a side").focus()
    notebook.page.keyboard.press("ArrowRight")
    pushes(cells((4, 5), (4, 5)))
    shown.drag(1, [(0, 0), (7, 0), (7, 14), (0, 14), (0, 0)], modifiers=("Shift",))
    pushes([0, 8, *cells((4, 5), (4, 5))])


def test_every_one_of_many_fast_clicks_counts_where_it_was_made(notebook):
    shown = notebook.explorer(MODULATION).ready()
    shown.click(1, 3.5, 3.5)
    shown.until("gd.layout.annotations[0].text.endsWith(': 1')")
    for cell in range(1, 8):
        shown.click(1, cell * 8 + 3.5, cell * 8 + 3.5, modifiers=("Shift",))
    shown.until("gd.layout.annotations[0].text.endsWith(': 8')")
    assert orange(shown) == [9 * cell for cell in range(8)]


def test_colours_in_the_page_are_those_that_were_declared(notebook):
    layers = notebook.explorer(LAYERS).ready()
    assert layers.look("gd._fullData[3].colorscale[0][1]") == "rgb(103,0,31)"
    assert layers.look("[gd._fullData[3].zmin, gd._fullData[3].zmax]") == [-1, 1]
    assert layers.look("gd._fullData[4].marker.color") == "rgba(0,0,0,0)"
    segments = notebook.explorer(SEGMENTATION).ready()
    assert segments.look("gd._fullData[3].marker.color") == "rgba(0,0,0,0)"
    assert segments.look("gd._fullLayout.yaxis3.type") == "category"


def test_panels_wrap_in_a_narrow_page(notebook):
    shown = notebook.explorer(MODULATION).ready()
    notebook.page.set_viewport_size({"width": 900, "height": 1000})
    shown.until("gd._fullLayout.xaxis3._offset === gd._fullLayout.xaxis._offset")
    assert shown.look("gd._fullLayout.width <= gd.closest('.jp-OutputArea-output').clientWidth")
    shown.screenshot(SCREENSHOTS / "modulation_narrow.png")
    notebook.page.set_viewport_size({"width": 1500, "height": 1000})
    shown.until("gd._fullLayout.xaxis4._offset > gd._fullLayout.xaxis3._offset")


def test_strength_by_the_keyboard_and_hover_names_the_cell_and_the_distance(notebook, probed):
    shown = notebook.explorer(MODULATION).ready()
    before = np.max(shown.values(3))
    shown.slider("strength").focus()
    for _ in range(8):
        notebook.page.keyboard.press("ArrowRight")
    shown.until("gd.layout.annotations[2].text.endsWith(' 63')")
    shown.ready()
    assert np.max(shown.values(3)) > before
    shown.choose("inject attention", "none")
    shown.control("output projection").get_by_role("button", name="before").click()
    shown.ready()
    shown.hover(1, 3.5, 3.5)
    playwright.expect(shown.figure().locator(".hoverlayer")).to_contain_text("cell (0, 0)")
    shown.hover(4, 30, 30)
    playwright.expect(shown.figure().locator(".hoverlayer")).to_contain_text("distance")
    shown.screenshot(SCREENSHOTS / "modulation.png")


def test_masks_compete_for_the_pixel_under_the_pointer(notebook, model, config):
    shown = notebook.explorer(SEGMENTATION).ready()
    probed = ProbedImage(model, tiny.picture(), start=config.modulation.modulate_at, steps=config.inversion.steps)
    atlas = response_atlas(model, probed.trajectory, resolve_modulation(model, config))
    site = find_feature_sites(model, config)
    shown.slider("clusters K").focus()
    for _ in range(4):
        notebook.page.keyboard.press("ArrowRight")
    shown.until("gd._fullData[2].x.length === 7")
    shown.hover(2, 20, 44)
    shown.until("gd.layout.annotations[2].text.startsWith('pixel (44, 20)')")
    maps = atlas.difference_maps(
        one_hot_masks(probed.low_resolution_masks(site, 7, config.features.timesteps)), smoothing=config.smoothing
    )
    assert np.allclose(shown.values(2, "x"), maps[:, 44, 20], atol=1e-3)
    assert np.mean(np.array(shown.values(1)) == read_labels(maps, probed.image, config.sharpen)[0]) > 0.99
    assert f"strength {config.modulation.strength:g}, timestep 101" in shown.place.inner_text()
    shown.screenshot(SCREENSHOTS / "segmentation.png")


def test_segments_are_named_merged_and_exported_by_hand(notebook, place):
    shown = notebook.explorer(SEGMENTATION).ready()
    shown.click(2, 20, 44)
    name = shown.control("its name").locator("input")
    name.fill("the sky")
    name.press("Enter")
    shown.until("Array.from(gd._fullData[2].y).includes('the sky')")
    count = len(np.unique(shown.values(1)))
    into = next(
        option for option in shown.control("merge into").locator("option").all_inner_texts() if "sky" not in option
    )
    shown.choose("merge into", into)
    shown.place.get_by_role("button", name="merge").click()
    shown.until("!Array.from(gd._fullData[2].y).includes('the sky')")
    assert len(np.unique(shown.values(1))) == count - 1
    shown.place.get_by_role("button", name="undo").click()
    shown.until("Array.from(gd._fullData[2].y).includes('the sky')")
    shown.place.get_by_role("button", name="export labels").click()
    playwright.expect(shown.place.get_by_text("saved labels.png")).to_be_visible()
    assert np.array_equal(load_labels(place / "labels" / "labels.png"), shown.values(1))
    assert "the sky" in json.loads((place / "labels" / "names.json").read_text()).values()
    shown.screenshot(SCREENSHOTS / "segmentation_named.png")


def test_menus_lay_out_a_stored_study(notebook):
    shown = notebook.explorer(STUDY).ready()
    shown.choose("along", "way")
    shown.until("gd._fullData.length === 3")
    shown.choose("a figure for each", "speed")
    playwright.expect(shown.place.locator(".js-plotly-plot")).to_have_count(3)
    shown.until("gd.layout.title.text === 'speed: 3'", figure=2)
    assert np.allclose(shown.values(0, "y", figure=2), [15, 14])
    shown.choose("measure", "something else")
    shown.until("gd.layout.yaxis.title.text === 'something else (s)'", figure=2)
    shown.screenshot(SCREENSHOTS / "study_facets.png")
    shown.choose("a figure for each", "nothing")
    shown.choose("along", "speed")
    shown.choose("measure", "how far it came")
    playwright.expect(shown.place.locator(".js-plotly-plot")).to_have_count(1)
    shown.until("gd.layout.yaxis.title.text === 'how far it came (m)'")
    assert "faster is more" in shown.place.inner_text()
    shown.screenshot(SCREENSHOTS / "study.png")


def test_zoom_and_pointer_of_two_segmentations_are_one(notebook, model, config):
    shown = notebook.explorer(COMPARISON).ready()
    one, other = (segment(model, tiny.picture(), config.change(clusters=clusters)) for clusters in (3, 5))
    shown.hover(3, 40, 10)
    masks = f"one: mask {one.labels[10, 40]} .*other: mask {other.labels[10, 40]} "
    playwright.expect(shown.place).to_contain_text(re.compile(r"pixel \(10, 40\) · " + masks))
    assert [shown.look(f"gd._fullData[{trace}].x[0]") for trace in (3, 4, 5)] == [40, 40, 40]
    shown.screenshot(SCREENSHOTS / "comparison.png")
    shown.drag(2, [(10, 10), (40, 40)])
    shown.until("gd._fullLayout.xaxis.range[1] < 60")
    ranges = [
        shown.look(f"gd._fullLayout.xaxis{panel}.range.concat(gd._fullLayout.yaxis{panel}.range)")
        for panel in ("", 2, 3)
    ]
    assert ranges[0] == ranges[1] == ranges[2]
    shown.choose("show", "difference map of the mask at the pointer")
    shown.until("gd._fullData[2].zmin === 0")
    shown.screenshot(SCREENSHOTS / "comparison_zoomed.png")


def test_a_reloaded_page_shows_what_was_shown(notebook, place):
    before = notebook.explorer(LAYERS).ready().look("gd.layout.annotations[3].text")
    notebook.save(place / "explorers.ipynb")
    notebook.page.reload()
    shown = notebook.explorer(LAYERS)
    shown.until(f"gd.layout && gd.layout.annotations && gd.layout.annotations[3].text === {before!r}")
    shown.screenshot(SCREENSHOTS / "reloaded.png")
