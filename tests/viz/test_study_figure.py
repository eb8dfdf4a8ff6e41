"""A study's figure shows the table's numbers, and no point without its interval."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.studies.study import Axis, Measure, Study
from emerdiff_probe.viz.figures import study_figure


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
    assert len(turned.data) == 3
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
