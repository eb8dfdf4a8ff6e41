"""Weights: every tensor of the model from the file, and every tensor of the file into the model."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.weights import choose_variant, find_variants, read_shapes, require_tensors

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
TENSOR = {"unet": "attn1.to_q.weight", "vae": "conv_in.weight", "text_encoder": "fc1.weight"}


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("component", WEIGHTS)
def test_tensors_that_are_missing_are_counted_and_named(copied, component):
    """They would be random values, other ones at each load."""
    removed = []

    def remove(weights):
        removed.extend(name for name in weights if name.endswith(TENSOR[component]))
        for name in removed:
            del weights[name]

    rewrite(copied / component / WEIGHTS[component], remove)
    with pytest.raises(
        ModelError, match=rf"{component}: {len(removed)} tensors of the model are not in it: "
    ) as raised:
        load_model(copied, device="cpu")
    assert sorted(removed)[0].removeprefix("text_model.") in str(raised.value)


@pytest.mark.parametrize("component", WEIGHTS)
def test_tensors_without_a_place_are_named(copied, component):
    rewrite(copied / component / WEIGHTS[component], lambda weights: weights.update({"fuser.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=rf"{component}: 1 tensors in it have no place in the model: fuser\.weight"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize("component", WEIGHTS)
def test_tensors_of_another_shape_are_named(copied, component):
    def widen(weights):
        name = next(name for name in sorted(weights) if name.endswith(TENSOR[component]))
        weights[name] = torch.cat([weights[name]] * 2)

    rewrite(copied / component / WEIGHTS[component], widen)
    with pytest.raises(ModelError, match=rf"{component}.*another shape.*{TENSOR[component]}"):
        load_model(copied, device="cpu")


def test_what_is_missing_from_the_denoiser_is_said_before_weights_are_read(copied, monkeypatch):
    rewrite(copied / "unet" / WEIGHTS["unet"], lambda weights: weights.pop("conv_in.bias"))
    monkeypatch.setattr("emerdiff_probe.models.folders._load_weights", None)
    with pytest.raises(ModelError, match=r"conv_in\.bias"):
        load_model(copied, device="cpu")


def test_position_ids_of_old_text_encoders_are_passed_over(copied, folder):
    ids = torch.arange(16)[None]
    rewrite(
        copied / "text_encoder" / WEIGHTS["text_encoder"],
        lambda weights: weights.update({"text_model.embeddings.position_ids": ids}),
    )
    assert load_model(copied, device="cpu").fingerprint == load_model(folder, device="cpu").fingerprint


def test_autoencoders_with_names_of_2022_load_as_the_same_model(tmp_path):
    """Stable Diffusion v1.4's on the hub: query, key, value and proj_attn."""
    pipeline = tiny.pocket()
    torch.manual_seed(0)
    settings = {**pipeline.vae.config, "mid_block_add_attention": True}
    pipeline.vae = type(pipeline.vae).from_config(settings)
    pipeline.save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        for name in list(weights):
            for new, old in names.items():
                if f".{new}." in name:
                    weights[name.replace(f".{new}.", f".{old}.")] = weights.pop(name)

    rewrite(tmp_path / "old" / "vae" / WEIGHTS["vae"], rename)
    assert any("proj_attn" in name for name in load_file(tmp_path / "old" / "vae" / WEIGHTS["vae"]))
    new, old = (load_model(tmp_path / name, device="cpu") for name in ("new", "old"))
    assert new.fingerprint == old.fingerprint


@pytest.mark.parametrize("size", ["20KB", "100GB"])
def test_sharded_weights_load_as_the_same_model(folder, tmp_path, size):
    pipeline = load_model(folder, device="cpu").pipeline
    pipeline.save_pretrained(tmp_path / "sharded", max_shard_size=size)
    shards = list((tmp_path / "sharded" / "unet").glob("*.safetensors"))
    assert (len(shards) > 2) == (size == "20KB")
    assert load_model(tmp_path / "sharded", device="cpu").fingerprint == load_model(folder, device="cpu").fingerprint
    if len(shards) > 2:
        rewrite(shards[0], lambda weights: weights.pop(sorted(weights)[0]))
        with pytest.raises(ModelError, match="1 tensors of the model are not in it"):
            load_model(tmp_path / "sharded", device="cpu")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), None, "large"])
def test_scaling_factors_that_scale_nothing_are_refused(value):
    pipeline = tiny.pocket()
    pipeline.vae.register_to_config(scaling_factor=value)
    with pytest.raises(ModelError, match="scaling_factor"):
        load_model(pipeline, device="cpu")


def as_variant(folder, variant, components=WEIGHTS):
    for component in components:
        weights = folder / component / WEIGHTS[component]
        weights.rename(weights.with_name(f"{weights.stem}.{variant}.safetensors"))


def test_a_folder_with_half_precision_alone_is_found_by_itself(copied, folder):
    as_variant(copied, "fp16")
    assert load_model(copied, device="cpu").fingerprint == load_model(folder, device="cpu").fingerprint


def test_a_variant_is_read_where_it_is_asked_for(copied, folder):
    plain = copied / "unet" / WEIGHTS["unet"]
    shutil.copy(plain, plain.with_name("diffusion_pytorch_model.ema.safetensors"))
    rewrite(plain, lambda weights: weights["conv_in.bias"].add_(1))
    as_is = load_model(folder, device="cpu").fingerprint
    assert load_model(copied, device="cpu").fingerprint != as_is
    assert load_model(copied, device="cpu", variant="ema").fingerprint == as_is
    with pytest.raises(ModelError, match="no component has weights of variant 'fp16'"):
        load_model(copied, device="cpu", variant="fp16")


def test_a_variant_that_is_not_a_precision_has_to_be_asked_for(copied):
    as_variant(copied, "non_ema")
    with pytest.raises(ModelError, match="variants non_ema; accepted: variant="):
        load_model(copied, device="cpu")
    load_model(copied, device="cpu", variant="non_ema")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", ""),
        ("model.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", ""),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
        ("diffusion_pytorch_model.safetensors.index.json", ""),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
    ],
)
def test_variants_are_read_off_file_names(name, variant):
    assert find_variants([name, "config.json", "pytorch_model.bin", "other.safetensors"]) == {variant}
    assert choose_variant([name], None, "here") == (variant or None)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}', "7"])
def test_an_index_of_shards_that_is_none(copied, text):
    (copied / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="no index of shards"):
        load_model(copied, device="cpu")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        save_file({"same": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=r"b\.safetensors: tensor 'same' is also"):
        read_shapes([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_all_faults_are_said_at_once():
    with pytest.raises(ModelError) as raised:
        require_tensors({"a": (1,), "b": (2,)}, {"b": (3,), "c": (1,), "deep.position_ids": (1,)}, "unet")
    assert str(raised.value) == (
        "unet: 1 tensors of the model are not in it: a; 1 tensors in it have no place in the model: c; 1 tensors have "
        "another shape: b (3,) for (2,); accepted: weights that fit their config.json one to one"
    )


def test_quantized_weights_are_refused(copied):
    config = copied / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bnb"}}))
    with pytest.raises(ModelError, match="quantized"):
        load_model(copied, device="cpu")
