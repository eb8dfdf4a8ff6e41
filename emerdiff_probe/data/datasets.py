"""Images with ground truth, read one by one: the project's own world, folders, and local copies of public data sets.

In the labels of every sample classes are 0 … C - 1 and `IGNORED` is what no score counts, whatever the files say.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, Self, overload

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from emerdiff_probe.data.classes import (
    ADE20K_150,
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_27,
    COCO_STUFF_27,
    COCO_STUFF_171,
    COCO_STUFF_LABELS,
    PASCAL_CONTEXT_59,
    PASCAL_VOC_21,
)
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image, load_labels

IGNORED = -1
"""Label of pixels that no score counts, in the samples of every data set."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
LABEL_SUFFIXES = frozenset({".mat", ".png", ".tif", ".tiff"})
NAMED = 5
"""How many names an error lists of each kind."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its truth.

    Attributes:
        name: unique in its data set.
        image: a file, or (height, width, 3) uint8.
        labels: (height, width) int32 classes or `IGNORED`, or (annotator, height, width) where several people drew.
    """

    name: str
    image: Path | np.ndarray
    labels: np.ndarray

    def pixels(self) -> np.ndarray:
        """The image, (height, width, 3) uint8.

        Raises:
            InputError: it cannot be read (see `load_image`), or has another size than its labels.
        """
        pixels = load_image(self.image)
        if pixels.shape[:2] != self.labels.shape[-2:]:
            raise InputError(
                f"{self.name}: image of {pixels.shape[:2]} with labels of {self.labels.shape[-2:]}; accepted: one size"
            )
        return pixels


class DataSet(Sequence[Sample]):
    """Samples by number, each read when it is asked for; a slice is a data set of those samples, unread."""

    name: str
    classes: tuple[str, ...]
    ignore_index: int = IGNORED

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all samples, without reading them."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for results on it to be used again, as JSON values; samples may come and go."""
        return {"data": self.name}

    @property
    def origins(self) -> tuple[str, ...]:
        """Where every sample comes from, the same for the same sample of another data set."""
        return tuple(f"{self.name}: {name}" for name in self.names)

    def stamp(self, place: int) -> tuple[int, ...]:
        """Something that changes with the files of a sample, without reading them; empty where there are none."""
        return ()

    @abstractmethod
    def _read(self, place: int) -> Sample: ...

    @abstractmethod
    def _part(self, places: slice) -> Self: ...

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: int | slice) -> Sample | Self:
        """A sample, or a data set of some.

        Raises:
            InputError: labels that cannot be read or are no classes; the image is not touched yet.
            IndexError: no such number.
        """
        return self._part(place) if isinstance(place, slice) else self._read(range(len(self))[place])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images, {len(self.classes)} classes)"


# --- The project's own world ---------------------------------------------------------------------------------------


class Drawn(Protocol):
    """What `World` needs of a scene: image (height, width, 3) uint8, parts and objects (height, width) integers."""

    @property
    def image(self) -> np.ndarray:
        """The picture."""

    @property
    def parts(self) -> np.ndarray:
        """Part classes."""

    @property
    def objects(self) -> np.ndarray:
        """Object classes."""


@dataclass(frozen=True, repr=False)
class World(DataSet):
    """Scenes of the procedural world, each drawn when it is asked for: `World(draw_scene, PART_NAMES, range(200))`.

    Attributes:
        draw: scene of a seed; `emerdiff_probe.pocket.world.draw_scene`, with size or factors held by a partial.
        classes: `PART_NAMES`, or `OBJECT_NAMES` with labels "objects".
        seeds: one a scene. Training begins at 1,000,000.
        labels: "parts" or "objects".
    """

    draw: Callable[[int], Drawn]
    classes: tuple[str, ...]
    seeds: Sequence[int]
    labels: Literal["parts", "objects"] = "parts"

    def __post_init__(self) -> None:
        if self.labels not in {"parts", "objects"}:
            raise InputError(f"labels {self.labels!r}; accepted: 'parts', 'objects'")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The data set's name."""
        return f"world {self.labels}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scenes, as `write_world` gives them."""
        return tuple(f"scene-{seed:06d}" for seed in self.seeds)

    def _read(self, place: int) -> Sample:
        scene = self.draw(self.seeds[place])
        labels = np.asarray(getattr(scene, self.labels)).astype(np.int32)
        if int(labels.max()) >= len(self.classes):
            raise InputError(f"label {labels.max()} among {self.labels}; accepted: 0 to {len(self.classes) - 1}")
        return Sample(self.names[place], scene.image, labels)

    def _part(self, places: slice) -> Self:
        return replace(self, seeds=self.seeds[places])


