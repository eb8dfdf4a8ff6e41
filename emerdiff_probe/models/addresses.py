"""What a family says about the tensors of its denoiser; `sites` makes addresses of it."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

Stage = Literal["down", "mid", "up", "double", "single"]
Kind = Literal["self", "cross", "joint", "linear", "feedforward", "resnet", "block"]
Part = Literal[
    "query",
    "key",
    "value",
    "heads",
    "output",
    "text_query",
    "text_key",
    "text_value",
    "text_heads",
    "text_output",
]
Tokens = Literal["all", "image", "text"]

STAGES: tuple[Stage, ...] = ("down", "mid", "up", "double", "single")
KINDS: tuple[Kind, ...] = ("self", "cross", "joint", "linear", "feedforward", "resnet", "block")
PARTS: tuple[Part, ...] = (
    "query",
    "key",
    "value",
    "heads",
    "output",
    "text_query",
    "text_key",
    "text_value",
    "text_heads",
    "text_output",
)
AttentionKind = Literal["self", "cross", "joint"]
ATTENTION_KINDS: tuple[AttentionKind, ...] = ("self", "cross", "joint")
"""Kinds of attention layers that have probabilities."""
ATTENTION: frozenset[Kind] = frozenset({"self", "cross", "joint", "linear"})
"""Kinds that are attention layers."""


class Address(NamedTuple):
    """One tensor of the denoiser; the fields are those of `Site`."""

    stage: Stage
    scale: int
    kind: Kind
    part: Part
    path: str
    channels: int
    tap: Literal["input", "output"] = "output"
    tokens: Tokens = "all"
    layer: str = ""
    item: int = 0


def name_part(part: str, *, text: bool) -> Part:
    """The name of a part of an attention layer, of its image's tokens or of its text's."""
    return cast(Part, f"text_{part}" if text else part)
