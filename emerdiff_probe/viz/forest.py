"""The forest plot: paired differences with their intervals, a line at zero, and what each of them comes to."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import Report
from emerdiff_probe.studies.run import StudyResult
from emerdiff_probe.viz.figures import count_images, wrap

VERDICTS = {
    "agrees": ("#0072b2", "circle"),
    "better": ("#0072b2", "circle"),
    "disagrees": ("#d55e00", "square"),
    "worse": ("#d55e00", "square"),
    "not resolved": ("#777777", "diamond-open"),
    "not comparable": ("#777777", "x"),
}
"""Colour and marker of every verdict, both, so that colour-blind readers and printed pages can tell them apart."""
COLUMNS = ("label", "difference", "low", "high", "verdict")
"""What a row of a forest plot has; beside these it may have "units", "images" and "within"."""
LINE, HEAD, LABEL = 22, 64, 46
"""Pixels of a line of text, of what stands around the rows of one unit, and characters of a line of a label."""


def forest_figure(differences: StudyResult | Report | pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Differences with their 95% intervals beside a line at zero, one a row, each with its verdict on the right.

    Args:
        differences: a study, whose claims are shown; a report or its table "gains", of which EmerDiff's first variant
            beside its rivals is shown, or what segments add to namers; or a table with `COLUMNS`. Rows of different
            "units" have axes of their own. "within" is how far two places may differ and still be said to be alike: it
            is shaded.
        title: of the figure; what was asked when None.

    Raises:
        InputError: nothing to compare, or a table without these columns.
    """
    rows, said = _rows(differences)
    if rows.empty:
        raise InputError("a forest plot of no differences; accepted: a study with claims, a report with gains")
    units = rows["units"].drop_duplicates().tolist()
    rows["label"] = [wrap(label, LABEL) for label in rows["label"]]
    rows["place"] = rows.groupby("units").cumcount()
    heights = [
        HEAD + sum(LINE * (1 + label.count("<br>")) + 12 for label in rows[rows["units"] == unit]["label"])
        for unit in units
    ]
    figure = make_subplots(len(units), 1, row_heights=heights, vertical_spacing=min(0.4, 1.6 * HEAD / sum(heights)))
    for place, unit in enumerate(units, start=1):
        shown = rows[rows["units"] == unit]
        zero = {"color": "black", "width": 1.5}
        figure.add_vline(x=0, line=zero, exclude_empty_subplots=False, row=place, col=1)
        for _, row in shown.iterrows():
            if pd.notna(row["within"]):
                edges = {"x0": -row["within"], "x1": row["within"], "y0": row["place"] - 0.4, "y1": row["place"] + 0.4}
                shade = {"fillcolor": "#dddddd", "line_width": 0, "layer": "below"}
                figure.add_shape(type="rect", **edges, **shade, row=place, col=1)
            text = f"{row['difference']:+.2g} [{row['low']:+.2g}, {row['high']:+.2g}]  <b>{row['verdict']}</b>"
            figure.add_annotation(
                text=text,
                x=1.01,
                xref="paper",
                y=row["place"],
                yref="y" if place == 1 else f"y{place}",
                xanchor="left",
                showarrow=False,
                font={"size": 13, "color": VERDICTS[row["verdict"]][0]},
            )
        for verdict, (colour, symbol) in VERDICTS.items():
            ours = shown[shown["verdict"] == verdict]
            if ours.empty:
                continue
            figure.add_trace(
                go.Scatter(
                    x=ours["difference"],
                    y=ours["place"],
                    text=ours["label"],
                    error_x={
                        "type": "data",
                        "array": ours["high"] - ours["difference"],
                        "arrayminus": ours["difference"] - ours["low"],
                        "thickness": 2.5,
                        "width": 6,
                    },
                    mode="markers",
                    name=verdict,
                    marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
                    hovertemplate="%{text}<br>%{x:.3g}<extra>%{fullData.name}</extra>",
                ),
                place,
                1,
            )
        figure.update_yaxes(
            tickvals=shown["place"].tolist(),
            ticktext=shown["label"].tolist(),
            range=[len(shown) - 0.4, -0.6],
            tickfont={"size": 13},
            showgrid=False,
            zeroline=False,
            row=place,
            col=1,
        )
        alike = shown["within"].dropna()
        ends = [0.0, *shown["low"].dropna(), *shown["high"].dropna(), *alike, *-alike]
        room = 0.06 * (max(ends) - min(ends)) or 1.0
        figure.update_xaxes(
            title=f"difference ({unit})" if unit else "difference",
            range=[min(ends) - room, max(ends) + room],
            zeroline=False,
            row=place,
            col=1,
        )
    bars = f"{said}, bars: paired 95% bootstrap intervals" if said else "bars: paired 95% bootstrap intervals"
    heading = _question(differences) if title is None else title
    told = f"{wrap(heading, 90)}<br><sup>{bars}</sup>" if heading else f"<sup>{bars}</sup>"
    head = 76 + LINE * told.count("<br>")
    figure.update_layout(
        title={"text": told},
        width=1080,
        height=head + 50 + sum(heights),
        margin={"t": head, "l": 340, "r": 310, "b": 50},
        template="plotly_white",
        showlegend=False,
    )
    return figure