# --- Files ---------------------------------------------------------------------------------------------------------


class LabelReader(Protocol):
    """How label files of a data set are read."""

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file as `Sample` has them."""


@dataclass(frozen=True)
class LabelMap:
    """Label files that hold one number a pixel: PNG or TIFF (indexed or grey), or .mat.

    Attributes:
        offset: number of class 0 in the files.
        ignore: numbers in the files that no score counts.
        table: class of every number in the files, instead of an offset; other numbers are ignored.
        variable: name of the matrix in a .mat file; None for the only one.
    """

    offset: int = 0
    ignore: tuple[int, ...] = (255,)
    table: Mapping[int, int] | None = field(default=None, hash=False)
    variable: str | None = None

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Labels of a file, (height, width) int32.

        Raises:
            InputError: the file is missing, cannot be read, is a colour picture, or holds numbers that are no class.
        """
        raw = _read_matrix(path, self.variable) if path.suffix == ".mat" else load_labels(path)
        if raw.ndim != 2:
            raise InputError(f"{path}: shape {raw.shape}; accepted: one number a pixel, not colours")
        if raw.dtype.kind == "f" and not np.array_equal(raw, np.round(raw)):  # NaN is unequal too
            raise InputError(f"{path}: values that are no integers; accepted: one integer a pixel")
        numbers, places = np.unique(raw.astype(np.int64), return_inverse=True)
        if self.table is not None:
            found = np.array([self.table.get(int(number), IGNORED) for number in numbers])
        else:
            found = np.where(np.isin(numbers, self.ignore), IGNORED, numbers - self.offset)
            wrong = numbers[(found != IGNORED) & ((found < 0) | (found >= classes))]
            wrong = np.union1d(wrong, numbers[(found == IGNORED) & ~np.isin(numbers, self.ignore)])
            if wrong.size:
                raise InputError(
                    f"{path}: labels {_listed(wrong)} are no class; accepted: {self.offset} to "
                    f"{self.offset + classes - 1}, ignored: {_listed(self.ignore) or 'none'}"
                )
        return found[places].reshape(raw.shape).astype(np.int32)


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such label file")
    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        NotImplementedError,
        MatReadError,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: cannot be read as a .mat file up to version 7 ({error})") from error


def _read_matrix(path: Path, variable: str | None) -> np.ndarray:
    held = _read_mat(path)
    arrays = {name: value for name, value in held.items() if isinstance(value, np.ndarray)}
    matrices = {name: value for name, value in arrays.items() if value.dtype.kind in "biuf" and value.ndim == 2}
    if variable is None and len(matrices) == 1:
        (variable,) = matrices
    if variable not in matrices:
        asked = "the variable must be named" if variable is None else f"no matrix {variable!r}"
        raise InputError(f"{path}: {asked}; it holds {', '.join(matrices) or 'no matrix'}")
    return matrices[variable]


@dataclass(frozen=True)
class BsdsAnnotations:
    """Ground truth of BSDS500: a .mat file with the regions that several people drew, without classes."""

    def __call__(self, path: Path, classes: int) -> np.ndarray:
        """Regions of all annotators, (annotator, height, width) int32.

        Raises:
            InputError: the file is missing, cannot be read, or holds something else.
        """
        held = _read_mat(path)
        try:
            people = [person["Segmentation"][0, 0] for person in held["groundTruth"].ravel()]
            return np.stack(people).astype(np.int32)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: no ground truth of BSDS500 in it ({error}); accepted: a cell array groundTruth of structures "
                "with a field Segmentation, all of one size"
            ) from error


