"""Training of a pocket model: autoencoder, cached latents, then denoiser and text encoder; resumable."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.models.loading import SHIPPED, find_device
from emerdiff_probe.models.pixels import to_pixels
from emerdiff_probe.pocket.architecture import MODULES, Architecture, Parts
from emerdiff_probe.pocket.card import write_model_card
from emerdiff_probe.pocket.data import Pictures, open_pictures
from emerdiff_probe.pocket.examples import Examples, LatentPool, Scenes, open_windows
from emerdiff_probe.pocket.loop import Budget, Loop, Stop, open_run, require_numbers
from emerdiff_probe.pocket.optimizer import OPTIMIZERS

AUTOENCODER_SHARE = 0.3
"""Part of the minutes of a run that the autoencoder takes, unless it is told otherwise."""

_SCALED_BY = 256
_ENCODE_BATCH = {"cuda": 256, "mps": 32, "cpu": 8}
_JUDGED = 16
"""Held-out pictures on which an autoencoder is measured while it trains."""
_NOISES = 4
"""Draws of noise of every held-out picture on which a denoiser is measured."""

BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("minutes", "autoencoder_minutes", "denoiser_minutes"), (0, 10**6)),
    **dict.fromkeys(("steps", "autoencoder_steps"), (0, 10**9)),
    "session_minutes": (1e-12, 10**6),
    "scenes": (1, 10**7),
    **dict.fromkeys(("workers", "batch", "autoencoder_batch", "samples", "reuse"), (1, 65_536)),
    "pool": (1, 10**7),
    "crop": (1, 8_192),
    "seed": (0, 2**63 - 1),
    "min_snr": (1e-12, 1e12),
    **dict.fromkeys(("learning_rate", "autoencoder_learning_rate"), (1e-12, 1e30)),
    "checkpoint_seconds": (1e-12, 10**9),
    **dict.fromkeys(("warmup_steps", "log_every", "held_out_every"), (1, 10**9)),
}
"""The least and the most of every number of a run; those that may be None are not counted then."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on.

    Pictures come from the world (``world=True``) or from the folder ``images``, of whose images random windows at
    random scales are taken, anew all the time (`examples.Windows`). ``minutes`` are shared out
    30 : 70 between autoencoder and denoiser. ``steps`` counts those of the denoiser and, where nothing else
    bounds it, of the autoencoder too. A stage with minutes and steps ends at whichever comes first; one with
    0 is skipped. Encoding the latents counts as the denoiser's time. ``None`` leaves a choice to the device.
    Raises ``InputError`` for values that cannot work.
    """

    out: Path
    world: bool = False
    images: Path | None = None
    captions: Path | None = None
    init: str | Path | None = None
    """Start from ``"pocket"`` or ``"photo"``, which ship, or a pipeline folder; they set the architecture."""
    autoencoder_from: str | Path | None = None
    """Take the autoencoder alone from ``"pocket"``, ``"photo"`` or a pipeline folder; all other weights start fresh."""
    resume: bool = False
    device: str | None = None
    minutes: float | None = None
    steps: int | None = None
    autoencoder_minutes: float | None = None
    autoencoder_steps: int | None = None
    denoiser_minutes: float | None = None
    session_minutes: float | None = None
    """Leave with a checkpoint and a pipeline after so many minutes; ``resume`` goes on. No budget changes."""

    architecture: Architecture = field(default_factory=Architecture)
    scenes: int | None = None
    """Pictures at most (default 60,000 on CUDA, else 4,000); one of 256 x 256 takes 0.2 MB of disk, one of a folder
    about twice as much."""
    held_out: int = 64
    pool: int | None = None
    """Encoded windows of a folder's images that are held at a time (default 8,192 on CUDA, else 1,024)."""
    reuse: int = 8
    """Times that such a window is used, on average, before another takes its place: then encoding takes 4% of the time
    of 16 latents a step on a processor."""
    workers: int | None = None
    """Processes that draw scenes; default: all cores."""
    cache: Path | None = None
    """Folder of the drawn scenes and of a folder's kept images; default: ``out/cache``."""

    seed: int = 0
    batch: int | None = None
    autoencoder_batch: int | None = None
    crop: int | None = None
    """Pixels of a side of the autoencoder's training crops."""
    optimizer: str = "adamw"
    """Of the denoiser: "muon" for the matrices of its hidden layers and "adamw" for the rest, or "adamw" for all."""
    learning_rate: float = 4e-4
    autoencoder_learning_rate: float = 8e-4
    warmup_steps: int = 200
    ema_decay: float = 0.9995
    caption_dropout: float = 0.1
    kl_weight: float = 1e-5
    """Weight of the mean Kullback-Leibler divergence of a latent element."""
    min_snr: float | None = 5.0
    """Cap of the signal-to-noise ratio by which the squared error of the predicted image counts (5 in the paper on
    Min-SNR, arXiv 2303.09556); ``None`` weighs all noise levels as Stable Diffusion does. Without a cap a small
    denoiser spends itself on the lowest noise, where deep layers have little to do."""
    mirror: bool = True
    """Train the denoiser on mirror images too, at the price of encoding every drawn scene twice."""
    bfloat16: bool | None = None
    """Mixed precision; by default on CUDA and on processors that multiply in bfloat16."""
    held_out_every: int = 500
    """Steps between two measurements on held-out pictures, at noise that stays the same."""
    checkpoint_seconds: float = 90.0
    log_every: int = 50

    prompts: tuple[str, ...] = ()
    """Captions of the sample grid; default: those of held-out pictures."""
    samples: int = 8
    sample_steps: int = 50
    guidance: float = 4.0
    weaknesses: str = ""
    """Known weaknesses, in words, for the model card."""

    def __post_init__(self) -> None:
        if self.world == (self.images is not None):
            raise InputError("pictures: either world=True or images=FOLDER is accepted, not both and not neither")
        if self.captions is not None and self.images is None:
            raise InputError("captions: they go with images=FOLDER; the world captions its own scenes")
        require_numbers(self, BOUNDS)
        if not 0 <= self.caption_dropout <= 1:
            raise InputError(f"caption_dropout: {self.caption_dropout} given; 0 to 1 accepted")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer: {self.optimizer!r} given; {', '.join(OPTIMIZERS)} accepted")
        if self.init is not None and self.autoencoder_from is not None:
            raise InputError("autoencoder_from: given together with init, which brings an autoencoder; one accepted")
        for stage in ("autoencoder", "denoiser"):
            if self.budget(stage) == Budget():
                raise InputError(f"{stage}: no budget; minutes, steps or {stage}_minutes are accepted")
        skipped = self.budget("autoencoder").progress(step=0, seconds=0) >= 1
        if skipped and self.init is None and self.autoencoder_from is None and not self.resume:
            raise InputError(
                "autoencoder: a budget of 0 given; only a run with init or autoencoder_from has one to skip training of"
            )

    def budget(self, stage: str) -> Budget:
        """The budget of stage ``"autoencoder"`` or ``"denoiser"``."""
        own = {"autoencoder": self.autoencoder_minutes, "denoiser": self.denoiser_minutes}[stage]
        share = {"autoencoder": AUTOENCODER_SHARE, "denoiser": 1 - AUTOENCODER_SHARE}[stage]
        shared = None if self.minutes is None else self.minutes * share
        minutes = shared if own is None else own
        steps = self.steps
        if stage == "autoencoder":
            steps = self.autoencoder_steps
            if steps is None and minutes is None:
                steps = self.steps
        return Budget(minutes, steps)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device to train on: the one named, else CUDA, MPS or the CPU."""
        return find_device(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to be resumed."""
        names = (
            "world",
            "images",
            "captions",
            "init",
            "autoencoder_from",
            "scenes",
            "held_out",
            "seed",
            "batch",
            "autoencoder_batch",
            "crop",
            "mirror",
            "pool",
            "reuse",
            "optimizer",
        )
        values = {name: getattr(self, name) for name in names} | {"architecture": asdict(self.architecture)}
        return json.loads(json.dumps(values, default=str))

    def choice(self, name: str, *, cuda: int, other: int) -> int:
        """The value of an option, or the default for the kind of device."""
        value = getattr(self, name)
        return int(value) if value is not None else cuda if self.torch_device.type == "cuda" else other


