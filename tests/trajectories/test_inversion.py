"""Invert then denoise reconstructs; the noise is drawn as the method says."""

from dataclasses import replace

import pytest
import tiny
import torch

from emerdiff_probe.errors import InputError, TimestepError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.sites import find_site
from emerdiff_probe.trajectories.denoise import denoise
from emerdiff_probe.trajectories.generate import generate
from emerdiff_probe.trajectories.inversion import invert
from emerdiff_probe.trajectories.noise import noise


@pytest.fixture(scope="module")
def predicting(model):
    """The same weights under schedulers of every prediction type."""
    others = {kind: load_model(tiny.pocket(kind), device="cpu") for kind in ("sample", "v_prediction")}
    return {"epsilon": model, **others}


@pytest.fixture(scope="module")
def batch(model):
    pictures = [tiny.picture(64, 96, seed) for seed in range(3)]
    return torch.cat([model.encode(model.to_tensor(picture)) for picture in pictures])


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("predicts", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "start"), [(50, 281), (50, 1), (20, 301)])
def test_invert_then_denoise_reconstructs(predicting, latents, method, predicts, steps, start):
    probed = predicting[predicts]
    assert probed.scheduler.config.prediction_type == predicts
    inverted = invert(probed, latents, start=start, steps=steps, method=method)
    assert inverted.timesteps[0] == start
    assert inverted.timesteps[-1] == 1
    assert inverted.eta == (1.0 if method == "ddpm" else 0.0)
    assert torch.equal(inverted.final, latents.float())
    assert torch.allclose(denoise(probed, inverted, [[]]), latents, atol=1e-4)


def test_the_residuals_are_needed(model, trajectory):
    """Otherwise reconstruction would show nothing."""
    without = replace(trajectory, residuals=torch.zeros_like(trajectory.residuals))
    assert (denoise(model, without, [[]]) - trajectory.final).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_batch_of_images_equals_one_at_a_time(model, batch, method):
    together = invert(model, batch, start=301, steps=10, method=method)
    assert together.batch == 3
    for index in range(3):
        alone = invert(model, batch[index : index + 1], start=301, steps=10, method=method)
        image = together.image(index)
        assert torch.allclose(image.latents, alone.latents, atol=1e-5)
        assert torch.allclose(image.residuals, alone.residuals, atol=1e-4)
        assert torch.allclose(denoise(model, image, [[]]), batch[index : index + 1], atol=1e-4)


def test_rows_a_pass_do_not_matter(model, batch):
    one, all_rows = (invert(model, batch, start=201, steps=10, batch_size=size) for size in (1, 99))
    assert torch.allclose(one.residuals, all_rows.residuals, atol=1e-4)


def test_an_inversion_that_runs_out_of_memory_halves_its_batches(model, batch):
    whole, passes = invert(model, batch, start=201, steps=10), []

    def hungry(_, args):
        passes.append(len(args[0]))
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    handle = model.denoiser.conv_in.register_forward_pre_hook(hungry)
    try:
        halved = invert(model, batch, start=201, steps=10)
    finally:
        handle.remove()
    assert passes[0] == 9
    assert torch.allclose(halved.residuals, whole.residuals, atol=1e-4)


