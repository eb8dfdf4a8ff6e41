"""What all explorers share: a line that says how the work is going, pictures, panels, and cells under the pointer."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import HTML, DisplayHandle, display
from PIL import Image

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import contact_sheet
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.atlas import ResponseAtlas
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.sites import Site
from emerdiff_probe.viz.figures import label_colours
from emerdiff_probe.viz.widgets.figure import EXPLORER, Click, Figure, Look, Outline, Page, arrange, columns_that_fit
from emerdiff_probe.viz.widgets.worker import MODELS_IN_USE, Progress, Worker

STEPS, MODULATE_AT = 20, 301
"""A grid that answers soon, and its timestep next to the paper's 281."""
KEEPING = 1.0
"""Seconds between two pictures of the state."""
WIDE = "initial"
"""Descriptions are as wide as their text."""


class Explorer(widgets.VBox):
    """Controls over a picture; every change of a control asks for a new answer, of which the newest is shown.

    Attributes:
        status: what the page says about the work: working, ready, or the error.
        error: the last error of the work, with its traceback; None after a success.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.status = widgets.HTML()
        self._worker = Worker(self._tell)
        self._asked = False
        self._kept: DisplayHandle | None = None
        self._renewed, self._renewing = 0.0, False
        super().__init__()
        self.add_class(EXPLORER)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work is done; False when that takes longer than `timeout` seconds."""
        return self._worker.wait(timeout)

    def _page(
        self,
        figure: Figure,
        on_click: Callable[[Click], None] | None = None,
        on_outline: Callable[[Outline], None] | None = None,
    ) -> Page:
        """The page's half of an explorer with this figure, which follows the page's room and theme."""

        def fit(look: Look) -> None:
            with figure.batch_update():
                if look.background and look.foreground:
                    figure.update_layout(
                        paper_bgcolor=look.background, plot_bgcolor=look.background, font_color=look.foreground
                    )
                arrange(figure, columns_that_fit(figure, look.width))

        return Page(fit, on_click, on_outline)

    def _pictures(self) -> tuple[Sequence[np.ndarray], Sequence[str]]:
        """What is shown, as pictures of one size under titles, for readers of a saved notebook; may be none."""
        return (), ()

    def _ipython_display_(self, **_: Any) -> None:
        """Show the explorer, and below it, folded, a picture of its state that stays in a saved notebook."""
        display(self._repr_mimebundle_(), raw=True)
        self._kept = display(HTML(self._keepsake()), display_id=True)

    def _keepsake(self) -> str:
        pictures, titles = self._pictures()
        if not pictures:
            return ""
        shown = data_uri(np.array(contact_sheet([_small(each) for each in pictures], titles)))
        return (
            "<details><summary>its last state, as a picture (no explorer above? the kernel is gone: run the cell "
            f"again)</summary><img alt='{html.escape(', '.join(titles))}' src='{shown}'></details>"
        )

    def _ask(self, work: Callable[[], Any], show: Callable[[Any], None]) -> None:
        # The first answer is there before the page draws: plotly.js never attaches its handlers to a figure that
        # changes while it is being drawn for the first time.
        ask = self._worker.ask if self._asked else self._worker.answer
        self._asked = True
        ask(work, show)

    def _tell(self, progress: Progress) -> None:
        self.error = progress.error
        if progress.busy:
            text = "<b>⏳ working …</b>"
        elif progress.error is not None:
            text = write_error(progress.error)
        else:
            text = f"ready ({progress.seconds:.1f} s)"
            self._keep()
        self.status.value = f"<span role='status' aria-live='polite'>{text}</span>"

    def _keep(self) -> None:
        """Renew the picture of the state, once a second at most: answers to a pointer that moves come faster."""
        if self._kept is not None and not self._renewing:
            wait = self._renewed + KEEPING - time.monotonic()
            self._renewing = wait > 0 and self._worker.later(wait, self._renew)
            if not self._renewing:
                self._renew()

    def _renew(self) -> None:
        self._renewed, self._renewing = time.monotonic(), False
        if self._kept is not None:
            self._kept.update(HTML(self._keepsake()))


def write_error(error: Exception) -> str:
    """An error in words, as HTML."""
    return f"<b role='alert' style='color: #b00020'>⚠ {type(error).__name__}: {html.escape(str(error))}</b>"


def probing_config(model: ProbeModel, config: EmerDiffConfig | None) -> EmerDiffConfig:
    """Settings to start from: as given, or the model's own, on a grid of 20 steps where its own is finer."""
    if config is None:
        config = EmerDiffConfig.for_model(model)
        if config.inversion.steps > STEPS:
            config = EmerDiffConfig.for_model(model, steps=STEPS, modulate_at=MODULATE_AT)
    return config.resolve(model)


