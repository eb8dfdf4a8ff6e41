"""What an evaluation comes to: tables in which every figure has its protocol and its interval, printed and as files."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from emerdiff_probe.data.summary import LabelSummary
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.run import FIGURES, Cell, Evaluation, EvaluationResult
from emerdiff_probe.files import write_whole
from emerdiff_probe.methods.catalogue import Method
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.naming import Naming
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.methods.sharpening import Sharpened
from emerdiff_probe.metrics.intervals import IMAGES_FOR_A_VERDICT
from emerdiff_probe.metrics.overlaps import Overlap, class_iou
from emerdiff_probe.metrics.protocols import (
    HungarianPerDataset,
    HungarianPerImage,
    Judged,
    Majority,
    Matching,
    NearestConcept,
    OpenVocabulary,
    Score,
    Supervised,
    average,
    average_difference,
    evaluate,
    judge,
    total_confusion,
)

Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""Title, header and rows."""
FOLDED = 10
"""Rows of a table of classes from which on a notebook shows it folded."""


def _per_dataset(result: EvaluationResult, images: Sequence[Overlap]) -> Matching:
    """As many clusters as classes, as STEGO has; a few images may have fewer segments than that."""
    segments = sum(len(overlap.segments) for overlap in images)
    return HungarianPerDataset(min(len(result.data.classes), segments), seed=result.evaluation.config.seed)


PROTOCOLS: Mapping[str, Callable[[EvaluationResult, Sequence[Overlap]], Matching]] = MappingProxyType(
    {
        "majority": lambda result, images: Majority(),
        "hungarian-per-image": lambda result, images: HungarianPerImage(),
        "hungarian-per-dataset": _per_dataset,
        "concept": lambda result, images: NearestConcept(result.concepts),
    }
)
"""Protocols by name, each for a method's segments in all images."""


@dataclass(frozen=True)
class Line:
    """What is known of a method without classes.

    Attributes:
        cell: the method and its number of segments.
        figures: a score for each of `FIGURES`.
        segments: how many an image has on average.
        seconds: an image, the median over images; training is not counted. NaN where another tool did the work.
        peak_mib: the largest of all images; None where unknown.
    """

    cell: Cell
    figures: tuple[Score, ...]
    segments: float
    seconds: float
    peak_mib: float | None