def test_draws_match_q_and_are_independent_between_timesteps(model):
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, with a fresh noise at every t."""
    image = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    drawn = invert(model, image, start=281, steps=50)
    noises = []
    for timestep in drawn.timesteps:
        alpha = model.scheduler.alphas_cumprod[timestep]
        noise = (drawn.at(timestep) - alpha.sqrt() * image) / (1 - alpha).sqrt()
        assert abs(float(noise.mean())) < 0.08  # five standard errors of 4096 draws
        assert abs(float(noise.std()) - 1) < 0.06
        noises.append(noise.flatten())
    correlations = torch.corrcoef(torch.stack([*noises, image.flatten()]))
    assert (correlations - torch.eye(len(correlations))).abs().max() < 0.08


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_same_seed_same_bits_and_other_seed_other_draws(model, latents, method):
    one, same, other = (invert(model, latents, start=201, steps=10, method=method, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.latents, same.latents)
    assert torch.equal(one.residuals, same.residuals)
    assert torch.equal(one.latents, other.latents) == (method == "ddim")


def test_the_global_random_state_is_neither_used_nor_touched(model, latents):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = invert(model, latents, start=101, steps=10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(invert(model, latents, start=101, steps=10).latents, one.latents)


def test_ddim_rises_deterministically_and_needs_small_residuals(model, latents):
    ddim, ddpm = (invert(model, latents, start=301, method=method) for method in ("ddim", "ddpm"))
    assert ddim.residuals.abs().mean() < 0.2 * ddpm.residuals.abs().mean()


def test_the_prompt_matters_and_is_kept(model, latents):
    told = invert(model, latents, start=201, steps=10, prompt="red car")
    plain = invert(model, latents, start=201, steps=10)
    assert told.prompt == "red car"
    assert torch.equal(told.latents, plain.latents)
    assert not torch.allclose(told.residuals, plain.residuals, atol=1e-4)
    assert torch.allclose(denoise(model, told, [[]]), latents, atol=1e-4)


@pytest.mark.parametrize(("start", "near"), [(280, "261, 281"), (300, "301"), (999, "981")])
def test_a_start_off_the_grid_names_the_near_timesteps(model, latents, start, near):
    with pytest.raises(TimestepError, match=f"timestep {start} .*near ones: .*{near}"):
        invert(model, latents, start=start)


def test_an_unknown_method_is_refused(model, latents):
    with pytest.raises(InputError, match="accepted: ddpm, ddim"):
        invert(model, latents, method="null-text")


@pytest.mark.parametrize("size", [(10, 13), (16, 24)])
def test_latents_of_any_size_invert(model, size):
    image = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    inverted = invert(model, image, start=201, steps=10)
    assert torch.allclose(denoise(model, inverted, [[]]), image, atol=1e-4)


@pytest.mark.parametrize("draw", [0, 3])
def test_the_noise_at_a_timestep_does_not_depend_on_where_the_path_starts_or_on_the_grid(model, batch, draw):
    """Grids of 10 and 50 steps both hold 1, 101 and 201; every image of a batch gets what it would get alone."""
    paths = [
        invert(model, images, start=start, steps=steps, seed=5, draw=draw, residuals=False)
        for images in (batch, batch[:1])
        for start, steps in ((201, 10), (901, 10), (201, 50), (981, 50))
    ]
    for timestep in (1, 101, 201):
        first = paths[0].at(timestep)
        for path in paths:
            assert torch.equal(path.at(timestep), first[: path.batch])


@pytest.mark.parametrize("method", ["segment's", "a study's", "an explorer's"])
def test_an_image_holds_the_same_noise_whoever_probes_it(model, method):
    start = {"segment's": 301, "a study's": 901, "an explorer's": 401}[method]
    probed, first = (ProbedImage(model, tiny.picture(), start=at, steps=10, draws=3) for at in (start, 301))
    for timestep in (1, 301):
        assert torch.equal(probed.trajectory.at(timestep), first.trajectory.at(timestep))
    site = find_site(model, "up8.self0.query")
    assert torch.equal(probed.features(site, 301), first.features(site, 301))


def test_noise_is_a_function_of_seed_timestep_size_and_draw():
    one = noise(7, 281, (4, 8, 8))
    assert torch.equal(one, noise(7, 281, (4, 8, 8), draw=0))
    others = [noise(8, 281, (4, 8, 8)), noise(7, 261, (4, 8, 8)), noise(7, 281, (4, 8, 8), draw=1)]
    # numbers of which the same words could be made
    others += [noise(0, 7, (4, 8, 8), draw=281), noise(281, 7, (4, 8, 8)), noise(7 + 2**32, 281, (4, 8, 8))]
    others += [noise(2**63 - 1, 281, (4, 8, 8)), noise(7 + 2**32 * 281, 0, (4, 8, 8))]
    correlations = torch.corrcoef(torch.stack([each.flatten() for each in (one, *others)]))
    assert (correlations - torch.eye(len(correlations))).abs().max() < 0.35  # 5.6 standard errors of 256 draws


def test_a_generated_image_holds_the_noise_of_its_timesteps(model):
    """x_T is noise(seed, T), and what the step to the next timestep adds beyond its mean is that one's, scaled."""
    drawn = generate(model, "", seed=3, steps=10, guidance=1.0)
    assert torch.equal(drawn.latents[0, 0], noise(3, drawn.timesteps[0], drawn.latents.shape[2:]))
    for residual, timestep in zip(drawn.residuals[:, 0], (*drawn.timesteps[1:], 0), strict=True):
        added = noise(3, timestep, residual.shape)
        ratio = residual.std() / added.std()
        assert torch.allclose(residual, ratio * added, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 1.5), ("timestep", -1), ("draw", True)])
def test_noise_of_no_seed_timestep_or_draw_is_refused(name, value):
    with pytest.raises(InputError, match=rf"{name} {value!r}; accepted: an integer from 0 to"):
        noise(**{"seed": 0, "timestep": 1, "shape": (1, 2, 2), "draw": 0, name: value})
