"""Sites: the addresses of single tensors inside the denoiser, listed, found by what they are, shown as a table."""

from __future__ import annotations

import difflib
import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from emerdiff_probe.errors import InputError, SiteError
from emerdiff_probe.models.probe_model import ProbeModel

Stage = Literal["down", "mid", "up"]
Kind = Literal["self", "cross", "feedforward", "resnet", "block"]
Part = Literal["query", "key", "value", "heads", "output"]

STAGES: tuple[Stage, ...] = ("down", "mid", "up")
KINDS: tuple[Kind, ...] = ("self", "cross", "feedforward", "resnet", "block")
PARTS: tuple[Part, ...] = ("query", "key", "value", "heads", "output")


@dataclass(frozen=True, order=True)
class Site:
    """The address of one tensor in the denoiser.

    Attributes:
        index: position in the order of `list_sites`; the denoiser runs its sites in that order.
        stage: "down", "mid" or "up".
        resolution: side of the site's grid when the model runs at its native size.
        kind: "self" or "cross" attention, "feedforward", "resnet", or the whole "block".
        part: of an attention layer "query", "key", "value" (outputs of the three projections), "heads" (the
            weighted values, before the output projection) or "output" (after it); else "output".
        nth: counts the sites that share stage, resolution, kind and part, from 0.
        path: dotted path of the module, for `denoiser.get_submodule` and any other tool.
        tap: whether the tensor is that module's "input" or "output".
        scale: latent cells a grid cell, along one side.
        channels: of the tensor.
    """

    index: int
    stage: Stage
    resolution: int
    kind: Kind
    part: Part
    nth: int
    path: str
    tap: Literal["input", "output"]
    scale: int
    channels: int

    @property
    def name(self) -> str:
        """Short name that `find_site` accepts, such as "up16.cross0.query"."""
        return f"{self.stage}{self.resolution}.{self.kind}{self.nth}.{self.part}"

    @property
    def attention(self) -> str:
        """Dotted path of the attention layer that this site belongs to."""
        if self.kind not in {"self", "cross"}:
            raise SiteError(f"{self.name} is no part of an attention layer")
        return self.path if self.part == "output" else re.sub(r"\.(to_[qkv]|to_out\.0)$", "", self.path)

    def grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Height and width of the site's grid for latents of this size; halvings round up, as in the denoiser."""
        return -(-latent_height // self.scale), -(-latent_width // self.scale)

    def __str__(self) -> str:
        return f"{self.name} ({self.path})"


class SiteTable(tuple[Site, ...]):
    """A tuple of sites that shows itself as a table, as text and in a notebook."""

    HEADER = ("name", "stage", "grid", "kind", "part", "nth", "channels", "module path")

    def rows(self) -> list[tuple[str, ...]]:
        """One row of text a site, under `HEADER`."""
        return [
            (
                site.name,
                site.stage,
                f"{site.resolution} x {site.resolution}",
                site.kind,
                site.part,
                str(site.nth),
                str(site.channels),
                site.path + (" (input)" if site.tap == "input" else ""),
            )
            for site in self
        ]

    def __str__(self) -> str:
        table = [self.HEADER, *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.HEADER))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line("td", row) for row in self.rows())
        return f"<table><thead>{line('th', self.HEADER)}</thead><tbody>{body}</tbody></table>"


def list_sites(
    model: ProbeModel,
    *,
    stage: Stage | None = None,
    resolution: int | None = None,
    kind: Kind | None = None,
    part: Part | None = None,
    nth: int | None = None,
) -> SiteTable:
    """All sites of the denoiser in the order in which it runs them, or those that match every given property.

    Raises:
        InputError: a stage, kind or part that does not exist.
        SiteError: the denoiser has no layer of a known kind at all, so that a library release must have changed.
    """
    wanted = {"stage": stage, "resolution": resolution, "kind": kind, "part": part, "nth": nth}
    for key, accepted in (("stage", STAGES), ("kind", KINDS), ("part", PARTS)):
        if wanted[key] is not None and wanted[key] not in accepted:
            raise InputError(f"{key} {wanted[key]!r}; accepted: {', '.join(accepted)}")
    sites = _all_sites(model)
    return SiteTable(
        site for site in sites if all(value is None or getattr(site, key) == value for key, value in wanted.items())
    )


def find_site(
    model: ProbeModel,
    name: str | None = None,
    *,
    stage: Stage | None = None,
    resolution: int | None = None,
    kind: Kind | None = None,
    part: Part | None = None,
    nth: int | None = None,
) -> Site:
    """The one site that has this name or module path, or that matches every given property.

    Args:
        model: whose denoiser is searched.
        name: such as "up16.cross0.query", or a dotted module path.
        stage, resolution, kind, part, nth: as in `Site`.

    Raises:
        SiteError: nothing matches, or more than one does; the message lists the near ones.
    """
    sites = list_sites(model, stage=stage, resolution=resolution, kind=kind, part=part, nth=nth)
    if name is not None:
        sites = SiteTable(site for site in sites if name in {site.name, site.path})
    if len(sites) == 1:
        return sites[0]
    given = {"stage": stage, "resolution": resolution, "kind": kind, "part": part, "nth": nth}
    wanted = ", ".join(f"{key}={value!r}" for key, value in {"name": name, **given}.items() if value is not None)
    if sites:
        names = ", ".join(site.name for site in sites[:6])
        raise SiteError(
            f"{len(sites)} sites match {wanted or 'everything'}; name one of them: {names}"
            + (", …" if len(sites) > 6 else "")
        )
    raise SiteError(f"no site of {model.name} matches {wanted}; near ones: {', '.join(_near(model, name, given))}")


