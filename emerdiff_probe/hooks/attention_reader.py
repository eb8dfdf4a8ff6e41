"""Attention probabilities as the denoiser computes them, seen where its processors multiply queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from emerdiff_probe.errors import ModelError

STRIPE_BYTES = 64 * 2**20
"""Probabilities of one head that are held at once beside their sum."""
SOFTMAXES = {torch.softmax, torch.Tensor.softmax, nn.functional.softmax}


class AttentionReader(TorchFunctionMode):
    """Sums the probabilities of attention layers over batch rows, whatever processor computes them.

    `attached` tells it which layer runs. Norms of heads, positions and masks are in what is seen: the very queries and
    keys that `scaled_dot_product_attention` is given, or the softmax that a processor of diffusers takes by itself.

    Attributes:
        layers: dotted paths of the layers, in the order of execution.
        per_head: keep heads apart, or take their sum too.
        sums: of every layer that has run (head, cell, token), or (1, cell, token), float32 on the model's device.
    """

    def __init__(self, layers: Sequence[str], *, per_head: bool = False) -> None:
        super().__init__()
        self.layers, self.per_head = layers, per_head
        self.sums: dict[str, Tensor] = {}
        self._layer: str | None = None
        self._rows = self._heads = 0

    def begin(self, layer: str, heads: int) -> None:
        """A layer is about to run."""
        self._layer, self._heads, self._rows = layer, heads, 0

    def end(self, processor: object, batch: int) -> None:
        """The layer has run.

        Raises:
            ModelError: its processor computed no attention, or more than one, where it can be seen.
        """
        layer, self._layer = self._layer, None
        if self._rows != batch * self._heads:
            raise ModelError(
                f"{layer}: its processor {type(processor).__name__} computes attention in another way, so that its "
                "probabilities cannot be read; accepted: one product of queries and keys a head, as by diffusers' "
                "AttnProcessor2_0, AttnProcessor and SlicedAttnProcessor"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let a function of torch run, and look at those that compute attention."""
        result = func(*args, **(kwargs or {}))
        if self._layer is not None and func is nn.functional.scaled_dot_product_attention:
            self._read_product(*args, **(kwargs or {}))
        elif self._layer is not None and func in SOFTMAXES and result.ndim == 3:
            self._read_softmax(result)
        return result

    def _read_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if query.ndim != 4 or key.shape[:2] != query.shape[:2] or is_causal:
            return  # the rows that are missing are found at the layer's end
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        cells, tokens = query.shape[2], key.shape[2]
        mask = None if attn_mask is None else attn_mask.expand(*query.shape[:2], cells, tokens)
        total = self._total(cells, tokens, query.device)
        for row in range(len(query)):
            for head in range(query.shape[1]):
                for asking in torch.arange(cells).split(max(1, STRIPE_BYTES // (4 * tokens))):
                    some = slice(int(asking[0]), int(asking[-1]) + 1)
                    scores = scale * query[row, head, some].float() @ key[row, head].float().mT
                    if mask is not None:
                        scores = _masked(scores, mask[row, head, some])
                    total[head if self.per_head else 0, some] += scores.softmax(-1)
        self._rows += query.shape[0] * query.shape[1]

    def _read_softmax(self, probabilities: Tensor) -> None:
        """Of rows and heads in one axis, heads innermost, or a slice of it."""
        total = self._total(probabilities.shape[1], probabilities.shape[2], probabilities.device)
        for each in probabilities:
            total[self._rows % self._heads if self.per_head else 0] += each.float()
            self._rows += 1

    def _total(self, cells: int, tokens: int, device: torch.device) -> Tensor:
        assert self._layer is not None
        if self._layer not in self.sums:
            heads = self._heads if self.per_head else 1
            self.sums[self._layer] = torch.zeros(heads, cells, tokens, device=device)
        return self.sums[self._layer]


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask
