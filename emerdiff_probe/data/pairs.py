"""Which files of one or two folders make a sample, and which were found and make none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from emerdiff_probe.data.labels import LABEL_SUFFIXES
from emerdiff_probe.data.lists import NAMED, list_some, read_lines
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import compose, list_files
from emerdiff_probe.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Pair:
    """The files of one sample; no labels where its data set has none."""

    name: str
    image: Path
    labels: Path | None = None


class Pairs(NamedTuple):
    """Files of every sample, and in sentences what was found beside them."""

    found: tuple[Pair, ...]
    notes: tuple[str, ...]


def pair_up(
    images: Path,
    image_ending: str | None,
    labels: Path | None,
    label_ending: str | None,
    names: Sequence[str] | str | Path | None,
) -> Pairs:
    """Pair images and label files by their path below their folder without the ending, compared in Unicode's form NFC.

    Hidden files, and whatever lies in a hidden folder, are nothing. Images without labels, labels without images and
    files of formats that are not taken are left out, and counted in the notes.

    Args:
        images, labels: folders, searched with all folders inside; may be one. Labels None is for images alone.
        image_ending, label_ending: what file names end in; None for any suffix of an image, or of a label file.
        names: samples to take, in order, or a text file with one a line, with or without folders and suffixes; None
            for all, sorted by name.

    Raises:
        InputError: no such folder, two files of one name, no pair at all, or names that are asked for and have no
            image or no labels.
    """
    listed = {folder: list_files(folder) for folder in (images, labels) if folder is not None}
    pictures = _name_files(images, listed[images], image_ending, IMAGE_SUFFIXES, but=label_ending)
    truths = pictures
    if labels is not None:
        truths = _name_files(labels, listed[labels], label_ending, LABEL_SUFFIXES, but=image_ending)
    kinds = {"labels": truths, "images": pictures}
    taken = {labels: LABEL_SUFFIXES, images: IMAGE_SUFFIXES | (LABEL_SUFFIXES if labels == images else frozenset())}
    notes = tuple(note for folder, files in listed.items() for note in _not_taken(folder, files, taken[folder]))
    if names is None:
        if not pictures:
            ends = image_ending or list_some(IMAGE_SUFFIXES)
            raise InputError(". ".join([f"{images}: no images; accepted: files that end in {ends}", *notes]))
        wanted = sorted(name for name in pictures if name in truths)
        without = {kind: sorted((pictures.keys() | truths.keys()) - files.keys()) for kind, files in kinds.items()}
        missing = [f"{len(some)} without {kind}: {list_some(some)}" for kind, some in without.items() if some]
        if not wanted:
            raise InputError(
                f"images in {images} and labels in {labels} do not pair: {'; '.join(missing)}. "
                f"Say what file names end in: {_endings(pictures, truths)}"
            )
        notes += tuple(f"left out, {some}" for some in missing)
    else:
        lines = read_lines(Path(names), "list of names") if isinstance(names, (str, Path)) else list(names)
        endings = [ending for ending in (label_ending, image_ending) if ending]
        wanted = _resolve(lines, pictures.keys() | truths.keys(), endings)
        if not wanted:
            raise InputError(f"{names}: no names in it; accepted: one or more")
        lacking = {kind: [name for name in wanted if name not in files] for kind, files in kinds.items()}
        if any(lacking.values()):
            missing = [f"{len(some)} without {kind}: {list_some(some)}" for kind, some in lacking.items() if some]
            raise InputError(f"images in {images} and labels in {labels or images} lack names: {'; '.join(missing)}")
    return Pairs(tuple(Pair(name, pictures[name], None if labels is None else truths[name]) for name in wanted), notes)


def stamp_files(files: Iterable[Path]) -> tuple[int, ...]:
    """Size and time of change of every file; empty where one is missing."""
    try:
        stats = [path.stat() for path in files]
    except OSError:
        return ()
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))


def _name_files(
    folder: Path, files: Iterable[Path], ending: str | None, suffixes: Collection[str], *, but: str | None
) -> dict[str, Path]:
    """Files below a folder by their path without the ending; a file with the other ending is the other kind."""
    found: dict[str, Path] = {}
    for path in files:
        own = path.suffix if ending is None else ending
        if path.suffix.lower() not in suffixes or not path.name.endswith(own):
            continue
        if but is not None and len(but) > len(own) and path.name.endswith(but):
            continue
        name = compose((path.parent.relative_to(folder) / path.name.removesuffix(own)).as_posix())
        if name in found:
            raise InputError(
                f"{path} and {found[name].name} are both {name}; accepted: one file a name. Say what the names of "
                "images and of labels end in (image_ending=…, label_ending=…)"
            )
        found[name] = path
    return found


def _not_taken(folder: Path, files: Iterable[Path], suffixes: Collection[str]) -> tuple[str, ...]:
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    other = [f"{suffix} ({count})" for suffix, count in sorted(counts.items()) if suffix not in suffixes]
    if not other:
        return ()
    return (f"left out, files in {folder} of formats that are not taken: {list_some(other)}",)


def _endings(pictures: Mapping[str, Path], truths: Mapping[str, Path]) -> str:
    """What would pair the first image whose name a label's begins with, as options; else how options are written."""
    for name, picture in sorted(pictures.items())[:NAMED]:
        for other, truth in sorted(truths.items()):
            if other.startswith(name) and other != name:
                return f"label_ending={other.removeprefix(name)}{truth.suffix}"
            if name.startswith(other) and other != name:
                return f"image_ending={name.removeprefix(other)}{picture.suffix}"
    return "image_ending=…, label_ending=…"


def _resolve(listed: Sequence[str], known: Collection[str], endings: Sequence[str]) -> list[str]:
    """Names of samples for the lines of a list, once each: names may hold spaces, columns may follow them."""
    whole = [_resolve_name(line, known, endings) for line in listed]
    if not any(name in known for name in whole):
        columns = [line.split() for line in listed]
        if all(re.fullmatch(r"([+-]?\d+|\S+\.\w+)", part) for _, *rest in columns for part in rest):
            whole = [_resolve_name(first, known, endings) for first, *_ in columns]
    return list(dict.fromkeys(whole))


def _resolve_name(line: str, known: Collection[str], endings: Sequence[str]) -> str:
    """The longest end of a path, as it is or without an ending or suffix, that is a known name; else the path."""
    path = PurePosixPath(compose(line.replace("\\", "/")))
    parts = [part for part in path.parts if part not in {"/", "."}]
    for first in range(len(parts)):
        end = PurePosixPath(*parts[first:])
        for name in (str(end), *(str(end).removesuffix(ending) for ending in endings), str(end.with_suffix(""))):
            if name in known:
                return name
    return compose(line)
