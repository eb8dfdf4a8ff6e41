"""Upper references, trained on given truth: a linear probe of the model's features, and a small U-Net of the image.

How far unsupervised segmentation is from supervised is read off the same tables: both name classes, so that their
labels need no matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from emerdiff_probe.arrays import enlarge
from emerdiff_probe.checks import is_integer, is_positive, require
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.choices import feature_sites, middle_timestep, resolve_for
from emerdiff_probe.methods.interface import Counts, Pictured, refuse_count
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.sites import Site


@dataclass(frozen=True)
class ProbeTraining:
    """How a linear probe is trained.

    Attributes:
        sites: names of the sites whose features it sees, side by side; None is EmerDiff's.
        timestep: of the features; None is the one of the trajectory nearest to EmerDiff's.
        pixels: drawn from each image.
        steps: of Adam.
        batch: pixels a step.
        rate: learning rate at the start; it falls to 0 along a cosine.
        decay: of the weights.
        seed: of the pixels that are drawn.

    Raises:
        InputError: a value out of range.
    """

    sites: tuple[str, ...] | None = None
    timestep: int | None = None
    pixels: int = 1024
    steps: int = 1000
    batch: int = 2048
    rate: float = 1e-2
    decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("sites", self.sites is None or len(self.sites) > 0, "one or more names, or None"),
                ("timestep", self.timestep is None or is_integer(self.timestep, 0), "an integer, 0 or more, or None"),
                *((name, is_integer(getattr(self, name), 1), "an integer, 1 or more") for name in _AMOUNTS),
                ("rate", is_positive(self.rate), "a finite number above 0"),
                ("decay", self.decay == 0 or is_positive(self.decay), "a finite number, 0 or more"),
                ("seed", is_integer(self.seed, 0), "an integer, 0 or more"),
            ],
        )


_AMOUNTS = ("pixels", "steps", "batch")


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier of bilinearly upsampled features; from `train_linear_probe`.

    Attributes:
        weights: of each site, (class, channel).
        bias: (class,).
        sites: names of the sites.
        timestep: of the features.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    sites: tuple[str, ...]
    timestep: int
    name: ClassVar[str] = "linear probe"
    counts: ClassVar[Counts] = "own"
    probes: ClassVar[bool] = True

    def segment(self, probed: ProbedImage, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; labels are classes."""
        refuse_count(self, clusters)
        height, width = probed.image.shape[:2]
        sites = feature_sites(probed.model, *self.sites)
        probed.capture(sites, self.timestep)
        scores = self.bias[:, None, None].expand(-1, height, width)
        for site, weights in zip(sites, self.weights, strict=True):
            # a score is linear in the feature, so that it may be upsampled in its place
            cells = probed.features(site, self.timestep) @ weights.T
            maps = rearrange(cells, "(h w) c -> c h w", h=probed.grid(site)[0])
            scores = scores + enlarge(maps, (height, width))
        return scores.argmax(0).numpy()


def train_linear_probe(
    samples: Iterable[tuple[ProbedImage, np.ndarray]],
    classes: int,
    training: ProbeTraining | None = None,
    *,
    ignore_index: int = IGNORED,
    progress: bool = False,
) -> LinearProbe:
    """Fit a linear classifier of pixels to features of a frozen model, after Baranchuk et al. (2022).

    Args:
        samples: images under the probe, each with labels (height, width) integers of its size; read one at a time.
        classes: how many; labels are 0 … classes - 1 or `ignore_index`.
        training: how; the defaults when None.
        ignore_index: label of pixels that are not learnt.
        progress: show a progress bar over steps.

    Raises:
        InputError: no samples, labels that do not fit, or no pixel to learn from.
    """
    training = training or ProbeTraining()
    rng = np.random.default_rng(training.seed)
    drawn: list[Tensor] = []
    wanted: list[np.ndarray] = []
    sites: list[Site] = []
    timestep = 0
    for probed, labels in samples:
        _require_labels(probed.image, labels, classes, ignore_index)
        sites = list(feature_sites(probed.model, *(training.sites or ())))
        asked = EmerDiffConfig().change(feature_timesteps=training.timestep)
        timestep = middle_timestep(resolve_for(probed, asked))
        probed.capture(sites, timestep)
        counted = np.flatnonzero(labels.ravel() != ignore_index)
        places = rng.choice(counted, min(training.pixels, len(counted)), replace=False)
        parts = [_at_pixels(probed, site, timestep, places, labels.shape) for site in sites]
        drawn.append(torch.cat(parts, 1))
        wanted.append(labels.ravel()[places])
    features, truth = _joined(drawn, wanted)
    mean, scale = features.mean(0), features.std(0, unbiased=False).clamp_min(1e-6)
    weights, bias = _fit((features - mean) / scale, truth, classes, training, progress)
    weights = weights / scale
    channels = [site.channels for site in sites]
    names = tuple(site.name for site in sites)
    return LinearProbe(weights.split(channels, 1), bias - weights @ mean, names, timestep)


