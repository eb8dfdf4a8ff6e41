"""Tables of an evaluation: every figure with its protocol, the same as when it is worked out by hand."""

import html
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import PROTOCOLS, conclusion, latex_table, make_report, markdown_table
from emerdiff_probe.evaluation.run import FIGURES, Cell, EvaluationResult, Record
from emerdiff_probe.methods.catalogue import METHODS
from emerdiff_probe.methods.diffcut import DiffCut
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.upsampling import Bilinear
from emerdiff_probe.metrics.overlaps import class_iou, mean_iou, overlaps
from emerdiff_probe.metrics.protocols import (
    HungarianPerDataset,
    HungarianPerImage,
    Majority,
    NearestConcept,
    Score,
    compare,
    evaluate,
)
from emerdiff_probe.runs.run import Run
from emerdiff_probe.runs.store import Known
from emerdiff_probe.viz.figures import report_figure

CLASSES, IMAGES = 3, 6
CELLS = [
    *(Cell(name, count) for name in ("emerdiff", "bilinear") for count in (2, 4)),
    *(Cell(name, None) for name in ("emerdiff", "diffcut")),
]


class Stored(EvaluationResult):
    """A result whose records are made here; scores are taken by the code under test."""

    methods = EmerDiff(), Bilinear(), DiffCut()

    def __init__(self, cells=CELLS):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, CLASSES, (IMAGES, 8, 8))
        quality = {"emerdiff": 0.9, "emerdiff fast": 0.8, "bilinear": 0.6, "diffcut": 0.5}
        self.made = {}
        for cell in cells:
            right = rng.random(truth.shape) < quality[cell.method]
            labels = np.where(right, truth, rng.integers(0, CLASSES, truth.shape))
            embeddings = np.eye(CLASSES) + rng.normal(0, 0.4, (IMAGES, CLASSES, CLASSES))
            self.made[cell] = [
                Record(
                    overlaps(labels[i], truth[i], CLASSES, embeddings=embeddings[i]),
                    {name: float(rng.random()) for name in FIGURES} | {"segments": 3},
                    seconds=float(i),
                    peak_mib=None if cell.method == "diffcut" else 100.0 + i,
                )
                for i in range(IMAGES)
            ]
        config = type("Config", (), {"seed": 0})()
        methods = {method.name: method for method in self.methods}
        cells = {cell: methods[cell.method] for cell in self.made}
        evaluation = type("Evaluation", (), {"cells": cells, "methods": tuple(self.methods), "config": config})()
        data = type("Data", (), {"name": "noise", "classes": ("a", "b", "c")})()
        names = tuple(f"image {i}" for i in range(IMAGES))
        samples = tuple(Known(name, "", (), (1, 1, 1, 0)) for name in names)
        super().__init__(evaluation, data, Run(None, samples, {"broken": "truncated"}))

    def records(self, cell):
        return self.made[cell]

    concepts = np.eye(CLASSES)


@pytest.fixture(scope="module")
def result():
    return Stored()


@pytest.fixture(scope="module")
def report(result):
    return make_report(result, tuple(PROTOCOLS))


def test_every_row_is_the_score_of_its_protocol(result, report):
    protocols = (Majority(), HungarianPerImage(), HungarianPerDataset(CLASSES), NearestConcept(np.eye(CLASSES)))
    assert len(report.rows) == len(CELLS) * len(protocols)
    by_place = {(row.line.cell, row.miou.protocol): row for row in report.rows}
    for cell in CELLS:
        images = [record.overlap for record in result.records(cell)]
        for protocol in protocols:
            row = by_place[cell, protocol.name]
            assert row.miou == evaluate(images, protocol)
            assert row.accuracy == evaluate(images, protocol, "pixel accuracy")


