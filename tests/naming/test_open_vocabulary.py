"""Names of segments: vocabularies, score maps, MaskCLIP, attention to words, and finding a concept."""

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emerdiff_probe.errors import InputError, SiteError, TimestepError
from emerdiff_probe.models.clip import load_clip
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.naming.find import choose, find
from emerdiff_probe.naming.maskclip import MaskClip
from emerdiff_probe.naming.vocabulary import ScoreMap, Vocabulary
from emerdiff_probe.naming.words import ClassWords, WordAttention, token_positions
from emerdiff_probe.pocket.clip import save_clip
from emerdiff_probe.pocket.prompts import OBJECT_PHRASES, PART_PHRASES
from emerdiff_probe.pocket.world import OBJECT_NAMES, PART_NAMES, caption_vocabulary, draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import list_sites
from emerdiff_probe.trajectories.denoise import predict

WORDS = Vocabulary.of({"car": ("car", "red car"), "red": ("red",), "tree": ("tree",)})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip") / "tiny"
    save_clip(*tiny.clip(), place)
    return load_clip(place, device="cpu")


@pytest.fixture(scope="module", params=[(64, 64), (64, 96)], ids=["square", "wide"])
def probed(request, model):
    return ProbedImage(model, tiny.picture(*request.param), start=301, steps=10)


def unit(*shape, seed=0):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- Vocabularies --------------------------------------------------------------------------------------------------


def test_the_clip_that_ships_knows_where_things_are_and_the_true_outlines_help():
    maskclip = MaskClip(load_clip("pocket", device="cpu"), Vocabulary.of(OBJECT_PHRASES))
    alone, outlined = [], []
    for seed in range(20, 36):  # not seen in training
        scene = draw_scene(seed)
        scores = maskclip(scene.image)
        alone.append(np.mean(scores.pixels(256, 256) == scene.objects))
        outlined.append(np.mean(scores.named(scene.objects.astype(int)) == scene.objects))
    assert np.mean(alone) > 0.25  # of 28 classes
    assert np.mean(outlined) > np.mean(alone)


def test_classes_are_read_one_a_line_with_synonyms(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("house, cottage\n\n sign board ,sign\nroad\n", encoding="utf-8")
    assert Vocabulary.read(path) == Vocabulary.of(
        {"house": ("house", "cottage"), "sign board": ("sign board", "sign"), "road": ("road",)}
    )
    assert Vocabulary.of(["a", "b"]) == Vocabulary(("a", "b"), (("a",), ("b",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("house\nhouse", "house more than once"), ("", "none"), ("house,,cottage", "house"), (",", "''")],
)
def test_lists_that_are_no_vocabulary(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Vocabulary.read(path)
    with pytest.raises(InputError, match="no list of classes"):
        Vocabulary.read(tmp_path / "missing.txt")


def test_a_class_scores_as_its_best_phrase():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.5, 0.1, 0.7, 0.8]])
    assert WORDS.of_classes(scores).tolist() == pytest.approx(np.array([[0.9, 0.3, 0.2], [0.5, 0.7, 0.8]]))


def test_every_class_of_the_world_has_words_and_all_but_two_parts_have_words_of_captions():
    assert tuple(PART_PHRASES) == PART_NAMES
    assert tuple(OBJECT_PHRASES) == OBJECT_NAMES
    known = set(caption_vocabulary())

    def told(phrases):
        return {word for phrase in phrases for word in phrase.split()} <= known

    assert [name for name in PART_NAMES if not told(PART_PHRASES[name])] == ["snowcap", "road marking"]
    assert all(told(phrases) for phrases in OBJECT_PHRASES.values())
    every = [phrase for phrases in PART_PHRASES.values() for phrase in phrases]
    assert len(set(every)) == len(every), "two parts with one phrase cannot be told apart"
    Vocabulary.of(PART_PHRASES)


# --- Scores of cells, pixels and segments --------------------------------------------------------------------------


