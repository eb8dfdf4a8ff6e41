"""CLIP models of transformers as one `Clip`: embeddings of texts, of images, and of every patch of an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.models.fingerprint import fingerprint
from emerdiff_probe.models.folders import named_errors, read_json
from emerdiff_probe.models.loading import find_device, find_folder, quiet_loading
from emerdiff_probe.models.weights import choose_variant, find_weights, read_shapes, require_all_loaded

SHIPPED_CLIPS = {"pocket": Path(__file__).parents[1] / "pocket" / "clip_weights"}
"""Folders of the CLIPs that ship, by name."""
BATCH = 64
"""Texts or images a pass."""


class Clip:
    """A CLIP model with its tokenizer and image processor. Embeddings are float32 on the CPU, of unit length.

    Attributes:
        model: the `CLIPModel`.
        tokenizer: of its texts.
        processor: of its images; only their mean and standard deviation and the way of resizing are used.
        name: what it was loaded from.

    Raises:
        ModelError: another kind of model, or weights that are not finite.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, processor: Any, name: str = "CLIP") -> None:
        if not isinstance(model, CLIPModel):
            raise ModelError(f"{name} is a {type(model).__name__}; accepted: a CLIPModel of transformers, uncompiled")
        config = model.config.vision_config
        if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
            raise ModelError(
                f"{name}: images of {config.image_size}, patches of {config.patch_size}; accepted: squares, one number"
            )
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ModelError(f"{name}: the weights hold NaN or infinite values, first in {key}")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.processor, self.name = tokenizer, processor, name

    @property
    def patch_size(self) -> int:
        """Pixels of a side of a patch."""
        return int(self.model.config.vision_config.patch_size)

    @property
    def native_size(self) -> int:
        """Side in pixels of the square images that the model was trained on."""
        return int(self.model.config.vision_config.image_size)

    @property
    def longest_text(self) -> int:
        """Tokens of a text at most, its start and end included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever changes the model's output; see `fingerprint`."""
        return fingerprint({"clip": self.model, "tokenizer": self.tokenizer})

    def knows(self, word: str) -> bool:
        """Whether a word is one token; every text is some tokens."""
        return len(self.tokenizer(word, add_special_tokens=False).input_ids) == 1

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Embeddings (text, channel) of texts.

        Args:
            texts: to embed.
            truncate: cut texts that are too long instead of refusing them.

        Raises:
            InputError: no text, an empty one, or one that is too long.
        """
        if not texts or not all(text.strip() for text in texts):
            raise InputError(f"texts {list(texts)!r}; accepted: one or more, none of them empty")
        accepted = self.longest_text
        ids = [self.tokenizer(text, truncation=truncate, max_length=accepted).input_ids for text in texts]
        longest, text = max(zip(map(len, ids), texts, strict=True))
        if longest > accepted:
            raise InputError(f"text {text!r} has {longest} tokens; {self.name} accepts: up to {accepted}")
        return torch.cat([self._embed(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)])

    def _embed(self, ids: list[list[int]]) -> Tensor:
        # What follows the end of a text cannot change it, as its model looks back only.
        end = ids[0][-1]
        width = max(map(len, ids))
        padded = torch.tensor([row + [end] * (width - len(row)) for row in ids], device=self.model.device)
        pooled = self.model.text_model(input_ids=padded).pooler_output
        return nn.functional.normalize(self.model.text_projection(pooled).float(), dim=-1).cpu()

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (image, channel) of whole images, each (height, width, 3) uint8; squeezed to the native square."""
        native = (self.native_size, self.native_size)
        rows = []
        for start in range(0, len(images), BATCH):
            pixels = torch.cat([self.pixels(image, native) for image in images[start : start + BATCH]])
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            rows.append(nn.functional.normalize(self.model.visual_projection(pooled).float(), dim=-1).cpu())
        return torch.cat(rows)

    @torch.inference_mode()
    def patch_embeddings(self, image: np.ndarray, *, scale: float = 1.0) -> Tensor:
        """Text-aligned embeddings of every patch, without training (MaskCLIP, Zhou et al. 2022, section 3.1).

        The attention of the last block is left out: each patch goes on with its own value alone. Position embeddings
        are interpolated, so that images of any size and shape work.

        Args:
            image: (height, width, 3) uint8.
            scale: times which the image is larger than the native size along its shorter side.

        Returns:
            (grid_height, grid_width, channel).

        Raises:
            InputError: a scale at which a side is shorter than a patch, or that is no number above 0.
        """
        pixels = self.pixels(image, self.working_size(*image.shape[:2], scale=scale))
        vision = self.model.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
        values = value_path(self.model, before_last_block(self.model, hidden))[0, 1:]
        grid_height = pixels.shape[2] // self.patch_size
        grid = rearrange(values, "(h w) channel -> h w channel", h=grid_height)
        return nn.functional.normalize(grid.float(), dim=-1).cpu()

    def working_size(self, height: int, width: int, *, scale: float = 1.0) -> tuple[int, int]:
        """Height and width to process an image at: whole patches, the shorter side `scale` times the native size.

        Raises:
            InputError: as in `patch_embeddings`.
        """
        shorter = scale * self.native_size
        if not np.isfinite(shorter) or shorter < self.patch_size:
            raise InputError(
                f"scale {scale}: {shorter:g} pixels along the shorter side; accepted: {self.patch_size} or more"
            )
        ratio = shorter / min(height, width) / self.patch_size
        return max(1, round(height * ratio)) * self.patch_size, max(1, round(width * ratio)) * self.patch_size

    def pixels(self, image: np.ndarray, size: tuple[int, int]) -> Tensor:
        """An image (height, width, 3) uint8 as the model takes it, resized: (1, 3, height, width) on its device."""
        height, width = size
        made = self.processor(
            images=image, size={"height": height, "width": width}, do_center_crop=False, return_tensors="pt"
        )
        return made["pixel_values"].to(self.model.device, self.model.dtype)

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Clip({self.name!r}, {count / 1e6:.1f} M parameters, {self.native_size} pixels, {self.patch_size} a patch)"
        )