def test_gains_are_paired_differences_at_equal_numbers_of_segments(result, report):
    gains = {(gain.over, gain.clusters, gain.miou.protocol): gain.miou for gain in report.gains}
    assert {(over, clusters) for over, clusters, _ in gains} == {
        ("bilinear", (2,)),
        ("bilinear", (4,)),
        ("bilinear", (2, 4)),
    }
    for protocol in (Majority(), HungarianPerImage()):
        singly = []
        for count in (2, 4):
            ours, theirs = ([r.overlap for r in result.records(Cell(name, count))] for name in ("emerdiff", "bilinear"))
            singly.append(compare(ours, theirs, protocol))
            assert gains["bilinear", (count,), protocol.name] == singly[-1]
        both = gains["bilinear", (2, 4), protocol.name]
        assert both.value == pytest.approx(np.mean([one.value for one in singly]))
        assert both.low > 0


def test_costs_are_the_median_time_and_the_largest_memory(report):
    costs = {line.cell: (line.seconds, line.peak_mib, line.segments) for line in report.lines}
    assert costs[Cell("emerdiff", 2)] == (2.5, 105, 3)
    assert costs[Cell("diffcut", None)] == (2.5, None, 3)


def test_the_figure_has_every_score_of_one_protocol_with_its_interval_best_on_top(report):
    figure = report_figure(report)
    protocol = report.rows[0].miou.protocol
    assert protocol in figure.layout.title.text
    assert f"{IMAGES} images" in figure.layout.title.text
    drawn = {
        (trace.name, method): (value, value - below, value + above)
        for trace in figure.data
        for method, value, below, above in zip(
            trace.y, trace.x, trace.error_x.arrayminus, trace.error_x.array, strict=True
        )
    }
    expected = {
        (
            f"{row.line.cell.clusters} segments" if row.line.cell.clusters else "number of their own",
            row.line.cell.method,
        ): (
            pytest.approx(100 * row.miou.value),
            pytest.approx(100 * row.miou.low),
            pytest.approx(100 * row.miou.high),
        )
        for row in report.rows
        if row.miou.protocol == protocol
    }
    assert drawn == expected
    assert figure.layout.yaxis.categoryarray[-1] == max(drawn, key=lambda place: drawn[place][0])[1]


def test_the_figure_says_where_a_method_has_another_protocol(report):
    named = [
        replace(row, miou=replace(row.miou, protocol="supervised")) if row.line.cell.method == "diffcut" else row
        for row in report.rows
    ]
    figure = report_figure(replace(report, rows=tuple(named)))
    assert set(figure.layout.yaxis.categoryarray) == {"emerdiff", "bilinear", "diffcut (supervised)"}


def test_a_figure_of_data_without_classes_is_refused(report):
    with pytest.raises(InputError, match="no classes"):
        report_figure(replace(report, rows=()))


def test_json_has_what_was_promised(report):
    made = report.to_json()
    promised = {"method", "protocol", "clusters", "miou", "low", "high", "seconds_per_image", "peak_mib"}
    assert all(promised <= set(row) for row in made["rows"])
    assert (made["skipped"], made["images"]) == (1, IMAGES)
    first, row = made["rows"][0], report.rows[0]
    assert (first["miou"], first["low"]) == (round(100 * row.miou.value, 2), round(100 * row.miou.low, 2))
    assert [gain["clusters"] for gain in made["gains"][:3]] == [2, 4, [2, 4]]
    assert {gain["method"] for gain in made["gains"]} == {"emerdiff"}
    assert len(made["without_classes"]) == len(CELLS)


def test_differences_without_classes_are_paired_and_their_averages_are_means(report):
    apart = {(each.over, each.clusters): each for each in report.differences}
    assert {each.method for each in report.differences} == {gain.method for gain in report.gains}
    assert {over for over, _ in apart} == {gain.over for gain in report.gains}
    lines = {line.cell: line for line in report.lines}
    for (over, clusters), each in apart.items():
        for place, score in enumerate(each.figures):
            pairs = [(lines["emerdiff", count].figures[place], lines[over, count].figures[place]) for count in clusters]
            assert score.metric == FIGURES[place]
            assert score.value == pytest.approx(np.mean([ours.value - theirs.value for ours, theirs in pairs]))
            assert score.low <= score.value <= score.high
    made = report.to_json()["differences"]
    assert len(made) == len(report.differences) == len(report.frames()["differences"])
    assert made[0][FIGURES[0]][0] == round(report.differences[0].figures[0].value, 4)


