"""Reading and editing the denoiser's tensors while it runs; the only file that touches torch hooks.

A hook is registered inside `try` and removed in `finally`, so that the denoiser is bit-identical afterwards whatever
was raised. The timestep of every batch row is read from the denoiser's own arguments, never counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emerdiff_probe.errors import InterventionError, ModelError, TimestepError
from emerdiff_probe.layers import Site
from emerdiff_probe.models import ProbeModel


@dataclass(frozen=True, eq=False)
class Edit:
    """Replace what one site holds for some batch rows at some timesteps.

    Attributes:
        site: where.
        rows: batch rows to edit, one after the other; every row when None.
        timesteps: when; at every timestep when None.
        replace: called as `replace(activation, rows, grid)` with the whole activation (batch, …), the selected rows
            as a list and the site's grid (grid_height, grid_width); returns the new values of those rows. It must
            not write into the activation.
        label: names the intervention in errors.
    """

    site: Site
    rows: tuple[int, ...] | None
    timesteps: frozenset[int] | None
    replace: Callable[[Tensor, list[int], tuple[int, int]], Tensor]
    label: str


@dataclass(frozen=True)
class Capture:
    """Record what one site holds, at some timesteps (at every one when None), for every batch row."""

    site: Site
    timesteps: frozenset[int] | None = None


@dataclass
class Record:
    """What captures saw: `record[site, timestep]` is (batch, …), the rows that ran at that timestep, in order."""

    tensors: dict[tuple[Site, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def __getitem__(self, key: tuple[Site, int]) -> Tensor:
        return torch.cat(self.tensors[key])


class _StopEarly(Exception):
    """Raised in the hook of the last captured site; never leaves this file. Carries the pass that it ends."""


class _Pass:
    """What the hooks share about the denoiser's pass that is under way."""

    timesteps: tuple[int, ...] = ()
    latent_size: tuple[int, int] = (0, 0)

    def select(self, batch: int, rows: tuple[int, ...] | None, timesteps: frozenset[int] | None) -> list[int]:
        candidates = range(batch) if rows is None else rows
        return [row for row in candidates if timesteps is None or self.timesteps[row] in timesteps]


@contextmanager
def attached(
    model: ProbeModel,
    *,
    edits: Sequence[Edit] = (),
    captures: Sequence[Capture] = (),
    stop_early: bool = False,
) -> Iterator[Record]:
    """Run the denoiser inside this context with edits applied and captures recorded.

    Edits of one site apply in the order given, captures see the edited values. With `stop_early` the `with` block
    ends, without an error, as soon as the last captured site of the first pass has run.

    Yields:
        A `Record` of the captures.

    Raises:
        ModelError: the denoiser is compiled, or its attention projections are fused, so that hooks would be bypassed.
        InterventionError: on leaving without an exception, an edit that never took effect, or an edit that
            returned another shape.
        TimestepError: on leaving without an exception, a capture that never saw one of its timesteps.
    """
    _require_hookable(model, [edit.site for edit in edits] + [capture.site for capture in captures])
    record, current = Record(), _Pass()
    fired: set[int] = set()
    taps: dict[Site, _Tap] = {}
    for order, edit in enumerate(edits):
        taps.setdefault(edit.site, _Tap(edit.site, current, record, fired)).edits.append((order, edit))
    for capture in captures:
        taps.setdefault(capture.site, _Tap(capture.site, current, record, fired)).captures.append(capture)
    last = max((capture.site for capture in captures), default=None) if stop_early else None

    handles: list[RemovableHandle] = []
    try:
        handles.append(_read_pass(model.denoiser, current))
        handles.extend(tap.register(model.denoiser, stop=site == last) for site, tap in taps.items())
        try:
            yield record
        except _StopEarly as stop:
            if stop.args[0] is not current:  # it ends a run around this one
                raise
    finally:
        for handle in handles:
            handle.remove()
    _require_fired([edit for order, edit in enumerate(edits) if order not in fired])
    _require_seen(captures, record)


