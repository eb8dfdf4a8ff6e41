"""Sites: the addresses of single tensors inside the denoiser, listed, found by what they are, shown as a table."""

from __future__ import annotations

import difflib
import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

from torch import nn

from emerdiff_probe.checks import is_integer
from emerdiff_probe.errors import InputError, SiteError
from emerdiff_probe.models.addresses import ATTENTION, KINDS, PARTS, STAGES, Kind, Part, Stage, Tokens
from emerdiff_probe.models.probe_model import ProbeModel


@dataclass(frozen=True, order=True)
class Site:
    """The address of one tensor in the denoiser.

    Attributes:
        index: position in the order of `list_sites`; the denoiser runs its sites in that order.
        stage: of a U-Net "down", "mid" or "up"; of a transformer "double" (blocks that hold image and text in two
            streams with weights of their own) or "single" (blocks of one stream).
        resolution: side of the site's grid when the model runs at its native size.
        kind: "self", "cross" or "joint" attention (joint: image and text attend to both), "linear" self-attention,
            which has no probabilities, "feedforward", "resnet", or the whole "block".
        part: of an attention layer "query", "key", "value" (outputs of the three projections), "heads" (the
            weighted values, before the output projection) or "output" (after it); else "output". Of joint attention
            these are the image's, and "text_query" … "text_output" the text's, whose rows are tokens in the place of
            cells. A query or key is what the projection gives: where a layer normalises its heads or turns them by
            position (rotary embeddings), it does so afterwards.
        nth: counts the sites that share stage, resolution, kind and part, from 0.
        path: dotted path of the module, for `denoiser.get_submodule` and any other tool.
        tap: whether the tensor is that module's "input" or "output".
        scale: latent cells a grid cell, along one side.
        channels: of the tensor.
        tokens: which rows of the module's tensor are the site's: "all", or the "image" or the "text" of a sequence
            that holds the text's tokens before the image's cells.
        item: place of the tensor in what the module gives, where that is several.
        layer: dotted path of its attention layer; "" where it is no part of one.
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
    tokens: Tokens = "all"
    item: int = 0
    layer: str = ""

    @property
    def name(self) -> str:
        """Short name that `find_site` accepts, such as "up16.cross0.query"."""
        return f"{self.stage}{self.resolution}.{self.kind}{self.nth}.{self.part}"

    @property
    def attention(self) -> str:
        """Dotted path of the attention layer that this site belongs to."""
        if not self.layer:
            raise SiteError(f"{self.name} is no part of an attention layer")
        return self.layer

    @property
    def holds_cells(self) -> bool:
        """Whether its rows are the cells of a grid, and not the tokens of a text."""
        return not (self.part.startswith("text_") or (self.kind == "cross" and self.part in {"key", "value"}))

    def grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Height and width of the site's grid for latents of this size; halvings round up, as in the denoiser."""
        return -(-latent_height // self.scale), -(-latent_width // self.scale)

    def __str__(self) -> str:
        return f"{self.name} ({self.path})"


class SiteTable(tuple[Site, ...]):
    """A tuple of sites that shows itself as a table, as text and in a notebook."""

    HEADER = ("name", "stage", "grid", "kind", "part", "nth", "channels", "module path")
    FIELDS = ("name", "stage", "resolution", "kind", "part", "nth", "channels", "scale", "path", "tap", "tokens")

    def records(self) -> list[dict[str, str | int]]:
        """One dictionary of `FIELDS` a site, as JSON and CSV hold it."""
        return [{field: getattr(site, field) for field in self.FIELDS} for site in self]

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
    check_properties(**wanted)
    sites = _all_sites(model)
    return SiteTable(
        site for site in sites if all(value is None or getattr(site, key) == value for key, value in wanted.items())
    )


def check_properties(**wanted: object) -> None:
    """Refuse properties that no site of any model has.

    Raises:
        InputError: a stage, kind or part that does not exist, or a resolution or number that is none.
    """
    accepted: Mapping[str, Sequence[str]] = {"stage": STAGES, "kind": KINDS, "part": PARTS}
    for key, value in wanted.items():
        if value is not None and key in accepted and value not in accepted[key]:
            raise InputError(f"{key} {value!r}; accepted: {', '.join(accepted[key])}")
        if value is not None and key not in accepted and not is_integer(value, 0):
            raise InputError(f"{key} {value!r}; accepted: an integer, 0 or more")


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
    if not 0 <= levels < model.levels:
        raise InputError(f"{levels} coarsest levels of {model.name}; accepted: 0 to {model.levels - 1}")
    return model.coarsest_blocks(levels)


def default_sites(model: ProbeModel) -> tuple[Site, Site]:
    """Where to read features and where to modulate in a model that nobody has measured; a rule, not a finding.

    In a transformer the attention layer in the middle of its depth: its image's queries, and its image's output. Not
    cross-attention, as what is added to all channels of its output is lost in the norms that read it where no gate
    stands between (PixArt). In a U-Net the first and the last attention layer of the upward block whose grid is nearest
    to a quarter of the latents' (the paper's), cross-attention before self-attention; of the whole denoiser where it
    has none upwards.

    Returns:
        The site whose features are clustered, and the output that is modulated.
    """
    layers = [site for site in list_sites(model, part="output") if site.kind in ATTENTION]
    if {site.stage for site in layers} & {"double", "single"}:
        joint = [site for site in layers if site.kind == "joint"]
        image = joint or [site for site in layers if site.kind != "cross"]
        first = last = image[len(image) // 2]
    else:
        near = [site for site in layers if site.stage == "up"] or layers
        distance = {site: abs(math.log(4 * site.resolution / model.latent_side)) for site in near}
        near = [site for site in near if distance[site] == min(distance.values())]
        crossed = [site for site in near if site.kind == "cross"] or near
        first, last = crossed[0], crossed[-1]
    query = next(site for site in list_sites(model, part="query") if site.layer == first.layer)
    return query, last


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
    for address in model.addresses():
        resolution = -(-model.latent_side // address.scale)
        key = (address.stage, resolution, address.kind, address.part)
        sites.append(Site(index=len(sites), resolution=resolution, nth=counts[key], **address._asdict()))
        counts[key] += 1
    if not any(site.kind in ATTENTION for site in sites):
        raise SiteError(
            f"{model.name}: no attention layer was recognised in {type(model.denoiser).__name__}; "
            "this diffusers release names its layers differently"
        )
    return sites
