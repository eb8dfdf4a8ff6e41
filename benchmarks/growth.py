"""How time and memory grow with the number of masks, the image, the batch and the number of images.

    python -m benchmarks.growth --model pocket
    python -m benchmarks.growth --model sd14-shape --size 192 --axes clusters,width

Along every axis all else stays as it is at the first point below. Every point has a process of its own, for memory is
what a run held at most beyond what was resident before it; seconds are the median of several runs after one that is not
timed. `order` is the slope between a point and the one before in a plot of logarithms: 1 where twice as much takes
twice as long.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import typer
from plotly.subplots import make_subplots

from benchmarks.drawing import GREY, write_figure
from benchmarks.emerdiff import held
from benchmarks.shapes import SD14_SHAPE, load
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.cost import measured
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.reading.correspondence import difference_maps
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, resolve_modulation
from emerdiff_probe.segmentation.segment import segment, segment_all
from emerdiff_probe.viz.figures import SHADES

CLUSTERS = 12
AXES: Mapping[str, tuple[int, ...]] = {
    "clusters": (4, 8, 12, 20, 40, 80),
    "width": (1, 2, 3, 4, 6),
    "batch": (1, 2, 4, 8, 16, 24, 48),
    "images": (1, 2, 4, 8),
}
UNITS = {
    "clusters": "masks K",
    "width": "width of the image, times its height",
    "batch": "variants a batch",
    "images": "images",
}
ROUND = [first * 10**power for power in range(-2, 5) for first in (1, 2, 5)]
"""Values that the axes of a figure have labels at."""


class Point(NamedTuple):
    """One value along one axis, and what is measured at it."""

    axis: str
    value: int
    model: str
    native: int | None
    device: str | None
    precision: str
    fast: bool
    repeats: int


def measure(point: Point) -> dict[str, Any]:
    """Seconds, memory and images asked of the denoiser at one point; in a process that has done nothing before."""
    model = load(point.model, point.device, point.precision, point.native)
    work = _work(model, point)
    before = held(model.device)
    asked: list[int] = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    try:
        _, first = measured(work, model.device)
    finally:
        handle.remove()
    costs = [measured(work, model.device)[1] for _ in range(point.repeats)]
    return {
        "axis": point.axis,
        "value": point.value,
        "seconds": round(median(cost.seconds for cost in costs), 4),
        "mebibytes": None if first.peak_mib is None else round(max(0.0, first.peak_mib - before), 1),
        "passes": sum(asked),
    }


def _work(model: ProbeModel, point: Point) -> Callable[[], object]:
    make = EmerDiffConfig.fast if point.fast else EmerDiffConfig.for_model
    config = make(model, clusters=point.value if point.axis == "clusters" else CLUSTERS)
    side = model.native_size
    image = draw_scene(0, height=side, width=side * (point.value if point.axis == "width" else 1)).image
    if point.axis == "images":
        return lambda: list(segment_all(model, [image] * point.value, config))
    if point.axis == "batch":
        modulation = resolve_modulation(model, config)
        probed = config.probe(model, image)
        grid = probed.grid(modulation.site)
        masks = one_hot_masks(np.arange(grid[0] * grid[1]).reshape(grid) % 24)  # 48 variants, or 25 one-sided
        return lambda: difference_maps(model, probed.trajectory, masks, modulation, batch_size=point.value)
    return lambda: segment(model, image, config)


def order(table: pd.DataFrame) -> pd.Series:
    """Slope of every point and the one before on its axis, in logarithms; NaN for the first."""
    logarithms = np.log(table[["value", "seconds"]]).groupby(table["axis"]).diff()
    return (logarithms["seconds"] / logarithms["value"]).round(2)


def growth_figure(table: pd.DataFrame, title: str) -> go.Figure:
    """Seconds above memory, a column an axis, both axes logarithmic; the thin line grows in proportion."""
    axes = list(dict.fromkeys(table["axis"]))
    figure = make_subplots(2, len(axes), horizontal_spacing=0.05, vertical_spacing=0.08, shared_xaxes="columns")
    for column, axis in enumerate(axes, start=1):
        part = table[table["axis"] == axis]
        for row, (name, units) in enumerate((("seconds", "seconds"), ("mebibytes", "MiB")), start=1):
            if (axis, name) != ("batch", "seconds"):  # the work is the same in whatever batches
                proportional = part[name].iloc[0] * part["value"] / part["value"].iloc[0]
                figure.add_scatter(x=part["value"], y=proportional, mode="lines", line={"width": 1, "color": GREY},
                    hoverinfo="skip", row=row, col=column)  # fmt: skip
            figure.add_scatter(x=part["value"], y=part[name], mode="lines+markers", line={"color": SHADES[0]},
                name=name, row=row, col=column)  # fmt: skip
            figure.update_yaxes(type="log", tickvals=ROUND, title=units if column == 1 else None, row=row, col=column)
        figure.update_xaxes(type="log", tickvals=list(part["value"]), col=column)
        figure.update_xaxes(title=UNITS[axis], row=2, col=column)
    return figure.update_layout(
        title=f"{title}; grey: in proportion",
        template="simple_white",
        showlegend=False,
        width=280 * len(axes),
        height=560,
    )


def some_axes(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The axes of these names; all when there is none.

    Raises:
        InputError: there is no such axis.
    """
    for name in names:
        if name not in AXES:
            raise InputError(f"no axis {name!r}; accepted: {', '.join(AXES)}")
    return {name: AXES[name] for name in (names or AXES)}


def main(
    model: Annotated[str, typer.Option(help=f"pocket, {SD14_SHAPE}, or a folder.")] = "pocket",
    axes: Annotated[str, typer.Option(help="Names with commas between; all when empty.")] = "",
    size: Annotated[int | None, typer.Option(help=f"Native size in pixels, of {SD14_SHAPE}.")] = None,
    fast: Annotated[bool, typer.Option(help="Measure the fast mode; else the exact one.")] = False,
    repeats: Annotated[int, typer.Option(help="Timed runs of every point.")] = 3,
    device: Annotated[str | None, typer.Option()] = None,
    precision: Annotated[str, typer.Option()] = "float32",
    out: Annotated[Path, typer.Option(help="Folder of the figure.")] = Path("out/growth"),
    png: Annotated[Path | None, typer.Option(help="The figure as a picture, too; needs Chromium.")] = None,
) -> None:
    """Print the table, write the figure and, as the last line, print one JSON object."""
    wanted = some_axes([name for name in axes.split(",") if name])
    points = [
        Point(axis, value, model, size, device, precision, fast, repeats)
        for axis, values in wanted.items()
        for value in values
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
        rows = []
        for point in points:
            rows.append(fresh.submit(measure, point).result())
            print(f"# {rows[-1]}", flush=True)
    table = pd.DataFrame(rows)
    table["order"] = order(table)
    title = f"{'Fast' if fast else 'Exact'} EmerDiff, {model}"
    figure = out / f"{model}-{'fast' if fast else 'exact'}.html".replace("/", "_")
    write_figure(growth_figure(table, title), figure, png)
    print(f"\n{title}, {precision}\n{table.to_string(index=False)}\n\n{figure}\n")
    print(json.dumps({"model": model, "fast": fast, "rows": json.loads(table.to_json(orient="records"))}))


if __name__ == "__main__":
    typer.run(main)