@dataclass(frozen=True, eq=False)
class Row:
    """How good a method is under a protocol, in 0 … 1.

    Attributes:
        line: the method.
        miou, accuracy: scores.
        confusion: (class, class + 1) pixels of all images, true class by row; the last column has no class.
    """

    line: Line
    miou: Score
    accuracy: Score
    confusion: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of every class, (class,); NaN for one that does not occur."""
        return class_iou(self.confusion)


@dataclass(frozen=True)
class Gain:
    """How much higher one method's mIoU is than another's, on the same images with the same number asked for.

    Methods that choose their number each have another, and protocols such as majority favour more segments: there is
    no gain between them. Words favour none, so that a namer gains inside segments of any number.

    Attributes:
        method: EmerDiff in one of its variants, or a namer inside segments.
        over: a rival, or for EmerDiff's first variant another one too; or the namer by itself.
        clusters: the number, or several of which the gain is the average.
        miou: the difference with its paired interval.
    """

    method: str
    over: str
    clusters: tuple[int | None, ...]
    miou: Score


@dataclass(frozen=True)
class Difference:
    """How far two methods are apart without classes, on the same images with the same number asked for.

    Attributes:
        method, over: as of a `Gain`, but for namers.
        clusters: the number, or several of which the differences are the average.
        figures: of each of `FIGURES` the first method's less the other's, with paired intervals.
    """

    method: str
    over: str
    clusters: tuple[int | None, ...]
    figures: tuple[Score, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """All tables of an evaluation; prints as Markdown, shows itself in a notebook.

    Attributes:
        title: of the data set.
        images: names of those that were scored.
        skipped: what was wrong with the others, by name.
        labels: which classes occur in them, and how much is ignored.
        lines: by method and number of segments.
        rows: by method, number of segments and protocol.
        gains: of every variant of EmerDiff over its rivals, and of the first over the others.
        differences: of the same in what needs no classes.
        judged: segments with their classes by the first protocol, for pictures.
    """

    title: str
    images: tuple[str, ...]
    skipped: Mapping[str, str]
    labels: LabelSummary
    lines: tuple[Line, ...]
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    differences: tuple[Difference, ...]
    judged: Mapping[Cell, Judged]

    def __str__(self) -> str:
        return "\n\n".join(
            f"### {title}\n\n{markdown_table(header, body)}" if title else markdown_table(header, body)
            for title, header, body in self.tables()
        )

    def _repr_html_(self) -> str:
        return "".join(show_table(name, table) for name, table in self.named_tables().items())

    def tables(self) -> list[Table]:
        """Title, header and body of every table, in percent points where classes are scored."""
        return list(self.named_tables().values())

    def named_tables(self) -> dict[str, Table]:
        """The same by name: "scores", "gains" and "classes" where there are classes, "segments" and "differences"."""
        tables: dict[str, Table] = {}
        title = f"{self.title}: {len(self.images)} images, {len(self.skipped)} skipped; {self.labels}"
        if self.rows:
            header: Sequence[str] = ("method", "K", "mIoU", "95% interval", "pixel accuracy", "protocol", *_COSTS)
            body: list[Sequence[str]] = [
                (
                    *_cell(row.line.cell),
                    *_points(row.miou),
                    _points(row.accuracy)[0],
                    row.miou.protocol,
                    *_cost(row.line),
                )
                for row in self.rows
            ]
            tables["scores"] = f"{title}; percent, bootstrap over images", header, body
        if self.gains:
            body = [
                (
                    gain.method,
                    gain.over,
                    _numbers(gain.clusters),
                    *_points(gain.miou, "+"),
                    conclusion(gain.miou),
                    gain.miou.protocol,
                )
                for gain in self.gains
            ]
            header = ("method", "over", "K", "mIoU points", "paired 95% interval", "it is", "protocol")
            unequal = any(line.cell.clusters is None for line in self.lines)
            title = "Gains on the same images, asked for equal numbers of segments"
            tables["gains"] = title + "; those of K auto are left out" * unequal, header, body
        header = ("method", "K", *FIGURES, *(() if self.rows else _COSTS))
        body = [
            (
                *_cell(line.cell),
                *(f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in line.figures),
                *(() if self.rows else _cost(line)),
            )
            for line in self.lines
        ]
        note = "no classes, nothing matched: means over images with 95% intervals; variation in bits, lower is better"
        tables["segments"] = note if self.rows else f"{title}; {note}", header, body
        if self.differences:
            body = [
                (
                    apart.method,
                    apart.over,
                    _numbers(apart.clusters),
                    *(f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]" for score in apart.figures),
                )
                for apart in self.differences
            ]
            note = "The same without classes: differences on the same images with paired 95% intervals"
            tables["differences"] = note, ("method", "over", "K", *FIGURES), body
        if self.rows:
            tables["classes"] = self._classes()
        return tables

    def _classes(self) -> Table:
        shown = list(self.shown().values())
        columns = [f"{row.line.cell.method}, {_numbers((row.line.cell.clusters,))}" for row in shown]
        pixels = shown[0].confusion.sum(1)  # of what methods saw, which may be a part of the image
        shares = pixels / max(int(pixels.sum()), 1)
        body: list[Sequence[str]] = [
            (name, f"{100 * share:.1f}", *(f"{100 * row.iou[place]:.1f}" for row in shown))
            for place, (name, share) in enumerate(zip(self.labels.classes, shares, strict=True))
            if share
        ]
        protocols = ", ".join(dict.fromkeys(row.miou.protocol for row in shown))
        title = f"IoU of every class that occurs, percent; columns are methods with their K; protocol: {protocols}"
        return title, ("class", "% of the pixels", *columns), body

    def shown(self) -> dict[str, Row]:
        """One row a method, where there is no room for all: its first protocol, the middle one of its numbers."""
        first: dict[Cell, Row] = {}
        for row in self.rows:
            first.setdefault(row.line.cell, row)
        return {cell.method: first[cell] for cell in middle_cells(first)}

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by name with unrounded figures, for programs: shares in 0 … 1, K empty for "auto".

        "classes" has a row for every method, K, protocol and class, and "confusion" one for every assigned class too,
        of `shown` alone.
        """
        frames = {
            "segments": pd.DataFrame(
                [{**_place(line.cell), **_figures(line.figures), **_costs(line)} for line in self.lines]
            )
        }
        if self.differences:
            frames["differences"] = pd.DataFrame(
                {
                    "method": apart.method,
                    "over": apart.over,
                    "K": _numbers(apart.clusters),
                    **_figures(apart.figures),
                    "images": apart.figures[0].images,
                }
                for apart in self.differences
            )
        if not self.rows:
            return frames
        shares = {
            (row.line.cell, row.miou.protocol): {**_place(row.line.cell), "protocol": row.miou.protocol}
            for row in self.rows
        }
        names = [*self.labels.classes, NO_CLASS]
        frames["scores"] = pd.DataFrame(
            {
                **shares[row.line.cell, row.miou.protocol],
                **_interval("mIoU", row.miou),
                **_interval("pixel accuracy", row.accuracy),
                **_costs(row.line),
            }
            for row in self.rows
        )
        frames["classes"] = pd.DataFrame(
            {**shares[row.line.cell, row.miou.protocol], "class": name, "IoU": iou, "pixels": pixels}
            for row in self.rows
            for name, iou, pixels in zip(self.labels.classes, row.iou, row.confusion.sum(1), strict=True)
        )
        frames["confusion"] = pd.DataFrame(
            {
                **shares[row.line.cell, row.miou.protocol],
                "class": names[true],
                "assigned": names[assigned],
                "pixels": pixels,
            }
            for row in self.shown().values()
            for (true, assigned), pixels in np.ndenumerate(row.confusion)
            if pixels
        )
        if self.gains:
            frames["gains"] = pd.DataFrame(
                {
                    "method": gain.method,
                    "over": gain.over,
                    "K": _numbers(gain.clusters),
                    "protocol": gain.miou.protocol,
                    **_interval("mIoU difference", gain.miou),
                    "it is": conclusion(gain.miou),
                    "images": gain.miou.images,
                }
                for gain in self.gains
            )
        for name in frames.keys() - {"gains", "differences"}:
            frames[name]["K"] = frames[name]["K"].astype("Int64")  # whole numbers, and empty for "auto"
        return frames

    def save(self, folder: str | Path) -> list[Path]:
        """Write every table as Markdown (report.md), CSV (unrounded, see `frames`) and LaTeX (as printed, booktabs).

        Args:
            folder: to write to, new or not; files of these names are replaced.

        Returns:
            What was written.
        """
        texts = {"report.md": f"{self}\n"}
        texts |= {f"{name}.csv": frame.to_csv(index=False) for name, frame in self.frames().items()}
        texts |= {f"{name}.tex": latex_table(table) for name, table in self.named_tables().items()}
        written = []
        for name, text in texts.items():
            written.append(Path(folder) / name)
            write_whole(written[-1], partial(_write_text, text))
        return written

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values: scores of classes in percent points, figures without classes as they are."""
        return {
            "rows": [
                {
                    **_cell_json(row.line.cell),
                    "protocol": row.miou.protocol,
                    **_json(row.miou),
                    "pixel_accuracy": round(100 * row.accuracy.value, 2),
                    **_cost_json(row.line),
                }
                for row in self.rows
            ],
            "gains": [
                {
                    "method": gain.method,
                    "over": gain.over,
                    "protocol": gain.miou.protocol,
                    "clusters": _numbers_json(gain.clusters),
                    **_json(gain.miou),
                }
                for gain in self.gains
            ],
            "without_classes": [
                {
                    **_cell_json(line.cell),
                    **_figures_json(line.figures),
                    **_cost_json(line),
                }
                for line in self.lines
            ],
            "differences": [
                {
                    "method": apart.method,
                    "over": apart.over,
                    "clusters": _numbers_json(apart.clusters),
                    **_figures_json(apart.figures),
                }
                for apart in self.differences
            ],
            "images": len(self.images),
            "skipped": len(self.skipped),
            "labels": self.labels.to_json(),
        }


def make_report(result: EvaluationResult, protocols: Sequence[str] = ("majority",)) -> Report:
    """Score the records of an evaluation.

    Methods that name classes are scored by their names, whatever the protocols. EmerDiff, in each of its variants, is
    compared with every rival of the same number of segments under each protocol, and on average over the numbers, but
    not where methods choose the number themselves; its first variant with the others; a namer inside segments with
    the namer by itself.

    Args:
        result: from `run_evaluation`.
        protocols: keys of `PROTOCOLS`; of no consequence for data without classes.

    Raises:
        InputError: an unknown protocol, or none; labels of one class, or nearly all ignored (see `LabelSummary`).
    """
    require_protocols(protocols)
    labels = result.labels_found
    labels.require_scorable()
    lines, rows = [], []
    pictured: dict[Cell, Judged] = {}
    unnamed: dict[Cell, np.ndarray] = {}
    scored: dict[tuple[str, str, int | None], Judged] = {}
    for cell, method in result.evaluation.cells.items():
        records = result.records(cell)
        unnamed[cell] = np.array([[record.figures[name] for record in records] for name in FIGURES])
        figures = tuple(map(average, FIGURES, unnamed[cell]))
        peaks = [record.peak_mib for record in records if record.peak_mib is not None]
        line = Line(
            cell,
            figures,
            float(np.mean([record.figures["segments"] for record in records])),
            float(np.median([record.seconds for record in records])),
            max(peaks, default=None),
        )
        lines.append(line)
        images = [record.overlap for record in records if record.overlap is not None]
        if not images:
            continue
        light = [_light(overlap) for overlap in images]
        for matching in _matchings(result, method, protocols, images):
            found = judge(images, matching)
            found = found._replace(images=light)
            rows.append(Row(line, evaluate(*found), evaluate(*found, "pixel accuracy"), total_confusion(*found)))
            scored[found.protocol.name, cell.method, cell.clusters] = found
            pictured.setdefault(cell, found)
    return Report(
        result.data.name,
        result.images,
        result.skipped,
        labels,
        tuple(lines),
        tuple(rows),
        tuple(_gains(result.evaluation, scored)),
        tuple(_differences(result.evaluation, unnamed)),
        pictured,
    )


def _light(overlap: Overlap) -> Overlap:
    """What scores need once segments have their classes: no embeddings, and counts in as few bytes as hold them."""
    kind = np.min_scalar_type(int(overlap.counts.max(initial=0)))
    return replace(overlap, counts=overlap.counts.astype(kind), embeddings=None)


def _matchings(
    result: EvaluationResult, method: Method, protocols: Sequence[str], images: Sequence[Overlap]
) -> list[Matching]:
    if isinstance(method, Reference):
        return [Supervised()]
    if isinstance(method, Naming):
        return [OpenVocabulary()]
    return [PROTOCOLS[name](result, images) for name in protocols]


def require_protocols(names: Sequence[str]) -> None:
    """Refuse what is no protocol.

    Raises:
        InputError: an unknown name, one twice, or none.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= set(PROTOCOLS):
        raise InputError(f"protocols {', '.join(names) or 'none'}; accepted: {', '.join(PROTOCOLS)}, each once")


