"""Figures say what the result says."""

import base64
import io
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import tiny
from PIL import Image

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.viz.figures import difference_figure, segmentation_figure, static_pictures, to_png


@pytest.fixture(scope="module")
def result(model):
    return segment(model, tiny.picture(), EmerDiffConfig.for_model(model, clusters=3, steps=10, modulate_at=101))


def test_hovering_the_segmentation_names_the_mask_of_the_pixel(result):
    image, coarse, fine = segmentation_figure(result).data
    assert np.array_equal(fine.z, result.labels)
    with Image.open(io.BytesIO(base64.b64decode(image.source.split(",")[1]))) as picture:
        error = np.array(picture).astype(float) - result.image
    assert np.abs(error.mean()) < 2
    assert error.shape == result.image.shape
    rows, columns = result.low_resolution_masks.shape
    height, width = result.labels.shape
    cells = np.array(coarse.z)[:: height // rows, :: width // columns]
    assert np.array_equal(cells, result.low_resolution_masks)


def test_the_slider_shows_one_mask_at_a_time_on_one_colour_scale(result):
    figure = difference_figure(result)
    _, *maps = figure.data
    assert len(maps) == result.masks
    assert {trace.zmax for trace in maps} == {float(result.difference_maps.max())}
    assert [trace.visible for trace in maps] == [True] + [False] * (result.masks - 1)
    for mask, step in enumerate(figure.layout.sliders[0].steps):
        attribute, shown = step.args
        assert attribute == "visible"
        assert list(shown) == [True] + [i == mask for i in range(result.masks)]


def test_more_masks_than_a_byte_counts_can_be_drawn(result):
    masks = 300
    coarse = np.arange(masks).reshape(15, 20)
    maps = np.zeros((masks, 30, 40), np.float32)
    labels = np.kron(coarse, np.ones((2, 2), int)).astype(np.uint16)
    image = np.zeros((30, 40, 3), np.uint8)
    many = replace(result, image=image, labels=labels, low_resolution_masks=coarse, mask_embeddings=maps[:, 0])
    assert segmentation_figure(many).data[2].z.max() == masks - 1
    assert many.side_by_side().width > 4 * 40


def test_a_figure_is_written_as_a_picture_of_its_size(tmp_path):
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1])).update_layout(width=200, height=120)
    if not static_pictures():
        with pytest.raises(InputError, match="no picture"):
            to_png(figure, tmp_path / "figure.png")
        return
    with Image.open(to_png(figure, tmp_path / "figure.png", scale=2)) as picture:
        assert picture.size == (400, 240)
        assert len(np.unique(picture.convert("L"))) > 2
    with pytest.raises(InputError, match="no picture"):
        to_png(figure, tmp_path / "nowhere" / "figure.png")


def test_a_renderer_that_the_environment_names_stays_and_starts_no_browser(monkeypatch):
    monkeypatch.setattr(pio, "to_image", lambda *_, **__: pytest.fail("a browser was started"))
    before = pio.renderers.default
    for named, pictures in (("plotly_mimetype", False), ("plotly_mimetype+png", True)):
        monkeypatch.setenv("PLOTLY_RENDERER", named)
        assert static_pictures() is pictures
        assert pio.renderers.default == before
