"""Clips: folders of frames, each clip a sample without labels that is its first frame."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.lists import list_some
from emerdiff_probe.data.pairs import pair_up, stamp_files
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image


@dataclass(frozen=True)
class Clip(Sequence[np.ndarray]):
    """Frames by number, (height, width, 3) uint8, each read when it is asked for.

    Attributes:
        files: in the order of time.
    """

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """Hexadecimal digits that tell clips apart whose files differ, whatever their names.

        Raises:
            InputError: a frame that cannot be read.
        """
        found = hashlib.sha256()
        for path in self.files:
            try:
                found.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return found.hexdigest()

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        """A frame, or a clip of some.

        Raises:
            InputError: a frame that cannot be read, or of another size than the first.
        """
        if isinstance(place, slice):
            return Clip(self.files[place])
        frame = load_image(self.files[place])
        if place and frame.shape != (first := load_image(self.files[0])).shape:
            raise InputError(
                f"{self.files[place]}: frame of {frame.shape[:2]} in a clip of {first.shape[:2]}; accepted: one size"
            )
        return frame


@dataclass(frozen=True, repr=False)
class Clips(DataSet):
    """Clips by name: every sample is its first frame, without labels, and its scene is the `Clip`.

    Attributes:
        name: of the data set.
        clips: by name.
        notes: what was found in the folders and is in no clip.
    """

    name: str
    clips: tuple[tuple[str, Clip], ...] = field(hash=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    classes = ()
    labelled = False

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, ending: str | None = None, step: int = 1, name: str | None = None
    ) -> Self:
        """The images of a folder in the order of their numbers as one clip, or of every folder inside as one each.

        Args:
            folder: of frames, or of folders of frames.
            ending: what file names end in; None for any suffix of an image.
            step: every how many frames one is taken, from the first on.
            name: of the data set; None for the name of the folder.

        Raises:
            InputError: no such folder, no clip of two frames in it, or frames both in it and in folders inside.
        """
        root = Path(folder)
        pairs, notes = pair_up(root, ending, None, None, None)
        files: dict[str, list[Path]] = {}
        for pair in sorted(pairs, key=lambda pair: _by_number(pair.name)):
            inside, _, _ = pair.name.rpartition("/")
            files.setdefault(inside or root.resolve().name, []).append(pair.image)
        if len(files) > 1 and any(pair.image.parent == root for pair in pairs):
            raise InputError(f"{root}: frames in it and in folders inside; accepted: one or the other")
        clips = {clip: Clip(tuple(frames[::step])) for clip, frames in files.items()}
        short = [clip for clip, frames in clips.items() if len(frames) < 2]
        found = tuple((clip, frames) for clip, frames in clips.items() if len(frames) >= 2)
        if not found:
            raise InputError(
                f"{root}: no clip; accepted: a folder of two frames or more (step {step}), or such folders"
            )
        if short:
            notes += (f"left out, {len(short)} clips of one frame: {list_some(short)}",)
        return cls(name or root.name, found, notes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the folders of frames."""
        return tuple(name for name, _ in self.clips)

    @property
    def origins(self) -> tuple[str, ...]:
        """The folders of frames, whatever they are called by."""
        return tuple(str(clip.files[0].parent.resolve()) for _, clip in self.clips)

    def stamp(self, place: int) -> tuple[int, ...]:
        """Size and time of change of all frames; empty where one is missing."""
        return stamp_files(self.clips[place][1].files)

    def _read(self, place: int) -> Sample:
        name, clip = self.clips[place]
        return Sample(name, clip.files[0], None, self.origins[place], clip)

    def _part(self, places: slice) -> Self:
        return replace(self, clips=self.clips[places])


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key in whose order frame2 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
