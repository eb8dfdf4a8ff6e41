"""What diffusion transformers have in common: patches as cells, one grid, and blocks of one or two streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.addresses import Address, Kind, Part, Stage, Tokens, name_part
from emerdiff_probe.models.probe_model import Pass, ProbeModel
from emerdiff_probe.models.schedules import FlowSchedule, make_flow, require_flow
from emerdiff_probe.models.unet import read_timesteps

IMAGE: tuple[tuple[Part, str], ...] = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"))
TEXT: tuple[tuple[Part, str], ...] = (
    ("text_query", "add_q_proj"),
    ("text_key", "add_k_proj"),
    ("text_value", "add_v_proj"),
)


class TransformerModel(ProbeModel):
    """A diffusion transformer on the latents of an autoencoder.

    Every block works on one grid, whose cells are patches of latents; a query is what `to_q` gives for a patch, before
    the layer normalises it and turns it by its position.
    """

    timestep_scale = 1.0
    """Of the denoiser's own timesteps, so many times that is on 0 to 1000."""

    @property
    def patch(self) -> int:
        """Latent cells a patch, along one side."""
        return int(self.denoiser.config.patch_size)

    @property
    def multiple(self) -> int:
        """Image sides must be a multiple of this many pixels, so that patches are whole."""
        return self.factor * self.patch

    def read_pass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass:
        """As in `ProbeModel`."""
        latents: Tensor = args[0] if args else kwargs["hidden_states"]
        timesteps = read_timesteps(kwargs["timestep"], len(latents), self.timestep_scale)
        return Pass(timesteps, (latents.shape[-2], latents.shape[-1]))

    def denoiser_row_bytes(self, latent_height: int, latent_width: int) -> int:
        """As in `ProbeModel`: a block's tokens, and its feed-forward layer's, four times as wide."""
        tokens = latent_height * latent_width // self.patch**2 + 512
        return 24 * self.width * tokens * self.dtype.itemsize

    @property
    def width(self) -> int:
        """Channels of a token."""
        config = self.denoiser.config
        return int(config.num_attention_heads * config.attention_head_dim)

    @abstractmethod
    def addresses(self) -> Iterator[Address]:
        """As in `ProbeModel`."""


class FlowModel(TransformerModel):
    """A diffusion transformer that was trained by flow matching.

    Raises:
        ModelError: a scheduler that holds something else.
    """

    even_sigmas = False
    """Whether its pipeline asks its scheduler for even sigmas."""

    def __init__(self, pipeline: DiffusionPipeline, name: str) -> None:
        super().__init__(pipeline, name)
        require_flow(self.scheduler, name)

    def schedule(self, steps: int) -> FlowSchedule:
        """As in `ProbeModel`; where the shift depends on the size it is the native square's for every image."""
        tokens = (self.latent_side // self.patch) ** 2
        return make_flow(self.scheduler, steps, even=self.even_sigmas, tokens=tokens)


def require_channels(model: ProbeModel, packed: int = 1) -> None:
    """Refuse a denoiser that takes more, or something else, than its autoencoder's latents.

    Raises:
        ModelError: that.
    """
    taken, given = model.denoiser.config.in_channels, model.autoencoder.config.latent_channels * packed
    if taken != given:
        raise ModelError(
            f"{model.name}: the denoiser takes {taken} channels, as for inpainting or control; accepted: the {given} "
            "of its autoencoder's latents"
        )


def layer_addresses(stage: Stage, scale: int, kind: Kind, path: str, attention: Any) -> Iterator[Address]:
    """The five tensors of an attention layer whose queries are the image's."""
    for part, projection in IMAGE:
        channels = attention.get_submodule(projection).out_features
        yield Address(stage, scale, kind, part, f"{path}.{projection}", channels, layer=path)
    yield from _output_addresses(stage, scale, kind, path, "to_out.0", attention, text=False)


def joint_addresses(scale: int, path: str, attention: Any, *, text_first: bool = False) -> Iterator[Address]:
    """The tensors of a joint attention layer of two streams, each with projections of its own.

    Args:
        scale: latent cells a grid cell, along one side.
        path: of the layer.
        attention: the layer.
        text_first: the text's output is projected before the image's.
    """
    for part, projection in (*IMAGE, *TEXT):
        channels = attention.get_submodule(projection).out_features
        yield Address("double", scale, "joint", part, f"{path}.{projection}", channels, layer=path)
    outputs = [("to_out.0", False)]
    if getattr(attention, "to_add_out", None) is not None:
        outputs.insert(0 if text_first else 1, ("to_add_out", True))
    for name, text in outputs:
        yield from _output_addresses("double", scale, "joint", path, name, attention, text=text)


Tapped = tuple[str, Literal["input", "output"]]


def mixed_addresses(scale: int, path: str, channels: int, heads: Tapped, output: Tapped) -> Iterator[Address]:
    """The tensors of a joint attention layer of one sequence, the text's tokens and then the image's cells.

    Args:
        scale: latent cells a grid cell, along one side.
        path: of the layer.
        channels: of a token.
        heads, output: module path and side of it, before and after the output projection.
    """
    streams: tuple[Tokens, ...] = ("text", "image")
    places: list[tuple[str, Tapped]] = [(part, (f"{path}.{projection}", "output")) for part, projection in IMAGE]
    for part, (where, tap) in [*places, ("heads", heads), ("output", output)]:
        for tokens in streams:
            named = name_part(part, text=tokens == "text")
            yield Address("single", scale, "joint", named, where, channels, tap, tokens, path)


def _output_addresses(
    stage: Stage, scale: int, kind: Kind, path: str, name: str, attention: Any, *, text: bool
) -> Iterator[Address]:
    """Before and after an output projection."""
    projection = attention.get_submodule(name)
    where, heads, output = f"{path}.{name}", name_part("heads", text=text), name_part("output", text=text)
    yield Address(stage, scale, kind, heads, where, projection.in_features, "input", layer=path)
    yield Address(stage, scale, kind, output, where, projection.out_features, "output", layer=path)


def block_address(
    stage: Stage, scale: int, path: str, channels: int, *, item: int = 0, tokens: Tokens = "all"
) -> Address:
    """A whole block's output: the image's tokens, one item of two where a block gives both streams."""
    return Address(stage, scale, "block", "output", path, channels, tokens=tokens, item=item)


def feedforward_address(stage: Stage, scale: int, path: str, channels: int, *, tokens: Tokens = "all") -> Address:
    """A feed-forward layer's output."""
    return Address(stage, scale, "feedforward", "output", path, channels, tokens=tokens)


def blocks(denoiser: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Path and module of every block of a list of blocks."""
    listed: Any = denoiser.get_submodule(name)
    for i, block in enumerate(listed):
        yield f"{name}.{i}", block