def train(config: TrainConfig, *, report: Callable[[str], None] = print) -> Path:
    """Train a pocket model and return its pipeline folder, ``config.out / "pipeline"``.

    The run folder also holds ``losses.jsonl``, ``figures.json``, ``samples/`` and the state from which
    ``resume=True`` goes on. Runs with a budget in steps draw everything from ``seed`` and the number of the
    step, so a resumed run equals an uninterrupted one. Raises ``InputError`` for a folder in use or without
    images, ``ModelError`` if the loss is no longer finite, and ``KeyboardInterrupt`` after Ctrl-C, when
    checkpoint and pipeline are written.
    """
    open_run(config.out, config.identity, resume=config.resume)
    parts = None if config.init is None else Parts.load(_init_folder(config.init))
    size = config.architecture.image_size if parts is None else parts.image_size
    with _open_examples(config, size, report) as examples, Stop(config.session_minutes) as stop:
        if parts is None:
            parts = Parts.build(config.architecture, examples.words, seed=config.seed)
            if config.autoencoder_from is not None:
                parts.take_autoencoder(_init_folder(config.autoencoder_from))
        run = _Run(config, parts, examples, stop, report)
        run.train_autoencoder()
        if not stop:
            run.train_denoiser()
        pipeline = run.export()
    if stop.interrupted:
        raise KeyboardInterrupt
    return pipeline


