"""The parts of a pocket model: autoencoder, denoiser, text encoder, tokenizer and scheduler, from numbers."""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.loading import quiet_loading

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
WORD_END = "</w>"
AUTOENCODER_NORM_GROUPS = 2
CARRIED = 8
"""Channels of every layer of a fresh autoencoder that carry colours: three, their negatives and two constants."""
STEADY = 4.0
"""Constant that a fresh autoencoder carries beside colours in [-1, 1]; the larger, the more linear it starts."""
PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")
MODULES = ("autoencoder", "denoiser", "text_encoder")
"""Names of the trained modules of ``Parts``."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a pocket model; the defaults are those of the model that ships.

    The denoiser has three levels with cross-attention at the two coarser ones, so that ``up_blocks.1`` holds
    three cross-attention layers at half the latent resolution, as in Stable Diffusion v1.4. Attention at the
    finest level would cost as much as all of its convolutions, and everything here runs on laptops.
    """

    image_size: int = 256
    """Pixels of a side of the square training pictures."""
    latent_channels: int = 8
    autoencoder_channels: tuple[int, ...] = (16, 32, 64, 128)
    """Width of each level, finest first; every level but the last halves the resolution."""
    denoiser_channels: tuple[int, int, int] = (32, 64, 128)
    denoiser_heads: tuple[int, int, int] = (2, 4, 8)
    """Attention heads of each level of the denoiser."""
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    max_tokens: int = 48
    norm_groups: int = 8
    prediction_type: str = "sample"
    """What the denoiser predicts, in the words of the schedulers of diffusers: the image (``"sample"``), the noise
    (``"epsilon"``) or ``"v_prediction"``. A small model learns deep features of the image soonest from the image."""

    def __post_init__(self) -> None:
        if self.image_size % (4 * self.factor):
            raise InputError(
                f"image_size: {self.image_size} given; the autoencoder (factor {self.factor}) and the three "
                f"levels of the denoiser take multiples of {4 * self.factor}"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(f"prediction_type: {self.prediction_type!r} given; {', '.join(PREDICTION_TYPES)} accepted")
        checks = (("autoencoder_channels", CARRIED), ("denoiser_channels", self.norm_groups))
        for name, divisor in checks:
            widths = getattr(self, name)
            if not widths or any(width < 1 or width % divisor for width in widths):
                raise InputError(f"{name}: {widths} given; positive multiples of {divisor} accepted")
        if any(c % h for c, h in zip(self.denoiser_channels, self.denoiser_heads, strict=True)):
            raise InputError(
                f"denoiser_heads: {self.denoiser_heads} given; divisors of denoiser_channels "
                f"{self.denoiser_channels} accepted"
            )

    @property
    def factor(self) -> int:
        """Pixels of a side of one latent cell."""
        return 2 ** (len(self.autoencoder_channels) - 1)

    @property
    def latent_size(self) -> int:
        """Cells of a side of the latent of a training picture."""
        return self.image_size // self.factor


@dataclass
class Parts:
    """The trained modules and the fixed pieces of one Stable Diffusion pipeline."""

    autoencoder: AutoencoderKL
    denoiser: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler

    @classmethod
    def build(cls, architecture: Architecture, words: Iterable[str], *, seed: int = 0) -> Self:
        """Fresh parts, weights drawn from ``seed``, whose tokenizer knows each of ``words`` as one token."""
        tokenizer = build_tokenizer(words, max_tokens=architecture.max_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                autoencoder=_autoencoder(architecture),
                denoiser=_denoiser(architecture),
                text_encoder=_text_encoder(architecture, tokenizer),
                tokenizer=tokenizer,
                scheduler=_scheduler(architecture.prediction_type),
            )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Parts of a pipeline folder in float32; ``ModelError`` if it holds no such pipeline."""
        try:
            with quiet_loading():
                return cls(
                    autoencoder=AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True).float(),
                    denoiser=UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True).float(),
                    text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True).float(),
                    tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                    scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
                )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{folder}: cannot be loaded to start from ({error}); a Stable Diffusion folder in the "
                "diffusers format with safetensors weights is accepted"
            ) from error

    def take_autoencoder(self, folder: Path) -> None:
        """Put the autoencoder of a pipeline folder in place of this one; ``ModelError`` where its latents differ."""
        other = type(self).load(folder)
        for name, ours, theirs in (
            ("latent channels", self.autoencoder.config.latent_channels, other.autoencoder.config.latent_channels),
            ("image size", self.image_size, other.image_size),
        ):
            if ours != theirs:
                raise ModelError(f"{folder}: its autoencoder has {name} {theirs}; this denoiser takes {ours}")
        self.autoencoder = other.autoencoder

    @property
    def image_size(self) -> int:
        """Pixels of a side of the square pictures that the parts are made for."""
        levels = len(self.autoencoder.config.block_out_channels)
        return int(self.denoiser.config.sample_size) * 2 ** (levels - 1)

    def pipeline(self) -> StableDiffusionPipeline:
        """The parts as one pipeline (sharing their weights), without safety checker."""
        return StableDiffusionPipeline(
            vae=self.autoencoder,
            unet=self.denoiser,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save(self, folder: Path) -> None:
        """Write a pipeline folder with float16 weights; the parts stay as they are."""
        halves = {name: copy.deepcopy(getattr(self, name)).cpu().half() for name in MODULES}
        with quiet_loading():
            replace(self, **halves).pipeline().save_pretrained(folder, safe_serialization=True)
        # Stable Diffusion's own files carry this prefix, and every release of transformers reads it.
        path = folder / "text_encoder" / "model.safetensors"
        weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        # Where a part was loaded from is of no use to others.
        for name in ("unet", "vae"):
            path = folder / name / "config.json"
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        # Asked for no dtype, diffusers loads float32 and transformers what the configuration says: let both agree.
        path = folder / "text_encoder" / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(settings | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
        # Newer transformers write tokenizer.json alone, older ones read the two files of old.
        path = folder / "tokenizer" / "tokenizer.json"
        if path.exists():
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
            _write_vocabulary(path.parent, model["vocab"], [tuple(pair) for pair in model["merges"]])


def build_tokenizer(words: Iterable[str], *, max_tokens: int = 40) -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, byte-level BPE) to which each of ``words`` is one token.

    Every byte is a token as well, inside a word and at its end, so that any other text still tokenizes. The
    merges follow from the sorted words alone: the same words always give the same tokenizer.
    """
    alphabet = list(_byte_characters().values())
    merges = _merges({word.strip().lower() for word in words if word.strip()})
    tokens = [
        *alphabet,
        *(character + WORD_END for character in alphabet),
        *("".join(pair) for pair in merges),
    ]
    vocabulary = {token: number for number, token in enumerate([*tokens, START_TOKEN, END_TOKEN])}
    with tempfile.TemporaryDirectory() as folder:
        _write_vocabulary(Path(folder), vocabulary, merges)
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)


