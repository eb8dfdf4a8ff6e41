"""Training of the pocket CLIP: what captions say, the contrast of several positives, and runs that resume."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.clip import load_clip
from emerdiff_probe.pocket.clip import (
    ClipArchitecture,
    ClipTrainConfig,
    _Captions,
    _Run,
    contrast,
    phrases_of,
    singular,
    train_clip,
    zero_shot_figures,
)
from emerdiff_probe.pocket.data import CloseupGrid, Pictures, PictureSource, draw_scenes
from emerdiff_probe.pocket.loop import Loop, Stop
from emerdiff_probe.pocket.world import caption_vocabulary

TINY = ClipArchitecture(
    image_size=32, patch_size=8, width=16, layers=2, heads=2, text_width=16, text_layers=1, text_heads=2, projection=16
)
COLOURS = {"red": (200, 30, 30), "green": (40, 170, 40), "blue": (40, 60, 200), "white": (240, 240, 240)}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def painted(top, bottom, random):
    """A picture of two colours with noise, and its caption."""
    image = np.empty((32, 32, 3))
    image[:16], image[16:] = COLOURS[top], COLOURS[bottom]
    image += random.normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), f"a {top} sky over a {bottom} field"


@pytest.fixture
def config(tmp_path):
    folder, random = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    captions = {}
    for number in range(64):
        image, captions[f"{number}.png"] = painted(*random.choice(list(COLOURS), 2), random)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return ClipTrainConfig(
        out=tmp_path / "run",
        images=folder,
        captions=tmp_path / "captions.json",
        architecture=TINY,
        device="cpu",
        steps=4,
        batch=16,
        log_every=2,
        warmup_steps=2,
        held_out=4,
        kept=0.5,
    )


def quiet(_: str) -> None:
    pass


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_trained_words_find_their_pictures_and_their_places(config):
    folder = train_clip(replace(config, steps=150, learning_rate=3e-3, ema_decay=0.95), report=quiet)
    clip = load_clip(folder, device="cpu")
    random = np.random.default_rng(1)
    pairs = [("red", "green"), ("blue", "white"), ("green", "blue"), ("white", "red")]
    images, captions = zip(*(painted(*pair, random) for pair in pairs), strict=True)
    similar = clip.text_embeddings(captions) @ clip.image_embeddings(images).T
    assert similar.argmax(1).tolist() == list(range(len(pairs)))
    lower = [f"{bottom} field" for _, bottom in pairs]
    upper = [f"{top} sky" for top, _ in pairs]
    right = 0
    for image, top, bottom in zip(images, upper, lower, strict=True):
        patches = clip.patch_embeddings(image) @ clip.text_embeddings([top, bottom]).T
        right += float(patches[:2, :, 0].mean() > patches[2:, :, 0].mean())
        right += float(patches[2:, :, 1].mean() > patches[:2, :, 1].mean())
    assert right >= 7  # of 8 words, the place of which no caption tells


def test_run_logs_figures_writes_a_card_and_half_precision_weights(config):
    folder = train_clip(config, report=quiet)
    figures = json.loads((config.out / "figures.json").read_text())
    assert figures["steps"] == 4
    assert figures["held_out"] == 4
    assert figures["pictures"] == 60
    card = (folder / "README.md").read_text()
    assert f"{figures['parameters']:,}" in card
    assert (folder / "card" / "loss.png").stat().st_size > 0
    floats = [tensor for tensor in load_file(folder / "model.safetensors").values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    lines = [json.loads(line) for line in (config.out / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]


@pytest.mark.parametrize("pictures", ["of a folder", "drawn, with close-ups"])
def test_a_run_that_breaks_off_and_is_resumed_equals_an_uninterrupted_one(pictures, config, tmp_path, monkeypatch):
    if pictures != "of a folder":
        drawn = {"images": None, "captions": None, "scenes": 8, "workers": 1, "cache": tmp_path / "cache"}
        config = replace(config, **drawn, batch=4)
    whole = train_clip(replace(config, out=tmp_path / "whole"), report=quiet)

    class KilledError(Exception):
        pass

    take_step = Loop._take_step

    def die_at_the_third(loop, *arguments):
        if loop.step == 3:
            raise KilledError
        return take_step(loop, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_take_step", die_at_the_third)
        with pytest.raises(KilledError):
            train_clip(replace(config, checkpoint_seconds=1e-9), report=quiet)
    assert torch.load(config.out / "state" / "clip.pt", weights_only=True)["step"] == 3
    assert_equal_weights(whole, train_clip(replace(config, resume=True), report=quiet))
    with pytest.raises(InputError, match="kept was"):
        train_clip(replace(config, resume=True, kept=0.7), report=quiet)


def test_what_a_step_sees_of_a_closeup_is_what_its_caption_tells_of(tmp_path):
    drawn = draw_scenes(range(6), 32, CloseupGrid(8, each=1))
    known = {f"{n} {m}": (n, one) for n, own in enumerate(drawn.closeups) for m, one in enumerate(own)}
    named = [[replace(one, caption=f"{n} {m}") for m, one in enumerate(own)] for n, own in enumerate(drawn.closeups)]
    source = PictureSource(6, lambda: drawn, lambda _: drawn, None, caption_vocabulary(), {})
    config = ClipTrainConfig(out=tmp_path, architecture=TINY, device="cpu", steps=1, batch=8, kept=0.5)
    run, counts = _Run(config, source, Stop(None), quiet), set()
    for seed in range(30):
        batch = run._draw(replace(drawn, closeups=named), np.random.default_rng(seed))
        counts.add(batch.seen.shape)
        if batch.whole:
            assert set(batch.captions) <= set(drawn.captions)
            continue
        for image, caption, seen in zip(batch.images, batch.captions, batch.seen, strict=True):
            index, one = known[caption]
            crop = drawn.images[index][one.top : one.top + one.side, one.left : one.left + one.side]
            rows, columns = np.divmod(seen, 4)
            inside = image[8 * rows.min() : 8 * rows.max() + 8, 8 * columns.min() : 8 * columns.max() + 8]
            assert len(set(seen)) == (one.side // 8) ** 2
            assert (inside == crop).all() or (inside == crop[:, ::-1]).all()
    assert counts == {(8, 8), (16, 4), (48, 1)}  # whole; two cells a side; one cell


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(config, tmp_path):
    first = train_clip(config, report=quiet)
    assert_equal_weights(first, train_clip(replace(config, out=tmp_path / "again"), report=quiet))
    with pytest.raises(AssertionError):
        assert_equal_weights(first, train_clip(replace(config, out=tmp_path / "other", seed=1), report=quiet))


def test_contrast_is_clips_own_loss_where_each_has_one_positive():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(5)
    ordinary = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(contrast(logits, torch.eye(5, dtype=torch.bool)), ordinary)


def test_contrast_does_not_push_away_what_is_true_and_leaves_out_what_is_true_of_nothing():
    positive = torch.tensor([[True, True, False], [False, False, True]])
    far = torch.tensor([[30.0, 30.0, 0.0], [0.0, 0.0, 30.0]])
    assert contrast(far, positive) < contrast(torch.tensor([[30.0, 0.0, 0.0], [0.0, 0.0, 30.0]]), positive)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    padded = contrast(torch.cat([logits, torch.full((2, 1), -1e4)], 1), torch.cat([positive, nothing], 1))
    torch.testing.assert_close(padded, contrast(logits, positive))


def test_phrases_of_a_caption():
    caption = (
        "a grey bus with grey windows and teal wheels on a road in front of four houses under a teal sky, at night"
    )
    assert phrases_of(caption) == [
        ("grey", "bus"), ("grey", "windows"), ("teal", "wheels"), ("road",), ("four", "houses"), ("teal", "sky"),
        ("night",),
    ]  # fmt: skip
    assert phrases_of("") == []


def test_what_a_caption_says_holds_in_either_number_and_with_fewer_words():
    captions = _Captions(caption_vocabulary())
    content = captions.content("a grey bus with teal wheels in front of four houses")
    true = [("bus",), ("buses",), ("grey", "bus"), ("wheels",), ("house",), ("four", "houses")]
    false = [("teal", "bus"), ("car",), ("three", "houses"), ("grey", "wheels")]
    held = captions.held(true + false, [content, captions.content("a green car")])
    assert held[0].tolist() == [True] * len(true) + [False] * len(false)
    assert held[1].tolist() == [phrase == ("car",) for phrase in true + false]


def test_drawn_phrases_are_of_the_captions_and_none_twice():
    captions = _Captions(caption_vocabulary())
    contents = [captions.content(text) for text in ("a grey bus", "two buses", "a red house", "a grey bus")]
    for seed in range(20):
        drawn = captions.draw(contents, np.random.default_rng(seed))
        assert captions.held(drawn, contents).any(0).all()
        keys = [frozenset(singular(word, captions.vocabulary) for word in phrase) for phrase in drawn]
        assert len(set(keys)) == len(keys)
    with pytest.raises(InputError, match="no word"):
        captions.draw([captions.content("")], np.random.default_rng(0))


def test_singulars_are_words_that_are_known():
    known = frozenset(caption_vocabulary())
    pairs = {"houses": "house", "buses": "bus", "bushes": "bush", "grass": "grass", "bus": "bus", "pines": "pine"}
    assert {word: singular(word, known) for word in pairs} == pairs


def test_figures_of_a_model_that_knows_and_of_one_that_does_not():
    class Oracle:
        """Embeds a text and a picture as the colour of the upper half."""

        def __init__(self, order):
            self.order = order

        def text_embeddings(self, texts, truncate=False):
            return torch.stack([self._axis(next(name for name in COLOURS if name in text)) for text in texts])

        def image_embeddings(self, images):
            nearest = [min(COLOURS, key=lambda name: np.abs(image[4, 4] - COLOURS[name]).sum()) for image in images]
            return torch.stack([self._axis(self.order[name]) for name in nearest])

        def _axis(self, name):
            return torch.eye(len(COLOURS))[list(COLOURS).index(name)]

    random = np.random.default_rng(0)
    names = list(COLOURS) * 6
    images = [painted(name, name, random)[0].astype(int) for name in names]
    pictures = Pictures(np.stack(images), [f"a {name}" for name in names])
    knows = zero_shot_figures(Oracle({name: name for name in COLOURS}), pictures)
    wrong = zero_shot_figures(Oracle(dict(zip(COLOURS, np.roll(list(COLOURS), 1), strict=True))), pictures)
    assert knows == {"retrieval": 1.0, "retrieval_chance": 0.25, "words": 4, "words_ap": 1.0, "words_ap_chance": 0.25}
    assert wrong["retrieval"] == 0
    assert wrong["words_ap"] < 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captions": None}, "captions"),
        ({"steps": None}, "no budget"),
        ({"kept": 0.0}, "kept"),
        ({"batch": 0}, "batch"),
        ({"minutes": -1.0}, "minutes"),
    ],
)
def test_configurations_that_cannot_work(config, given, message):
    with pytest.raises(InputError, match=message):
        replace(config, **given)


def test_architectures_that_cannot_work():
    for given in ({"image_size": 100}, {"width": 130}, {"text_width": 0}):
        with pytest.raises(InputError):
            ClipArchitecture(**given)


def test_the_default_model_fits_the_package(tmp_path):
    from emerdiff_probe.pocket.clip import save_clip

    save_clip(*ClipArchitecture().build(caption_vocabulary()), tmp_path / "model")
    assert sum(file.stat().st_size for file in (tmp_path / "model").iterdir()) < 8e6
