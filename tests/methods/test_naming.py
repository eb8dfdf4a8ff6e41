"""Namers as methods: by themselves, or inside the segments of any other method."""

import json

import numpy as np
import pytest
import tiny

from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
from emerdiff_probe.methods.catalogue import METHODS, configure, find_method, find_methods, identity
from emerdiff_probe.methods.naming import NAMERS, Naming, Words
from emerdiff_probe.models.clip import load_clip
from emerdiff_probe.naming.maskclip import PHOTOS, PLAIN, MaskClip
from emerdiff_probe.naming.vocabulary import Vocabulary
from emerdiff_probe.pocket.clip import save_clip
from emerdiff_probe.pocket.prompts import OBJECT_PHRASES, PART_PHRASES
from emerdiff_probe.segmentation.configuration import EmerDiffConfig


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip") / "tiny"
    save_clip(*tiny.clip(), place)
    return place


@pytest.fixture(scope="module")
def scenes():
    return open_data("world:2,labels=objects", side=64)


@pytest.fixture(scope="module")
def words(scenes, clip_folder):
    return Words(scenes, source=clip_folder, device="cpu")


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, steps=10, modulate_at=101, feature_timesteps=101, feature_draws=1)


def find(name, words):
    return find_method(name, words=words)


def test_a_namer_is_found_alone_and_with_any_method_that_has_no_names(words):
    assert find("MaskCLIP", words).name == "maskclip"
    assert find("maskclip+emerdiff-fast", words).masks is METHODS["emerdiff fast"]
    assert find("cross attention + RGB k-means", words).name == "cross-attention + rgb k-means"
    alone, inside = find_methods(["maskclip", "maskclip + diffcut"], lambda: None, words)
    assert (alone.counts, inside.counts) == ("own", METHODS["diffcut"].counts)
    with pytest.raises(InputError, match="maskclip: no words"):
        find_method("maskclip")
    with pytest.raises(InputError, match="no sharpening 'maskclip'"):
        find("emerdiff + maskclip", words)
    with pytest.raises(InputError, match="names already"):
        find("maskclip + cross-attention", words)


def test_words_are_those_of_the_world_of_the_classes_or_of_a_file(scenes, tmp_path):
    assert Words(scenes).vocabulary == Vocabulary.of(OBJECT_PHRASES)
    assert Words(open_data("world:1", side=64)).vocabulary == Vocabulary.of(PART_PHRASES)
    listed = tmp_path / "phrases.txt"
    listed.write_text("\n".join(f"{name}, some {name}" for name in reversed(scenes.classes)), encoding="utf-8")
    read = Words(scenes, listed).vocabulary
    assert read.classes == scenes.classes
    assert read.phrases[0] == (scenes.classes[0], f"some {scenes.classes[0]}")
    listed.write_text("sky\nunicorn\n", encoding="utf-8")
    with pytest.raises(InputError, match="unicorn"):
        _ = Words(scenes, listed).vocabulary


def test_prompts_speak_of_photos_where_the_clip_knows_them(clip_folder):
    clip = load_clip(clip_folder, device="cpu")
    assert clip.knows("red")
    assert not clip.knows("photo")
    words = Vocabulary.of(["car", "red"])
    assert MaskClip(clip, words).templates == PLAIN
    clip.knows = lambda word: word == "photo"
    assert MaskClip(clip, words).templates == PHOTOS


@pytest.mark.parametrize("namer", NAMERS)
def test_segments_take_the_class_of_their_mean_score_and_pixels_their_own(model, scenes, words, config, namer):
    probed = config.probe(model, scenes[0].pixels())
    alone, inside = (find(name, words).bind(model) for name in (namer, f"{namer} + rgb k-means"))
    scores = alone.scores(probed)
    assert np.array_equal(alone.segment(probed), scores.pixels(64, 64))
    segments = METHODS["rgb k-means"].segment(probed, 5)
    named = inside.segment(probed, 5)
    assert np.array_equal(named, scores.named(segments))
    assert len(np.unique(named)) > 1
    assert all(len(np.unique(named[segments == segment])) == 1 for segment in np.unique(segments))
    with pytest.raises(InputError, match="names classes"):
        alone.segment(probed, 5)


def test_maskclip_without_a_clip():
    with pytest.raises(InputError, match="without a CLIP"):
        Naming("maskclip", Vocabulary.of(["car"]))


def test_settings_reach_the_masks_and_an_identity_changes_with_every_part(words, scenes, config):
    inside = find("maskclip + emerdiff", words)
    assert configure(inside, config).masks.config == config
    other = Words(open_data("world:2", side=64), source=words.source, device="cpu")
    methods = [
        inside,
        configure(inside, config),
        find("maskclip", words),
        find("maskclip", other),
        find("cross-attention", words),
        find("maskclip + bilinear", words),
    ]
    assert len({json.dumps(identity(method), sort_keys=True) for method in methods}) == len(methods)


def test_named_segments_are_scored_by_their_names_and_against_the_namer_alone(model, scenes, words, config, tmp_path):
    names = ["maskclip", "maskclip + bilinear", "bilinear", "emerdiff"]
    evaluation = Evaluation(find_methods(names, lambda: None, words), (2, 3), config)
    report = make_report(run_evaluation(model, scenes, evaluation, store=tmp_path), ("majority", "concept"))
    protocols = {(row.line.cell.method, row.line.cell.clusters): row.miou.protocol for row in report.rows}
    assert protocols["maskclip", None] == protocols["maskclip + bilinear", 2] == "open vocabulary"
    assert protocols["bilinear", 2] != "open vocabulary"
    gains = {(gain.method, gain.over, gain.clusters) for gain in report.gains}
    assert {("maskclip + bilinear", "maskclip", clusters) for clusters in ((2,), (3,), (2, 3))} <= gains
    assert ("emerdiff", "bilinear", (2, 3)) in gains
    assert not any(method == "emerdiff" and over.startswith("maskclip") for method, over, _ in gains)
    again = run_evaluation(model, scenes, evaluation, store=tmp_path)
    assert again.run.computed == 0
