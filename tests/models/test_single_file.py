"""Single files: every tensor arrives where it belongs, read off exact topologies at small widths, without the hub."""

import ldm
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.clip_vocabulary import make_clip_tokenizer
from emerdiff_probe.models.loading import load_model

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def text_encoder(kind, activation, *, width=64):
    settings = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return kind(settings)


def autoencoder(scaling_factor, upcast):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        scaling_factor=scaling_factor,
        force_upcast=upcast,
    )


def denoiser(kind, **settings):
    levels = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)}
    levels |= {"up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "block_out_channels": (32, 64, 64, 64)}
    if kind == "sdxl":
        levels = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
        levels |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
        levels |= {"block_out_channels": (32, 64, 128), "transformer_layers_per_block": (1, 2, 10)}
        levels |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        levels |= {"projection_class_embeddings_input_dim": 6 * 8 + 64}
    return UNet2DConditionModel(layers_per_block=2, **levels, **settings)


def build(kind):
    """Exact topologies of Stable Diffusion 1.5, 2.1 and XL."""
    torch.manual_seed(0)
    shared = {"tokenizer": make_clip_tokenizer("!" if kind == "sd2" else "<|endoftext|>")}
    if kind == "sdxl":
        return StableDiffusionXLPipeline(
            vae=autoencoder(0.13025, True),
            unet=denoiser(
                kind, sample_size=128, cross_attention_dim=128, attention_head_dim=(1, 1, 2), use_linear_projection=True
            ),
            text_encoder=text_encoder(CLIPTextModel, "quick_gelu"),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, "gelu"),
            tokenizer_2=make_clip_tokenizer("!"),
            scheduler=DDIMScheduler(**SCHEDULE),
            add_watermarker=False,
            **shared,
        )
    wide = kind == "sd2"
    prediction = "v_prediction" if wide else "epsilon"
    return StableDiffusionPipeline(
        vae=autoencoder(0.18215, False),
        unet=denoiser(
            kind,
            sample_size=96 if wide else 64,
            cross_attention_dim=64,
            attention_head_dim=(1, 1, 1, 1) if wide else 8,
            use_linear_projection=wide,
        ),
        text_encoder=text_encoder(CLIPTextModel, "gelu" if wide else "quick_gelu"),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **shared,
    )


@pytest.fixture(scope="module")
def pipelines():
    return {kind: build(kind) for kind in ("sd1", "sd2", "sdxl")}


def write(file, tensors, **notes):
    save_file(tensors, file, metadata={"format": "pt", **notes})
    return file


NOTES = {"sd1": {}, "sd2": {"modelspec.prediction_type": "v"}, "sdxl": {}}


