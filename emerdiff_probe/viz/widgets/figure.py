"""Figures in a page: plotly.js is sent to it once, a reload shows what was shown, and no click is lost."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import anywidget
import plotly
import plotly.graph_objects as go
import traitlets
from ipywidgets import widget_serialization
from plotly.serializers import Undefined
from plotly.subplots import make_subplots

PANEL = 270
"""Side of one panel on the screen, pixels."""
EXPLORER = "emerdiff-probe-explorer"
"""The page's name for an explorer."""


class PageCode(anywidget.AnyWidget):
    """The page's half of plotly's figures, compressed."""

    source = traitlets.Bytes().tag(sync=True)


@cache
def _page_code() -> PageCode:
    return PageCode(source=gzip.compress(str(go.FigureWidget._esm).encode(), mtime=0))


class Figure(go.FigureWidget):
    """A figure widget that a page loads and reloads at once.

    Plotly's own carries plotly.js in every figure, 5 MB each: a reloaded page asks for all of it in one message, which
    Jupyter's data rate limit refuses and for which JupyterLab waits four seconds. Here all figures share one copy of
    1.5 MB. And plotly's state is what a figure showed first; here it is what the figure shows now.
    """

    _esm = f"""
    async function load(model) {{
      const id = model.get("_page_code").slice("IPY_MODEL_".length);
      const packed = (await model.widget_manager.get_model(id)).get("source");
      const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const code = new Blob([await new Response(unpacked).text()], {{ type: "text/javascript" }});
      return (await import(URL.createObjectURL(code))).default;
    }}
    const plotly = (model) => (globalThis["emerdiff-probe plotly {plotly.__version__}"] ??= load(model));
    export default () => {{
      let figure;
      return {{
        async initialize(context) {{ figure = (await plotly(context.model))(); figure.initialize(context); }},
        render: (context) => figure.render(context),
      }};
    }};
    """
    _page_code = traitlets.Instance(PageCode).tag(sync=True, **widget_serialization)

    @traitlets.default("_page_code")
    def _shared_page_code(self) -> PageCode:
        return _page_code()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """State for the page, or the part of it that `key` names."""
        if key is None and hasattr(self, "_data"):
            shown = {"_widget_data": self._data, "_widget_layout": self._layout}
            self._trait_values |= deepcopy(shown, {id(Undefined): Undefined})  # known to plotly by its identity
        return super().get_state(key, drop_defaults)


def panels(titles: Sequence[str], height: int, width: int) -> Figure:
    """Empty panels in a row for pictures of height x width pixels, whose zoom is one."""
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.02, shared_xaxes="all")
    figure.update_xaxes(visible=False, constrain="domain", range=[-0.5, width - 0.5])
    figure.update_yaxes(visible=False, constrain="domain", range=[height - 0.5, -0.5], matches="y")
    for panel in range(1, len(titles) + 1):
        figure.update_yaxes(scaleanchor="x" if panel == 1 else f"x{panel}", row=1, col=panel)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        width=len(titles) * PANEL,
        height=PANEL + 50,
        margin={"l": 5, "r": 5, "t": 40, "b": 5},
        template="plotly_white",
        hovermode="closest",
        showlegend=False,
    )
    return Figure(figure)


class Click(NamedTuple):
    """A click in a figure: number of the trace that it hit, place in the panel's own units, and the Shift key."""

    trace: int
    x: float
    y: float
    shift: bool = False


class Clicks(anywidget.AnyWidget):
    """Clicks on the explorer's figure, each in a message of its own; nothing of it is seen.

    Plotly's page has one place for all events and sends what is there when the kernel is free: a click would be lost
    to the pointer that moves on.
    """

    _esm = f"""
    function render({{ model, el }}) {{
      const tell = ({{ points, event }}) =>
        model.send({{ trace: points[0].curveNumber, x: points[0].x, y: points[0].y, shift: event.shiftKey }});
      let figure, waiting;
      const attach = () => {{
        figure = el.closest(".{EXPLORER}")?.querySelector(".js-plotly-plot");
        if (figure?.on) figure.on("plotly_click", tell);
        else waiting = setTimeout(attach, 100);
      }};
      attach();
      return () => {{ clearTimeout(waiting); figure?.removeListener?.("plotly_click", tell); }};
    }}
    export default {{ render }};
    """

    def __init__(self, call: Callable[[Click], None]) -> None:
        super().__init__()
        self.on_msg(lambda _, content, __: call(Click(**content)))
