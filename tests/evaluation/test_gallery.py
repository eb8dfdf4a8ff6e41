"""The gallery: one file that shows the extremes of every method in the colours of their classes."""

import base64
import io
import re

import numpy as np
import pytest
import tiny
from PIL import Image

from emerdiff_probe.data.sources import open_data
from emerdiff_probe.evaluation.gallery import extremes, write_gallery
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Cell, Evaluation, run_evaluation
from emerdiff_probe.images import palette
from emerdiff_probe.methods.colour import RgbKMeans, Slic
from emerdiff_probe.segmentation.configuration import EmerDiffConfig


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("gallery")
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=1)
    evaluation = Evaluation((RgbKMeans(), Slic()), (2, 5, 9), config)
    result = run_evaluation(model, open_data("world:4", side=64), evaluation, store=place / "store")
    report = make_report(result)
    return result, report, write_gallery(result, report, place / "gallery.html").read_text(encoding="utf-8")


def pictures(page):
    found = re.findall(r"title='(\w+)' src='data:image/(\w+);base64,([^']+)'", page)
    return [(name, np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))) for name, _, data in found]


def test_the_extremes_are_the_best_the_median_and_the_worst():
    assert extremes([0.3, 0.9, 0.5, 0.1, 0.7]) == {1: "best", 2: "median", 3: "worst"}
    assert extremes([0.3, 0.9]) == {1: "best", 0: "median, worst"}
    assert extremes([0.4]) == {0: "best, median, worst"}
    assert extremes([0.5, 0.5, 0.5]) == {0: "best", 1: "median", 2: "worst"}


def test_the_page_needs_nothing_else_and_says_what_it_shows(made):
    _, report, page = made
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)
    assert "<script" not in page
    assert page.count("<h3>") == 2
    assert "rgb k-means, 5 segments, protocol: majority (oracle)" in page
    for row in report.rows:
        assert f"<td>{100 * row.miou.value:.2f}</td>" in page


def test_pictures_are_the_images_their_truth_and_their_segments_by_class(made):
    result, _, page = made
    shown = pictures(page)
    assert [name for name, _ in shown] == ["image", "truth", "segmentation"] * 6
    captions = re.findall(r"<figcaption>(\w+): (scene-\d+), mIoU ([\d.]+)<", page)
    assert [name for name, *_ in captions] == ["best", "median", "worst"] * 2
    scores = [float(score) for *_, score in captions[:3]]
    assert scores[0] >= scores[1] >= scores[2]
    colours = palette(len(result.data.classes))
    for place, (_, name, _) in enumerate(captions):
        sample = result.data[result.images.index(name)]
        image, truth, segments = (picture for _, picture in shown[3 * place : 3 * place + 3])
        assert np.abs(image.astype(int) - sample.image).mean() < 12  # JPEG
        assert np.array_equal(truth, colours[sample.labels])
        cell = Cell(("rgb k-means", "slic")[place // 3], 5)
        labels = result.labels(name, cell)
        majority = {label: np.bincount(sample.labels[labels == label]).argmax() for label in np.unique(labels)}
        inside = (segments != 255).any(-1)  # borders are white
        expected = colours[np.vectorize(majority.get)(labels)]
        assert inside.mean() > 0.3
        assert np.array_equal(segments[inside], expected[inside])


def test_an_image_that_is_gone_is_told_and_the_page_is_written_all_the_same(model, tmp_path):
    from test_run import folder_of

    labels = np.arange(64).repeat(64).reshape(64, 64) // 32
    data = folder_of(tmp_path, {"<one>": (tiny.picture(), labels)})
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=1)
    result = run_evaluation(model, data, Evaluation((RgbKMeans(),), (2,), config), store=tmp_path / "store")
    data.pairs[0].image.unlink()
    page = write_gallery(result, make_report(result), tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert "no such image file" in page
    assert "<one>" not in page  # escaped
    assert "&lt;one&gt;" in page