@dataclass(frozen=True)
class Pair:
    """The files of one sample."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, repr=False)
class FolderDataset(DataSet):
    """Images and label files. See `from_folders`, and the functions for public data sets.

    Attributes:
        name: of the data set.
        classes: names by class number; empty where labels are regions without classes.
        pairs: files of every sample.
        reader: how label files are read.
    """

    name: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(hash=False)
    reader: LabelReader = LabelMap()

    @classmethod
    def from_folders(
        cls,
        images: str | Path,
        labels: str | Path,
        classes: Sequence[str],
        *,
        ignore_index: int | Sequence[int] | None = 255,
        offset: int = 0,
        image_ending: str | None = None,
        label_ending: str | None = None,
        names: Sequence[str] | str | Path | None = None,
        variable: str | None = None,
        name: str | None = None,
    ) -> Self:
        """Pair the images of a folder with the label files of a folder, by the name before the ending.

        Args:
            images, labels: folders, searched with all folders inside; may be one.
            classes: names by class number.
            ignore_index: numbers in the label files that no score counts; None for none.
            offset: number of class 0 in the label files.
            image_ending, label_ending: what file names end in, such as "_leftImg8bit.png"; None for any suffix of an
                image, or of a label file (.png, .tif, .mat).
            names: samples to take, or a text file with one a line; None for all.
            variable: name of the matrix in .mat files; None for the only one.
            name: of the data set; None for the name of the images' folder.

        Raises:
            InputError: no such folder, nothing in it, no classes, or (all in one error) images without labels, labels
                without images and names without either.
        """
        if not classes:
            raise InputError("an empty list of classes; accepted: one name or more")
        if ignore_index is None:
            ignored: tuple[int, ...] = ()
        else:
            ignored = (ignore_index,) if isinstance(ignore_index, int) else tuple(ignore_index)
        pairs = _pair_up(Path(images), image_ending, Path(labels), label_ending, names)
        reader = LabelMap(offset=offset, ignore=ignored, variable=variable)
        return cls(name or Path(images).name, tuple(classes), pairs, reader)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all samples, without reading them."""
        return tuple(pair.name for pair in self.pairs)

    def identity(self) -> dict[str, Any]:
        """As `DataSet.identity`: also how label files are read, and the folders that names are relative to."""
        reader = {"class": type(self.reader).__name__}
        if is_dataclass(self.reader) and not isinstance(self.reader, type):
            reader |= asdict(self.reader)
        found = super().identity() | {"reader": reader}
        for pair in self.pairs[:1]:
            found |= {"image_folder": _folder(pair.image, pair.name), "label_folder": _folder(pair.labels, pair.name)}
        return found

    @property
    def origins(self) -> tuple[str, ...]:
        """The image files, whatever they are called by."""
        return tuple(str(pair.image.resolve()) for pair in self.pairs)

    def stamp(self, place: int) -> tuple[int, ...]:
        """Size and time of change of both files; empty where one is missing."""
        pair = self.pairs[place]
        try:
            stats = pair.image.stat(), pair.labels.stat()
        except OSError:
            return ()
        return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))

    def _read(self, place: int) -> Sample:
        pair = self.pairs[place]
        return Sample(pair.name, pair.image, self.reader(pair.labels, len(self.classes)))

    def _part(self, places: slice) -> Self:
        return replace(self, pairs=self.pairs[places])


def _folder(path: Path, name: str) -> str:
    """The folder that the name of a sample is relative to."""
    return str(path.absolute().parents[len(PurePosixPath(name).parts) - 1].resolve())


