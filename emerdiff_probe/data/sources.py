"""Data sets by what is written on a command line: `world:200`, `ade20k:PATH`, `folder:PATH,offset=1`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.pairs import read_lines
from emerdiff_probe.data.public import (
    ade20k,
    bsds500,
    camvid,
    cityscapes,
    coco_stuff,
    pascal_context,
    pascal_voc,
)
from emerdiff_probe.data.world import World
from emerdiff_probe.errors import InputError

TUNING_SEED = 500_000
"""Scenes from this seed on are there to choose and to train by; no table is taken on them."""

Option = str | int | None


def world(count: Option, *, first: Option = 0, labels: str = "parts", side: int = 256) -> World:
    """Scenes of the world from a seed on, with the truth of "parts" or "objects", drawn with `side` pixels."""
    start, number = _integer("world: first", first, 0), _integer("world: number of scenes", count, 1)
    return World(range(start, start + number), labels, side)  # type: ignore[arg-type]


def images(path: str, *, ending: str | None = None, names: str | None = None) -> FolderDataset:
    """All images of a folder, without labels; see `FolderDataset.from_pictures`."""
    root = Path(path)
    listed = None if names is None else root / names
    return FolderDataset.from_pictures(root, ending=ending, names=listed, name=f"images {root.resolve()}")


def folder(
    path: str,
    *,
    images: str = "images",
    labels: str = "labels",
    classes: str = "classes.txt",
    ignore: Option = 255,
    offset: Option = 0,
    image_ending: str | None = None,
    label_ending: str | None = None,
    names: str | None = None,
    variable: str | None = None,
) -> FolderDataset:
    """A folder with images, label maps, and a file of class names, one a line; see `FolderDataset.from_folders`."""
    root = Path(path)
    start = _integer("folder: offset", offset)
    ignored = None if ignore is None else _integer("folder: ignore", ignore)
    return FolderDataset.from_folders(
        root / images,
        root / labels,
        read_lines(root / classes, "list of classes, one name a line"),
        ignore_index=ignored,
        offset=start,
        image_ending=image_ending,
        label_ending=label_ending,
        names=None if names is None else root / names,
        variable=variable,
        name=f"folder {root.resolve()}",
    )


SOURCES: Mapping[str, Callable[..., DataSet]] = MappingProxyType(
    {
        "world": world,
        "folder": folder,
        "images": images,
        "ade20k": ade20k,
        "coco-stuff": coco_stuff,
        "voc": pascal_voc,
        "context": pascal_context,
        "cityscapes": cityscapes,
        "camvid": camvid,
        "bsds500": bsds500,
    }
)
"""Data sets by the word before the colon. Their arguments by name are options, as are `first` and `count` of all."""


def open_data(spec: str, *, side: int) -> DataSet:
    """The data set of a description `KIND:PLACE,option=value,…`.

    Args:
        spec: PLACE is a folder, or of the world the number of scenes. `first` and `count` take a part of the data set:
            `world:200,first=1000` are 200 scenes from seed 1000 on, `ade20k:PATH,split=training,count=500` the first
            500 images. A value "none" is None where the default is no text.
        side: pixels of drawn scenes.

    Raises:
        InputError: an unknown kind or option, or as the data set says.
    """
    kind, _, rest = spec.partition(":")
    place, *parts = rest.split(",")
    if kind not in SOURCES or not place:
        raise InputError(f"data {spec!r}; accepted: {', '.join(SOURCES)}, each with a colon and a place or number")
    source = SOURCES[kind]
    parameters = inspect.signature(source).parameters.items()
    own = {name: given.default for name, given in parameters if given.default is not given.empty}
    own |= {} if kind == "world" else {"first": 0, "count": 0}
    known = [name for name in own if name != "side"]
    options = {}
    for part in parts:
        name, given, value = part.partition("=")
        if not given or name not in known:
            raise InputError(f"data {spec!r}: option {part!r}; accepted: {', '.join(known)}, each as name=value")
        options[name] = _value(value, own[name])
    if kind == "world":
        return source(_value(place, 0), side=side, **options)
    first, count = options.pop("first", 0), options.pop("count", None)
    start = _integer(f"data {spec!r}: first", first, 0)
    stop = None if count is None else start + _integer(f"data {spec!r}: count", count, 1)
    data = source(place, **options)
    if start >= len(data):
        raise InputError(f"data {spec!r}: first {first}; accepted: 0 to {len(data) - 1}")
    return data[start:stop]


def _integer(name: str, given: Option, low: int | None = None) -> int:
    if not isinstance(given, int) or (low is not None and given < low):
        raise InputError(f"{name} {given!r}; accepted: an integer" + ("" if low is None else f", {low} or more"))
    return given


def _value(text: str, default: Option) -> Option:
    """What is written, of the kind of the default; text that is no number is left for its owner to refuse."""
    if isinstance(default, str):
        return text
    if text == "none":
        return None
    return int(text) if isinstance(default, int) and re.fullmatch(r"[+-]?[0-9]+", text) else text
