"""Benchmarks of a day with a GPU and of training: laws hold, files are small, variants have equal time."""

import json

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import gpu, ship, training
from benchmarks.emerdiff import MODES
from emerdiff_probe.errors import InputError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.pocket.architecture import Parts

STEPS = 6
"""501, 401, 301, 201, 101, 1 of the grid of ten."""


def test_a_day_with_a_gpu_begins_with_the_laws_and_every_mode(folder, capsys):
    gpu.main(f"--model {folder} --device cpu --precision float32 --clusters 2 3 --steps 10 --modulate-at 501".split())
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in told] == ["device", *["law"] * 3, "ceiling", *["speed"] * 2 * len(MODES)]
    assert all(line["holds"] for line in told[1:4])
    three_masks = {line["mode"]: line for line in told if line.get("clusters") == 3}
    assert list(three_masks) == list(MODES)
    assert three_masks["reference"]["rows"] == 10 + STEPS * (1 + 2 * 3)
    assert three_masks["exact"]["label_agreement"] > 0.999
    assert all(0 < line["share_of_ceiling"] < 1 for line in three_masks.values())
    assert gpu.law("any", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), 0.02) == {
        "part": "law",
        "law": "any",
        "difference": pytest.approx(0.05),
        "holds": False,
    }


def test_what_no_minutes_are_left_for_is_told(folder, capsys):
    few = "--clusters 3 --steps 10 --modulate-at 501 --minutes 0"
    gpu.main(f"--model {folder} --device cpu --precision float32 {few}".split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"] == "no time"


@pytest.fixture
def pictures(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(10):
        Image.fromarray(tiny.picture(64, 64, number)).save(place / f"{number}.png")
    return place


def test_training_goes_on_and_its_weights_come_back_in_small_files(folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LARGEST_FILE", 200_000)
    out = tmp_path / "trained"
    told = gpu.go_on(pictures, str(folder), 9.0, out, torch.device("cpu"), steps=2, batch=2, pool=8)
    assert told["steps"] == 2
    assert len([name for name in told["weights"] if "unet" in name]) > 1
    layers = [size for name, size in told["weights"].items() if "text_encoder" not in name]
    assert max(layers) < 250_000  # the largest layer and a header
    assert load_model(out / "pipeline").name == str(out / "pipeline")


def test_the_pieces_of_a_step_are_timed(folder):
    table = training.costs(Parts.load(folder), batch=1, repeats=1)
    assert list(table["what"])[-2:] == ["a step of muon", "a step of adamw"]
    assert (table["cpu_seconds"] >= 0).all()


def test_variants_of_a_training_have_equal_time(folder, pictures, tmp_path, capsys):
    assert training.parse("optimizer=muon, batch=2, min_snr=null") == {"optimizer": "muon", "batch": 2, "min_snr": None}
    with pytest.raises(InputError, match=r"accepted: .*learning_rate"):
        training.parse("rate=1")
    given = ["--images", str(pictures), "--init", str(folder), "--out", str(tmp_path / "runs"), "--cpu-minutes", "0.02"]
    training.main([*given, "--variants", "batch=2; batch=2, optimizer=muon"])
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[0] for row in rows] == ["batch=2", "batch=2,"]
    assert all((tmp_path / "runs" / name / "figures.json").exists() for name in ("batch=2", "batch=2,optimizer=muon"))


def test_what_ships_has_figures_of_held_out_photographs_and_pictures_that_may_be_shown(folder, pictures, tmp_path):
    given = ["--pipeline", str(folder), "--held-out", str(pictures), "--steps", "2", "--out", str(tmp_path / "photo")]
    (tmp_path / "weak.md").write_text("- Everything.\n")
    ship.main([*given, "--history", "Random weights", "--weaknesses", str(tmp_path / "weak.md")])
    ship.main([*given, "--history", "Random weights again"])
    card = (tmp_path / "photo" / "README.md").read_text()
    assert "of 10 photographs that it never saw" in card.replace("\n", " ")
    assert "Random weights again" in card
    assert card.endswith("## Known weaknesses\n\n- Everything.\n")
    assert {path.name for path in (tmp_path / "photo" / "card").iterdir()} == {"reconstructions.jpg", "samples.jpg"}
    for name in ("unet", "vae"):
        weights = [
            load_file(place / name / "diffusion_pytorch_model.safetensors") for place in (folder, tmp_path / "photo")
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
