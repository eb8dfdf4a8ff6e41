"""Loading: what is refused and how, and that a model's numbers are what they say."""

import json
import shutil
import subprocess
import sys
import time

import diffusers
import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.fingerprint import fingerprint
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.inversion import invert

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_folder_and_its_pipeline_load_as_the_same_model(folder):
    loaded = load_model(folder, device="cpu")
    again = load_model(loaded.pipeline, device="cpu")
    assert isinstance(loaded, ProbeModel)
    assert loaded.name == str(folder)
    assert loaded.fingerprint == again.fingerprint
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    assert not loaded.denoiser.training
    assert not loaded.autoencoder.training


@pytest.mark.parametrize("build", [tiny.pocket, tiny.sd2, tiny.sdxl])
def test_the_family_is_known_by_structure(build):
    assert load_model(build(), device="cpu").family == build.__name__


def test_the_scheduler_follows_the_models_own_schedule_on_the_papers_grid(model):
    config = model.scheduler.config
    assert (config.timestep_spacing, config.steps_offset, config.clip_sample) == ("leading", 1, False)
    assert torch.equal(model.scheduler.alphas_cumprod, model.pipeline.scheduler.alphas_cumprod)


def test_the_fingerprint_is_stable_over_loading(folder):
    assert load_model(folder, device="cpu").fingerprint == load_model(folder, device="cpu").fingerprint


@pytest.mark.parametrize("component", WEIGHTS)
def test_the_fingerprint_changes_with_one_weight(copied, component):
    before = load_model(copied, device="cpu").fingerprint

    def change(weights):
        name = sorted(name for name, tensor in weights.items() if tensor.is_floating_point())[0]
        weights[name].view(-1)[0] += 1

    rewrite(copied / component / WEIGHTS[component], change)
    assert load_model(copied, device="cpu").fingerprint != before


def test_the_fingerprint_follows_a_weight_that_is_edited_on_the_live_model():
    live = load_model(tiny.pocket(), device="cpu")
    before = live.fingerprint
    weight = live.denoiser.conv_in.weight
    old = weight[0, 0, 0, 0].clone()
    weight[0, 0, 0, 0] += 1
    assert live.fingerprint != before
    weight[0, 0, 0, 0] = old
    assert live.fingerprint == before


def test_the_fingerprint_does_not_depend_on_the_order_in_memory():
    live = load_model(tiny.pocket(), device="cpu")
    before = live.fingerprint
    live.denoiser.to(memory_format=torch.contiguous_format)
    assert live.fingerprint == before


def test_the_fingerprint_changes_with_what_the_scheduler_predicts(model):
    assert load_model(tiny.pocket("v_prediction"), device="cpu").fingerprint != model.fingerprint


@pytest.mark.parametrize("component", WEIGHTS)
def test_nan_in_the_weights_is_refused_and_named(copied, component):
    named = []

    def spoil(weights):
        name = sorted(name for name, tensor in weights.items() if tensor.is_floating_point())[-1]
        weights[name].view(-1)[-1] = float("nan")
        named.append(name.split(".")[-1])

    rewrite(copied / component / WEIGHTS[component], spoil)
    with pytest.raises(ModelError, match=rf"NaN .*{component}\..*{named[0]}"):
        load_model(copied, device="cpu")


def test_nan_in_a_pipeline_that_is_already_built_is_refused():
    pipeline = tiny.pocket()
    pipeline.unet.conv_in.bias.data[0] = float("inf")
    with pytest.raises(ModelError, match=r"unet\.conv_in\.bias"):
        load_model(pipeline, device="cpu")


