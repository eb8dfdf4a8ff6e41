"""The pocket CLIP: a small `CLIPModel`, trained on captioned pictures, so that segments get names on a laptop.

Captions are all that it is told; no mask is ever seen. Each caption is also cut into its phrases ("a grey bus", "teal
wheels"), which hold for the whole picture as the caption does. Drawn scenes also have close-ups: windows with captions
of their own, as photographs of single things have.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.models.clip import Clip, before_last_block, load_clip, run_block, value_path
from emerdiff_probe.models.loading import find_device, quiet_loading
from emerdiff_probe.pocket.architecture import build_tokenizer
from emerdiff_probe.pocket.card import draw_curve, read_losses
from emerdiff_probe.pocket.data import CloseupGrid, Pictures, PictureSource, mirrored, open_pictures, words
from emerdiff_probe.pocket.loop import Budget, Loop, Stop, open_run, require_numbers

STAGE = "clip"
MAX_SCALE = 100.0
"""Of the logits, as in CLIP."""
BETWEEN = {"with", "and", "on", "in", "over", "under", "at", "of", "front"}
"""Words between the phrases of a caption."""
ARTICLES = {"a", "an", "the"}
MORE_CLOSEUPS = 6
"""Times as many close-ups as whole pictures in a step, at most; small ones have few patches."""
SEEN_OFTEN = 5
"""Held-out pictures that a word must be true of, and not true of, to be scored."""

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class ClipArchitecture:
    """Sizes of a pocket CLIP; by default small enough for two steps of 64 pictures a second on two cores.

    Raises:
        InputError: sizes that do not divide.
    """

    image_size: int = 128
    """Pixels of a side of the square pictures."""
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    projection: int = 128
    """Channels of the embeddings of images and texts."""
    max_tokens: int = 48

    def __post_init__(self) -> None:
        for name, whole, part in (
            ("image_size", self.image_size, self.patch_size),
            ("width", self.width, self.heads),
            ("text_width", self.text_width, self.text_heads),
        ):
            if whole < 1 or part < 1 or whole % part:
                raise InputError(f"{name}: {whole} given; positive multiples of {part} accepted")

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch_size) ** 2

    def build(self, vocabulary: Iterable[str], *, seed: int = 0) -> tuple[CLIPModel, CLIPTokenizer]:
        """A fresh model, weights drawn from ``seed``, and its tokenizer, to which each word is one token."""
        tokenizer = build_tokenizer(vocabulary, max_tokens=self.max_tokens)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.text_heads,
            max_position_embeddings=self.max_tokens,
            projection_dim=self.projection,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            projection_dim=self.projection,
        )
        settings = CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=self.projection
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return CLIPModel(settings), tokenizer


BOUNDS: dict[str, tuple[float, float]] = {
    "minutes": (0, 10**6),
    "steps": (0, 10**9),
    "session_minutes": (1e-12, 10**6),
    "scenes": (1, 10**7),
    "held_out": (0, 10**7),
    "workers": (1, 65_536),
    "seed": (0, 2**63 - 1),
    "batch": (1, 65_536),
    "closeups": (0, 65_536),
    "learning_rate": (1e-12, 1e30),
    "checkpoint_seconds": (1e-12, 10**9),
    **dict.fromkeys(("warmup_steps", "log_every"), (1, 10**9)),
}
"""The least and the most of every number of a run; those that may be None are not counted then."""


@dataclass(frozen=True)
class ClipTrainConfig:
    """Everything that the training of a pocket CLIP depends on.

    Pictures are drawn scenes of the world, or with ``images`` those of a folder, which then needs ``captions``. Raises
    ``InputError`` for values that cannot work.
    """

    out: Path
    images: Path | None = None
    captions: Path | None = None
    resume: bool = False
    device: str | None = None
    minutes: float | None = None
    steps: int | None = None
    session_minutes: float | None = None
    """Leave with a checkpoint and a model after so many minutes; ``resume`` goes on."""
    architecture: ClipArchitecture = field(default_factory=ClipArchitecture)
    scenes: int = 10_000
    """Pictures at most; one of 128 x 128 takes 0.05 MB of disk."""
    held_out: int = 256
    workers: int | None = None
    cache: Path | None = None
    """Folder of the drawn scenes; default: ``out/cache``."""
    seed: int = 0
    batch: int = 64
    kept: float = 0.25
    """Share of the patches of a whole picture, drawn anew at every step, that the image encoder sees in training (Li et
    al. 2023, FLIP): cheaper steps, and a picture cannot be told from one place alone."""
    closeups: int = 4
    """Close-ups of each of a few sides that every drawn scene has; 0 trains on whole scenes alone, as folders do."""
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    ema_decay: float = 0.995
    bfloat16: bool | None = None
    """Mixed precision; by default on CUDA and on processors that multiply in bfloat16."""
    checkpoint_seconds: float = 90.0
    log_every: int = 20

    def __post_init__(self) -> None:
        if (self.images is None) != (self.captions is None):
            raise InputError("images and captions: one given without the other; both, or neither for drawn scenes")
        require_numbers(self, BOUNDS)
        if not 0 < self.kept <= 1:
            raise InputError(f"kept: {self.kept} given; more than 0 and up to 1 accepted")
        if self.minutes is None and self.steps is None:
            raise InputError("no budget; minutes or steps are accepted")

    @property
    def seen(self) -> int:
        """Patches of a whole picture that are seen."""
        return max(1, round(self.kept * self.architecture.patches))

    def budget(self, stage: str) -> Budget:
        """Of the only stage."""
        return Budget(self.minutes, self.steps)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device to train on: the one named, else CUDA, MPS or the CPU."""
        return find_device(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to be resumed."""
        names = ("images", "captions", "scenes", "held_out", "seed", "batch", "kept", "closeups")
        values = {name: getattr(self, name) for name in names} | {"architecture": asdict(self.architecture)}
        return json.loads(json.dumps(values, default=str))


def train_clip(config: ClipTrainConfig, *, report: Callable[[str], None] = print) -> Path:
    """Train a pocket CLIP and return its folder, ``config.out / "model"``, which `load_clip` takes.

    The run folder also holds ``losses.jsonl``, ``figures.json`` and the state from which ``resume=True`` goes on. Runs
    with a budget in steps draw everything from ``seed`` and the number of the step, so a resumed run equals an
    uninterrupted one. Raises ``InputError`` for a folder in use or without pictures or captions, ``ModelError`` if the
    loss is no longer finite, and ``KeyboardInterrupt`` after Ctrl-C, when checkpoint and model are written.
    """
    open_run(config.out, config.identity, resume=config.resume)
    pictures = open_pictures(
        config.architecture.image_size,
        config.scenes,
        grid=CloseupGrid(config.architecture.patch_size, config.closeups) if config.closeups else None,
        images=config.images,
        captions=config.captions,
        cache=config.cache or config.out / "cache",
        held_out=config.held_out,
        workers=config.workers,
        report=report,
    )
    with pictures as source, Stop(config.session_minutes) as stop:
        run = _Run(config, source, stop, report)
        run.train()
        folder = run.export()
    if stop.interrupted:
        raise KeyboardInterrupt
    return folder


_Drawn = tuple[np.ndarray, list[str], np.ndarray, np.ndarray]
"""Indices of pictures (image,), captions, and rows and columns of the patches that are seen (image, patch)."""


@dataclass(frozen=True)
class _Batch:
    """What a step sees: of uint8 images (image, height, width, 3) the patches `seen` (image, patch), and captions."""

    images: np.ndarray
    captions: list[str]
    seen: np.ndarray
    whole: bool
    """Whether the captions are those of whole pictures, not of close-ups."""


class _Run:
    """One training run."""

    def __init__(
        self, config: ClipTrainConfig, source: PictureSource, stop: Stop, report: Callable[[str], None]
    ) -> None:
        self.config, self.source, self.stop, self.report = config, source, stop, report
        self.device = config.torch_device
        self.model, self.tokenizer = config.architecture.build(source.words, seed=config.seed)
        self.model.to(self.device)
        self.captions = _Captions(source.words)
        fit = self.device.type == "cuda" or (self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
        self.bfloat16 = fit if config.bfloat16 is None else config.bfloat16
        self.loop = Loop(STAGE, {"model": self.model}, self, peak=config.learning_rate)

    def autocast(self) -> torch.autocast:
        """Mixed precision where the device is made for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def train(self) -> None:
        """Take steps until the budget is spent."""
        config = self.config
        # Steps are drawn from a fixed number of pictures, or two runs of the same steps would differ.
        pictures = self.source.wait(self.source.count if config.minutes is None else config.batch)

        def loss_of(step: int) -> Tensor:
            available = pictures if config.minutes is None else self.source.ready()
            random = np.random.default_rng(zlib.crc32(f"{config.seed}/{STAGE}/{step}".encode()))
            return self._loss(self._draw(available, random), random)

        self.loop.run(loss_of)

    def _draw(self, available: Pictures, random: np.random.Generator) -> _Batch:
        """Whole pictures of which some patches are seen, or close-ups of one side, as many patches together."""
        architecture = self.config.architecture
        across = architecture.image_size // architecture.patch_size
        sides = {one.side // architecture.patch_size for one in available.closeups[0]} if available.closeups else set()
        side = int(random.choice(sorted({across, *sides})))
        drawn = self._some_patches if side == across else partial(self._closeups, side)
        chosen, captions, rows, columns = drawn(available, random)
        images = available.images[chosen]
        flipped = np.flatnonzero(random.random(len(chosen)) < 0.5)
        images[flipped] = images[flipped, :, ::-1]
        columns[flipped] = across - 1 - columns[flipped]
        for n in flipped:
            captions[n] = mirrored(captions[n])
        return _Batch(images, captions, rows * across + columns, whole=side == across)

    def _some_patches(self, available: Pictures, random: np.random.Generator) -> _Drawn:
        config, patches = self.config, self.config.architecture.patches
        chosen = np.sort(random.integers(len(available), size=config.batch))
        order = random.permuted(np.tile(np.arange(patches), (len(chosen), 1)), axis=1)
        rows, columns = np.divmod(np.sort(order[:, : config.seen], axis=1), round(patches**0.5))
        return chosen, [available.captions[n] for n in chosen], rows, columns

    def _closeups(self, side: int, available: Pictures, random: np.random.Generator) -> _Drawn:
        """Of `side` patches, where they are in their pictures."""
        config, size = self.config, self.config.architecture.patch_size
        count = config.batch * min(MORE_CLOSEUPS, max(1, config.seen // side**2))
        chosen = np.sort(random.integers(len(available), size=count))
        fitting = [[one for one in available.closeups[n] if one.side == side * size] for n in chosen]
        closeups = [some[random.integers(len(some))] for some in fitting]
        corner = np.array([(closeup.top, closeup.left) for closeup in closeups]) // size
        rows, columns = np.divmod(np.arange(side**2), side)
        return chosen, [one.caption for one in closeups], corner[:, :1] + rows, corner[:, 1:] + columns

    def _loss(self, batch: _Batch, random: np.random.Generator) -> Tensor:
        """Contrastive losses of captions and phrases against pictures, and of phrases against patches."""
        content = [self.captions.content(caption) for caption in batch.captions]
        phrases = self.captions.draw(content, random)
        held = torch.from_numpy(self.captions.held(phrases, content)).to(self.device)
        whole, patches = (_unit(part) for part in self._embed_images(batch))
        named = _unit(self._embed_texts([" ".join(phrase) for phrase in phrases]))
        scale = self.model.logit_scale.exp().clamp(max=MAX_SCALE)
        with torch.autocast(self.device.type, enabled=False):
            # A phrase is true of a picture if it is true somewhere in it (as Ranasinghe et al. 2023, CLIPpy, pool).
            somewhere = (scale * patches @ named.T).logsumexp(1) - float(np.log(patches.shape[1]))
            losses = [contrast(scale * whole @ named.T, held), contrast(somewhere, held)]
        if batch.whole:  # captions of close-ups are little more than their phrases
            told = _unit(self._embed_texts(batch.captions))
            same = torch.tensor([[one == other for other in content] for one in content])
            losses.append(contrast(scale * whole @ told.T, same.to(self.device)))
        return torch.stack(losses).mean()

    def _embed_images(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of pictures (image, channel), and of the patches that are seen (image, patch, channel)."""
        size, vision = self.config.architecture.patch_size, self.model.vision_model
        cut = rearrange(torch.from_numpy(batch.images), "n (h p) (w q) c -> n (h w) (c p q)", p=size, q=size)
        seen = torch.from_numpy(batch.seen)
        pixels = cut[torch.arange(len(cut))[:, None], seen].to(self.device).float() / 127.5 - 1
        embeddings = vision.embeddings
        positions = embeddings.position_embedding.weight
        patches = nn.functional.linear(pixels, embeddings.patch_embedding.weight.flatten(1))
        patches = patches + positions[1:][seen.to(self.device)]
        start = (embeddings.class_embedding + positions[0]).expand(len(patches), 1, -1)
        hidden = before_last_block(self.model, vision.pre_layrnorm(torch.cat([start, patches.to(start.dtype)], 1)))
        last = run_block(vision.encoder.layers[-1], hidden)[:, 0]
        return self.model.visual_projection(vision.post_layernorm(last)), value_path(self.model, hidden)[:, 1:]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.architecture.max_tokens, return_tensors="pt"
        ).input_ids
        return self.model.text_projection(self.model.text_model(input_ids=ids.to(self.device)).pooler_output)

    def export(self) -> Path:
        """Write the averaged model, its figures and its card; returns the folder."""
        folder = self.config.out / "model"
        temporary = folder.with_suffix(".writing")
        shutil.rmtree(temporary, ignore_errors=True)
        save_clip(self.loop.averaged["model"], self.tokenizer, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        self.report(f"model: {folder}")
        judged = self.source.held_out or self.source.wait(self.config.batch)
        figures = {
            **self.source.description,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type,
            "architecture": asdict(self.config.architecture),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "batch": self.config.batch,
            "kept": self.config.kept,
            "closeups": self.config.closeups,
            "held_out": len(self.source.held_out) if self.source.held_out else 0,
            **self.loop.figures,
            **zero_shot_figures(load_clip(folder, device="cpu"), judged),
        }
        text = json.dumps(figures, indent=1)
        write_whole(self.config.out / "figures.json", lambda partial: partial.write_text(text, encoding="utf-8"))
        write_clip_card(self.config.out)
        return folder


class _Captions:
    """What captions say, by their phrases, so that a text is never held against a picture that it is true of."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = frozenset(vocabulary)
        self._known: dict[str, frozenset[Phrase]] = {}
        self._roots: dict[Phrase, frozenset[str]] = {}

    def content(self, caption: str) -> frozenset[Phrase]:
        """The phrases of a caption."""
        if caption not in self._known:
            self._known[caption] = frozenset(phrases_of(caption))
        return self._known[caption]

    def draw(self, contents: Sequence[frozenset[Phrase]], random: np.random.Generator) -> list[Phrase]:
        """The phrases of all captions, often without their first words ("grey bus", "bus"); each phrase once."""
        drawn: dict[frozenset[str], Phrase] = {}
        for content in contents:
            for phrase in sorted(content):
                short = phrase[random.integers(len(phrase)) :]
                drawn.setdefault(self._key(short), short)
        if not drawn:
            raise InputError(f"captions of {len(contents)} pictures: no word in any; accepted: captions with words")
        return list(drawn.values())

    def held(self, phrases: Sequence[Phrase], contents: Sequence[frozenset[Phrase]]) -> np.ndarray:
        """Which phrases are true of what captions say: (caption, phrase) booleans.

        A phrase is true if a phrase of the caption has all its words, in either number.
        """
        said = sorted(frozenset().union(*contents))
        keys = [self._key(phrase) for phrase in (*phrases, *said)]
        places = {word: place for place, word in enumerate(sorted(frozenset().union(*keys)))}
        words_of = np.zeros((len(keys), len(places)), np.float32)
        for row, key in zip(words_of, keys, strict=True):
            row[[places[word] for word in key]] = 1
        missing = words_of[: len(phrases)] @ (1 - words_of[len(phrases) :]).T
        rows = {phrase: row for row, phrase in enumerate(said)}
        told = np.zeros((len(contents), len(said)), np.float32)
        for row, content in zip(told, contents, strict=True):
            row[[rows[phrase] for phrase in content]] = 1
        return told @ (missing == 0).T.astype(np.float32) > 0

    def _key(self, phrase: Phrase) -> frozenset[str]:
        if phrase not in self._roots:  # every step holds all phrases against all pictures
            self._roots[phrase] = frozenset(singular(word, self.vocabulary) for word in phrase)
        return self._roots[phrase]


def phrases_of(caption: str) -> list[Phrase]:
    """A caption cut at commas and at the words between phrases; articles are left out.

    "a grey bus with teal wheels, at night" gives ("grey", "bus"), ("teal", "wheels") and ("night",).
    """
    phrases: list[list[str]] = [[]]
    for word in re.findall(r"\w+|,", caption.lower()):
        if word == "," or word in BETWEEN:
            phrases.append([])
        elif word not in ARTICLES:
            phrases[-1].append(word)
    return [tuple(phrase) for phrase in phrases if phrase]


def singular(word: str, vocabulary: frozenset[str]) -> str:
    """A word without its plural ending, where what is left is a word of the vocabulary."""
    for ending in ("s", "es"):
        if word.endswith(ending) and word.removesuffix(ending) in vocabulary:
            return word.removesuffix(ending)
    return word


def _unit(embeddings: Tensor) -> Tensor:
    return nn.functional.normalize(embeddings.float(), dim=-1)


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """Contrastive loss in which a pair may have several positives (Yang et al. 2022, UniCL, equation 3).

    Args:
        logits: (image, text).
        positive: (image, text) booleans; rows and columns without a positive are left out.

    Returns:
        Mean of the losses from images to texts and from texts to images; a scalar. The ordinary loss of CLIP where
        the positives are the diagonal.
    """
    losses = []
    for scores, right in ((logits, positive), (logits.T, positive.T)):
        weights = right / right.sum(1, keepdim=True).clamp(min=1)
        each = -(weights * scores.log_softmax(1)).sum(1)
        losses.append(each.sum() / right.any(1).sum().clamp(min=1))
    return (losses[0] + losses[1]) / 2


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a model folder with float16 weights, tokenizer and image processor; the model stays as it is."""
    folder.mkdir(parents=True)
    with quiet_loading():
        copy.deepcopy(model).cpu().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = int(model.config.vision_config.image_size)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    text = json.dumps(processor, indent=2)
    write_whole(folder / "preprocessor_config.json", lambda partial: partial.write_text(text, encoding="utf-8"))


def zero_shot_figures(clip: Clip, pictures: Pictures) -> dict[str, float]:
    """How well a CLIP knows which texts are true of which pictures.

    Args:
        clip: to be judged.
        pictures: with captions, not trained on.

    Returns:
        "retrieval": share of captions whose own picture, or one of the same content, is the most similar of all, and
        "retrieval_chance"; "words_ap": mean over words of the average precision with which pictures are ranked by a
        word, and "words_ap_chance", the mean share of pictures that a word is true of; "words": how many words were
        scored. Words are the single ones that are true of five pictures or more, and not true of as many.
    """
    known = _Captions({word for caption in pictures.captions for word in words(caption)})
    contents = [known.content(caption) for caption in pictures.captions]
    images = clip.image_embeddings(list(pictures.images))
    similar = clip.text_embeddings(list(pictures.captions), truncate=True) @ images.T
    best = similar.argmax(1).tolist()
    right = [contents[place] == own for place, own in zip(best, contents, strict=True)]
    same = [sum(other == own for other in contents) / len(contents) for own in contents]
    nouns = sorted({phrase[-1:] for content in contents for phrase in content})
    truth = {noun[0]: held for noun, held in zip(nouns, known.held(nouns, contents).T, strict=True)}
    truth = {noun: found for noun, found in truth.items() if min(found.sum(), (~found).sum()) >= SEEN_OFTEN}
    figures = {"retrieval": float(np.mean(right)), "retrieval_chance": float(np.mean(same)), "words": len(truth)}
    if truth:
        scores = (clip.text_embeddings(list(truth)) @ images.T).numpy()
        precision = [average_precision_score(found, row) for found, row in zip(truth.values(), scores, strict=True)]
        figures["words_ap"] = float(np.mean(precision))
        figures["words_ap_chance"] = float(np.mean([found.mean() for found in truth.values()]))
    return figures


def write_clip_card(run: Path) -> Path:
    """Write ``model/README.md`` and its picture from the figures and losses in a run folder."""
    figures = json.loads((run / "figures.json").read_text(encoding="utf-8"))
    folder = run / "model"
    (folder / "card").mkdir(exist_ok=True)
    curve = read_losses(run / "losses.jsonl")[STAGE]
    draw_curve(curve, STAGE).save(folder / "card" / "loss.png")
    sizes = figures["architecture"]
    judged = f"{figures['held_out']} held-out pictures" if figures["held_out"] else "training pictures (none held out)"
    seeds = f", seeds from {figures['first_seed']:,}" if "first_seed" in figures else ""
    closeups = figures.get("closeups", 0) if "first_seed" in figures else 0  # folders have none
    told = (
        f"{closeups} of each of a few sides, an eighth to half of the picture's; their captions tell what is in sight; "
        f"up to {MORE_CLOSEUPS} times as many a step as whole pictures"
    )
    rows = {
        "Data": f"{figures['pictures']:,} pictures with captions ({figures['data']}{seeds}), mirrored too; no masks",
        **({"Close-ups": told} if closeups else {}),
        "Image encoder": f"{sizes['layers']} layers of {sizes['width']} channels, {sizes['image_size']} pixels in "
        f"patches of {sizes['patch_size']}",
        "Text encoder": f"{sizes['text_layers']} layers of {sizes['text_width']} channels",
        "Parameters": f"{figures['parameters']:,}",
        "Size": f"{figures['bytes'] / 1e6:.1f} MB",
        "Trained on": f"{figures['device']}: {figures['steps']:,} steps of {figures['batch']} pictures, "
        f"{figures['minutes']:.1f} minutes, {figures['kept']:.0%} of the patches seen at a time",
        "Loss": f"{curve[-max(1, len(curve) // 10) :, 1].mean():.3f} over the last tenth",
        "Captions": f"find their picture in {figures['retrieval']:.1%} of cases (chance "
        f"{figures['retrieval_chance']:.1%}), {judged}",
    }
    if figures["words"]:
        rows["Words"] = (
            f"average precision {figures['words_ap']:.3f} over {figures['words']} words (chance "
            f"{figures['words_ap_chance']:.3f}), the same pictures"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    text = (
        "# Pocket CLIP\n\nA small `CLIPModel` of transformers that knows the words of the pocket world.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Trained by contrast between pictures and captions, between pictures and phrases of captions, and between "
        "phrases and the patches of pictures along the value path of the last block (`Clip.patch_embeddings`), where a "
        "phrase counts as true of a picture if it is true somewhere in it. What a phrase is true of is told by "
        "captions alone, which name the largest things only: a thing that no caption names has no word here."
        + (
            " Close-ups are seen where they are in their pictures; with whole pictures alone, patches came to know "
            "what is in the picture and not what is in the patch."
            if closeups
            else ""
        )
        + "\n\n"
        "![loss by step](card/loss.png)\n"
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
