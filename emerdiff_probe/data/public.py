"""Public data sets in local copies, in the layouts in which they are handed out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from emerdiff_probe.data.classes import (
    ADE20K_150,
    CAMVID_11,
    CAMVID_GROUPS,
    CITYSCAPES_19,
    CITYSCAPES_27,
    COCO_STUFF_27,
    COCO_STUFF_171,
    COCO_STUFF_LABELS,
    PASCAL_CONTEXT_59,
    PASCAL_VOC_21,
)
from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.labels import BsdsAnnotations, LabelMap, map_colours, read_colours
from emerdiff_probe.data.lists import list_some
from emerdiff_probe.data.pairs import pair_up
from emerdiff_probe.errors import InputError


def ade20k(folder: str | Path, split: str = "validation") -> FolderDataset:
    """ADE20K with 150 classes, from ADEChallengeData2016 (images/SPLIT/*.jpg, annotations/SPLIT/*.png).

    `split` is "training" or "validation". Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "ADEChallengeData2016", "annotations")
    pairs, notes = pair_up(root / "images" / split, ".jpg", root / "annotations" / split, ".png", None)
    return FolderDataset(f"ADE20K-150 {split}", ADE20K_150, pairs, LabelMap(offset=1, ignore=(0,)), notes)


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
    pairs, notes = pair_up(images, ".jpg", labels, ".png", names)
    return FolderDataset(f"COCO-Stuff-{classes} {split}", listed, pairs, LabelMap(table=table), notes)


def pascal_voc(folder: str | Path, split: str = "val") -> FolderDataset:
    """PASCAL VOC 2012 with 20 classes and the background, from VOCdevkit/VOC2012.

    Read are ImageSets/Segmentation/SPLIT.txt, JPEGImages and SegmentationClass. The band of 255 around objects is
    ignored. Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "VOC2012", "SegmentationClass")
    names = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    pairs, notes = pair_up(root / "JPEGImages", ".jpg", root / "SegmentationClass", ".png", names)
    return FolderDataset(f"PASCAL VOC {split}", PASCAL_VOC_21, pairs, LabelMap(), notes)


def pascal_context(folder: str | Path, split: str = "val") -> FolderDataset:
    """PASCAL Context with its 59 most frequent classes, everything else ignored, from VOCdevkit/VOC2010.

    Label maps are PNG files of 0 (everything else) … 59 in SegmentationClassContext, as MMSegmentation's converter
    writes them, the split is ImageSets/SegmentationContext/SPLIT.txt. Raises InputError as
    `FolderDataset.from_folders` does.
    """
    root = _root(folder, "VOC2010", "SegmentationClassContext")
    names = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    pairs, notes = pair_up(root / "JPEGImages", ".jpg", root / "SegmentationClassContext", ".png", names)
    return FolderDataset(f"PASCAL Context-59 {split}", PASCAL_CONTEXT_59, pairs, LabelMap(offset=1, ignore=(0,)), notes)


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
    pairs, notes = pair_up(
        root / "leftImg8bit" / split, "_leftImg8bit.png", root / "gtFine" / split, "_gtFine_labelIds.png", None
    )
    return FolderDataset(f"Cityscapes-{classes} {split}", listed, pairs, LabelMap(table=table), notes)


def camvid(
    folder: str | Path,
    split: str = "test",
    classes: Literal[11, 32] = 11,
    *,
    names: Sequence[str] | str | Path | None = None,
) -> FolderDataset:
    """CamVid, in SegNet's edition (numbers) or as its authors hand it out (colours).

    Args:
        folder: with SPLIT/*.png and SPLITannot/*.png of 11 classes (SegNet); or with label_colors.txt, images in
            701_StillsRaw_full, and labels *_L.png in LabeledApproved_full.
        split: "train", "val" or "test"; the authors' edition has no splits: "all", or `names`.
        classes: 11 as SegNet groups them, or the authors' 32 without Void (in their edition).
        names: images to take, or a file with one a line.

    Raises:
        InputError: another number of classes, a split that the edition does not have, label_colors.txt without a class,
            or as `FolderDataset.from_folders`.
    """
    if classes not in {11, 32}:
        raise InputError(f"{classes} classes of CamVid; accepted: 11, 32")
    places = [Path(folder), Path(folder) / "CamVid"]
    original = next((place for place in places if os.path.isfile(place / "label_colors.txt")), None)
    if original is None:
        if classes != 11:
            raise InputError(f"{classes} classes of CamVid without label_colors.txt in {folder}; accepted: 11")
        root = _root(folder, "CamVid", f"{split}annot")
        pairs, notes = pair_up(root / split, ".png", root / f"{split}annot", ".png", names)
        return FolderDataset(f"CamVid-11 {split}", CAMVID_11, pairs, LabelMap(ignore=(11,)), notes)
    if split != "all" and names is None:
        raise InputError(
            f"{original}: this edition of CamVid has no split {split!r}; accepted: split=all, or names=FILE"
        )
    listed = read_colours(original / "label_colors.txt")
    if classes == 11:
        groups = {member: group for group, members in CAMVID_GROUPS.items() for member in members} | {"Void": "Void"}
        unknown = [name for name in listed.values() if name not in groups]
        if unknown:
            raise InputError(f"{original / 'label_colors.txt'}: {list_some(unknown)}; accepted: the names of CamVid")
        listed = {colour: groups[name] for colour, name in listed.items()}
    found, reader = map_colours(listed, ["Void"], order=CAMVID_11 if classes == 11 else ())
    images = _first(original / "701_StillsRaw_full", original / "images")
    labels = _first(original / "LabeledApproved_full", original / "labels")
    pairs, notes = pair_up(images, ".png", labels, "_L.png", names)
    return FolderDataset(f"CamVid-{classes} {split if names is None else 'by name'}", found, pairs, reader, notes)


def bsds500(folder: str | Path, split: str = "test") -> FolderDataset:
    """BSDS500: regions without classes by several annotators, labels (annotator, height, width).

    Read are images/SPLIT/*.jpg and groundTruth/SPLIT/*.mat of BSDS500/data. `split` is "train", "val" or "test". Take
    a score against every annotator and average. Raises InputError as `FolderDataset.from_folders` does.
    """
    root = _root(folder, "BSDS500/data", "groundTruth", also=("data",))
    pairs, notes = pair_up(root / "images" / split, ".jpg", root / "groundTruth" / split, ".mat", None)
    return FolderDataset(f"BSDS500 {split}", (), pairs, BsdsAnnotations(), notes)


def _root(folder: str | Path, usual: str, inside: str, *, also: Sequence[str] = ()) -> Path:
    """The folder itself or the usual one below it, whichever has the folder `inside`."""
    given = Path(folder)
    places = [given, *(given / below for below in (*also, usual, f"VOCdevkit/{usual}"))]
    return _first(*(place / inside for place in places)).parent


def _first(*folders: Path) -> Path:
    for folder in folders:
        if os.path.isdir(folder):  # which takes any text
            return folder
    raise InputError(f"no such folder: {list_some(folders)}")