_Scored = Mapping[tuple[str, str, int | None], Judged]
"""By the name of the protocol, the method and its number of segments."""


def _gains(evaluation: Evaluation, scored: _Scored) -> Iterable[Gain]:
    """Of EmerDiff over its rivals, its first variant over the others, and of namers in segments over those without."""
    for variant, other in _compared(evaluation):
        for protocol in dict.fromkeys(protocol for protocol, method, _ in scored if method == other):
            yield from _gain(scored, protocol, variant, other)
    for naming in evaluation.methods:
        if isinstance(naming, Naming) and naming.masks is not None:
            yield from _gain(scored, OpenVocabulary().name, naming.name, naming.namer, whole=True)


def _compared(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """Every variant of EmerDiff with each of its rivals, and the first with the other variants."""
    variants = [method.name for method in evaluation.methods if _is_emerdiff(method)]
    for place, variant in enumerate(variants):
        known = variants if place else [variant]
        yield from ((variant, other.name) for other in evaluation.methods if other.name not in known)


def _differences(evaluation: Evaluation, figures: Mapping[Cell, np.ndarray]) -> Iterable[Difference]:
    """In what needs no classes, (figure, image) by cell; those of several numbers on average, too."""
    for variant, over in _compared(evaluation):
        pairs = {
            count: figures[Cell(variant, count)] - figures[Cell(over, count)]
            for name, count in figures
            if name == variant and count is not None and Cell(over, count) in figures
        }
        apart: dict[tuple[int | None, ...], np.ndarray] = {(count,): found for count, found in pairs.items()}
        if len(pairs) > 1:
            apart[tuple(pairs)] = np.mean(list(pairs.values()), axis=0)
        for counts, found in apart.items():
            yield Difference(variant, over, counts, tuple(map(average, FIGURES, found)))


def _is_emerdiff(method: Method) -> bool:
    return isinstance(method.method if isinstance(method, Sharpened) else method, EmerDiff)


def _gain(scored: _Scored, protocol: str, method: str, over: str, *, whole: bool = False) -> Iterable[Gain]:
    """For every number of segments asked of both, and on average; `whole`: the other has no segments."""
    pairs = {
        clusters: (ours, scored[other])
        for (said, name, clusters), ours in scored.items()
        if (said, name) == (protocol, method)
        and (whole or clusters is not None)  # numbers of their own differ, and protocols favour more segments
        and (other := (protocol, over, None if whole else clusters)) in scored
    }
    for clusters, pair in pairs.items():
        yield Gain(method, over, (clusters,), average_difference([pair]))
    if len(pairs) > 1:
        yield Gain(method, over, tuple(pairs), average_difference(list(pairs.values())))


def conclusion(difference: Score) -> str:
    """What a difference with its paired interval says."""
    if difference.images < IMAGES_FOR_A_VERDICT or difference.low <= 0 <= difference.high:
        return "not resolved"
    return "better" if difference.low > 0 else "worse"


_COSTS = ("segments", "s an image", "peak MiB")


def _cost(line: Line) -> tuple[str, ...]:
    peak = "-" if line.peak_mib is None else f"{line.peak_mib:.0f}"
    seconds = "-" if math.isnan(line.seconds) else f"{line.seconds:.2f}"
    return f"{line.segments:.1f}", seconds, peak


def _cost_json(line: Line) -> dict[str, float | None]:
    peak = None if line.peak_mib is None else round(line.peak_mib, 1)
    seconds = None if math.isnan(line.seconds) else round(line.seconds, 4)
    return {"segments": round(line.segments, 2), "seconds_per_image": seconds, "peak_mib": peak}


def _cell(cell: Cell) -> tuple[str, str]:
    return cell.method, _numbers((cell.clusters,))


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, "clusters": cell.clusters}


