"""A forest plot shows every difference with its interval and verdict, and the line at zero."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study
from emerdiff_probe.viz.figures import study_figure
from emerdiff_probe.viz.forest import forest_figure

ROWS = pd.DataFrame(
    {
        "label": ["over bilinear", "over colours", "over nothing"],
        "difference": [3.0, -2.0, 0.5],
        "low": [1.0, -3.0, -1.0],
        "high": [4.0, -1.5, 2.0],
        "verdict": ["better", "worse", "not resolved"],
    }
)


@pytest.fixture
def result(tmp_path):
    study = Study(
        name="made",
        question="How much?",
        axes={"way": Axis(("before", "after"), "", "way")},
        measures={
            "emerdiff": Measure("mIoU of EmerDiff", "%", higher_is_better=True),
            "bilinear": Measure("mIoU of masks", "%", higher_is_better=True),
            "error": Measure("an error", "px", higher_is_better=False),
        },
        config=EmerDiffConfig(),
        measure=lambda *_: {},
        directions=(
            Direction("after beats before", "emerdiff", {"way": "after"}, {"way": "before"}),
            Direction("the error hardly changes", "error", {"way": "after"}, {"way": "before"}, 2.0),
        ),
    )
    ways = ("image", "way")
    steps = np.linspace(0, 0.5, 8)[:, None]
    values = {
        "emerdiff": (ways, np.array([20.0, 25.0]) + steps),
        "bilinear": (ways, np.array([22.0, 22.0]) + 2 * steps),
        "error": (ways, np.array([1.0, 1.5]) + steps),
    }
    return StudyResult(study, xr.Dataset(values, {"way": ["before", "after"]}), tmp_path)


def drawn(figure):
    """Difference, low and high of every row by its label."""
    return {
        text: (x, x - minus, x + plus)
        for trace in figure.data
        for text, x, minus, plus in zip(trace.text, trace.x, trace.error_x.arrayminus, trace.error_x.array, strict=True)
    }


def test_every_row_is_drawn_with_its_interval_and_its_verdict_is_written(result):
    figure = forest_figure(ROWS, title="What is gained?")
    assert drawn(figure) == {row.label: (row.difference, row.low, row.high) for row in ROWS.itertuples()}
    assert [trace.name for trace in figure.data] == ["better", "worse", "not resolved"]
    assert len({trace.marker.symbol for trace in figure.data}) == 3, "told apart without colour"
    written = [note.text for note in figure.layout.annotations]
    assert all(f"<b>{verdict}</b>" in text for verdict, text in zip(ROWS["verdict"], written, strict=True))
    (zero,) = [shape for shape in figure.layout.shapes if shape.type == "line"]
    assert zero.x0 == zero.x1 == 0


def test_claims_of_different_units_have_axes_of_their_own_and_what_counts_as_alike_is_shaded(result):
    figure = forest_figure(result)
    table = result.verdicts().set_index("claim")
    for claim, found in drawn(figure).items():
        assert found == pytest.approx(tuple(table.loc[claim, ["difference", "low", "high"]]))
    assert figure.layout.xaxis.title.text == "difference (percentage points)"
    assert figure.layout.xaxis2.title.text == "difference (px)"
    (shade,) = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert (shade.x0, shade.x1) == (-2, 2)
    assert "8 images" in figure.layout.title.text


def test_emerdiff_and_its_baseline_are_compared_on_the_same_images(result):
    table = result.compare("emerdiff", "bilinear")
    assert table["label"].tolist() == ["way before", "way after"]
    assert table["difference"].tolist() == pytest.approx([-2.25, 2.75])
    assert table["verdict"].tolist() == ["worse", "better"]
    assert set(drawn(forest_figure(table))) == set(table["label"])
    with pytest.raises(InputError, match="accepted: measures of one kind and one unit"):
        result.compare("emerdiff", "error")
    with pytest.raises(InputError, match="measure 'speed'"):
        result.compare("speed", "error")


def test_two_measures_of_one_unit_stand_in_one_figure(result):
    figure = study_figure(result, ["emerdiff", "bilinear"])
    assert [tuple(trace.y) for trace in figure.data] == [
        pytest.approx([20.25, 25.25]),
        pytest.approx([22.5, 22.5]),
    ]
    assert figure.layout.showlegend
    assert len({trace.marker.symbol for trace in figure.data}) == 2
    with pytest.raises(InputError, match="of the same units"):
        study_figure(result, ["emerdiff", "error"])


def test_a_table_of_gains_shows_the_first_variant_largest_gain_first():
    gains = pd.DataFrame(
        {
            "method": ["emerdiff", "emerdiff", "emerdiff fast"],
            "over": ["bilinear", "slic", "bilinear"],
            "K": ["12"] * 3,
            "mIoU difference": [0.01, 0.03, 0.5],
            "mIoU difference low": [-0.01, 0.02, 0.4],
            "mIoU difference high": [0.02, 0.04, 0.6],
            "it is": ["not resolved", "better", "better"],
            "images": [30] * 3,
        }
    )
    figure = forest_figure(gains)
    assert figure.layout.yaxis.ticktext == ("emerdiff over slic", "emerdiff over bilinear")
    assert drawn(figure)["emerdiff over slic"] == pytest.approx((3, 2, 4))
    assert "30 images" in figure.layout.title.text


def test_nothing_to_compare_is_refused(result):
    with pytest.raises(InputError, match="no differences"):
        forest_figure(replace(result, study=replace(result.study, directions=())))
    with pytest.raises(InputError, match="without verdict"):
        forest_figure(ROWS.drop(columns="verdict"))
    with pytest.raises(InputError, match="verdicts fine"):
        forest_figure(ROWS.assign(verdict="fine"))
