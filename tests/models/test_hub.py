"""Models of the hub: what its cache has, what is fetched, and a clear line where neither is there."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tiny
from huggingface_hub import constants

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.clip import load_clip
from emerdiff_probe.models.hub import fetch_folder
from emerdiff_probe.models.loading import find_source, load_model
from emerdiff_probe.pocket.clip import save_clip

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def remember(cache, name, folder, revision="main"):
    """A model in the cache as the hub's own client leaves it."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(COMMIT)


def test_without_the_hub_the_cache_is_read(folder, cache):
    remember(cache, "lab/tiny", folder)
    model = load_model("lab/tiny", device="cpu")
    assert (model.name, model.fingerprint) == ("lab/tiny", load_model(folder, device="cpu").fingerprint)
    clip_folder = cache / "clip"
    save_clip(*tiny.clip(), clip_folder)
    remember(cache, "lab/clip", clip_folder)
    assert load_clip("lab/clip", device="cpu").fingerprint == load_clip(clip_folder, device="cpu").fingerprint


def test_a_revision_is_said_in_either_way(folder, cache):
    remember(cache, "lab/tiny", folder, revision="v2")
    assert load_model("lab/tiny@v2", device="cpu").name == "lab/tiny@v2"
    load_model("lab/tiny", device="cpu", revision="v2")
    load_model("lab/tiny", device="cpu", revision=COMMIT)
    with pytest.raises(InputError, match="one revision"):
        load_model("lab/tiny@v2", device="cpu", revision="v1")
    for revision in (None, "v3"):
        with pytest.raises(ModelError, match=r"cannot load model 'lab/tiny'.*its cache"):
            load_model("lab/tiny", device="cpu", revision=revision)
    with pytest.raises(InputError, match="revisions of models on the hub"):
        load_model(folder, device="cpu", revision="v2")


@pytest.mark.parametrize("name", ["a b", "a//b", "-a", "@", "a@ b", "*", "a--b/.."])
def test_what_is_no_id_is_refused(name):
    with pytest.raises(ModelError, match="accepted"):
        load_model(name, device="cpu")


def test_of_the_hub_only_what_is_needed_is_fetched_and_after_the_small_files(folder, tmp_path, monkeypatch):
    remote = tmp_path / "remote"
    shutil.copytree(folder, remote)
    for component in ("unet", "vae", "text_encoder"):
        weights = next((remote / component).glob("*.safetensors"))
        shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
        shutil.copy(weights, weights.with_suffix(".non_ema.safetensors"))
        weights.with_suffix(".bin").touch()
    for extra in ("safety_checker", "vae_1_0"):
        (remote / extra).mkdir()
    for extra in (
        "safety_checker/model.safetensors",
        "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "picture.png",
    ):
        (remote / extra).touch()
    fetched, rounds = tmp_path / "fetched", []

    def download(name, revision, allow_patterns):
        rounds.append((name, revision))
        for file in (file for file in remote.rglob("*") if file.is_file()):
            relative = file.relative_to(remote)
            if any(relative.match(pattern) for pattern in allow_patterns):
                (fetched / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, fetched / relative)
        return str(fetched)

    class Api:
        def list_repo_files(self, name, revision):
            return [str(file.relative_to(remote)) for file in remote.rglob("*") if file.is_file()]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert fetch_folder("lab/tiny", "v2", "fp16") == fetched
    assert rounds == [("lab/tiny", "v2")] * 2
    weights = {str(file.relative_to(fetched)) for file in fetched.rglob("*.safetensors")}
    assert weights == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }
    assert not [file for file in fetched.rglob("*") if file.suffix in {".bin", ".ckpt", ".png"}]
    load_model(fetched, device="cpu")
    shutil.rmtree(fetched)
    scheduler = remote / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "flow_prediction"}))
    with pytest.raises(ModelError, match="flow_prediction"):
        load_model("lab/tiny", device="cpu")
    assert not list(fetched.rglob("*.safetensors"))


def test_a_file_is_never_a_folder_that_is_not_there_and_a_path_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.ckpt", "notes.txt"):
        Path(name).touch()
    with pytest.raises(ModelError, match=r"model\.ckpt: pickled weights can run code"):
        find_source("model.ckpt")
    with pytest.raises(ModelError, match=r"notes\.txt: a file"):
        find_source("notes.txt")
    for name in ("models/sd.safetensors", "sd.safetensors", "a/b/c", "~/nothing-here", "models\\sd", "./lab/tiny"):
        with pytest.raises(ModelError, match="no such model folder or file"):
            find_source(name)
    assert find_source("lab/tiny") is None
    Path("lab/tiny").mkdir(parents=True)
    assert find_source("lab/tiny") == Path("lab/tiny")
