"""The denoising loop: batching, replay, guidance, errors."""

from dataclasses import dataclass, replace

import pytest
import tiny
import torch

from emerdiff_probe.errors import InputError, InterventionError, TimestepError
from emerdiff_probe.hooks.attach import Capture, Edit, attached
from emerdiff_probe.interventions import InjectAttention, Modulate, Noise, Replace, Scale
from emerdiff_probe.models.batching import run_in_batches
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.sites import Site, coarsest_blocks, find_site
from emerdiff_probe.trajectories.denoise import conditionings, denoise, predict, replay
from emerdiff_probe.trajectories.generate import generate
from emerdiff_probe.trajectories.inversion import invert


@pytest.fixture(scope="module")
def site(model):
    return find_site(model, "up8.cross2.output")


@pytest.fixture(scope="module")
def variants(site):
    """Five masks, each with injection by one shared object."""
    injection, made = InjectAttention(), []
    for row in range(5):
        mask = torch.zeros(8, 8)
        mask[row] = 1
        made.append([Modulate(site, mask, 20.0, (301,)), injection])
    return made


def test_the_grid_of_fifty_steps_is_the_papers(model):
    grid = model.schedule(50).timesteps
    assert grid == tuple(range(981, 0, -20))
    assert 281 in grid
    assert grid[-1] == 1


@pytest.mark.parametrize("steps", [0, -1, 1000])
def test_a_number_of_steps_that_is_out_of_range_is_refused(model, steps):
    with pytest.raises(InputError, match="accepted"):
        model.schedule(steps)