def coarsest_blocks(model: ProbeModel, levels: int) -> tuple[str, ...]:
    """Paths of the blocks of the denoiser's coarsest levels, one after the other: downwards, the middle, upwards.

    Raises:
        InputError: the denoiser has no finer level left.
    """
    down, up = len(model.denoiser.down_blocks), len(model.denoiser.up_blocks)
    if not 0 <= levels < down:
        raise InputError(f"{levels} coarsest levels of {model.name}; accepted: 0 to {down - 1}")
    if levels == 0:
        return ()
    middle = ["mid_block"] if model.denoiser.mid_block is not None else []
    return (
        *(f"down_blocks.{i}" for i in range(down - levels, down)),
        *middle,
        *(f"up_blocks.{i}" for i in range(min(levels, up))),
    )


def _near(model: ProbeModel, name: str | None, given: Mapping[str, object]) -> list[str]:
    sites = _all_sites(model)
    if name is not None:
        known = [site.name for site in sites] + [site.path for site in sites]
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
        return list(dict.fromkeys(close)) or [site.name for site in sites[:5]]

    def agreement(site: Site) -> int:
        return sum(value is not None and getattr(site, key) == value for key, value in given.items())

    return [site.name for site in sorted(sites, key=agreement, reverse=True)[:5]]


_known: WeakKeyDictionary[nn.Module, list[Site]] = WeakKeyDictionary()
"""Sites of denoisers that have been walked: every intervention asks for them anew."""


def _all_sites(model: ProbeModel) -> list[Site]:
    if model.denoiser not in _known:
        _known[model.denoiser] = _walk(model)
    return _known[model.denoiser]


def _walk(model: ProbeModel) -> list[Site]:
    counts: Counter[tuple[str, int, str, str]] = Counter()
    sites: list[Site] = []
    size = int(model.denoiser.config.sample_size)
    for stage, scale, tensor in _tensors(model.denoiser):
        resolution = -(-size // scale)
        key = (stage, resolution, tensor.kind, tensor.part)
        sites.append(
            Site(
                index=len(sites),
                stage=stage,
                resolution=resolution,
                kind=tensor.kind,
                part=tensor.part,
                nth=counts[key],
                path=tensor.path,
                tap=tensor.tap,
                scale=scale,
                channels=tensor.channels,
            )
        )
        counts[key] += 1
    if not any(site.kind in {"self", "cross"} for site in sites):
        raise SiteError(
            f"{model.name}: no attention layer was recognised in {type(model.denoiser).__name__}; "
            "this diffusers release names its layers differently"
        )
    return sites


class _Tensor(NamedTuple):
    kind: Kind
    part: Part
    path: str
    channels: int
    tap: Literal["input", "output"] = "output"


def _tensors(denoiser: Any) -> Iterator[tuple[Stage, int, _Tensor]]:
    """Stage, scale and description of every tensor that has a site, in the order of execution."""
    scale = 1
    for i, block in enumerate(denoiser.down_blocks):
        for tensor in _layer_tensors(f"down_blocks.{i}", block):
            yield "down", scale, tensor
        scale *= 2 if block.downsamplers is not None else 1
        yield "down", scale, _Tensor("block", "output", f"down_blocks.{i}", block.resnets[-1].out_channels)
    if (block := denoiser.mid_block) is not None:
        for tensor in _layer_tensors("mid_block", block):
            yield "mid", scale, tensor
        yield "mid", scale, _Tensor("block", "output", "mid_block", block.resnets[-1].out_channels)
    for i, block in enumerate(denoiser.up_blocks):
        for tensor in _layer_tensors(f"up_blocks.{i}", block):
            yield "up", scale, tensor
        scale //= 2 if block.upsamplers is not None else 1
        yield "up", scale, _Tensor("block", "output", f"up_blocks.{i}", block.resnets[-1].out_channels)


def _layer_tensors(block_path: str, block: Any) -> Iterator[_Tensor]:
    attentions = getattr(block, "attentions", ())
    for i, resnet in enumerate(block.resnets):
        yield _Tensor("resnet", "output", f"{block_path}.resnets.{i}", resnet.out_channels)
        if i < len(attentions):
            yield from _transformer_tensors(f"{block_path}.attentions.{i}", attentions[i])


def _transformer_tensors(path: str, transformer: nn.Module) -> Iterator[_Tensor]:
    for name, module in transformer.named_modules():
        module_path = f"{path}.{name}"
        if isinstance(module, Attention):
            kind: Kind = "cross" if module.is_cross_attention else "self"
            for part, projection in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
                channels = module.get_submodule(projection).out_features
                yield _Tensor(kind, part, f"{module_path}.{projection}", channels)  # type: ignore[arg-type]
            output = module.to_out[0]
            yield _Tensor(kind, "heads", f"{module_path}.to_out.0", output.in_features, "input")
            yield _Tensor(kind, "output", module_path, output.out_features)
        elif isinstance(module, FeedForward):
            yield _Tensor("feedforward", "output", module_path, module.net[-1].out_features)
