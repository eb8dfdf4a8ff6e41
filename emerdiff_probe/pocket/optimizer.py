"""What takes the steps: Muon for the matrices of hidden layers, AdamW for all else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("muon", "adamw")
WEIGHT_DECAY = 0.01
_OUTER = ("conv_in", "conv_out")
"""Names of first and last layers, which are no hidden ones."""


class Optimizer:
    """AdamW, with Muon in its place for the matrices of hidden layers where `kind` is "muon".

    A convolution's weight counts as the matrix of its outputs by all of its inputs and taps. Muon's steps are scaled to
    be as large as AdamW's (`match_rms_adamw`; Liu et al. 2025, arXiv 2502.16982), so that both take one learning rate.

    Args:
        modules: what is trained, by name, where it is to be trained.
        kind: one of `OPTIMIZERS`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], kind: str) -> None:
        hidden = {id(weight) for module in modules.values() for weight in _find_matrices(module)}
        parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        self._matrices = [each for each in parameters if kind == "muon" and id(each) in hidden]
        taken = {id(each) for each in self._matrices}
        others = [each for each in parameters if id(each) not in taken]
        self._views = [nn.Parameter(as_matrix(each.detach())) for each in self._matrices]
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if others:
            fused = all(each.device.type in {"cuda", "cpu", "mps"} for each in others)
            self._parts["adamw"] = torch.optim.AdamW(others, weight_decay=WEIGHT_DECAY, fused=fused)
        if self._views:
            self._parts["muon"] = torch.optim.Muon(
                self._views, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, rate: float) -> None:
        """Take a step down the gradients at a learning rate, and forget them."""
        for view, weight in zip(self._views, self._matrices, strict=True):
            view.grad = None if weight.grad is None else as_matrix(weight.grad, like=weight)
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        for weight in self._matrices:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; ValueError for one of another kind."""
        if state.keys() != self._parts.keys():
            raise ValueError(f"an optimizer of {', '.join(state)}; {', '.join(self._parts)} accepted")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def as_matrix(value: Tensor, like: Tensor | None = None) -> Tensor:
    """A weight (output, input, ...) as a matrix (output, all else), in its own memory for either order of it.

    With `like` its columns are in the order of that weight's, copied where need be.
    """
    order = value if like is None else like
    if order.ndim == 4 and order.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    return value.flatten(1)


def _find_matrices(module: nn.Module) -> list[Tensor]:
    """Weights of the linear layers and convolutions of a module, without its first and last ones."""
    return [
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not name.endswith(_OUTER)
    ]
