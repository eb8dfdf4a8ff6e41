"""A page with the best, median and worst images of every method: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import Report, html_table
from emerdiff_probe.evaluation.run import Cell, EvaluationResult
from emerdiff_probe.files import write_whole
from emerdiff_probe.images import colour_labels, contours, palette
from emerdiff_probe.metrics.overlaps import assigned_confusion, mean_iou
from emerdiff_probe.metrics.protocols import Judged

SIDE = 256
"""Pixels of the longer side of a picture."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .15rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0 0 1rem; }
figcaption { font-size: 13px; }
img { margin-right: 2px; }
.classes span { display: inline-block; margin-right: .9rem; font-size: 13px; white-space: nowrap; }
.classes i { display: inline-block; width: .9em; height: .9em; margin-right: .3em; }
"""


def write_gallery(result: EvaluationResult, report: Report, path: str | Path) -> Path:
    """Write the page: for every method three images with truth, segmentation and score, then every table.

    A method is shown with the middle one of its numbers of segments. Segments have the colour of their class by the
    first protocol, black where they have none, and white borders; an image's score is its own mIoU by that protocol,
    or its covering where the truth has no classes.

    Args:
        result: the records.
        report: of these records.
        path: of the HTML file, written as a whole or not at all.
    """
    cells: dict[str, list[Cell]] = {}
    for line in report.lines:
        cells.setdefault(line.cell.method, []).append(line.cell)
    title = html.escape(f"{report.title}: {len(report.images)} images")
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        _skipped(report),
        "<h2>Best, median and worst image of every method: image, truth, segmentation</h2>",
        _classes(result.data.classes),
        *(_section(result, report, some[(len(some) - 1) // 2]) for some in cells.values()),
        *(f"<h2>{html.escape(name)}</h2>{html_table(header, body)}" for name, header, body in report.tables()),
    ]
    path = Path(path)
    write_whole(path, lambda partial: partial.write_text("\n".join(parts) + "</html>\n", encoding="utf-8"))
    return path


def extremes(scores: Sequence[float]) -> dict[int, str]:
    """Numbers of the best, the median and the worst image, each with what it is; of equals the first is taken."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    found: dict[int, str] = {}
    for name, place in (("best", 0), ("median", len(order) // 2), ("worst", len(order) - 1)):
        number = int(order[place])
        found[number] = f"{found[number]}, {name}" if number in found else name
    return found


def _section(result: EvaluationResult, report: Report, cell: Cell) -> str:
    judged = report.judged.get(cell)
    scores, measure = _scores(result, cell, judged)
    figures = []
    for number, name in extremes(scores).items():
        caption = f"{name}: {html.escape(report.images[number])}, {measure} {scores[number]:.3f}"
        figures.append(f"<figure>{_pictures(result, cell, judged, number)}<figcaption>{caption}</figcaption></figure>")
    count = "" if cell.clusters is None else f", {cell.clusters} segments"
    protocol = "" if judged is None else f", protocol: {judged.protocol.name}"
    heading = html.escape(f"{cell.method}{count}{protocol}")
    return f"<h3>{heading}</h3><div class='row'>{''.join(figures)}</div>"


def _scores(result: EvaluationResult, cell: Cell, judged: Judged | None) -> tuple[list[float], str]:
    if judged is None:
        return [record.figures["covering"] for record in result.records(cell)], "covering"
    pairs = zip(judged.images, judged.protocol.assign(judged.images), strict=True)
    return [float(mean_iou(assigned_confusion(overlap, classes))) for overlap, classes in pairs], "mIoU"


def _pictures(result: EvaluationResult, cell: Cell, judged: Judged | None, number: int) -> str:
    name = result.images[number]
    labels = result.labels(name, cell)
    try:
        sample = result.data[result.data.names.index(name)]
        image = sample.pixels()
    except InputError as error:  # its records are there, it is not any more
        return html.escape(str(error))
    resizing = result.evaluation.resizing
    truth = resizing.seen(sample.truth())
    image = image[resizing.window(*image.shape[:2])]
    if judged is None:
        drawn, found = colour_labels(truth[0] if truth.ndim == 3 else truth), colour_labels(labels)
    else:
        classes = judged.protocol.assign(judged.images)[number]
        by_label = np.full(max(int(labels.max()), int(judged.images[number].segments.max(initial=0))) + 1, -1)
        by_label[judged.images[number].segments] = classes
        drawn, found = _by_class(truth, result), _by_class(by_label[labels], result)
    drawn_by = {"image": image, "truth": drawn, "segmentation": contours(found, labels)}
    return "".join(_picture(pixels, name) for name, pixels in drawn_by.items())


def _by_class(classes: np.ndarray, result: EvaluationResult) -> np.ndarray:
    """Classes (height, width) in colours; -1, what has none, is black."""
    return np.vstack([palette(len(result.data.classes)), np.zeros((1, 3), np.uint8)])[classes]


def _picture(pixels: np.ndarray, name: str) -> str:
    kind, resampling = ("JPEG", Image.Resampling.LANCZOS) if name == "image" else ("PNG", Image.Resampling.NEAREST)
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), resampling)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{name}' title='{name}' src='data:image/{kind.lower()};base64,{data}'>"


def _skipped(report: Report) -> str:
    if not report.skipped:
        return ""
    listed = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in report.skipped.items())
    return f"<h2>Skipped images</h2><ul>{listed}</ul>"


def _classes(names: Sequence[str]) -> str:
    swatches = [f"<i style='background:rgb({red},{green},{blue})'></i>" for red, green, blue in palette(len(names))]
    spans = (f"<span>{swatch}{html.escape(name)}</span>" for swatch, name in zip(swatches, names, strict=True))
    return f"<p class='classes'>{''.join(spans)}</p>"
