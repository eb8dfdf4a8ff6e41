"""Values that say what to change in the denoiser: they compose in a list and are checked when made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from emerdiff_probe.checks import is_finite, is_integer, is_one_of, show
from emerdiff_probe.errors import InterventionError, SiteError
from emerdiff_probe.hooks.attach import Edit, Injection, cells_first
from emerdiff_probe.models.addresses import ATTENTION_KINDS, AttentionKind
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.sites import Site, list_sites

Placement = Literal["after", "before"]

MaskLike = Tensor | np.ndarray


class Intervention(Protocol):
    """Something that changes the denoiser's activations for some batch rows."""

    def edits(
        self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]
    ) -> Sequence[Edit] | Sequence[Injection]:
        """The edits that carry it out.

        Args:
            model: to be changed.
            rows: the batch rows to change.
            references: for each of them the batch row that runs the same image unchanged.
        """
        ...


@dataclass(frozen=True, eq=False)
class Modulate:
    """Add `strength * mask (x) direction` to an attention layer's output (EmerDiff, modulated denoising).

    Attributes:
        site: any site of the attention layer to modulate; only the layer counts.
        mask: (grid_height, grid_width), finite; usually 0 and 1.
        strength: the paper's lambda with its sign.
        modulate_at: timesteps, the paper's t_m.
        placement: "after" the output projection (the paper's) or "before" it.
        direction: (channel,) vector, finite; all ones, the paper's, when None.

    Raises:
        InterventionError: any of these is ill-formed.
    """

    site: Site
    mask: MaskLike
    strength: float = 10.0
    modulate_at: tuple[int, ...] = (281,)
    placement: Placement = "after"
    direction: MaskLike | None = None

    def __post_init__(self) -> None:
        _require_attention(self.site, "Modulate")
        _require(self, "placement", is_one_of(self.placement, ("after", "before")), "'after', 'before'")
        _require(self, "strength", is_finite(self.strength), "a finite number")
        _take_tensor(self, "mask", 2, "(grid_height, grid_width)")
        object.__setattr__(self, "modulate_at", _timesteps(self.modulate_at, "Modulate"))
        if self.direction is not None:
            _take_tensor(self, "direction", 1, "(channel,)")

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Edit]:
        """One edit, at the output of the attention layer or at the input of its output projection."""
        target = attention_part(model, self.site, "output" if self.placement == "after" else "heads")
        direction = torch.ones(target.channels) if self.direction is None else torch.as_tensor(self.direction)
        if len(direction) != target.channels:
            raise InterventionError(
                f"Modulate: direction of {len(direction)} channels at {target}; accepted: {target.channels}"
            )
        mask = torch.as_tensor(self.mask).cpu()
        offset = self.strength * rearrange(mask, "h w -> (h w) 1") * direction.cpu().float()
        offset = offset.to(model.device)

        def replace(activation: Tensor, chosen: list[int], grid: tuple[int, int]) -> Tensor:
            if mask.shape != grid:
                raise InterventionError(
                    f"Modulate: mask of shape {tuple(mask.shape)} at {target}; accepted for this image: {grid}"
                )
            return activation[chosen] + offset.to(activation.dtype)

        return [Edit(target, tuple(rows), frozenset(self.modulate_at), replace, f"Modulate({self.strength:g})")]


