import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster.vq import kmeans2

from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.things import KINDS
from emerdiff_probe.pocket.world import (
    FACTORS,
    LIGHTS,
    OBJECT_NAMES,
    PART_NAMES,
    PART_WORDS,
    STYLES,
    Factors,
    caption_vocabulary,
    counterfactual_pair,
    draw_clip,
    draw_closeups,
    draw_scene,
    write_world,
)

SEEDS = st.integers(0, 2**31 - 1)
LOOKS = ("palette", "light", "texture", "style")


def labels(scene):
    return np.stack([scene.parts, scene.objects, scene.instances]).astype(int)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, height=st.integers(16, 100), width=st.integers(16, 140))
def test_any_size_has_full_ground_truth(seed, height, width):
    scene = draw_scene(seed, height=height, width=width)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == scene.parts.dtype == scene.objects.dtype == np.uint8
    assert scene.instances.dtype == np.uint16
    assert scene.parts.shape == scene.objects.shape == scene.instances.shape == (height, width)
    assert scene.parts.max() < len(PART_NAMES)
    assert scene.objects.max() < len(OBJECT_NAMES)
    assert None not in vars(scene.factors).values()
    assert set(scene.caption.replace(",", "").split()) <= set(caption_vocabulary())


def test_same_seed_same_scene_and_other_seed_another():
    first, again, other = draw_scene(7), draw_scene(7), draw_scene(8)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(labels(first), labels(again))
    assert first.caption == again.caption
    assert not np.array_equal(first.parts, other.parts)


@pytest.mark.parametrize("seed", [1, 4, 9])
def test_a_scene_is_the_same_at_another_resolution(seed):
    small, large = draw_scene(seed, height=96, width=96), draw_scene(seed, height=192, width=192)
    assert np.mean(small.parts == large.parts[::2, ::2]) > 0.93


def test_a_wider_picture_sees_more_to_the_sides():
    square, wide = draw_scene(5, height=128, width=128), draw_scene(5, height=128, width=256)
    assert np.array_equal(square.parts, wide.parts[:, 64:-64])


def test_given_factors_are_kept_and_drawn_ones_repeat_the_scene():
    drawn = draw_scene(11, height=64, width=64)
    again = draw_scene(11, height=64, width=64, factors=drawn.factors)
    assert np.array_equal(drawn.image, again.image)
    night = draw_scene(11, height=64, width=64, factors=Factors(light="night"))
    assert night.factors == replace(drawn.factors, light="night")


@pytest.mark.parametrize("factor", FACTORS)
def test_a_counterfactual_changes_one_factor_only(factor):
    for seed in (2, 3):
        one, two = counterfactual_pair(seed, factor, height=128, width=128, factors=Factors(style="photo"))
        changed = {name for name in FACTORS if getattr(one.factors, name) != getattr(two.factors, name)}
        assert changed == {factor}
        assert not np.array_equal(one.image, two.image)
        assert np.array_equal(labels(one), labels(two)) == (factor in LOOKS)


def test_more_clutter_shows_more_things():
    def things(clutter):
        scenes = [draw_scene(seed, height=64, width=64, factors=Factors(clutter=clutter)) for seed in range(12)]
        return sum(len(np.unique(scene.instances)) for scene in scenes)

    assert things(1.0) > 1.5 * things(0.0)


@pytest.mark.parametrize("motion", ["camera", "object"])
def test_a_clip_keeps_its_instances_while_something_moves(motion):
    factors = Factors(size=0.5, clutter=0.5)
    clip = draw_clip(12, 4, motion=motion, height=96, width=96, factors=factors)
    assert len(clip) == 4
    kinds = {}
    for scene in clip:
        for instance in np.unique(scene.instances)[1:]:
            thing = set(np.unique(scene.objects[scene.instances == instance]))
            assert len(thing) == 1
            assert kinds.setdefault(instance, thing) == thing
    for before, after in pairwise(clip):
        assert not np.array_equal(before.instances, after.instances)


def test_an_object_clip_moves_one_thing_only():
    clip = draw_clip(12, 3, motion="object", height=96, width=96, factors=Factors(size=0.4, clutter=0.3))
    first, last = clip[0].instances, clip[-1].instances
    differ = first != last
    assert differ.any()
    assert np.all((first == 1)[differ] | (last == 1)[differ])


def test_flat_artwork_has_fewer_colours():
    def colours(style):
        image = draw_scene(6, factors=Factors(style=style, light="noon")).image
        return len(np.unique(image.reshape(-1, 3), axis=0))

    assert colours("flat") < 0.5 * colours("photo")


def test_every_class_appears():
    parts, objects = set(), set()
    for seed in range(300):
        scene = draw_scene(seed, height=64, width=64, factors=Factors(style="flat"))
        parts |= set(np.unique(scene.parts).tolist())
        objects |= set(np.unique(scene.objects).tolist())
    assert {PART_NAMES[label] for label in range(len(PART_NAMES)) if label not in parts} == set()
    assert {OBJECT_NAMES[label] for label in range(len(OBJECT_NAMES)) if label not in objects} == set()


def test_captions_name_only_parts_that_are_seen():
    described = 0
    for seed in range(40):
        scene = draw_scene(seed)
        seen = {PART_WORDS.get(PART_NAMES[label]) for label in np.unique(scene.parts)}
        named = set(scene.caption.replace(",", "").split()) & set(PART_WORDS.values())
        assert named <= seen
        described += bool(named)
    assert described > 5