@pytest.mark.parametrize("component", WEIGHTS)
def test_pickled_weights_are_refused_unopened(copied, component):
    weights = copied / component / WEIGHTS[component]
    pickled = weights.with_suffix(".bin")
    weights.unlink()
    pickled.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match=rf"{pickled.name}.*pickled.*safetensors"):
        load_model(copied, device="cpu")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_damaged_or_missing_weights_are_refused(copied, component, damage):
    damage(copied / component / WEIGHTS[component])
    with pytest.raises(ModelError, match=rf"copy/{component}.*(safetensors|no weights)"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_configuration_is_refused(copied, name, text):
    (copied / name).write_text(text)
    with pytest.raises(ModelError):
        load_model(copied, device="cpu")


def test_a_folder_that_is_no_pipeline_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_model(tmp_path)


def test_a_local_path_that_is_not_there_is_refused_quickly(tmp_path):
    began = time.perf_counter()
    for source in (tmp_path / "nothing", "./nothing-here", "../nothing-here"):
        with pytest.raises(ModelError, match="no such model folder"):
            load_model(source)
    assert time.perf_counter() - began < 1


def test_an_unknown_name_lists_what_is_accepted():
    """The hub is switched off in tests, as where it cannot be reached."""
    with pytest.raises(ModelError, match=r"'no-such-model'.*'pocket', 'photo', a local diffusers folder"):
        load_model("no-such-model")


def test_a_denoiser_of_another_kind_is_refused():
    pipeline = tiny.pocket()
    pipeline.unet = pipeline.vae
    with pytest.raises(ModelError, match=r"AutoencoderKL; accepted: .*UNet2DConditionModel"):
        load_model(pipeline, device="cpu")


def test_a_pipeline_without_an_autoencoder_is_refused():
    pipeline = tiny.pocket()
    pipeline.vae = None
    with pytest.raises(ModelError, match="the pipeline has no vae; accepted"):
        load_model(pipeline, device="cpu")


def test_a_denoiser_that_takes_more_than_latents_is_refused():
    """As inpainting's, which also takes a mask and the masked image."""
    pipeline = tiny.pocket()
    pipeline.unet = diffusers.UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=9)
    with pytest.raises(ModelError, match=r"takes 9 channels.*accepted: the 4"):
        load_model(pipeline, device="cpu")


@pytest.mark.parametrize("device", ["cuda:99", "warp", "meta2", "", "meta", "xpu"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(InputError, match="accepted: cpu, cuda, mps"):
        load_model(folder, device=device)


@pytest.mark.parametrize("dtype", ["float8", "double", torch.float64, torch.int8, 16])
def test_a_precision_that_is_not_known_is_refused(folder, dtype):
    with pytest.raises(InputError, match="accepted: float32, float16, bfloat16"):
        load_model(folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", torch.bfloat16])
def test_precisions_by_name_and_value_with_float32_outside(folder, dtype):
    loaded = load_model(folder, device="cpu", dtype=dtype)
    assert loaded.dtype == (dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
    latents = loaded.encode(loaded.to_tensor(tiny.picture()))
    inverted = invert(loaded, latents, start=101, steps=10)
    assert latents.dtype == inverted.latents.dtype == inverted.residuals.dtype == torch.float32
    assert loaded.decode(latents).dtype == torch.float32
    # half precision loses digits in the denoiser, not in the residuals
    assert torch.allclose(denoise(loaded, inverted, [[]]), latents, atol=1e-4 if dtype == "float32" else 0.05)


def test_float32_is_the_default_on_the_cpu(folder):
    assert load_model(folder, device="cpu").dtype == torch.float32


def test_an_autoencoder_that_asks_for_float32_keeps_it():
    pipeline = tiny.sdxl()
    pipeline.vae.register_to_config(force_upcast=True)
    loaded = load_model(pipeline, device="cpu", dtype="bfloat16")
    assert (loaded.dtype, loaded.autoencoder.dtype) == (torch.bfloat16, torch.float32)
    assert loaded.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 16, 16)


def test_loading_prints_nothing_and_restores_verbosity(folder, capfd):
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    loaded = load_model(folder, device="cpu")
    loaded.embed("red car", 64, 64)
    assert capfd.readouterr() == ("", "")
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before


def test_a_refused_model_restores_verbosity_too(copied):
    (copied / "unet" / "config.json").write_text("{")
    before = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    with pytest.raises(ModelError):
        load_model(copied, device="cpu")
    assert (diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()) == before


def test_encode_and_decode_shapes(model):
    images = torch.zeros(2, 3, 64, 96)
    latents = model.encode(images)
    assert latents.shape == (2, 4, 16, 24)
    assert model.decode(latents).shape == images.shape
    assert (model.factor, model.native_size, model.multiple) == (4, 64, 16)


def test_what_the_model_gives_can_be_edited_and_differentiated(model):
    latents = model.encode(model.to_tensor(tiny.picture()))
    results = [latents, model.decode(latents), model.embed("red car", 64, 64).hidden_states]
    for tensor in results:
        scale = torch.ones(1, requires_grad=True)
        (scale * tensor).square().sum().backward()
        assert scale.grad > 0
        tensor[:] = 0


def test_encoding_is_undone_by_the_scaling_of_the_configuration():
    """Decoding divides by what encoding multiplied with, so that only the autoencoder is between them."""
    plain, scaled = tiny.pocket(), tiny.pocket()
    scaled.vae.register_to_config(scaling_factor=0.25, shift_factor=0.5)
    one, other = load_model(plain, device="cpu"), load_model(scaled, device="cpu")
    images = one.to_tensor(tiny.picture())
    assert torch.allclose(other.encode(images), (one.encode(images) - 0.5) * 0.25, atol=1e-6)
    assert torch.allclose(other.decode(other.encode(images)), one.decode(one.encode(images)), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 60, 64), (1, 3, 64, 65)])
def test_images_of_another_shape_are_refused(model, shape):
    with pytest.raises(InputError, match="multiples of 16"):
        model.encode(torch.zeros(shape))


def test_nan_in_images_is_refused(model):
    images = torch.zeros(1, 3, 64, 64)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        model.encode(images)


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 4096), st.integers(16, 4096))
def test_the_working_size_is_native_whole_and_of_the_same_proportions(model, height, width):
    sides = model.working_size(height, width)
    assert all(side % model.multiple == 0 for side in sides)
    assert min(sides) == model.native_size
    exact = max(height, width) * model.native_size / min(height, width)
    assert abs(max(sides) - exact) <= model.multiple / 2
    assert (sides[0] >= sides[1]) == (height >= width) or sides[0] == sides[1]
    assert model.working_size(width, height) == sides[::-1]