@torch.no_grad()
@pytest.mark.parametrize("kind", NOTES)
def test_a_single_file_is_the_model_that_it_was_made_of(pipelines, kind, tmp_path):
    pipeline = pipelines[kind]
    file = write(tmp_path / "model.safetensors", ldm.single_file(pipeline, kind), **NOTES[kind])
    loaded, expected = load_model(file, device="cpu"), load_model(pipeline, device="cpu")
    for part in ("unet", "vae", "text_encoder", *(("text_encoder_2",) if kind == "sdxl" else ())):
        ours, theirs = (getattr(model.pipeline, part).state_dict() for model in (loaded, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), part
    assert (loaded.native_size, loaded.factor) == (expected.native_size, expected.factor)
    assert torch.equal(loaded.scheduler.alphas_cumprod, expected.scheduler.alphas_cumprod)
    assert loaded.scheduler.config.prediction_type == expected.scheduler.config.prediction_type
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for prompt in ("", "a photo of a cat"):
        ours, theirs = (model.embed(prompt, 128, 128) for model in (loaded, expected))
        torch.testing.assert_close(ours.hidden_states, theirs.hidden_states)
        torch.testing.assert_close(
            loaded.predict(latents, 281, ours), expected.predict(latents, 281, theirs), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(loaded.decode(latents), expected.decode(latents), rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_autoencoder_of_xl(pipelines, tmp_path):
    file = write(tmp_path / "xl.safetensors", ldm.single_file(pipelines["sdxl"], "sdxl"))
    loaded = load_model(file, device="cpu", dtype="float16")
    assert (loaded.dtype, loaded.autoencoder.dtype) == (torch.float16, torch.float32)
    name = "decoder.conv_in.weight"
    assert torch.equal(loaded.autoencoder.get_parameter(name), pipelines["sdxl"].vae.get_parameter(name))


def test_what_stable_diffusion_2_predicts_has_to_be_said(pipelines, tmp_path):
    tensors = ldm.single_file(pipelines["sd2"], "sd2")
    file = write(tmp_path / "two.safetensors", tensors)
    with pytest.raises(ModelError, match=r"predicts is None; accepted: .*two\.yaml beside it"):
        load_model(file, device="cpu")
    (tmp_path / "two.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    loaded = load_model(file, device="cpu")
    assert (loaded.scheduler.config.prediction_type, loaded.native_size) == ("v_prediction", 768)
    (tmp_path / "two.yaml").write_text("model:\n  params:\n    timesteps: 1000\n")
    loaded = load_model(file, device="cpu")
    assert (loaded.scheduler.config.prediction_type, loaded.native_size) == ("epsilon", 512)


def test_tensors_are_one_to_one_and_tables_are_passed_over(pipelines, tmp_path):
    tensors = ldm.single_file(pipelines["sd1"], "sd1")
    alphas = pipelines["sd1"].scheduler.alphas_cumprod
    extra = {"betas": torch.ones(1000), "alphas_cumprod": alphas, "model_ema.decay": torch.ones(1)}
    tables = ("sqrt_recipm1_alphas_cumprod", "posterior_variance", "log_one_minus_alphas_cumprod")
    extra |= {name: torch.ones(1000) for name in tables}
    load_model(write(tmp_path / "more.safetensors", tensors | extra), device="cpu")
    with pytest.raises(ModelError, match=r"noise levels \(alphas_cumprod\)"):
        load_model(write(tmp_path / "other.safetensors", tensors | {"alphas_cumprod": alphas**2}), device="cpu")
    for extra in ("model.diffusion_model.fuser.weight", "control.weight", "cond_stage_model.transformer.more"):
        with pytest.raises(ModelError, match=rf"1 tensors in it have no place.*{extra.split('.')[-1]}"):
            load_model(write(tmp_path / "extra.safetensors", tensors | {extra: torch.ones(1)}), device="cpu")
    for missing in (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    ):
        fewer = {name: tensor for name, tensor in tensors.items() if name != missing}
        with pytest.raises(ModelError, match="1 tensors of the model are not in it"):
            load_model(write(tmp_path / "fewer.safetensors", fewer), device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.x", "Flux"),
        ("lora_unet_mid_block_attentions_0.lora_up.weight", "a LoRA.*lora="),
        ("emb_params", "textual inversion"),
        ("control_model.x", "ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "give the folder"),
        ("conditioner.embedders.0.model.ln_final.weight", "refiner"),
        ("model.diffusion_model.input_blocks.0.0.weight", "without first_stage_model"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, name, message):
    file = write(tmp_path / "file.safetensors", {name: torch.ones(1)})
    with pytest.raises(ModelError, match=rf"file\.safetensors: .*{message}.*accepted: checkpoints of Stable Diffusion"):
        load_model(file, device="cpu")


def test_a_whole_checkpoint_with_another_noise_is_refused_by_name(pipelines, tmp_path):
    tensors = ldm.single_file(pipelines["sdxl"], "sdxl") | {"edm_mean": torch.zeros(4)}
    with pytest.raises(ModelError, match="EDM's noise; accepted"):
        load_model(write(tmp_path / "edm.safetensors", tensors), device="cpu")


def test_inpainting_is_refused_from_the_header(pipelines, tmp_path, monkeypatch):
    tensors = ldm.single_file(pipelines["sd1"], "sd1")
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    monkeypatch.setattr("emerdiff_probe.models.single_file.load_file", None)
    with pytest.raises(ModelError, match="takes 9 channels"):
        load_model(write(tmp_path / "inpainting.safetensors", tensors), device="cpu")


def test_a_file_that_is_damaged_or_asked_for_more_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_model(file, device="cpu")
    with pytest.raises(InputError, match="it is one file"):
        load_model(file, device="cpu", variant="fp16")


def test_the_vocabulary_is_clips():
    """Token ids as CLIP's own tokenizer gives them."""
    tokenizer = make_clip_tokenizer()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 49407)
    assert make_clip_tokenizer("!").pad_token_id == 0