def test_segments_take_the_mean_of_their_pixels_by_hand():
    scores = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]])
    found = ScoreMap(scores, Vocabulary.of(["left", "right"]))
    labels = np.array([[0, 2], [0, 2]])
    means = found.segments(labels)
    np.testing.assert_allclose(means[[0, 2]], [[1, 0], [0, 2]])
    assert np.isnan(means[1]).all()
    assert found.named(labels).tolist() == [[0, 1], [0, 1]]
    assert found.names(labels) == {0: "left", 2: "right"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_naming_by_mean_scores_is_naming_by_the_mean_embedding(seed):
    """The paper averages embeddings inside masks: for one phrase a class the winner is the same."""
    patches, texts = unit(4, 5, 8, seed=seed), unit(3, 8, seed=seed + 1)
    labels = np.random.default_rng(seed).integers(0, 4, (16, 20))
    found = ScoreMap(patches @ texts.T, Vocabulary.of(["a", "b", "c"]))
    enlarged = nn.functional.interpolate(patches.permute(2, 0, 1)[None], size=(16, 20), mode="bilinear")[0]
    for segment_number in np.unique(labels):
        mean = enlarged[:, torch.from_numpy(labels == segment_number)].mean(1)
        cosines = nn.functional.cosine_similarity(texts, mean[None])
        assert int(found.segments(labels)[segment_number].argmax()) == int(cosines.argmax())


def test_renumbered_segments_have_the_same_names():
    found = ScoreMap(unit(4, 4, 4), WORDS)
    labels = np.random.default_rng(0).integers(0, 5, (12, 12))
    swapped = np.array([3, 0, 4, 1, 2])[labels]
    assert np.array_equal(found.named(labels), found.named(swapped))


def test_one_segment_a_cell_is_named_like_the_cells_and_coarse_labels_like_their_pixels():
    found = ScoreMap(unit(3, 4, 4), WORDS)
    cells = np.arange(12).reshape(3, 4)
    expected = WORDS.of_classes(found.scores).argmax(-1).numpy()
    assert np.array_equal(found.named(cells), expected)
    assert np.array_equal(found.pixels(3, 4), expected)
    coarse = np.array([[0, 1]])
    np.testing.assert_allclose(found.segments(coarse), found.segments(np.repeat(np.repeat(coarse, 3, 0), 2, 1)))


@pytest.mark.parametrize("scores", [torch.zeros(3, 4, 5), torch.zeros(4, 4), torch.full((3, 4, 4), torch.nan)])
def test_scores_that_are_no_map(scores):
    with pytest.raises(InputError, match="accepted"):
        ScoreMap(scores, WORDS)


@pytest.mark.parametrize("labels", [np.zeros((4, 4)), np.full((4, 4), -1), np.zeros(4, int)])
def test_labels_that_cannot_be_named(labels):
    with pytest.raises(InputError, match="labels"):
        ScoreMap(torch.zeros(4, 4, 4), WORDS).segments(labels)


# --- MaskCLIP ------------------------------------------------------------------------------------------------------


def test_maskclip_scores_are_cosines_of_patches_and_the_mean_of_the_prompts(clip):
    image = tiny.picture(32, 48)
    found = MaskClip(clip, WORDS, templates=("{}", "a {} car"))(image)
    prompts = clip.text_embeddings(["red car", "a red car car"])
    expected = clip.patch_embeddings(image) @ nn.functional.normalize(prompts.mean(0), dim=0)
    assert found.scores.shape == (4, 6, 4)
    torch.testing.assert_close(found.scores[..., 1], expected)
    assert float(found.scores.abs().max()) <= 1 + 1e-6


def test_maskclip_finds_a_text_that_is_made_from_a_patch(clip):
    image = tiny.picture(32, 32)
    namer = MaskClip(clip, Vocabulary.of(["car", "red"]))
    patches = clip.patch_embeddings(image)
    namer.__dict__["text_embeddings"] = torch.stack([patches[0, 0], patches[3, 2]])
    assert namer(image).pixels(4, 4)[0, 0] == 0
    assert namer(image).pixels(4, 4)[3, 2] == 1


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} {}",)])
def test_templates_that_hold_no_phrase(clip, templates):
    with pytest.raises(InputError, match="templates"):
        MaskClip(clip, WORDS, templates=templates)


# --- Attention to words --------------------------------------------------------------------------------------------


def test_places_of_words_and_all_their_occurrences(model):
    tokens = model.pipeline.tokenizer
    assert token_positions(model, "a red car", ["red", "red car"]) == [(2,), (2, 3)]
    assert token_positions(model, "red car red", ["red"]) == [(1, 3)]
    pieces = tokens("tree", add_special_tokens=False).input_ids
    assert len(pieces) > 1
    (places,) = token_positions(model, "a tree", ["tree"])
    assert [tokens("a tree").input_ids[place] for place in places] == pieces


