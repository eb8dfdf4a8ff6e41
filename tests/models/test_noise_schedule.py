"""The noise schedule is the model's own: noisy latents and reverse means are those of the pipeline's own scheduler."""

from functools import cache

import diffusers
import pytest
import tiny
import torch

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.noise_schedule import SERVED, make_ddim

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = 20
ELSEWHERE = {"DDIMInverseScheduler", "DPMSolverSDEScheduler"}
"""Schedulers without noise of their own, or with another library (torchsde)."""


PIPELINE = cache(tiny.pocket)
"""One for all schedulers: a pipeline that is given stays as it is."""


def with_scheduler(scheduler):
    pipeline = PIPELINE()
    pipeline.scheduler = scheduler
    return load_model(pipeline, device="cpu")


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, 4, 4, 4, generator=generator) for _ in range(3))


@pytest.mark.parametrize("name", sorted(SERVED - ELSEWHERE))
def test_noisy_latents_are_the_pipelines_own_at_every_timestep_of_the_grid(name):
    own = getattr(diffusers, name)(**SD)
    schedule = with_scheduler(own).schedule(STEPS)
    latents, noise, _ = draws()
    if "timestep_spacing" in own.config:
        own = type(own).from_config(own.config, timestep_spacing="leading", steps_offset=1)
    own.set_timesteps(STEPS)
    sigmas = getattr(own, "sigmas", None)
    for timestep in schedule.timesteps:
        at = torch.tensor([timestep])
        ours = schedule.add_noise(latents, noise, timestep)
        alpha = own.alphas_cumprod[timestep]
        if sigmas is None:
            theirs = own.add_noise(latents, noise, at)
        else:  # x_0 + sigma noise, and the denoiser sees it divided by sqrt(sigma^2 + 1)
            sigma = ((1 - alpha) / alpha) ** 0.5
            assert sigmas.sub(sigma).abs().min() < 0.02 * sigma or name.startswith(("DPMSolver", "UniPC", "DEIS"))
            theirs = (latents + sigma * noise) / (sigma**2 + 1) ** 0.5
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "settings",
    [
        SD,
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
        {"trained_betas": torch.linspace(0.001, 0.02, 500).tolist(), "num_train_timesteps": 500},
        {**SD, "rescale_betas_zero_snr": True},
    ],
    ids=["stable-diffusion", "linear", "cosine", "sigmoid", "laplace", "trained", "zero-snr"],
)
def test_reverse_means_are_those_of_ddpm_at_every_timestep_of_the_grid(settings, prediction):
    own = diffusers.DDPMScheduler(
        **settings,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
        variance_type="fixed_small",
    )
    model = with_scheduler(own)
    torch.testing.assert_close(model.scheduler.alphas_cumprod, own.alphas_cumprod, rtol=1e-5, atol=1e-7)
    schedule = model.schedule(STEPS)
    own.set_timesteps(STEPS)
    assert own.timesteps.tolist() == list(schedule.timesteps)
    latents, predicted, noise = draws()
    for timestep in schedule.timesteps[
        :-1
    ]:  # the last step: ours ends at the first training timestep, DDPM's at no noise
        torch.testing.assert_close(
            schedule.add_noise(latents, noise, timestep),
            own.add_noise(latents, noise, torch.tensor([timestep])),
            rtol=1e-4,
            atol=1e-5,
        )
        ours = schedule.step(predicted, timestep, latents, eta=1.0)
        means = [
            own.step(predicted, timestep, latents, generator=torch.Generator().manual_seed(seed)).prev_sample
            for seed in range(2)
        ]
        spread = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        deviation = own._get_variance(timestep) ** 0.5
        torch.testing.assert_close(ours, means[0] - deviation * spread, rtol=1e-3, atol=1e-4)
        assert not torch.equal(*means)


def test_betas_that_ddim_does_not_know_are_taken_as_they_are():
    own = diffusers.HeunDiscreteScheduler(beta_schedule="exp")
    assert torch.equal(make_ddim(own, "heun").betas, own.betas)


def test_reverse_means_are_those_of_the_pipelines_own_ddim():
    own = diffusers.DDIMScheduler(
        **SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    schedule = with_scheduler(own).schedule(STEPS)
    own.set_timesteps(STEPS)
    latents, predicted, _ = draws()
    zeros = torch.zeros_like(latents)
    for timestep in schedule.timesteps:
        theirs = own.step(predicted, timestep, latents, eta=1.0, variance_noise=zeros).prev_sample
        assert torch.equal(schedule.step(predicted, timestep, latents, eta=1.0), theirs)


@pytest.mark.parametrize(
    "name",
    [
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CMStochasticIterativeScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
        "DDPMWuerstchenScheduler",
        "IPNDMScheduler",
    ],
)
def test_other_processes_are_refused_by_name(name):
    with pytest.raises(ModelError, match=rf"the scheduler is {name}; accepted: .*DDIMScheduler"):
        with_scheduler(getattr(diffusers, name)())


def test_vq_diffusion_is_refused_by_name():
    with pytest.raises(ModelError, match="VQDiffusionScheduler"):
        with_scheduler(diffusers.VQDiffusionScheduler(num_vec_classes=4))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "flow_prediction"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "continuous"),
        (diffusers.DDIMScheduler(trained_betas=[0.1, 0.2]), "2,.* 1000 training timesteps"),
        (diffusers.DDIMScheduler(trained_betas=[float("nan")] * 1000), "no noise schedule"),
        (diffusers.DDIMScheduler(beta_start=-0.1, beta_end=0.1), "no noise schedule"),
        (diffusers.DDIMScheduler(trained_betas=[0.5], num_train_timesteps=1), "2 or more"),
    ],
    ids=str,
)
def test_schedules_that_are_not_ours_or_none_are_refused(scheduler, message):
    with pytest.raises(ModelError, match=message):
        with_scheduler(scheduler)


def test_a_schedule_that_was_edited_and_is_not_its_configurations_is_refused():
    scheduler = diffusers.DDIMScheduler(**SD)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ModelError, match="not those of its configuration"):
        with_scheduler(scheduler)
