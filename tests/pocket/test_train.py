import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.pocket.architecture import MODULES, Architecture, Parts, build_tokenizer
from emerdiff_probe.pocket.data import (
    HELD_OUT_SEEDS,
    TRAIN_SEEDS,
    CloseupGrid,
    Pictures,
    PictureSource,
    SceneStore,
    draw_scenes,
    mirrored,
    read_folder,
)
from emerdiff_probe.pocket.examples import LEAST_SIDE, LatentPool, Scenes, open_windows
from emerdiff_probe.pocket.loop import Budget, Loop, Stop
from emerdiff_probe.pocket.optimizer import WEIGHT_DECAY, Optimizer
from emerdiff_probe.pocket.train import TrainConfig, loss_weights, train
from emerdiff_probe.pocket.world import caption_vocabulary, draw_closeups

TINY = Architecture(
    image_size=32,
    autoencoder_channels=(8, 16),
    denoiser_channels=(16, 16, 32),
    denoiser_heads=(2, 2, 2),
    text_width=16,
    text_layers=1,
    text_heads=2,
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        blocks = np.kron(random.integers(0, 255, (5, 5, 3)), np.ones((8, 8, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(tmp_path, images):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"{n}.png": f"a red car left of house {n}" for n in range(12)}))
    return TrainConfig(
        out=tmp_path / "run",
        images=images,
        captions=captions,
        architecture=TINY,
        device="cpu",
        steps=4,
        batch=2,
        autoencoder_batch=2,
        pool=8,
        reuse=1,  # some are encoded anew
        samples=2,
        sample_steps=2,
        log_every=2,
    )


def quiet(_: str) -> None:
    pass


def weights(pipeline: Path) -> dict[str, torch.Tensor]:
    files = sorted(pipeline.rglob("*.safetensors"))
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_trained_folder_loads_as_a_pipeline_and_denoises(config):
    folder = train(config, report=quiet)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert {module.dtype for module in (pipeline.vae, pipeline.unet, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red car", height=32, width=32, num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    assert np.isfinite(image).all()
    assert all(tensor.dtype == torch.float16 for tensor in weights(folder).values())


def test_saved_text_encoder_is_the_trained_one(tmp_path):
    parts = Parts.build(TINY, ["car"], seed=1)
    parts.save(tmp_path / "pipeline")
    loaded = Parts.load(tmp_path / "pipeline")
    ids = parts.tokenizer(["a car"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, loaded.tokenizer(["a car"], padding="max_length", return_tensors="pt").input_ids)
    for name in MODULES:
        for key, value in getattr(parts, name).state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(getattr(loaded, name).state_dict()[key], value.half().float())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_weight_of_the_denoiser_learns(config, bfloat16):
    train(replace(config, steps=6, bfloat16=bfloat16, caption_dropout=0.0), report=quiet)
    state = torch.load(config.out / "state" / "denoiser.pt", weights_only=True)
    names = [name for module in state["modules"].values() for name in module if not name.endswith("position_ids")]
    idle = [
        names[index] for index, kept in state["optimizer"]["adamw"]["state"].items() if not kept["exp_avg_sq"].any()
    ]
    # An attention's keys have no use for a bias: softmax takes it out again.
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_mixed_precision_trains_to_other_finite_weights(config, tmp_path):
    mixed = weights(train(replace(config, bfloat16=True, out=tmp_path / "mixed"), report=quiet))
    plain = weights(train(replace(config, bfloat16=False, out=tmp_path / "plain"), report=quiet))
    assert all(torch.isfinite(tensor).all() for tensor in mixed.values())
    assert any(not torch.equal(mixed[name], plain[name]) for name in mixed)


def test_run_logs_figures_and_writes_a_card(config):
    folder = train(config, report=quiet)
    figures = json.loads((config.out / "figures.json").read_text())
    assert figures["denoiser"]["steps"] == figures["autoencoder"]["steps"] == 4
    assert figures["held_out"] == 1
    card = (folder / "README.md").read_text()
    assert f"{figures['psnr']:.1f} dB" in card
    for name in ("autoencoder-loss.png", "denoiser-loss.png", "prompts.jpg", "reconstructions.jpg"):
        assert f"card/{name}" in card
        assert (folder / "card" / name).stat().st_size > 0
    losses = [json.loads(line) for line in (config.out / "losses.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in losses] == [
        (stage, step) for stage in ("autoencoder", "denoiser") for step in (2, 4)
    ]
    assert all(line["held_out"] > 0 for line in losses[1::2])
    assert figures["denoiser"]["held_out"] == losses[-1]["held_out"]


@pytest.mark.parametrize(
    ("stage", "optimizer"), [("autoencoder", "adamw"), ("denoiser", "adamw"), ("denoiser", "muon")]
)
def test_a_run_that_breaks_off_and_is_resumed_equals_an_uninterrupted_one(
    config, tmp_path, monkeypatch, stage, optimizer
):
    config = replace(config, optimizer=optimizer)
    whole = train(replace(config, out=tmp_path / "whole"), report=quiet)

    class KilledError(Exception):
        pass

    take_step = Loop._take_step

    def die_at_the_third(loop, *arguments):
        if loop.stage == stage and loop.step == 3:
            raise KilledError
        return take_step(loop, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_take_step", die_at_the_third)
        with pytest.raises(KilledError):
            train(replace(config, checkpoint_seconds=1e-9), report=quiet)
    assert torch.load(config.out / "state" / f"{stage}.pt", weights_only=True)["step"] == 3
    resumed = train(replace(config, resume=True), report=quiet)
    assert_equal_weights(whole, resumed)
    assert (tmp_path / "whole" / "losses.jsonl").read_text().count("\n") == 4


def test_session_that_ends_leaves_a_pipeline_and_resumes_to_the_same_end(config, tmp_path):
    whole = train(replace(config, out=tmp_path / "whole"), report=quiet)
    assert (train(replace(config, session_minutes=1e-9), report=quiet) / "model_index.json").exists()
    assert_equal_weights(whole, train(replace(config, resume=True), report=quiet))


def test_killed_process_resumes(config):
    script = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from emerdiff_probe.pocket.architecture import Architecture\n"
        "from emerdiff_probe.pocket.train import TrainConfig, train\n"
        f"architecture = {TINY!r}\n"
        "train(TrainConfig(out=Path(sys.argv[1]), images=Path(sys.argv[2]), captions=Path(sys.argv[3]), device='cpu',"
        " architecture=architecture, steps=10**6, autoencoder_steps=4, batch=2, autoencoder_batch=2, pool=8, samples=2,"
        " sample_steps=2, log_every=2, reuse=1, checkpoint_seconds=0.01))"
    )
    command = [sys.executable, "-c", script, str(config.out), str(config.images), str(config.captions)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = config.out / "state" / "denoiser.pt"
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    reached = torch.load(state, weights_only=True)["step"]
    train(replace(config, resume=True, autoencoder_steps=4, steps=reached + 2), report=quiet)
    assert torch.load(state, weights_only=True)["step"] == reached + 2


def stopped_after_three_steps(config, monkeypatch):
    """A run that was killed in its last stage, with two checkpoints of it."""
    take_step = Loop._take_step

    def die(loop, *arguments):
        if loop.stage == "denoiser" and loop.step == 3:
            raise KeyboardInterrupt
        return take_step(loop, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_take_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, checkpoint_seconds=1e-9), report=quiet)


def damage(path, way):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if way == "a folder":
        path.mkdir()
    else:
        half = len(content) // 2
        path.write_bytes({"emptied": b"", "cut": content[:half], "flipped": content, "text": b"{}"}[way])


@pytest.mark.parametrize("way", ["emptied", "cut", "flipped", "text", "a folder"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_goes_on_to_the_same_end(config, tmp_path, monkeypatch, way):
    whole = train(replace(config, out=tmp_path / "whole"), report=quiet)
    stopped_after_three_steps(config, monkeypatch)
    state = config.out / "state"
    assert sorted(path.name for path in state.iterdir()) == [
        *("autoencoder.before.pt", "autoencoder.pt", "denoiser.before.pt", "denoiser.pt")
    ]
    damage(state / "denoiser.pt", way)
    told = []
    resumed = train(replace(config, resume=True), report=told.append)
    assert any("denoiser.pt: damaged" in line for line in told)
    assert any("checkpoint before, step 2" in line for line in told)
    assert_equal_weights(whole, resumed)


def test_without_a_readable_checkpoint_the_way_out_is_told(config, monkeypatch):
    stopped_after_three_steps(config, monkeypatch)
    for name in ("denoiser.pt", "denoiser.before.pt"):
        damage(config.out / "state" / name, "cut")
    with pytest.raises(InputError, match=r"denoiser.pt: no checkpoint .* can be read; delete them"):
        train(replace(config, resume=True), report=quiet)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail")])
def test_a_full_disk_keeps_the_checkpoint_before(config, tmp_path, monkeypatch, error):
    whole, genuine = train(replace(config, out=tmp_path / "whole"), report=quiet), torch.save

    def full(state, path):
        if state["step"] == 3:
            path.write_bytes(b"half of it")
            raise error
        genuine(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match=r"step 3 cannot be written .*--resume"):
            train(replace(config, checkpoint_seconds=1e-9), report=quiet)
    assert not list(config.out.rglob("*.partial"))
    assert_equal_weights(whole, train(replace(config, resume=True), report=quiet))


@pytest.mark.parametrize("way", ["emptied", "cut", "text", "a folder"])
def test_a_damaged_configuration_is_named(config, monkeypatch, way):
    stopped_after_three_steps(config, monkeypatch)
    damage(config.out / "config.json", way)
    with pytest.raises(InputError, match=r"config\.json: damaged|was None there"):
        train(replace(config, resume=True), report=quiet)


def test_damaged_lines_of_the_log_are_dropped_and_told(config, tmp_path, monkeypatch):
    whole = train(replace(config, out=tmp_path / "whole"), report=quiet)
    stopped_after_three_steps(config, monkeypatch)
    log, told = config.out / "losses.jsonl", []
    log.write_bytes(log.read_bytes()[:-20] + b"\xff\n[]\n")
    assert_equal_weights(whole, train(replace(config, resume=True), report=told.append))
    assert any("2 damaged lines are dropped" in line for line in told)
    assert all(json.loads(line)["stage"] for line in log.read_text().splitlines())


def test_interrupt_saves_before_it_is_raised(config, monkeypatch):
    take_step = Loop._take_step

    def press_ctrl_c(loop, *arguments):
        if loop.step == 1:
            signal.raise_signal(signal.SIGINT)
        return take_step(loop, *arguments)

    monkeypatch.setattr(Loop, "_take_step", press_ctrl_c)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, report=quiet)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(config.out / "state" / "autoencoder.pt", weights_only=True)["step"] == 2
    assert (config.out / "pipeline" / "model_index.json").exists()


def test_init_goes_on_from_a_folder_and_may_skip_the_autoencoder(config, tmp_path):
    first = train(config, report=quiet)
    second = train(replace(config, out=tmp_path / "next", init=first, autoencoder_minutes=0), report=quiet)
    before, after = weights(first), weights(second)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("vae/"))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("unet/"))
    assert Parts.load(first).autoencoder.config.scaling_factor == Parts.load(second).autoencoder.config.scaling_factor


def test_folder_in_use_needs_resume_and_resume_needs_the_same_run(config):
    train(replace(config, session_minutes=1e-9), report=quiet)
    with pytest.raises(InputError, match="in use"):
        train(config, report=quiet)
    with pytest.raises(InputError, match="seed was 0"):
        train(replace(config, resume=True, seed=1), report=quiet)


def test_diverging_loss_is_an_error_that_says_what_to_do(config):
    with pytest.raises(ModelError, match="learning rate"):
        train(replace(config, autoencoder_learning_rate=1e30, warmup_steps=1, log_every=1), report=quiet)


def test_budgets():
    def config(**budget):
        return TrainConfig(out=Path("run"), world=True, **budget)

    assert config(minutes=10).budget("autoencoder") == Budget(minutes=3)
    assert config(minutes=10).budget("denoiser") == Budget(minutes=7)
    assert config(steps=5).budget("autoencoder") == config(steps=5).budget("denoiser") == Budget(steps=5)
    both = config(minutes=10, steps=5)
    assert both.budget("autoencoder") == Budget(minutes=3)
    assert both.budget("denoiser") == Budget(minutes=7, steps=5)
    assert config(autoencoder_minutes=2, denoiser_minutes=0).budget("denoiser").progress(step=0, seconds=0) == 1
    assert Budget(minutes=1, steps=10).progress(step=5, seconds=15) == 0.5
    assert Budget(minutes=1, steps=10).progress(step=5, seconds=45) == 0.75


def test_known_autoencoder_stays_while_all_else_starts_fresh(config, tmp_path):
    first = train(config, report=quiet)
    second = train(
        replace(config, out=tmp_path / "next", autoencoder_from=first, autoencoder_minutes=0, seed=1), report=quiet
    )
    assert str(tmp_path) not in (second / "vae" / "config.json").read_text()
    before, after = weights(first), weights(second)
    for module, stays in (("vae", True), ("unet", False), ("text_encoder", False)):
        same = [torch.equal(before[key], after[key]) for key in before if key.startswith(f"{module}/")]
        assert all(same) == stays
    with pytest.raises(ModelError, match="latent channels"):
        train(
            replace(
                config,
                out=tmp_path / "other",
                autoencoder_from=first,
                architecture=replace(TINY, latent_channels=TINY.latent_channels + 1),
            ),
            report=quiet,
        )


@pytest.mark.parametrize("min_snr", [None, 5.0])
def test_loss_weights_measure_the_same_error_whatever_is_predicted(min_snr):
    alphas = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)
    clean, noise, error = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # The same wrong image, told as an image, as noise and as a velocity.
    a, b = alphas.sqrt(), (1 - alphas).sqrt()
    noisy, wrong = a * clean + b * noise, clean + error
    wrong_noise = (noisy - a * wrong) / b
    errors = {
        "sample": wrong - clean,
        "epsilon": wrong_noise - noise,
        "v_prediction": (a * wrong_noise - b * wrong) - (a * noise - b * clean),
    }
    losses = [loss_weights(alphas, kind, min_snr) * errors[kind] ** 2 for kind in errors]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    ratio = alphas / (1 - alphas)
    torch.testing.assert_close(losses[0], error**2 * (ratio if min_snr is None else ratio.clamp(max=min_snr)))


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_every_prediction_type_lowers_its_loss(config, tmp_path, prediction_type):
    told = replace(
        config,
        out=tmp_path / prediction_type,
        architecture=replace(TINY, prediction_type=prediction_type),
        steps=30,
        autoencoder_steps=2,
        warmup_steps=1,
        log_every=10,
        batch=8,
        learning_rate=3e-3,
    )
    folder = train(told, report=quiet)
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert settings["prediction_type"] == prediction_type
    lines = [json.loads(line) for line in (told.out / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "denoiser"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": Path("folder")}, "not both"),
        ({"world": False}, "not neither"),
        ({"captions": Path("captions.json")}, "captions"),
        ({"steps": None}, "no budget"),
        ({"minutes": -1}, "minutes"),
        ({"batch": 0}, "batch"),
        ({"caption_dropout": 2}, "caption_dropout"),
        ({"autoencoder_minutes": 0}, "autoencoder"),
        ({"init": "pocket", "autoencoder_from": "pocket"}, "autoencoder_from"),
    ],
)
def test_configurations_that_cannot_work(given, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**({"out": Path("run"), "world": True, "steps": 1} | given))


def test_architectures_that_cannot_work():
    for given in (
        {"prediction_type": "score"},
        {"image_size": 100},
        {"denoiser_channels": (48, 96, 145)},
        {"denoiser_heads": (5, 6, 6)},
    ):
        with pytest.raises(InputError):
            Architecture(**given)


def test_unreadable_images_are_skipped_and_counted(images):
    (images / "broken.png").write_bytes(b"no image")
    whole = (images / "0.png").read_bytes()
    (images / "truncated.png").write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    assert len(read_folder(images, size=32, report=said.append)) == 12
    assert len(said) == 1
    assert "2 unreadable" in said[0]


def test_nothing_of_a_folder_is_dropped_in_silence(tmp_path):
    decomposed, composed = "cafe\u0301.png", "caf\u00e9.png"
    for name in (decomposed, "deep/boat.png", "nameless.png", ".ipynb_checkpoints/a.png", "._b.png", "clip.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(tiny.picture(32, 32)).save(tmp_path / name)
    (tmp_path / "photo.heic").write_bytes(b"")
    texts = {composed: "a café", "deep/boat": "a boat", "lost.png": "nothing", "clip": "a clip"}
    captions = tmp_path / "captions.json"
    captions.write_text("\ufeff" + json.dumps(texts), encoding="utf-8")
    said: list[str] = []
    pictures = read_folder(tmp_path, size=32, captions=captions, report=said.append)
    assert sorted(pictures.captions) == ["a boat", "a café", "a clip"]
    assert [line.removeprefix(f"{tmp_path}: skipped ") for line in said] == [
        "1 image(s) without a caption, the first nameless.png",
        "1 caption(s) without an image, the first lost.png",
        "1 file(s) of formats that are not taken, the first photo.heic",
    ]
    assert len(read_folder(tmp_path, size=32, report=said.append)) == 4


def test_folder_without_images_is_an_error(config, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no readable image"):
        train(replace(config, images=empty, captions=None), report=quiet)
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "missing", size=32)


def test_images_of_any_size_and_mode_become_squares(tmp_path):
    for number, (mode, size) in enumerate([("RGB", (70, 20)), ("L", (20, 20)), ("RGBA", (33, 64)), ("P", (40, 40))]):
        Image.new(mode, size).save(tmp_path / f"{number}.png")
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(tmp_path / "sixteen.png")
    pictures = read_folder(tmp_path, size=32)
    assert len(pictures) == 4 + 1 + 2 + 1 + 1
    assert pictures.images.shape[1:] == (32, 32, 3)
    assert (pictures.images[-1] == 255).all()


def test_caption_words_are_one_token_each_and_any_text_tokenizes():
    words = ["mother", "the", "path", "other", "a", "them", "père", "on", "onto"]
    tokenizer = build_tokenizer(words)
    for word in words:
        assert tokenizer.tokenize(word.upper()) == tokenizer.tokenize(word)
        assert len(tokenizer.tokenize(word)) == 1
    unknown = tokenizer.unk_token_id
    for text in ("zebra crossing!", "日本 ~ 12", "l'été"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids
        assert unknown not in ids
    assert build_tokenizer(reversed(words)).get_vocab() == tokenizer.get_vocab()


def test_words_of_the_world_are_one_token_each():
    tokenizer = build_tokenizer(caption_vocabulary())
    for word in caption_vocabulary():
        assert len(tokenizer.tokenize(word)) == 1


def test_default_sizes_have_the_sites_of_stable_diffusion_and_fit_the_package(tmp_path):
    parts = Parts.build(Architecture(), ["car"])
    block = parts.denoiser.up_blocks[1]
    assert len(block.attentions) == 3
    assert all(layer.transformer_blocks[0].attn2 is not None for layer in block.attentions)
    grids: list[tuple[int, ...]] = []
    hook = block.attentions[0].register_forward_hook(lambda _, inputs, __: grids.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        parts.denoiser(torch.zeros(1, 8, 32, 32), torch.tensor([1]), torch.zeros(1, 32, 128))
    hook.remove()
    assert grids == [(16, 16)]
    parts.save(tmp_path / "pipeline")
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 25e6


def test_scenes_are_drawn_beside_training_and_found_again(tmp_path):
    with SceneStore(tmp_path, count=20, size=32) as store:
        drawn = store.wait(20)
        alone = draw_scenes(TRAIN_SEEDS[:20], 32)
        assert drawn.captions == alone.captions
        assert (drawn.images == alone.images).all()
    with SceneStore(tmp_path, count=20, size=32) as store:
        assert store.ready == 20
    assert HELD_OUT_SEEDS.stop <= TRAIN_SEEDS.start


def test_closeups_are_kept_with_their_scenes_and_hold_for_what_they_show(tmp_path):
    grid = CloseupGrid(8, each=2)
    for attempt in ("drawn", "found again"):
        with SceneStore(tmp_path, count=18, size=64, grid=grid) as store:
            assert (store.ready == 18) == (attempt == "found again")
            pictures = store.wait(18)
        assert len(pictures.closeups) == 18
        for seed, own in zip(TRAIN_SEEDS, pictures.closeups, strict=False):
            places = [(one.top, one.left, one.side) for one in own]
            assert places == grid.windows(seed, 64)
            windows = [(top, left, side, side) for top, left, side in places]
            told = [scene.caption for scene in draw_closeups(seed, windows, height=64, width=64)]
            assert [one.caption for one in own] == told
    with SceneStore(tmp_path, count=18, size=64) as store:
        assert store.ready == 0  # without close-ups they are other pictures


def test_mirrored_captions_swap_sides():
    assert mirrored("a boat left of a house, right") == "a boat right of a house, left"


def test_kept_latents_of_drawn_scenes_are_those_that_would_be_encoded(config, tmp_path):
    world = replace(config, images=None, captions=None, world=True, scenes=3, held_out=0, workers=1)
    whole = train(replace(world, out=tmp_path / "whole"), report=quiet)
    told = []
    train(replace(world, steps=2, autoencoder_steps=4), report=told.append)
    path = config.out / "latents.safetensors"
    assert "latents: 6 encoded" in told
    damage(path, "cut")
    told.clear()
    train(replace(world, steps=3, autoencoder_steps=4, resume=True), report=told.append)
    assert "latents: 6 encoded" in told
    told.clear()
    train(replace(world, steps=4, autoencoder_steps=4, resume=True), report=told.append)
    assert "latents: 6 encoded" not in told
    assert len(load_file(path)["latents"]) == 8  # a whole chunk
    assert (whole / "model_index.json").exists()


class Alone:
    """What a loop asks of its run, over one weight of a layer."""

    def __init__(self, out, **settings):
        self.config = TrainConfig(
            out=out, world=True, **{"steps": 1, "autoencoder_minutes": 0, "init": "pocket"} | settings
        )
        self.stop, self.report, self.device, self.autocast = Stop(None), quiet, torch.device("cpu"), nullcontext


def rates_of(loop):
    return [json.loads(line)["rate"] for line in loop.log_path.read_text().splitlines()]


def test_the_rate_rises_stays_and_falls_in_every_stretch(tmp_path):
    settings = {"warmup_steps": 4, "log_every": 1, "checkpoint_seconds": 1e9}
    (tmp_path / "state").mkdir()

    def go(steps, **others):
        layer = torch.nn.Linear(2, 2)
        loop = Loop("denoiser", {"layer": layer}, Alone(tmp_path, steps=steps, **settings | others), peak=1.0)
        loop.run(lambda _: layer(torch.ones(2)).square().sum())
        return rates_of(loop)

    first = go(40)
    fall = [pytest.approx(0.01 + 0.99 * left / 40 / 0.15) for left in (5, 4, 3, 2, 1)]
    assert first == [0.25, 0.5, 0.75, *[1.0] * 32, *fall]
    assert go(40) == first  # spent: nothing more is done
    again = go(80)[40:]  # extended: up again from the weights and moments that are there, and as far as the end
    assert again == pytest.approx(first)


def test_averages_begin_at_given_weights_and_forget_fresh_ones(tmp_path):
    moved = {}
    for given in (False, True):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        out = tmp_path / str(given)
        out.mkdir()
        loop = Loop("denoiser", {"layer": layer}, Alone(out, steps=1), peak=1e5, given=given)
        loop.run(lambda _, layer=layer: layer(torch.ones(1)).sum())
        after = float(layer.weight.detach())
        moved[given] = (float(loop.averaged["layer"].weight) - 1) / (after - 1)
    # Of one step, a given average takes 1 / (window + 1), where a fresh one takes nine elevenths.
    assert moved == {False: pytest.approx(9 / 11), True: pytest.approx(9 / (10 + 9 * 200 + 1), rel=1e-3)}


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_muon_is_that_of_the_weights_as_matrices(order):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 1), torch.nn.Flatten(), torch.nn.Linear(20, 6)
    )
    layers.to(memory_format=order)
    alone = [layers[n].weight.detach().clone().flatten(1) for n in (0, 1, 3)]
    optimizer = Optimizer({"layers": layers}, "muon")
    for parameter in layers.parameters():
        parameter.grad = torch.randn(parameter.shape)
    expected = [torch.nn.Parameter(weight.clone()) for weight in alone]
    for weight, n in zip(expected, (0, 1, 3), strict=True):
        weight.grad = layers[n].weight.grad.flatten(1).clone()
    torch.optim.Muon(expected, lr=0.1, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw").step()
    optimizer.step(0.1)
    for weight, before, n in zip(expected, alone, (0, 1, 3), strict=True):
        # Newton and Schulz's iteration is in bfloat16, whose sums depend on the order of columns.
        torch.testing.assert_close(layers[n].weight.flatten(1), weight, atol=0.005, rtol=0)
        assert (layers[n].weight.flatten(1) - before).abs().max() > 0.02
    assert all(parameter.grad is None for parameter in layers.parameters())


def test_muon_leaves_outer_layers_and_vectors_to_adamw():
    parts = Parts.build(TINY, ["car"])
    optimizer = Optimizer({"denoiser": parts.denoiser, "text_encoder": parts.text_encoder}, "muon")
    taken = {id(weight) for weight in optimizer._matrices}
    left = {name for name, one in parts.denoiser.named_parameters() if id(one) not in taken and one.ndim > 1}
    assert left == {"conv_in.weight", "conv_out.weight"}
    assert [name for name, one in parts.text_encoder.named_parameters() if id(one) not in taken and one.ndim > 1] == [
        *("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    ]


@pytest.fixture
def ramps(tmp_path):
    """Pictures of different sizes in which red tells the column and green the row."""
    folder = tmp_path / "ramps"
    folder.mkdir()
    for number, (width, height) in enumerate([(200, 100), (60, 90), (100, 100), *[(40, 40)] * 17]):
        across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
        red, green = np.meshgrid(across, down)
        blue = np.full_like(red, 10 * number)
        Image.fromarray(np.stack([red, green, blue], -1).round().astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def test_windows_are_new_every_time_and_inside_their_pictures(ramps, tmp_path):
    said = []
    windows = open_windows(ramps, 32, cap=100, store=tmp_path, report=said.append)
    assert said == []
    assert [picture.shape for picture in windows.pictures[:3]] == [(40, 80, 3), (60, 40, 3), (40, 40, 3)]
    assert len(windows.held_out) == 2
    assert len(windows.pictures) == 18
    apart = set(windows.held_out.images[:, 16, 16, 2].tolist())
    sides, turned = [], 0
    for number in range(60):
        image, caption = windows.example(number)
        assert image.shape == (32, 32, 3)
        assert caption == ""
        assert (image == windows.example(number)[0]).all()
        assert image[16, 16, 2] not in apart
        red, green = image[16, :, 0].astype(float), image[:, 16, 1].astype(float)
        turned += red[-1] < red[0]
        if image[16, 16, 2] not in (0, 10):  # those that are square
            sides.append(abs(red[-1] - red[0]) / 255 * 32 / 31)
            assert abs(green[-1] - green[0]) == pytest.approx(abs(red[-1] - red[0]), abs=12)
    assert 15 < turned < 45
    assert LEAST_SIDE - 0.06 < min(sides) < 0.7 < 0.9 < max(sides) < 1.06
    crops = windows.crops(np.random.default_rng(0), 40, 8, all_drawn=True)
    assert crops.shape == (40, 8, 8, 3)
    spread = [abs(int(crop[4, -1, 0]) - int(crop[4, 0, 0])) / 255 for crop in crops if crop[4, 4, 2] not in (0, 10)]
    assert max(spread) < 0.3  # a quarter of an example
    with pytest.raises(InputError, match="pictures cannot be kept there"):
        open_windows(ramps, 32, cap=100, store=ramps / "00.png", report=quiet)


def test_the_first_steps_wait_for_as_many_scenes_as_they_need():
    drawn = Pictures(
        np.arange(10, dtype=np.uint8).repeat(8 * 8 * 3).reshape(10, 8, 8, 3), [f"{n} left" for n in range(10)]
    )
    asked = []

    def wait(count):
        asked.append(count)
        return drawn

    scenes = Scenes(PictureSource(10, lambda: drawn, wait, None, (), {}), mirror=True)
    random = np.random.default_rng(0)
    assert scenes.crops(random, 3, 4, all_drawn=False).shape == (3, 4, 4, 3)
    scenes.crops(random, 3, 4, all_drawn=True)
    assert asked == [6, 10]
    assert scenes.total == 20
    (image, caption), (turned, other) = scenes.example(7), scenes.example(17)
    assert (image[:, ::-1] == turned).all()
    assert (caption, other) == ("7 left", "7 right")


def test_a_pool_is_a_function_of_what_was_used(ramps, tmp_path):
    windows = open_windows(ramps, 8, cap=100, store=tmp_path, held_out=0, report=quiet)
    encoded = []

    def encode(images):
        encoded.append(len(images))
        return torch.from_numpy(images.copy()).float().mean((1, 2))[..., None, None]

    def make():
        return LatentPool(windows, encode, lambda texts: torch.zeros(len(texts), 3), capacity=8, reuse=3, chunk=2)

    walked = make()
    for used in range(0, 61, 4):
        latents, tokens = walked.at(used)
        assert latents.shape == (8, 3, 1, 1)
        assert tokens.shape == (8, 3)
    walked_there = latents.clone()
    assert len(encoded) == 4 + 60 // 6
    jumped, _ = make().at(60)
    assert torch.equal(jumped, walked_there)
    assert set(encoded) == {2}
    assert sorted(walked.numbers) == [10, 11, 12, 13]
