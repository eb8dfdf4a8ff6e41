"""Plotly figures, each a pure function of a result."""

from __future__ import annotations

import base64
import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image
from plotly.subplots import make_subplots

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import NO_CLASS, Report, Row
from emerdiff_probe.images import palette
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.studies.study import Axis, Value

PIXELS = 300
"""Side of one panel on the screen."""
SHADES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
"""Line colours that colour-blind people can tell apart (Okabe and Ito)."""
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
MOST_NUMBERED = 900
"""Cells of a confusion that have their number written in them; of more, hovering tells."""
STRIDE = 4
"""Every so many cells of a difference map are drawn: the maps are smooth, and notebooks stay small."""


def segmentation_figure(result: Segmentation) -> go.Figure:
    """Image, low-resolution masks and segmentation side by side; hovering names the mask."""
    height, width = result.labels.shape
    rows, columns = result.low_resolution_masks.shape
    coarse = result.low_resolution_masks[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    figure = make_subplots(1, 3, subplot_titles=["image", "low-resolution masks", "EmerDiff"], horizontal_spacing=0.02)
    figure.add_trace(_picture(result), 1, 1)
    for column, labels in ((2, coarse), (3, result.labels)):
        trace = go.Heatmap(
            z=labels.astype(result.labels.dtype),
            **label_colours(result.masks),
            showscale=False,
            hovertemplate="mask %{z}<extra></extra>",
        )
        figure.add_trace(trace, 1, column)
        figure.update_yaxes(autorange="reversed", row=1, col=column)
    return _bare(figure, 3)


def label_colours(count: int) -> dict[str, Any]:
    """Heatmap settings that give label i its own colour, for labels from 0 to count - 1."""
    shades = [f"rgb({r},{g},{b})" for r, g, b in palette(count).tolist()]
    edges = np.repeat(np.arange(count + 1) / count, 2)[1:-1]
    scale = list(zip(edges.tolist(), np.repeat(shades, 2).tolist(), strict=True))
    return {"zmin": -0.5, "zmax": count - 0.5, "colorscale": scale}


def _picture(result: Segmentation) -> go.Image:
    buffer = io.BytesIO()
    Image.fromarray(result.image).save(buffer, "JPEG", quality=90)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return go.Image(source=f"data:image/jpeg;base64,{encoded}", hoverinfo="skip")


def difference_figure(result: Segmentation) -> go.Figure:
    """The image beside the difference map of one mask, chosen by a slider; all maps share one colour scale."""
    top = float(result.difference_maps.max())
    down, across = (
        STRIDE * whole / side for whole, side in zip(result.labels.shape, result.difference_maps.shape[1:], strict=True)
    )
    figure = make_subplots(1, 2, subplot_titles=["image", "difference map of the mask"], horizontal_spacing=0.02)
    figure.add_trace(_picture(result), 1, 1)
    for mask, values in enumerate(result.difference_maps):
        trace = go.Heatmap(
            z=values[::STRIDE, ::STRIDE],
            dx=across,
            dy=down,
            zmin=0,
            zmax=top,
            colorscale="Viridis",
            visible=mask == 0,
            colorbar={"title": "RGB distance<br>(black to white: 3.46)"},
            hovertemplate="distance %{z:.2f}<extra></extra>",
        )
        figure.add_trace(trace, 1, 2)
    steps = [
        {
            "method": "restyle",
            "label": str(mask),
            "args": ["visible", [True, *(i == mask for i in range(result.masks))]],
        }
        for mask in range(result.masks)
    ]
    figure.update_layout(sliders=[{"steps": steps, "currentvalue": {"prefix": "mask "}}])
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    return _bare(figure, 2)


def study_figure(
    result: StudyResult, measure: str | Sequence[str] | None = None, along: str | None = None
) -> go.Figure:
    """A measure of a study over its grid, every point with its 95% interval over images.

    Args:
        result: of `run_study`, `load_result` or `read_result`.
        measure: its name; the study's first when None, or several of the same units, such as EmerDiff and its
            baseline, which are told apart by their markers.
        along: the axis that runs to the right; the one with the most values when None. The other axes are told apart
            by colour and marker.

    Raises:
        InputError: the study has no such measure or axis, or measures of different units.
    """
    study = result.study
    measures = [measure or next(iter(study.measures))] if measure is None or isinstance(measure, str) else list(measure)
    along = along or max(study.axes, key=lambda name: len(study.axes[name].values))
    for given, accepted in (*((name, study.measures) for name in measures), (along, study.axes)):
        if given not in accepted:
            raise InputError(f"{given!r} in a figure of study {study.name}; accepted: {', '.join(accepted)}")
    abouts, axis = [study.measures[name] for name in measures], study.axes[along]
    if len({about.units for about in abouts}) != 1:
        raise InputError(f"measures {', '.join(measures)} in one figure; accepted: one or more, of the same units")
    others = [name for name in study.axes if name != along]
    table = result.table(measures)
    figure = go.Figure()
    groups = table.groupby(others, sort=False) if others else [((), table)]
    drawn = [(name, values, rows) for values, rows in groups for name in measures]
    for index, (name, values, rows) in enumerate(drawn):
        said = [_named(other, study.axes[other], value) for other, value in zip(others, values, strict=True)]
        figure.add_trace(
            go.Scatter(
                x=_beside(axis, rows[along].tolist(), measures.index(name) - (len(measures) - 1) / 2),
                y=rows[name],
                error_y={
                    "type": "data",
                    "array": rows[f"{name} high"] - rows[name],
                    "arrayminus": rows[name] - rows[f"{name} low"],
                },
                name=", ".join([*([wrap(study.measures[name].description)] if len(measures) > 1 else []), *said]),
                mode="lines+markers" if _is_numeric(axis) else "markers",
                marker={"color": SHADES[index % len(SHADES)], "symbol": MARKERS[index % len(MARKERS)], "size": 8},
                hovertemplate="%{x}: %{y:.2f}<extra>%{fullData.name}</extra>",
            )
        )
    units = f" ({abouts[0].units})" if abouts[0].units else ""
    images = f"{count_images(result.images)}, bars: 95% bootstrap intervals"
    shown = wrap(abouts[0].description) + units if len(measures) == 1 else abouts[0].units  # the legend names them
    figure.update_layout(
        title={"text": f"{wrap(study.question, 64)}<br><sup>{images}</sup>"},
        yaxis={"title": shown, "rangemode": "tozero"},
        xaxis={"title": axis.description + (f" ({axis.units})" if axis.units not in {"", "timestep"} else "")},
        margin={"t": 110},
        width=max(720, 24 * len(axis.values)),
        height=460,
        template="plotly_white",
        showlegend=len(drawn) > 1,
    )
    if _is_numeric(axis) and _spans_decades(axis):
        figure.update_xaxes(type="log")
    if not _is_numeric(axis):
        figure.update_layout(scattermode="group")
        figure.update_xaxes(type="category")
        figure.update_layout(height=460 + 7 * max(len(str(value)) for value in axis.values))  # names may stand upright
    return figure


def report_figure(report: Report) -> go.Figure:
    """The mIoU of every method under its first protocol, with 95% intervals over images, the best on top.

    Methods that name classes are scored by another protocol than the others; theirs stands behind their names.

    Raises:
        InputError: the data has no classes to score.
    """
    if not report.rows:
        raise InputError(f"a figure of {report.title}, which has no classes; accepted: data with classes")
    protocol = report.rows[0].miou.protocol
    rows = list({row.line.cell: row for row in reversed(report.rows)}.values())[::-1]
    numbers = list(dict.fromkeys(row.line.cell.clusters for row in rows))

    def name(row: Row) -> str:
        return row.line.cell.method + (f" ({row.miou.protocol})" if row.miou.protocol != protocol else "")

    best: dict[str, float] = {}
    for row in rows:
        best[name(row)] = max(row.miou.value, best.get(name(row), 0.0))
    figure = go.Figure()
    for index, number in enumerate(numbers):
        shown = [row for row in rows if row.line.cell.clusters == number]
        values, lows, highs = (
            100 * np.array([getattr(row.miou, end) for row in shown]) for end in ("value", "low", "high")
        )
        figure.add_trace(
            go.Scatter(
                x=values,
                y=[name(row) for row in shown],
                error_x={"type": "data", "array": highs - values, "arrayminus": values - lows},
                orientation="h",  # else markers of one method lie on top of each other
                name="number of their own" if number is None else f"{number} segments",
                mode="markers",
                marker={"color": SHADES[index % len(SHADES)], "symbol": MARKERS[index % len(MARKERS)], "size": 8},
                hovertemplate="%{y}: %{x:.1f}%<extra>%{fullData.name}</extra>",
            )
        )
    images = f"{len(report.images)} images, {protocol} protocol, bars: 95% bootstrap intervals"
    return figure.update_layout(
        title={"text": f"{report.title}<br><sup>{images}</sup>"},
        xaxis={"title": "mIoU (%)", "rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": sorted(best, key=best.__getitem__)},
        scattermode="group",
        width=720,
        height=180 + 34 * len(best),
        template="plotly_white",
        showlegend=True,
    )


def class_figure(report: Report) -> go.Figure:
    """The IoU of every class under every method, each in its first protocol and with the middle one of its numbers.

    Classes stand by their mean over methods, the easiest on top; beside a name is its share of the pixels.

    Raises:
        InputError: the data has no classes to score.
    """
    rows = _shown(report)
    pixels = rows[0].confusion.sum(1)
    places = [place for place in range(len(pixels)) if pixels[place]]
    places.sort(key=lambda place: float(np.mean([row.iou[place] for row in rows])))
    names = [f"{report.labels.classes[place]} ({100 * pixels[place] / pixels.sum():.1f}%)" for place in places]
    figure = go.Figure()
    for index, row in enumerate(rows):
        figure.add_trace(
            go.Scatter(
                x=100 * row.iou[places],
                y=names,
                name=_method(row),
                mode="markers",
                marker={"color": SHADES[index % len(SHADES)], "symbol": MARKERS[index % len(MARKERS)], "size": 8},
                hovertemplate="%{y}: %{x:.1f}%<extra>%{fullData.name}</extra>",
            )
        )
    protocols = ", ".join(dict.fromkeys(row.miou.protocol for row in rows))
    return figure.update_layout(
        title={"text": f"{report.title}<br><sup>{len(report.images)} images, {protocols} protocol</sup>"},
        xaxis={"title": "IoU (%)", "range": [-2, 102]},
        yaxis={"title": "class (its share of the pixels)", "categoryorder": "array", "categoryarray": names},
        width=760,
        height=180 + 24 * len(names),
        template="plotly_white",
        showlegend=True,
    )


def confusion_figure(report: Report, method: str | None = None) -> go.Figure:
    """Which classes a method takes for which: of the pixels of every class (a row) the share given to every other.

    Args:
        report: of an evaluation.
        method: its name; the first when None. It is shown in its first protocol, with the middle one of its numbers.

    Raises:
        InputError: the data has no classes to score, or no such method.
    """
    by_name = {row.line.cell.method: row for row in _shown(report)}
    row = by_name.get(method or next(iter(by_name)))
    if row is None:
        raise InputError(f"no method {method!r} in {report.title}; accepted: {', '.join(by_name)}")
    pixels = row.confusion.sum(1)
    true = np.flatnonzero(pixels)
    assigned = np.flatnonzero(row.confusion.sum(0) + np.append(pixels, 0))
    names = [*report.labels.classes, NO_CLASS]
    share = 100 * row.confusion[np.ix_(true, assigned)] / pixels[true, None]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=[names[place] for place in assigned],
            y=[names[place] for place in true],
            zmin=0,
            zmax=100,
            colorscale="Viridis",
            colorbar={"title": "% of the<br>true class"},
            texttemplate="%{z:.0f}" if share.size <= MOST_NUMBERED else None,
            hovertemplate="%{y} taken for %{x}: %{z:.1f}%<extra></extra>",
        )
    )
    told = f"{_method(row)}, {row.miou.protocol} protocol, {len(report.images)} images"
    return figure.update_layout(
        title={"text": f"{report.title}: mIoU {100 * row.miou.value:.1f}%<br><sup>{told}</sup>"},
        xaxis={"title": "class given", "side": "bottom", "tickangle": -45, "type": "category"},
        yaxis={"title": "true class", "autorange": "reversed", "type": "category"},
        width=300 + max(360, 26 * len(assigned)),
        height=240 + max(260, 26 * len(true)),
        template="plotly_white",
    )


