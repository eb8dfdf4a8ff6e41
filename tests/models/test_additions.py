"""LoRA files and textual inversions: the sums by hand, under every name that they go by, and what fits nothing."""

import ldm
import pytest
import tiny
import torch
from safetensors.torch import save_file

from benchmarks.families import SMALL
from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.additions import _known_layers
from emerdiff_probe.models.loading import load_model

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
LAYERS = {
    "unet": (f"{BLOCK}.to_q", f"{BLOCK}.to_out.0", "down_blocks.1.resnets.0.conv1", "up_blocks.1.attentions.1.proj_in"),
    "text_encoder": (
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.0.self_attn.out_proj",
        "encoder.layers.1.mlp.fc1",
    ),
}


def layer_of(pipeline, part, path):
    module = getattr(pipeline, part)
    names = dict(module.named_modules())
    return names[path] if path in names else names[f"text_model.{path}"]


def factors(pipeline, part, path, rank=2):
    """down and up of a layer, as kohya's script shapes them."""
    weight = layer_of(pipeline, part, path).weight
    generator = torch.Generator().manual_seed(len(path))
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    return down, torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator)


def in_kohya(part, path):
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
    return [f"{prefix}{path.replace('.', '_')}.lora_{role}.weight" for role in ("down", "up")]


def in_peft(part, path):
    middle = "text_model." if part == "text_encoder" else ""
    return [f"{part}.{middle}{path}.lora_{role}.weight" for role in ("A", "B")]


def in_diffusers(part, path):
    middle = "text_model." if part == "text_encoder" else ""
    return [f"{part}.{middle}{path}.lora.{role}.weight" for role in ("down", "up")]


def in_processors(part, path):
    """diffusers' names of 2023."""
    if part == "text_encoder":
        path = path.replace("self_attn.q_proj", "self_attn.to_q_lora").replace(
            "self_attn.out_proj", "self_attn.to_out_lora"
        )
        path = path.replace("mlp.fc1", "mlp.fc1.lora_linear_layer")
        return [f"text_encoder.text_model.{path}.{role}.weight" for role in ("down", "up")]
    path = path.replace("attn1.to_q", "attn1.processor.to_q_lora").replace(
        "attn1.to_out.0", "attn1.processor.to_out_lora"
    )
    return [f"unet.{path}{'' if path.endswith('_lora') else '.lora'}.{role}.weight" for role in ("down", "up")]


@pytest.mark.parametrize("name", [in_kohya, in_peft, in_diffusers, in_processors])
def test_a_lora_is_added_by_hand_under_every_name(name, tmp_path):
    pipeline = tiny.sd1()
    tensors, expected = {}, {}
    for part, paths in LAYERS.items():
        for path in paths:
            down, up = factors(pipeline, part, path)
            tensors |= dict(zip(name(part, path), (down, up), strict=True))
            weight = layer_of(pipeline, part, path).weight.detach()
            alpha = 6.0 if name is in_kohya else 2.0  # the rank, where none is told
            if name is in_kohya:
                tensors[name(part, path)[0].replace("lora_down.weight", "alpha")] = torch.tensor(alpha)
            added = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(weight.shape)
            expected[part, path] = weight + 0.5 * alpha / 2 * added
    save_file(tensors, tmp_path / "style.safetensors")
    before = tiny.state_of(pipeline.unet)
    loaded = load_model(pipeline, device="cpu", lora=[f"{tmp_path}/style.safetensors:0.5"])
    for (part, path), weight in expected.items():
        torch.testing.assert_close(layer_of(loaded.pipeline, part, path).weight, weight, rtol=1e-5, atol=1e-6)
    changed = {key for key, tensor in loaded.denoiser.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {f"{path}.weight" for path in LAYERS["unet"]}
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipeline.unet.state_dict().items())
    plain = load_model(pipeline, device="cpu")
    assert loaded.fingerprint != plain.fingerprint
    assert "style.safetensors:0.5" in loaded.name
    assert load_model(pipeline, device="cpu", lora=[f"{tmp_path}/style.safetensors:0"]).fingerprint == plain.fingerprint


def test_alpha_may_stand_in_the_notes_of_the_file(tmp_path):
    pipeline = tiny.sd1()
    path = LAYERS["unet"][0]
    down, up = factors(pipeline, "unet", path)
    tensors = dict(zip(in_peft("unet", path), (down, up), strict=True))
    notes = '{"unet.r": 2, "unet.lora_alpha": 8, "unet.use_dora": false, "unet.alpha_pattern": {}}'
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": notes})
    loaded = load_model(pipeline, device="cpu", lora=[tmp_path / "a.safetensors"])
    weight = layer_of(pipeline, "unet", path).weight.detach()
    torch.testing.assert_close(layer_of(loaded.pipeline, "unet", path).weight, weight + 4 * up @ down)
    notes = notes.replace("false", "true")
    save_file(tensors, tmp_path / "b.safetensors", metadata={"lora_adapter_metadata": notes})
    with pytest.raises(ModelError, match="use_dora"):
        load_model(pipeline, device="cpu", lora=[tmp_path / "b.safetensors"])


@pytest.mark.parametrize("build", [tiny.sd1, tiny.sdxl])
def test_every_layer_is_known_by_its_name_in_stabilitys_code(build):
    """kohya's files of Stable Diffusion XL use those."""
    pipeline = build()
    known = dict(_known_layers(pipeline))
    layers = {path for (part, _), path in known.items() if part == "unet"}
    for old, new in ldm.denoiser_names(pipeline.unet):
        path, _, kind = new.rpartition(".")
        if kind == "weight" and path in layers:
            flat = old.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".UP.", ".2.")
            assert known["unet", flat.replace(".", "_")] == path
    assert len(layers) == len(set(known.values()) & layers)


