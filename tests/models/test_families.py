"""The laws that every family of models keeps, with diffusers' own pipelines as the judge."""

from collections import Counter
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention

from benchmarks.families import SMALL, ddpm, dit, flux, pixart, sd3, sd35_medium
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError, InterventionError, ModelError
from emerdiff_probe.hooks.attach import Capture, Edit, attached
from emerdiff_probe.interventions import InjectAttention, Modulate, Scale
from emerdiff_probe.models import folders
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.features import capture
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import default_sites, find_site, list_sites
from emerdiff_probe.studies.catalogue import make_study
from emerdiff_probe.studies.run import run_study
from emerdiff_probe.trajectories.denoise import conditionings, denoise, predict
from emerdiff_probe.trajectories.generate import generate
from emerdiff_probe.trajectories.inversion import invert

STEPS = 8
FLOW = {"sd3", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell", "sana", "auraflow"}
JOINT = {"sd3", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell", "auraflow"}
TEXTLESS = {"dit", "ddpm", "ldm"}


@pytest.fixture(scope="module", params=SMALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def family(name):
    return load_model(SMALL[name](), device="cpu")


@pytest.fixture(scope="module")
def image_latents(family):
    side = family.native_size
    return family.encode(family.to_tensor(tiny.picture(side, side)))


@pytest.fixture(scope="module")
def path(family, image_latents):
    """Its last three timesteps, inverted."""
    return invert(family, image_latents, start=family.schedule(STEPS).timesteps[-3], steps=STEPS)


@pytest.fixture(scope="module")
def layer(family):
    """The output of the last attention layer over the image's own cells."""
    return [site for site in list_sites(family, part="output") if site.kind in {"self", "joint", "linear"}][-1]


def half(family, site):
    mask = torch.zeros(site.grid(family.latent_side, family.latent_side))
    mask[: len(mask) // 2] = 1
    return mask


def can_inject(family):
    return not list_sites(family, kind="linear")


def run(family, latents, timestep, **hooks):
    told, _ = conditionings(family, latents, "", 1.0)
    with attached(family, **hooks) as record:
        output = predict(family, latents, timestep, told)
    return record, output


def test_sites_are_listed_in_the_order_in_which_they_run(family, image_latents):
    """What is captured last must run last, as a run that only captures stops there."""
    fired = []

    def watch(site):
        def keep(activation, rows, grid):
            fired.append(site)
            return activation[rows]

        return Edit(site, None, None, keep, "Watch")

    sites = list_sites(family)
    run(family, image_latents, family.schedule(STEPS).timesteps[-1], edits=[watch(site) for site in sites])
    assert fired == list(sites)


def test_channels_and_grid_agree_with_the_tensor(family, image_latents):
    sites = list_sites(family)
    timestep = family.schedule(STEPS).timesteps[-1]
    wide = image_latents if family.family == "dit" else torch.cat([image_latents, image_latents], -1)
    record, _ = run(family, wide, family.schedule(STEPS).exact(timestep), captures=[Capture(site) for site in sites])
    for site in sites:
        tensor = record[site, timestep]
        rows, columns = site.grid(*wide.shape[-2:])
        if tensor.ndim == 4:
            assert tensor.shape == (1, site.channels, rows, columns), site
        elif site.holds_cells:
            assert tensor.shape == (1, rows * columns, site.channels), site
        else:
            assert tensor.shape[::2] == (1, site.channels), site


def test_names_are_unique_and_find_their_site(family):
    sites = list_sites(family)
    assert max(Counter(site.name for site in sites).values()) == 1
    assert all(find_site(family, site.name) == site for site in sites)


def test_every_attention_layer_has_its_sites(family):
    """A release that renames layers must not make them vanish silently."""
    kinds = (Attention, FluxAttention)
    layers = {path for path, module in family.denoiser.named_modules() if isinstance(module, kinds)}
    assert {site.layer for site in list_sites(family) if site.layer} == layers
    counts = Counter(site.part for site in list_sites(family) if site.layer)
    assert all(counts[part] == len(layers) for part in ("query", "key", "value", "heads", "output"))


def test_no_op_hooks_are_bit_equal(family, image_latents, path):
    told, timestep = conditionings(family, image_latents, "", 1.0)[0], path.timesteps[0]
    expected = predict(family, path.latents[0], timestep, told)
    keep = [Edit(site, None, None, lambda old, rows, grid: old[rows], "Keep") for site in list_sites(family)]
    _, output = run(family, path.latents[0], timestep, edits=keep)
    assert torch.equal(output, expected)
    assert expected.abs().max() > 0


def test_invert_then_denoise_reconstructs(family, image_latents, path):
    assert torch.allclose(denoise(family, path, [[]]), image_latents, atol=1e-4)
    ddim = invert(family, image_latents, start=path.timesteps[0], steps=STEPS, method="ddim")
    assert torch.allclose(denoise(family, ddim, [[]]), image_latents, atol=1e-4)
    without = replace(path, residuals=torch.zeros_like(path.residuals))
    assert not torch.allclose(denoise(family, without, [[]]), image_latents, atol=1e-3)


def test_strength_zero_equals_the_baseline_and_strength_moves(family, path, layer):
    for placement in ("after", "before"):
        still, moved = (
            [Modulate(layer, half(family, layer), strength, (path.timesteps[0],), placement)]
            for strength in (0.0, 30.0)
        )
        results = denoise(family, path, [[], still, moved])
        assert torch.allclose(results[1], results[0], atol=1e-5)
        assert (results[2] - results[0]).abs().max() > 1e-3


def test_self_injection_reproduces_the_baseline_and_injection_changes_what_is_modulated(family, path):
    if not can_inject(family):
        with pytest.raises(InterventionError, match=r"linear.*no probabilities"):
            denoise(family, path, [[InjectAttention()]])
        return
    first = next(site for site in list_sites(family, part="output") if site.layer)
    push = Modulate(first, half(family, first), 30.0, (path.timesteps[0],))
    results = denoise(family, path, [[], [InjectAttention()], [push], [push, InjectAttention()]])
    assert torch.allclose(results[1], results[0], atol=1e-4)
    assert (results[3] - results[2]).abs().max() > 1e-6  # little where the block adds only its feed-forward layer


def test_injection_fixes_queries_and_keys_of_every_stream(family, path):
    if not can_inject(family):
        return
    timestep = path.timesteps[0]
    rows = torch.cat([path.latents[0], path.latents[0].flip(-1)])
    mixed = [
        site
        for site in list_sites(family)
        if site.kind in {"self", "cross", "joint"} and site.part.removeprefix("text_") in {"query", "key"}
    ]
    record, _ = run(
        family, rows, timestep, edits=InjectAttention().edits(family, [1], [0]), captures=[Capture(s) for s in mixed]
    )
    assert all(torch.equal(*record[site, timestep]) for site in mixed)
    record, _ = run(family, rows, timestep, captures=[Capture(site) for site in mixed if site.part == "query"])
    assert not any(torch.equal(*held) for held in (record[site, timestep] for site in mixed if site.part == "query"))


def test_batched_equals_one_at_a_time(family, path, layer):
    injection = [InjectAttention()] if can_inject(family) else []
    variants = [
        [Modulate(layer, half(family, layer), strength, (path.timesteps[0],)), *injection] for strength in (-20.0, 20.0)
    ]
    together = denoise(family, path, variants)
    assert torch.allclose(denoise(family, path, variants, batch_size=1), together, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_an_exception_leaves_zero_hooks_and_the_weights(family, path, layer):
    weights = tiny.state_of(family.denoiser)
    processors = dict(getattr(family.denoiser, "attn_processors", {}))

    def fail(activation, rows, grid):
        raise RuntimeError("in the middle")

    injections = InjectAttention().edits(family, [0], [0]) if can_inject(family) else []
    edits = [*injections, Edit(layer, None, None, fail, "Fail")]
    with pytest.raises(RuntimeError, match="in the middle"):
        run(family, path.latents[0], path.timesteps[0], edits=edits)
    assert tiny.hooks_of(family.denoiser) == []
    assert dict(getattr(family.denoiser, "attn_processors", {})) == processors
    assert all(torch.equal(weights[key], tensor) for key, tensor in family.denoiser.state_dict().items())


def test_features_are_read_at_several_timesteps_in_one_pass(family, path, layer):
    together = capture(family, path, [layer], path.timesteps)
    for timestep in path.timesteps:
        alone = capture(family, path, [layer], [timestep])[layer, timestep]
        assert torch.allclose(together[layer, timestep], alone, atol=1e-5)
        assert alone.shape == (1, half(family, layer).numel(), layer.channels)


def test_stopping_early_gives_the_image_that_is_predicted_then(family, path):
    read = denoise(family, path, [[]], steps=1)
    timestep, x = path.timesteps[0], path.latents[0]
    schedule = family.schedule(STEPS)
    prediction = predict(family, x, schedule.exact(timestep), conditionings(family, x, "", 1.0)[0])
    noise_free = schedule.predict_original(prediction, timestep, x)
    assert torch.allclose(read, noise_free, atol=1e-4)
    # what is predicted leads back to x_t with the noise that is predicted with it
    if schedule.eta == 0:
        assert torch.allclose(schedule.add_noise(noise_free, noise_free + prediction, timestep), x, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precisions_run(name, dtype):
    """Values outside the denoiser stay float32, and residuals make up for its lost digits."""
    lesser = load_model(SMALL[name](), device="cpu", dtype=dtype)
    latents = lesser.encode(lesser.to_tensor(tiny.picture(lesser.native_size, lesser.native_size)))
    inverted = invert(lesser, latents, start=lesser.schedule(STEPS).timesteps[-2], steps=STEPS)
    assert latents.dtype == inverted.latents.dtype == torch.float32
    assert torch.allclose(denoise(lesser, inverted, [[]]), latents, atol=0.05)
    assert lesser.decode(latents).isfinite().all()


def test_images_that_are_not_square_run_or_are_squeezed(family):
    height, width = family.working_size(100, 180)
    latents = family.encode(family.to_tensor(tiny.picture(100, 180), (height, width)))
    start = family.schedule(STEPS).timesteps[-2]
    inverted = invert(family, latents, start=start, steps=STEPS)
    assert torch.allclose(denoise(family, inverted, [[]]), latents, atol=1e-4)
    assert (height < width) == (family.family != "dit")


def test_a_prompt_is_told_or_refused(family, name, image_latents):
    side = family.native_size
    if name in TEXTLESS:
        with pytest.raises(InputError, match="accepted"):
            family.embed("a red car", side, side)
        return
    timestep = family.schedule(STEPS).timesteps[-1]
    outputs = [predict(family, image_latents, timestep, family.embed(text, side, side)) for text in ("", "red car")]
    assert not torch.allclose(*outputs, atol=1e-6)


# --- diffusers' own pipelines as the judge


def calls_of(pipeline, **arguments):
    """What a pipeline passes through its denoiser, and what comes out: (arguments, output) of every pass."""
    denoiser, seen = getattr(pipeline, "transformer", None) or pipeline.unet, []

    def watch(_, args, kwargs, output):
        seen.append((args, kwargs, output[0] if isinstance(output, tuple) else output.sample))

    handle = denoiser.register_forward_hook(watch, with_kwargs=True)
    try:
        result = pipeline(output_type="np" if "unet" in pipeline.components else "latent", **arguments)
    finally:
        handle.remove()
    return seen, result


JUDGED = {
    "sd3": {"prompt": "red car", "guidance_scale": 1.0},
    "sd3.5-medium": {"prompt": "red car", "guidance_scale": 1.0},
    "sd3.5-large": {"prompt": "red car", "guidance_scale": 1.0},
    "flux-dev": {"prompt": "red car", "guidance_scale": 1.0, "max_sequence_length": 512},
    "flux-schnell": {"prompt": "red car", "max_sequence_length": 512},
    "auraflow": {"prompt": "red car", "guidance_scale": 1.0},
}


@pytest.mark.parametrize("judged", JUDGED)
def test_generating_without_guidance_is_what_the_pipeline_generates(judged):
    """Its own timesteps, conditions, velocities and steps, from the same noise."""
    model = load_model(SMALL[judged](), device="cpu")
    side, told = model.native_size, JUDGED[judged]
    made = generate(model, told["prompt"], seed=3, steps=4, guidance=1.0)
    start = made.latents[0]
    pipeline = model.pipeline
    given = pipeline._pack_latents(start, *start.shape) if "flux" in judged else start
    seen, result = calls_of(pipeline, num_inference_steps=4, height=side, width=side, latents=given, **told)
    final = result.images
    if "flux" in judged:
        final = pipeline._unpack_latents(final, side, side, pipeline.vae_scale_factor)
    assert torch.allclose(made.final, final, atol=1e-5)
    reads = [model.read_pass(args, kwargs) for args, kwargs, _ in seen]
    assert [passed.timesteps for passed in reads] == [(timestep,) for timestep in model.schedule(4).timesteps]
    assert {passed.latent_size for passed in reads} == {(model.latent_side, model.latent_side)}


@pytest.mark.parametrize("judged", ["pixart-alpha", "pixart-sigma", "dit"])
def test_generating_is_what_the_pipeline_generates_under_the_same_sampler(judged):
    """DDIM on the paper's grid, in the place of the pipeline's own solver."""
    model = load_model(SMALL[judged](), device="cpu")
    side, pipeline = model.native_size, model.pipeline
    pipeline.scheduler = model.scheduler
    prompt = "207" if judged == "dit" else "red car"
    made = generate(model, prompt, seed=3, steps=4, eta=0.0, guidance=1.0)
    if judged == "dit":
        draw = diffusers.pipelines.dit.pipeline_dit.randn_tensor
        diffusers.pipelines.dit.pipeline_dit.randn_tensor = lambda *_, **__: made.latents[0]
        try:
            seen, _ = calls_of(pipeline, class_labels=[207], guidance_scale=1.0, num_inference_steps=4)
        finally:
            diffusers.pipelines.dit.pipeline_dit.randn_tensor = draw
    else:
        seen, result = calls_of(
            pipeline,
            prompt=prompt,
            guidance_scale=1.0,
            num_inference_steps=4,
            height=side,
            width=side,
            latents=made.latents[0],
            use_resolution_binning=False,
            clean_caption=False,
        )
        assert torch.allclose(made.final, result.images, atol=1e-5)
    for (args, kwargs, output), x, timestep in zip(seen, made.latents, made.timesteps, strict=False):
        assert model.read_pass(args, kwargs).timesteps == (timestep,)
        assert torch.allclose(args[0], x, atol=1e-5)
        ours = predict(model, x, timestep, model.embed(prompt, side, side))
        assert torch.allclose(output[:, :4], ours, atol=1e-5)


def test_pixart_alpha_is_told_the_size_of_its_image_as_by_its_pipeline():
    model = load_model(pixart(side=128, layers=1), device="cpu")
    x = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    seen, _ = calls_of(
        model.pipeline,
        prompt="red car",
        guidance_scale=1.0,
        num_inference_steps=2,
        height=64,
        width=128,
        latents=x,
        use_resolution_binning=False,
    )
    _, kwargs, output = seen[0]
    timestep = int(kwargs["timestep"])
    assert kwargs["added_cond_kwargs"]["resolution"].tolist() == [[64, 128]]
    condition = model.embed("red car", 64, 128)
    assert torch.allclose(model.predict(seen[0][0][0], timestep, condition), output[:, :4], atol=1e-5)
    assert not torch.allclose(model.predict(seen[0][0][0], timestep, model.embed("red car", 64, 64)), output[:, :4])


@pytest.mark.parametrize("judged", ["ddpm", "ldm"])
def test_pixels_and_unconditional_latents_are_denoised_as_by_their_pipeline(judged):
    model = load_model(SMALL[judged](), device="cpu")
    seen, _ = calls_of(model.pipeline, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    for args, kwargs, output in seen:
        (timestep,) = model.read_pass(args, kwargs).timesteps
        assert torch.equal(model.predict(args[0], timestep, model.embed("", 0, 0)), output)
    if judged == "ddpm":
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(model.encode(images), images)
        assert torch.equal(model.decode(images), images)


def test_sana_is_told_what_its_pipeline_tells_it():
    model = load_model(SMALL["sana"](), device="cpu")
    side = model.native_size
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    seen, _ = calls_of(
        model.pipeline,
        prompt="red car",
        guidance_scale=1.0,
        num_inference_steps=4,
        height=side,
        width=side,
        latents=x,
        use_resolution_binning=False,
        clean_caption=False,
    )
    schedule = model.schedule(4)
    for (args, kwargs, output), timestep in zip(seen, schedule.timesteps, strict=True):
        assert model.read_pass(args, kwargs).timesteps == (timestep,)
        ours = model.predict(args[0], schedule.exact(timestep), model.embed("red car", side, side))
        assert torch.allclose(ours, output, atol=1e-5)


def test_what_latents_are_is_what_the_pipelines_autoencoder_says():
    for build in (sd3, pixart):
        model = load_model(build(), device="cpu")
        config, images = model.autoencoder.config, model.to_tensor(tiny.picture(128, 128))
        raw = model.autoencoder.encode(images).latent_dist.mean
        assert torch.allclose(
            model.encode(images), (raw - (config.shift_factor or 0)) * config.scaling_factor, atol=1e-6
        )


# --- flow matching


def test_the_timesteps_of_stable_diffusion_3_are_its_pipelines_rounded():
    model = load_model(sd3(), device="cpu")
    model.pipeline.scheduler.set_timesteps(28)
    schedule = model.schedule(28)
    own = model.pipeline.scheduler.timesteps
    assert schedule.timesteps == tuple(round(float(t)) for t in own)
    assert schedule.timesteps[0] == 1000
    assert torch.allclose(schedule.exact(torch.tensor(schedule.timesteps)), own, atol=1e-3)


def test_half_the_way_is_half_noise():
    """x_t = (1 - s) x_0 + s noise; a step moves along the velocity by what s falls."""
    schedule = load_model(SMALL["flux-schnell"](), device="cpu").schedule(4)
    assert schedule.timesteps == (1000, 750, 500, 250)
    x, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 6.0)
    assert schedule.add_noise(x, noise, 500).item() == 4.0
    assert schedule.add_noise(x, noise, 1000).item() == 6.0
    velocity, at_500 = noise - x, schedule.add_noise(x, noise, 500)
    assert schedule.step(velocity, 500, at_500, eta=0.0).item() == 3.0
    assert schedule.step(velocity, 1000, noise, eta=0.0, to=250).item() == 3.0
    assert schedule.step(velocity, 250, schedule.add_noise(x, noise, 250), eta=0.0).item() == 2.0
    assert schedule.step_up(velocity, 250, x).item() == 3.0
    assert schedule.predict_original(velocity, 500, at_500).item() == 2.0


def test_a_step_of_flow_matching_draws_no_noise():
    model = load_model(sd3(), device="cpu")
    schedule, x = model.schedule(4), torch.zeros(1, 16, 16, 16)
    with pytest.raises(InputError, match="draws no noise; accepted: 0"):
        schedule.step(x, schedule.timesteps[0], x, eta=1.0)
    with pytest.raises(InputError, match="accepted: 0"):
        generate(model, "", steps=2, eta=1.0, guidance=1.0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(InputError, match="1 to 1000"):
        load_model(sd3(), device="cpu").schedule(steps)


def test_steps_that_round_to_one_timestep_are_refused():
    with pytest.raises(InputError, match="round to one timestep"):
        load_model(sd3(), device="cpu").schedule(900)


# --- each family's own


def test_a_distilled_flux_is_told_its_guidance_in_one_pass():
    dev, schnell = (load_model(flux(distilled=distilled), device="cpu") for distilled in (True, False))
    told, free = dev.conditionings("red car", 128, 128, 3.5)
    assert free is None
    assert told.added["guidance"].tolist() == [[3.5]]
    _, free = schnell.conditionings("red car", 128, 128, 3.5)
    assert free is not None


def test_modulating_the_image_of_a_single_stream_leaves_its_text_alone():
    model = load_model(flux(), device="cpu")
    image, text = (find_site(model, f"single8.joint0.{part}") for part in ("heads", "text_heads"))
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    push = Modulate(image, torch.ones(8, 8), 5.0, (500,), "before").edits(model, [1], [0])
    rows = torch.cat([x[:1], x[:1]])
    record, _ = run(model, rows, 500, edits=push, captures=[Capture(image), Capture(text)])
    assert torch.equal(*record[text, 500])
    assert torch.allclose(record[image, 500][1], record[image, 500][0] + 5.0, atol=1e-5)
    assert record[text, 500].shape[1] == 512
    output, _ = (find_site(model, f"single8.joint0.{part}") for part in ("output", "text_output"))
    assert output.path.endswith("single_transformer_blocks.0.proj_out")


def test_dual_attention_is_self_beside_joint():
    model = load_model(sd35_medium(), device="cpu")
    kinds = Counter(site.kind for site in list_sites(model, part="query"))
    assert kinds == {"joint": 3, "self": 2}
    assert Counter(site.kind for site in list_sites(load_model(sd3(), device="cpu"), part="query")) == {"joint": 3}


def test_the_last_block_of_stable_diffusion_3_gives_up_its_text():
    texts = list_sites(load_model(sd3(), device="cpu"), part="text_output")
    assert [site.nth for site in texts] == [0, 1]


def test_the_published_depths_have_their_sites():
    """Token grids and numbers of layers of Stable Diffusion 3.5 medium and Flux.1, without running them."""
    medium = load_model(sd35_medium(side=128, layers=24), device="cpu")
    assert (medium.native_size, medium.multiple) == (1024, 16)
    assert {site.resolution for site in list_sites(medium)} == {64}
    assert len(list_sites(medium, kind="joint", part="query")) == 24
    dev = load_model(flux(side=128, layers=19, singles=38), device="cpu")
    assert len(list_sites(dev, kind="joint", part="query", stage="double")) == 19
    assert find_site(dev, "single64.joint37.query").path == "single_transformer_blocks.37.attn.to_q"


def test_an_image_larger_than_there_are_positions_is_squeezed_or_refused():
    model = load_model(sd3(), device="cpu")
    assert model.largest_side == 384
    assert model.working_size(100, 1000) == (128, 384)
    with pytest.raises(InputError, match="up to 384"):
        model.encode(torch.zeros(1, 3, 128, 400))


def test_a_class_is_known_by_name_and_number():
    model = load_model(dit(), device="cpu")
    labels = [int(model.embed(prompt, 0, 0).added["class_labels"]) for prompt in ("retriever", "207", "")]
    assert labels == [207, 207, 1000]
    with pytest.raises(InputError, match="a number below 1000"):
        model.embed("1000", 0, 0)
    with pytest.raises(InputError, match="squares only"):
        model.predict(torch.zeros(1, 4, 8, 16), 1, model.embed("", 0, 0))


def test_levels_are_shared_where_there_are_levels():
    model = load_model(ddpm(), device="cpu")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inverted = invert(model, x, start=model.schedule(STEPS).timesteps[-3], steps=STEPS)
    site = [site for site in list_sites(model, part="output", stage="up") if site.layer][-1]
    variants = [[Modulate(site, half(model, site), 20.0, (inverted.timesteps[0],))]]
    assert denoise(model, inverted, variants, shared_levels=1).isfinite().all()
    flat = load_model(sd3(), device="cpu")
    latents = torch.zeros(1, 16, 16, 16)
    path = invert(flat, latents, start=flat.schedule(STEPS).timesteps[-3], steps=STEPS)
    with pytest.raises(InputError, match="accepted: 0 to 0"):
        denoise(flat, path, [[Scale(find_site(flat, "double8.block0.output"), 0.5)]], shared_levels=1)


# --- refused by name


def test_a_denoiser_of_no_family_is_named():
    pipeline = sd3()
    pipeline.transformer = diffusers.CogView4Transformer2DModel(num_layers=1, num_attention_heads=2, text_embed_dim=8)
    with pytest.raises(ModelError, match=r"CogView4Transformer2DModel; accepted: .*SD3Transformer2DModel"):
        load_model(pipeline, device="cpu")


def test_a_folder_of_no_family_is_named_before_its_weights_are_read(tmp_path, monkeypatch):
    pipeline = sd3()
    pipeline.register_modules(
        transformer=diffusers.CogView4Transformer2DModel(num_layers=1, num_attention_heads=2, text_embed_dim=8)
    )
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    monkeypatch.setattr(folders, "_load_weights", None)
    with pytest.raises(ModelError, match=r"CogView4Transformer2DModel; accepted: .*SD3Transformer2DModel"):
        load_model(tmp_path, device="cpu")


def test_a_schedule_that_is_no_flow_matching_is_named():
    pipeline = sd3()
    pipeline.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ModelError, match=r"DDIMScheduler; accepted: FlowMatchEuler"):
        load_model(pipeline, device="cpu")
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(ModelError, match="stochastic_sampling"):
        load_model(pipeline, device="cpu")


def test_a_denoiser_that_takes_more_than_latents_is_named():
    """As Flux's for inpainting and for control."""
    pipeline = flux()
    settings = {**pipeline.transformer.config, "in_channels": 128}
    pipeline.transformer = diffusers.FluxTransformer2DModel.from_config(settings)
    with pytest.raises(ModelError, match=r"takes 128 channels.*accepted: the 64"):
        load_model(pipeline, device="cpu")


def test_an_offset_on_all_channels_is_lost_where_only_layer_norm_reads_it():
    """What must hold for the method: PixArt's last cross-attention is followed by norms that take off the mean."""
    model = load_model(pixart(), device="cpu")
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    path = invert(model, x, start=model.schedule(STEPS).timesteps[-3], steps=STEPS)
    last = list_sites(model, kind="cross", part="output")[-1]
    ones = Modulate(last, half(model, last), 30.0, (path.timesteps[0],))
    other = replace(ones, direction=torch.arange(last.channels))
    results = denoise(model, path, [[], [ones], [other]])
    assert torch.allclose(results[1], results[0], atol=1e-4)
    assert (results[2] - results[0]).abs().max() > 1e-2


# --- settings, by rule, and the verbs


def test_the_default_sites_lie_in_the_middle_of_a_transformer():
    dev = load_model(flux(side=128, layers=19, singles=38), device="cpu")
    assert [site.name for site in default_sites(dev)] == ["single64.joint9.query", "single64.joint9.output"]
    alpha = load_model(pixart(layers=28), device="cpu")
    assert [site.name for site in default_sites(alpha)] == ["single8.self14.query", "single8.self14.output"]


def test_the_default_sites_of_a_u_net_are_upwards_and_coarse():
    names = [site.name for site in default_sites(load_model(ddpm(), device="cpu"))]
    assert names == ["up16.self0.query", "up16.self2.output"]


def test_settings_follow_from_a_rule(family, name):
    config = EmerDiffConfig.for_model(family)
    grid = family.schedule(config.inversion.steps).timesteps
    assert config.modulation.modulate_at in grid
    ratio = family.schedule(config.inversion.steps).noise_to_signal(config.modulation.modulate_at)
    assert abs(ratio - 0.78) < 0.1  # the paper's noise at t = 281
    kinds = {site.kind for site in list_sites(family, part="query")}
    assert set(config.modulation.injection) == kinds & {"self", "cross", "joint"}
    fast = EmerDiffConfig.fast(family)
    assert EmerDiffConfig.draft(family).readout.shared_levels == fast.readout.shared_levels
    assert fast.readout.shared_levels == min(1, family.levels - 1)


def test_segment_runs_on_every_family(family):
    config = EmerDiffConfig.fast(family, clusters=3, steps=STEPS)
    result = segment(family, tiny.picture(100, 100), config)
    assert result.labels.shape == (100, 100)
    assert set(np.unique(result.labels)) <= {0, 1, 2}


@pytest.mark.parametrize("study", ["layers", "modulate_at"])
@pytest.mark.parametrize("studied", ["sd3", "flux-dev", "pixart-alpha", "ddpm"])
def test_the_studies_that_find_settings_run(studied, study, tmp_path):
    model = load_model(SMALL[studied](), device="cpu")
    make = EmerDiffConfig.for_model if study == "layers" else EmerDiffConfig.fast  # layers modulates nothing
    config, data = make(model, clusters=3, steps=STEPS), World(range(2), side=64)
    result = run_study(model, make_study(study, model, data, config, quick=True), data, store=tmp_path / "s")
    assert result.computed > 0


def test_a_folder_of_every_family_loads_as_its_pipeline(name, family, tmp_path):
    SMALL[name]().save_pretrained(tmp_path / name, safe_serialization=True)
    loaded = load_model(tmp_path / name, device="cpu")
    assert type(loaded) is type(family)
    assert loaded.fingerprint == family.fingerprint
    side = 128 if loaded.autoencoder is not None else 32
    embedded = [model.embed("", side, side) for model in (loaded, family)]
    assert torch.allclose(embedded[0].hidden_states, embedded[1].hidden_states)