def test_every_printed_line_of_scores_has_its_protocol(report):
    lines = str(report).splitlines()
    assert "6 images, 1 skipped" in lines[0]
    for row in report.rows:
        figure = f"{100 * row.miou.value:.2f}"
        count = "auto" if row.line.cell.clusters is None else str(row.line.cell.clusters)
        wanted = re.compile(rf"\| {row.line.cell.method} +\| {count} +\| {figure} +\|.*{re.escape(row.miou.protocol)}")
        assert any(wanted.match(line) for line in lines)
    assert sum("| mean of 2, 4" in line for line in lines) == 4 + 1  # of gains, and of differences without classes


def test_methods_that_choose_their_number_gain_nothing_and_the_table_says_so(report):
    assert {gain.over for gain in report.gains} == {"bilinear"}
    assert all(None not in gain.clusters for gain in report.gains)
    assert "asked for equal numbers of segments; those of K auto are left out" in str(report)


def test_what_is_kept_of_segments_fits_their_pixels_and_scores_the_same(result, report):
    for cell, held in report.judged.items():
        images = [record.overlap for record in result.records(cell)]
        assert all(kept.counts.dtype == np.uint8 and kept.embeddings is None for kept in held.images)
        assert evaluate(*held) == evaluate(images, Majority())


def test_a_notebook_shows_what_is_printed(report):
    shown = report._repr_html_()
    assert shown.count("<table>") == len(report.tables())
    assert "<details>" not in shown, "three classes need no folding"
    for title, header, body in report.tables():
        assert all(html.escape(text) in shown for text in (title, *header, *(text for line in body for text in line)))
    odd = replace(report, title="<b>mine</b>")._repr_html_()
    assert "<b>mine" not in odd


def test_a_method_gains_nothing_over_one_with_its_own_segments():
    result = Stored()
    for count in (2, 4):
        result.made["bilinear", count] = result.made["emerdiff", count]
    gains = [gain.miou for gain in make_report(result, tuple(PROTOCOLS)).gains]
    assert {(gain.low, gain.value, gain.high) for gain in gains} == {(0, 0, 0)}
    assert {conclusion(gain) for gain in gains} == {"not resolved"}


def test_a_conclusion_needs_an_interval_beside_zero_and_enough_images():
    def score(low, high, images=5):
        return Score("mIoU difference", (low + high) / 2, low, high, "any", images)

    assert conclusion(score(0.1, 0.2)) == "better"
    assert conclusion(score(-0.2, -0.1)) == "worse"
    assert conclusion(score(-0.1, 0.2)) == conclusion(score(0.1, 0.2, 4)) == "not resolved"


@pytest.mark.parametrize("names", [(), ("majority", "majority"), ("hungarian",)])
def test_unknown_protocols_are_refused(result, names):
    with pytest.raises(InputError, match="accepted: majority, hungarian-per-image, hungarian-per-dataset, concept"):
        make_report(result, names)


def test_a_markdown_table_lines_up():
    assert markdown_table(("a", "bb"), [("ccc", "d")]).splitlines() == ["| a   | bb |", "| --- | -- |", "| ccc | d  |"]


def test_the_iou_of_a_class_by_hand_and_its_mean():
    confusion = np.array([[6, 2, 0, 0], [1, 0, 0, 3], [0, 0, 0, 0]])
    assert np.array_equal(class_iou(confusion), [6 / 9, 0, np.nan], equal_nan=True)
    assert mean_iou(confusion) == pytest.approx(np.nanmean(class_iou(confusion))) == pytest.approx(1 / 3)


