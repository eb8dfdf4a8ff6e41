"""Attention probabilities of the denoiser's layers."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.errors import ModelError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.sites import Site


def mean_attention(model: ProbeModel, site: Site, queries: Tensor, keys: Tensor) -> Tensor:
    """Attention probabilities of a layer, the mean over its heads: softmax(Q K^T * scale), one head at a time.

    Args:
        model: that the layer belongs to.
        site: any site of the layer.
        queries: (cell, channel), captured at the layer.
        keys: (token, channel) of cross-attention, or (cell, channel) of self-attention, captured likewise.

    Returns:
        (cell, token) float32 on the CPU; rows sum to 1.

    Raises:
        ModelError: a layer that normalises its queries and keys, so that the projections do not give its maps.
    """
    layer = model.denoiser.get_submodule(site.attention)
    if getattr(layer, "norm_q", None) is not None or getattr(layer, "norm_k", None) is not None:
        raise ModelError(f"{site.attention} normalises queries and keys; accepted: layers that use them as projected")
    heads = [
        rearrange(projected, "cell (head dim) -> head cell dim", head=layer.heads).to(model.device)
        for projected in (queries, keys)
    ]
    mean = torch.zeros(len(queries), len(keys), device=model.device)
    for query, key in zip(*heads, strict=True):
        mean += (query @ key.mT * layer.scale).softmax(-1)
    return (mean / layer.heads).cpu()
