"""The command line, run in this process: files, exit codes, one-line messages."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.torch import load_file

from emerdiff_probe import batch as module
from emerdiff_probe.cli.options import read_settings
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.export import read_npz
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.sites import list_sites

FAST = ("--clusters", "3", "--steps", "10", "--modulate-at", "101", "--feature-draws", "1", "--device", "cpu")


def faults(errors):
    """Lines of standard error but for the one of results that explain less than their masks: a random model's may."""
    return [line for line in errors.splitlines() if " explain much less of the picture's colours than " not in line]


def test_segment_writes_the_documented_files(run, folder, image_file, tmp_path):
    other = tmp_path / "other.jpg"
    Image.fromarray(tiny.picture(40, 72)).save(other)
    code, out, err = run("segment", image_file, other, "--model", folder, *FAST, "--out", tmp_path / "out")
    assert (code, faults(err)) == (0, [])
    assert len(out.splitlines()) == 2
    for name, size in (("photo", (64, 64)), ("other", (40, 72))):
        place = tmp_path / "out" / name
        tensors = load_file(place / "segmentation.safetensors")
        summary = json.loads((place / "result.json").read_text())
        assert set(tensors) == {"low_resolution_masks", "responses", "mask_embeddings", "linkage"}
        assert tensors["low_resolution_masks"].ndim == 2
        assert not tensors["low_resolution_masks"].is_floating_point()
        assert tensors["mask_embeddings"].shape[0] == 3
        with Image.open(place / "labels.png") as labels, Image.open(place / "overlay.png") as overlay:
            assert np.array(labels).max() < 3
            assert labels.size == size[::-1]
            assert overlay.size == size[::-1]
        assert summary["masks"] == 3
        assert summary["configuration"]["modulation"]["modulate_at"] == 101
        assert summary["fingerprint"] == load_model(folder, device="cpu").fingerprint
        assert set(summary["seconds"]) >= {"invert", "modulate"}


def test_fast_takes_the_approximations_of_the_fast_mode(run, folder, image_file, tmp_path):
    code, _, err = run("segment", image_file, "--model", folder, "--fast", "--clusters", 2, "--out", tmp_path)
    assert (code, faults(err)) == (0, [])
    model = load_model(folder, device="cpu")
    assert Segmentation.load(tmp_path / "photo").config == EmerDiffConfig.fast(model, clusters=2)


def test_options_reach_the_configuration(run, folder, image_file, tmp_path):
    options = {
        "clusters": 2,
        "feature-timestep": 51,
        "feature-layer": "up8.cross1.query",
        "modulate-at": 101,
        "steps": 20,
        "strength": 7.5,
        "layer": "up8.self0.output",
        "placement": "before",
        "smoothing": 0.5,
        "prompt": "red car",
        "seed": 3,
    }
    flat = [text for name, value in options.items() for text in (f"--{name}", value)]
    out = tmp_path / "out"
    code, *_ = run(
        "segment", image_file, "--model", folder, *flat, "--injection", "none", "--precision", "float32", "--out", out
    )
    assert code == 0
    made = Segmentation.load(out / "photo").config
    expected = {name.replace("-", "_"): value for name, value in options.items()}
    expected["feature_timesteps"] = (expected.pop("feature_timestep"),)
    expected["feature_sites"] = (expected.pop("feature_layer"),)
    assert made.options() | expected == made.options()
    assert made.modulation.injection == ()


def test_the_number_of_masks_can_be_found(run, folder, image_file, tmp_path):
    out = tmp_path / "out"
    code, told, _ = run("segment", image_file, "--model", folder, "--clusters", "auto", *FAST[2:], "--out", out)
    assert code == 0
    result = Segmentation.load(out / "photo")
    assert result.config.clusters == "auto"
    assert f"{result.masks} masks" in told