def _write_vocabulary(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges under which every word becomes one token.

    A word's missing merges are appended, so they rank below those of the words before it, which are whole
    before any of the new ones could apply to them.
    """
    ranks: dict[tuple[str, str], int] = {}
    byte_characters = _byte_characters()
    for word in sorted(words):
        characters = [byte_characters[byte] for byte in word.encode("utf-8")]
        pieces = _apply_merges([*characters[:-1], characters[-1] + WORD_END], ranks)
        while len(pieces) > 1:
            ranks.setdefault((pieces[0], pieces[1]), len(ranks))
            pieces = _apply_merges(pieces, ranks)
    return list(ranks)


def _apply_merges(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: merge the pair of lowest rank until none is known."""
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        position = 0
        while position < len(pieces):
            together = tuple(pieces[position : position + 2]) == best
            merged.append("".join(best) if together else pieces[position])
            position += 2 if together else 1
        pieces = merged
    return pieces


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in GPT-2's and CLIP's vocabularies."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _autoencoder(architecture: Architecture) -> AutoencoderKL:
    levels = len(architecture.autoencoder_channels)
    autoencoder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=architecture.autoencoder_channels,
        layers_per_block=1,
        latent_channels=architecture.latent_channels,
        norm_num_groups=AUTOENCODER_NORM_GROUPS,
        sample_size=architecture.image_size,
        force_upcast=False,
        mid_block_add_attention=False,
    )
    _start_as_thumbnail(autoencoder)
    return autoencoder


