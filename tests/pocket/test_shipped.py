"""The models that ship: they load by name, are small, in half precision, and their cards show what they say."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.loading import SHIPPED, find_source, load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import CALIBRATED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_that_ships_is_small_and_has_a_card(name):
    folder = SHIPPED[name]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    weights = [load_file(file) for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 3
    assert all(tensor.dtype == torch.float16 for tensors in weights for tensor in tensors.values())
    card = (folder / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", card)
    assert shown
    assert all((folder / picture).is_file() for picture in shown)
    assert "Known weaknesses" in card
    model = load_model(name, device="cpu")
    assert (model.name, model.family, model.native_size) == (name, "pocket", 256)


def test_the_photo_model_is_pushed_where_calibration_found_and_its_atlas_where_cells_add_up():
    model = load_model("photo", device="cpu")
    calibrated, atlas = EmerDiffConfig.for_model(model), EmerDiffConfig.for_atlas(model)
    assert calibrated.modulation.layer == CALIBRATED["photo"]["layer"] == "down16.self0.output"
    assert atlas.modulation.layer == "up16.cross1.output"
    assert replace(calibrated, modulation=atlas.modulation) == atlas
    given = EmerDiffConfig.for_atlas(model, layer="up16.self0.output", strength=30.0)
    assert (given.modulation.layer, given.modulation.strength) == ("up16.self0.output", 30.0)
    pocket = load_model("pocket", device="cpu")
    assert EmerDiffConfig.for_model(pocket) == EmerDiffConfig.for_atlas(pocket) == atlas


def test_the_photographs_licence_is_told():
    assert "research and non-commercial use" in (SHIPPED["photo"] / "README.md").read_text(encoding="utf-8")


def test_a_shipped_model_that_is_not_there_is_no_id_of_the_hub(tmp_path):
    with pytest.raises(ModelError, match="no such model folder or file; accepted: 'gone', a path or a hub id"):
        find_source("gone", {"gone": tmp_path / "gone"})
