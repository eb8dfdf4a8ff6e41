"""Names that a reader gives to segments, and segments merged into one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emerdiff_probe.errors import InputError
from emerdiff_probe.images import save_labels


@dataclass(frozen=True)
class Naming:
    """Which masks make which segment, and what the segments are called.

    Attributes:
        segment_of: for every mask the number of its segment, which is the number of one of its masks.
        names: by segment number; segments that were never named are called by their number.
    """

    segment_of: tuple[int, ...]
    names: Mapping[int, str]

    @classmethod
    def fresh(cls, masks: int) -> Naming:
        """Every mask a segment of its own, without a name."""
        return cls(tuple(range(masks)), {})

    @property
    def segments(self) -> dict[int, str]:
        """Names of all segments by their numbers, rising."""
        return {segment: self.names.get(segment, f"segment {segment}") for segment in sorted(set(self.segment_of))}

    def rename(self, segment: int, name: str) -> Naming:
        """Call a segment something else.

        Raises:
            InputError: no such segment, an empty name, or another segment's.
        """
        self._require(segment)
        name = name.strip()
        if not name or any(name == other for number, other in self.segments.items() if number != segment):
            raise InputError(f"name {name!r} for segment {segment}; accepted: a name that no other segment has")
        return replace(self, names={**self.names, segment: name})

    def merge(self, segment: int, into: int) -> Naming:
        """Make one segment of two, under the number and name of the second.

        Raises:
            InputError: no such segments, or one and the same.
        """
        self._require(segment)
        self._require(into)
        if segment == into:
            raise InputError(f"segment {segment} merged into itself; accepted: two segments")
        names = {number: name for number, name in self.names.items() if number != segment}
        return Naming(tuple(into if number == segment else number for number in self.segment_of), names)

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Labels of masks (height, width) as numbers of segments, uint8 or uint16."""
        dtype = np.uint8 if len(self.segment_of) <= 256 else np.uint16
        return np.array(self.segment_of, dtype)[labels]

    def save(self, labels: np.ndarray, folder: str | Path) -> Path:
        """Write labels.png, an indexed picture of the segments, and names.json, their names by number.

        Args:
            labels: of masks, (height, width).
            folder: made when it is not there; those two files in it are replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_labels(self.apply(labels), folder / "labels.png")
        text = json.dumps(self.segments, indent=2, ensure_ascii=False) + "\n"
        (folder / "names.json").write_text(text, encoding="utf-8")
        return folder

    def _require(self, segment: int) -> None:
        if segment not in self.segment_of:
            raise InputError(f"segment {segment}; accepted: {', '.join(map(str, self.segments))}")