def _shown(report: Report) -> list[Row]:
    if not report.rows:
        raise InputError(f"a figure of {report.title}, which has no classes; accepted: data with classes")
    return list(report.shown().values())


def _method(row: Row) -> str:
    method, clusters = row.line.cell
    return method if clusters is None else f"{method}, {clusters} segments"


def to_png(figure: go.Figure, path: str | Path, *, scale: float = 2.0) -> Path:
    """Write a figure as PNG, `scale` pixels for each of its units; needs Chrome or Chromium, with which kaleido draws.

    Raises:
        InputError: there is no such browser, or the file cannot be written.
    """
    path = Path(path)
    try:
        path.write_bytes(pio.to_image(figure, "png", scale=scale))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: no picture of the figure could be written ({_first_line(error)})") from error
    return path


def static_pictures() -> bool:
    """Let figures that a notebook shows carry a picture beside the interactive one, for readers without a kernel.

    A renderer that the environment variable PLOTLY_RENDERER names is left as it is.

    Returns:
        Whether figures carry pictures; without a browser to draw them they stay interactive only.
    """
    if os.environ.get("PLOTLY_RENDERER"):
        return "png" in os.environ["PLOTLY_RENDERER"]
    try:
        pio.to_image(go.Figure(), "png", width=16, height=16)
    except (RuntimeError, ValueError):
        pio.renderers.default = "plotly_mimetype"
        return False
    pio.renderers.default = "plotly_mimetype+png"
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _is_numeric(axis: Axis) -> bool:
    return not any(isinstance(value, str) for value in axis.values)


