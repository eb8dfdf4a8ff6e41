"""A figure of a study over the sites of a denoiser: one row a site, one panel a measure, kinds of sites told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emerdiff_probe.errors import InputError
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.viz.figures import MARKERS, SHADES, count_images, wrap

ROW, PANEL = 24, 240
"""Pixels of a row and of a panel."""


def sites_figure(result: StudyResult, measures: Sequence[str] | None = None) -> go.Figure:
    """What is measured of every site, side by side, with 95% intervals over images; the first site on top.

    Kinds of sites, such as queries of self-attention, have a colour and a marker each. Of several timesteps the mean is
    shown.

    Args:
        result: of study `layers`.
        measures: names, a panel each; the study's first, and what position and colour explain, when None.

    Raises:
        InputError: a study without sites, or no such measure.
    """
    study = result.study
    if "site" not in study.axes:
        raise InputError(f"study {study.name} has no axis site; accepted: study layers")
    shown = list(measures or dict.fromkeys([next(iter(study.measures)), "position", "colour"]))
    if unknown := [name for name in shown if name not in study.measures]:
        raise InputError(f"{', '.join(unknown)} in a figure of {study.name}; accepted: {', '.join(study.measures)}")
    names = [str(value) for value in study.axes["site"].values]
    kinds = {name: kind_of(name) for name in names}
    order = list(dict.fromkeys(kinds.values()))
    titles = [wrap(_titled(result, name), 30) for name in shown]
    figure = make_subplots(1, len(shown), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    for column, measure in enumerate(shown, start=1):
        found = {name: result.interval(measure, {"site": name}) for name in names}
        for index, kind in enumerate(order):
            ours = [name for name in names if kinds[name] == kind]
            values = [found[name].value for name in ours]
            figure.add_trace(
                go.Scatter(
                    x=values,
                    y=ours,
                    error_x={
                        "type": "data",
                        "array": [found[name].high - found[name].value for name in ours],
                        "arrayminus": [found[name].value - found[name].low for name in ours],
                    },
                    mode="markers",
                    name=kind,
                    legendgroup=kind,
                    showlegend=column == 1,
                    marker={"color": SHADES[index % len(SHADES)], "symbol": MARKERS[index % len(MARKERS)], "size": 9},
                    hovertemplate="%{y}: %{x:.3g}<extra></extra>",
                ),
                1,
                column,
            )
        figure.update_xaxes(rangemode="tozero", row=1, col=column)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], tickfont={"size": 13}, type="category")
    figure.update_annotations(font={"size": 14})
    images = f"{count_images(result.images)}, bars: 95% bootstrap intervals"
    return figure.update_layout(
        title={
            "text": f"{wrap(study.question, 90)}<br><sup>{images}</sup>",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 24},
        },
        width=220 + PANEL * len(shown) + 60,
        height=260 + ROW * len(names),
        margin={"t": 170, "l": 170},
        legend={"orientation": "h", "y": -0.08, "font": {"size": 13}},
        template="plotly_white",
    )


def kind_of(site: str) -> str:
    """The kind of a site by its name: "up16.cross2.query" is "cross query"."""
    *_, layer, part = ["", *site.split(".")]
    return f"{re.sub(r'[0-9]+$', '', layer)} {part}".strip()


def _titled(result: StudyResult, measure: str) -> str:
    about = result.study.measures[measure]
    return about.description + (f" ({about.units})" if about.units else "")
