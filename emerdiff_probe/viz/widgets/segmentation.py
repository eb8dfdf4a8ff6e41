"""The segmentation explorer: any number of masks from a response atlas at once, named and merged by hand."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.colors import label_rgb

from emerdiff_probe.errors import ProbeError
from emerdiff_probe.images import colour_labels, load_image, palette, write_names
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import ResponseAtlas, response_atlas
from emerdiff_probe.reading.correspondence import Readout
from emerdiff_probe.reading.features import finest_grid
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config, resolve_modulation
from emerdiff_probe.segmentation.presets import FAST
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.sites import find_site
from emerdiff_probe.viz.figures import label_colours
from emerdiff_probe.viz.naming import Naming
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    cell_at,
    described,
    hold_features,
    label_map,
    on_change,
    on_hover,
    picture,
    point_at,
    pointer,
    require_atlas_of,
    row_of,
    write_error,
)
from emerdiff_probe.viz.widgets.figure import Click, panels
from emerdiff_probe.viz.widgets.worker import MODELS_IN_USE, Progress, Worker

TITLES = ("image", "segments", "masks that compete for the pixel")
PICTURES = (0, 1)
"""Traces that show pixels; panels 1 and 2."""
COMPETITORS = 12
"""Bars at most: of more masks those that the pixel answers to most."""


class SegmentationExplorer(Explorer):
    """See `explore_segmentation`.

    Attributes:
        clusters, smoothing, row, column: controls of what is shown; row and column are those of the pinned pixel.
        segment, name, into, merge, undo, folder, export: controls that name, merge and save segments.
        labels: (height, width), the mask of every pixel; difference_maps: (mask, height, width).
        atlas: that answers are read from; None while it is being made, and answers are of the fast mode.
        naming: names and merges of the segments that are shown.
        figure: the image, the segments, and the difference values at the chosen pixel.
    """

    def __init__(
        self, model: ProbeModel, image: np.ndarray, config: EmerDiffConfig, atlas: ResponseAtlas | None, folder: str
    ) -> None:
        super().__init__()
        height, width = model.working_size(*image.shape[:2])
        sites, _ = check_config(model, config, height, width)
        self._model, self._image, self._config, self.atlas = model, image, config, atlas
        self._sites = sites
        self._height, self._width = height, width
        if atlas is not None:
            require_atlas_of(atlas, self._probed)
        rows, columns = finest_grid(sites, height // model.factor, width // model.factor)
        self.clusters = described(
            widgets.IntSlider, "clusters K", min=1, max=min(40, rows * columns), value=config.given_clusters
        )
        self.smoothing = described(
            widgets.FloatSlider, "smoothing (pixels)", min=0, max=20, step=0.5, value=config.smoothing
        )
        self.row = described(widgets.IntSlider, "pixel row", min=0, max=height - 1, value=height // 2)
        self.column = described(widgets.IntSlider, "pixel column", min=0, max=width - 1, value=width // 2)
        self.segment = described(widgets.Dropdown, "segment", options=[])
        self.name = described(widgets.Text, "its name", continuous_update=False)
        self.into = described(widgets.Dropdown, "merge into", options=[])
        self.merge = widgets.Button(description="merge", tooltip="make one segment of the two")
        self.undo = widgets.Button(description="undo", tooltip="take back the last name or merge", disabled=True)
        self.folder = described(widgets.Text, "folder", value=folder)
        self.export = widgets.Button(description="export labels", tooltip="write labels.png and names.json")
        self.outcome = widgets.HTML()
        self.made_with = widgets.HTML()
        self.labels = np.zeros((height, width), np.int64)
        self.difference_maps = np.zeros((1, height, width), np.float32)
        self._namings: dict[int, list[Naming]] = {}
        self._chosen = False

        self._small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        self.figure = panels(TITLES, height, width, beside=140)
        self.figure.add_trace(picture(self._small), 1, 1)
        self.figure.add_trace(label_map(self.labels, height, width, "segment"), 1, 2)
        self.figure.add_bar(orientation="h", hovertemplate="%{y}: %{x:.3f}<extra></extra>", row=1, col=3)
        for panel in (1, 2):
            self.figure.add_trace(pointer(), 1, panel)
        self.figure.add_trace(_shade(height, width), 1, 1)
        self.figure.update_xaxes(matches=None, visible=True, range=None, title="RGB distance", row=1, col=3)
        self.figure.update_yaxes(
            matches=None, scaleanchor=None, visible=True, range=None, autorange="reversed", side="right",
            type="category", dtick=1, row=1, col=3,
        )  # fmt: skip
        for trace in PICTURES:
            on_hover([self.figure.data[trace]], self._preview)
            self.figure.data[trace].on_unhover(lambda *_: self._show_pixel(self.row.value, self.column.value))

        on_change((self.clusters, self.smoothing), self._refresh)
        on_change((self.row, self.column), lambda: self._show_pixel(self.row.value, self.column.value))
        self.segment.observe(lambda _: self._choose(), "value")
        self.name.observe(lambda _: self._rename(), "value")
        self.merge.on_click(lambda _: self._merge())
        self.undo.on_click(lambda _: self._undo())
        self.export.on_click(lambda _: self._export())
        self.children = [
            row_of(self.clusters, self.smoothing),
            self.made_with,
            row_of(self.row, self.column),
            self.figure,
            self._page(self.figure, self._click),
            widgets.HTML("Hover to see which masks compete for a pixel; click to choose its segment."),
            row_of(self.segment, self.name, self.into, self.merge, self.undo),
            row_of(self.folder, self.export, self.outcome),
            self.status,
        ]
        self._refresh()
        if atlas is None:
            self._maker = Worker(self._tell_of_atlas, background=True)
            self._maker.ask(self._make_atlas, self._take_atlas)
        else:
            self.made_with.value = _made_with(atlas)

    @cached_property
    def _probed(self) -> ProbedImage:
        with MODELS_IN_USE:
            return self._config.probe(self._model, self._image)

    def _make_atlas(self) -> ResponseAtlas:
        """The answers to all cells, a few at a time, so that other questions are answered between."""
        trajectory = self._probed.trajectory
        modulation = resolve_modulation(self._model, self._config.change(readout=Readout()))
        report = partial(self._maker.hand_over, self._count)
        return response_atlas(
            self._model, trajectory, modulation, progress=False, around=lambda: MODELS_IN_USE, report=report
        )

    def _count(self, done: int, cells: int) -> None:
        self.made_with.value = (
            f"Fast mode, until the atlas is there: <progress value='{done}' max='{cells}'></progress> "
            f"{done} of {cells} cells"
        )

    def _take_atlas(self, atlas: ResponseAtlas) -> None:
        self.atlas = atlas
        self.made_with.value = _made_with(atlas)
        self._refresh()

    def _tell_of_atlas(self, progress: Progress) -> None:
        if progress.error is not None:
            self.made_with.value = write_error(progress.error)
        elif progress.busy:
            self._count(0, 1)

    @property
    def naming(self) -> Naming:
        """Names and merges for as many masks as are shown; another K has its own."""
        return self._history[-1]

    @property
    def _history(self) -> list[Naming]:
        masks = len(self.difference_maps)
        return self._namings.setdefault(masks, [Naming.fresh(masks)])

    def _at(self, x: float, y: float) -> tuple[int, int]:
        height, width = self._height, self._width
        return cell_at(x, y, (height, width), height, width)

    def _preview(self, x: float, y: float) -> None:
        self._show_pixel(*self._at(x, y))

    def _click(self, click: Click) -> None:
        """Pin the pixel and choose its segment, both by the place of the click itself."""
        if click.panel <= len(PICTURES):
            row, column = self._at(click.x, click.y)
            self.row.value, self.column.value = row, column
            self._chosen = True
            self.segment.value = self.naming.segment_of[self.labels[row, column]]
            self._show_pixel(row, column)
            self._show_chosen()

    def _refresh(self) -> None:
        clusters, smoothing = self.clusters.value, self.smoothing.value
        self._ask(lambda: self._answer(clusters, smoothing), self._show)

    def _answer(self, clusters: int, smoothing: float) -> _Answer:
        probed = self._probed
        timesteps, atlas = self._config.features.timesteps, self.atlas
        hold_features(probed, self._sites, timesteps)
        coarse = probed.low_resolution_masks(self._sites, clusters, timesteps)
        if atlas is not None:
            masks = probed.masks(coarse, find_site(self._model, atlas.settings["layer"]))
            maps = atlas.difference_maps(masks, smoothing=smoothing)
        else:
            modulation = resolve_modulation(self._model, self._config.change(**FAST))
            with MODELS_IN_USE:
                maps = probed.difference_maps(coarse, modulation, smoothing=smoothing)
        return _Answer(maps.numpy(), read_labels(maps, self._small, self._config.sharpen)[0])

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
        self._show_pixel(self.row.value, self.column.value)
        self._show_chosen()

    def _choose(self) -> None:
        self._chosen = self._chosen or self.segment.value != next(iter(self.naming.segments))
        self._show_name()
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Shade what is not in the chosen segment, once one has been chosen."""
        outside = self.naming.apply(self.labels) != self.segment.value
        self.figure.data[-1].z = (outside & self._chosen).astype(np.uint8)

    def _show_name(self) -> None:
        self.name.value = self.naming.segments.get(self.segment.value, "")

    def _show_pixel(self, row: int, column: int) -> None:
        segments, segment_of = self.naming.segments, self.naming.segment_of
        values = self.difference_maps[:, row, column]
        names = [segments[segment] for segment in segment_of]
        labels = [f"{name} (mask {mask})" if names.count(name) > 1 else name for mask, name in enumerate(names)]
        with self.figure.batch_update():
            _, fine, bars, *pointers, _ = self.figure.data
            most = np.sort(np.argsort(-values, kind="stable")[:COMPETITORS])
            bars.x, bars.y = values[most], [labels[mask] for mask in most]
            shades = palette(len(values))[np.array(segment_of)[most]]
            bars.marker.color = [label_rgb(tuple(shade)) for shade in shades.tolist()]
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
        self.outcome.value = write_error(error)

    def _pictures(self) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        segments = self.naming.apply(self.labels)
        named = write_names(colour_labels(segments), segments, self.naming.segments)
        return [self._small, named], ["image", f"{len(self.naming.segments)} segments"]


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


