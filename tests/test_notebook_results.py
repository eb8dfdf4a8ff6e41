"""What the notebooks show is measured by a command that goes on where it stopped and writes files that can be read."""

import json

import pandas as pd
import pytest

from benchmarks import notebook_results
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.catalogue import METHODS
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.studies.catalogue import STUDIES
from emerdiff_probe.studies.portable import read_result
from emerdiff_probe.viz.calibration import criterion_figure
from emerdiff_probe.viz.forest import forest_figure


@pytest.fixture
def measure(folder, tmp_path):
    """The command on the tiny model and two scenes, in a folder."""

    def run(only, **options):
        asked = {
            "scenes": 2,
            "model": str(folder),
            "quick": True,
            "clusters": 3,
            "labelled": 2,
            "device": "cpu",
        } | options
        notebook_results.main(only=only, data=None, out=tmp_path / "results", store=tmp_path / "store", **asked)
        return tmp_path / "results"

    return run


def test_a_study_becomes_a_file_that_says_of_what_it_is_and_is_not_measured_twice(measure, capsys):
    path = measure("modulate_at") / "modulate_at.zarr.zip"
    result = read_result(path)
    assert result.images == 2
    assert any("--only modulate_at" in note and "--scenes 2" in note for note in result.notes)
    first = path.read_bytes()
    measure("modulate_at")
    assert path.read_bytes() == first
    assert forest_figure(result).data


def test_an_evaluation_becomes_tables(measure, monkeypatch):
    plan = notebook_results.EvaluationPlan(lambda data, labelled: (EmerDiff(), METHODS["bilinear"]))
    monkeypatch.setitem(notebook_results.PLANS, "rivals", plan)
    place = measure("rivals") / "rivals"
    about = json.loads((place / "about.json").read_text())
    assert about["images"] == 2
    gains = pd.read_csv(place / "gains.csv")
    assert set(gains["over"]) == {"bilinear"}
    assert forest_figure(gains).data


def test_where_all_are_sharpened_emerdiff_is_too(measure, monkeypatch):
    monkeypatch.setattr(notebook_results, "RIVALS", ("bilinear", "slic"))
    place = measure("sharpened") / "sharpened"
    assert json.loads((place / "about.json").read_text())["configuration"]["sharpen"] == "wls"
    assert set(pd.read_csv(place / "gains.csv")["over"]) == {"bilinear + wls", "slic + wls"}


def test_a_calibration_becomes_tables_that_the_figure_takes_and_a_denoiser_of_random_weights_has_its_own(measure):
    settings = {}
    for name in ("calibration", "calibration_untrained"):
        place = measure(name) / name
        about = json.loads((place / "about.json").read_text())
        assert about["images"] == 2
        assert {"best", "chosen", "preset", "regret"} == set(about["regret"])
        assert len(pd.read_csv(place / "criteria.csv")) > 5
        settings[name] = pd.read_csv(place / "settings.csv")
    assert len(criterion_figure(settings).data) == 6
    assert not settings["calibration"]["gain"].equals(settings["calibration_untrained"]["gain"])


def test_results_have_names_of_studies_and_others_are_refused(measure):
    with pytest.raises(InputError, match="no results speed; accepted: layers"):
        measure("speed")
    others = {"rivals", "sharpened", "naming", "supervised", "calibration", "calibration_untrained"}
    assert set(notebook_results.PLANS) - others <= set(STUDIES)
