"""The gallery: tables first, then images in rows, every method in the same colours, with names in large segments."""

import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image
from test_run import folder_of

from emerdiff_probe.arrays import find_borders
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.evaluation import gallery
from emerdiff_probe.evaluation.gallery import SIDE, spread, write_gallery
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
    found = re.findall(r"alt='([^']+)' src='data:image/\w+;base64,([^']+)'", page)
    return [(name, np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))) for name, data in found]


def enlarged(labels):
    """Labels of a square image at the size of the page."""
    return labels.repeat(SIDE // len(labels), 0).repeat(SIDE // len(labels), 1)


def test_images_are_spread_over_the_ranks():
    assert spread([0.3, 0.9, 0.5, 0.1, 0.7]) == {
        1: "best",
        4: "upper quarter",
        2: "median",
        0: "lower quarter",
        3: "worst",
    }
    assert spread([0.3, 0.9]) == {1: "best, upper quarter, median, lower quarter", 0: "worst"}
    assert spread([0.4]) == {0: "best, upper quarter, median, lower quarter, worst"}
    assert list(spread(range(100))) == [99, 75, 50, 25, 0]


def test_the_page_needs_nothing_else_and_begins_with_the_tables(made):
    _, report, page = made
    assert not re.findall(r"(?:src|href)=['\"](?!data:)", page)
    assert "<script" not in page
    assert page.rindex("</table>") < page.index("<img")
    for row in report.rows:
        assert f"<td>{100 * row.miou.value:.2f}</td>" in page
    for title, *_ in report.tables():
        assert html.escape(title) in page


def test_a_row_has_an_image_its_truth_and_every_method_with_its_score(made):
    result, _, page = made
    rows = re.findall(r"<h3>([\w, ]+): ([\w-]+)</h3>", page)
    assert len(rows) == 4
    shown = pictures(page)
    assert [name for name, _ in shown] == ["image", "truth", "rgb k-means, 5 segments", "slic, 5 segments"] * 4
    scores = [float(score) for score in re.findall(r"<br>([\d.]+) mIoU, majority \(oracle\)<", page)]
    means = np.reshape(scores, (4, 2)).mean(1)
    assert list(means) == sorted(means, reverse=True)
    colours = palette(len(result.data.classes))
    for place, (_, name) in enumerate(rows):
        sample = result.data[result.images.index(name)]
        (_, image), (_, truth), *segmentations = shown[4 * place : 4 * place + 4]
        assert np.abs(image[2::4, 2::4].astype(int) - sample.image).mean() < 16, "enlarged, and JPEG"
        labels = enlarged(sample.labels)
        assert (truth == colours[labels])[~find_borders(labels)].mean() > 0.85, "the rest are names"
        for (method, drawn), column in zip(segmentations, range(2), strict=True):
            segments = result.labels(name, Cell(method.split(",")[0], 5))
            majority = {label: np.bincount(sample.labels[segments == label]).argmax() for label in np.unique(segments)}
            expected = colours[np.vectorize(majority.get)(enlarged(segments))]
            assert (drawn == expected)[~find_borders(enlarged(segments))].mean() > 0.85
            assert scores[2 * place + column] > 0


def test_names_stand_in_large_segments_and_in_no_small_ones(monkeypatch):
    labels = np.zeros((100, 100), int)
    labels[:10, :10] = 1  # 1% of the picture
    labels[60:] = -1
    named = []
    monkeypatch.setattr(gallery, "write_names", lambda drawn, _, names: named.append(names) or drawn)
    drawn = gallery._draw(labels, ("sky", "sea"))
    gallery._draw(labels, ())
    assert named == [{0: "sky"}, {0: "0"}]
    assert drawn.shape == (SIDE, SIDE, 3)
    assert (drawn[-1] == 0).all(), "what has no class is black"


def read_regions(path, classes):
    """Of a file, labels that are no classes."""
    return np.array(Image.open(path)).astype(np.int32)


def test_without_classes_methods_have_the_colours_of_the_regions_they_match(model, tmp_path):
    scenes = open_data("world:2", side=64)
    pairs = {sample.name: (sample.image, sample.labels) for sample in scenes}
    data = replace(folder_of(tmp_path, pairs), classes=(), reader=read_regions)
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=1)
    result = run_evaluation(model, data, Evaluation((RgbKMeans(), Slic()), (4,), config), store=tmp_path / "store")
    page = write_gallery(result, make_report(result), tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert page.count(" covering</figcaption>") == 4
    shown = pictures(page)
    name = re.findall(r"<h3>[\w, ]+: ([\w-]+)</h3>", page)[0]
    truth = result.data[result.images.index(name)].labels
    for drawn, cell in ((shown[2][1], Cell("rgb k-means", 4)), (shown[3][1], Cell("slic", 4))):
        labels = result.labels(name, cell)
        pairs = gallery.match_labels(labels, truth)
        assert (drawn == palette(64)[enlarged(pairs)])[~find_borders(enlarged(labels))].mean() > 0.85


def test_an_image_that_is_gone_is_told_and_the_page_is_written_all_the_same(model, tmp_path):
    labels = np.arange(64).repeat(64).reshape(64, 64) // 32
    data = folder_of(tmp_path, {"<one>": (tiny.picture(), labels)})
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=1)
    result = run_evaluation(model, data, Evaluation((RgbKMeans(),), (2,), config), store=tmp_path / "store")
    data.pairs[0].image.unlink()
    page = write_gallery(result, make_report(result), tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert "no such image file" in page
    assert "<one>" not in page  # escaped
    assert "&lt;one&gt;" in page