def _pair_up(
    images: Path,
    image_ending: str | None,
    labels: Path,
    label_ending: str | None,
    names: Sequence[str] | str | Path | None,
) -> tuple[Pair, ...]:
    """Files of every sample, sorted by name, or in the order of the names given."""
    pictures = _files(images, image_ending, IMAGE_SUFFIXES, but=label_ending)
    truths = _files(labels, label_ending, LABEL_SUFFIXES, but=image_ending)
    if names is not None:
        wanted = _read_names(Path(names)) if isinstance(names, (str, Path)) else list(names)
        if not wanted:
            raise InputError(f"{names}: no names in it; accepted: one or more")
        without = {"images": [n for n in wanted if n not in pictures], "labels": [n for n in wanted if n not in truths]}
    else:
        wanted = sorted(pictures)
        without = {
            "images": [name for name in sorted(truths) if name not in pictures],
            "labels": [name for name in wanted if name not in truths],
        }
    if any(without.values()):
        missing = "; ".join(f"{len(some)} without {kind}: {_listed(some)}" for kind, some in without.items() if some)
        raise InputError(f"images in {images} and labels in {labels} do not pair: {missing}")
    if not wanted:
        raise InputError(f"{images}: no images; accepted: files that end in {image_ending or _listed(IMAGE_SUFFIXES)}")
    return tuple(Pair(name, pictures[name], truths[name]) for name in wanted)