def test_to_tensor_spans_minus_one_to_one_and_resizes(model):
    image = np.zeros((64, 64, 3), np.uint8)
    image[32:] = 255
    tensor = model.to_tensor(image)
    assert tensor.shape == (1, 3, 64, 64)
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    resized = model.to_tensor(image, (96, 128))
    assert resized.shape == (1, 3, 96, 128)
    assert float(resized[..., :40, :].max()) < -0.9
    assert float(resized[..., 56:, :].min()) > 0.9


@pytest.mark.parametrize("build", [tiny.pocket, tiny.sd2, tiny.sdxl])
def test_conditioning_expands_and_concatenates_rows(build):
    built = load_model(build(), device="cpu")
    text, empty = built.embed("red car", 64, 64), built.embed("", 64, 64)
    assert text.hidden_states.shape == (1, 16, built.denoiser.config.cross_attention_dim)
    assert not torch.allclose(text.hidden_states, empty.hidden_states)
    both = text.expand(2) + empty.expand(3)
    assert torch.equal(both.hidden_states[[0, 4]], torch.cat([text.hidden_states, empty.hidden_states]))
    assert all(len(value) == 5 for value in both.added.values())
    assert set(both.added) == ({"text_embeds", "time_ids"} if built.family == "sdxl" else set())


def test_the_empty_prompt_of_stable_diffusion_xl_is_zeros_as_in_its_own_pipeline():
    built = load_model(tiny.sdxl(), device="cpu")
    _, hidden, _, pooled = built.pipeline.encode_prompt("red car", device=built.device)
    empty = built.embed("", 64, 64)
    assert torch.equal(empty.hidden_states, hidden)
    assert torch.equal(empty.added["text_embeds"], pooled)
    assert not hidden.any()
    assert built.embed("red car", 64, 64).hidden_states.any()
    built.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert built.embed("", 64, 64).hidden_states.any()


def test_stable_diffusion_xl_is_told_the_size_of_the_image():
    built = load_model(tiny.sdxl(), device="cpu")
    assert built.embed("", 32, 64).added["time_ids"].tolist() == [[32, 64, 0, 0, 32, 64]]


def test_the_pocket_model_of_the_package_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_model("pocket", device="cpu").family == "pocket"


def test_the_index_of_a_saved_model_is_the_native_one(folder):
    """So that every other tool opens it too."""
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def description_of(pipeline):
    """What a caller can see of a pipeline: of every network the tensors' memory, precision and order, and its modes."""
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "tensors": {
            (name, key): (tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.requires_grad)
            for name, network in networks.items()
            for key, tensor in network.state_dict(keep_vars=True).items()
        },
        "modes": [module.training for network in networks.values() for module in network.modules()],
        "processors": {name: type(value).__name__ for name, value in pipeline.unet.attn_processors.items()},
        "bar": getattr(pipeline, "_progress_bar_config", None),
        "config": dict(pipeline.config),
        "scheduler": dict(pipeline.scheduler.config),
    }


