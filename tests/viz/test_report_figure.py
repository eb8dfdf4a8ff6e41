"""A report's figure: every marker has a place of its own."""

import numpy as np
import pytest

from emerdiff_probe.data.summary import LabelSummary
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import Line, Report, Row
from emerdiff_probe.evaluation.run import Cell
from emerdiff_probe.metrics.protocols import Score
from emerdiff_probe.viz.figures import class_figure, confusion_figure, report_figure


@pytest.fixture
def report():
    rows = []
    for method, score in (("emerdiff", 0.3), ("bilinear", 0.2), ("colour", 0.1)):
        for index, clusters in enumerate((8, 12, 20)):
            line = Line(Cell(method, clusters), (), clusters, 1.0, None)
            value = score + 0.02 * index
            miou = Score("mIoU", value, value - 0.05, value + 0.05, "majority", 1)
            rows.append(Row(line, miou, miou, np.array([[8, 1, 1], [3, 0, 7]])))
    labels = LabelSummary(("sky", "sea"), (1, 1), 0)
    return Report("made", ("one",), {}, labels, tuple(row.line for row in rows), tuple(rows), (), (), {})


def test_markers_of_several_numbers_stand_side_by_side(report):
    figure = report_figure(report)
    assert len(figure.data) == 3
    assert figure.layout.scattermode == "group"
    assert {trace.orientation for trace in figure.data} == {"h"}, "grouped along the axis of methods, not of mIoU"
    assert len({tuple(trace.y) for trace in figure.data}) == 1


def test_a_confusion_has_shares_of_the_true_class(report):
    figure = confusion_figure(report, "bilinear")
    (drawn,) = figure.data
    assert np.allclose(drawn.z, [[80, 10, 10], [30, 0, 70]])
    assert (drawn.y, drawn.x) == (("sky", "sea"), ("sky", "sea", "no class"))
    assert (drawn.zmin, drawn.zmax) == (0, 100)
    assert "bilinear, 12 segments, majority protocol" in figure.layout.title.text
    with pytest.raises(InputError, match="no method 'sam' in made; accepted: emerdiff, bilinear, colour"):
        confusion_figure(report, "sam")


def test_classes_stand_by_their_mean_and_have_a_marker_a_method(report):
    figure = class_figure(report)
    assert {trace.name for trace in figure.data} == {
        f"{name}, 12 segments" for name in ("emerdiff", "bilinear", "colour")
    }
    for trace in figure.data:
        held = dict(zip(trace.y, trace.x, strict=True))
        assert held == {"sky (50.0%)": pytest.approx(100 * 8 / 13), "sea (50.0%)": 0}
    assert figure.layout.yaxis.categoryarray == ("sea (50.0%)", "sky (50.0%)")