@torch.no_grad()
def _start_as_thumbnail(autoencoder: AutoencoderKL) -> None:
    """Let a fresh autoencoder begin with the right colours, which take long to learn on a laptop.

    Its first three latent channels start as the mean colours of the cells, its decoder as their smooth enlargement;
    residual branches start at zero. The first eight channels of every layer carry the colours, their negatives and two
    constants: a pair's SiLUs subtract to the identity, and the constants keep group norms from dividing brightness out.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            _carry(module.conv_shortcut, [1.0])
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Downsample2D):
            _carry(module.conv, [0.5, 0.5, 0.0])
        elif isinstance(module, Upsample2D):
            _carry(module.conv, [0.25, 0.5, 0.25])
        elif isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for half in (encoder, decoder):
        _fan_out(half.conv_in)
        _gather(half.conv_norm_out, half.conv_out)
    nn.init.dirac_(autoencoder.quant_conv.weight)
    nn.init.dirac_(autoencoder.post_quant_conv.weight)
    logvar = encoder.conv_out.out_channels // 2
    encoder.conv_out.weight[logvar:] = 0
    encoder.conv_out.bias[logvar:] = -6.0


def _carry(conv: nn.Conv2d | None, taps: list[float]) -> None:
    """Pass the first eight channels on, each filtered by the outer product of `taps`."""
    if conv is not None:
        kernel = torch.tensor(taps)
        conv.weight[:CARRIED] = 0
        conv.weight[range(CARRIED), range(CARRIED)] = torch.outer(kernel, kernel)


def _fan_out(conv: nn.Conv2d) -> None:
    """Three colours in; the first eight channels out are they, their negatives, and plus and minus one constant."""
    centre = conv.kernel_size[0] // 2
    conv.weight[:CARRIED] = 0
    for colour in range(3):
        conv.weight[2 * colour, colour, centre, centre] = 1.0
        conv.weight[2 * colour + 1, colour, centre, centre] = -1.0
    conv.bias[6:8] = torch.tensor([STEADY, -STEADY])  # type: ignore[index]


def _gather(norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
    """The reverse of `_fan_out`, behind a group norm and a SiLU."""
    centre = conv.kernel_size[0] // 2
    steady_share = 2 * norm.num_groups / norm.num_channels
    norm.weight[:CARRIED] = STEADY * steady_share**0.5
    conv.weight[:3] = 0
    for colour in range(3):
        conv.weight[colour, 2 * colour, centre, centre] = 1.0
        conv.weight[colour, 2 * colour + 1, centre, centre] = -1.0


def _denoiser(architecture: Architecture) -> UNet2DConditionModel:
    denoiser = UNet2DConditionModel(
        sample_size=architecture.latent_size,
        in_channels=architecture.latent_channels,
        out_channels=architecture.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=architecture.denoiser_channels,
        layers_per_block=2,
        # diffusers reads this as the number of heads in models of Stable Diffusion v1's kind.
        attention_head_dim=architecture.denoiser_heads,
        cross_attention_dim=architecture.text_width,
        norm_num_groups=architecture.norm_groups,
    )
    # Residual branches start at zero, as in Dhariwal and Nichol's denoisers: the first steps count for more.
    for module in denoiser.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Transformer2DModel):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(denoiser.conv_out.weight)
    return denoiser


def _text_encoder(architecture: Architecture, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=architecture.text_width,
            intermediate_size=4 * architecture.text_width,
            num_hidden_layers=architecture.text_layers,
            num_attention_heads=architecture.text_heads,
            max_position_embeddings=architecture.max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
