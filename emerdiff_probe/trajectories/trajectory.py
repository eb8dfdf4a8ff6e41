"""A path of latents through timesteps, with the residuals that lead back to its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from emerdiff_probe.errors import TimestepError


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
