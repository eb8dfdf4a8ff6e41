"""Data sets by what is written on a command line: `world:200`, `images:PATH`, `folder:PATH,offset=1`, `PATH`."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.frames import Clips
from emerdiff_probe.data.labels import LabelReader, map_colours, map_numbers, read_colours
from emerdiff_probe.data.lists import read_lines
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
from emerdiff_probe.files import resolve

MOST_SCENES = 1_000_000
SEEDS = 2**31
"""Of scenes; training takes those from 1,000,000 on."""
TUNING_SEED = 500_000
"""Scenes from this seed on are there to choose and to train by; no table is taken on them."""

INTEGER = r"[+-]?[0-9]{1,18}"
Option = str | int | None
Items = str | int | Sequence[str | int]
"""One or several: in a description between plus signs, as in `ignore=0+255`."""


def world(count: Option, *, first: Option = 0, labels: str = "parts", side: int = 256) -> World:
    """Scenes of the world from a seed on, with the truth of "parts" or "objects", drawn with `side` pixels."""
    start = _integer("world: first", first, 0, SEEDS - 1)
    number = _integer("world: number of scenes", count, 1, min(MOST_SCENES, SEEDS - start))
    return World(range(start, start + number), labels, side)  # type: ignore[arg-type]


def images(path: str, *, ending: str | None = None, names: str | None = None) -> FolderDataset:
    """All images of a folder, without labels; see `FolderDataset.from_pictures`."""
    root = Path(path)
    listed = None if names is None else root / names
    return FolderDataset.from_pictures(root, ending=ending, names=listed, name=f"images {resolve(root)}")


def frames(path: str, *, ending: str | None = None, step: Option = 1) -> Clips:
    """A folder of frames as one clip, or a folder of such folders; every `step`-th frame is taken. See `Clips`."""
    root = Path(path)
    return Clips.from_folder(
        root, ending=ending, step=_integer("frames: step", step, 1), name=f"frames {resolve(root)}"
    )


def folder(
    path: str,
    *,
    images: str = "images",
    labels: str = "labels",
    classes: str | Sequence[str] = "",
    colours: str = "",
    ignore: Items = "",
    offset: Option = 0,
    numbers: Items = "",
    image_ending: str | None = None,
    label_ending: str | None = None,
    names: str | None = None,
    variable: str | None = None,
) -> FolderDataset:
    """A folder with images, label files, and names of classes. Files and folders are named from `path` on.

    Args:
        path: the folder.
        images, labels: folders of images and of label files.
        classes: file of the names of numbers, one a line, or the names; "classes.txt" where it is there.
        colours: file of the names of colours (see `read_colours`); "colours.txt" where it is there and classes.txt is
            not.
        ignore: names and numbers that no score counts, such as `various` or `0+255`; 255 where labels are numbers, none
            where they are colours. "none" for none.
        offset: number of the first class.
        numbers: number of every class instead, such as `0+255` for masks.
        image_ending, label_ending, names: as of `FolderDataset.from_folders`.
        variable: name of the matrix in .mat files.

    Raises:
        InputError: as `FolderDataset.from_folders`, `map_numbers` and `map_colours`.
    """
    root = Path(path)
    start = _integer("folder: offset", offset)
    if not classes and not colours:
        numbered, coloured = (os.path.isfile(root / name) for name in ("classes.txt", "colours.txt"))
        colours = "colours.txt" if coloured and not numbered else ""
    if classes and colours:
        raise InputError(f"folder: classes {classes!r} and colours {colours!r}; accepted: one of them")
    ignored = () if ignore == "none" else _items(ignore)
    reader: LabelReader
    if colours:
        listed, reader = map_colours(read_colours(root / colours), [str(item) for item in ignored])
    else:
        written = classes or "classes.txt"
        if isinstance(written, str):
            written = read_lines(root / written, "list of classes, one name a line")
        void = [item if item in written else _number(item) for item in ((255,) if ignore == "" else ignored)]
        own = [_integer("folder: numbers", _number(item)) for item in _items(numbers)] or None
        listed, reader = map_numbers(written, void, offset=start, numbers=own, variable=variable)
    return FolderDataset.from_folders(
        root / images,
        root / labels,
        listed,
        reader,
        image_ending=image_ending,
        label_ending=label_ending,
        names=None if names is None else root / names,
        name=f"folder {resolve(root)}",
    )


def _items(given: Items) -> tuple[str | int, ...]:
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split("+") if part.strip())
    return (given,) if isinstance(given, int) else tuple(given)


def _number(item: str | int) -> str | int:
    return int(item) if isinstance(item, str) and re.fullmatch(INTEGER, item) else item


SOURCES: Mapping[str, Callable[..., DataSet]] = MappingProxyType(
    {
        "world": world,
        "folder": folder,
        "images": images,
        "frames": frames,
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


DESCRIPTION = "dataset.toml"
"""A file in a folder that says once what its data set is: `kind` (of `SOURCES`, "folder" by default) and its options,
and perhaps a `name` and a `path` from there on."""


def open_data(spec: str, *, side: int) -> DataSet:
    """The data set of a description `KIND:PLACE,option=value,…`, or `PLACE,option=value,…` of a described folder.

    Args:
        spec: PLACE is a folder, or of the world the number of scenes. `first` and `count` take a part of the data set:
            `world:200,first=1000` are 200 scenes from seed 1000 on, `ade20k:PATH,split=training,count=500` the first
            500 images. A value "none" is None where the default is no text. Without a kind, the folder holds a
            `dataset.toml` with kind and options, over which those given here go.
        side: pixels of drawn scenes.

    Raises:
        InputError: an unknown kind or option, or as the data set says.
    """
    if "\0" in spec:
        raise InputError(f"data {spec!r}: a zero byte; accepted: any other text")
    kind, _, rest = spec.partition(":")
    place, *parts = rest.split(",")
    options: dict[str, Any] = {}
    if kind not in SOURCES:
        bare, *parts = spec.split(",")
        kind, place, options = _described(Path(bare), spec)
    if not place:
        raise InputError(f"data {spec!r}; accepted: {', '.join(SOURCES)}, each with a colon and a place or number")
    source, name = SOURCES[kind], options.pop("name", None)
    parameters = inspect.signature(source).parameters
    own = {option: given.default for option, given in parameters.items() if given.default is not given.empty}
    own |= {} if kind == "world" else {"first": 0, "count": 0}
    known = [option for option in own if option != "side"]
    options |= dict(_option(part, spec) for part in parts)
    for option, value in options.items():
        if option not in known:
            raise InputError(f"data {spec!r}: option {option!r}; accepted: {', '.join(known)}, each as name=value")
        options[option] = _value(value, own[option]) if isinstance(value, str) else value
        if option in parameters and not _fits(options[option], str(parameters[option].annotation)):
            raise InputError(f"data {spec!r}: {option} {value!r}; accepted: {parameters[option].annotation}")
    if kind == "world":
        return source(_value(place, 0), side=side, **options)
    first, count = options.pop("first", 0), options.pop("count", None)
    start = _integer(f"data {spec!r}: first", first, 0)
    stop = None if count is None else start + _integer(f"data {spec!r}: count", count, 1)
    data = source(place, **options)
    if start >= len(data):
        raise InputError(f"data {spec!r}: first {first}; accepted: 0 to {len(data) - 1}")
    return (data if name is None else data.named(name))[start:stop]


def _option(part: str, spec: str) -> tuple[str, str]:
    name, given, value = part.partition("=")
    if not given:
        raise InputError(f"data {spec!r}: option {part!r}; accepted: name=value")
    return name, value


def _described(folder: Path, spec: str) -> tuple[str, str, dict[str, Any]]:
    """Kind, place and options of a folder with a description."""
    path = folder / DESCRIPTION
    if not os.path.isfile(path):  # which takes any text
        kinds = f"{', '.join(SOURCES)}, each with a colon and a place or number"
        here = f", or {DESCRIPTION} in {folder}" if os.path.isdir(folder) else f", or a folder with a {DESCRIPTION}"
        raise InputError(f"data {spec!r}; accepted: {kinds}{here}")
    try:
        held = tomllib.loads("\n".join(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({error})") from error
    wrong = [key for key, value in held.items() if not _is_option(value)]
    wrong += [key for key in ("kind", "path", "name") if key in held and not isinstance(held[key], str)]
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)}; accepted: texts, and of options integers and lists of both")
    kind, place = held.pop("kind", "folder"), held.pop("path", ".")
    if kind not in SOURCES or kind == "world":
        raise InputError(f"{path}: kind {kind!r}; accepted: {', '.join(name for name in SOURCES if name != 'world')}")
    return str(kind), str(folder / str(place)), held


def _is_option(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return all((isinstance(item, str) and "\0" not in item) or type(item) is int for item in items)


def _fits(value: object, annotation: str) -> bool:
    """Whether a value is what an option is declared to be; of its words, the owner knows more."""
    if isinstance(value, list):
        return annotation == "Items" or ("Sequence[str]" in annotation and all(isinstance(item, str) for item in value))
    return not isinstance(value, int) or "str" not in annotation


def _integer(name: str, given: Option, low: int | None = None, high: int | None = None) -> int:
    if not isinstance(given, int) or (low is not None and given < low) or (high is not None and given > high):
        bounds = "" if low is None else f", {low} or more" if high is None else f", {low} to {high}"
        raise InputError(f"{name} {given!r}; accepted: an integer{bounds}")
    return given


def _value(text: str, default: Option) -> Option:
    """What is written, of the kind of the default; text that is no number is left for its owner to refuse."""
    if isinstance(default, str):
        return text
    if text == "none":
        return None
    return int(text) if isinstance(default, int) and re.fullmatch(INTEGER, text) else text