def hold_features(probed: ProbedImage, sites: Sequence[Site], timesteps: Sequence[int]) -> None:
    """Have the image's features read; what is there already waits for no other explorer's work."""
    if not all(probed.holds(site, timestep) for site in sites for timestep in timesteps):
        with MODELS_IN_USE:
            for timestep in timesteps:
                probed.capture(sites, timestep)


def show_cells(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture of a grid (grid_height, grid_width, 3) uint8 at the size of an image, every cell as a block."""
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))


def _small(picture: np.ndarray, side: int = 256) -> np.ndarray:
    """A picture whose sides are `side` pixels at most."""
    small = Image.fromarray(picture)
    small.thumbnail((side, side))
    return np.array(small)


def row_of(*children: widgets.Widget) -> widgets.HBox:
    """Controls in a row that wraps where the page is narrow."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap"))


def described(kind: Callable[..., Any], description: str, **options: Any) -> Any:
    """A control whose whole description can be read; it is what screen readers and the keyboard's user go by."""
    if kind in {widgets.Dropdown, widgets.ToggleButtons}:
        options["layout"] = widgets.Layout(width="auto", flex_flow="row nowrap")
    return kind(description=description, style={"description_width": WIDE}, **options)


def data_uri(picture: np.ndarray) -> str:
    """A picture (height, width, 3) uint8 as the source of a plotly image."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(image: np.ndarray, **options: Any) -> go.Image:
    """A trace of a picture (height, width, 3) uint8 in its own pixels."""
    return go.Image(source=data_uri(image), hovertemplate="pixel (%{y}, %{x})<extra></extra>", **options)


def label_map(labels: np.ndarray, height: int, width: int, word: str, **options: Any) -> go.Heatmap:
    """A trace of labels of any grid over height x width pixels, in the colours that they have everywhere."""
    return go.Heatmap(
        z=labels,
        **on_pixels(labels.shape, height, width),
        **label_colours(int(labels.max()) + 1),
        showscale=False,
        hovertemplate=f"{word} %{{z}}<extra></extra>",
        **options,
    )


def on_pixels(grid: tuple[int, ...], height: int, width: int) -> dict[str, float]:
    """Where a heatmap of grid_height x grid_width cells lies over height x width pixels."""
    dy, dx = height / grid[0], width / grid[1]
    return {"dx": dx, "dy": dy, "x0": dx / 2 - 0.5, "y0": dy / 2 - 0.5}


def on_hover(traces: Iterable[Any], call: Callable[[float, float], None]) -> None:
    """Call with the place, in the panel's own units, that the pointer is at in any of the traces."""
    for trace in traces:
        trace.on_hover(lambda _, points, __: call(points.xs[0], points.ys[0]) if points.xs else None)


def cell_at(x: float, y: float, grid: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Row and column of the grid cell that holds a place in an image of height x width pixels."""
    row, column = int((y + 0.5) * grid[0] / height), int((x + 0.5) * grid[1] / width)
    return min(max(row, 0), grid[0] - 1), min(max(column, 0), grid[1] - 1)


def pointer() -> go.Scatter:
    """A trace that marks a place in a panel: a black square around a white one, seen on any colour."""
    line = {"width": 2, "color": ["#000000", "#ffffff"]}
    return go.Scatter(
        mode="markers",
        marker={"symbol": "square", "color": "rgba(0,0,0,0)", "opacity": 1, "line": line},
        hoverinfo="skip",
    )


def point_at(trace: go.Scatter, x: float, y: float, size: float = 14) -> None:
    """Move a pointer's square, of so many pixels of the screen."""
    trace.x, trace.y, trace.marker.size = [x, x], [y, y], [size, size - 4]


def on_change(controls: Iterable[widgets.Widget], call: Callable[[], None]) -> None:
    """Call after the value of any of the controls has changed."""
    for control in controls:
        control.observe(lambda _: call(), "value")


def require_same_size(one: Sequence[int], other: Sequence[int], what: str) -> None:
    """Raise InputError unless two sizes in pixels are the same."""
    if tuple(one) != tuple(other):
        raise InputError(f"{what}: {one[0]} x {one[1]} and {other[0]} x {other[1]} pixels; accepted: the same size")


def require_atlas_of(atlas: ResponseAtlas, probed: ProbedImage) -> None:
    """Raise InputError unless an atlas was made with the model of a probed image, and of that image."""
    model, latents = probed.model, probed.latents[0]
    made = atlas.settings
    if made["fingerprint"] != model.fingerprint:
        raise InputError(
            f"an atlas of model {made['model']} ({made['fingerprint']}) and model {model.name} ({model.fingerprint}); "
            "accepted: both of one model"
        )
    height, width = (side * model.factor for side in latents.shape[-2:])
    require_same_size(atlas.responses.shape[2:], (height, width), "atlas and probed image")
    if not atlas.is_of(latents):
        raise InputError("an atlas of another image of the same size; accepted: one of the image that is shown")
