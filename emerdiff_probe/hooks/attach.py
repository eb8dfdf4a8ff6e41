"""Reading and editing the denoiser's tensors while it runs; the only file that touches torch hooks.

Hooks and processors carry the mark of the context that they belong to. They are registered inside `try`, and what
carries the mark is removed in `finally`, so that the denoiser is bit-identical afterwards whatever was raised, also by
an interrupt between two lines. The timestep of every batch row is read from the denoiser's arguments, never counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from emerdiff_probe.errors import InputError, InterventionError, ModelError, TimestepError
from emerdiff_probe.hooks.attention_reader import AttentionReader
from emerdiff_probe.hooks.shared_attention import SharedAttention
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.sites import Site, list_sites


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
        copies: the new values are another row's, so that nothing changes where one row stands for all.
    """

    site: Site
    rows: tuple[int, ...] | None
    timesteps: frozenset[int] | None
    replace: Callable[[Tensor, list[int], tuple[int, int]], Tensor]
    label: str
    copies: bool = False


@dataclass(frozen=True, eq=False)
class Injection:
    """Some batch rows of one attention layer take their queries and keys, and so their probabilities, from others.

    Attributes:
        sites: the layer's queries, its keys, and of joint attention the text's.
        sources: for every row that is injected, the row to take from.
        timesteps: when; at every timestep when None.
        label: names the intervention in errors.
    """

    sites: tuple[Site, ...]
    sources: Mapping[int, int]
    timesteps: frozenset[int] | None
    label: str

    @property
    def site(self) -> Site:
        """Stands for the layer in errors."""
        return self.sites[0]

    def edits(self) -> list[Edit]:
        """The same as replaced outputs of the projections: works under every attention processor of diffusers."""

        def replace(activation: Tensor, chosen: list[int], grid: tuple[int, int]) -> Tensor:
            return activation[[self.sources[row] for row in chosen]]

        rows = tuple(self.sources)
        return [Edit(site, rows, self.timesteps, replace, self.label, copies=True) for site in self.sites]


@dataclass(frozen=True)
class Capture:
    """Record what one site holds, for every batch row.

    Attributes:
        site: where.
        timesteps: when; at every timestep when None.
        reduce: called as `reduce(activation, grid)` with the activation (row, cell, channel) of the rows of one
            timestep; what it gives, (row, …), is kept in the activation's place.
    """

    site: Site
    timesteps: frozenset[int] | None = None
    reduce: Callable[[Tensor, tuple[int, int]], Tensor] | None = None

    def kept(self, activation: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is kept of some rows.

        Raises:
            InputError: `reduce` gave anything but a tensor with a value for every row.
        """
        if self.reduce is None:
            return activation
        value = self.reduce(cells_first(activation), grid)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(activation):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"reduce at {self.site}: gave {shape} for {len(activation)} rows; accepted: a tensor (row, …)"
            )
        return value.detach()


@dataclass
class Record:
    """What captures saw: `record[site, timestep]` is (batch, …), the rows that ran at that timestep, in order."""

    tensors: dict[tuple[Site, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def __getitem__(self, key: tuple[Site, int]) -> Tensor:
        return torch.cat(self.tensors[key])


class _StopEarly(Exception):
    """Raised in the hook of the last captured site; never leaves this file. Carries the pass that it ends."""


class _Pass:
    """What the hooks of one context share about the denoiser's pass that is under way; the mark that they carry."""

    timesteps: tuple[int, ...] = ()
    latent_size: tuple[int, int] = (0, 0)
    live: bool = True

    def select(self, batch: int, rows: tuple[int, ...] | None, timesteps: frozenset[int] | None) -> list[int]:
        candidates = range(batch) if rows is None else rows
        return [row for row in candidates if timesteps is None or self.timesteps[row] in timesteps]

    def reached(self, rows: Collection[int]) -> set[int]:
        return {self.timesteps[row] for row in rows}


class _Hook:
    """A hook of ours, marked by its context; it does nothing once that has ended."""

    def __init__(self, owner: _Pass, call: Callable[..., Any]) -> None:
        self.owner, self.call = owner, call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args) if self.owner.live else None


HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""Where a module holds its hooks, and what it notes about them beside."""


@contextmanager
def keep_clean(model: ProbeModel) -> Iterator[None]:
    """Whatever is raised inside, and wherever, no hook and no processor of ours that is set inside stays.

    Around `attached`: an interrupt may also come while a context is entered or left, and then only one outside of it
    can undo what it did.
    """
    before = set(_owners(model.denoiser))
    try:
        yield
    finally:
        _remove(model.denoiser, lambda owner: owner not in before)


@contextmanager
def attached(
    model: ProbeModel,
    *,
    edits: Sequence[Edit | Injection] = (),
    captures: Sequence[Capture] = (),
    stop_early: bool = False,
    equal_at: int | None = None,
    first_row: Mapping[str, frozenset[int]] | None = None,
    attention: AttentionReader | None = None,
) -> Iterator[Record]:
    """Run the denoiser inside this context with edits applied and captures recorded.

    Edits of one site apply in the order given, captures see the edited values. With `stop_early` the `with` block
    ends, without an error, as soon as the last captured site of the first pass has run. At the timestep `equal_at`
    the caller promises that all rows enter the denoiser equal: what runs before the first edit then runs on one row.
    Modules named in `first_row` run on the first row alone at their timesteps, and all rows take what it gives. The
    reader `attention` sees the probabilities of its layers, after the last of which the block ends in the same way.

    Yields:
        A `Record` of the captures.

    Raises:
        ModelError: the denoiser is compiled, or its attention projections are fused, so that hooks would be bypassed.
        InterventionError: on leaving without an exception, an edit that did not take effect, or not at each of its
            timesteps; at once, an edit that returned another shape, or an edit or capture inside what runs on the
            first row alone.
        TimestepError: on leaving without an exception, a capture that never saw one of its timesteps.
    """
    replaced, injections = _divide(model, edits, captures)
    changes: list[Edit | Injection] = [*replaced, *injections]
    _require_hookable(model, [change.site for change in changes] + [capture.site for capture in captures])
    record, current = Record(), _Pass()
    fired: dict[int, set[int]] = defaultdict(set)
    taps: dict[Site, _Tap] = {}
    for order, edit in enumerate(replaced):
        taps.setdefault(edit.site, _Tap(edit.site, current, record, fired)).edits.append((order, edit))
    for capture in captures:
        taps.setdefault(capture.site, _Tap(capture.site, current, record, fired)).captures.append(capture)
    apart: list[Edit | Capture] = [*(edit for edit in replaced if not edit.copies), *captures]
    last = max((capture.site for capture in captures), default=None) if stop_early else None

    _remove(model.denoiser, lambda owner: not owner.live)  # what two interrupts left behind
    try:
        try:
            _read_pass(model, current)
            if equal_at is not None:
                for path in _before_any(model, apart, equal_at):
                    _run_on_one_row(model, path, current, frozenset({equal_at}))
            for path, timesteps in (first_row or {}).items():
                _require_outside(path, timesteps, apart)
                _run_on_one_row(model, path, current, timesteps)
            for site, tap in sorted(taps.items(), key=lambda item: item[0].index):  # two may share a module
                tap.register(model.denoiser, stop=site == last)
            for order, injection in enumerate(injections, start=len(replaced)):
                _share(model.denoiser, injection, order, current, fired, taps)
            if attention is None:
                yield record
            else:
                _watch(model.denoiser, attention, current)
                with attention:
                    yield record
        except _StopEarly as stop:
            if stop.args[0] is not current:  # it ends a run around this one
                raise
        finally:
            _end(model.denoiser, current)
    finally:
        _end(model.denoiser, current)  # once more, as an interrupt may have hit the line above
    _require_fired(changes, fired)
    _require_seen(captures, record)


def cells_first(activation: Tensor) -> Tensor:
    """An activation as (row, cell, channel), of a convolution's (row, channel, height, width) too."""
    if activation.ndim == 4:
        return rearrange(activation, "row channel h w -> row (h w) channel")
    return activation


def _end(denoiser: nn.Module, owner: _Pass) -> None:
    owner.live = False
    _remove(denoiser, lambda other: other is owner)


def _remove(denoiser: nn.Module, is_over: Callable[[_Pass], bool]) -> None:
    """Take out the hooks and processors of those contexts that are over."""
    for module in denoiser.modules():
        for name, notes in HOOKS.items():
            hooks = getattr(module, name)
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook) and is_over(hook.owner)]:
                for note in notes:
                    getattr(module, note).pop(key, None)
                hooks.pop(key, None)  # last, so that one interrupted here is found again
        processor = vars(module).get("processor")
        if isinstance(processor, SharedAttention) and is_over(processor.owner):
            vars(module)["processor"] = processor.plain


def _owners(denoiser: nn.Module) -> Iterator[_Pass]:
    for module in denoiser.modules():
        for name in HOOKS:
            yield from (hook.owner for hook in getattr(module, name).values() if isinstance(hook, _Hook))
        if isinstance(processor := vars(module).get("processor"), SharedAttention):
            yield processor.owner


