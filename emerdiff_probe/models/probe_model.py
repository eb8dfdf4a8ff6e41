"""`ProbeModel`: a diffusers pipeline behind the one contract that everything else asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from einops import rearrange
from torch import Tensor

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.addresses import Address
from emerdiff_probe.models.autoencoders import encode_images, find_autoencoder, unscale, widths
from emerdiff_probe.models.batching import rows_that_fit, run_in_batches
from emerdiff_probe.models.fingerprint import fingerprint
from emerdiff_probe.models.schedules import Schedule

MAX_DECODES = {"cpu": 1, "mps": 8, "cuda": 16}
"""Images that the autoencoder decodes at once, at most; on a CPU two would no longer fit its caches."""
COMPONENTS = ("unet", "transformer", "vae", "vqvae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of pipelines that hold the weights of what is probed."""
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told besides latent and timestep: the embedded prompt, one row a batch element.

    Attributes:
        hidden_states: (batch, token, channel) text embeddings; no tokens where the model takes no text.
        added: further conditions by name, each (batch, channel) or (batch, token); such as Stable Diffusion XL's pooled
            text and sizes.
    """

    hidden_states: Tensor
    added: Mapping[str, Tensor]

    def expand(self, batch: int) -> Conditioning:
        """The same condition for every one of `batch` rows, in the memory of one; needs a conditioning of one row."""
        return Conditioning(
            self.hidden_states.expand(batch, -1, -1),
            {name: value.expand(batch, -1) for name, value in self.added.items()},
        )

    def __add__(self, other: Conditioning) -> Conditioning:
        """Rows of `self`, then rows of `other`."""
        return Conditioning(
            torch.cat([self.hidden_states, other.hidden_states]),
            {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()},
        )


class Pass(NamedTuple):
    """What one run of the denoiser is about, as read from its own arguments.

    Attributes:
        timesteps: of every batch row, as integers.
        latent_size: height and width of the latents.
    """

    timesteps: tuple[int, ...]
    latent_size: tuple[int, int]


class ProbeModel(ABC):
    """A diffusion model, ready to be probed: what every family answers, and nothing that only one of them has.

    Attributes:
        name: what it was loaded from.
        pipeline: that it came in.
        denoiser: the module that predicts; hooks go into it.
        autoencoder: the module between pixels and latents; None where the denoiser works on pixels.
        scheduler: the diffusers scheduler that holds the model's own noise schedule.
        device, dtype: where and in which precision the denoiser runs; latents and pixels are float32 outside it.
        equal_rows: whether rows that enter the denoiser equal may run as one until they differ.
    """

    component: ClassVar[str] = "transformer"
    """Name of the denoiser in the pipeline."""
    equal_rows: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...]] = ()
    """Names that `family` may be given by the user, where structure does not tell."""
    told_family: str | None = None

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        self.pipeline = pipeline
        self.name = name
        self.denoiser: Any = getattr(pipeline, self.component).eval().requires_grad_(False)
        self.autoencoder: Any = find_autoencoder(pipeline, name)
        if self.autoencoder is not None:
            self.autoencoder.eval().requires_grad_(False)
        self.scheduler: Any = pipeline.scheduler

    @property
    @abstractmethod
    def family(self) -> str:
        """Which known model this is, by its structure; the best settings differ between families."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.denoiser.config.in_channels)

    @property
    def latent_side(self) -> int:
        """Latent cells along a side of the square images that the model was trained on."""
        return int(self.denoiser.config.sample_size)

    @property
    def levels(self) -> int:
        """Levels of the denoiser's grids, each half as fine as the one before; 1 for a transformer."""
        return 1

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """The model's own noise schedule on a grid of so many steps.

        Raises:
            InputError: a number of steps that it does not have.
        """

    @abstractmethod
    def embed(self, prompt: str, height: int, width: int) -> Conditioning:
        """Embed one prompt, as one row.

        Args:
            prompt: the text; the empty one is the paper's choice.
            height, width: of the image in pixels; some models are told them.

        Raises:
            InputError: a prompt for a model that takes none.
        """

    def conditionings(
        self, prompt: str, height: int, width: int, guidance: float
    ) -> tuple[Conditioning, Conditioning | None]:
        """The prompt's conditioning, and the empty prompt's where guidance asks for a pass of it."""
        free = None if guidance == 1 else self.embed("", height, width)
        return self.embed(prompt, height, width), free

    @abstractmethod
    def predict(self, latents: Tensor, timestep: int | float | Tensor, condition: Conditioning) -> Tensor:
        """One plain pass of the denoiser.

        Args:
            latents: (batch, channel, latent_height, latent_width) float32.
            timestep: as `Schedule.exact` gives it, one for all rows or (batch,).
            condition: one row for each.

        Returns:
            What its schedule takes, shaped as the latents, float32.
        """

    @abstractmethod
    def read_pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        """Timesteps and size of a pass, from the arguments that the denoiser is called with, by whomever."""

    @abstractmethod
    def addresses(self) -> Iterator[Address]:
        """Every tensor of the denoiser that has a site, in the order of execution."""

    @abstractmethod
    def denoiser_row_bytes(self, latent_height: int, latent_width: int) -> int:
        """An estimate of what one row of the denoiser holds at once, of its widest layers and of what waits."""

    def coarsest_blocks(self, levels: int) -> tuple[str, ...]:
        """Paths of the blocks of the denoiser's coarsest levels, in the order of execution; fewer than all levels."""
        return ()

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.denoiser.parameters()).device  # diffusers' own looks through all modules for offloading

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser, but for what it keeps in float32."""
        kept = getattr(self.denoiser, "_keep_in_fp32_modules", None) or ()
        return next(
            tensor.dtype
            for name, tensor in self.denoiser.named_parameters()
            if tensor.is_floating_point() and not any(part in name for part in kept)
        )

    @cached_property
    def factor(self) -> int:
        """Pixels a latent cell, along one side."""
        return 1 if self.autoencoder is None else 2 ** (len(widths(self.autoencoder)) - 1)

    @property
    def native_size(self) -> int:
        """Side in pixels of the square images that the model was trained on."""
        return self.latent_side * self.factor

    @property
    def largest_side(self) -> int | None:
        """Pixels that an image's side may have at most, where there is a limit."""
        return None

    @property
    def multiple(self) -> int:
        """Image sides must be a multiple of this many pixels, so that every layer's grid is whole."""
        return self.factor * 2 ** (self.levels - 1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever changes the model's output; see `fingerprint`."""
        parts = {name: getattr(self.pipeline, name, None) for name in (*COMPONENTS, *TOKENIZERS)}
        return fingerprint(parts | {"scheduler": self.scheduler})

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to process an image at: shorter side the native size, both sides whole multiples.

        What would be longer than the model's largest side is squeezed to that.
        """
        scale = self.native_size / min(height, width)
        sides = [max(1, round(side * scale / self.multiple)) * self.multiple for side in (height, width)]
        most = self.largest_side or max(sides)
        return min(sides[0], most), min(sides[1], most)

    def to_tensor(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """An 8-bit RGB image as the model takes it.

        Args:
            image: (height, width, 3) uint8.
            size: height and width to resize to, bilinear with antialiasing; as it is when None.

        Returns:
            (1, 3, height, width) float32 in [-1, 1], on the model's device.
        """
        planes = []
        for plane in rearrange(torch.from_numpy(image), "height width c -> c 1 1 height width"):
            values = plane.to(self.device).float().div_(127.5).sub_(1)  # one at a time: photographs are large
            planes.append(values if size is None else enlarge(values, size, antialias=True))
        return torch.cat(planes, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to latents, the mode of the autoencoder's distribution.

        Args:
            images: (batch, 3, height, width) in [-1, 1]; sides multiples of `multiple`.

        Returns:
            (batch, channel, latent_height, latent_width) float32, scaled to about unit variance.

        Raises:
            InputError: another shape, or NaN.
            ModelError: the autoencoder overflowed.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % self.multiple for side in images.shape[2:]):
            raise InputError(
                f"images of shape {tuple(images.shape)}; accepted: (batch, 3, height, width) with sides that "
                f"are multiples of {self.multiple}"
            )
        if self.largest_side is not None and max(images.shape[2:]) > self.largest_side:
            raise InputError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels; accepted by {self.name}: sides of up to "
                f"{self.largest_side}"
            )
        if not torch.isfinite(images).all():
            raise InputError("the images hold NaN or infinite values")
        if self.autoencoder is None:
            return images.to(self.device).float()
        return self.require_finite(encode_images(self.autoencoder, images), self.autoencoder)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (batch, channel, latent_height, latent_width) to images (batch, 3, height, width).

        Any number of them: they run in batches that fit the device. Pixel values are float32, about [-1, 1], and not
        clipped: differences between them stay linear.

        Raises:
            ModelError: the autoencoder overflowed.
        """
        if self.autoencoder is None:
            return latents.float()
        scaled, channels = unscale(self.autoencoder, latents), widths(self.autoencoder)
        pixels = scaled.shape[2] * scaled.shape[3] * self.factor**2
        row_bytes = 4 * channels[min(1, len(channels) - 1)] * pixels * scaled.dtype.itemsize
        size = rows_that_fit(self.device, row_bytes, MAX_DECODES[self.device.type])
        images = run_in_batches(lambda rows: self.autoencoder.decode(rows).sample.float(), scaled, size)
        return self.require_finite(images, self.autoencoder)

    def require_finite(self, values: Tensor, part: Any = None) -> Tensor:
        """Values as they are, once they are known to be finite.

        Args:
            values: that a part of the model gave.
            part: which; the denoiser when None.

        Raises:
            ModelError: NaN or infinite values among them; half precision overflows first.
        """
        if torch.isfinite(values).all():
            return values
        dtype = self.dtype if part is None else part.dtype
        named = str(dtype).removeprefix("torch.")
        wider = "bfloat16 or float32" if dtype == torch.float16 else "float32"
        hint = (
            "weights, inputs and strengths that do not overflow" if dtype == torch.float32 else f"--precision {wider}"
        )
        raise ModelError(
            f"{self.name}: the {'denoiser' if part is None else 'autoencoder'} gave NaN or infinite values in {named}; "
            f"accepted: {hint}"
        )

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.denoiser.parameters())
        return (
            f"ProbeModel({self.name!r}, family={self.family!r}, {count / 1e6:.1f} M parameters in the denoiser, "
            f"native size {self.native_size}, {self.dtype} on {self.device})"
        )
