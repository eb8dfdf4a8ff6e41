"""Figures in a page: plotly.js is sent to it once, a reload shows what was shown, and no click is lost."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
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
TITLE = 30
"""Height of the line above a panel that has its title."""
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

    def _send_update_msg(
        self,
        restyle_data: Mapping[str, Sequence[Any]],
        relayout_data: Mapping[str, Any],
        trace_indexes: Any = None,
        source_view_id: str | None = None,
    ) -> None:
        """Send every trace what is its own.

        Plotly's message has every property for every trace, with "undefined" where it is another's; a page in which the
        figure is not drawn yet takes that for "none", and colour scales and markers are lost.
        """
        alike: dict[tuple[str, ...], list[int]] = {}
        traces = self._normalize_trace_indexes(trace_indexes)
        for place in range(len(traces)):
            own = tuple(name for name, values in restyle_data.items() if values[place] is not Undefined)
            alike.setdefault(own, []).append(place)
        for names, places in alike.items():
            if names:
                values = {name: [restyle_data[name][place] for place in places] for name in names}
                self._send_restyle_msg(values, [traces[place] for place in places], source_view_id)
        if relayout_data:
            self._send_relayout_msg(relayout_data, source_view_id)

    def clear_selections(self) -> None:
        """Take what was drawn around points off the page, which keeps it though Python's layout never had it."""
        self._layout.pop("selections", None)
        self._send_relayout_msg({"selections": []})

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """State for the page, or the part of it that `key` names."""
        if key is None and hasattr(self, "_data"):
            shown = {"_widget_data": self._data, "_widget_layout": self._layout}
            self._trait_values |= deepcopy(shown, {id(Undefined): Undefined})  # known to plotly by its identity
        return super().get_state(key, drop_defaults)


def panels(titles: Sequence[str], height: int, width: int, *, beside: int = 0) -> Figure:
    """Empty panels in a row for pictures of height x width pixels, whose zoom is one.

    Args:
        titles: of the panels.
        height, width: of the pictures, pixels.
        beside: pixels of the screen to the right of the panels, for a colour bar or names.
    """
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_xaxes="all")
    figure.update_xaxes(visible=False, constrain="domain", range=[-0.5, width - 0.5])
    figure.update_yaxes(visible=False, constrain="domain", range=[height - 0.5, -0.5], matches="y")
    for panel in range(1, len(titles) + 1):
        figure.update_yaxes(scaleanchor="x" if panel == 1 else f"x{panel}", row=1, col=panel)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        margin={"l": 5, "r": 5 + beside, "t": 5, "b": 5},
        template="plotly_white",
        hovermode="closest",
        showlegend=False,
        meta={"panels": len(titles), "columns": 0},
    )
    arrange(figure, len(titles))
    return Figure(figure)


