"""The one denoising loop, over the model's own schedule, with interventions; and the `Trajectory` that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor
from tqdm.auto import tqdm

from emerdiff_probe.errors import InputError
from emerdiff_probe.hooks.attach import Capture, Edit, Injection, attached, keep_clean
from emerdiff_probe.interventions import Intervention
from emerdiff_probe.models.batching import rows_that_fit, run_in_batches
from emerdiff_probe.models.probe_model import Conditioning, ProbeModel
from emerdiff_probe.sites import Site, coarsest_blocks
from emerdiff_probe.trajectories.trajectory import Trajectory

MAX_ROWS = {"cpu": 40, "mps": 32, "cuda": 128}
"""Variants a batch beyond which no device of the kind gets faster."""


@torch.no_grad()
def predict(
    model: ProbeModel,
    latents: Tensor,
    timestep: int | float | Tensor,
    conditioning: Conditioning,
    *,
    unconditional: Conditioning | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """One pass of the denoiser, with guidance or without.

    Args:
        model: whose denoiser runs.
        latents: (batch, channel, latent_height, latent_width) float32.
        timestep: one for all rows, or (batch,) on the model's device; as `Schedule.exact` gives it.
        conditioning: of one row, used for every row.
        unconditional: the empty prompt; needed for a guidance other than 1. Its rows follow the conditional ones.
        guidance: classifier-free guidance scale; 1 is one plain pass.

    Returns:
        The denoiser's output, same shape as the latents, float32.
    """
    rows, batch = latents, len(latents)
    condition = conditioning.expand(batch)
    if unconditional is not None:
        rows = torch.cat([latents, latents])
        condition = condition + unconditional.expand(batch)
        if isinstance(timestep, Tensor) and timestep.ndim:
            timestep = torch.cat([timestep, timestep])
    output = model.predict(rows, timestep, condition)
    if unconditional is None:
        return output
    guided, free = output.chunk(2)
    return torch.lerp(free, guided, guidance)


def conditionings(
    model: ProbeModel, latents: Tensor, prompt: str, guidance: float
) -> tuple[Conditioning, Conditioning | None]:
    """The prompt's conditioning for latents of this size, and the empty prompt's when there is guidance."""
    height, width = (side * model.factor for side in latents.shape[-2:])
    return model.conditionings(prompt, height, width, guidance)


def denoise(
    model: ProbeModel,
    trajectory: Trajectory,
    variants: Sequence[Sequence[Intervention]],
    *,
    steps: int | None = None,
    shared_levels: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Replay a trajectory once for every variant, each under its own interventions.

    The unchanged trajectory rides along in batch row 0, for interventions that refer to it and for variants without
    any. Variants run in batches that fit the device, halved when memory runs out.

    Args:
        model: to run.
        trajectory: of one image; its residuals are added at every step.
        variants: for each result a list of interventions, which apply in order; an empty list replays the reference.
            The same object at the same place of several variants runs as one.
        steps: stop after so many and give the x_0 that the denoiser then predicts; replay to the end when None.
        shared_levels: coarsest levels of the denoiser that after the first step run on the unchanged row alone, whose
            features all variants then take: approximate, and cheap. (DeepCache, Ma et al. 2024, takes them from an
            earlier step.)
        batch_size: variants a batch; chosen by the device when None.
        progress: show a progress bar over denoiser passes.

    Returns:
        x_0 of every variant, (variant, channel, latent_height, latent_width) float32.

    Raises:
        InterventionError: an intervention that did not take effect, or not at each of its timesteps.
        InputError: a trajectory of several images, no variants, more steps than the trajectory has, a batch of none,
            or shared levels that the denoiser does not have, with guidance, or in a single step.
        ModelError: the denoiser overflowed.
    """
    latents, _ = replay(
        model,
        trajectory,
        variants,
        steps=steps,
        shared_levels=shared_levels,
        batch_size=batch_size,
        progress=progress,
    )
    return latents