def _files(folder: Path, ending: str | None, suffixes: Iterable[str], *, but: str | None) -> dict[str, Path]:
    """Files below a folder by their path without the ending; a file with the other ending is the other kind."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        own = path.suffix if ending is None else ending
        if not path.name.endswith(own) or (but is not None and len(but) > len(own) and path.name.endswith(but)):
            continue
        name = (path.parent.relative_to(folder) / path.name.removesuffix(own)).as_posix()
        if name in found:
            raise InputError(
                f"{path} and {found[name].name} are both {name}; accepted: one file a name. Say what the names of "
                "images and of labels end in"
            )
        found[name] = path
    return found


def _read_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of names ({error})") from error
    return [line.split()[0] for line in lines if line.strip()]


def _listed(items: Iterable[object]) -> str:
    """The first few, and how many more."""
    texts = [str(item) for item in (sorted(items, key=str) if isinstance(items, frozenset) else items)]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")


# --- Public data sets, in local copies -----------------------------------------------------------------------------


def ade20k(folder: str | Path, split: str = "validation") -> FolderDataset:
    """ADE20K with 150 classes, from ADEChallengeData2016 (images/SPLIT/*.jpg, annotations/SPLIT/*.png).

    `split` is "training" or "validation". Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "ADEChallengeData2016", "annotations")
    pairs = _pair_up(root / "images" / split, ".jpg", root / "annotations" / split, ".png", None)
    return FolderDataset(f"ADE20K-150 {split}", ADE20K_150, pairs, LabelMap(offset=1, ignore=(0,)))


def coco_stuff(
    folder: str | Path,
    split: str = "val2017",
    classes: Literal[171, 27] = 171,
    *,
    names: Sequence[str] | str | Path | None = None,
) -> FolderDataset:
    """COCO-Stuff with all 171 classes, or the 27 groups that STEGO and PiCIE score.

    Args:
        folder: with images in SPLIT or images/SPLIT, and label maps in SPLIT of stuffthingmaps_trainval2017,
            stuffthingmaps or annotations.
        split: "train2017" or "val2017".
        classes: 171 or 27.
        names: images to take, or a file with one a line, such as the 2,175 of PiCIE's list
            (Coco164kFull_Stuff_Coarse_7.txt) on which figures for 27 groups are usually reported.

    Raises:
        InputError: another number of classes, or as `FolderDataset.from_folders`.
    """
    if classes == 27:
        groups = {member: place for place, members in enumerate(COCO_STUFF_27.values()) for member in members}
        table = {label: groups[name] for label, name in zip(COCO_STUFF_LABELS, COCO_STUFF_171, strict=True)}
        listed = tuple(COCO_STUFF_27)
    elif classes == 171:
        table, listed = {label: place for place, label in enumerate(COCO_STUFF_LABELS)}, COCO_STUFF_171
    else:
        raise InputError(f"{classes} classes of COCO-Stuff; accepted: 171, 27")
    root = Path(folder)
    images = _first(root / "images" / split, root / split)
    labels = _first(*(root / kind / split for kind in ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations")))
    pairs = _pair_up(images, ".jpg", labels, ".png", names)
    return FolderDataset(f"COCO-Stuff-{classes} {split}", listed, pairs, LabelMap(table=table))


def pascal_voc(folder: str | Path, split: str = "val") -> FolderDataset:
    """PASCAL VOC 2012 with 20 classes and the background, from VOCdevkit/VOC2012.

    Read are ImageSets/Segmentation/SPLIT.txt, JPEGImages and SegmentationClass. The band of 255 around objects is
    ignored. Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "VOC2012", "SegmentationClass")
    names = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    pairs = _pair_up(root / "JPEGImages", ".jpg", root / "SegmentationClass", ".png", names)
    return FolderDataset(f"PASCAL VOC {split}", PASCAL_VOC_21, pairs, LabelMap())


def pascal_context(folder: str | Path, split: str = "val") -> FolderDataset:
    """PASCAL Context with its 59 most frequent classes, everything else ignored, from VOCdevkit/VOC2010.

    Label maps are PNG files of 0 (everything else) … 59 in SegmentationClassContext, as MMSegmentation's converter
    writes them, the split is ImageSets/SegmentationContext/SPLIT.txt. Raises InputError as
    `FolderDataset.from_folders` does.
    """
    root = _root(folder, "VOC2010", "SegmentationClassContext")
    names = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    pairs = _pair_up(root / "JPEGImages", ".jpg", root / "SegmentationClassContext", ".png", names)
    return FolderDataset(f"PASCAL Context-59 {split}", PASCAL_CONTEXT_59, pairs, LabelMap(offset=1, ignore=(0,)))


def cityscapes(folder: str | Path, split: str = "val", classes: Literal[19, 27] = 19) -> FolderDataset:
    """Cityscapes with the benchmark's 19 classes or all 27 that are not void (as STEGO scores).

    Read are leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png. Raises InputError
    for another number of classes, or as `FolderDataset.from_folders` does.
    """
    if classes not in {19, 27}:
        raise InputError(f"{classes} classes of Cityscapes; accepted: 19, 27")
    listed = CITYSCAPES_19 if classes == 19 else CITYSCAPES_27
    table = {label: listed.index(name) for label, name in enumerate(CITYSCAPES_27, start=7) if name in listed}
    root = _root(folder, "cityscapes", "gtFine")
    pairs = _pair_up(
        root / "leftImg8bit" / split, "_leftImg8bit.png", root / "gtFine" / split, "_gtFine_labelIds.png", None
    )
    return FolderDataset(f"Cityscapes-{classes} {split}", listed, pairs, LabelMap(table=table))


def camvid(folder: str | Path, split: str = "test") -> FolderDataset:
    """CamVid with 11 classes in SegNet's edition: SPLIT/*.png and SPLITannot/*.png, 11 ignored.

    `split` is "train", "val" or "test". Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "CamVid", f"{split}annot")
    pairs = _pair_up(root / split, ".png", root / f"{split}annot", ".png", None)
    return FolderDataset(f"CamVid-11 {split}", CAMVID_11, pairs, LabelMap(ignore=(11,)))


def bsds500(folder: str | Path, split: str = "test") -> FolderDataset:
    """BSDS500: regions without classes by several annotators, labels (annotator, height, width).

    Read are images/SPLIT/*.jpg and groundTruth/SPLIT/*.mat of BSDS500/data. `split` is "train", "val" or "test". Take
    a score against every annotator and average. Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "BSDS500/data", "groundTruth", also=("data",))
    pairs = _pair_up(root / "images" / split, ".jpg", root / "groundTruth" / split, ".mat", None)
    return FolderDataset(f"BSDS500 {split}", (), pairs, BsdsAnnotations())


def _root(folder: str | Path, usual: str, inside: str, *, also: Sequence[str] = ()) -> Path:
    """The folder itself or the usual one below it, whichever has the folder `inside`."""
    given = Path(folder)
    places = [given, *(given / below for below in (*also, usual, f"VOCdevkit/{usual}"))]
    return _first(*(place / inside for place in places)).parent


def _first(*folders: Path) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    raise InputError(f"no such folder: {_listed(folders)}")