def _divide(
    model: ProbeModel, edits: Sequence[Edit | Injection], captures: Sequence[Capture]
) -> tuple[list[Edit], list[Injection]]:
    """Injections that a shared processor can carry out, and all else as edits.

    It needs a layer of the known kind, whose queries and keys nothing else reads or changes; injections into one layer
    at the same timesteps are one.
    """
    used = {edit.site for edit in edits if isinstance(edit, Edit)} | {capture.site for capture in captures}
    kinds = {(edit.site, edit.timesteps) for edit in edits if isinstance(edit, Injection)}
    alone = Counter(site for site, _ in kinds)
    replaced: list[Edit] = []
    injections: dict[Site, Injection] = {}
    for edit in edits:
        if isinstance(edit, Edit):
            replaced.append(edit)
        elif alone[edit.site] == 1 and not used & set(edit.sites) and _is_plain(model, edit.site):
            others = injections[edit.site].sources if edit.site in injections else {}
            injections[edit.site] = replace(edit, sources={**others, **edit.sources})
        else:
            replaced.extend(edit.edits())
    return replaced, list(injections.values())


def _is_plain(model: ProbeModel, site: Site) -> bool:
    return SharedAttention.serves(model.denoiser.get_submodule(site.attention))


def _share(
    denoiser: nn.Module,
    injection: Injection,
    order: int,
    current: _Pass,
    fired: dict[int, set[int]],
    tapped: Collection[Site],
) -> None:
    """Carry out an injection by a processor in the layer's own place."""

    def sources(batch: int) -> list[int]:
        if not current.live:
            return list(range(batch))
        rows = set(current.select(batch, tuple(injection.sources), injection.timesteps))
        fired[order] |= current.reached(rows)
        if batch < len(current.timesteps):  # the one row that stands for equal rows
            return [0]
        return [injection.sources[row] if row in rows else row for row in range(batch)]

    path = injection.site.attention
    attention: Any = denoiser.get_submodule(path)
    whole = not any(site.layer == path and site.part in {"value", "heads"} for site in tapped)
    attention.processor = SharedAttention(attention.processor, sources, whole=whole, owner=current)


def _before_any(model: ProbeModel, taps: Sequence[Edit | Capture], timestep: int) -> list[str]:
    """Paths of the largest modules that have run before any of these edits and captures, at one timestep."""
    active = [tap.site.index for tap in taps if tap.timesteps is None or timestep in tap.timesteps]
    last: dict[str, int] = {}
    for site in list_sites(model, part="output"):
        names = site.path.split(".")
        last.update({".".join(names[:depth]): site.index for depth in range(1, len(names) + 1)})
    early = {
        path
        for path, index in last.items()
        if index < min(active, default=index + 1) and not isinstance(model.denoiser.get_submodule(path), nn.ModuleList)
    }
    return [path for path in early if not any(path.startswith(f"{outer}.") for outer in early)]


def _run_on_one_row(model: ProbeModel, path: str, current: _Pass, timesteps: frozenset[int]) -> None:
    """Let a module run on the first row at these timesteps, and give its result for all of them."""
    module = model.denoiser.get_submodule(path)
    written = _is_written_in_place(model.denoiser)

    def alone() -> bool:
        return timesteps.issuperset(current.timesteps)

    def spread(row: Tensor) -> Tensor:
        rows = row.expand(len(current.timesteps), *row.shape[1:])
        return rows.clone(memory_format=torch.contiguous_format) if written else rows

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        return _each_tensor((args, kwargs), lambda rows: rows[:1]) if alone() else None

    def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return _each_tensor(output, spread) if alone() else None

    module.register_forward_pre_hook(_Hook(current, on_input), with_kwargs=True)
    module.register_forward_hook(_Hook(current, on_output))


def _watch(denoiser: nn.Module, reader: AttentionReader, current: _Pass) -> None:
    """Tell a reader which of its layers runs."""
    for path in reader.layers:
        layer: Any = denoiser.get_submodule(path)

        def before(layer: Any, _: tuple[Any, ...], path: str = path) -> None:
            reader.begin(path, layer.heads)

        def after(layer: Any, _: tuple[Any, ...], output: Tensor, path: str = path) -> None:
            reader.end(layer.processor, len(output))
            if path == reader.layers[-1]:
                raise _StopEarly(current)

        layer.register_forward_pre_hook(_Hook(current, before))
        layer.register_forward_hook(_Hook(current, after))


