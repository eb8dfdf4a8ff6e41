"""The response atlas: how every pixel answers to every cell, and so, by one matrix product, to any mask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.reading.correspondence import Modulation, magnitude, modulated_images
from emerdiff_probe.trajectories.trajectory import Trajectory

CELLS_AT_ONCE = 20
"""Cells whose images are held at a time; the denoiser's own batches are smaller where memory asks for it."""

TOLERANCE = 0.1
"""How far two latents of one image may be apart, in standard deviations: it may have been resized otherwise."""


@dataclass(frozen=True, eq=False)
class ResponseAtlas:
    """Signed responses of an image to every cell of the modulated layer's grid.

    Responses nearly add up over cells, their norms do not: so a mask's response is the sum over its cells, and only
    then is the norm taken.

    Attributes:
        responses: (cell, 3, height, width) float16, (I+ - I-) / 2 in units where black to white is 2.
        grid: grid_height and grid_width; cells are numbered in reading order.
        latents: (channel, latent_height, latent_width) float32, the clean latents of the image: they tell it from
            others.
        settings: what it was made with: model, fingerprint, layer, strength, modulate_at, placement, direction (None
            for all ones), injection (kinds), injection_sites, injection_timesteps (None for all), and the trajectory's
            steps, eta, prompt and guidance.
    """

    responses: Tensor
    grid: tuple[int, int]
    latents: Tensor
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        cells = self.grid[0] * self.grid[1]
        if self.responses.ndim != 4 or self.responses.shape[:2] != (cells, 3):
            raise InputError(
                f"responses of shape {tuple(self.responses.shape)} on a grid of {self.grid}; "
                f"accepted: ({cells}, 3, height, width)"
            )

    def respond(self, masks: Tensor) -> Tensor:
        """Signed responses to masks, as if each had been modulated: one matrix product, no model.

        Args:
            masks: (mask, grid_height, grid_width); any weights, mostly 0.

        Returns:
            (mask, 3, height, width) float32.

        Raises:
            InputError: masks of another grid.
        """
        if masks.ndim != 3 or tuple(masks.shape[1:]) != self.grid:
            raise InputError(f"masks of shape {tuple(masks.shape)}; accepted: (mask, {self.grid[0]}, {self.grid[1]})")
        weights = masks.flatten(1)
        responses = self.responses.new_zeros(len(masks), *self.responses.shape[1:], dtype=torch.float32)
        for mask, cell in weights.nonzero().tolist():  # as fast as a sparse product, and no float32 copy of all cells
            responses[mask].add_(self.responses[cell], alpha=float(weights[mask, cell]))
        return responses

    def difference_maps(self, masks: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Difference maps of masks (mask, grid_height, grid_width): (mask, height, width), as by running them."""
        return 2 * magnitude(self.respond(masks), smoothing)  # I+ and I- are a response away, on either side

    def holds(self, modulation: Modulation, trajectory: Trajectory) -> bool:
        """Whether it was made with this modulation, on a trajectory with the settings of this one."""
        return all(self.settings[name] == value for name, value in _settings(modulation, trajectory).items())

    def is_of(self, latents: Tensor) -> bool:
        """Whether it was made of the image of these clean latents (channel, latent_height, latent_width).

        Those of one image differ by rounding, between machines and precisions; those of two by about as much as one
        image's own do among themselves.
        """
        if latents.shape != self.latents.shape:
            return False
        apart = (latents.float().cpu() - self.latents).square().mean().sqrt()
        return bool(apart <= TOLERANCE * self.latents.std())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; the grid and the settings are in its metadata."""
        path = Path(path)
        settings = json.dumps(dict(self.settings), default=np.generic.item)
        metadata = {"grid": json.dumps(self.grid, default=np.generic.item), "settings": settings}
        tensors = {"responses": self.responses.contiguous(), "latents": self.latents.contiguous()}
        write_whole(path, lambda partial: save_file(tensors, partial, metadata=metadata))
        return path

    @classmethod
    def load(cls, path: str | Path) -> ResponseAtlas:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or no atlas in it.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                grid = json.loads(metadata["grid"])
                responses, latents = file.get_tensor("responses"), file.get_tensor("latents")
                return cls(responses, (grid[0], grid[1]), latents, json.loads(metadata["settings"]))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise InputError(f"{path}: no readable response atlas in it ({error})") from error

    def __repr__(self) -> str:
        height, width = self.responses.shape[2:]
        return f"ResponseAtlas({self.grid[0]} x {self.grid[1]} cells, {height} x {width} pixels)"


def response_atlas(
    model: ProbeModel,
    trajectory: Trajectory,
    modulation: Modulation,
    *,
    batch_size: int | None = None,
    progress: bool = True,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    report: Callable[[int, int], None] | None = None,
) -> ResponseAtlas:
    """Modulate every single cell of a layer's grid, with both signs.

    Args:
        model: to run.
        trajectory: of one image, from `modulate_at` or earlier.
        modulation: how; the grid is that of its layer.
        batch_size: variants a batch; chosen by the device when None.
        progress: show a progress bar over cells: it takes minutes.
        around: entered for every few cells, such as a lock that others take between.
        report: called with the number of cells that are done, and of all.

    Raises:
        TimestepError: `modulate_at` is not on the trajectory.
        InterventionError: a layer that cannot be modulated.
    """
    grid = modulation.site.grid(*trajectory.final.shape[-2:])
    cells = torch.eye(grid[0] * grid[1]).unflatten(1, grid)
    responses: list[Tensor] = []
    with tqdm(total=len(cells), disable=not progress, desc="response atlas", unit="cell") as bar:
        for masks in cells.split(CELLS_AT_ONCE):
            with around():
                minus, plus = modulated_images(model, trajectory, masks, modulation, batch_size=batch_size)
            responses.append(((plus - minus) / 2).half().contiguous())  # decoders give channels last, read far slower
            bar.update(len(masks))
            if report is not None:
                report(sum(map(len, responses)), len(cells))
    settings = {"model": model.name, "fingerprint": model.fingerprint, **_settings(modulation, trajectory)}
    return ResponseAtlas(torch.cat(responses), grid, trajectory.final[0].float().cpu(), settings)


def _settings(modulation: Modulation, trajectory: Trajectory) -> dict[str, Any]:
    """What an atlas says of how it was made, the model aside."""
    injection, direction = modulation.injection, modulation.direction
    sites, timesteps = (None, None) if injection is None else (injection.sites, injection.timesteps)
    return {
        "layer": modulation.site.name,
        "strength": modulation.strength,
        "modulate_at": modulation.modulate_at,
        "placement": modulation.placement,
        "direction": None if direction is None else torch.as_tensor(direction).tolist(),
        "injection": [] if injection is None else list(injection.kinds),
        "injection_sites": None if sites is None else [site.name for site in sites],
        "injection_timesteps": None if timesteps is None else list(timesteps),
        "steps": trajectory.steps,
        "eta": trajectory.eta,
        "prompt": trajectory.prompt,
        "guidance": trajectory.guidance,
    }
