"""A study's figure shows the table's numbers, and no point without its interval."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import Interval
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.studies.study import Axis, Measure, Study
from emerdiff_probe.viz.figures import study_figure
from emerdiff_probe.viz.sites import sites_figure
from emerdiff_probe.viz.tables import FoldedTable


@pytest.fixture
def result(tmp_path):
    study = Study(
        name="made",
        question="How much?",
        axes={"strength": Axis((0.3, 3.0, 300.0), "", "strength"), "way": Axis(("before", "after"), "", "way")},
        measures={"value": Measure("a value", "m"), "other": Measure("another")},
        config=EmerDiffConfig(),
        measure=lambda *_: {},
    )
    rng = np.random.default_rng(0)
    values = {name: (("image", "strength", "way"), rng.normal(size=(6, 3, 2))) for name in study.measures}
    dataset = xr.Dataset(values, {name: list(axis.values) for name, axis in study.axes.items()})
    return StudyResult(study, dataset, tmp_path)


def test_every_point_is_the_tables_with_its_interval(result):
    figure, table = study_figure(result), result.table(["value"])
    assert [trace.name for trace in figure.data] == ["before", "after"]
    for trace in figure.data:
        rows = table[table["way"] == trace.name]
        assert list(trace.x) == [0.3, 3.0, 300.0]
        assert np.allclose(trace.y, rows["value"])
        assert np.allclose(trace.y + trace.error_y.array, rows["value high"])
        assert np.allclose(trace.y - trace.error_y.arrayminus, rows["value low"])
        assert (trace.error_y.array > 0).all()


def test_axes_have_titles_with_units_and_decades_are_logarithmic(result):
    figure = study_figure(result)
    assert figure.layout.yaxis.title.text == "a value (m)"
    assert figure.layout.xaxis.type == "log"
    assert "6 images" in figure.layout.title.text
    turned = study_figure(result, "other", along="way")
    assert turned.layout.xaxis.type == "category"
    assert [trace.name for trace in turned.data] == ["strength 0.3", "strength 3", "strength 300"]
    assert (
        len({trace.marker.color for trace in turned.data}) == len({trace.marker.symbol for trace in turned.data}) == 3
    )


def test_one_axis_needs_no_legend(result):
    study = replace(result.study, axes={"way": result.study.axes["way"]})
    figure = study_figure(StudyResult(study, result.dataset.isel(strength=0, drop=True), result.store))
    assert len(figure.data) == 1
    assert not figure.layout.showlegend


@pytest.mark.parametrize("bad", [{"measure": "speed"}, {"along": "value"}])
def test_unknown_measures_and_axes_are_refused(result, bad):
    with pytest.raises(InputError, match="accepted:"):
        study_figure(result, **bad)


def test_kinds_of_sites_are_told_apart_by_colour_and_marker_in_every_panel(result):
    names = ("up16.self0.query", "up16.cross0.query", "up16.cross0.output", "up16.self1.query")
    study = replace(result.study, axes={"site": Axis(names, "", "site")})
    values = {name: (("image", "site"), np.arange(24.0).reshape(6, 4)) for name in study.measures}
    made = StudyResult(study, xr.Dataset(values, {"site": list(names)}), result.store)
    figure = sites_figure(made, ["value", "other"])
    kinds = [trace.name for trace in figure.data if trace.showlegend]
    assert kinds == ["self query", "cross query", "cross output"]
    assert len(figure.data) == 2 * len(kinds)
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == len(kinds)
    held = {name: x for trace in figure.data[:3] for name, x in zip(trace.y, trace.x, strict=True)}
    assert held == pytest.approx(made.table(["value"]).set_index("site")["value"].to_dict())
    with pytest.raises(InputError, match="no axis site"):
        sites_figure(result)
    with pytest.raises(InputError, match="speed"):
        sites_figure(made, ["speed"])


def test_long_tables_are_folded_and_short_ones_are_not():
    frame = pd.DataFrame({"value": np.linspace(0, 1, 11)})
    assert "<details>" in FoldedTable(frame, "many")._repr_html_()
    assert "<details>" not in FoldedTable(frame[:10], "few")._repr_html_()
    assert "many" in repr(FoldedTable(frame, "many"))


def test_an_interval_is_written_with_its_bounds():
    assert f"{Interval(27.21, 24.1, 30):.1f}%" == "27.2 (24.1 to 30.0)%"


def test_bars_of_two_measures_stand_beside_each_other(result):
    measures = {"value": Measure("a value", "m"), "other": Measure("another", "m")}
    figure = study_figure(replace(result, study=replace(result.study, measures=measures)), ["value", "other"])
    first, second = (np.array(trace.x) for trace in figure.data[:2])
    assert (first < second).all()
    assert np.allclose(np.sqrt(first * second), [0.3, 3.0, 300.0]), "on a logarithmic axis"