def _is_written_in_place(denoiser: nn.Module) -> bool:
    """Whether FreeU is on, which writes into what the block before gave."""
    return any(getattr(block, "b1", None) is not None for block in getattr(denoiser, "up_blocks", ()))


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_each_tensor(part, change) for part in value)
    if isinstance(value, dict):
        return {name: _each_tensor(part, change) for name, part in value.items()}
    return value


class _Tap:
    """All edits and captures of one site, as one hook."""

    def __init__(self, site: Site, current: _Pass, record: Record, fired: dict[int, set[int]]) -> None:
        self.site, self.current, self.record, self.fired = site, current, record, fired
        self.edits: list[tuple[int, Edit]] = []
        self.captures: list[Capture] = []

    def register(self, denoiser: nn.Module, *, stop: bool) -> None:
        module = denoiser.get_submodule(self.site.path)

        def on_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            activation = self(args[0])
            if stop:
                raise _StopEarly(self.current)
            return (activation, *args[1:])

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            # a downward block returns (hidden, skips), a joint layer both streams, an upward block or a layer a tensor
            several, item = isinstance(output, tuple), self.site.item
            activation = self(output[item] if several else output)
            if stop:
                raise _StopEarly(self.current)
            return (*output[:item], activation, *output[item + 1 :]) if several else activation

        if self.site.tap == "input":
            module.register_forward_pre_hook(_Hook(self.current, on_input))
        else:
            module.register_forward_hook(_Hook(self.current, on_output))

    def __call__(self, whole: Tensor) -> Tensor:
        grid = self.site.grid(*self.current.latent_size)
        text = whole.shape[1] - grid[0] * grid[1]
        if self.site.tokens == "image":
            return torch.cat([whole[:, :text], self._change(whole[:, text:], grid)], 1)
        if self.site.tokens == "text":
            return torch.cat([self._change(whole[:, :text], grid), whole[:, text:]], 1)
        return self._change(whole, grid)

    def _change(self, activation: Tensor, grid: tuple[int, int]) -> Tensor:
        shared = len(activation) < len(self.current.timesteps)
        for order, edit in self.edits:
            rows = self.current.select(len(activation), edit.rows, edit.timesteps)
            if shared and rows and not edit.copies:
                raise self._shared(edit.label)
            if rows and not shared:
                activation = _replace_rows(activation, rows, edit, grid)
            self.fired[order] |= self.current.reached(rows)
        for capture in self.captures:
            by_timestep = defaultdict(list)
            rows = self.current.select(len(activation), None, capture.timesteps)
            if shared and rows:
                raise self._shared("a capture")
            for row in rows:
                by_timestep[self.current.timesteps[row]].append(row)
            for timestep, rows in by_timestep.items():
                kept = capture.kept(activation[rows].detach(), grid)
                self.record.tensors[self.site, timestep].append(kept)
        return activation

    def _shared(self, what: str) -> InterventionError:
        return InterventionError(
            f"{what} at {self.site}: a run inside this one lets one row stand for several there; accepted: the edit or "
            "capture given to that run itself (`denoise`, `replay`)"
        )


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


def _read_pass(model: ProbeModel, current: _Pass) -> None:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current.timesteps, current.latent_size = model.read_pass(args, kwargs)

    model.denoiser.register_forward_pre_hook(_Hook(current, before), with_kwargs=True)


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
        if site.layer and getattr(denoiser.get_submodule(site.layer), "fused_projections", False):
            raise ModelError(
                f"{model.name}: the projections of {site.attention} are fused, so hooks on {site.part} would never "
                "fire; call model.pipeline.unfuse_qkv_projections() first"
            )


def _require_outside(path: str, timesteps: frozenset[int], taps: Sequence[Edit | Capture]) -> None:
    for tap in taps:
        if f"{tap.site.path}.".startswith(f"{path}.") and (tap.timesteps is None or tap.timesteps & timesteps):
            what = tap.label if isinstance(tap, Edit) else "a capture"
            raise InterventionError(
                f"{what} at {tap.site}: there {path} runs on the unchanged image alone; accepted: sites outside of it, "
                "other timesteps, or no shared levels"
            )


def _require_fired(changes: Sequence[Edit | Injection], fired: Mapping[int, set[int]]) -> None:
    missing = [(change.timesteps or frozenset()) - fired[order] for order, change in enumerate(changes)]
    idle = [(changes[order], missed) for order, missed in enumerate(missing) if missed or not fired[order]]
    if not idle:
        return
    edit, missed = idle[0]
    when = f"timestep {', '.join(map(str, sorted(missed)))}" if missed else "any timestep"
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
