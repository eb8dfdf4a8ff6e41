"""The one denoising loop, over diffusers' own scheduler, with interventions; and the `Trajectory` that it follows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm.auto import tqdm

from emerdiff_probe.batching import rows_that_fit, run_in_batches
from emerdiff_probe.errors import InputError, TimestepError
from emerdiff_probe.hooks import Capture, Edit, Injection, attached
from emerdiff_probe.interventions import Intervention
from emerdiff_probe.layers import Site, coarsest_blocks
from emerdiff_probe.models import Conditioning, ProbeModel

MAX_ROWS = {"cpu": 40, "mps": 32, "cuda": 128}
"""Variants a batch beyond which no device of the kind gets faster."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A path from noise to image that replays exactly: x_{t-1} = mean(x_t) + residual.

    Attributes:
        timesteps: on the scheduler's grid, falling, such as 281, 261, …, 21, 1.
        latents: (step + 1, batch, channel, latent_height, latent_width) float32; `latents[i]` is x at
            `timesteps[i]`, the last one is x_0.
        residuals: (step, batch, channel, latent_height, latent_width) float32: what is added to the mean of the
            reverse step, sigma_t z_t. Keeping the product instead of z_t needs no division by a small sigma_t.
            None leaves them to the replay, whose unchanged row has the mean at every step anyway.
        steps: of the whole scheduler grid that the timesteps belong to (50 in the paper).
        eta: 1 for DDPM steps (the paper's), 0 for DDIM.
        prompt, guidance: what the denoiser was told; the paper uses the empty prompt without guidance (1).
    """

    timesteps: tuple[int, ...]
    latents: Tensor
    residuals: Tensor | None
    steps: int
    eta: float
    prompt: str = ""
    guidance: float = 1.0

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.latents.shape[1]

    @property
    def final(self) -> Tensor:
        """x_0 of every image, (batch, channel, latent_height, latent_width)."""
        return self.latents[-1]

    def at(self, timestep: int) -> Tensor:
        """X at one timestep, (batch, channel, latent_height, latent_width).

        Raises:
            TimestepError: the trajectory does not pass it.
        """
        return self.latents[self._position(timestep)]

    def since(self, timestep: int) -> Trajectory:
        """The rest of the trajectory from this timestep on.

        Raises:
            TimestepError: the trajectory does not pass it.
        """
        start = self._position(timestep)
        return replace(
            self,
            timesteps=self.timesteps[start:],
            latents=self.latents[start:],
            residuals=None if self.residuals is None else self.residuals[start:],
        )

    def skipping(self, after: int) -> Trajectory:
        """The same path, of whose timesteps every second one is left out after the first `after` steps.

        The last timestep stays. Residuals are left to the replay, which goes the longer steps.
        """
        last = len(self.timesteps) - 1
        kept = [*range(min(after, last)), *range(after, last, 2), last]
        timesteps = tuple(self.timesteps[step] for step in kept)
        return replace(self, timesteps=timesteps, latents=self.latents[[*kept, last + 1]], residuals=None)

    def image(self, index: int) -> Trajectory:
        """The trajectory of one image of the batch, as a batch of one."""
        rows = slice(index, index + 1)
        residuals = None if self.residuals is None else self.residuals[:, rows]
        return replace(self, latents=self.latents[:, rows], residuals=residuals)

    def _position(self, timestep: int) -> int:
        require_on_grid(timestep, self.timesteps)
        return self.timesteps.index(timestep)


def require_on_grid(timestep: int, grid: Sequence[int]) -> None:
    """Raise TimestepError, naming the near ones, unless `timestep` is on the grid."""
    if timestep not in grid:
        near = sorted(grid, key=lambda other: abs(other - timestep))[:4]
        raise TimestepError(
            f"timestep {timestep} is not on the grid of {len(grid)} timesteps from {grid[0]} to {grid[-1]}; "
            f"near ones: {', '.join(map(str, sorted(near)))}"
        )


def make_scheduler(model: ProbeModel, steps: int) -> tuple[DDIMScheduler, tuple[int, ...]]:
    """The model's scheduler set to `steps` steps, and its falling grid of timesteps.

    Raises:
        InputError: `steps` that the training timesteps cannot be divided into.
    """
    total = model.scheduler.config.num_train_timesteps
    if not 1 <= steps < total:
        raise InputError(f"{steps} denoising steps; accepted: 1 to {total - 1}")
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.set_timesteps(steps)
    return scheduler, tuple(int(timestep) for timestep in scheduler.timesteps)


def reverse_mean(
    scheduler: DDIMScheduler, prediction: Tensor, timestep: int, latents: Tensor, eta: float, to: int | None = None
) -> Tensor:
    """Mean of the reverse step from one timestep to another, by the scheduler's own formula, float32.

    Without another it goes to the next one on the scheduler's grid.
    """
    if to is not None:  # a scheduler goes back by its number of training timesteps // num_inference_steps
        scheduler = copy.copy(scheduler)
        scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, timestep - to)
    step = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=torch.zeros_like(latents))
    return step.prev_sample


@torch.no_grad()
def predict(
    model: ProbeModel,
    latents: Tensor,
    timestep: int | Tensor,
    conditioning: Conditioning,
    *,
    unconditional: Conditioning | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """One pass of the denoiser, the only place that calls it.

    Args:
        model: whose denoiser runs.
        latents: (batch, channel, latent_height, latent_width) float32.
        timestep: one for all rows, or (batch,) on the model's device.
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
    output = model.denoiser(
        rows.to(model.dtype),
        timestep,
        encoder_hidden_states=condition.hidden_states,
        added_cond_kwargs=dict(condition.added),
        return_dict=False,
    )[0].float()
    if unconditional is None:
        return output
    guided, free = output.chunk(2)
    return torch.lerp(free, guided, guidance)


def conditionings(
    model: ProbeModel, latents: Tensor, prompt: str, guidance: float
) -> tuple[Conditioning, Conditioning | None]:
    """The prompt's conditioning for latents of this size, and the empty prompt's when there is guidance."""
    height, width = (side * model.factor for side in latents.shape[-2:])
    free = None if guidance == 1 else model.embed("", height, width)
    return model.embed(prompt, height, width), free


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
    scheduler, _ = make_scheduler(model, trajectory.steps)
    conditioning, free = told
    changed = [variant for variant in variants if variant]
    batch = 1 + len(changed)
    after = count(1)
    rows = [next(after) if variant else 0 for variant in variants]
    latents = trajectory.latents[0].repeat(batch, 1, 1, 1)
    halves = 1 if free is None else 2
    edits = list(_edits(model, changed, batch, halves))
    equal_at = trajectory.timesteps[0] if free is None else None
    with attached(model, edits=edits, captures=captures, equal_at=equal_at, first_row=first_row) as record:
        for step, timestep in enumerate(trajectory.timesteps, start=1):
            prediction = predict(
                model, latents, timestep, conditioning, unconditional=free, guidance=trajectory.guidance
            )
            bar.update(len(variants))
            if step == steps:
                latents = scheduler.step(prediction, timestep, latents).pred_original_sample
                break
            to = trajectory.timesteps[step] if step < len(trajectory.timesteps) else None
            mean = reverse_mean(scheduler, prediction, timestep, latents, trajectory.eta, to)
            if trajectory.residuals is None:
                latents = mean + (trajectory.latents[step] - mean[:1])
            else:
                latents = mean + trajectory.residuals[step - 1]
    return latents[rows], {key: record[key][rows].cpu() for key in record.tensors}


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
    """Rows of the denoiser a batch, by an estimate of the activations of the widest layers and the skips that wait."""
    cells = latents.shape[-2] * latents.shape[-1]
    row_bytes = 48 * model.denoiser.config.block_out_channels[0] * cells * model.dtype.itemsize
    return rows_that_fit(model.device, row_bytes, MAX_ROWS[model.device.type])


def generate(
    model: ProbeModel,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 50,
    eta: float = 1.0,
    guidance: float = 5.0,
    size: tuple[int, int] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Trajectory:
    """Draw one image from the model and keep the trajectory, so that it can be probed like an inverted one.

    Args:
        model: to draw from.
        prompt: text; "" draws unconditionally.
        seed: of the starting noise and of the noise of every step.
        steps: of the scheduler's grid.
        eta: 1 for DDPM steps, 0 for DDIM.
        guidance: classifier-free guidance scale; 1 is none.
        size: height and width in pixels; the model's native square when None.
        callback: called with every timestep and the latents after it.

    Returns:
        A trajectory over the whole grid, of one image; `model.decode(trajectory.final)` is the image.
    """
    height, width = size or (model.native_size, model.native_size)
    if height % model.multiple or width % model.multiple:
        raise InputError(f"size {height} x {width}; accepted: multiples of {model.multiple}")
    scheduler, timesteps = make_scheduler(model, steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.denoiser.config.in_channels, height // model.factor, width // model.factor)
    draws = torch.randn(len(timesteps) + 1, *shape, generator=generator).to(model.device)
    latents, residuals = [draws[0]], []
    conditioning, free = conditionings(model, draws[0], prompt, guidance)
    for timestep, noise in zip(timesteps, draws[1:], strict=True):
        prediction = predict(model, latents[-1], timestep, conditioning, unconditional=free, guidance=guidance)
        mean = reverse_mean(scheduler, prediction, timestep, latents[-1], eta)
        step = scheduler.step(prediction, timestep, latents[-1], eta=eta, variance_noise=noise)
        latents.append(step.prev_sample)
        residuals.append(step.prev_sample - mean)
        if callback is not None:
            callback(timestep, latents[-1])
    return Trajectory(timesteps, torch.stack(latents), torch.stack(residuals), steps, eta, prompt, float(guidance))
