"""Attention whose probabilities batch rows share: computed once, applied to the values of all in one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor

MAX_PROBABILITY_BYTES = 256 * 2**20
"""Heads are taken in groups whose probabilities fit in so much; one head at least."""


class SharedAttention:
    """A diffusers attention processor in which rows take their attention probabilities from other rows.

    Queries and keys are projected, and softmax(Q K^T) is computed, for those rows only that others take from.
    Equal to replacing the outputs of `to_q` and `to_k` under the layer's own processor, up to rounding.

    Attributes:
        plain: the layer's own processor; runs where every row is its own source.
        sources: called with the batch size; gives for every row the row whose probabilities it takes.
        whole: rows of one source that attend to one and the same text may share all that the layer gives, as
            nothing reads or edits its values between.
        owner: the context that put it in its place, whose mark it is.
    """

    def __init__(
        self, plain: Callable[..., Tensor], sources: Callable[[int], list[int]], *, whole: bool, owner: Any = None
    ) -> None:
        self.plain, self.sources, self.whole, self.owner = plain, sources, whole, owner

    @staticmethod
    def serves(attention: Attention) -> bool:
        """Whether this is the plain attention that diffusers' U-Nets are made of, under a processor known here."""
        return type(attention.processor) in {AttnProcessor, AttnProcessor2_0} and not (
            attention.spatial_norm
            or attention.group_norm
            or attention.norm_cross
            or attention.norm_q
            or attention.norm_k
            or attention.residual_connection
            or attention.rescale_output_factor != 1
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Run the layer: (batch, cell, channel) to the same shape.

        A mask over the text's tokens is that of the rows that probabilities are taken from.
        """
        batch = len(hidden_states)
        sources = self.sources(batch)
        if sources == list(range(batch)):
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)
        distinct = sorted(set(sources))
        mask = None if attention_mask is None else attention_mask[distinct]
        if self.whole and len(distinct) == 1 and encoder_hidden_states is not None and _equal(encoder_hidden_states):
            output = self.plain(attn, hidden_states[distinct], encoder_hidden_states[:1], mask)
            return output.expand(batch, -1, -1)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _split_heads(attn.to_q(hidden_states[distinct]), attn.heads)
        key = _split_heads(attn.to_k(context[distinct]), attn.heads)
        value = _split_heads(attn.to_v(context), attn.heads)
        weighted = value.new_empty(*hidden_states.shape[:2], attn.to_out[0].in_features)
        for i, source in enumerate(distinct):
            rows = [row for row in range(batch) if sources[row] == source]
            weighted[rows] = weigh(query[i], key[i], value[rows], attn.scale, None if mask is None else mask[i])
        return attn.to_out[1](attn.to_out[0](weighted))


def weigh(query: Tensor, key: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale Q K^T) V for one Q and K and the values of many rows; the softmax is taken in float32.

    Args:
        query: (head, cell, head_dim); key: (head, token, head_dim).
        values: (batch, head, token, head_dim).
        scale: of the scores.
        mask: (1, token) or (cell, token), added to the scores; none when None.

    Returns:
        (batch, cell, head * head_dim).
    """
    at_once = max(1, MAX_PROBABILITY_BYTES // (4 * query.shape[1] * key.shape[1]))
    weighted = []
    for q, k, v in zip(query.split(at_once), key.split(at_once), values.split(at_once, dim=1), strict=True):
        scores = scale * q.float() @ k.float().mT
        probabilities = (scores if mask is None else scores + mask).softmax(-1).to(v.dtype)
        wide = rearrange(v, "batch head token head_dim -> head token (batch head_dim)")
        weighted.append(
            rearrange(
                probabilities @ wide, "head cell (batch head_dim) -> batch cell (head head_dim)", batch=len(values)
            )
        )
    return torch.cat(weighted, -1)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    return rearrange(projected, "batch token (head head_dim) -> batch head token head_dim", head=heads)


def _equal(rows: Tensor) -> bool:
    """Whether all rows are one and the same memory."""
    return rows.stride(0) == 0
