"""All rivals that need no training, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.rivals.colour import CoordinateKMeans, Felzenszwalb, RgbKMeans, Slic
from emerdiff_probe.evaluation.rivals.diffcut import DiffCut
from emerdiff_probe.evaluation.rivals.diffseg import DiffSeg
from emerdiff_probe.evaluation.rivals.interface import Segmenter
from emerdiff_probe.evaluation.rivals.upsampling import Bilinear, DenseCrf, Guided, Nearest
from emerdiff_probe.evaluation.rivals.walking import RandomWalk

_ALL: tuple[Segmenter, ...] = (
    Nearest(),
    Bilinear(),
    Guided(),
    DenseCrf(),
    DiffSeg(),
    DiffCut(),
    RandomWalk(),
    Slic(),
    Felzenszwalb(),
    RgbKMeans(),
    CoordinateKMeans(),
)
RIVALS: Mapping[str, Segmenter] = MappingProxyType({rival.name: rival for rival in _ALL})
"""Every rival with its default parameters. Take others with `dataclasses.replace`."""


def find_rival(name: str) -> Segmenter:
    """The rival of this name; "-" and "_" stand for a space.

    Raises:
        InputError: there is none; the message lists the near ones, or all.
    """
    plain = {rival.replace("-", " "): rival for rival in RIVALS}
    wanted = name.strip().lower().replace("-", " ").replace("_", " ")
    if wanted in plain:
        return RIVALS[plain[wanted]]
    near = [plain[match] for match in difflib.get_close_matches(wanted, plain, n=3)]
    raise InputError(
        f"no rival {name!r}; " + (f"near ones: {', '.join(near)}" if near else f"accepted: {', '.join(RIVALS)}")
    )