def test_making_a_schedule_leaves_the_models_own_alone(model):
    before = model.scheduler.timesteps.clone()
    model.schedule(7)
    assert torch.equal(model.scheduler.timesteps, before)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batched_equals_one_at_a_time(model, trajectory, variants, batch_size):
    together = denoise(model, trajectory, variants)
    assert torch.allclose(denoise(model, trajectory, variants, batch_size=batch_size), together, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_results_permute_with_the_variants(model, trajectory, variants):
    order = [3, 0, 4, 1, 2]
    permuted = denoise(model, trajectory, [variants[i] for i in order])
    assert torch.allclose(permuted, denoise(model, trajectory, variants)[order], atol=1e-5)


def test_a_variant_does_not_depend_on_its_neighbours(model, trajectory, variants, site):
    alone = denoise(model, trajectory, [variants[0]])[0]
    crowd = denoise(model, trajectory, [[Scale(site, 0.0)], variants[0], [Noise(site, 50.0)], []])
    assert torch.allclose(crowd[1], alone, atol=1e-4)
    assert torch.allclose(crowd[3], trajectory.final[0], atol=1e-4)


def test_interventions_of_a_variant_apply_in_its_own_order(model, trajectory, site):
    """Whatever the order, and the number of times, in which another variant has the same objects."""
    half, put = Scale(site, 0.5), Replace(site, torch.ones(64, site.channels))
    variants = [[half], [put, half], [half, put], [half, half]]
    together = denoise(model, trajectory, variants)
    for variant, result in zip(variants, together, strict=True):
        assert torch.allclose(denoise(model, trajectory, [variant])[0], result, atol=1e-5)
    quarter = denoise(model, trajectory, [[Scale(site, 0.25)]])[0]
    assert torch.allclose(together[3], quarter, atol=1e-5)
    assert (together[1] - together[2]).abs().max() > 1e-3


@pytest.mark.parametrize("slow", [False, True])
def test_injections_are_one_whoever_asks_for_them(model, variants, latents, slow):
    """Equal objects at other places in other variants, under any processor, and where a level is shared."""
    model = load_model(tiny.pocket(), device="cpu")
    if slow:
        model.pipeline.enable_attention_slicing(1)
    trajectory = invert(model, latents, start=301, steps=10)
    modulations = [variant[0] for variant in variants]
    mixed = [[modulations[0], InjectAttention()], [InjectAttention(), modulations[1]], [variants[0][1]]]
    expected = denoise(model, trajectory, [[modulations[0], variants[0][1]], [modulations[1], variants[0][1]], []])
    assert torch.allclose(denoise(model, trajectory, mixed), expected, atol=1e-4)
    shared = [denoise(model, trajectory, some, shared_levels=1) for some in (variants[:2], mixed[:2])]
    assert torch.allclose(*shared, atol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_replay_records_what_sites_hold_under_every_variant(model, trajectory, variants, site, batch_size):
    query = find_site(model, "up16.resnet0.output")
    early = find_site(model, "down16.resnet0.output")
    some = [[], variants[0], variants[1][:1]]
    captures = [Capture(query), Capture(early, frozenset({301}))]
    latents, record = replay(model, trajectory, some, captures, batch_size=batch_size)
    assert torch.allclose(latents, denoise(model, trajectory, some), atol=1e-4)
    assert set(record) == {*((query, timestep) for timestep in trajectory.timesteps), (early, 301)}
    with attached(model, captures=captures) as unchanged:
        conditioning, _ = conditionings(model, trajectory.final, "", 1.0)
        predict(model, trajectory.at(301), 301, conditioning)
    assert torch.allclose(record[query, 301][:1], unchanged[query, 301], atol=1e-4)
    assert torch.allclose(record[early, 301], unchanged[early, 301].expand_as(record[early, 301]), atol=1e-4)
    assert len(record[query, 1]) == 3
    assert all((record[query, 301][0] - changed).abs().max() > 1e-3 for changed in record[query, 301][1:])
    with pytest.raises(TimestepError, match="281"):
        replay(model, trajectory, some, [Capture(query, frozenset({281}))])


def test_what_would_see_one_row_for_many_is_refused(model, trajectory, variants):
    """From outside of a run, where it lets one row stand for all."""
    query = find_site(model, "up8.self0.query")
    with pytest.raises(InterventionError, match="stand for several"), attached(model, captures=[Capture(query)]):
        denoise(model, trajectory, variants[:2])
    change = Edit(query, (2,), None, lambda activation, rows, grid: activation[rows], "Test")
    with pytest.raises(InterventionError, match="stand for several"), attached(model, edits=[change]):
        denoise(model, trajectory, variants[:2])
    assert not tiny.hooks_of(model.denoiser)


def test_a_batch_of_none_is_refused(model, trajectory):
    with pytest.raises(InputError, match="batches of 0 variants; accepted: 1 or more"):
        denoise(model, trajectory, [[]], batch_size=0)


@pytest.mark.parametrize(("rows", "size", "batches"), [(60, 40, [30, 30]), (7, 3, [3, 2, 2]), (4, 9, [4])])
def test_batches_are_as_even_as_they_can_be(rows, size, batches):
    seen = []
    run_in_batches(lambda some: seen.append(len(some)) or some, torch.zeros(rows), size)
    assert seen == batches


@dataclass(frozen=True, eq=False)
class Hungry:
    """Runs out of memory when a batch has more than `limit` rows; changes nothing otherwise."""

    site: Site
    limit: int
    seen: list

    def edits(self, model, rows, references):
        def keep(activation, chosen, grid):
            self.seen.append(len(activation))
            if len(activation) > self.limit:
                raise torch.OutOfMemoryError("out of memory")
            return activation[chosen]

        return [Edit(self.site, tuple(rows), None, keep, "Hungry")]


def test_out_of_memory_halves_the_batch_and_gives_the_same_result(model, trajectory, variants, site):
    hungry = Hungry(site, 3, [])
    results = denoise(model, trajectory, [[*variant, hungry] for variant in variants])
    assert torch.allclose(results, denoise(model, trajectory, variants), atol=1e-4)
    assert max(hungry.seen) == 6
    assert sum(rows > 3 for rows in hungry.seen) == 2  # five variants, then three, and the reference
    assert not tiny.hooks_of(model.denoiser)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_residuals_left_to_the_replay_are_the_inverted_ones(model, latents, variants, method):
    now, later = (
        invert(model, latents, start=301, steps=10, method=method, residuals=residuals) for residuals in (True, False)
    )
    assert later.residuals is later.since(101).residuals is later.image(0).residuals is None
    assert torch.equal(now.latents, later.latents)
    assert torch.allclose(denoise(model, later, [*variants, []]), denoise(model, now, [*variants, []]), atol=1e-5)
    assert torch.allclose(denoise(model, later, [[]]), latents, atol=1e-5)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 3])