@dataclass(frozen=True, eq=False)
class InjectAttention:
    """Use the attention probabilities of the unchanged image: queries and keys come from its row, values stay.

    Exact and without stored maps: softmax(Q K^T) is fixed by Q and K, and the reference rides in the same batch.

    Attributes:
        kinds: of attention layers, any of "self", "cross" and "joint"; a model has some of them.
        sites: any sites of the layers to inject; every layer of those kinds when None.
        timesteps: when; at every timestep when None.
    """

    kinds: tuple[AttentionKind, ...] = ATTENTION_KINDS
    sites: tuple[Site, ...] | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        kinds = self.kinds if isinstance(self.kinds, (tuple, list)) else ()
        known = bool(kinds) and all(is_one_of(kind, ATTENTION_KINDS) for kind in kinds)
        _require(self, "kinds", known, "one or more of 'self', 'cross', 'joint'")
        object.__setattr__(self, "kinds", tuple(kinds))
        if self.sites is not None:
            several = isinstance(self.sites, (tuple, list)) and bool(self.sites)
            _require(self, "sites", several, "one or more sites, or None for all")
            object.__setattr__(self, "sites", tuple(self.sites))
        for site in self.sites or ():
            _require_attention(site, "InjectAttention")
            if site.kind not in self.kinds:
                raise InterventionError(f"InjectAttention: {site} is not of the kinds {self.kinds!r}; accepted: those")
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", _timesteps(self.timesteps, "InjectAttention"))

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Injection]:
        """One injection a layer.

        Raises:
            InterventionError: no such layer, or "self" is asked of a model whose self-attention is linear.
        """
        sources = dict(zip(rows, references, strict=True))
        wanted = [site for site in list_sites(model, part="query") if site.kind in self.kinds]
        if self.sites is not None:
            wanted = list(dict.fromkeys(attention_part(model, site, "query") for site in self.sites))
        if self.sites is None and "self" in self.kinds and list_sites(model, kind="linear"):
            raise InterventionError(
                f"InjectAttention: the self-attention of {model.name} is linear, so it has no probabilities to inject; "
                "accepted: kinds=('cross',)"
            )
        if not wanted:
            raise InterventionError(f"InjectAttention: {model.name} has no attention of the kinds {self.kinds!r}")
        when = None if self.timesteps is None else frozenset(self.timesteps)
        parts = {
            query: tuple(
                site
                for site in list_sites(model, kind=query.kind)
                if site.layer == query.layer and site.part.removeprefix("text_") in {"query", "key"}
            )
            for query in wanted
        }
        return [Injection(parts[query], sources, when, "InjectAttention") for query in wanted]


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiply a site's activation by a factor; 0 ablates it.

    Attributes:
        site: where; any site.
        factor: finite.
        mask: (grid_height, grid_width) of cells to scale; every cell when None.
        timesteps: when; at every timestep when None.
    """

    site: Site
    factor: float
    mask: MaskLike | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require(self, "factor", is_finite(self.factor), "a finite number")
        _check_mask_and_timesteps(self)

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Edit]:
        """One edit at the site."""
        return [_masked_edit(self, rows, lambda old: old * self.factor, f"Scale({self.factor:g})")]


@dataclass(frozen=True, eq=False)
class Replace:
    """Put given values in the place of a site's activation, for instance another image's (activation patching).

    Attributes:
        site: where; any site.
        values: one row's activation as `features.capture` gives it, (cell, channel), finite; a tensor or an array.
        mask: (grid_height, grid_width) of cells to replace; every cell when None.
        timesteps: when; at every timestep when None.
    """

    site: Site
    values: MaskLike
    mask: MaskLike | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require_site(self.site, "Replace")
        _take_tensor(self, "values", 2, f"(cell, {self.site.channels})")
        if self.values.shape[1] != self.site.channels:
            raise InterventionError(
                f"Replace: values of shape {tuple(self.values.shape)} at {self.site}; "
                f"accepted: (cell, {self.site.channels})"
            )
        _check_mask_and_timesteps(self)

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Edit]:
        """One edit at the site."""

        def new(old: Tensor) -> Tensor:
            values = torch.as_tensor(self.values)
            if values.shape != old.shape[1:]:
                raise InterventionError(
                    f"Replace: values of shape {tuple(values.shape)} at {self.site}; "
                    f"accepted for this image: {tuple(old.shape[1:])}"
                )
            return values.to(old).expand_as(old)

        return [_masked_edit(self, rows, new, "Replace")]


@dataclass(frozen=True, eq=False)
class Noise:
    """Add Gaussian noise to a site's activation: the null model beside a directed perturbation.

    Attributes:
        site: where; any site.
        strength: standard deviation of the noise, 0 or more.
        seed: same seed, same noise, on every device; every row and timestep gets the same draw.
        mask: (grid_height, grid_width) of cells to disturb; every cell when None.
        timesteps: when; at every timestep when None.
    """

    site: Site
    strength: float
    seed: int = 0
    mask: MaskLike | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require(self, "strength", is_finite(self.strength) and self.strength >= 0, "a finite number, 0 or more")
        _require(self, "seed", is_integer(self.seed, 0) and self.seed < 2**64, "an integer, 0 or more, below 2^64")
        _check_mask_and_timesteps(self)

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Edit]:
        """One edit at the site."""

        def noisy(old: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(int(self.seed))
            return old + self.strength * torch.randn(old.shape[1:], generator=generator).to(old)

        return [_masked_edit(self, rows, noisy, f"Noise({self.strength:g})")]


@dataclass(frozen=True, eq=False)
class Apply:
    """Put what a function of one's own makes of a site's activation in its place.

    Attributes:
        site: where; any site.
        fn: called as `fn(activation, grid)` with the activation (row, cell, channel) of the rows that this intervention
            is asked of, its own copy, on the model's device and in its precision, and with the height and width of the
            grid; it gives the new activation of those rows. Keys and values of cross-attention, and the text's parts of
            joint attention, have tokens in the place of cells. Under guidance it is given both halves of the rows.
        timesteps: when; at every timestep when None.

    Raises:
        InterventionError: any of these is ill-formed; when it runs, a result that is no tensor of finite floating-point
            numbers of the activation's shape.
    """

    site: Site
    fn: Callable[[Tensor, tuple[int, int]], Tensor]
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require_site(self.site, "Apply")
        _require(self, "fn", callable(self.fn), "a function of an activation (row, cell, channel) and a grid")
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", _timesteps(self.timesteps, "Apply"))

    def edits(self, model: ProbeModel, rows: Sequence[int], references: Sequence[int]) -> list[Edit]:
        """One edit at the site."""
        name = getattr(self.fn, "__name__", type(self.fn).__name__)

        def replace(activation: Tensor, chosen: list[int], grid: tuple[int, int]) -> Tensor:
            old = activation[chosen]
            flat = cells_first(old)
            new = self.fn(flat, grid)
            if not isinstance(new, Tensor) or not new.is_floating_point() or new.shape != flat.shape:
                given = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
                raise InterventionError(
                    f"Apply({name}) at {self.site}: gave {given}; accepted: a floating-point tensor {tuple(flat.shape)}"
                )
            new = new.detach().to(old)
            if not torch.isfinite(new).all():
                raise InterventionError(
                    f"Apply({name}) at {self.site}: gave NaN or infinite values in {old.dtype}; accepted: finite ones"
                )
            return rearrange(new, "b (h w) c -> b c h w", h=grid[0]) if old.ndim == 4 else new

        when = None if self.timesteps is None else frozenset(self.timesteps)
        return [Edit(self.site, tuple(rows), when, replace, f"Apply({name})")]


def attention_part(model: ProbeModel, site: Site, part: Literal["query", "key", "value", "heads", "output"]) -> Site:
    """The site of another part of the attention layer that `site` belongs to."""
    for other in list_sites(model, kind=site.kind, part=part):
        if other.layer == site.layer:
            return other
    raise SiteError(f"{site} belongs to another model than {model.name}, or to a layer without {part}")


def _masked_edit(intervention: Scale | Replace | Noise, rows: Sequence[int], change: _Change, label: str) -> Edit:
    mask = None if intervention.mask is None else torch.as_tensor(intervention.mask)

    def replace(activation: Tensor, chosen: list[int], grid: tuple[int, int]) -> Tensor:
        old = activation[chosen]
        flat = cells_first(old)
        new = change(flat)
        if mask is not None:
            if mask.shape != grid or flat.shape[1] != mask.numel():
                raise InterventionError(
                    f"{label}: mask of shape {tuple(mask.shape)} at {intervention.site}; accepted for this image: "
                    f"{grid}, at a site whose rows are cells"
                )
            weight = rearrange(mask, "h w -> 1 (h w) 1").to(flat)
            new = torch.lerp(flat, new, weight)
        return rearrange(new, "b (h w) c -> b c h w", h=grid[0]) if old.ndim == 4 else new

    when = None if intervention.timesteps is None else frozenset(intervention.timesteps)
    return Edit(intervention.site, tuple(rows), when, replace, label)


class _Change(Protocol):
    def __call__(self, old: Tensor) -> Tensor: ...


def _check_mask_and_timesteps(intervention: Scale | Replace | Noise) -> None:
    name = type(intervention).__name__
    _require_site(intervention.site, name)
    if intervention.mask is not None:
        _take_tensor(intervention, "mask", 2, "(grid_height, grid_width)")
    if intervention.timesteps is not None:
        object.__setattr__(intervention, "timesteps", _timesteps(intervention.timesteps, name))


def _require(intervention: Intervention, field: str, holds: bool, accepted: str) -> None:
    if not holds:
        name, given = type(intervention).__name__, show(getattr(intervention, field))
        raise InterventionError(f"{name}: {field} {given}; accepted: {accepted}")


def _take_tensor(intervention: Modulate | Scale | Replace | Noise, field: str, dimensions: int, axes: str) -> None:
    """Make a field of an intervention a float tensor, if it is finite and has so many dimensions, named by `axes`."""
    name, given = type(intervention).__name__, getattr(intervention, field)
    try:
        tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InterventionError(f"{name}: {field} {show(given)}; accepted: {axes}, finite numbers") from error
    tensor = tensor if tensor.is_complex() else tensor.float()
    if tensor.ndim != dimensions or tensor.is_complex() or not torch.isfinite(tensor).all():
        kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if tensor.is_complex() else f"of {tuple(tensor.shape)}"
        raise InterventionError(f"{name}: {field} {kind}; accepted: {axes}, finite numbers")
    object.__setattr__(intervention, field, tensor)


def _timesteps(timesteps: Sequence[int] | int, name: str) -> tuple[int, ...]:
    values: tuple[object, ...] = (timesteps,)
    if isinstance(timesteps, Iterable) and not isinstance(timesteps, (str, bytes)):
        values = tuple(timesteps.reshape(-1).tolist() if isinstance(timesteps, (Tensor, np.ndarray)) else timesteps)
    if not values or not all(is_finite(value) and 0 <= value <= 1000 and value == int(value) for value in values):
        raise InterventionError(f"{name}: timesteps {show(timesteps)}; accepted: one or more integers from 0 to 1000")
    return tuple(int(value) for value in values)  # type: ignore[call-overload]


def _require_site(site: object, name: str) -> None:
    if not isinstance(site, Site):
        raise InterventionError(f"{name}: site {show(site)}; accepted: a site, such as `find_site` gives")


def _require_attention(site: Site, name: str) -> None:
    _require_site(site, name)
    if not site.layer:
        raise InterventionError(f"{name}: {site} is no attention layer; accepted: sites of an attention layer")
