"""How benchmarks write their figures."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from emerdiff_probe.viz.figures import to_png

GREY = "#999999"
"""What others are compared with."""


def write_figure(figure: go.Figure, page: Path, picture: Path | None) -> None:
    """Write a figure as a page and, where asked, as a PNG, too.

    Raises:
        InputError: the picture cannot be drawn or written.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(page, include_plotlyjs="cdn")
    if picture is not None:
        to_png(figure, picture)