def test_two_loras_add_up_in_any_order(tmp_path):
    pipeline = tiny.sd1()
    files = []
    for i, path in enumerate([LAYERS["unet"][0]] * 2):
        tensors = dict(zip(in_peft("unet", path), factors(pipeline, "unet", path, rank=2 + i), strict=True))
        save_file(tensors, tmp_path / f"{i}.safetensors")
        files.append(f"{tmp_path / f'{i}.safetensors'}:0.{i + 1}")
    one, other = (load_model(pipeline, device="cpu", lora=order) for order in (files, files[::-1]))
    path = LAYERS["unet"][0]
    torch.testing.assert_close(
        layer_of(one.pipeline, "unet", path).weight, layer_of(other.pipeline, "unet", path).weight
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_mid_block_nothing.lora_down.weight": (2, 4)}, "fits no layer of the model's unet"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (2, 4)}, "fits no layer.*text_encoder_2"),
        ({f"unet.{BLOCK}.to_q.hada_w1_a": (2, 4)}, "no LoHa, LoKr or DoRA"),
        ({f"unet.{BLOCK}.to_q.dora_scale": (2, 4)}, "no LoHa, LoKr or DoRA"),
        ({f"unet.{BLOCK}.to_q.lora_A.weight": (2, 64)}, "only down; accepted: down and up"),
        ({f"unet.{BLOCK}.to_q.lora_A.weight": (2, 320), f"unet.{BLOCK}.to_q.lora_B.weight": (320, 2)}, "same model"),
    ],
)
def test_what_fits_no_layer_is_refused_by_name(tensors, message, tmp_path):
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(tiny.sd1(), device="cpu", lora=[tmp_path / "a.safetensors"])


def test_files_and_scales_that_are_none(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.pt").touch()
    pipeline = tiny.pocket()
    for text, message in (
        (f"{tmp_path}/nothing.safetensors", "no such safetensors file"),
        (f"{tmp_path}/a.pt:1", "pickled"),
        (f"{tmp_path}/a.safetensors", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(pipeline, device="cpu", lora=[text])
        with pytest.raises(ModelError, match=message):
            load_model(pipeline, device="cpu", embeddings=[text])
    for scale in ("much", "nan", "inf", ""):
        with pytest.raises(InputError, match="a finite number"):
            load_model(pipeline, device="cpu", lora=[f"{tmp_path}/a.safetensors:{scale}"])


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("form", ["a1111", "diffusers"])
def test_a_textual_inversion_is_a_word_of_prompts(vectors, form, tmp_path):
    pipeline = tiny.pocket()
    rows = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(0))
    key = "emb_params" if form == "a1111" else "<toy>"
    save_file({key: rows if vectors > 1 else rows[0]}, tmp_path / "toy.safetensors")
    loaded = load_model(pipeline, device="cpu", embeddings=[tmp_path / "toy.safetensors"])
    word = "toy" if form == "a1111" else "<toy>"
    plain = load_model(pipeline, device="cpu")
    assert word not in pipeline.tokenizer.get_vocab()
    ids = loaded.pipeline.tokenizer(loaded.pipeline.maybe_convert_prompt(word, loaded.pipeline.tokenizer)).input_ids[
        1:-1
    ]
    assert torch.equal(loaded.pipeline.text_encoder.get_input_embeddings().weight[ids], rows)
    told, before = (model.embed(f"red {word}", 64, 64).hidden_states for model in (loaded, plain))
    assert not torch.allclose(told, before)
    assert torch.equal(loaded.embed("red car", 64, 64).hidden_states, plain.embed("red car", 64, 64).hidden_states)
    assert loaded.fingerprint != plain.fingerprint
    named = load_model(pipeline, device="cpu", embeddings=[f"{tmp_path}/toy.safetensors:<mine>"])
    assert torch.equal(named.embed("red <mine>", 64, 64).hidden_states, told)


def test_stable_diffusion_xl_takes_one_for_each_text_encoder(tmp_path):
    rows = {"clip_l": torch.ones(2, 32), "clip_g": torch.zeros(2, 32)}
    save_file(rows, tmp_path / "toy.safetensors")
    loaded = load_model(tiny.sdxl(), device="cpu", embeddings=[tmp_path / "toy.safetensors"])
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        assert torch.equal(getattr(loaded.pipeline, part).get_input_embeddings().weight[-2:], rows[name])
    with pytest.raises(ModelError, match="embeddings for text_encoder, text_encoder_2; accepted: text_encoder"):
        load_model(tiny.pocket(), device="cpu", embeddings=[tmp_path / "toy.safetensors"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(2, 7)}, r"\(2, 7\) for words of 32 channels"),
        ({"a": torch.full((32,), torch.nan)}, "embedding"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, "tensors a, b"),
        ({"car</w>": torch.ones(32)}, "known already"),
    ],
)
def test_embeddings_that_fit_nothing_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "toy.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(tiny.pocket(), device="cpu", embeddings=[tmp_path / "toy.safetensors"])


def test_pipelines_that_take_no_words_say_so(tmp_path):
    save_file({"<toy>": torch.ones(32)}, tmp_path / "toy.safetensors")
    with pytest.raises(ModelError, match="DDPMPipeline takes no textual inversion"):
        load_model(SMALL["ddpm"](), device="cpu", embeddings=[tmp_path / "toy.safetensors"])