def replay(
    model: ProbeModel,
    trajectory: Trajectory,
    variants: Sequence[Sequence[Intervention]],
    captures: Sequence[Capture] = (),
    *,
    steps: int | None = None,
    shared_levels: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, dict[tuple[Site, int], Tensor]]:
    """`denoise`, which has the arguments, that also records what sites hold under every variant.

    Returns:
        x_0 of every variant, and for every captured (site, timestep) its activations (variant, …) on the CPU.

    Raises:
        TimestepError: a capture at a timestep that is not run; and what `denoise` raises.
    """
    if trajectory.batch != 1 or not variants:
        raise InputError(
            f"{len(variants)} variants of a trajectory of {trajectory.batch} images; accepted: one or more variants "
            "of one image (take it with trajectory.image(i))"
        )
    if steps is not None and not 1 <= steps <= len(trajectory.timesteps):
        raise InputError(f"{steps} steps of a trajectory of {len(trajectory.timesteps)}; accepted: 1 to that, or None")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batches of {batch_size} variants; accepted: 1 or more, or None")
    told = conditionings(model, trajectory.final, trajectory.prompt, trajectory.guidance)
    passes = len(trajectory.timesteps) if steps is None else steps
    coarse = coarsest_blocks(model, shared_levels)
    if coarse and (told[1] is not None or passes == 1):
        raise InputError(
            f"{shared_levels} shared levels in {passes} step(s) with guidance {trajectory.guidance:g}; accepted: two "
            "steps or more, without guidance (1)"
        )
    first_row = dict.fromkeys(coarse, frozenset(trajectory.timesteps[1:]))
    records: list[dict[tuple[Site, int], Tensor]] = []
    with tqdm(total=len(variants) * passes, disable=not progress, desc="denoise") as bar:

        def run(some: Sequence[Sequence[Intervention]]) -> Tensor:
            latents, record = _replay(model, trajectory, some, captures, told, steps, first_row, bar)
            records.append(record)
            return latents

        latents = run_in_batches(run, variants, batch_size or denoiser_rows_that_fit(model, trajectory.final))
    return latents, {key: torch.cat([record[key] for record in records]) for key in records[0]}


def _replay(
    model: ProbeModel,
    trajectory: Trajectory,
    variants: Sequence[Sequence[Intervention]],
    captures: Sequence[Capture],
    told: tuple[Conditioning, Conditioning | None],
    steps: int | None,
    first_row: Mapping[str, frozenset[int]],
    bar: tqdm,
) -> tuple[Tensor, dict[tuple[Site, int], Tensor]]:
    schedule = model.schedule(trajectory.steps)
    conditioning, free = told
    changed = [variant for variant in variants if variant]
    batch = 1 + len(changed)
    after = count(1)
    rows = [next(after) if variant else 0 for variant in variants]
    latents = trajectory.latents[0].repeat(batch, 1, 1, 1)
    halves = 1 if free is None else 2
    edits = list(_edits(model, changed, batch, halves))
    equal_at = trajectory.timesteps[0] if free is None and model.equal_rows else None
    with (
        keep_clean(model),
        attached(model, edits=edits, captures=captures, equal_at=equal_at, first_row=first_row) as record,
    ):
        for step, timestep in enumerate(trajectory.timesteps, start=1):
            told_time = schedule.exact(timestep)
            prediction = predict(
                model, latents, told_time, conditioning, unconditional=free, guidance=trajectory.guidance
            )
            bar.update(len(variants))
            if step == steps:
                latents = schedule.predict_original(prediction, timestep, latents)
                break
            to = trajectory.timesteps[step] if step < len(trajectory.timesteps) else None
            mean = schedule.step(prediction, timestep, latents, eta=trajectory.eta, to=to)
            if trajectory.residuals is None:
                latents = mean + (trajectory.latents[step] - mean[:1])
            else:
                latents = mean + trajectory.residuals[step - 1]
    return model.require_finite(latents[rows]), {key: record[key][rows].cpu() for key in record.tensors}


def _edits(
    model: ProbeModel, variants: Sequence[Sequence[Intervention]], batch: int, halves: int
) -> Iterator[Edit | Injection]:
    """Edits of all variants; row 0 is the reference, and guidance repeats all rows in a second half.

    An intervention runs as one where it has the same place in several variants: elsewhere their order differs.
    """
    rows_of: dict[tuple[int, int], tuple[Intervention, list[int]]] = {}
    for row, variant in enumerate(variants, start=1):
        for place, intervention in enumerate(variant):
            rows_of.setdefault((place, id(intervention)), (intervention, []))[1].append(row)
    for _, (intervention, rows) in sorted(rows_of.items(), key=lambda item: item[0][0]):
        both = [row + half * batch for half in range(halves) for row in rows]
        references = [half * batch for half in range(halves) for _ in rows]
        yield from intervention.edits(model, both, references)


def denoiser_rows_that_fit(model: ProbeModel, latents: Tensor) -> int:
    """Rows of the denoiser a batch, by the family's estimate of what a row takes."""
    row_bytes = model.denoiser_row_bytes(latents.shape[-2], latents.shape[-1])
    return rows_that_fit(model.device, row_bytes, MAX_ROWS[model.device.type])