@pytest.mark.parametrize(
    ("prompt", "words", "message"),
    [("a red car", ["tree"], "'tree' is not in"), ("a red car", [], "no words"), ("red " * 30, ["red"], "tokens")],
)
def test_words_that_cannot_be_read(model, prompt, words, message):
    with pytest.raises(InputError, match=message):
        token_positions(model, prompt, words)


def computed_by_diffusers(probed, site, timestep, conditioning):
    """Probabilities (head, cell, token) of one layer, as its own plain processor uses them."""
    layer = probed.model.denoiser.get_submodule(site.attention)
    seen, plain, processor = [], layer.get_attention_scores, layer.processor

    def watched(*args):
        seen.append(plain(*args))
        return seen[-1]

    layer.set_processor(AttnProcessor())
    layer.get_attention_scores = watched
    try:
        predict(probed.model, probed.trajectory.at(timestep), timestep, conditioning)
    finally:
        del layer.get_attention_scores
        layer.set_processor(processor)
    return seen[0]


def test_attention_is_that_of_diffusers_own_processor(probed):
    conditioning = probed.model.embed("a red car", *probed.image.shape[:2])
    site = list_sites(probed.model, kind="cross", part="query")[2]
    found = WordAttention((site.name,), (101, 1)).of_prompt(probed, "a red car", ["red", "red car"])
    height, width = probed.grid(site)
    assert found.scores.shape == (height, width, 2)
    mean = sum(computed_by_diffusers(probed, site, timestep, conditioning).mean(0) for timestep in (101, 1)) / 2
    torch.testing.assert_close(found.scores[..., 0].flatten(), mean[:, 2])
    torch.testing.assert_close(found.scores[..., 1].flatten(), mean[:, [2, 3]].mean(1))


