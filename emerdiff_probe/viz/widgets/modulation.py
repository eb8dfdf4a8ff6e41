"""The modulation explorer: push a region of the grid, and see which pixels answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from skimage.measure import points_in_poly

from emerdiff_probe.errors import ModelError
from emerdiff_probe.images import heatmap, load_image
from emerdiff_probe.interventions import InjectAttention, Placement
from emerdiff_probe.models.addresses import AttentionKind
from emerdiff_probe.models.pixels import to_pixels
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import ResponseAtlas
from emerdiff_probe.reading.correspondence import Modulation, difference_map, modulated_images
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    cell_at,
    data_uri,
    described,
    on_change,
    on_pixels,
    picture,
    probing_config,
    require_atlas_of,
    row_of,
    show_cells,
)
from emerdiff_probe.viz.widgets.figure import PANEL, Click, Outline, panels
from emerdiff_probe.viz.widgets.worker import MODELS_IN_USE

TITLES = ("cells to push", "I-: pushed down", "I+: pushed up", "difference")
PUSHED, ANOTHER = "rgba(230, 159, 0, 0.75)", "rgba(255, 255, 255, 0.45)"
"""Colours of cells; transparent by themselves, for plotly changes the opacity of points that it takes for selected."""
STEPS_A_DECADE = (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)
INJECTIONS: dict[str, tuple[AttentionKind, ...]] = {
    "self and cross": ("self", "cross"),
    "self": ("self",),
    "cross": ("cross",),
    "joint": ("joint",),
    "self and joint": ("self", "joint"),
    "none": (),
}


class ModulationExplorer(Explorer):
    """See `explore_modulation`.

    Attributes:
        cells: numbers of the chosen cells in reading order, rising.
        site, timestep, strength, placement, injection: the controls of the modulation.
        row, column, size: controls that choose a square of cells.
        figure: the image with its cells, I-, I+ and the difference map.
    """

    def __init__(
        self, model: ProbeModel, image: np.ndarray, config: EmerDiffConfig, atlas: ResponseAtlas | None
    ) -> None:
        super().__init__()
        height, width = model.working_size(*image.shape[:2])
        check_config(model, config, height, width)
        self._model, self._config, self._atlas = model, config, atlas
        self._image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        grid = model.schedule(config.inversion.steps).timesteps
        start = config.modulation
        self._start = grid[0]
        if atlas is not None:
            require_atlas_of(atlas, self._probed)
        sites = [site.name for site in list_sites(model, part="output") if site.layer]
        given = {tuple(kinds): name for name, kinds in INJECTIONS.items()} | {("cross", "self"): "self and cross"}
        self.site = described(widgets.Dropdown, "attention layer", options=sites, value=_layer(model, start.layer))
        self.timestep = described(widgets.SelectionSlider, "timestep", options=sorted(grid), value=start.modulate_at)
        self.strength = described(
            widgets.SelectionSlider, "strength", options=strengths_around(start.strength), value=start.strength
        )
        self.placement = described(
            widgets.ToggleButtons, "output projection", options=["after", "before"], value=start.placement
        )
        self.injection = described(
            widgets.Dropdown, "inject attention", options=list(INJECTIONS), value=given[start.injection]
        )
        self.row = described(widgets.IntSlider, "row of cells", min=0, max=0)
        self.column = described(widgets.IntSlider, "column of cells", min=0, max=0)
        self.size = described(widgets.IntSlider, "cells a side", min=1, max=1)
        self.placement.style.button_width = "5em"
        self.cells: tuple[int, ...] = ()
        self._choosing = False
        self._shown: _Answer | None = None
        self._newest: _Asked | None = None
        self._fit_sliders()
        rows, columns = self._grid
        self.row.value, self.column.value, self.size.value = rows // 2, columns // 2, max(1, rows // 8)

        self.figure = panels(TITLES, height, width, beside=60)
        white = np.full_like(self._image, 255)
        for panel, shown in enumerate((self._image, white, white), start=1):
            self.figure.add_trace(picture(shown), 1, panel)
        self.figure.add_heatmap(
            z=np.zeros((height, width)), zmin=0, colorscale="Viridis", hovertemplate="distance %{z:.3f}<extra></extra>",
            colorbar={"title": "RGB<br>distance", "thickness": 12}, row=1, col=4,
        )  # fmt: skip
        self.figure.add_trace(_cell_centres(), 1, 1)
        self.figure.layout.dragmode = "lasso"
        self._place_cells()
        self.figure.observe(self._forget_outlines, "_js2py_relayout")

        self.site.observe(lambda _: self._change_grid(), "value")
        on_change((self.row, self.column, self.size), self._choose_square)
        on_change((self.site, self.timestep, self.strength, self.placement, self.injection), self._refresh)
        self.children = [
            row_of(self.site, self.timestep, self.strength),
            row_of(self.placement, self.injection),
            row_of(self.row, self.column, self.size),
            self.figure,
            self._page(self.figure, self._click, self._draw),
            widgets.HTML("Draw around cells or click one (with Shift: add them, or remove one), or use the sliders."),
            self.status,
        ]
        self._choose_square()

    @property
    def _grid(self) -> tuple[int, int]:
        height, width = (side // self._model.factor for side in self._image.shape[:2])
        return find_site(self._model, self.site.value).grid(height, width)

    @cached_property
    def _probed(self) -> ProbedImage:
        with MODELS_IN_USE:
            return self._config.probe(self._model, self._image, start=self._start)

    def choose(self, cells: tuple[int, ...]) -> None:
        """Push these cells, by their numbers in reading order."""
        self.cells = tuple(sorted(set(cells)))
        self._show_cells()
        self._refresh()

    def _show_cells(self) -> None:
        """Cells that are pushed are orange; which points plotly takes for selected is not seen."""
        pushed = np.zeros(self._grid[0] * self._grid[1], bool)
        pushed[[cell for cell in self.cells if cell < pushed.size]] = True
        marker = self.figure.data[-1].marker
        with self.figure.batch_update():
            marker.color = np.where(pushed, PUSHED, ANOTHER).tolist()
            marker.size = np.where(pushed, 0.8 * PANEL / max(self._grid), 5).tolist()

    def _fit_sliders(self) -> None:
        rows, columns = self._grid
        self.row.max, self.column.max, self.size.max = rows - 1, columns - 1, min(rows, columns)

    def _change_grid(self) -> None:
        """The same part of the picture on the grid of another layer."""
        before = self.row.max + 1
        rows, _ = self._grid
        if rows == before:
            return
        row, column, size = (slider.value * rows // before for slider in (self.row, self.column, self.size))
        self._choosing = True
        self._fit_sliders()
        self.row.value, self.column.value, self.size.value = row, column, max(1, size)
        self._choosing = False
        self._place_cells()
        self._choose_square()

    def _place_cells(self) -> None:
        height, width = self._image.shape[:2]
        rows, columns = np.mgrid[: self._grid[0], : self._grid[1]].reshape(2, -1)
        place = on_pixels(self._grid, height, width)
        with self.figure.batch_update():
            centres = self.figure.data[-1]
            centres.x, centres.y = place["x0"] + columns * place["dx"], place["y0"] + rows * place["dy"]
            centres.text = [f"cell ({row}, {column})" for row, column in zip(rows, columns, strict=True)]

    def _choose_square(self) -> None:
        if self._choosing:
            return
        rows, columns = self._grid
        top, left, size = self.row.value, self.column.value, self.size.value
        self.choose(
            tuple(
                row * columns + column
                for row in range(top, min(top + size, rows))
                for column in range(left, min(left + size, columns))
            )
        )

    def _click(self, click: Click) -> None:
        if click.panel == 1:
            row, column = cell_at(click.x, click.y, self._grid, *self._image.shape[:2])
            clicked = {row * self._grid[1] + column}
            self.choose(tuple(set(self.cells) ^ clicked if click.shift else clicked))

    def _draw(self, outline: Outline) -> None:
        """Push the cells inside an outline; with Shift, together with those that are pushed."""
        if outline.panel == 1:
            centres = self.figure.data[-1]
            corners = np.stack([outline.x, outline.y], axis=1)
            inside = np.flatnonzero(points_in_poly(np.stack([centres.x, centres.y], axis=1), corners)).tolist()
            if inside:
                self.choose((*self.cells, *inside) if outline.shift else tuple(inside))

    def _forget_outlines(self, change: Any) -> None:
        """Take plotly's drawing of an outline off the page once it is told: what is orange is what is pushed."""
        if ((change["new"] or {}).get("relayout_data") or {}).get("selections"):
            self.figure.clear_selections()

    def _refresh(self) -> None:
        asked = _Asked(
            self.site.value,
            self.timestep.value,
            self.strength.value,
            self.placement.value,
            INJECTIONS[self.injection.value],
            self.cells,
        )
        if max(asked.cells, default=0) < self._grid[0] * self._grid[1]:  # else the square moves to this grid first
            self._newest = asked
            if self._atlas is not None and self._atlas.holds(self._modulation(asked), self._probed.trajectory):
                self._show(self._sum(self._atlas, asked), "the atlas' sum, before it is run")
            self._ask(lambda: self._answer(asked), self._show)

    def _sum(self, atlas: ResponseAtlas, asked: _Asked) -> _Answer:
        """The answer by adding up those to the single cells: the pictures are a response away from the unchanged."""
        response = atlas.respond(_mask(asked.cells, atlas.grid))
        with MODELS_IN_USE:
            unchanged = self._probed.reconstruction
        minus, plus = unchanged - response, unchanged + response
        return _Answer(asked, minus[0], plus[0], difference_map(minus, plus)[0].numpy())

    def _modulation(self, asked: _Asked) -> Modulation:
        return Modulation(
            find_site(self._model, asked.site),
            asked.strength,
            asked.timestep,
            asked.placement,
            InjectAttention(asked.injection) if asked.injection else None,
        )

    def _answer(self, asked: _Asked) -> _Answer:
        modulation = self._modulation(asked)
        with MODELS_IN_USE:
            mask = _mask(asked.cells, self._probed.grid(modulation.site))
            minus, plus = modulated_images(self._model, self._probed.trajectory, mask, modulation)
        require_finite(minus, plus, asked.strength)
        return _Answer(asked, minus[0], plus[0], difference_map(minus, plus)[0].numpy())

    def _show(self, answer: _Answer, note: str = "") -> None:
        if self._atlas is not None and answer.asked != self._newest:
            return  # the newest one may be there already, from the atlas
        asked, self._shown = answer.asked, answer
        with self.figure.batch_update():
            _, minus, plus, difference, _ = self.figure.data
            minus.source, plus.source = data_uri(to_pixels(answer.minus)), data_uri(to_pixels(answer.plus))
            difference.update(z=answer.difference, zmax=max(float(answer.difference.max()), 1e-6))
            titles = self.figure.layout.annotations
            titles[0].text = f"cells to push: {len(asked.cells)}"
            titles[1].text, titles[2].text = f"I-: strength -{asked.strength:.3g}", f"I+: strength {asked.strength:.3g}"
            titles[3].text = note or f"difference at timestep {asked.timestep}"

    def _pictures(self) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        if self._shown is None:
            return (), ()
        asked, minus, plus, difference = self._shown
        pushed = np.isin(np.arange(self._grid[0] * self._grid[1]), asked.cells).reshape(self._grid)
        cells = show_cells(np.where(pushed[..., None], (230, 159, 0), 255).astype(np.uint8), *self._image.shape[:2])
        chosen = np.where(cells == 255, self._image, self._image // 4 + cells // 4 * 3)
        pictures = [chosen, to_pixels(minus), to_pixels(plus), heatmap(difference, float(difference.max()))]
        return pictures, [title.text for title in self.figure.layout.annotations]


def strengths_around(strength: float) -> list[tuple[str, float]]:
    """Strengths to choose from, by name: round ones, ten a decade for two decades to each side, and this one."""
    middle = round(np.log10(strength))
    round_ones = {float(f"{step}e{decade}") for decade in range(middle - 2, middle + 2) for step in STEPS_A_DECADE}
    return [(f"{value:g}", value) for value in sorted(round_ones | {float(f"1e{middle + 2}"), strength})]


def require_finite(minus: torch.Tensor, plus: torch.Tensor, strength: float) -> None:
    """Raise ModelError where pictures hold NaN or infinite values."""
    broken = ~(torch.isfinite(minus) & torch.isfinite(plus)).all(1)
    if broken.any():
        raise ModelError(
            f"strength {strength:g} drives {100 * broken.float().mean():.0f}% of the pixels to NaN or infinity; "
            "accepted: a smaller strength, or a model loaded with dtype='float32'"
        )


class _Asked(NamedTuple):
    site: str
    timestep: int
    strength: float
    placement: Placement
    injection: tuple[AttentionKind, ...]
    cells: tuple[int, ...]


class _Answer(NamedTuple):
    asked: _Asked
    minus: torch.Tensor
    plus: torch.Tensor
    difference: np.ndarray


def _mask(cells: Sequence[int], grid: tuple[int, int]) -> torch.Tensor:
    """The mask (1, grid_height, grid_width) of these cells."""
    mask = torch.zeros(1, *grid)
    mask.view(-1)[list(cells)] = 1
    return mask


def _cell_centres() -> go.Scatter:
    return go.Scatter(
        mode="markers",
        marker={"symbol": "square", "opacity": 1, "line": {"width": 1, "color": "rgba(0, 0, 0, 0.6)"}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 1}},
        hovertemplate="%{text}<extra></extra>",
    )


def _layer(model: ProbeModel, name: str) -> str:
    """Name of the output of the attention layer that a site belongs to."""
    site = find_site(model, name)
    return next(
        other.name for other in list_sites(model, part="output", kind=site.kind) if other.layer == site.attention
    )


def explore_modulation(
    model: ProbeModel,
    image: str | Path | Image.Image | np.ndarray,
    *,
    config: EmerDiffConfig | None = None,
    atlas: ResponseAtlas | None = None,
) -> ModulationExplorer:
    """Push any region of an attention layer's grid while the image is denoised: I-, I+ and their difference map.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image or an array; see `load_image`.
        config: where to start; the model's own settings on a grid of 20 steps when None.
        atlas: of the image, from `response_atlas` or a segmentation explorer's `atlas`. Pushes by its own settings are
            shown at once as the sum of its answers, and then as they are run.

    Raises:
        InputError, SiteError, TimestepError: as in `segment`; or an atlas of another model or of another image.
    """
    return ModulationExplorer(model, load_image(image), probing_config(model, config), atlas)
