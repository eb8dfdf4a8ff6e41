"""All methods by name: EmerDiff, its rivals, namers of segments, references to be trained, and what others found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from types import MappingProxyType
from typing import Any

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.colour import CoordinateKMeans, Felzenszwalb, RgbKMeans, Slic
from emerdiff_probe.methods.diffcut import DiffCut
from emerdiff_probe.methods.diffseg import DiffSeg
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.interface import Segmenter
from emerdiff_probe.methods.naming import NAMERS, Naming, Words
from emerdiff_probe.methods.predictions import PREFIX, Predictions, parse_predictions
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.methods.sharpening import Sharpened
from emerdiff_probe.methods.supervised import LinearProbe, ProbeTraining, SupervisedUNet, UNetTraining
from emerdiff_probe.methods.upsampling import Bilinear, Clustered, Guided, Nearest
from emerdiff_probe.methods.walking import RandomWalk
from emerdiff_probe.reading.readout import Readout
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import MODES
from emerdiff_probe.segmentation.settings import OPTIONS
from emerdiff_probe.segmentation.sharpen import SHARPENINGS

Method = Segmenter | Reference | Naming | Predictions

_ALL: tuple[Segmenter, ...] = (
    EmerDiff(),
    *(EmerDiff(EmerDiffConfig(readout=Readout(**approximations))) for approximations in MODES.values()),
    EmerDiff(EmerDiffConfig().change(injection=())),
    Nearest(),
    Bilinear(),
    Guided(),
    Sharpened(Bilinear(), "wls"),
    Sharpened(Bilinear(), "crf"),
    DiffSeg(),
    DiffCut(),
    RandomWalk(),
    Slic(),
    Felzenszwalb(),
    RgbKMeans(),
    CoordinateKMeans(),
)
METHODS: Mapping[str, Segmenter] = MappingProxyType({method.name: method for method in _ALL})
"""Every method that needs no training, with its default parameters. Take others with `dataclasses.replace`."""

TRAININGS: Mapping[str, ProbeTraining | UNetTraining] = MappingProxyType(
    {LinearProbe.name: ProbeTraining(), SupervisedUNet.name: UNetTraining()}
)
"""How the references are trained by default."""


def find_methods(
    names: Sequence[str], training_data: Callable[[], DataSet], words: Words | None = None
) -> tuple[Method, ...]:
    """The methods of these names, "all" for each that needs neither training nor words; else as `find_method`."""
    wanted = [each for name in names for each in (METHODS if name == "all" else [name])]
    return tuple(find_method(name, training_data, words) for name in wanted)


def find_method(name: str, training_data: Callable[[], DataSet] | None = None, words: Words | None = None) -> Method:
    """The method of this name; case, spaces and punctuation do not matter.

    Args:
        name: in `METHODS`, `TRAININGS` or `NAMERS`; or a method, "+" and what sharpens it, such as "slic + crf", see
            `Sharpened`; or a namer, "+" and a method whose segments it names, such as "maskclip + emerdiff + crf"; or
            "predictions:FOLDER", "predictions:NAME=FOLDER" for label maps of another tool.
        training_data: opens what those of `TRAININGS` are trained on.
        words: what namers need.

    Raises:
        InputError: there is none, and the message lists the near ones, or all; no training data for a reference; no
            words for a namer; a namer of segments that have names, or of another tool's label maps; or as
            `Predictions.open`.
    """
    predictions = parse_predictions(name)
    if predictions is not None:
        return predictions
    known = {_plain(method): method for method in (*METHODS, *TRAININGS, *NAMERS)}
    first, plus, second = name.partition("+")
    found = known.get(_plain(first))
    if found not in NAMERS and plus:
        first, _, second = name.rpartition("+")
        found = known.get(_plain(first))
        sharpening = next((each for each in SHARPENINGS if each == _plain(second)), None)
        if sharpening is None:
            raise InputError(f"{name}: no sharpening {second.strip()!r}; accepted: {', '.join(SHARPENINGS)}")
        if found in TRAININGS:
            raise InputError(f"{name}: {found} labels by classes and is not sharpened; accepted: {', '.join(METHODS)}")
        if found is not None:
            return Sharpened(METHODS[found], sharpening)
    if found is None:
        near = [known[match] for match in difflib.get_close_matches(_plain(name), known, n=3)]
        hint = f"near ones: {', '.join(near)}" if near else f"accepted: {', '.join(known.values())}"
        raise InputError(f"no method {name!r}; {hint}")
    if found in METHODS:
        return METHODS[found]
    if found in NAMERS:
        if words is None:
            raise InputError(f"{found}: no words to name by; accepted: those of a data set")
        if second.strip().lower().startswith(f"{PREFIX}:"):
            raise InputError(f"{name}: label maps of another tool are not named; accepted: {', '.join(METHODS)}")
        masks = find_method(second, training_data, words) if plus else None
        if isinstance(masks, Reference | Naming | Predictions):
            raise InputError(f"{name}: {masks.name} has names already; accepted: {', '.join(METHODS)}")
        return Naming(found, words.vocabulary, masks, words.clip if found == "maskclip" else None)
    if training_data is None:
        raise InputError(f"{found}: no data to train on; accepted: a data set of which no image is evaluated")
    return Reference(TRAININGS[found], training_data())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def configure(method: Method, config: EmerDiffConfig) -> Method:
    """The method, if it is EmerDiff or starts from its masks, with these settings for what it leaves open.

    What the method was given stays.
    """
    if isinstance(method, EmerDiff):
        return replace(method, config=method.config.fill(config.options()))
    if isinstance(method, Clustered):
        given = EmerDiffConfig(features=method.features).fill(config.options())
        return replace(method, features=given.features)  # type: ignore[arg-type]
    if isinstance(method, Sharpened):
        return replace(method, method=configure(method.method, config))  # type: ignore[arg-type]
    if isinstance(method, Naming) and method.masks is not None:
        return replace(method, masks=configure(method.masks, config))  # type: ignore[arg-type]
    return method


def vary(methods: Sequence[Method], variants: Sequence[Mapping[str, Any]]) -> tuple[Method, ...]:
    """Methods with EmerDiff, alone or under a namer, once for every variant of its settings; others as they are.

    Args:
        methods: to vary.
        variants: settings by option name, each with the same names. A setting that a method was given stays.

    Raises:
        InputError: more than one value of a setting that all methods share, the inversion's.
    """
    several = [name for name in variants[0] if len({str(variant[name]) for variant in variants}) > 1]
    shared = [name for name in several if OPTIONS[name][0] == "inversion" or name in {"seed", "feature_draws"}]
    if shared:
        raise InputError(f"several values of {', '.join(shared)}, which all methods share; accepted: one")
    made: dict[Method, None] = {}
    for method in methods:
        for variant in variants:
            made[_vary(method, {name: variant[name] for name in several})] = None
    return tuple(made)


def _vary(method: Method, settings: Mapping[str, Any]) -> Method:
    if isinstance(method, Naming) and method.masks is not None and settings:
        masks = _vary(method.masks, settings)
        return method if masks is method.masks else replace(method, masks=masks)  # type: ignore[arg-type]
    if not isinstance(method, EmerDiff) or not settings:
        return method
    taken = [name for name in settings if name not in method.config.options()]
    return replace(method, config=method.config.fill(settings), varied=tuple(taken))


def identity(method: Method) -> dict[str, Any]:
    """What must be the same for results of a method to be used again, as JSON values: its parameters."""
    if isinstance(method, Reference | Predictions):
        return method.identity()
    if isinstance(method, Naming):
        return method.identity() | ({} if method.masks is None else {"masks": identity(method.masks)})
    if isinstance(method, Sharpened):
        return {"class": "Sharpened", "sharpen": method.sharpen, "method": identity(method.method)}
    assert is_dataclass(method)
    return {"class": type(method).__name__, **asdict(method)}
