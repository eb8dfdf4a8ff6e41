"""The study explorer: any stored study, with its axes laid out by menus."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from emerdiff_probe.studies.run import StudyResult, load_result
from emerdiff_probe.studies.study import Axis, Value
from emerdiff_probe.viz.figures import study_figure
from emerdiff_probe.viz.widgets.explorer import (
    Explorer,
    described,
    on_change,
    row_of,
)
from emerdiff_probe.viz.widgets.figure import Figure

NOTHING = "nothing"
EVERY = "every value"
FACET = 460
"""Width of one of several figures: two stand side by side in a page."""


class StudyExplorer(Explorer):
    """See `explore_study`.

    Attributes:
        measure: what is drawn; along: the axis to the right; facet: the axis with a figure for every value.
        kept: for every axis a menu that keeps one of its values, or all.
        figures: one, or one for every value of the facet.
    """

    def __init__(self, result: StudyResult) -> None:
        super().__init__()
        self.result = result
        study = result.study
        longest = max(study.axes, key=lambda name: len(study.axes[name].values))
        self.measure = described(
            widgets.Dropdown, "measure", options=[(about.description, name) for name, about in study.measures.items()]
        )
        self.along = described(widgets.Dropdown, "along", options=list(study.axes), value=longest)
        self.facet = described(widgets.Dropdown, "a figure for each", options=[NOTHING])
        self.kept = {
            name: described(widgets.Dropdown, name, options=_values(axis)) for name, axis in study.axes.items()
        }
        self.figures: tuple[Figure, ...] = ()
        self._drawn = row_of()
        self._verdicts = widgets.HTML()
        self._offer_facets()
        self.along.observe(lambda _: self._offer_facets(), "value")
        on_change((self.measure, self.along, self.facet, *self.kept.values()), self._refresh)
        self.children = [
            row_of(self.measure, self.along, self.facet),
            row_of(*self.kept.values()),
            self._drawn,
            self._verdicts,
            self.status,
        ]
        self._verdicts.value = _table(result.verdicts()) if study.directions else ""
        self._refresh()

    def _offer_facets(self) -> None:
        """Every axis but the one to the right, which each figure has whole."""
        chosen = self.facet.value
        self.facet.options = [NOTHING, *(name for name in self.result.study.axes if name != self.along.value)]
        self.facet.value = chosen if chosen in self.facet.options else NOTHING

    def _refresh(self) -> None:
        held = {
            name: menu.value for name, menu in self.kept.items() if menu.value != EVERY and name != self.along.value
        }
        asked = _Asked(self.measure.value, self.along.value, self.facet.value, held)
        for name, menu in self.kept.items():
            menu.disabled = name == asked.along
        self._ask(lambda: self._answer(asked), self._show)

    def _answer(self, asked: _Asked) -> list[go.Figure]:
        part = self.result.within(asked.held)
        if asked.facet == NOTHING or asked.facet in asked.held:
            return [study_figure(part, asked.measure, asked.along)]
        figures = []
        for value in part.study.axes[asked.facet].values:
            figure = study_figure(part.within({asked.facet: value}), asked.measure, asked.along)
            title = {"text": f"{asked.facet}: {value}"}
            figures.append(figure.update_layout(title=title, width=FACET, height=FACET * 3 // 4, margin={"t": 50}))
        return figures

    def _show(self, figures: list[go.Figure]) -> None:
        replaced, self.figures = self.figures, tuple(Figure(figure) for figure in figures)
        self._drawn.children = self.figures
        for figure in replaced:
            figure.close()  # what stays open is sent whole, plotly.js with it, to a page that is loaded again


class _Asked(NamedTuple):
    measure: str
    along: str
    facet: str
    held: dict[str, Value]


def _values(axis: Axis) -> list[tuple[str, Value]]:
    return [(EVERY, EVERY), *((f"{axis.units} {value}".strip(), value) for value in axis.values)]


def _table(verdicts: pd.DataFrame) -> str:
    return "<b>Claims, the paper's and others, and what was found</b>" + verdicts.round(2).to_html(index=False)


def explore_study(store: str | Path) -> StudyExplorer:
    """Look at a stored study: which measure, along which axis, with a figure for each value of which other.

    Args:
        store: the folder that `run_study` wrote.

    Raises:
        InputError: no study there, or no image of it is complete.
    """
    return StudyExplorer(load_result(store))
