"""Conditions: what a denoiser is told besides latent, timestep and text is refused by name."""

import json
import shutil

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.loading import load_model


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def with_denoiser(**settings):
    pipeline = tiny.pocket()
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, **settings)
    return pipeline


CONDITIONS = [
    ({"class_embed_type": "timestep"}, "class or an image embedding .timestep"),
    ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8}, "projection.*unCLIP"),
    ({"class_embed_type": "identity"}, "identity"),
    ({"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 8}, "simple_projection"),
    ({"num_class_embeds": 10}, "10 classes"),
    ({"encoder_hid_dim": 16}, "text_proj"),
    ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"}, "image_proj"),
    ({"time_cond_proj_dim": 16}, "guidance scale"),
    ({"attention_type": "gated"}, "GLIGEN"),
    ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "told 'text'"),
    ({"out_channels": 8}, "makes 8 channels of 4"),
    ({"sample_size": (16, 32)}, "sample_size"),
    ({"sample_size": None}, "sample_size None"),
]


@pytest.mark.parametrize(("settings", "message"), CONDITIONS, ids=str)
def test_a_condition_that_we_do_not_tell_is_refused_by_name(settings, message):
    with pytest.raises(ModelError, match=rf"{message}.*accepted"):
        load_model(with_denoiser(**settings), device="cpu")


@pytest.mark.parametrize(("settings", "message"), CONDITIONS, ids=str)
def test_it_is_refused_before_weights_are_read(settings, message, tmp_path, monkeypatch):
    with_denoiser(**settings).save_pretrained(tmp_path / "saved")
    monkeypatch.setattr("emerdiff_probe.models.folders._load_weights", None)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "saved", device="cpu")


@pytest.mark.parametrize("size", [[16, 16], (16, 16), 16])
def test_a_square_may_be_given_as_two_sides(size):
    assert load_model(with_denoiser(sample_size=size), device="cpu").native_size == 64


def test_the_refiner_is_refused_by_its_five_numbers():
    pipeline = tiny.sdxl()
    pipeline.unet = UNet2DConditionModel.from_config(
        pipeline.unet.config, projection_class_embeddings_input_dim=5 * 8 + 32
    )
    with pytest.raises(ModelError, match=r"told 5 numbers.*refiner"):
        load_model(pipeline, device="cpu")
    pipeline = tiny.sdxl()
    pipeline.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(ModelError, match="aesthetic score"):
        load_model(pipeline, device="cpu")


def test_the_refiners_folder_without_its_first_text_encoder_is_refused(tmp_path):
    pipeline = tiny.sdxl()
    pipeline.register_modules(text_encoder=None, tokenizer=None)
    pipeline.save_pretrained(tmp_path / "refiner")
    with pytest.raises(ModelError, match="no tokenizer, no text_encoder"):
        load_model(tmp_path / "refiner", device="cpu")


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "tokenizer", "vae", "unet"])
def test_a_part_that_is_not_there_is_named(copied, part):
    index = copied / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: [None, None]}))
    with pytest.raises(ModelError, match=rf"has no {part}|the denoiser is none"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "tokenizer", "vae"])
def test_a_part_that_is_none_in_a_pipeline_is_named(part):
    pipeline = tiny.pocket()
    setattr(pipeline, part, None)
    with pytest.raises(ModelError, match=rf"no {part}"):
        load_model(pipeline, device="cpu")


def test_image_variations_are_refused_by_name():
    pipeline = tiny.pocket()
    pipeline.text_encoder, pipeline.image_encoder = None, torch.nn.Linear(1, 1)
    with pytest.raises(ModelError, match=r"no text_encoder .*image variations"):
        load_model(pipeline, device="cpu")


def test_a_pipeline_with_a_part_that_is_not_known_is_refused(copied):
    index = copied / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"controlnet": ["diffusers", "AutoencoderKL"]}))
    shutil.copytree(copied / "vae", copied / "controlnet")
    with pytest.raises(ModelError, match="also has controlnet"):
        load_model(copied, device="cpu")


def test_text_of_another_width_is_refused():
    with pytest.raises(ModelError, match="gives 32 channels, the denoiser takes 24"):
        load_model(with_denoiser(cross_attention_dim=24), device="cpu")


def test_an_autoencoder_with_statistics_a_channel_is_refused():
    pipeline = tiny.pocket()
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with pytest.raises(ModelError, match="latents_mean"):
        load_model(pipeline, device="cpu")


@pytest.mark.parametrize("way", ["accelerate", "diffusers"])
def test_offloading_is_refused_with_the_way_out(way):
    pipeline = tiny.pocket()
    if way == "diffusers":
        pipeline.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    else:
        pipeline.unet._hf_hook = object()  # as accelerate leaves on a module that it moves
    with pytest.raises(ModelError, match=r"unet is offloaded.*enable_model_cpu_offload"):
        load_model(pipeline, device="cpu")


@pytest.mark.parametrize("token", [[1], None])
def test_a_text_encoder_without_an_end_of_texts_is_refused(token):
    pipeline = tiny.pocket()
    pipeline.text_encoder.config.eos_token_id = token
    with pytest.raises(ModelError, match="eos_token_id"):
        load_model(pipeline, device="cpu")