def _spans_decades(axis: Axis) -> bool:
    numbers = [float(value) for value in axis.values]
    return min(numbers) > 0 and max(numbers) / min(numbers) >= 100 and not axis.units


def _places(axis: Axis, values: list[Value]) -> list[Value]:
    return values if _is_numeric(axis) else [str(value) for value in values]


def _beside(axis: Axis, values: list[Value], steps: float) -> list[Value]:
    """Places so many hundredths of the axis to the right, so that bars of several measures do not hide each other."""
    if not _is_numeric(axis) or not steps:
        return _places(axis, values)
    numbers = np.array(axis.values, float)
    if _spans_decades(axis):
        return [float(value) * (numbers.max() / numbers.min()) ** (0.01 * steps) for value in values]
    return [float(value) + 0.01 * steps * float(np.ptp(numbers)) for value in values]


def _named(name: str, axis: Axis, value: Value) -> str:
    """A value of an axis in a legend: words stand for themselves, numbers have the axis's units or name."""
    return f"{axis.units or name} {value:g}" if _is_numeric(axis) else str(value)


def count_images(count: int) -> str:
    """So many images, in words."""
    return "1 image" if count == 1 else f"{count} images"


def wrap(text: str, columns: int = 36) -> str:
    """Text in lines of so many characters at most, for figures."""
    return "<br>".join(textwrap.wrap(text, columns))


def _bare(figure: go.Figure, panels: int) -> go.Figure:
    """Square pixels and no axes."""
    figure.update_xaxes(visible=False, constrain="domain")
    for panel in range(1, panels + 1):
        anchor = "x" if panel == 1 else f"x{panel}"
        figure.update_yaxes(visible=False, scaleanchor=anchor, constrain="domain", row=1, col=panel)
    figure.update_layout(width=panels * PIXELS + 120, height=PIXELS + 120, margin={"l": 10, "r": 10, "t": 40, "b": 10})
    return figure