class _Tap:
    """All edits and captures of one site, as one hook."""

    def __init__(self, site: Site, current: _Pass, record: Record, fired: set[int]) -> None:
        self.site, self.current, self.record, self.fired = site, current, record, fired
        self.edits: list[tuple[int, Edit]] = []
        self.captures: list[Capture] = []

    def register(self, denoiser: nn.Module, *, stop: bool) -> RemovableHandle:
        module = denoiser.get_submodule(self.site.path)

        def on_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            activation = self(args[0])
            if stop:
                raise _StopEarly(self.current)
            return (activation, *args[1:])

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            # a downward block returns (hidden, skips), an upward block or a layer a tensor
            activation = self(output[0] if isinstance(output, tuple) else output)
            if stop:
                raise _StopEarly(self.current)
            return (activation, *output[1:]) if isinstance(output, tuple) else activation

        if self.site.tap == "input":
            return module.register_forward_pre_hook(on_input)
        return module.register_forward_hook(on_output)

    def __call__(self, activation: Tensor) -> Tensor:
        grid = self.site.grid(*self.current.latent_size)
        for order, edit in self.edits:
            rows = self.current.select(len(activation), edit.rows, edit.timesteps)
            if rows:
                activation = _replace_rows(activation, rows, edit, grid)
                self.fired.add(order)
        for capture in self.captures:
            by_timestep = defaultdict(list)
            for row in self.current.select(len(activation), None, capture.timesteps):
                by_timestep[self.current.timesteps[row]].append(row)
            for timestep, rows in by_timestep.items():
                self.record.tensors[self.site, timestep].append(activation[rows].detach())
        return activation


def _replace_rows(activation: Tensor, rows: list[int], edit: Edit, grid: tuple[int, int]) -> Tensor:
    values = edit.replace(activation, rows, grid)
    expected = (len(rows), *activation.shape[1:])
    if values.shape != expected:
        raise InterventionError(
            f"{edit.label} at {edit.site}: gave values of shape {tuple(values.shape)} for {len(rows)} rows; "
            f"accepted: {expected}"
        )
    edited = activation.clone()  # a downward block's hidden state is also its last skip: never edit in place
    edited[rows] = values.to(activation.dtype)
    return edited


def _read_pass(denoiser: nn.Module, current: _Pass) -> RemovableHandle:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents: Tensor = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        values = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
        values = [int(value) for value in values]
        current.timesteps = tuple(values if len(values) == len(latents) else values * len(latents))
        current.latent_size = (latents.shape[2], latents.shape[3])

    return denoiser.register_forward_pre_hook(before, with_kwargs=True)


def _require_hookable(model: ProbeModel, sites: Sequence[Site]) -> None:
    denoiser = model.denoiser
    if hasattr(denoiser, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in denoiser.modules()
    ):
        raise ModelError(
            f"{model.name}: the denoiser is compiled, so hooks would be bypassed or recompile it at every change; "
            "load it uncompiled, or pass the original module (compiled._orig_mod)"
        )
    for site in sites:
        if site.kind in {"self", "cross"} and getattr(
            denoiser.get_submodule(site.attention), "fused_projections", False
        ):
            raise ModelError(
                f"{model.name}: the projections of {site.attention} are fused, so hooks on {site.part} would never "
                "fire; call pipeline.unfuse_qkv_projections() first"
            )


def _require_fired(idle: Sequence[Edit]) -> None:
    if not idle:
        return
    edit = idle[0]
    when = "any timestep" if edit.timesteps is None else f"timestep {', '.join(map(str, sorted(edit.timesteps)))}"
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    raise InterventionError(
        f"{edit.label} never took effect: {edit.site} was not run at {when} for the rows it names{more}. "
        "Is the timestep on the scheduler's grid and between start and end of the run?"
    )


def _require_seen(captures: Sequence[Capture], record: Record) -> None:
    seen = defaultdict(set)
    for site, timestep in record.tensors:
        seen[site].add(timestep)
    for capture in captures:
        missing = (capture.timesteps or frozenset()) - seen[capture.site]
        if missing or not seen[capture.site]:
            raise TimestepError(
                f"{capture.site} was never run at timestep {', '.join(map(str, sorted(missing))) or '(any)'}; "
                f"it was run at: {', '.join(map(str, sorted(seen[capture.site]))) or 'none'}"
            )