def test_layers_and_timesteps_are_averaged_on_the_finest_grid(probed):
    sites = list_sites(probed.model, kind="cross", part="query")
    fine, coarse = sites[0], min(sites, key=lambda site: probed.grid(site))
    assert probed.grid(fine) != probed.grid(coarse)

    def attention(*layers):
        return WordAttention(tuple(site.name for site in layers), (1,)).of_prompt(probed, "a red car", ["car"]).scores

    enlarged = nn.functional.interpolate(
        attention(coarse).permute(2, 0, 1)[None], size=probed.grid(fine), mode="bilinear"
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(attention(fine, coarse), (attention(fine) + enlarged) / 2)
    every = WordAttention().of_prompt(probed, "a red car", ["car"]).scores
    named = WordAttention(tuple(site.name for site in sites), probed.trajectory.timesteps)
    assert torch.equal(every, named.of_prompt(probed, "a red car", ["car"]).scores)


def test_all_words_of_a_prompt_share_the_attention(probed):
    """Start, end and padding take the rest: the probabilities of all tokens sum to 1."""
    conditioning = probed.model.embed("a red car", *probed.image.shape[:2])
    tokens = conditioning.hidden_states.shape[1]
    everything = WordAttention(timesteps=(1,)).attention_to(probed, conditioning, [(n,) for n in range(tokens)])
    torch.testing.assert_close(everything.sum(-1), torch.ones(everything.shape[:2]))


def test_classes_side_by_side_do_not_depend_on_their_order(probed):
    forwards = {"car": ("car",), "red": ("red car", "red"), "tree": ("tree",)}
    backwards = dict(reversed(forwards.items()))
    attention = WordAttention(timesteps=(101,))
    one, other = (
        attention.of_classes(probed, ClassWords(probed.model, Vocabulary.of(listed)))
        for listed in (forwards, backwards)
    )
    assert one.scores.shape[-1] == 4
    scores = one.vocabulary.of_classes(one.scores), other.vocabulary.of_classes(other.scores).flip(-1)
    torch.testing.assert_close(*scores)
    assert float(one.scores.std()) > 0
    height, width = probed.image.shape[:2]
    assert np.array_equal(one.named(np.zeros((height, width), int)).shape, (height, width))


def test_a_class_list_may_be_longer_than_any_prompt(probed):
    names = [f"{first} {second} {third}" for first in "abcd" for second in "efgh" for third in "ij"]
    words = ClassWords(probed.model, Vocabulary.of(names))
    conditioning, positions = words.conditioning(*probed.image.shape[:2])
    assert conditioning.hidden_states.shape[1] > probed.model.pipeline.tokenizer.model_max_length
    assert positions[-1][-1] == conditioning.hidden_states.shape[1] - 1
    assert WordAttention(timesteps=(1,)).of_classes(probed, words).scores.shape[-1] == len(names)


def test_stable_diffusion_xl_has_words_too():
    model = load_model(tiny.sdxl(), device="cpu")
    probed = ProbedImage(model, tiny.picture(32, 32), start=1, steps=10)
    assert WordAttention().of_prompt(probed, "a red car", ["red"]).scores.shape[-1] == 1
    assert WordAttention().of_classes(probed, ClassWords(model, Vocabulary.of(["red", "car"]))).scores.shape[-1] == 2


def test_layers_and_timesteps_that_are_not_there(probed):
    ask = ("a red car", ["red"])
    with pytest.raises(SiteError):
        WordAttention(("up8.cross9.query",)).of_prompt(probed, *ask)
    with pytest.raises(InputError, match="no cross-attention"):
        WordAttention((list_sites(probed.model, kind="self")[0].name,)).of_prompt(probed, *ask)
    with pytest.raises(TimestepError):
        WordAttention(timesteps=(999,)).of_prompt(probed, *ask)
    with pytest.raises(InputError, match="layers"):
        WordAttention(())
    with pytest.raises(InputError, match="template"):
        ClassWords(probed.model, WORDS, template="no phrase")


# --- Finding a concept ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(64, 64), (64, 100)], ids=["square", "wide"])
def segmented(request, model):
    config = EmerDiffConfig.for_model(model, clusters=4, steps=10, modulate_at=301, sharpen="none")
    return segment(model, tiny.picture(*request.param), config)


def test_a_found_mask_is_the_pixels_that_answer_most_to_a_chosen_mask(model, segmented):
    found = find(model, segmented, "red car")
    assert found.mask.shape == found.score.shape == segmented.labels.shape
    assert np.array_equal(found.mask, found.chosen[segmented.labels])
    assert 0 < found.chosen.sum() < segmented.masks
    assert found.score[found.mask].min() >= 0.5 >= found.score[~found.mask].max()
    assert found.attention[found.chosen].min() > found.attention[~found.chosen].max()
    assert 0 < found.separation <= 1
    assert found.overlay().size == found.heatmap().size == segmented.labels.shape[::-1]


def test_an_image_gives_what_its_segmentation_gives(model, segmented):
    from_image = find(model, segmented.image, "car", segmented.config)
    from_segments = find(model, segmented, "car")
    assert np.array_equal(from_image.mask, from_segments.mask)
    assert np.array_equal(from_image.attention, from_segments.attention)
    with pytest.raises(InputError, match="configuration"):
        find(model, segmented, "car", segmented.config.change(clusters=5))


def test_a_concept_must_be_in_its_prompt(model, segmented):
    assert find(model, segmented, "car", prompt="a red car").concept == "car"
    with pytest.raises(InputError, match="not in the prompt"):
        find(model, segmented, "tree", prompt="a red car")


def test_a_clip_chooses_the_masks_in_the_place_of_attention(model, segmented, clip):
    found = find(model, segmented, "car", clip=clip)
    scores = MaskClip(clip, Vocabulary.of(["car"]))(segmented.image)
    assert np.array_equal(found.attention, scores.segments(segmented.low_resolution_masks)[:, 0])
    assert found.attention[found.chosen].min() > found.attention[~found.chosen].max()
    assert np.array_equal(found.mask, found.chosen[segmented.labels])
    with pytest.raises(InputError, match="one or the other"):
        find(model, segmented, "car", clip=clip, prompt="a car")


def test_the_choice_is_the_one_that_explains_most_of_the_variance_over_cells():
    values, cells = np.array([0.1, 0.9, 0.12, 0.8, 0.3]), np.array([50, 20, 60, 10, 40])
    chosen, share = choose(values, cells)
    per_cell = np.repeat(values, cells)

    def explained(threshold):
        inside = per_cell > threshold
        within = inside.mean() * per_cell[inside].var() + (~inside).mean() * per_cell[~inside].var()
        return 1 - within / per_cell.var()

    best = max(np.sort(values)[:-1], key=explained)
    assert np.array_equal(chosen, values > best)
    assert share == pytest.approx(explained(best))
    assert choose(np.ones(3), np.array([1, 2, 3]))[0].tolist() == [False] * 3
    assert choose(np.array([0.0, 1.0]), np.array([3, 1]))[1] == pytest.approx(1)
