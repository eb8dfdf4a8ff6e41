"""A report's figure: every marker has a place of its own."""

import pytest

from emerdiff_probe.data.summary import LabelSummary
from emerdiff_probe.evaluation.report import Line, Report, Row
from emerdiff_probe.evaluation.run import Cell
from emerdiff_probe.metrics.protocols import Score
from emerdiff_probe.viz.figures import report_figure


@pytest.fixture
def report():
    rows = []
    for method, score in (("emerdiff", 0.3), ("bilinear", 0.2), ("colour", 0.1)):
        for index, clusters in enumerate((8, 12, 20)):
            line = Line(Cell(method, clusters), (), clusters, 1.0, None)
            value = score + 0.02 * index
            miou = Score("mIoU", value, value - 0.05, value + 0.05, "majority", 1)
            rows.append(Row(line, miou, miou))
    labels = LabelSummary(("sky", "sea"), (1, 1), 0)
    return Report("made", ("one",), {}, labels, tuple(row.line for row in rows), tuple(rows), (), {})


def test_markers_of_several_numbers_stand_side_by_side(report):
    figure = report_figure(report)
    assert len(figure.data) == 3
    assert figure.layout.scattermode == "group"
    assert {trace.orientation for trace in figure.data} == {"h"}, "grouped along the axis of methods, not of mIoU"
    assert len({tuple(trace.y) for trace in figure.data}) == 1
