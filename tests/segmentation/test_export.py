"""Formats of other tools: they read back to the same labels, and pycocotools agrees."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import xarray as xr
from pycocotools.coco import COCO

from emerdiff_probe.errors import InputError
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.export import export, read_coco, read_npz, read_zarr, to_coco
from emerdiff_probe.segmentation.segment import segment

NAMES = {0: "sky", 2: "tree"}


@pytest.fixture(scope="module")
def results(model):
    config = EmerDiffConfig.for_model(model, clusters=4, modulate_at=301, steps=10)
    one = segment(model, tiny.picture(50, 81), config)
    other = segment(model, tiny.picture(40, 40, 3), config)
    lone = replace(other, labels=np.full_like(other.labels, 3))  # three masks without a pixel
    return [("my photo 1", one, NAMES), ("été", other, {}), ("lone", lone, {})]


def test_every_format_reads_back_to_the_same_labels(results, tmp_path):
    written = export(iter(results), tmp_path, ["png", "coco", "npz", "zarr", "csv"])
    assert [path.name for path in written] == ["coco.json", "labels.npz", "labels.zarr", "segments.csv"]
    coco, npz, zarr = read_coco(written[0]), read_npz(written[1]), read_zarr(written[2])
    for name, result, _ in results:
        for labels in (coco[name], npz[name], zarr[name]["labels"].values):
            assert np.array_equal(labels, result.labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)


def test_pycocotools_reads_what_is_written(results, tmp_path):
    export(results, tmp_path, ["coco"])
    coco = COCO(str(tmp_path / "coco.json"))
    assert json.loads((tmp_path / "coco.json").read_text()) == to_coco(results)
    for number, (name, result, names) in enumerate(results, start=1):
        (image,) = coco.loadImgs([number])
        assert (image["file_name"], image["height"], image["width"]) == (name, *result.labels.shape)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert {each["mask"] for each in found} == set(np.unique(result.labels).tolist())
        for each in found:
            mask = result.labels == each["mask"]
            rows, columns = np.nonzero(mask)
            assert np.array_equal(coco.annToMask(each).astype(bool), mask)
            assert each["area"] == mask.sum()
            size = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert each["bbox"] == [columns.min(), rows.min(), *size]
            (category,) = coco.loadCats([each["category_id"]])
            assert category["name"] == names.get(each["mask"], "segment")


def test_a_run_length_known_by_hand(results):
    result = replace(results[0][1], labels=np.array([[0, 1], [0, 1], [1, 1]], np.uint8))
    first, second = to_coco([("a", result, {})])["annotations"]
    assert first["segmentation"] == {"size": [3, 2], "counts": "024"}  # column by column: 0 out, 2 in, 4 out
    assert (first["area"], first["bbox"]) == (2, [0, 0, 1, 2])
    assert (second["area"], second["bbox"]) == (4, [0, 0, 2, 3])


def test_the_table_has_a_row_a_segment(results, tmp_path):
    export(results, tmp_path, ["csv"])
    with (tmp_path / "segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows].count("lone") == 1
    whole = rows[-1]
    assert [whole[name] for name in ("id", "name", "area", "left", "top", "width", "height")] == [
        *("3", "", "1600", "0", "0", "40", "40")
    ]
    mine = [row for row in rows if row["image"] == "my photo 1"]
    assert sum(int(row["area"]) for row in mine) == 50 * 81
    assert {row["name"] for row in mine} <= {"sky", "tree", ""}
    table = results[0][1].to_table(NAMES)
    assert table["area"].tolist() == [int(row["area"]) for row in mine]
    assert table["name"].tolist() == [row["name"] for row in mine]


def test_arrays_have_named_axes_and_settings(results):
    dataset = results[0][1].to_xarray()
    assert dataset["difference_maps"].dims == ("mask", "map_height", "map_width")
    assert dataset["labels"].dims == ("height", "width")
    assert json.loads(dataset.attrs["configuration"])["clusters"] == 4
    assert "difference_maps" not in replace(results[0][1], maps=None).to_xarray()
    assert results[0][1].to_coco("a", NAMES)["images"][0]["file_name"] == "a"


def test_what_is_not_known_or_not_ours_is_refused(results, tmp_path):
    with pytest.raises(InputError, match="accepted: png, coco, csv, npz, zarr"):
        export(results, tmp_path, ["geojson"])
    (tmp_path / "labels.zarr").mkdir()
    (tmp_path / "labels.zarr" / "thesis").write_text("years of work")
    with pytest.raises(InputError, match="no Zarr"):
        export(results, tmp_path, ["zarr"])
    assert (tmp_path / "labels.zarr" / "thesis").exists()
    for read in (read_coco, read_npz, read_zarr):
        (tmp_path / "broken").write_text("{")
        with pytest.raises(InputError, match="broken"):
            read(tmp_path / "broken")
    assert list(export([], tmp_path / "none", ["coco", "png"])) == [tmp_path / "none" / "coco.json"]
    assert read_coco(tmp_path / "none" / "coco.json") == {}
    assert isinstance(results[0][1].to_xarray(), xr.Dataset)