def _numbers(clusters: Sequence[int | None]) -> str:
    texts = ["auto" if count is None else str(count) for count in clusters]
    return texts[0] if len(texts) == 1 else f"mean of {', '.join(texts)}"


def _numbers_json(clusters: Sequence[int | None]) -> int | list[int | None] | None:
    return clusters[0] if len(clusters) == 1 else list(clusters)


def _points(score: Score, sign: str = "") -> tuple[str, str]:
    """A figure and its interval in percent points."""
    value, low, high = (f"{100 * figure:{sign}.2f}" for figure in (score.value, score.low, score.high))
    return value, f"[{low}, {high}]"


def _json(score: Score) -> dict[str, float]:
    figures = {"miou": score.value, "low": score.low, "high": score.high}
    return {name: round(100 * figure, 2) for name, figure in figures.items()}


NO_CLASS = "no class"
"""Column of a confusion for pixels of segments that no class was given to."""


def middle_cells(cells: Iterable[Cell]) -> list[Cell]:
    """One cell a method: that of the middle one of its numbers as they were given, the first of two in the middle."""
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, []).append(cell)
    return [some[(len(some) - 1) // 2] for some in by_method.values()]


def _place(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, "K": cell.clusters}


def _interval(name: str, score: Score) -> dict[str, float]:
    return {name: score.value, f"{name} low": score.low, f"{name} high": score.high}


def _figures(figures: Iterable[Score]) -> dict[str, float]:
    return {key: value for score in figures for key, value in _interval(score.metric, score).items()}


def _figures_json(figures: Iterable[Score]) -> dict[str, list[float]]:
    return {score.metric: [round(figure, 4) for figure in (score.value, score.low, score.high)] for score in figures}


def _costs(line: Line) -> dict[str, float | None]:
    return dict(zip(_COSTS, (line.segments, line.seconds, line.peak_mib), strict=True))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def show_table(name: str, table: Table) -> str:
    """A table with its title in HTML; one of many classes is folded."""
    title, header, body = table
    whole = html_table(header, body)
    if name == "classes" and len(body) > FOLDED:
        return f"<details><summary><b>{html.escape(title)}</b></summary>{whole}</details>"
    return f"<p><b>{html.escape(title)}</b></p>{whole}"


def latex_table(table: Table) -> str:
    """A table in LaTeX, with its title as a comment; the document needs the package booktabs."""
    title, header, body = table
    frame = pd.DataFrame([list(row) for row in body], columns=list(header))
    lines = frame.to_latex(index=False, escape=True, column_format="l" * len(header))
    return f"% {' '.join(title.split())}\n{lines}"


def html_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """The same table in HTML."""

    def row(tag: str, texts: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"

    return f"<table>{row('th', header)}{''.join(row('td', line) for line in body)}</table>"


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; figures in columns line up in plain text too."""
    rows = [list(header), *map(list, body)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