def before_last_block(model: CLIPModel, hidden: Tensor) -> Tensor:
    """Hidden states (batch, token, channel) after every block of the image encoder but the last."""
    for layer in model.vision_model.encoder.layers[:-1]:
        hidden = run_block(layer, hidden)
    return hidden


def run_block(layer: nn.Module, hidden: Tensor) -> Tensor:
    """One block of the image encoder under any release of transformers; older ones return a tuple."""
    output = layer(hidden, attention_mask=None, causal_attention_mask=None)
    return output if isinstance(output, Tensor) else output[0]


def value_path(model: CLIPModel, hidden: Tensor) -> Tensor:
    """What the last block's attention would gather, for every token by itself: values, projected into CLIP's space.

    Neither its residual connection nor its feed-forward layer is used (Lan et al. 2024, ClearCLIP, find both in the
    way of dense prediction).

    Args:
        model: the CLIP.
        hidden: (batch, token, channel), the input of the last block.

    Returns:
        (batch, token, projection) embeddings, of any length.
    """
    block = model.vision_model.encoder.layers[-1]
    values = block.self_attn.v_proj(block.layer_norm1(hidden))
    return model.visual_projection(model.vision_model.post_layernorm(block.self_attn.out_proj(values)))


def load_clip(
    source: str | Path = "pocket",
    *,
    device: str | torch.device | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Clip:
    """Load a CLIP, in float32.

    Args:
        source: "pocket" (the small one that ships), a hub id such as "openai/clip-vit-base-patch16" or "id@revision",
            or a local folder, such as `emerdiff-probe train-clip` writes.
        device: CUDA, then MPS, then the CPU by default.
        variant: of the weights, such as "fp16"; found by itself where a folder has no other.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        ModelError: no such model, another kind of model, code of its own, pickled weights, or weights that do not fit
            or hold NaN.
        InputError: a device or revision that is not there.
    """
    place = find_device(device)
    name = str(source)
    folder = find_folder(name, revision, variant, SHIPPED_CLIPS)
    config = _require_clip(folder)
    chosen = choose_variant([file.name for file in folder.iterdir()], variant, str(folder))
    read_shapes(find_weights(folder, chosen))
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet_loading(), named_errors(folder):
        model, report = CLIPModel.from_pretrained(
            folder,
            config=CLIPConfig.from_dict(config),
            variant=chosen,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are in the report, which is refused
            output_loading_info=True,
            local_files_only=True,
        )
        require_all_loaded(report, str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        processor = AutoImageProcessor.from_pretrained(folder, **settings)
        clip = Clip(model.float().to(place), tokenizer, processor, name)
        clip.text_embeddings(["a"], truncate=True)  # its parts fit each other
        clip.image_embeddings([np.zeros((2, 2, 3), np.uint8)])
    return clip


def _require_clip(folder: Path) -> dict[str, Any]:
    """The configuration in a folder that holds a CLIP and nothing that would run code."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json in it; accepted: a CLIPModel as transformers' save_pretrained wrote it"
        )
    for file in sorted(folder.glob("*config.json")):
        if read_json(file).get("auto_map") is not None:
            raise ModelError(
                f"{file}: auto_map asks for code of its own, which is never run; accepted: files without it"
            )
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ModelError(f"{folder}: a model of type {config.get('model_type')!r}; accepted: 'clip'")
    return config