def columns_that_fit(figure: go.Figure, width: float) -> int:
    """Columns of panels for a page of `width` pixels: all in one row, half of them, or one below the other."""
    count = int(figure.layout.meta["panels"])
    room = width - figure.layout.margin.l - figure.layout.margin.r
    return next((columns for columns in (count, -(-count // 2)) if columns * PANEL <= room), 1)


def arrange(figure: go.Figure, columns: int) -> None:
    """Lay the panels of a figure out in so many columns, their titles above them and the colour bar beside the last."""
    meta, margin, gap = figure.layout.meta, figure.layout.margin, 0.02
    if columns == meta["columns"]:
        return
    count = int(meta["panels"])
    rows = -(-count // columns)
    wide, high = (1 - gap * (columns - 1)) / columns, PANEL / (PANEL + TITLE) / rows
    layout: dict[str, Any] = {
        "meta": {**meta, "columns": columns},
        "width": columns * PANEL + margin.l + margin.r,
        "height": rows * (PANEL + TITLE) + margin.t + margin.b,
    }
    for panel in range(count):
        row, column = divmod(panel, columns)
        left, bottom = column * (wide + gap), 1 - (row + 1) / rows
        number = "" if panel == 0 else panel + 1
        layout[f"xaxis{number}_domain"] = [left, left + wide]
        layout[f"yaxis{number}_domain"] = [max(bottom, 0), bottom + high]
        layout[f"annotations[{panel}]"] = {"x": left + wide / 2, "y": bottom + high}
    with figure.batch_update():
        figure.update_layout({name: value for name, value in layout.items() if not name.startswith("annotations")})
        for panel in range(count):
            figure.layout.annotations[panel].update(layout[f"annotations[{panel}]"])
        for trace in figure.select_traces("heatmap"):
            trace.colorbar.update(x=1.005, y=high / 2, len=high)


class Click(NamedTuple):
    """A click in a figure: number of the panel, from 1, place in the panel's own units, and the Shift key."""

    panel: int
    x: float
    y: float
    shift: bool = False


class Outline(NamedTuple):
    """What was drawn in a figure by lasso or box: number of the panel, its corners in the panel's own units, Shift."""

    panel: int
    x: Sequence[float]
    y: Sequence[float]
    shift: bool = False


class Look(NamedTuple):
    """What a page looks like: room in pixels, and its theme's colours (empty outside JupyterLab)."""

    width: float
    background: str = ""
    foreground: str = ""


class Page(anywidget.AnyWidget):
    """What the page tells of itself: clicks and outlines in the figure, its room and theme, a kernel that is gone.

    Both are read from the pointer itself. A click is a press and a release between which the pointer stayed at one
    place; an outline may well end where it began. Plotly's own clicks are those of the place that was hovered last,
    which on a busy page is another, and none while the figure is being drawn anew; and it forgets an outline when the
    figure changes before it has reported it.
    """

    _esm = rf"""
    function render({{ model, el }}) {{
      const SLACK = 4;  // pixels that a hand moves during a click
      let figure, explorer, pressed, told, waiting;
      const place = ({{ xaxis, yaxis }}, event) => {{
        const box = figure.getBoundingClientRect();
        return {{ x: event.clientX - box.left - xaxis._offset, y: event.clientY - box.top - yaxis._offset }};
      }};
      const panel = (event) =>
        Object.values(figure._fullLayout._plots).find((plot) => {{
          const {{ x, y }} = place(plot, event);
          return x >= 0 && y >= 0 && x <= plot.xaxis._length && y <= plot.yaxis._length;
        }});
      const press = (event) => {{
        const aside = event.button !== 0 || event.target.closest(".modebar, .slider-container");
        const plot = aside ? undefined : panel(event);
        pressed = plot && {{ plot, event, far: 0, places: [place(plot, event)] }};
      }};
      const move = (event) => {{
        if (!pressed) return;
        const away = Math.hypot(event.clientX - pressed.event.clientX, event.clientY - pressed.event.clientY);
        pressed.far = Math.max(pressed.far, away);
        pressed.places.push(place(pressed.plot, event));
      }};
      const release = (event) => {{
        if (!pressed) return;
        move(event);
        const {{ plot: {{ xaxis, yaxis }}, far, places }} = pressed;
        pressed = undefined;
        const told = {{ panel: Number(xaxis._id.slice(1) || 1), shift: event.shiftKey }};
        const drawn = {{ lasso: places, select: box(places[0], places.at(-1)) }}[figure._fullLayout.dragmode];
        const x = (at) => xaxis.p2d(at.x), y = (at) => yaxis.p2d(at.y);
        if (far <= SLACK) model.send({{ click: {{ ...told, x: x(places[0]), y: y(places[0]) }} }});
        else if (drawn) model.send({{ outline: {{ ...told, x: drawn.map(x), y: drawn.map(y) }} }});
      }};
      const box = (one, other) => [one, {{ x: other.x, y: one.y }}, other, {{ x: one.x, y: other.y }}];
      const drop = () => (pressed = undefined);
      const look = () => {{
        const style = getComputedStyle(explorer);
        const now = {{
          width: explorer.parentElement.clientWidth,
          background: style.getPropertyValue("--jp-layout-color0").trim(),
          foreground: style.getPropertyValue("--jp-content-font-color1").trim(),
        }};
        if (now.width > 0 && JSON.stringify(now) !== JSON.stringify(told)) model.send({{ look: (told = now) }});
      }};
      const resized = new ResizeObserver(() => look()), themed = new MutationObserver(() => setTimeout(look, 100));
      const gone = () => {{
        el.innerHTML = "<b role='alert' style='color: #b00020'>⚠ The kernel is gone: run the cell again.</b>";
      }};
      const attach = () => {{
        explorer = el.closest(".{EXPLORER}");
        figure = explorer?.querySelector(".js-plotly-plot");
        if (!figure?.on || !figure._fullLayout?._plots) {{
          waiting = setTimeout(attach, 100);
          return;
        }}
        figure.addEventListener("pointerdown", press, true);
        window.addEventListener("pointermove", move, true);
        window.addEventListener("pointerup", release, true);
        window.addEventListener("pointercancel", drop, true);
        model.on("comm_live_update", gone);
        waiting = setTimeout(() => {{  // plotly attaches no handlers to a figure that changes while it is first drawn
          look();
          resized.observe(explorer.parentElement);
          themed.observe(document.body, {{ attributes: true }});
        }}, 500);
      }};
      attach();
      return () => {{
        clearTimeout(waiting);
        resized.disconnect();
        themed.disconnect();
        figure?.removeEventListener("pointerdown", press, true);
        window.removeEventListener("pointermove", move, true);
        window.removeEventListener("pointerup", release, true);
        window.removeEventListener("pointercancel", drop, true);
        model.off("comm_live_update", gone);
      }};
    }}
    export default {{ render }};
    """

    def __init__(
        self,
        on_look: Callable[[Look], None],
        on_click: Callable[[Click], None] | None,
        on_outline: Callable[[Outline], None] | None,
    ) -> None:
        super().__init__()

        def told(_: Any, content: Mapping[str, Any], __: Any) -> None:
            if "look" in content:
                on_look(Look(**content["look"]))
            elif "click" in content and on_click is not None:
                on_click(Click(**content["click"]))
            elif "outline" in content and on_outline is not None:
                on_outline(Outline(**content["outline"]))

        self.on_msg(told)