@contextmanager
def _open_examples(config: TrainConfig, size: int, report: Callable[[str], None]) -> Iterator[Examples]:
    """What a run learns from, of `size` pixels."""
    count = config.choice("scenes", cuda=60_000, other=4_000)
    cache = config.cache or config.out / "cache"
    if config.images is not None:
        yield open_windows(
            config.images,
            size,
            cap=count,
            store=cache,
            captions=config.captions,
            held_out=config.held_out,
            seed=config.seed,
            mirror=config.mirror,
            report=report,
        )
        return
    with open_pictures(
        size, count, images=None, cache=cache, held_out=config.held_out, workers=config.workers, report=report
    ) as source:
        yield Scenes(source, mirror=config.mirror)


class _Run:
    """The stages of one training run over its parts."""

    def __init__(
        self, config: TrainConfig, parts: Parts, examples: Examples, stop: Stop, report: Callable[[str], None]
    ):
        self.config, self.parts, self.examples, self.stop, self.report = config, parts, examples, stop, report
        self.device = config.torch_device
        self.scaling_factor = float(parts.autoencoder.config.scaling_factor)
        batch = config.choice("autoencoder_batch", cuda=64, other=8)
        crop = min(config.choice("crop", cuda=128, other=64), parts.image_size)
        self.crop_shape = (batch, crop)
        self.batch = config.choice("batch", cuda=256, other=16)
        fit = self.device.type == "cuda" or (self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
        self.bfloat16 = fit if config.bfloat16 is None else config.bfloat16
        for name in MODULES:
            getattr(parts, name).to(self.device, memory_format=torch.channels_last)
        given = config.init is not None
        self.autoencoder_loop = Loop(
            "autoencoder",
            {"autoencoder": parts.autoencoder},
            self,
            peak=config.autoencoder_learning_rate,
            given=given or config.autoencoder_from is not None,
        )
        self.denoiser_loop = Loop(
            "denoiser",
            {"denoiser": parts.denoiser, "text_encoder": parts.text_encoder},
            self,
            peak=config.learning_rate,
            optimizer=config.optimizer,
            given=given,
        )

    def train_autoencoder(self) -> None:
        """Stage 1: crops in, crops out."""
        loop, autoencoder = self.autoencoder_loop, self.parts.autoencoder
        if loop.progress >= 1 or self.stop:
            self._measure_scaling()
            return
        batch, crop = self.crop_shape
        # Steps are drawn from a fixed number of pictures, or two runs of the same steps would differ.
        all_drawn = loop.budget.minutes is None

        def loss_of(step: int) -> Tensor:
            random = np.random.default_rng([self.config.seed, step])
            target = self._to_device(self.examples.crops(random, batch, crop, all_drawn=all_drawn))
            generator = self.generator("autoencoder", step)
            posterior = autoencoder.encode(target).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=self.device)
            painted = autoencoder.decode(posterior.mean + posterior.std * noise).sample
            divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
            return reconstruction_loss(painted.float(), target) + self.config.kl_weight * divergence

        loop.run(loss_of, judge=self._autoencoder_judge(), every=self.config.held_out_every)
        self._measure_scaling()

    def _autoencoder_judge(self) -> Callable[[], dict[str, float]] | None:
        """Of the averaged autoencoder, its loss and PSNR on a few held-out pictures."""
        held_out = self.examples.held_out
        if held_out is None:
            return None
        images = held_out.images[:: max(1, len(held_out) // _JUDGED)][:_JUDGED]
        autoencoder = self.autoencoder_loop.averaged["autoencoder"]

        @torch.no_grad()
        def judge() -> dict[str, float]:
            losses, painted = [], []
            for one in np.split(images, len(images)):
                target = self._to_device(one)
                with self.autocast():
                    again = autoencoder.decode(autoencoder.encode(target).latent_dist.mean).sample.float()
                losses.append(reconstruction_loss(again, target).item())
                painted.append(to_pixels(again))
            psnr = reconstruction_figures(images, np.concatenate(painted))["psnr"]
            return {"held_out": float(np.mean(losses)), "psnr": psnr}

        return judge

    def train_denoiser(self) -> None:
        """Stages 2 and 3: encode pictures, and learn to denoise their latents."""
        loop, parts, config = self.denoiser_loop, self.parts, self.config
        if loop.progress >= 1:
            return
        loop.start_clock()
        pool = self._pool()
        empty = self._tokenize([""]).to(self.device)
        if self.bfloat16 and self.device.type == "cpu":
            # The processor's fused attention gains nothing from bfloat16; plain products do.
            for denoiser in (parts.denoiser, loop.averaged["denoiser"]):
                denoiser.set_attn_processor(AttnProcessor())

        # Never compiled: torch 2.13 compiles the upsamplers in bfloat16 to a zero gradient on the CPU, silently.
        def loss_of(step: int) -> Tensor:
            generator = self.generator("denoiser", step)
            latents, tokens = pool.at(step * self.batch)
            chosen = torch.randint(len(latents), (self.batch,), generator=generator, device=self.device)
            # One timestep from each of as many equal spans as a batch has rows: less noise in the gradient.
            within = torch.rand(self.batch, generator=generator, device=self.device)
            spans = (torch.arange(self.batch, device=self.device) + within) / self.batch
            clean = latents[chosen].float() * self.scaling_factor
            dropped = torch.rand((self.batch, 1), generator=generator, device=self.device) < config.caption_dropout
            said = torch.where(dropped, empty, tokens[chosen].long())
            noise = torch.randn(clean.shape, generator=generator, device=self.device)
            return self._denoising_loss(parts.denoiser, parts.text_encoder, clean, said, spans, noise)

        loop.run(loss_of, judge=self._denoiser_judge(), every=config.held_out_every)

    def _denoising_loss(
        self, denoiser: Any, text_encoder: Any, clean: Tensor, tokens: Tensor, spans: Tensor, noise: Tensor
    ) -> Tensor:
        """Weighted squared error of what is predicted of latents, each at that share (of `spans`) of all timesteps."""
        scheduler = self.parts.scheduler
        prediction = scheduler.config.prediction_type
        weights = loss_weights(scheduler.alphas_cumprod.to(self.device), prediction, self.config.min_snr)
        timestep = (spans * len(weights)).long().clamp(max=len(weights) - 1)
        clean = clean.contiguous(memory_format=torch.channels_last)
        context = text_encoder(tokens).last_hidden_state
        predicted = denoiser(scheduler.add_noise(clean, noise, timestep), timestep, context).sample.float()
        error = (predicted - _target(scheduler, prediction, clean, noise, timestep)).square().mean((1, 2, 3))
        return (weights[timestep] * error).mean()

    def _denoiser_judge(self) -> Callable[[], dict[str, float]] | None:
        """Of the averaged denoiser, its loss on held-out pictures, each at a few fixed timesteps and draws of noise."""
        held_out = self.examples.held_out
        if held_out is None:
            return None
        clean = self._encode(held_out.images).float().repeat(_NOISES, 1, 1, 1) * self.scaling_factor
        tokens = self._tokenize(list(held_out.captions)).to(self.device).repeat(_NOISES, 1)
        spans = (torch.arange(len(clean), device=self.device) + 0.5) / len(clean)
        noise = torch.randn(clean.shape, generator=self.generator("held out", 0), device=self.device)
        averaged = self.denoiser_loop.averaged

        @torch.no_grad()
        def judge() -> dict[str, float]:
            total = 0.0
            for rows in torch.arange(len(clean), device=self.device).split(self.batch):
                with self.autocast():
                    loss = self._denoising_loss(
                        averaged["denoiser"],
                        averaged["text_encoder"],
                        clean[rows],
                        tokens[rows],
                        spans[rows],
                        noise[rows],
                    )
                total += loss.item() * len(rows)
            return {"held_out": total / len(clean)}

        return judge

    def export(self) -> Path:
        """Write pipeline, sample grids, figures and model card; returns the pipeline folder."""
        parts = Parts(
            autoencoder=self.autoencoder_loop.averaged["autoencoder"],
            denoiser=self.denoiser_loop.averaged["denoiser"],
            text_encoder=self.denoiser_loop.averaged["text_encoder"],
            tokenizer=self.parts.tokenizer,
            scheduler=self.parts.scheduler,
        )
        parts.autoencoder.register_to_config(scaling_factor=self.scaling_factor)
        folder = self.config.out / "pipeline"
        temporary = folder.with_suffix(".writing")
        shutil.rmtree(temporary, ignore_errors=True)
        parts.save(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        self.report(f"pipeline: {folder}")

        shown = self.examples.held_out or _first(self.examples, 1)
        figures = {
            **self.examples.description,
            "held_out": len(self.examples.held_out) if self.examples.held_out else 0,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            "init": None if self.config.init is None else str(self.config.init),
            "mirror": self.config.mirror,
            "image_size": parts.image_size,
            "scaling_factor": self.scaling_factor,
            "parameters": {name: sum(p.numel() for p in getattr(parts, name).parameters()) for name in MODULES},
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "autoencoder": {
                **self.autoencoder_loop.figures,
                "batch": self.crop_shape[0],
                "crop": self.crop_shape[1],
            },
            "denoiser": {**self.denoiser_loop.figures, "batch": self.batch},
            "guidance": self.config.guidance,
            "sample_steps": self.config.sample_steps,
            **self._draw_samples(parts, shown),
        }
        text = json.dumps(figures, indent=1)
        write_whole(self.config.out / "figures.json", lambda partial: partial.write_text(text, encoding="utf-8"))
        write_model_card(self.config.out, weaknesses=self.config.weaknesses)
        return folder

    def generator(self, stage: str, step: int) -> torch.Generator:
        """The random numbers of one step: a resumed run draws those of an uninterrupted one."""
        seed = zlib.crc32(f"{self.config.seed}/{stage}/{step}".encode())
        return torch.Generator(self.device).manual_seed(seed)

    def _to_device(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        # Channels stay last in memory: the permuted view already is a channels_last tensor.
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _tokenize(self, captions: list[str]) -> Tensor:
        return self.parts.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.parts.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids

    def _measure_scaling(self) -> None:
        """Set the scaling factor that gives the latents of the first examples unit variance."""
        if self.autoencoder_loop.step:
            latents = self._encode(_first(self.examples, _SCALED_BY).images)
            self.scaling_factor = 1 / latents.float().std().item()
            self.report(f"latents: scaling factor {self.scaling_factor:.4f}")

    def _pool(self) -> LatentPool:
        """Latents to learn from; those of examples that have an end are kept in a file."""
        pool = LatentPool(
            self.examples,
            self._encode,
            self._tokenize,
            capacity=self.config.choice("pool", cuda=8_192, other=1_024),
            reuse=self.config.reuse,
            chunk=_ENCODE_BATCH.get(self.device.type, 8),
        )
        path = self.config.out / "latents.safetensors"
        origin = {"autoencoder_step": str(self.autoencoder_loop.step), "examples": str(self.examples.total)}
        if self.examples.total is None or not pool.restore(path, origin, self.device):
            latents, _ = pool.at(self.denoiser_loop.step * self.batch)
            if self.examples.total is not None:
                pool.save(path, origin)
            self.report(f"latents: {len(latents)} encoded")
        return pool

    @torch.no_grad()
    def _encode(self, images: np.ndarray) -> Tensor:
        """Latent means, float16 and not scaled."""
        autoencoder = self.autoencoder_loop.averaged["autoencoder"]
        batch = _ENCODE_BATCH.get(self.device.type, 8)
        means = []
        for start in range(0, len(images), batch):
            with self.autocast():
                posterior = autoencoder.encode(self._to_device(images[start : start + batch])).latent_dist
            means.append(posterior.mean)
        return torch.cat(means).to(torch.float16)  # converted last: mixed precision joins no float16

    def autocast(self) -> torch.autocast:
        """Mixed precision where the device is made for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    @torch.no_grad()
    def _draw_samples(self, parts: Parts, pictures: Pictures) -> dict[str, Any]:
        """Write the sample grids; returns the figures of the autoencoder and the prompts."""
        folder = self.config.out / "samples"
        folder.mkdir(exist_ok=True)
        painted = []
        for start in range(0, len(pictures), 8):
            latent = parts.autoencoder.encode(self._to_device(pictures.images[start : start + 8])).latent_dist.mean
            painted.append(to_pixels(parts.autoencoder.decode(latent).sample))
        reconstructed = np.concatenate(painted)
        shown = slice(0, self.config.samples)
        _save_grid(folder / "reconstructions.png", [pictures.images[shown], reconstructed[shown]])

        captions = self.config.prompts or tuple(dict.fromkeys(pictures.captions))
        prompts = [captions[n % len(captions)] for n in range(self.config.samples)]
        pipeline = parts.pipeline().to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        sampled = pipeline(
            prompts,
            height=parts.image_size,
            width=parts.image_size,
            num_inference_steps=self.config.sample_steps,
            guidance_scale=self.config.guidance,
            generator=[torch.Generator().manual_seed(n) for n in range(len(prompts))],
            output_type="np",
        ).images
        pixels = (np.nan_to_num(sampled) * 255).round().astype(np.uint8)
        _save_grid(folder / "prompts.png", [pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :]])
        return {"prompts": prompts, **reconstruction_figures(np.asarray(pictures.images), reconstructed)}


def loss_weights(alphas_cumprod: Tensor, prediction_type: str, min_snr: float | None) -> Tensor:
    """Weight (timestep,) of the squared error of a prediction, so that the error of the image counts by min(SNR, cap).

    Min-SNR weighting (arXiv 2303.09556) for any of the scheduler's prediction types; without a cap the weights are
    those under which every type equals the unweighted loss of epsilon prediction.
    """
    ratio = alphas_cumprod / (1 - alphas_cumprod)
    capped = ratio if min_snr is None else ratio.clamp(max=min_snr)
    return {"sample": capped, "epsilon": capped / ratio, "v_prediction": capped / (ratio + 1)}[prediction_type]


def _target(scheduler: DDIMScheduler, prediction_type: str, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timestep)
    return {"sample": clean, "epsilon": noise}[prediction_type]


def reconstruction_loss(painted: Tensor, target: Tensor) -> Tensor:
    """Loss between pictures (batch, channel, height, width): absolute, squared, edges, colour."""
    difference = painted - target
    loss = difference.abs().mean() + difference.square().mean()
    for scale in (1, 2, 4):
        coarse = F.avg_pool2d(difference, scale)
        loss = loss + (coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean()) / 6
    # Hue away from the grey axis, without the fine detail that the other terms look after.
    coarse = F.avg_pool2d(difference, 4)
    return loss + 0.5 * (coarse - coarse.mean(dim=1, keepdim=True)).abs().mean()


def reconstruction_figures(images: np.ndarray, painted: np.ndarray) -> dict[str, float]:
    """Mean PSNR (dB) over images (image, height, width, 3; uint8), mean error of 8 x 8 blocks' colours."""
    difference = painted.astype(np.float64) - images
    squared = np.maximum((difference**2).mean((1, 2, 3)), 1e-4)
    blocks = F.avg_pool2d(torch.from_numpy(difference).permute(0, 3, 1, 2), 8)
    return {
        "psnr": float((10 * np.log10(255**2 / squared)).mean()),
        "colour_error": float(blocks.abs().mean()),
    }


def _first(examples: Examples, count: int) -> Pictures:
    """The first examples, as many as there are."""
    drawn = [examples.example(number) for number in range(min(count, examples.total or count))]
    return Pictures(np.stack([image for image, _ in drawn]), [caption for _, caption in drawn])


def _init_folder(init: str | Path) -> Path:
    return SHIPPED.get(str(init), Path(init))


def _save_grid(path: Path, rows: list[np.ndarray]) -> None:
    """Rows of pictures (image, height, width, 3), one below the other."""
    lines = [np.concatenate(list(row), axis=1) for row in rows if len(row)]
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    Image.fromarray(np.concatenate(padded)).save(path)