def test_stopping_early_gives_the_image_that_is_predicted_then(latents, kind, steps):
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, whatever of the two the denoiser predicts."""
    model = load_model(tiny.pocket(kind), device="cpu")
    trajectory = invert(model, latents, start=301, steps=10)
    read = denoise(model, trajectory, [[], [InjectAttention()]], steps=steps)
    timestep = trajectory.timesteps[steps - 1]
    x = trajectory.at(timestep)
    prediction = predict(model, x, timestep, conditionings(model, x, "", 1.0)[0])
    alpha = model.scheduler.alphas_cumprod[timestep]
    expected = {
        "sample": prediction,
        "epsilon": (x - (1 - alpha).sqrt() * prediction) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * x - (1 - alpha).sqrt() * prediction,
    }[kind]
    assert torch.allclose(read, expected.expand_as(read), atol=1e-4)
    assert not torch.allclose(read[:1], trajectory.final, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 5])
def test_more_steps_than_there_are_is_refused(model, trajectory, steps):
    with pytest.raises(InputError, match="accepted: 1 to that"):
        denoise(model, trajectory, [[]], steps=steps)


def test_what_all_rows_share_runs_on_one_row(model, trajectory, variants, site):
    """Before the first edit of the first step, and nowhere else."""
    counted = [
        "down8.block0.output",
        "mid4.resnet0.output",
        "up8.self1.output",
        "up8.resnet2.output",
        "up16.resnet0.output",
    ]
    rows = {name: [] for name in counted}
    handles = [
        model.denoiser.get_submodule(find_site(model, name).path).register_forward_hook(
            lambda _, args, output, name=name: rows[name].append(
                len(output[0] if isinstance(output, tuple) else output)
            )
        )
        for name in counted
    ]
    try:
        shared = denoise(model, trajectory, variants)
        first = {name: seen[0] for name, seen in rows.items()}
        assert first == {**dict.fromkeys(counted, 1), "up16.resnet0.output": 6}
        assert all(set(seen[1:]) == {6} for seen in rows.values())
    finally:
        for handle in handles:
            handle.remove()
    edited = find_site(model, "down16.resnet0.output")
    apart = denoise(model, trajectory, [[*variant, Scale(edited, 1.0)] for variant in variants])
    assert torch.allclose(shared, apart, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
def test_shared_levels_run_on_the_unchanged_row_after_the_first_step(model, trajectory, variants, levels):
    inside = coarsest_blocks(model, levels)
    outside = [path for path in coarsest_blocks(model, 2) if path not in inside] + ["down_blocks.0", "up_blocks.2"]
    rows = {path: [] for path in (*inside, *outside)}
    handles = [
        model.denoiser.get_submodule(path)
        .resnets[-1]
        .register_forward_hook(lambda _, args, output, path=path: rows[path].append(len(output)))
        for path in rows
    ]
    try:
        images = denoise(model, trajectory, variants, shared_levels=levels)
    finally:
        for handle in handles:
            handle.remove()
    assert all(set(rows[path][1:]) == {1} for path in inside)
    assert all(set(rows[path][1:]) == {6} for path in outside)
    assert not tiny.hooks_of(model.denoiser)
    assert not torch.allclose(images, denoise(model, trajectory, variants), atol=1e-4)
    unchanged = denoise(model, trajectory, [[]], shared_levels=levels)
    assert torch.allclose(unchanged, trajectory.final, atol=1e-4)


def test_shared_levels_that_cannot_be_are_refused(model, trajectory, variants):
    deepest = find_site(model, "mid4.resnet0.output")
    for levels, steps, message in ((3, None, "accepted: 0 to 2"), (1, 1, "two steps or more")):
        with pytest.raises(InputError, match=message):
            denoise(model, trajectory, variants, steps=steps, shared_levels=levels)
    with pytest.raises(InterventionError, match="mid_block runs on the unchanged image alone"):
        denoise(model, trajectory, [[Scale(deepest, 0.5)]], shared_levels=1)
    first_step_only = [[Scale(deepest, 0.5, timesteps=trajectory.timesteps[:1])]]
    assert len(denoise(model, trajectory, first_step_only, shared_levels=1)) == 1
    assert not tiny.hooks_of(model.denoiser)


def test_out_of_memory_with_a_single_variant_is_not_hidden(model, trajectory, site):
    with pytest.raises(torch.OutOfMemoryError):
        denoise(model, trajectory, [[Hungry(site, 1, [])]])
    assert not tiny.hooks_of(model.denoiser)


def test_an_interrupt_leaves_no_hooks(model, trajectory, site):
    class Interrupt(Hungry):
        def edits(self, model, rows, references):
            def stop(*_):
                raise KeyboardInterrupt

            return [Edit(self.site, tuple(rows), frozenset({101}), stop, "Interrupt")]

    with pytest.raises(KeyboardInterrupt):
        denoise(model, trajectory, [[], [Interrupt(site, 0, [])]])
    assert not tiny.hooks_of(model.denoiser)


def test_denoising_needs_one_image_and_a_variant(model, trajectory, latents):
    with pytest.raises(InputError, match="one or more variants"):
        denoise(model, trajectory, [])
    several = invert(model, latents.repeat(2, 1, 1, 1), start=101, steps=10)
    with pytest.raises(InputError, match=r"trajectory\.image"):
        denoise(model, several, [[]])
    assert torch.allclose(denoise(model, several.image(1), [[]]), several.final[1:], atol=1e-4)


def test_the_rest_of_a_trajectory_replays_to_the_same_end(model, trajectory):
    rest = trajectory.since(101)
    assert rest.timesteps == (101, 1)
    assert torch.equal(rest.latents[0], trajectory.at(101))
    assert torch.allclose(denoise(model, rest, [[]]), trajectory.final, atol=1e-4)


@pytest.mark.parametrize("timestep", [281, 0, 401])
def test_a_timestep_off_the_trajectory_names_the_near_ones(trajectory, timestep):
    for ask in (trajectory.at, trajectory.since):
        with pytest.raises(TimestepError, match=rf"timestep {timestep} .* near ones: .*\b(1|301)\b"):
            ask(timestep)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_generated_trajectory_replays(model, eta, guidance):
    made = generate(model, "red car", steps=8, eta=eta, guidance=guidance)
    plain, injected = denoise(model, made, [[], [InjectAttention()]])
    scale = made.final.abs().max()
    assert torch.allclose(plain, made.final[0], atol=1e-4 * scale)
    assert torch.allclose(injected, made.final[0], atol=1e-4 * scale)
    if eta == 0:
        assert made.residuals.abs().max() < 1e-5 * made.latents.abs().max()


def test_modulation_under_guidance_is_batch_independent_and_acts(model, site):
    made = generate(model, "red car", steps=5, guidance=3.0)
    at = made.timesteps[2]
    variants = [[Modulate(site, torch.eye(8), sign * 20.0, (at,)), InjectAttention()] for sign in (-1, 1)]
    together = denoise(model, made, variants)
    assert torch.allclose(together, denoise(model, made, variants, batch_size=1), atol=1e-3)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_generating_follows_its_seed_and_prompt(model):
    one, same, other = (generate(model, "red", seed=seed, steps=3) for seed in (0, 0, 1))
    assert torch.equal(one.latents, same.latents)
    assert (one.final - other.final).abs().max() > 1e-2
    assert not torch.equal(one.final, generate(model, "car", seed=0, steps=3).final)


def test_generating_calls_back_at_every_timestep(model):
    seen = []
    made = generate(model, "", steps=4, size=(64, 128), guidance=1.0, callback=lambda *step: seen.append(step))
    assert tuple(timestep for timestep, _ in seen) == made.timesteps
    assert all(torch.equal(x, made.latents[i + 1]) for i, (_, x) in enumerate(seen))
    assert model.decode(made.final).shape == (1, 3, 64, 128)


@pytest.mark.parametrize("size", [(60, 64), (64, 65)])
def test_a_size_that_the_layers_cannot_halve_is_refused(model, size):
    with pytest.raises(InputError, match="multiples of 16"):
        generate(model, "", steps=2, size=size)


def test_guidance_is_the_extrapolation_from_the_empty_prompt(model, latents):
    with_text, free = conditionings(model, latents, "red car", 3.0)
    one = predict(model, latents, 281, with_text)
    none = predict(model, latents, 281, free)
    both = predict(model, latents, 281, with_text, unconditional=free, guidance=3.0)
    assert torch.allclose(both, none + 3.0 * (one - none), atol=1e-4)
    assert (one - none).abs().max() > 1e-4
    timesteps = torch.tensor([281, 1])
    rows = predict(model, latents.repeat(2, 1, 1, 1), timesteps, with_text, unconditional=free, guidance=3.0)
    assert torch.allclose(rows[:1], both, atol=1e-4)


def test_another_prompt_in_the_trajectory_ends_elsewhere(model, trajectory):
    told = replace(trajectory, prompt="red car")
    assert (denoise(model, told, [[]]) - trajectory.final).abs().max() > 1e-3


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_rows_that_share_a_level_or_enter_equal_may_do_so_under_freeu(latents, site, levels, monkeypatch):
    """FreeU writes into what the block before gave, where one row stands for all."""
    pipeline = tiny.pocket()
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    freed = load_model(pipeline, device="cpu")
    trajectory = invert(freed, latents, start=301, steps=10)
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    variants = [[Modulate(site, mask, 20.0, (301,)), InjectAttention()], []]
    changed, unchanged = denoise(freed, trajectory, variants, shared_levels=levels)
    assert torch.allclose(unchanged, trajectory.final[0], atol=1e-4)
    assert (changed - unchanged).abs().max() > 1e-3
    if levels == 0:
        monkeypatch.setattr(type(freed), "equal_rows", False)
        assert torch.allclose(denoise(freed, trajectory, variants)[0], changed, atol=1e-4)