@pytest.mark.parametrize("build", [tiny.pocket, tiny.sdxl])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_pipeline_that_is_given_stays_as_it_is(build, dtype):
    pipeline = build()
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.to(torch.float16)
    pipeline.unet.train()
    pipeline.set_progress_bar_config(desc="mine")
    before = description_of(pipeline)
    loaded = load_model(pipeline, device="cpu", dtype=dtype)
    assert (loaded.dtype, loaded.autoencoder.dtype) == (getattr(torch, dtype or "float16"), torch.float32)
    assert not any(module.training for module in loaded.denoiser.modules())
    invert(loaded, torch.zeros(1, 4, 16, 16), start=101, steps=10, residuals=True)
    loaded.denoiser.conv_in.weight += 1
    loaded.pipeline.enable_attention_slicing(1)
    assert description_of(pipeline) == before


def test_a_pipeline_and_its_model_share_what_needs_no_conversion():
    pipeline = tiny.pocket()
    loaded = load_model(pipeline)
    assert loaded.device == pipeline.device
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert loaded.denoiser.get_parameter(name).data_ptr() == pipeline.unet.get_parameter(name).data_ptr()
    assert loaded.pipeline is not pipeline
    assert loaded.denoiser is not pipeline.unet


def change_unsampled_weight(pipeline):
    weight = pipeline.unet.conv_in.weight.data.view(-1)
    assert weight.numel() > 128  # every second value or fewer is sampled
    weight[1] += 1e-6


def scale_adapter(pipeline):
    pipeline.unet.up_blocks[0].attentions[0].scaling = {"style": 0.5}  # as peft's layers hold it


def scale_processor(pipeline):
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor.scale = [0.5]  # as IP-Adapter's


@pytest.mark.parametrize(
    "change",
    [
        change_unsampled_weight,
        scale_adapter,
        scale_processor,
        lambda pipeline: pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda pipeline: pipeline.enable_attention_slicing(1),
        lambda pipeline: pipeline.vae.enable_tiling(),
        lambda pipeline: pipeline.tokenizer.add_tokens(["<mine>"]),
        lambda pipeline: pipeline.scheduler.register_to_config(beta_end=0.02),
    ],
)
def test_the_fingerprint_changes_with_whatever_changes_the_output(change):
    def fingerprint_of(pipeline):
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
        return fingerprint(parts)

    plain, changed = tiny.pocket(), tiny.pocket()
    before = fingerprint_of(changed)
    assert before == fingerprint_of(plain)
    change(changed)
    assert fingerprint_of(changed) != before


def test_the_fingerprint_of_a_scale_follows_it():
    pipeline = tiny.pocket()
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    one = load_model(pipeline, device="cpu")
    other = load_model(pipeline, device="cpu")
    assert one.fingerprint == other.fingerprint != load_model(tiny.pocket(), device="cpu").fingerprint
    other.denoiser.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.5)
    assert one.fingerprint != other.fingerprint
    other.denoiser.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert one.fingerprint == other.fingerprint


def test_a_family_that_is_said_is_the_models():
    pipeline = tiny.pocket()
    assert load_model(pipeline, device="cpu").family == "pocket"
    assert load_model(pipeline, device="cpu", family="sd1").family == "sd1"
    with pytest.raises(InputError, match=r"family 'sd3'.*accepted: pocket, sd1, sd2, sdxl"):
        load_model(pipeline, device="cpu", family="sd3")


def test_stable_diffusion_1_at_256_pixels_is_not_the_pocket_model():
    pipeline = tiny.stable_diffusion(
        sample_size=32,
        channels=(16, 16, 16, 16),
        levels=4,
        groups=8,
        heads=2,
        cross_width=768,
        prediction_type="epsilon",
    )
    loaded = load_model(pipeline, device="cpu")
    assert (loaded.family, loaded.native_size) == ("sd1", 256)


def test_nothing_of_the_libraries_reaches_the_user(folder, tmp_path):
    """In a fresh process, where nothing has silenced them yet: no bars, no notes on float32 or accelerate."""
    tiny.sdxl().save_pretrained(tmp_path / "xl")
    script = "from emerdiff_probe import load_model\n" + "".join(
        f"load_model({str(place)!r}, device='cpu', dtype='bfloat16').embed('a', 64, 64)\n"
        for place in (folder, tmp_path / "xl")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
