"""Half precision and memory: every U-Net family runs in it, and overflow is named with the way out."""

import pytest
import tiny
import torch

from emerdiff_probe.errors import ModelError
from emerdiff_probe.interventions import InjectAttention, Modulate
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.sites import list_sites
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.generate import generate
from emerdiff_probe.trajectories.inversion import invert

FAMILIES = [tiny.pocket, tiny.sd1, tiny.sd2, tiny.sdxl]


def small_image(model):
    """Two of the coarsest grid's cells along a side, or a few more."""
    side = max(2 * model.multiple, 32)
    return model.to_tensor(tiny.picture(side, side))


def changes(model, latents):
    site = next(site for site in list_sites(model, kind="cross", stage="up", part="output"))
    mask = torch.zeros(site.grid(*latents.shape[-2:]))
    mask[: len(mask) // 2] = 1
    return [[Modulate(site, mask, strength, (301,)), InjectAttention()] for strength in (-5.0, 5.0)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("build", FAMILIES)
def test_every_family_replays_and_is_modulated_in_half_precision(build, dtype):
    model = load_model(build(), device="cpu", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    latents = model.encode(small_image(model))
    trajectory = invert(model, latents, start=301, steps=10, residuals=True)
    plain, *changed = denoise(model, trajectory, [[], *changes(model, latents)])
    assert all(values.dtype == torch.float32 for values in (latents, plain))
    torch.testing.assert_close(plain, latents[0], rtol=0, atol=0.1)
    reference = load_model(build(), device="cpu")
    exact = denoise(
        reference, invert(reference, latents, start=301, steps=10, residuals=True), changes(reference, latents)
    )
    for ours, theirs in zip(changed, exact, strict=True):
        moved = (theirs - latents[0]).abs().mean()
        assert (ours - theirs).abs().mean() < 0.1 * moved + 0.02
    assert torch.isfinite(model.decode(plain[None])).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_autoencoder_of_xl_stays_in_float32_to_the_bit(dtype):
    """It overflows in float16; by way of it, weights would lose their digits."""
    pipeline = tiny.sdxl()
    pipeline.vae.register_to_config(force_upcast=True)
    model = load_model(pipeline, device="cpu", dtype=dtype)
    assert model.autoencoder.dtype == torch.float32
    assert torch.equal(model.autoencoder.decoder.conv_in.weight, pipeline.vae.decoder.conv_in.weight)
    assert model.pipeline.text_encoder.dtype == model.dtype


def overflowing(part):
    pipeline = tiny.pocket()
    module = pipeline.unet if part == "denoiser" else pipeline.vae
    for convolution in [module] if part == "denoiser" else [module.encoder, module.decoder]:
        with torch.no_grad():
            convolution.conv_in.weight.fill_(4e4)
            convolution.conv_in.bias.fill_(4e4)
    return pipeline


@pytest.mark.parametrize("part", ["denoiser", "autoencoder"])
def test_what_overflows_in_float16_is_named_with_the_way_out(part):
    pipeline = overflowing(part)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model = load_model(pipeline, device="cpu", dtype="float16")
    runs = {
        "denoiser": [lambda: invert(model, latents, start=101, steps=10, residuals=True), lambda: generate(model, "")],
        "autoencoder": [lambda: model.decode(latents), lambda: model.encode(small_image(model))],
    }[part]
    for run in runs:
        with pytest.raises(ModelError, match=rf"the {part} gave NaN .*float16; accepted: .*bfloat16 or float32"):
            run()
    wide = load_model(pipeline, device="cpu", dtype="bfloat16")
    if part == "denoiser":
        invert(wide, latents, start=101, steps=10, residuals=True)
    else:
        wide.decode(latents)


def test_weights_that_overflow_in_float16_are_named_with_the_way_out():
    pipeline = tiny.pocket()
    pipeline.unet.conv_in.weight.data[0, 0, 0, 0] = 1e6
    load_model(pipeline, device="cpu", dtype="bfloat16")
    with pytest.raises(
        ModelError, match=r"infinite values, first in unet\.conv_in\.weight.*float16.*bfloat16 or float32"
    ):
        load_model(pipeline, device="cpu", dtype="float16")


@pytest.mark.parametrize("build", FAMILIES)
def test_attention_slicing_changes_nothing(build):
    pipeline = build()
    plain = load_model(pipeline, device="cpu")
    pipeline.enable_attention_slicing(1)
    sliced = load_model(pipeline, device="cpu")
    latents = plain.encode(small_image(plain))
    results = [
        denoise(model, invert(model, latents, start=301, steps=10, residuals=True), changes(model, latents))
        for model in (plain, sliced)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
