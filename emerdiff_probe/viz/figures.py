"""Plotly figures, each a pure function of a result."""

from __future__ import annotations

import base64
import io

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from emerdiff_probe.images import palette
from emerdiff_probe.segmentation import Segmentation

PIXELS = 300
"""Side of one panel on the screen."""
STRIDE = 4
"""Every so many pixels of a difference map are drawn: the maps are smooth, and notebooks stay small."""


def segmentation_figure(result: Segmentation) -> go.Figure:
    """Image, low-resolution masks and segmentation side by side; hovering names the mask."""
    height, width = result.labels.shape
    rows, columns = result.low_resolution_masks.shape
    coarse = result.low_resolution_masks[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    figure = make_subplots(1, 3, subplot_titles=["image", "low-resolution masks", "EmerDiff"], horizontal_spacing=0.02)
    figure.add_trace(_picture(result), 1, 1)
    shades = [f"rgb({r},{g},{b})" for r, g, b in palette(result.masks).tolist()]
    edges = np.repeat(np.arange(result.masks + 1) / result.masks, 2)[1:-1]
    for column, labels in ((2, coarse), (3, result.labels)):
        trace = go.Heatmap(
            z=labels.astype(result.labels.dtype),
            zmin=-0.5,
            zmax=result.masks - 0.5,
            colorscale=list(zip(edges.tolist(), np.repeat(shades, 2).tolist(), strict=True)),
            showscale=False,
            hovertemplate="mask %{z}<extra></extra>",
        )
        figure.add_trace(trace, 1, column)
        figure.update_yaxes(autorange="reversed", row=1, col=column)
    return _bare(figure, 3)


def _picture(result: Segmentation) -> go.Image:
    buffer = io.BytesIO()
    Image.fromarray(result.image).save(buffer, "JPEG", quality=90)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return go.Image(source=f"data:image/jpeg;base64,{encoded}", hoverinfo="skip")


def difference_figure(result: Segmentation) -> go.Figure:
    """The image beside the difference map of one mask, chosen by a slider; all maps share one colour scale."""
    top = float(result.difference_maps.max())
    figure = make_subplots(1, 2, subplot_titles=["image", "difference map of the mask"], horizontal_spacing=0.02)
    figure.add_trace(_picture(result), 1, 1)
    for mask, values in enumerate(result.difference_maps):
        trace = go.Heatmap(
            z=values[::STRIDE, ::STRIDE],
            dx=STRIDE,
            dy=STRIDE,
            zmin=0,
            zmax=top,
            colorscale="Viridis",
            visible=mask == 0,
            colorbar={"title": "RGB distance<br>(black to white: 2)"},
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


def _bare(figure: go.Figure, panels: int) -> go.Figure:
    """Square pixels and no axes."""
    figure.update_xaxes(visible=False, constrain="domain")
    for panel in range(1, panels + 1):
        anchor = "x" if panel == 1 else f"x{panel}"
        figure.update_yaxes(visible=False, scaleanchor=anchor, constrain="domain", row=1, col=panel)
    figure.update_layout(width=panels * PIXELS + 120, height=PIXELS + 120, margin={"l": 10, "r": 10, "t": 40, "b": 10})
    return figure