def _joined(drawn: Sequence[Tensor], wanted: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    if not sum(len(part) for part in drawn):
        raise InputError(f"{len(drawn)} samples without a pixel to learn from; accepted: one or more that count")
    features = torch.cat(list(drawn))
    if not torch.isfinite(features).all():
        raise InputError("the features hold NaN or infinite values: the denoiser overflowed; use float32")
    return features, torch.from_numpy(np.concatenate(wanted)).long()


def _at_pixels(probed: ProbedImage, site: Site, timestep: int, places: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Bilinearly upsampled features of some pixels only, (pixel, channel)."""
    maps = rearrange(probed.features(site, timestep), "(h w) c -> 1 c h w", h=probed.grid(site)[0])
    rows, columns = np.unravel_index(places, size)
    positions = np.stack([(2 * columns + 1) / size[1] - 1, (2 * rows + 1) / size[0] - 1], -1)
    asked = torch.from_numpy(positions).float()[None, None]
    sampled = nn.functional.grid_sample(maps, asked, padding_mode="border", align_corners=False)
    return rearrange(sampled, "1 c 1 pixel -> pixel c")


def _fit(
    features: Tensor, truth: Tensor, classes: int, training: ProbeTraining, progress: bool
) -> tuple[Tensor, Tensor]:
    weights = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weights, bias], training.rate, weight_decay=training.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    generator = torch.Generator().manual_seed(training.seed)
    for _ in tqdm(range(training.steps), disable=not progress, desc="linear probe"):
        rows = torch.randint(len(features), (min(training.batch, len(features)),), generator=generator)
        loss = nn.functional.cross_entropy(features[rows] @ weights.T + bias, truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weights.detach(), bias.detach()


@dataclass(frozen=True)
class UNetTraining:
    """A small U-Net and how it is trained. The defaults take a few minutes on one processor core.

    Attributes:
        width: channels of the finest level; every coarser level doubles them. A multiple of 4.
        levels: of resolution, 1 or more.
        scale: pixels of a side of what the finest level sees as one; scores are enlarged bilinearly.
        crop: side in pixels of the training squares, a multiple of scale * 2 ** (levels - 1).
        steps: of AdamW.
        batch: squares a step.
        rate: learning rate at the start; it falls to 0 along a cosine.
        decay: of the weights.
        seed: of the weights, the squares and their mirroring.

    Raises:
        InputError: a value out of range.
    """

    width: int = 16
    levels: int = 4
    scale: int = 2
    crop: int = 256
    steps: int = 600
    batch: int = 8
    rate: float = 3e-3
    decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            [
                ("width", is_integer(self.width, 4) and self.width % 4 == 0, "a positive multiple of 4"),
                ("levels", is_integer(self.levels, 1), "an integer, 1 or more"),
                ("scale", is_integer(self.scale, 1), "an integer, 1 or more"),
                ("steps", is_integer(self.steps, 1), "an integer, 1 or more"),
                ("batch", is_integer(self.batch, 1), "an integer, 1 or more"),
                ("rate", is_positive(self.rate), "a finite number above 0"),
                ("decay", self.decay == 0 or is_positive(self.decay), "a finite number, 0 or more"),
                ("seed", is_integer(self.seed, 0), "an integer, 0 or more"),
            ],
        )
        multiple = self.scale * 2 ** (self.levels - 1)
        require(
            self,
            [("crop", is_integer(self.crop, 1) and self.crop % multiple == 0, f"a positive multiple of {multiple}")],
        )


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with group norm: (batch, 3, height, width) -> (batch, class, height, width).

    Any size: sides are filled up to multiples of scale * 2 ** (levels - 1) by repeating the border, and cut back.
    """

    def __init__(self, classes: int, width: int, levels: int, scale: int = 1) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.scale, self.multiple = scale, scale * 2 ** (levels - 1)
        self.down = nn.ModuleList(_convolutions(*pair) for pair in pairwise([3, *widths]))
        self.up = nn.ModuleList(_convolutions(coarse + fine, fine) for fine, coarse in pairwise(widths))
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of classes at every pixel."""
        height, width = images.shape[-2:]
        filled = [-side % self.multiple for side in (width, height)]
        hidden = nn.functional.pad(images, (0, filled[0], 0, filled[1]), mode="replicate")
        hidden = nn.functional.avg_pool2d(hidden, self.scale)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            hidden = block(nn.functional.max_pool2d(hidden, 2) if level else hidden)
            skips.append(hidden)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            enlarged = nn.functional.interpolate(hidden, scale_factor=2, mode="bilinear")
            hidden = block(torch.cat([skip, enlarged], 1))
        scores = nn.functional.interpolate(self.out(hidden), scale_factor=self.scale, mode="bilinear")
        return scores[..., :height, :width]


def _convolutions(given: int, made: int) -> nn.Sequential:
    def layer(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, made, 3, padding=1), nn.GroupNorm(4, made), nn.SiLU()]

    return nn.Sequential(*layer(given), *layer(made))


@dataclass(frozen=True, eq=False)
class SupervisedUNet:
    """A trained U-Net that sees nothing but the image; from `train_unet`.

    Attributes:
        network: (1, 3, height, width) in [-1, 1] -> (1, class, height, width).
        training: how it was made.
    """

    network: UNet
    training: UNetTraining
    name: ClassVar[str] = "unet"
    counts: ClassVar[Counts] = "own"
    probes: ClassVar[bool] = False

    @torch.no_grad()
    def segment(self, probed: Pictured, clusters: int | None = None) -> np.ndarray:
        """As `Segmenter.segment`; labels are classes."""
        refuse_count(self, clusters)
        device = next(self.network.parameters()).device
        return self.network(_as_tensor(probed.image[None]).to(device))[0].argmax(0).cpu().numpy()


def train_unet(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: int,
    training: UNetTraining | None = None,
    *,
    ignore_index: int = IGNORED,
    device: str | torch.device = "cpu",
    progress: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> SupervisedUNet:
    """Train a small U-Net on images and their truth: random squares, half of them mirrored, cross-entropy.

    Args:
        samples: (height, width, 3) uint8 images of any sizes, each with labels (height, width) integers.
        classes: how many; labels are 0 … classes - 1 or `ignore_index`.
        training: how; the defaults when None.
        ignore_index: label of pixels that are not learnt.
        device: to train on; results are the same to the bit on one device.
        progress: show a progress bar over steps.
        report: called with every step and its loss.

    Raises:
        InputError: no samples, labels that do not fit, or no pixel to learn from.
    """
    training = training or UNetTraining()
    for image, labels in samples:
        _require_labels(image, labels, classes, ignore_index)
    samples = [(image, labels) for image, labels in samples if (labels != ignore_index).any()]
    if not samples:
        raise InputError("no samples with a pixel to learn from; accepted: one or more that count")
    rng = np.random.default_rng(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = UNet(classes, training.width, training.levels, training.scale).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), training.rate, weight_decay=training.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for step in tqdm(range(training.steps), disable=not progress, desc="u-net"):
        chosen = rng.integers(0, len(samples), training.batch)
        squares = [_square(samples[place], training.crop, ignore_index, rng) for place in chosen]
        images, labels = (np.stack(parts) for parts in zip(*squares, strict=True))
        truth = torch.from_numpy(labels).long().to(device)
        scores = network(_as_tensor(images).to(device))
        # a sum over counted pixels: the mean of none would be NaN
        loss = nn.functional.cross_entropy(scores, truth, ignore_index=ignore_index, reduction="sum")
        loss = loss / (truth != ignore_index).sum().clamp_min(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step, float(loss.detach()))
    return SupervisedUNet(network.eval().requires_grad_(False), training)


def _as_tensor(images: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images)).float()
    return rearrange(tensor, "batch h w c -> batch c h w") / 127.5 - 1


def _square(
    sample: tuple[np.ndarray, np.ndarray], side: int, ignore_index: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random square, mirrored half of the time; what sticks out of a small image is black and not learnt."""
    image, labels = sample
    missing = [(0, max(0, side - length)) for length in labels.shape]
    image = np.pad(image, [*missing, (0, 0)])
    labels = np.pad(labels.astype(np.int64), missing, constant_values=ignore_index)
    top, left = (rng.integers(0, length - side + 1) for length in labels.shape)
    turn = slice(None, None, -1 if rng.random() < 0.5 else 1)
    window = slice(top, top + side), slice(left, left + side)
    return image[window][:, turn], labels[window][:, turn]


def _require_labels(image: np.ndarray, labels: np.ndarray, classes: int, ignore_index: int) -> None:
    if labels.shape != image.shape[:2] or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels of {labels.dtype}, shape {labels.shape}, for an image of shape {image.shape}; accepted: integers "
            f"of shape {image.shape[:2]}"
        )
    counted = labels[labels != ignore_index]
    if counted.size and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise InputError(
            f"classes {counted.min()} to {counted.max()}; accepted: 0 to {classes - 1}, and {ignore_index} for what "
            "is not learnt"
        )