BAD = {
    "missing image": (["nothing.png"], "nothing.png: no such image file"),
    "no clusters": (["IMAGE", "--clusters", "0"], "clusters 0"),
    "too many clusters": (["IMAGE", "--clusters", "5000"], "5000 clusters"),
    "unknown criterion": (
        ["IMAGE", "--clusters", "elbow"],
        "clusters 'elbow'; accepted: an integer, 1 or more, 'auto'",
    ),
    "strength": (["IMAGE", "--strength", "-1"], "strength -1"),
    "strength of NaN": (["IMAGE", "--strength", "nan"], "strength nan"),
    "timestep": (["IMAGE", "--modulate-at", "280"], "near ones: 201, 251, 301, 351"),
    "feature timestep": (["IMAGE", "--feature-timestep", "7"], "timestep 7"),
    "layer": (["IMAGE", "--layer", "up9.cross0"], "near ones"),
    "layer without attention": (["IMAGE", "--layer", "up8.resnet0.output"], "no attention layer"),
    "feature layer": (["IMAGE", "--feature-layer", "up8.cross0.key"], "text tokens"),
    "seed": (["IMAGE", "--seed", "-1"], "seed -1"),
    "device": (["IMAGE", "--device", "warp"], "accepted: cpu, cuda, mps"),
    "precision": (["IMAGE", "--precision", "float8"], "accepted: float32"),
    "model": (["IMAGE", "--model", "./no-model"], "no such model folder"),
    "same names": (["IMAGE", "elsewhere/photo.jpg"], "images with different names"),
    "no images": ([], "0 images and data None; accepted: one of both"),
    "images and data": (["IMAGE", "--data", "world:1"], "1 images and data 'world:1'; accepted: one of both"),
    "format": (["IMAGE", "--format", "png,geojson"], "accepted: png, coco, csv, npz, zarr"),
    "vocabulary": (["IMAGE", "--vocabulary", "nowhere.txt"], "nowhere.txt: no list of classes"),
    "list": (["@nowhere.txt"], "nowhere.txt: cannot be read as a list"),
    "strict": (["nothing.png", "IMAGE", "--strict"], "nothing.png: no such image file"),
    "none of several": (["nothing.png", "gone.png", "--strict"], "nothing.png: no such image file"),
    "workers": (["IMAGE", "--workers", "0"], "'--workers'"),  # the wording is typer's
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, folder, image_file, tmp_path, case):
    arguments, message = BAD[case]
    arguments = [image_file if text == "IMAGE" else text for text in arguments]
    code, out, err = run("segment", "--model", folder, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("emerdiff-probe: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: Image.new("RGB", (1, 1)).save(path),
        lambda path: Image.new("1", (8200, 8200)).save(path),
        lambda path: Image.new("1", (10000, 10000)).save(path),
    ],
    ids=["empty", "truncated", "1 x 1", "huge", "huger"],
)
def test_an_image_that_cannot_be_used_is_one_line_and_exit_code_2(run, folder, image_file, tmp_path, make):
    make(image_file)
    code, _, err = run("segment", image_file, "--model", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "photo.png" in err
    assert len(err.splitlines()) == 1


def test_pickled_weights_are_one_line_and_exit_code_2(run, folder, image_file, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    code, _, err = run("segment", image_file, "--model", copied, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "pickled" in err


@pytest.mark.parametrize("arguments", [("segment",), ("segment", "a.png", "--placement", "middle"), ("dance",)])
def test_a_wrong_call_is_exit_code_2(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert err


def test_a_result_folder_that_holds_something_else_is_left_alone_and_nothing_runs(run, image_file, tmp_path):
    (tmp_path / "photo").mkdir()
    (tmp_path / "photo" / "thesis.tex").write_text("years of work")
    first = tmp_path / "first.png"
    shutil.copy(image_file, first)
    # a model that is not there: it would be found first
    code, _, err = run("segment", first, image_file, "--model", "./no-model", *FAST, "--out", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "holds no segmentation" in err
    assert (tmp_path / "photo" / "thesis.tex").exists()
    assert not (tmp_path / "first").exists()


def test_results_that_are_finished_survive_an_interrupt(run, folder, image_file, tmp_path, monkeypatch):
    genuine, calls = module.segment, []

    def second_time_interrupted(*arguments, **settings):
        calls.append(True)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(*arguments, **settings)

    monkeypatch.setattr(module, "segment", second_time_interrupted)
    other = tmp_path / "other.png"
    shutil.copy(image_file, other)
    code, out, err = run("segment", image_file, other, "--model", folder, *FAST, "--out", tmp_path / "out")
    assert code == 130
    assert "finished results are kept" in err
    assert "Traceback" not in err
    assert Segmentation.load(tmp_path / "out" / "photo").masks == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo"]
    assert "photo" in out
    code, out, _ = run("segment", image_file, other, "--model", folder, *FAST, "--out", tmp_path / "out")
    before, after = out.splitlines()
    assert (code, len(calls)) == (0, 3)  # the second one only
    assert (before, "other: 3 masks" in after) == (f"{tmp_path / 'out' / 'photo'}: finished before", True)


def test_a_finished_result_counts_for_its_own_pixels_and_settings_only(run, folder, image_file, tmp_path):
    call = ("segment", image_file, "--model", folder, *FAST, "--out", tmp_path)
    assert "finished before" not in run(*call)[1]
    assert "finished before" in run(*call)[1]
    assert "finished before" not in run(*call, "--seed", 1)[1]
    assert "finished before" in run(*call, "--seed", 1)[1]
    assert "finished before" not in run(*call, "--seed", 1, "--precision", "bfloat16")[1]
    assert "finished before" not in run(*call, "--seed", 1)[1]
    Image.fromarray(255 - np.array(Image.open(image_file))).save(image_file)
    assert "finished before" not in run(*call, "--seed", 1)[1]
    (tmp_path / "photo" / "result.json").write_text("[]")
    assert "finished before" not in run(*call, "--seed", 1)[1]


def test_pictures_that_cannot_be_used_are_told_counted_and_skipped(run, folder, image_file, tmp_path):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    shutil.copy(image_file, photos / "good.png")
    shutil.copy(image_file, photos / "deep" / "good.png")
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes(image_file.read_bytes()[:200])
    out = tmp_path / "out"
    code, told, err = run("segment", photos, "--model", folder, *FAST, "--format", "coco,csv,npz,zarr", "--out", out)
    assert code == 0
    lines = err.splitlines()
    assert [line.split(" is ")[0] for line in lines[:2]] == ["cut", "empty"]
    assert lines[2] == "2 of 4 images skipped: cut, empty"
    assert Segmentation.load(out / "deep" / "good").masks == 3
    assert [line.split(":")[0] for line in told.splitlines()[2:]] == [
        str(out / name) for name in ("coco.json", "segments.csv", "labels.npz", "labels.zarr")
    ]
    assert read_npz(out / "labels.npz").keys() == {"good", "deep/good"}
    code, told, _ = run("segment", photos, "--model", folder, *FAST, "--out", out)
    assert (code, told.count("finished before")) == (0, 2)
    code, _, err = run("segment", photos, "--model", folder, *FAST, "--out", out, "--strict")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cut.png" in err
    for path in photos.rglob("good.png"):
        path.unlink()
    code, _, err = run("segment", photos, "--model", folder, *FAST, "--out", tmp_path / "other")
    assert code == 2
    assert "none of 2 pictures could be segmented; the first, cut: " in err.splitlines()[-1]
    assert not (tmp_path / "other").exists()


def test_pictures_come_from_lists_patterns_and_data_sets(run, folder, image_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(image_file, "my photo 1.png")
    (tmp_path / "list.txt").write_text("\ufeffphoto.png\n\n  my photo 1.png\n", encoding="utf-8")
    for arguments, names in (
        (["@list.txt"], ["my photo 1", "photo"]),
        (["*.png"], ["my photo 1", "photo"]),
        (["--data", "world:1"], ["scene-000000"]),
    ):
        shutil.rmtree("out", ignore_errors=True)
        code, _, err = run("segment", *arguments, "--model", folder, *FAST)
        assert (code, faults(err)) == (0, [])
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_name_that_is_too_long_costs_its_own_picture_only(run, folder, image_file, tmp_path):
    long = "n" * 251
    shutil.copy(image_file, tmp_path / f"{long}.png")  # as long as a file's name can be
    arguments = (tmp_path / f"{long}.png", "m" * 300, image_file, "--model", folder, *FAST, "--out", tmp_path / "out")
    code, out, err = run("segment", *arguments)
    assert code == 0
    assert "300 bytes; accepted: up to 255" in err
    assert len(faults(err)) == 2
    assert "photo: 3 masks" in out
    assert Segmentation.load(tmp_path / "out" / long).masks == 3


def test_names_that_the_terminal_cannot_print_end_nothing(run, folder, image_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = [tmp_path / "smile 😀.png", Path(os.fsdecode(os.fsencode(tmp_path) + b"/byte\xff.png"))]
    for path in odd:
        shutil.copy(image_file, path)
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    code, *_ = run("segment", *odd, "--model", folder, *FAST, "--format", "csv,coco,npz")
    for stream in streams.values():
        stream.flush()
    told, errors = (stream.buffer.getvalue() for stream in streams.values())
    assert (code, faults(errors.decode("ascii"))) == (0, [])
    assert rb"out/smile \U0001f600: 3 masks" in told
    assert rb"out/byte\udcff: 3 masks" in told


def test_segments_are_named_by_a_vocabulary(run, folder, image_file, tmp_path):
    (tmp_path / "words.txt").write_text("car\nred\n")
    arguments = ("--format", "csv", "--vocabulary", tmp_path / "words.txt", "--out", tmp_path / "out")
    code, *_ = run("segment", image_file, "--model", folder, *FAST, *arguments)
    assert code == 0
    _, *rows = (tmp_path / "out" / "segments.csv").read_text().splitlines()
    assert {row.split(",")[2] for row in rows} <= {"car", "red"}


def test_layers_prints_what_was_asked_for_as_json_and_csv(run, folder):
    asked = ("layers", "--model", folder, "--stage", "up", "--kind", "cross", "--resolution", "8", "--part", "query")
    sites = list_sites(load_model(folder, device="cpu"), stage="up", kind="cross", resolution=8, part="query")
    assert len(sites) == 3
    code, out, _ = run(*asked, "--format", "json")
    assert code == 0
    assert [(row["name"], row["path"], row["channels"]) for row in json.loads(out)] == [
        (site.name, site.path, site.channels) for site in sites
    ]
    _, out, _ = run(*asked, "--format", "csv")
    assert [row["name"] for row in csv.DictReader(out.splitlines())] == [site.name for site in sites]
    _, out, _ = run(*asked)
    assert out == f"{sites}\n"


@pytest.mark.parametrize(
    ("asked", "accepted"),
    [
        (("--stage", "upward"), "down, mid, up"),
        (("--kind", "attention"), "self, cross, joint"),
        (("--part", "q"), "query, key"),
        (("--resolution", "-8"), "0 or more"),
        (("--format", "xml"), "table, json, csv"),
    ],
)
def test_layers_refuses_filters_that_no_model_has_before_it_loads_one(run, asked, accepted):
    code, out, err = run("layers", "--model", "/no/such/folder", *asked)
    assert (code, out) == (2, "")
    assert accepted in err


def test_layers_prints_the_table_of_sites(run, folder):
    code, out, err = run("layers", "--model", folder)
    assert (code, err) == (0, "")
    sites = list_sites(load_model(folder, device="cpu"))
    assert out.rstrip("\n") == str(sites)
    assert "up8.cross0.query" in out


def test_world_writes_scenes_with_their_ground_truth(run, tmp_path):
    code, _, err = run("world", "--count", 2, "--seed", 5, "--height", 64, "--width", 96, "--out", tmp_path / "world")
    assert (code, err) == (0, "")
    captions = json.loads((tmp_path / "world" / "captions.json").read_text())
    files = {path.name for path in (tmp_path / "world").iterdir()}
    assert len(captions) == 2
    assert all(isinstance(caption, str) and caption for caption in captions.values())
    for name in captions:
        stem = name.removesuffix(".png")
        assert {f"{stem}.png", f"{stem}.parts.png", f"{stem}.objects.png"} <= files
        for kind in ("", ".parts", ".objects"):
            with Image.open(tmp_path / "world" / f"{stem}{kind}.png") as picture:
                assert picture.size == (96, 64)


def test_a_place_that_cannot_be_written_is_one_line_and_exit_code_2(run, tmp_path):
    out = tmp_path / ("n" * 300)  # a name that no file system takes
    code, _, errors = run("world", "--count", "1", "--out", out / "scenes")
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "too long" in errors


def test_world_follows_its_seed(run, tmp_path):
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        run("world", "--count", 1, "--seed", seed, "--height", 64, "--width", 64, "--out", tmp_path / name)
    contents = [
        b"".join(path.read_bytes() for path in sorted((tmp_path / name).glob("*.png")))
        for name in ("one", "same", "other")
    ]
    assert contents[0] == contents[1] != contents[2]


STUDY = ("study", "additivity", "--quick", "--steps", "10", "--modulate-at", "101", "--clusters", "3")


def test_study_ends_with_what_was_computed_and_reused(run, folder, tmp_path):
    arguments = (*STUDY, "--model", folder, "--device", "cpu", "--data", "world:1", "--store", tmp_path / "store")
    for computed, reused in ((4, 0), (0, 4)):
        code, out, _ = run(*arguments)
        assert code == 0
        expected = {"store": str(tmp_path / "store"), "computed": computed, "reused": reused, "images": 1, "skipped": 0}
        assert json.loads(out.splitlines()[-1]) == expected
    assert "Is the response to a union the sum of the responses?" in out


def test_a_study_of_the_fast_mode_is_another_study_with_other_numbers(run, folder, tmp_path):
    arguments = ("study", "strength", *STUDY[2:], "--model", folder, "--device", "cpu", "--data", "world:1")
    tables = []
    for name, options in (("exact", ()), ("fast", ("--fast",))):
        code, out, _ = run(*arguments, "--store", tmp_path / name, *options)
        assert code == 0
        tables.append(out[out.index("strength") : out.index("claim")])
    assert tables[0] != tables[1]
    assert "structure is not measured" in out
    code, _, err = run(*arguments, "--store", tmp_path / "fast")
    assert code == 2
    assert "there and is" in err
    code, _, err = run(*STUDY, "--model", folder, "--data", "world:1", "--store", tmp_path / "sums", "--fast")
    assert (code, len(err.splitlines()), (tmp_path / "sums").exists()) == (2, 1, False)
    assert "study additivity adds up images of single masks; accepted: an exact readout" in err


@pytest.mark.parametrize("verb", [("study", "strength"), ("evaluate",)])
def test_stores_at_addresses_are_refused_before_a_model_is_loaded(run, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*verb, "--store", "s3://bucket/store", "--model", "nowhere")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "accepted: a folder on this machine" in err
    assert not list(tmp_path.iterdir())


def test_a_study_that_cannot_run_is_one_line_and_exit_code_2(run, folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for arguments, message in (
        (("study", "layer"), "accepted: layers, feature_timestep"),
        ((*STUDY, "--data", "world:0", "--model", folder, "--store", tmp_path / "store"), "number of scenes 0"),
        ((*STUDY, "--data", "world:1", "--model", folder, "--store", tmp_path / "notes"), "holds no run"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert message in err


EVALUATE = ("evaluate", "--clusters", "3", "--steps", "10", "--modulate-at", "101", "--device", "cpu")


def test_evaluate_ends_with_the_same_json_when_it_is_run_again(run, folder, tmp_path):
    arguments = (*EVALUATE, "--data", "world:2", "--method", "emerdiff,bilinear,rgb-k-means", "--model", folder)
    outputs = []
    for _ in range(2):
        code, out, err = run(*arguments, "--protocol", "majority,concept", "--store", tmp_path / "store")
        assert (code, err) == (0, "")
        outputs.append(out)
    assert outputs[0] == outputs[1]
    made = json.loads(outputs[0].splitlines()[-1])
    assert (made["skipped"], made["images"], len(made["rows"])) == (0, 2, 6)
    assert {row["method"] for row in made["rows"]} == {"emerdiff", "bilinear", "rgb k-means"}
    assert all(f"| {row['miou']:.2f}" in outputs[0] for row in made["rows"])
    assert "<h3>" in (tmp_path / "store" / "gallery.html").read_text(encoding="utf-8")


def test_evaluate_scores_label_maps_of_other_tools_and_leaves_tables_for_programs(run, folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for sample in open_data("world:2", side=64):
        Image.fromarray(sample.labels.astype(np.uint8)).save(masks / f"{sample.name}.png")
    methods = f"slic,predictions:sam={masks},predictions:{masks}"
    arguments = (*EVALUATE, "--data", "world:2", "--method", methods, "--model", folder)
    code, out, err = run(*arguments, "--protocol", "majority,concept", "--store", tmp_path / "store")
    assert (code, err) == (0, "")
    rows = {(row["method"], row["protocol"]): row for row in json.loads(out.splitlines()[-1])["rows"]}
    assert len(rows) == 6
    row = rows["predictions:sam", "majority (oracle)"]
    assert (row["miou"], row["clusters"], row["seconds_per_image"]) == (100, None, None)
    assert f"{tmp_path / 'store' / 'tables'}: these tables as Markdown, CSV (unrounded) and LaTeX" in out
    scores = (tmp_path / "store" / "tables" / "scores.csv").read_text(encoding="utf-8")
    assert len(scores.splitlines()) == 7
    assert "predictions:masks" in (tmp_path / "store" / "tables" / "scores.tex").read_text(encoding="utf-8")


def test_evaluate_counts_broken_images_of_a_folder(run, folder, image_file, tmp_path):
    data = tmp_path / "data"
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
    for name in ("good", "broken"):
        shutil.copy(image_file, data / "images" / f"{name}.png")
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(data / "labels" / f"{name}.png")
    (data / "images" / "broken.png").write_bytes(image_file.read_bytes()[:100])
    (data / "classes.txt").write_text("off\non\n")
    arguments = (*EVALUATE, "--data", f"folder:{data}", "--method", "slic", "--model", folder)
    code, out, err = run(*arguments, "--store", tmp_path / "store")
    assert code == 0
    assert err.startswith("broken is skipped: ")
    made = json.loads(out.splitlines()[-1])
    assert (made["skipped"], made["images"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "emerdif"), "near ones: emerdiff"),
        (("--method", "predictions:nowhere"), "no such folder"),
        (("--protocol", "oracle"), "accepted: majority, hungarian-per-image"),
        (("--clusters", "many"), "clusters 'many'"),
        (("--clusters", "0"), "integers from 1"),
        (("--clusters", "auto", "--method", "slic"), "slic finds no number of segments"),
        (("--data", "moon:3"), "accepted: world, folder"),
        (("--data", "ade20k:nowhere"), "no such folder"),
        (("--steps", "0"), "steps 0"),
        (("--side", "0"), "'--side'"),
        (("--method", "unet", "--data", "world:1,first=500007"), "scene-500007; accepted: none"),
    ],
)
def test_an_evaluation_that_cannot_run_is_one_line_and_exit_code_2(run, folder, tmp_path, arguments, message):
    code, out, err = run(*EVALUATE, "--data", "world:1", "--model", folder, "--store", tmp_path / "s", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "s").exists()


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in ("segment", "evaluate", "study", "layers", "world", "train"))


@pytest.mark.parametrize("source", [(), ("--world", "--images", "pictures"), ("--images", "nowhere")])
def test_train_needs_one_source_of_pictures_that_is_there(run, tmp_path, source):
    code, _, err = run("train", *source, "--steps", 1, "--out", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "pipeline").exists()


def test_find_writes_masks_of_every_concept(run, folder, image_file, tmp_path):
    (tmp_path / "concepts.txt").write_text("red car\nCar\n\ncar\n")
    out = tmp_path / "found"
    call = ("find", f"@{tmp_path / 'concepts.txt'}", image_file, "missing.png", "--model", folder, *FAST)
    code, told, err = run(*call, "--clip", "pocket", "--out", out)
    assert code == 0
    assert "missing: skipped" in err
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["concept"] for line in lines] == ["red car", "Car", "car"]
    assert len({line["mask"] for line in lines}) == 3
    for line in lines:
        with Image.open(line["mask"]) as mask:
            pixels = np.array(mask)
        assert pixels.shape == (64, 64)
        assert set(np.unique(pixels)) <= {0, 255}
        assert (pixels > 0).mean() == pytest.approx(line["covers"], abs=1e-4)
    code, _, err = run("find", "car,car", image_file, "--model", folder)
    assert (code, "each once" in err) == (2, True)


def test_the_best_setting_of_a_study_is_printed_as_options_and_saved(run, folder, image_file, tmp_path):
    best = tmp_path / "best.toml"
    call = ("study", "modulate_at", "--quick", "--data", "world:2", "--model", folder, *FAST, "--fast")
    code, out, err = run(*call, "--store", tmp_path / "study", "--save-config", best)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("best by emerdiff"))
    *_, flag, value = line.split()
    assert flag == "--modulate-at"
    assert read_settings(best)["modulation"]["modulate_at"] == int(value)
    code, _, err = run("segment", image_file, "--config", best, "--model", folder, "--out", tmp_path / "out")
    assert code == 0, err
    assert Segmentation.load(tmp_path / "out" / "photo").config == EmerDiffConfig.from_dict(read_settings(best))
    code, _, err = run(*call, "--save-config", tmp_path / "best.yaml")
    assert (code, "ends in .toml or .json" in err) == (2, True)


def test_evaluate_takes_lists_and_each_combination_is_a_row(run, folder, tmp_path):
    call = ("evaluate", "--data", "world:1", "--method", "emerdiff,rgb k-means", "--model", folder, "--clusters", 3)
    settings = ("--modulate-at", "101", "--steps", 10, "--feature-draws", 1, "--fast", "--device", "cpu")
    code, out, err = run(*call, *settings, "--strength", "1,10", "--layer", "up8.cross[01]*", "--store", tmp_path / "s")
    assert code == 0, err
    names = {row["method"] for row in json.loads(out.splitlines()[-1])["rows"]}
    assert names == {"rgb k-means"} | {
        f"emerdiff fast, layer up8.cross{nth}.output, strength {strength}" for nth in (0, 1) for strength in (1, 10)
    }
    code, _, err = run(*call, *settings, "--steps", "10,20", "--store", tmp_path / "t")
    assert (code, "several values of steps" in err) == (2, True)


def test_calibrate_prints_options_and_saves_settings_that_every_verb_reads(run, folder, image_file, tmp_path):
    best, photos = tmp_path / "best.toml", tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(image_file.read_bytes())
    given = ("--clusters", 3, "--steps", 10, "--feature-draws", 1, "--placement", "after", "--injection", "cross")
    given += ("--layer", "up8.cross1.output", "--modulate-at", 101, "--device", "cpu", "--model", folder)
    call = ("calibrate", "--data", photos, *given, "--store", tmp_path / "store", "--save-config", best)
    code, out, err = run(*call, "--minutes", 0.02)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["found"], summary["pictures"] <= 2, set(summary["settings"])) == (False, True, {"strength"})
    assert "the preset: --strength 300" in out
    assert "the preset is kept unless" in out
    assert (tmp_path / "store" / "report.html").stat().st_size > 10**6
    code, _, err = run("segment", image_file, "--config", best, "--model", folder, "--out", tmp_path / "out")
    assert code == 0, err
    held = Segmentation.load(tmp_path / "out" / "photo").config
    assert held == EmerDiffConfig.from_dict(read_settings(best))
    assert held.modulation.modulate_at == 101
    assert held.readout == Readout(), "settings are found by the fast readout, and used as they were asked for"
    code, _, err = run("calibrate", "--data", photos, "--config", best, "--model", folder)
    assert (code, "nothing is left open" in err) == (2, True)
