"""A result as one file: the same numbers, the same bytes, and no surprise from a file that is something else."""

import numpy as np
import pytest
import xarray as xr
import zarr.storage

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.portable import read_result, write_result
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study


@pytest.fixture
def result(tmp_path):
    study = Study(
        name="made",
        question="How much?",
        axes={"way": Axis(("before", "after"), "", "way"), "strength": Axis((0.5, 3.0))},
        measures={"emerdiff": Measure("mIoU", "%", "confusion", True), "other": Measure("another")},
        config=EmerDiffConfig(),
        measure=lambda *_: {},
        directions=(Direction("after beats before", "emerdiff", {"way": "after"}, {"way": "before"}),),
        left_out={"third": "no labels"},
    )
    rng = np.random.default_rng(0)
    values = {
        "emerdiff": (
            ("image", "way", "strength", "true_class", "assigned_class"),
            rng.integers(0, 9, (6, 2, 2, 3, 3)).astype(np.int32),
        ),
        "other": (("image", "way", "strength"), rng.normal(size=(6, 2, 2))),
    }
    names = {"way": ["before", "after"], "strength": [0.5, 3.0], "image": [f"scene {n}" for n in range(6)]}
    names = {name: np.array(texts, object if name != "strength" else float) for name, texts in names.items()}
    return StudyResult(study, xr.Dataset(values, names), tmp_path, 3, 2, {"scene 9": "damaged"}, ("drawn scenes",))


def test_what_is_read_says_what_was_written(result, tmp_path):
    path = write_result(result, tmp_path / "made.zarr.zip", about={"model": "pocket"})
    read = read_result(path)
    assert read.table().equals(result.table())
    assert read.verdicts().equals(result.verdicts())
    assert read.study.identity() == result.study.identity()
    assert read.skipped == result.skipped
    assert read.notes == ("drawn scenes", "model: pocket")
    assert read.study.left_out == result.study.left_out
    assert list(read.dataset["image"].values) == list(result.dataset["image"].values)


def test_the_same_result_gives_the_same_bytes_as_one_zarr_that_others_open(result, tmp_path):
    one, other = (write_result(result, tmp_path / name) for name in ("one.zarr.zip", "other.zarr.zip"))
    assert one.read_bytes() == other.read_bytes()
    assert len(one.read_bytes()) < 20_000
    with zarr.storage.ZipStore(one, mode="r") as store:
        assert xr.open_zarr(store, consolidated=False)["other"].shape == (6, 2, 2)


def test_another_file_is_refused(result, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_result(tmp_path / "none.zarr.zip")
    (tmp_path / "text.zarr.zip").write_text("hello")
    with pytest.raises(InputError, match="no zipped Zarr"):
        read_result(tmp_path / "text.zarr.zip")