def test_closeups_are_crops_whose_captions_name_only_what_is_in_them():
    for seed in range(12):
        whole, *closeups = draw_closeups(seed, [(0, 0, 96, 96), (8, 40, 32, 48), (60, 0, 16, 16)], height=96, width=96)
        scene = draw_scene(seed, height=96, width=96)
        for name in ("image", "parts", "objects", "instances", "caption"):
            assert np.array_equal(getattr(whole, name), getattr(scene, name))
        assert np.array_equal(closeups[0].image, scene.image[8:40, 40:88])
        for closeup in closeups:
            seen = {OBJECT_NAMES[index] for index in np.unique(closeup.objects)}
            nouns = {noun for kind in KINDS for noun in (kind.noun, kind.plural)}
            ours = {noun for kind in KINDS if kind.thing in seen for noun in (kind.noun, kind.plural)}
            grounds = {"grass", "sand", "snow", "field", "pavement", "water", "road", "sky"}
            said = set(closeup.caption.replace(",", "").split())
            assert said & nouns <= ours
            assert said & grounds <= seen
    for window in ((0, 0, 97, 8), (-1, 0, 8, 8), (0, 0, 0, 8)):
        with pytest.raises(InputError, match="window"):
            draw_closeups(0, [window], height=96, width=96)


def test_the_vocabulary_is_small_sorted_and_without_sides():
    words = caption_vocabulary()
    assert list(words) == sorted(set(words))
    assert len(words) < 200
    assert not {"left", "right"} & set(words)
    assert all(word == word.lower() for word in words)


def test_a_written_world_reads_back(tmp_path):
    paths = write_world(tmp_path / "world", 2, 40, height=48, width=64)
    captions = json.loads((tmp_path / "world" / "captions.json").read_text())
    classes = json.loads((tmp_path / "world" / "classes.json").read_text())
    assert classes == {"parts": list(PART_NAMES), "objects": list(OBJECT_NAMES)}
    assert [path.stem for path in paths] == list(captions)
    for seed, path in zip((40, 41), paths, strict=True):
        scene = draw_scene(seed, height=48, width=64)
        assert np.array_equal(np.asarray(Image.open(path)), scene.image)
        for name in ("parts", "objects"):
            picture = Image.open(path.with_suffix(f".{name}.png"))
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), getattr(scene, name))
        assert captions[path.stem] == scene.caption


@pytest.mark.parametrize(
    ("bad", "accepted"),
    [
        ({"style": "oil"}, list(STYLES)),
        ({"light": "dawn"}, list(LIGHTS)),
        ({"clutter": 1.5}, ["0..1"]),
        ({"size": float("nan")}, ["0..1"]),
        ({"palette": -1}, ["0 or more"]),
        ({"texture": True}, ["integer"]),
    ],
)
def test_a_bad_factor_says_what_is_accepted(bad, accepted):
    with pytest.raises(InputError, match=next(iter(bad))) as error:
        Factors(**bad)
    assert all(word in str(error.value) for word in accepted)


@pytest.mark.parametrize(
    "call",
    [
        lambda: draw_scene(-1),
        lambda: draw_scene(1.5),
        lambda: draw_scene(0, height=8),
        lambda: counterfactual_pair(0, "weather"),
        lambda: draw_clip(0, 0),
        lambda: draw_clip(0, 2, motion="spin"),
        lambda: write_world("nowhere", 0, 0),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InputError, match="accepted"):
        call()


def majority_miou(segment, scenes):
    """mIoU in percent over part classes, every predicted segment taking its majority class, one confusion matrix."""
    count = len(PART_NAMES)
    confusion = np.zeros((count, count), dtype=int)
    for scene in scenes:
        truth, predicted = scene.parts[::2, ::2].ravel().astype(int), segment(scene)
        table = np.bincount(predicted * count + truth, minlength=count**2).reshape(count, count)
        confusion += np.bincount(truth * count + table.argmax(1)[predicted], minlength=count**2).reshape(count, count)
    shared = np.diag(confusion)
    present = confusion.sum(1) > 0
    return 100 * np.mean((shared / np.maximum(confusion.sum(0) + confusion.sum(1) - shared, 1))[present])


def test_neither_colour_nor_position_tells_the_class():
    scenes = [draw_scene(50_000 + seed, height=128, width=128) for seed in range(24)]
    y, x = np.mgrid[0:128:2, 0:128:2]
    position = np.stack([y, x], axis=-1).reshape(-1, 2).astype(float)

    def by_colour(scene):
        return kmeans2(scene.image[::2, ::2].reshape(-1, 3).astype(float), 12, minit="++", rng=0)[1]

    def by_position(scene):
        return kmeans2(position, 12, minit="++", rng=0)[1]

    def by_pooled_truth(scene):
        blocks = scene.parts.reshape(16, 8, 16, 8).transpose(0, 2, 1, 3).reshape(256, 64)
        winners = np.array([np.bincount(block).argmax() for block in blocks])
        return winners.reshape(16, 16).repeat(4, 0).repeat(4, 1).ravel()

    colour, place, pooled = (majority_miou(way, scenes) for way in (by_colour, by_position, by_pooled_truth))
    assert colour < 33
    assert place < 31
    assert pooled > 50
    assert pooled > max(colour, place) + 20
