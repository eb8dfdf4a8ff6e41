"""Tables in notebooks: long ones are folded."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd

from emerdiff_probe.studies.run import FOLDED


@dataclass(frozen=True, eq=False)
class FoldedTable:
    """A table that a notebook shows as it is, or folded under its title where it has more than `FOLDED` rows.

    Attributes:
        frame: the table.
        title: what stands above it.
        digits: after the point.
    """

    frame: pd.DataFrame
    title: str
    digits: int = 1

    def __repr__(self) -> str:
        return f"{self.title}\n{self.frame.round(self.digits).to_string(index=False)}"

    def _repr_html_(self) -> str:
        whole, title = self.frame.round(self.digits).to_html(index=False), html.escape(self.title)
        if len(self.frame) <= FOLDED:
            return f"<p><b>{title}</b></p>{whole}"
        return f"<details><summary><b>{title}</b> ({len(self.frame)} rows)</summary>{whole}</details>"