def _shade(height: int, width: int) -> go.Heatmap:
    """A trace that darkens pixels of value 1 and leaves those of value 0 as they are."""
    return go.Heatmap(
        z=np.zeros((height, width), np.uint8), zmin=0, zmax=1, showscale=False, hoverinfo="skip",
        colorscale=[[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0.6)"]],
    )  # fmt: skip


def explore_segmentation(
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    *,
    atlas: ResponseAtlas | None = None,
    config: EmerDiffConfig | None = None,
    folder: str | Path = "labels",
) -> SegmentationExplorer:
    """Segment by any number of masks and any smoothing, at once; name, merge and export by hand.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image or an array; see `load_image`.
        atlas: of the image, from `response_atlas`. Where there is none it is made in the background, which takes
            minutes; meanwhile answers are those of the fast mode.
        config: which features to cluster, what to push, and where to start; what it leaves open, and all when None, is
            the model's own (`EmerDiffConfig.for_atlas`).
        folder: where labels are exported to, unless another is typed in.

    Raises:
        InputError, SiteError, TimestepError: as in `segment`; or an atlas of another model or of another image.
    """
    settings = EmerDiffConfig.for_atlas(model, **(config or EmerDiffConfig()).options())
    return SegmentationExplorer(model, load_image(image), settings, atlas, str(folder))
