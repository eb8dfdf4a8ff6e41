"""A page with every table, and with images in rows, all methods side by side: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from emerdiff_probe.arrays import match_labels
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import Report, middle_cells, show_table
from emerdiff_probe.evaluation.run import Cell, EvaluationResult
from emerdiff_probe.files import write_whole
from emerdiff_probe.images import contours, palette, write_names
from emerdiff_probe.metrics.overlaps import assigned_confusion, mean_iou
from emerdiff_probe.metrics.protocols import Judged

SIDE = 256
"""Pixels of the longer side of a picture."""
LARGE = 0.03
"""Share of a picture from which on a segment bears its name or number."""
PLACES = ("best", "upper quarter", "median", "lower quarter", "worst")
"""Which images are shown, by rank."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .15rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
details { margin: 1rem 0; }
.row { display: flex; gap: .4rem; overflow-x: auto; }
figure { margin: 0 0 .6rem; flex: 1 0 200px; max-width: 256px; }
figure img { max-width: 100%; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
.classes span { display: inline-block; margin-right: .9rem; font-size: 13px; white-space: nowrap; }
.classes i { display: inline-block; width: .9em; height: .9em; margin-right: .3em; }
"""


def write_gallery(result: EvaluationResult, report: Report, path: str | Path) -> Path:
    """Write the page: every table, then up to five images in rows: image, truth, and what every method made of it.

    Images stand by the mean of the methods' scores, from the best to the worst. A method is shown with the middle one
    of its numbers of segments. Segments have white borders and the colour and name of their class by the first
    protocol, black where they have none; where the truth has no classes, the colour and number of the region of the
    truth that they are paired with, so that most pixels agree. A score is the image's own mIoU, or without classes its
    covering.

    Args:
        result: the records.
        report: of these records.
        path: of the HTML file, written as a whole or not at all.
    """
    cells = middle_cells(line.cell for line in report.lines)
    scores = {cell: _scores(result, cell, report.judged.get(cell)) for cell in cells}
    title = html.escape(f"{report.title}: {len(report.images)} images")
    chosen = spread(np.mean(list(scores.values()), axis=0).tolist())
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        _skipped(report),
        *(show_table(name, table) for name, table in report.named_tables().items()),
        f"<h2>{len(chosen)} images from the best to the worst, by the mean over methods</h2>",
        _classes(report),
        *(_row(result, report, scores, number, place) for number, place in chosen.items()),
    ]
    path = Path(path)
    write_whole(path, lambda partial: partial.write_text("\n".join(parts) + "</html>\n", encoding="utf-8"))
    return path


def spread(scores: Sequence[float]) -> dict[int, str]:
    """Numbers of up to five images from the best to the worst, each with its place; of equals the first is taken."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    found: dict[int, str] = {}
    for step, name in enumerate(PLACES):
        number = int(order[step * (len(order) - 1) // (len(PLACES) - 1)])
        found[number] = f"{found[number]}, {name}" if number in found else name
    return found


def _scores(result: EvaluationResult, cell: Cell, judged: Judged | None) -> list[float]:
    if judged is None:
        return [record.figures["covering"] for record in result.records(cell)]
    pairs = zip(judged.images, judged.protocol.assign(judged.images), strict=True)
    return [float(mean_iou(assigned_confusion(overlap, classes))) for overlap, classes in pairs]


def _row(
    result: EvaluationResult, report: Report, scores: Mapping[Cell, Sequence[float]], number: int, place: str
) -> str:
    name = report.images[number]
    heading = f"<h3>{html.escape(f'{place}: {name}')}</h3>"
    try:
        sample = result.data[result.data.names.index(name)]
        image = sample.pixels()
    except InputError as error:  # its records are there, it is not any more
        return f"{heading}<p>{html.escape(str(error))}</p>"
    resizing = result.evaluation.resizing
    truth = resizing.seen(sample.truth())
    truth = truth if truth.ndim == 2 else truth[0]
    image = image[resizing.window(*image.shape[:2])]
    figures = [_figure(image, "image", ""), _figure(_draw(truth, result.data.classes), "truth", "")]
    for cell, own in scores.items():
        judged = report.judged.get(cell)
        labels = result.labels(name, cell)
        if judged is None:
            drawn, measure = _draw(match_labels(labels, truth), (), labels), "covering"
        else:
            segments, classes = judged.images[number].segments, judged.protocol.assign(judged.images)[number]
            by_label = np.full(max(int(labels.max()), int(segments.max(initial=0))) + 1, IGNORED)
            by_label[segments] = classes
            drawn, measure = _draw(by_label[labels], result.data.classes, labels), f"mIoU, {judged.protocol.name}"
        count = "" if cell.clusters is None else f", {cell.clusters} segments"
        figures.append(_figure(drawn, f"{cell.method}{count}", f"{own[number]:.3f} {measure}"))
    return f"{heading}<div class='row'>{''.join(figures)}</div>"


def _draw(labels: np.ndarray, names: Sequence[str], segments: np.ndarray | None = None) -> np.ndarray:
    """Labels (height, width) in their colours at the size of the page, -1 in black, large ones with name or number."""
    rows, columns = (
        ((np.arange(size) + 0.5) * side / size).astype(int)
        for size, side in zip(_size(*labels.shape), labels.shape, strict=True)
    )
    labels = labels[np.ix_(rows, columns)]
    colours = np.vstack([palette(max(len(names), int(labels.max()) + 1)), np.zeros((1, 3), np.uint8)])
    drawn = contours(colours[labels], labels if segments is None else segments[np.ix_(rows, columns)])
    found, counts = np.unique(labels, return_counts=True)
    large = found[(counts >= LARGE * labels.size) & (found != IGNORED)].tolist()
    return write_names(drawn, labels, {label: names[label] if names else str(label) for label in large})


def _size(height: int, width: int) -> tuple[int, int]:
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _figure(pixels: np.ndarray, name: str, told: str) -> str:
    kind = "JPEG" if name == "image" else "PNG"
    picture = Image.fromarray(pixels)
    if name == "image":
        height, width = _size(*pixels.shape[:2])
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode()
    said = html.escape(name, quote=True)
    shown = f"<img alt='{said}' src='data:image/{kind.lower()};base64,{data}'>"
    return f"<figure>{shown}<figcaption>{said}<br>{html.escape(told)}</figcaption></figure>"


def _skipped(report: Report) -> str:
    if not report.skipped:
        return ""
    listed = "".join(f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in report.skipped.items())
    return f"<h2>Skipped images</h2><ul>{listed}</ul>"


def _classes(report: Report) -> str:
    """The colours of the classes that occur."""
    names = report.labels.classes
    spans = (
        f"<span><i style='background:rgb({red},{green},{blue})'></i>{html.escape(name)}</span>"
        for name, (red, green, blue) in zip(names, palette(len(names)), strict=True)
        if name in report.labels.occurring
    )
    return f"<p class='classes'>{''.join(spans)}</p>"
