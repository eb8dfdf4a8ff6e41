"""What an evaluation comes to: tables in which every figure has its protocol and its interval."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from emerdiff_probe.data.summary import LabelSummary
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.run import FIGURES, Cell, Evaluation, EvaluationResult
from emerdiff_probe.methods.catalogue import Method
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.naming import Naming
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.metrics.intervals import IMAGES_FOR_A_VERDICT
from emerdiff_probe.metrics.overlaps import Overlap
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
)

Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""Title, header and rows."""
OURS = EmerDiff().name
"""Whose gain over every other method is reported."""


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
        seconds: an image, the median over images; training is not counted.
        peak_mib: the largest of all images; None where unknown.
    """

    cell: Cell
    figures: tuple[Score, ...]
    segments: float
    seconds: float
    peak_mib: float | None


@dataclass(frozen=True)
class Row:
    """How good a method is under a protocol, in 0 … 1."""

    line: Line
    miou: Score
    accuracy: Score


@dataclass(frozen=True)
class Gain:
    """How much higher one method's mIoU is than another's, on the same images with the same number asked for.

    Methods that choose their number each have another, and protocols such as majority favour more segments: there is
    no gain between them. Words favour none, so that a namer gains inside segments of any number.

    Attributes:
        method: EmerDiff, or a namer inside segments.
        over: any other method, or the namer by itself.
        clusters: the number, or several of which the gain is the average.
        miou: the difference with its paired interval.
    """

    method: str
    over: str
    clusters: tuple[int | None, ...]
    miou: Score


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
        gains: of EmerDiff over every other method.
        judged: segments with their classes by the first protocol, for pictures.
    """

    title: str
    images: tuple[str, ...]
    skipped: Mapping[str, str]
    labels: LabelSummary
    lines: tuple[Line, ...]
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    judged: Mapping[Cell, Judged]

    def __str__(self) -> str:
        return "\n\n".join(
            f"### {title}\n\n{markdown_table(header, body)}" if title else markdown_table(header, body)
            for title, header, body in self.tables()
        )

    def _repr_html_(self) -> str:
        return "".join(
            f"<p><b>{html.escape(title)}</b></p>{html_table(header, body)}" for title, header, body in self.tables()
        )

    def tables(self) -> list[Table]:
        """Title, header and body of every table, in percent points where classes are scored."""
        tables: list[Table] = []
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
            tables.append((f"{title}; percent, bootstrap over images", header, body))
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
            tables.append((title + "; those of K auto are left out" * unequal, header, body))
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
        tables.append((note if self.rows else f"{title}; {note}", header, body))
        return tables

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
                    "clusters": gain.clusters[0] if len(gain.clusters) == 1 else list(gain.clusters),
                    **_json(gain.miou),
                }
                for gain in self.gains
            ],
            "without_classes": [
                {
                    **_cell_json(line.cell),
                    **{
                        score.metric: [round(figure, 4) for figure in (score.value, score.low, score.high)]
                        for score in line.figures
                    },
                    **_cost_json(line),
                }
                for line in self.lines
            ],
            "images": len(self.images),
            "skipped": len(self.skipped),
            "labels": self.labels.to_json(),
        }


def make_report(result: EvaluationResult, protocols: Sequence[str] = ("majority",)) -> Report:
    """Score the records of an evaluation.

    Methods that name classes are scored by their names, whatever the protocols. EmerDiff is compared with every method
    of the same number of segments under each protocol, and on average over the numbers, but not where methods choose
    the number themselves; a namer inside segments with the namer by itself.

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
    scored: dict[tuple[str, str, int | None], Judged] = {}
    for cell, method in result.evaluation.cells.items():
        records = result.records(cell)
        figures = tuple(average(name, [record.figures[name] for record in records]) for name in FIGURES)
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
            rows.append(Row(line, evaluate(*found), evaluate(*found, "pixel accuracy")))
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
    """Of EmerDiff over every other method, and of namers inside segments over the same by themselves."""
    for protocol, method in dict.fromkeys((protocol, method) for protocol, method, _ in scored if method != OURS):
        yield from _gain(scored, protocol, OURS, method)
    for naming in evaluation.methods:
        if isinstance(naming, Naming) and naming.masks is not None:
            yield from _gain(scored, OpenVocabulary().name, naming.name, naming.namer, whole=True)


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
    return f"{line.segments:.1f}", f"{line.seconds:.2f}", peak


def _cost_json(line: Line) -> dict[str, float | None]:
    peak = None if line.peak_mib is None else round(line.peak_mib, 1)
    return {"segments": round(line.segments, 2), "seconds_per_image": round(line.seconds, 4), "peak_mib": peak}


def _cell(cell: Cell) -> tuple[str, str]:
    return cell.method, _numbers((cell.clusters,))


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, "clusters": cell.clusters}


def _numbers(clusters: Sequence[int | None]) -> str:
    texts = ["auto" if count is None else str(count) for count in clusters]
    return texts[0] if len(texts) == 1 else f"mean of {', '.join(texts)}"


def _points(score: Score, sign: str = "") -> tuple[str, str]:
    """A figure and its interval in percent points."""
    value, low, high = (f"{100 * figure:{sign}.2f}" for figure in (score.value, score.low, score.high))
    return value, f"[{low}, {high}]"


def _json(score: Score) -> dict[str, float]:
    figures = {"miou": score.value, "low": score.low, "high": score.high}
    return {name: round(100 * figure, 2) for name, figure in figures.items()}


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