def test_classes_add_up_to_the_score_of_their_row(result, report):
    for row in report.rows:
        assert row.miou.value == pytest.approx(np.nanmean(row.iou))
        truth = sum(record.overlap.counts.sum(1) for record in result.records(row.line.cell))
        assert np.array_equal(row.confusion.sum(1), truth)
    title, header, body = report.named_tables()["classes"]
    assert "protocol: majority (oracle)" in title
    assert header == ("class", "% of the pixels", "emerdiff, 4", "bilinear, 2", "diffcut, auto")
    by_place = {(row.line.cell, row.miou.protocol): row for row in report.rows}
    for column, cell in ((2, CELLS[1]), (3, CELLS[2]), (4, CELLS[5])):
        shown = [line[column] for line in body]
        assert shown == [f"{100 * iou:.1f}" for iou in by_place[cell, "majority (oracle)"].iou]


def test_a_class_that_does_not_occur_is_not_in_the_table(report):
    rows = [replace(row, confusion=np.array([[3, 1, 0, 0], [0] * 4, [0, 0, 2, 0]])) for row in report.rows]
    table = replace(report, rows=tuple(rows)).named_tables()["classes"]
    assert [line[:3] for line in table[2]] == [("a", "66.7", "75.0"), ("c", "33.3", "100.0")]


def test_every_variant_of_emerdiff_gains_over_rivals_and_the_first_over_the_others():
    def gains(*methods):
        made = type("Some", (Stored,), {"methods": tuple(METHODS[name] for name in methods)})
        cells = [Cell(name, count) for name in methods for count in (2, 4)]
        return {(gain.method, gain.over) for gain in make_report(made(cells)).gains}

    assert gains("emerdiff fast", "bilinear") == {("emerdiff fast", "bilinear")}
    assert gains("emerdiff", "emerdiff fast", "bilinear") == {
        ("emerdiff", "emerdiff fast"),
        ("emerdiff", "bilinear"),
        ("emerdiff fast", "bilinear"),
    }


def test_files_hold_every_table_for_programs_and_for_papers(report, tmp_path):
    written = {path.name for path in report.save(tmp_path / "tables")}
    names = {"scores", "gains", "segments", "differences", "classes"}
    assert written == {"report.md", "confusion.csv", *(f"{name}.{kind}" for name in names for kind in ("csv", "tex"))}
    assert (tmp_path / "tables" / "report.md").read_text(encoding="utf-8") == f"{report}\n"
    scores = pd.read_csv(tmp_path / "tables" / "scores.csv")
    assert len(scores) == len(report.rows)
    first, row = scores.iloc[0], report.rows[0]
    assert (tmp_path / "tables" / "scores.csv").read_text().splitlines()[1].startswith("emerdiff,2,majority")
    assert (first["method"], first["K"], first["protocol"]) == ("emerdiff", 2, "majority (oracle)")
    assert (first["mIoU"], first["mIoU low"]) == pytest.approx((row.miou.value, row.miou.low))
    assert scores["K"].isna().sum() == sum(row.line.cell.clusters is None for row in report.rows)
    classes = pd.read_csv(tmp_path / "tables" / "classes.csv")
    means = classes.groupby(["method", "K", "protocol"], dropna=False)["IoU"].mean()
    assert means["emerdiff", 2, "majority (oracle)"] == pytest.approx(row.miou.value)
    confusion = pd.read_csv(tmp_path / "tables" / "confusion.csv")
    assert confusion[confusion["method"] == "emerdiff"]["pixels"].sum() == IMAGES * 64
    latex = (tmp_path / "tables" / "scores.tex").read_text(encoding="utf-8")
    assert latex.startswith("% noise: 6 images")
    assert latex.count("\\\\") == len(report.rows) + 1
    assert "pixel accuracy" in latex
    assert "\\toprule" in latex


def test_what_latex_would_read_is_escaped():
    made = latex_table(("a title of\ntwo lines", ("a_b", "% of it"), [("x & y", "1")]))
    assert made.startswith("% a title of two lines\n")
    assert "a\\_b & \\% of it" in made
    assert "x \\& y" in made


def test_what_another_tool_took_is_not_told(report):
    line = replace(report.lines[0], seconds=float("nan"), peak_mib=None)
    untold = replace(report, lines=(line,), rows=(replace(report.rows[0], line=line),))
    assert untold.tables()[0][2][0][-2:] == ("-", "-")
    assert untold.to_json()["rows"][0]["seconds_per_image"] is None
