"""Figures of a calibration: gain by strength, and criteria against the truth."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import spearmanr

from emerdiff_probe.calibration.criteria import CRITERION
from emerdiff_probe.calibration.result import POINTS, TRUTH, Calibration
from emerdiff_probe.calibration.space import Setting
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import write_whole
from emerdiff_probe.viz.figures import MARKERS, SHADES

GREY = "#999999"
SHARES = (CRITERION, "colour", "latents_gain")
"""Criteria that are told in points."""


def calibration_figure(result: Calibration) -> go.Figure:
    """Gain by strength, a line for every timestep, with 95% intervals; the chosen setting and the preset are marked.

    Lines are of the layer, the placement, the injection and the steps of the chosen setting; all other settings are
    grey. What was measured on a part of the pictures is hollow.
    """
    lines: dict[int, list[Setting]] = {}
    others = list[Setting]()
    for setting, known in result.records.items():
        if not known or not np.isfinite(result.gain(setting).value):
            continue
        alike = setting._replace(modulate_at=0, strength=0.0) == result.chosen._replace(modulate_at=0, strength=0.0)
        (lines.setdefault(setting.modulate_at, []) if alike else others).append(setting)
    figure = go.Figure()
    if others:
        figure.add_trace(_points(result, others, "others", GREY, "circle", mode="markers"))
    for index, timestep in enumerate(sorted(lines)):
        settings = sorted(lines[timestep], key=lambda one: one.strength)
        shade, marker = SHADES[index % len(SHADES)], MARKERS[index % len(MARKERS)]
        figure.add_trace(_points(result, settings, f"timestep {timestep}", shade, marker, mode="lines+markers"))
    for name, setting, symbol in (("preset", result.preset, "circle-open"), ("chosen", result.chosen, "star-open")):
        figure.add_trace(
            go.Scatter(
                x=[setting.strength],
                y=[POINTS * result.gain(setting).value],
                name=name,
                mode="markers",
                marker={"symbol": symbol, "size": 20, "color": "black", "line": {"width": 2}},
                hovertemplate=f"{name}: {_told(setting)}<extra></extra>",
            )
        )
    figure.add_hline(y=0, line={"color": GREY, "dash": "dot"}, annotation_text="enlarged masks")
    first = result.notes[0]
    told = f"{len(result.pictures)} pictures, bars: 95% intervals; layer {result.chosen.layer}"
    return figure.update_layout(
        title={"text": f"How hard, and when?<br><sup>{told}<br>{first.split(':')[0].split(',')[0]}</sup>"},
        xaxis={"title": "strength of the modulation", "type": "log"},
        yaxis={"title": "colour variance explained more<br>than by the enlarged masks (points)"},
        margin={"t": 110},
        width=760,
        height=480,
        template="plotly_white",
    )


def criterion_figure(results: Mapping[str, Calibration | pd.DataFrame], criterion: str = CRITERION) -> go.Figure:
    """A criterion against the true gain in mIoU, a point a setting, a panel a calibration.

    Settings that were measured on every picture are shown, and their rank correlation is told.

    Args:
        results: by title; of data with labels, as they are or as the tables they give (`Calibration.table`).
        criterion: one of `CRITERIA`.

    Raises:
        InputError: none, data without labels, or a criterion that was not measured.
    """
    column = "gain" if criterion == CRITERION else criterion
    tables = {title: one.table() if isinstance(one, Calibration) else one for title, one in results.items()}
    bad = [title for title, one in tables.items() if not {column, TRUTH} <= set(one.columns)]
    if bad or not tables:
        raise InputError(f"a figure of {', '.join(bad) or 'nothing'}; accepted: data with labels, and {criterion!r}")
    scale = POINTS if criterion in SHARES and criterion != CRITERION else 1.0  # the table has gains in points
    figure = make_subplots(1, len(tables), subplot_titles=list(tables), horizontal_spacing=0.08)
    for place, (title, table) in enumerate(tables.items(), start=1):
        whole = table[table["pictures"] == table["pictures"].max()]
        whole = whole[np.isfinite(whole[column])]
        notes = whole["note"].fillna("")
        ranks = spearmanr(whole[column], whole[TRUTH]).statistic if len(whole) > 2 else np.nan
        told = f"{len(whole)} settings, {whole['pictures'].max()} pictures: rank correlation {ranks:.2f}"
        figure.layout.annotations[place - 1].text = f"{title}<br><sup>{told}</sup>"
        groups = {
            "settings": (whole, "circle", 8, SHADES[0]),
            "preset": (whole[notes.str.contains("preset")], "circle-open", 18, "black"),
            "chosen": (whole[notes.str.contains("chosen")], "star-open", 18, "black"),
        }
        for name, (rows, symbol, size, colour) in groups.items():
            trace = go.Scatter(
                x=scale * rows[column],
                y=rows[TRUTH],
                name=name,
                legendgroup=name,
                showlegend=place == 1,
                mode="markers",
                text=[_told(Setting(*row)) for row in rows[list(Setting._fields)].itertuples(index=False)],
                marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 1 if size < 10 else 2}},
                hovertemplate="%{text}: %{x:.1f}, %{y:.1f}<extra></extra>",
            )
            figure.add_trace(trace, 1, place)
        figure.update_xaxes(title=f"{criterion} (points)" if criterion in SHARES else criterion, col=place)
    figure.update_yaxes(title="gain in mIoU over<br>the enlarged masks (points)", col=1)
    return figure.update_layout(
        width=max(460, 340 * len(tables)), height=420, template="plotly_white", legend={"orientation": "h", "y": -0.25}
    )


def write_report(result: Calibration, path: Path) -> Path:
    """Write what was found as a page of its own: the tables, and the figure to be looked into."""
    figure = calibration_figure(result).to_html(full_html=False, include_plotlyjs=True)
    page = (
        "<!DOCTYPE html><meta charset='utf-8'><title>Calibration</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .6em;text-align:right}"
        "table{border-collapse:collapse;font-size:90%}</style>"
        f"<h1>{html.escape(result.notes[0].split(':')[0])}</h1>{figure}{result._repr_html_()}"
    )
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def _points(
    result: Calibration, settings: list[Setting], name: str, shade: str, marker: str, *, mode: str
) -> go.Scatter:
    gains = [result.gain(one) for one in settings]
    return go.Scatter(
        x=[one.strength for one in settings],
        y=[POINTS * gain.value for gain in gains],
        error_y={
            "type": "data",
            "array": [POINTS * (gain.high - gain.value) if one in result.complete else 0
                      for one, gain in zip(settings, gains, strict=True)],
            "arrayminus": [POINTS * (gain.value - gain.low) if one in result.complete else 0
                           for one, gain in zip(settings, gains, strict=True)],
            "thickness": 1,
        },
        name=name,
        mode=mode,
        text=[_told(one) for one in settings],
        marker={
            "color": shade,
            "symbol": [marker + ("" if one in result.complete else "-open") for one in settings],
            "size": 8,
        },
        line={"color": shade},
        hovertemplate="%{text}: %{y:.1f}<extra></extra>",
    )  # fmt: skip


def _told(setting: Setting) -> str:
    return (
        f"{setting.layer} at {setting.modulate_at}, strength {setting.strength:g}, {setting.placement}, "
        f"{setting.injection}, {setting.steps} steps"
    )
