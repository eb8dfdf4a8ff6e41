"""Embeddings of CLIP: the value path against a hand computation, images of any shape, texts, and what is refused."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from transformers import CLIPTextModel

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.clip import Clip, before_last_block, load_clip, run_block, value_path
from emerdiff_probe.pocket.clip import save_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip") / "tiny"
    save_clip(*tiny.clip(), place)
    return place


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, device="cpu")


@torch.no_grad()
def hidden_states(clip, image):
    pixels = clip.pixels(image, clip.working_size(*image.shape[:2]))
    vision = clip.model.vision_model
    return vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return centred / deviation * norm.weight.numpy() + norm.bias.numpy()


def linear(x, layer):
    y = x @ layer.weight.numpy().T
    return y if layer.bias is None else y + layer.bias.numpy()


@torch.no_grad()
def test_value_path_is_the_hand_computation(clip):
    hidden = before_last_block(clip.model, hidden_states(clip, tiny.picture(32, 48)))
    block = clip.model.vision_model.encoder.layers[-1]
    by_hand = layer_norm(hidden[0].numpy(), block.layer_norm1)
    by_hand = linear(linear(by_hand, block.self_attn.v_proj), block.self_attn.out_proj)
    by_hand = linear(layer_norm(by_hand, clip.model.vision_model.post_layernorm), clip.model.visual_projection)
    np.testing.assert_allclose(value_path(clip.model, hidden)[0].numpy(), by_hand, atol=1e-5)
    embeddings = clip.patch_embeddings(tiny.picture(32, 48)).flatten(0, 1).numpy()
    np.testing.assert_allclose(embeddings, by_hand[1:] / np.linalg.norm(by_hand[1:], axis=1, keepdims=True), atol=1e-5)


@torch.no_grad()
def test_value_path_is_the_attention_output_of_a_token_that_attends_to_itself_alone(clip):
    """With one token softmax(QK) is 1, so that attention and value path agree."""
    model = clip.model
    block = model.vision_model.encoder.layers[-1]
    hidden = before_last_block(model, hidden_states(clip, tiny.picture(32, 32)))[:, 3:4]
    attended = block.self_attn(block.layer_norm1(hidden), attention_mask=None)[0]
    expected = model.visual_projection(model.vision_model.post_layernorm(attended))
    torch.testing.assert_close(value_path(model, hidden), expected)


@torch.no_grad()
def test_blocks_one_by_one_are_the_models_own_forward(clip):
    image = tiny.picture(32, 48)
    hidden = before_last_block(clip.model, hidden_states(clip, image))
    ours = run_block(clip.model.vision_model.encoder.layers[-1], hidden)
    pixels = clip.pixels(image, clip.working_size(32, 48))
    theirs = clip.model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(hidden, theirs)


@pytest.mark.parametrize(
    ("height", "width", "scale", "grid"), [(32, 32, 1, (4, 4)), (20, 60, 1, (4, 12)), (64, 40, 2, (13, 8))]
)
def test_images_of_any_shape_have_a_grid_of_unit_embeddings(clip, height, width, scale, grid):
    embeddings = clip.patch_embeddings(tiny.picture(height, width), scale=scale)
    assert embeddings.shape == (*grid, clip.model.config.projection_dim)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(grid))


def test_embeddings_of_texts_are_the_models_own_and_do_not_depend_on_their_neighbours(clip):
    texts = ["red car", "a red car on red", "car"]
    together = clip.text_embeddings(texts)
    for row, text in zip(together, texts, strict=True):
        ids = clip.tokenizer(text, return_tensors="pt").input_ids
        pooled = clip.model.text_model(input_ids=ids).pooler_output
        own = nn.functional.normalize(clip.model.text_projection(pooled), dim=-1)[0]
        torch.testing.assert_close(row, own)
        torch.testing.assert_close(row, clip.text_embeddings([text])[0])
    assert not torch.allclose(together[0], together[2])


def test_embeddings_of_images_are_the_models_own(clip):
    images = [tiny.picture(32, 32, seed) for seed in (0, 1)]
    pixels = clip.processor(images=images, return_tensors="pt")["pixel_values"]
    pooled = clip.model.vision_model(pixel_values=pixels).pooler_output
    expected = nn.functional.normalize(clip.model.visual_projection(pooled), dim=-1)
    torch.testing.assert_close(clip.image_embeddings(images), expected)


def test_a_saved_model_is_the_same_rounded_to_half_precision(folder, clip):
    model, tokenizer = tiny.clip()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(clip.model.state_dict()[key], value.half().float())
    assert clip.model.dtype == torch.float32
    assert clip.tokenizer("a red car").input_ids == tokenizer("a red car").input_ids


def test_the_fingerprint_is_of_the_weights(clip, folder):
    assert load_clip(folder, device="cpu").fingerprint == clip.fingerprint
    assert Clip(tiny.clip(seed=1)[0], clip.tokenizer, clip.processor).fingerprint != clip.fingerprint


@pytest.mark.parametrize(
    ("texts", "message"), [([], "accepted: one or more"), ([" "], "empty"), (["red car"] * 2 + ["car " * 30], "tokens")]
)
def test_texts_that_cannot_be_embedded(clip, texts, message):
    with pytest.raises(InputError, match=message):
        clip.text_embeddings(texts)


@pytest.mark.parametrize("scale", [0, 0.01, float("nan"), -1])
def test_scales_that_leave_no_patch(clip, scale):
    with pytest.raises(InputError, match="scale"):
        clip.patch_embeddings(tiny.picture(32, 32), scale=scale)


def test_other_models_are_refused(tmp_path, clip):
    with pytest.raises(ModelError, match="no such model folder"):
        load_clip(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_clip(tmp_path / "empty")
    with pytest.raises(ModelError, match="CLIPTextModel"):
        Clip(CLIPTextModel(clip.model.config.text_config), clip.tokenizer, clip.processor)


def test_weights_that_are_not_finite_or_not_there_are_refused(tmp_path):
    model, tokenizer = tiny.clip()
    with torch.no_grad():
        model.logit_scale.fill_(torch.nan)
    save_clip(model, tokenizer, tmp_path / "nan")
    with pytest.raises(ModelError, match="NaN"):
        load_clip(tmp_path / "nan")
    model, tokenizer = tiny.clip()
    save_clip(model, tokenizer, tmp_path / "text")
    model.text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(ModelError, match="text"):
        load_clip(tmp_path / "text")
