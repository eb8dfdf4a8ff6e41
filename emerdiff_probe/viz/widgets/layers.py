"""The layers explorer: what a site holds at a timestep, and which cells it takes for alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image

from emerdiff_probe.images import colour_labels, heatmap, load_image
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import pca_view
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.viz.figures import label_colours
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    cell_at,
    data_uri,
    described,
    hold_features,
    label_map,
    on_change,
    on_hover,
    on_pixels,
    picture,
    point_at,
    pointer,
    probing_config,
    row_of,
    show_cells,
)
from emerdiff_probe.viz.widgets.figure import PANEL, panels
from emerdiff_probe.viz.widgets.worker import MODELS_IN_USE

TITLES = ("image", "three main components", "k-means clusters", "similarity to the cell")


class LayersExplorer(Explorer):
    """See `explore_layers`.

    Attributes:
        site, timestep, clusters, row, column: the controls.
        figure: image, principal components, clusters and cosine similarity.
    """

    def __init__(self, model: ProbeModel, image: np.ndarray, config: EmerDiffConfig) -> None:
        super().__init__()
        self._model, self._image, self._config = model, image, config
        height, width = image.shape[:2]
        clustered, _ = check_config(model, config, *model.working_size(height, width))
        grid = model.schedule(config.inversion.steps).timesteps
        self._start = grid[0]
        self._pointing = False
        self._shown: _Answer | None = None
        sites = [site.name for site in list_sites(model) if site.holds_cells]
        self.site = described(widgets.Dropdown, "site", options=sites, value=clustered[0].name)
        self.timestep = described(
            widgets.SelectionSlider, "timestep", options=sorted(grid), value=config.features.timesteps[0]
        )
        self.clusters = described(widgets.IntSlider, "clusters K", min=1, max=40, value=config.given_clusters)
        self.row = described(widgets.IntSlider, "row of cells", min=0, max=0)
        self.column = described(widgets.IntSlider, "column of cells", min=0, max=0)
        self._fit_sliders()
        self.row.value, self.column.value = self.row.max // 2, self.column.max // 2

        self.figure = panels(TITLES, height, width, beside=60)
        blank = np.zeros(self._grid, int)
        similarity = {"zmin": -1, "zmax": 1, "colorscale": "RdBu", "colorbar": {"title": "cosine", "thickness": 12}}
        self.figure.add_trace(picture(image), 1, 1)
        self.figure.add_trace(picture(np.full_like(image, 255)), 1, 2)
        self.figure.add_trace(label_map(blank, height, width, "cluster"), 1, 3)
        self.figure.add_heatmap(
            z=blank, **on_pixels(blank.shape, height, width), **similarity, hovertemplate="%{z:.2f}<extra></extra>",
            row=1, col=4,
        )  # fmt: skip
        for panel in range(1, len(TITLES) + 1):
            self.figure.add_trace(pointer(), 1, panel)
        on_hover(self.figure.data[:4], self._point)

        self.site.observe(lambda _: self._fit_sliders(), "value")
        controls = (self.site, self.timestep, self.clusters, self.row, self.column)
        on_change(controls, self._refresh)
        self.children = [row_of(*controls), self.figure, self._page(self.figure), self.status]
        self._refresh()

    @property
    def _grid(self) -> tuple[int, int]:
        working = self._model.working_size(*self._image.shape[:2])
        latent_height, latent_width = (side // self._model.factor for side in working)
        return find_site(self._model, self.site.value).grid(latent_height, latent_width)

    @cached_property
    def _probed(self) -> ProbedImage:
        with MODELS_IN_USE:
            return self._config.probe(self._model, self._image, start=self._start)

    def _fit_sliders(self) -> None:
        rows, columns = self._grid
        self.row.max, self.column.max = rows - 1, columns - 1
        self.clusters.max = min(40, rows * columns)

    def _point(self, x: float, y: float) -> None:
        cell = cell_at(x, y, self._grid, *self._image.shape[:2])
        if cell != (self.row.value, self.column.value):
            self._pointing = True  # one question for both sliders
            self.row.value, self.column.value = cell
            self._pointing = False
            self._refresh()

    def _refresh(self) -> None:
        if self._pointing:
            return
        asked = _Asked(self.site.value, self.timestep.value, self.clusters.value, (self.row.value, self.column.value))
        self._ask(lambda: self._answer(asked), self._show)

    def _answer(self, asked: _Asked) -> _Answer:
        site = find_site(self._model, asked.site)
        probed = self._probed
        hold_features(probed, [site], [asked.timestep])
        grid, features = probed.grid(site), probed.features(site, asked.timestep)
        cell = min(asked.cell[0], grid[0] - 1) * grid[1] + min(asked.cell[1], grid[1] - 1)
        similarity = torch.nn.functional.cosine_similarity(features, features[cell][None]).reshape(grid).numpy()
        shown = self._shown
        if shown is not None and asked[:3] == shown.asked[:3]:  # another cell alone, as while one hovers
            return shown._replace(asked=asked, similarity=similarity)
        labels = probed.low_resolution_masks(site, asked.clusters, asked.timestep)
        return _Answer(asked, pca_view(features, grid), labels, similarity)

    def _show(self, answer: _Answer) -> None:
        asked, (height, width) = answer.asked, self._image.shape[:2]
        moved = self._shown is not None and answer.labels is self._shown.labels  # another cell alone
        grid = answer.labels.shape
        place = on_pixels(grid, height, width)
        with self.figure.batch_update():
            _, components, clusters, similarity, *pointers = self.figure.data
            if not moved:
                components.source = data_uri(show_cells(answer.components, height, width))
                clusters.update(z=answer.labels, **place, **label_colours(asked.clusters))
            similarity.update(z=answer.similarity, **place)
            for trace in pointers:
                x, y = place["x0"] + asked.cell[1] * place["dx"], place["y0"] + asked.cell[0] * place["dy"]
                point_at(trace, x, y, PANEL / max(grid))
            titles = self.figure.layout.annotations
            titles[2].text = f"k-means, K = {asked.clusters}"
            titles[3].text = f"similarity to cell ({asked.cell[0]}, {asked.cell[1]})"
        self._shown = answer

    def _pictures(self) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        _, _, clusters, similarity, *_ = self.figure.data
        shown = colour_labels(np.array(clusters.z)), heatmap(np.array(similarity.z) + 1, 2)
        titles = self.figure.layout.annotations
        size = self._image.shape[:2]
        return [self._image, *(show_cells(each, *size) for each in shown)], ["image", titles[2].text, titles[3].text]


class _Asked(NamedTuple):
    site: str
    timestep: int
    clusters: int
    cell: tuple[int, int]


class _Answer(NamedTuple):
    asked: _Asked
    components: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray


def explore_layers(
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    *,
    config: EmerDiffConfig | None = None,
) -> LayersExplorer:
    """Look at the features of any site and timestep: as colours, as clusters, and as likeness to the cell pointed at.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image or an array; see `load_image`.
        config: where to start; the model's own settings on a grid of 20 steps when None.

    Raises:
        InputError, SiteError, TimestepError: as in `segment`.
    """
    return LayersExplorer(model, load_image(image), probing_config(model, config))
