"""The comparison explorer: two segmentations of one image, under one pointer and one zoom."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np

from emerdiff_probe.images import colour_labels
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.viz.figures import label_colours
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    cell_at,
    described,
    label_map,
    on_change,
    on_hover,
    on_pixels,
    picture,
    point_at,
    pointer,
    require_same_size,
    row_of,
)
from emerdiff_probe.viz.widgets.figure import panels

VIEWS = ("segments", "low-resolution masks", "difference map of the mask at the pointer")


class ComparisonExplorer(Explorer):
    """See `compare`.

    Attributes:
        view, row, column: the controls.
        pointed: what both say about the chosen pixel.
        figure: the image and both segmentations.
    """

    def __init__(self, one: Segmentation, other: Segmentation) -> None:
        super().__init__()
        self._pair = one, other
        self._have_maps = one.maps is not None and other.maps is not None
        alike = self._have_maps and _units(one) == _units(other)
        self._top = max(float(result.difference_maps.max()) for result in self._pair) if alike else None
        height, width = one.labels.shape
        self.view = described(widgets.Dropdown, "show", options=VIEWS if self._have_maps else VIEWS[:-1])
        self.row = described(widgets.IntSlider, "pixel row", min=0, max=height - 1, value=height // 2)
        self.column = described(widgets.IntSlider, "pixel column", min=0, max=width - 1, value=width // 2)
        self.pointed = widgets.HTML()
        self.figure = panels(["image", *_titles(one, other)], height, width, beside=60)
        self.figure.add_trace(picture(one.image), 1, 1)
        for panel, result in enumerate(self._pair, start=2):
            self.figure.add_trace(label_map(result.labels, height, width, "mask"), 1, panel)
        for panel in (1, 2, 3):
            self.figure.add_trace(pointer(), 1, panel)
        on_hover(self.figure.data[:3], self._point)
        on_change((self.view, self.row, self.column), self._refresh)
        self.children = [
            row_of(self.view, self.row, self.column),
            self.figure,
            self._page(self.figure),
            self.pointed,
            widgets.HTML(_differences(one, other)),
            self.status,
        ]
        self._refresh()

    def _point(self, x: float, y: float) -> None:
        height, width = self._pair[0].labels.shape
        self.row.value, self.column.value = cell_at(x, y, (height, width), height, width)

    def _pictures(self) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        one, other = self._pair
        return [one.image, *(colour_labels(each.labels) for each in self._pair)], ["image", *_titles(one, other)]

    def _refresh(self) -> None:
        asked = self.view.value, self.row.value, self.column.value
        self._ask(lambda: asked, self._show)

    def _show(self, asked: tuple[str, int, int]) -> None:
        view, row, column = asked
        masks = [int(result.labels[row, column]) for result in self._pair]
        with self.figure.batch_update():
            for trace, result, mask in zip(self.figure.data[1:3], self._pair, masks, strict=True):
                trace.update(**_drawn(result, view, mask, self._top))
            self.figure.data[2].update(showscale=view == VIEWS[2], colorbar={"title": _units(self._pair[1])})
            for trace in self.figure.data[3:]:
                point_at(trace, column, row)
        said = ", ".join(
            f"{html.escape(name)}: mask {mask}{_difference(result, mask, row, column)}"
            for name, mask, result in zip(_names(*self._pair), masks, self._pair, strict=True)
        )
        self.pointed.value = f"<span role='status'>pixel ({row}, {column}) · {said}</span>"


def _drawn(result: Segmentation, view: str, mask: int, top: float | None) -> dict[str, Any]:
    """Heatmap settings for one view of a segmentation; maps up to `top`, or each up to its own highest value."""
    height, width = result.labels.shape
    if view == VIEWS[2]:
        values = result.difference_maps[mask]
        highest = float(result.difference_maps.max()) if top is None else top
        colours: dict[str, Any] = {"zmin": 0, "zmax": highest, "colorscale": "Viridis"}
        hover = f"mask {mask}: %{{z:.3f}} ({_units(result)})<extra></extra>"
    else:
        values = result.labels if view == VIEWS[0] else result.low_resolution_masks
        colours, hover = label_colours(result.masks), "mask %{z}<extra></extra>"
    return {"z": values, "hovertemplate": hover, **colours, **on_pixels(values.shape, height, width)}


def _difference(result: Segmentation, mask: int, row: int, column: int) -> str:
    """The value of a mask's map at a pixel, in words; nothing of a result without maps."""
    if result.maps is None:
        return ""
    values = result.maps[mask]
    height, width = result.labels.shape
    value = values[row * values.shape[0] // height, column * values.shape[1] // width]
    return f" ({_units(result)} {value:.3f})"


def _units(result: Segmentation) -> str:
    """What the values of difference maps are."""
    return "latent distance" if result.config.readout.compare == "latents" else "RGB distance"


def _names(one: Segmentation, other: Segmentation) -> tuple[str, str]:
    """What to call two segmentations: their models where these differ."""
    if one.fingerprint == other.fingerprint:
        return "one", "other"
    return f"one: {one.model}", f"other: {other.model}"


def _titles(one: Segmentation, other: Segmentation) -> tuple[str, str]:
    """Names with what is particular to each: the model, or else the first settings in which the two differ."""
    names = _names(one, other)
    if names != ("one", "other"):
        return names
    both = one.config.options(), other.config.options()
    differ = [name for name in both[0] if both[0][name] != both[1].get(name)][:2]
    told = [", ".join(f"{name} {options.get(name)}" for name in differ) for options in both]
    return (f"one: {told[0]}", f"other: {told[1]}") if differ else names


def _differences(one: Segmentation, other: Segmentation) -> str:
    """A table of the settings in which two segmentations differ."""
    settings = [
        {"model": f"{result.model} ({result.fingerprint})", **result.config.options()} for result in (one, other)
    ]
    rows = [
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td><td>{html.escape(str(settings[1][name]))}</td></tr>"
        for name, value in settings[0].items()
        if value != settings[1][name]
    ]
    if not rows:
        return "Both were made by the same model with the same settings."
    return f"<table><tr><th>setting</th><th>one</th><th>other</th></tr>{''.join(rows)}</table>"


def compare(one: Segmentation, other: Segmentation) -> ComparisonExplorer:
    """Look at two segmentations of one image side by side: by two settings, or by two models.

    Raises:
        InputError: segmentations of images of different sizes.
    """
    require_same_size(one.labels.shape, other.labels.shape, "segmentations to compare")
    return ComparisonExplorer(one, other)