def _rows(differences: StudyResult | Report | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows with all columns, and how many images they are of, in words."""
    if isinstance(differences, StudyResult):
        made = differences.verdicts().rename(columns={"claim": "label"})
        study = differences.study
        made["units"] = [_points(study.measures[direction.measure].units) for direction in study.directions]
        made["within"] = [direction.within for direction in study.directions]
        return made, count_images(differences.images)
    frame = differences.frames().get("gains") if isinstance(differences, Report) else differences
    if frame is None:
        return pd.DataFrame(columns=[*COLUMNS, "units", "within"]), ""
    made = _gains(frame) if "mIoU difference" in frame else frame.reset_index(drop=True)
    if missing := [name for name in COLUMNS if name not in made]:
        raise InputError(f"a table without {', '.join(missing)} in a forest plot; accepted: {', '.join(COLUMNS)}")
    if unknown := set(made["verdict"]) - set(VERDICTS):
        raise InputError(f"verdicts {', '.join(sorted(unknown))}; accepted: {', '.join(VERDICTS)}")
    for name, filled in (("units", ""), ("within", None)):
        if name not in made:
            made[name] = filled
    images = {int(count) for count in made["images"]} if "images" in made else set[int]()
    counted = f"{min(images)} to " if len(images) > 1 else ""
    return made, counted + count_images(max(images)) if images else ""


def _gains(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a report's gains, the largest first: of the first variant of EmerDiff, or of every namer inside segments.

    Of several numbers of segments their average, where there is one.
    """
    average = frame["K"].astype(str).str.contains(",")
    frame = frame[average] if average.any() else frame
    if not frame["method"].str.contains(" + ", regex=False).all():
        frame = frame[frame["method"] == frame["method"].iloc[0]]
    found = {end: 100 * frame[f"mIoU difference{end}"].to_numpy() for end in ("", " low", " high")}
    made = pd.DataFrame(
        {
            "label": [f"{method} over {over}" for method, over in zip(frame["method"], frame["over"], strict=True)],
            "difference": found[""],
            "low": found[" low"],
            "high": found[" high"],
            "verdict": frame["it is"].tolist(),
            "images": frame["images"].tolist(),
            "units": "percentage points of mIoU",
        }
    )
    return made.sort_values("difference", ascending=False, ignore_index=True)


def _points(units: str) -> str:
    return "percentage points" if units == "%" else units


def _question(differences: StudyResult | Report | pd.DataFrame) -> str:
    if isinstance(differences, StudyResult):
        return differences.study.question
    return differences.title if isinstance(differences, Report) else ""
