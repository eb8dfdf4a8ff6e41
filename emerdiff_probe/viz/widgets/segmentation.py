"""The segmentation explorer: any number of masks from a response atlas at once, named and merged by hand."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from PIL import Image
from plotly.colors import label_rgb

from emerdiff_probe.errors import InputError, ProbeError
from emerdiff_probe.images import palette
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import ResponseAtlas
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.sites import find_site
from emerdiff_probe.viz.figures import label_colours
from emerdiff_probe.viz.naming import Naming
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    cell_at,
    described,
    label_map,
    on_change,
    on_hover,
    picture,
    point_at,
    pointer,
    require_same_size,
    row_of,
    told,
)
from emerdiff_probe.viz.widgets.figure import PANEL, Click, Clicks, panels

TITLES = ("image", "segments", "masks that compete for the pixel")
PICTURES = (0, 1)
"""Traces that show pixels."""


class SegmentationExplorer(Explorer):
    """See `explore_segmentation`.

    Attributes:
        clusters, smoothing, row, column: controls of what is shown.
        segment, name, into, merge, undo, folder, export: controls that name, merge and save segments.
        labels: (height, width), the mask of every pixel; difference_maps: (mask, height, width).
        naming: names and merges of the segments that are shown.
        figure: the image, the segments, and the difference values at the chosen pixel.
    """

    def __init__(self, atlas: ResponseAtlas, probed: ProbedImage, config: EmerDiffConfig, folder: str) -> None:
        super().__init__()
        self._atlas, self._probed, self._config = atlas, probed, config
        self._layer = find_site(probed.model, atlas.settings["layer"])
        self._site = find_feature_sites(probed.model, config)
        height, width = atlas.responses.shape[2:]
        self._height, self._width = height, width
        rows, columns = probed.grid(self._site)
        self.clusters = described(
            widgets.IntSlider, "clusters K", min=1, max=min(40, rows * columns), value=config.given_clusters
        )
        self.smoothing = described(
            widgets.FloatSlider, "smoothing (pixels)", min=0, max=20, step=0.5, value=config.smoothing
        )
        self.row = described(widgets.IntSlider, "row", min=0, max=height - 1, value=height // 2)
        self.column = described(widgets.IntSlider, "column", min=0, max=width - 1, value=width // 2)
        self.segment = described(widgets.Dropdown, "segment", options=[])
        self.name = described(widgets.Text, "its name", continuous_update=False)
        self.into = described(widgets.Dropdown, "merge into", options=[])
        self.merge = widgets.Button(description="merge", tooltip="make one segment of the two")
        self.undo = widgets.Button(description="undo", tooltip="take back the last name or merge", disabled=True)
        self.folder = described(widgets.Text, "folder", value=folder)
        self.export = widgets.Button(description="export labels", tooltip="write labels.png and names.json")
        self.outcome = widgets.HTML()
        self.labels = np.zeros((height, width), np.int64)
        self.difference_maps = np.zeros((1, height, width), np.float32)
        self._namings: dict[int, list[Naming]] = {}

        shown = np.array(Image.fromarray(probed.image).resize((width, height), Image.Resampling.BILINEAR))
        self.figure = panels(TITLES, height, width)
        self.figure.add_trace(picture(shown), 1, 1)
        self.figure.add_trace(label_map(self.labels, height, width, "segment"), 1, 2)
        self.figure.add_bar(orientation="h", hovertemplate="%{y}: %{x:.3f}<extra></extra>", row=1, col=3)
        for panel in (1, 2):
            self.figure.add_trace(pointer(), 1, panel)
        self.figure.update_xaxes(matches=None, visible=True, range=None, title="RGB distance", row=1, col=3)
        self.figure.update_yaxes(
            matches=None, scaleanchor=None, visible=True, range=None, autorange="reversed", side="right", row=1, col=3
        )
        self.figure.layout.width, self.figure.layout.margin.r = 3 * PANEL + 140, 120
        on_hover([self.figure.data[trace] for trace in PICTURES], self._point)

        on_change((self.clusters, self.smoothing), self._refresh)
        on_change((self.row, self.column), self._show_pixel)
        self.segment.observe(lambda _: self._show_name(), "value")
        self.name.observe(lambda _: self._rename(), "value")
        self.merge.on_click(lambda _: self._merge())
        self.undo.on_click(lambda _: self._undo())
        self.export.on_click(lambda _: self._export())
        self.children = [
            row_of(self.clusters, self.smoothing),
            widgets.HTML(_made_with(atlas)),
            row_of(self.row, self.column),
            self.figure,
            Clicks(self._click),
            row_of(self.segment, self.name, self.into, self.merge, self.undo),
            row_of(self.folder, self.export, self.outcome),
            self.status,
        ]
        self._refresh()

    @property
    def naming(self) -> Naming:
        """Names and merges for as many masks as are shown; another K has its own."""
        return self._history[-1]

    @property
    def _history(self) -> list[Naming]:
        masks = len(self.difference_maps)
        return self._namings.setdefault(masks, [Naming.fresh(masks)])

    def _point(self, x: float, y: float) -> None:
        height, width = self._height, self._width
        self.row.value, self.column.value = cell_at(x, y, (height, width), height, width)

    def _click(self, click: Click) -> None:
        if click.trace in PICTURES:
            self._point(click.x, click.y)
            self.segment.value = self.naming.segment_of[self.labels[self.row.value, self.column.value]]

    def _refresh(self) -> None:
        clusters, smoothing = self.clusters.value, self.smoothing.value
        self._ask(lambda: self._answer(clusters, smoothing), self._show)

    def _answer(self, clusters: int, smoothing: float) -> _Answer:
        coarse = self._probed.low_resolution_masks(self._site, clusters, self._config.features.timesteps)
        maps = self._atlas.difference_maps(self._probed.masks(coarse, self._layer), smoothing=smoothing)
        return _Answer(maps.numpy(), assign(maps).numpy())

    def _show(self, answer: _Answer) -> None:
        self.difference_maps, self.labels = answer
        self._show_segments()

    def _show_segments(self) -> None:
        masks, segments = len(self.difference_maps), self.naming.segments
        options = [(name, number) for number, name in segments.items()]
        chosen, into = self.segment.value, self.into.value
        self.segment.options = self.into.options = options
        self.segment.value = chosen if chosen in segments else options[0][1]
        self.into.value = into if into in segments else options[-1][1]
        self.undo.disabled = len(self._history) == 1
        with self.figure.batch_update():
            self.figure.data[1].update(z=self.naming.apply(self.labels), **label_colours(masks))
            self.figure.layout.annotations[1].text = f"{len(segments)} segments"
        self._show_name()
        self._show_pixel()

    def _show_name(self) -> None:
        self.name.value = self.naming.segments.get(self.segment.value, "")

    def _show_pixel(self) -> None:
        row, column = self.row.value, self.column.value
        segments, segment_of = self.naming.segments, self.naming.segment_of
        values = self.difference_maps[:, row, column]
        names = [segments[segment] for segment in segment_of]
        labels = [f"{name} (mask {mask})" if names.count(name) > 1 else name for mask, name in enumerate(names)]
        with self.figure.batch_update():
            _, fine, bars, *pointers = self.figure.data
            bars.x, bars.y = values, labels
            bars.marker.color = [label_rgb(tuple(shade)) for shade in palette(len(values))[list(segment_of)].tolist()]
            fine.hovertemplate = f"segment %{{z}}<extra>{names[self.labels[row, column]]}</extra>"
            for trace in pointers:
                point_at(trace, column, row)
            self.figure.layout.annotations[2].text = f"pixel ({row}, {column}): {names[self.labels[row, column]]}"

    def _rename(self) -> None:
        segment, name = self.segment.value, self.name.value
        if segment is not None and name != self.naming.segments[segment]:
            self._change(lambda: self.naming.rename(segment, name))

    def _merge(self) -> None:
        segment, into = self.segment.value, self.into.value
        self._change(lambda: self.naming.merge(segment, into))

    def _change(self, change: Callable[[], Naming]) -> None:
        """Take a change of names; a refused one is told under the controls."""
        try:
            self._history.append(change())
            self.outcome.value = ""
        except ProbeError as error:
            self._refuse(error)
        self._show_segments()

    def _undo(self) -> None:
        if len(self._history) > 1:
            self._history.pop()
        self._show_segments()

    def _export(self) -> None:
        try:
            folder = self.naming.save(self.labels, self.folder.value)
        except (ProbeError, OSError) as error:
            self._refuse(error)
        else:
            self.outcome.value = (
                f"<span role='status'>saved labels.png and names.json in {html.escape(str(folder))}</span>"
            )

    def _refuse(self, error: Exception) -> None:
        self.outcome.value = told(error)


class _Answer(NamedTuple):
    difference_maps: np.ndarray
    labels: np.ndarray


def _made_with(atlas: ResponseAtlas) -> str:
    """The settings that an atlas was made with, for reading."""
    made = atlas.settings
    injected = " and ".join(made["injection"]) or "no"
    return html.escape(
        f"Atlas: layer {made['layer']}, strength {made['strength']:g}, timestep {made['modulate_at']}, "
        f"{made['placement']} the output projection, {injected} attention injected."
    )


def explore_segmentation(
    atlas: ResponseAtlas,
    probed: ProbedImage,
    *,
    config: EmerDiffConfig | None = None,
    folder: str | Path = "labels",
) -> SegmentationExplorer:
    """Segment by any number of masks and any smoothing without running the model again; name, merge and export.

    Args:
        atlas: of the image, from `response_atlas`.
        probed: the same image by the same model.
        config: feature site and timestep to cluster, and where to start; the model's own settings when None.
        folder: where labels are exported to, unless another is typed in.

    Raises:
        InputError: an atlas of another model or of another size.
    """
    fingerprint = atlas.settings["fingerprint"]
    if fingerprint != probed.model.fingerprint:
        raise InputError(
            f"an atlas of model {atlas.settings['model']} ({fingerprint}) and an image probed by {probed.model.name} "
            f"({probed.model.fingerprint}); accepted: both of one model"
        )
    size = [side * probed.model.factor for side in probed.latents.shape[-2:]]
    require_same_size(atlas.responses.shape[2:], size, "atlas and probed image")
    return SegmentationExplorer(atlas, probed, (config or EmerDiffConfig()).resolve(probed.model), str(folder))
