"""`emerdiff-probe find`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from emerdiff_probe.cli.models import GivenModel, take_model
from emerdiff_probe.cli.options import (
    GivenSettings,
    app,
    split_list,
    take_settings,
)
from emerdiff_probe.errors import InputError


@app.command()
@take_model
@take_settings()
def find(
    model: GivenModel,
    settings: GivenSettings,
    concepts: Annotated[
        str, typer.Argument(help="What is looked for, such as 'roof' or 'roof,red car'; or @FILE with one a line.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders with images, patterns, or @FILE with one of these a line."),
    ],
    clip: Annotated[
        str | None,
        typer.Option(
            help="Which CLIP chooses the masks: 'pocket', a hub id or a local folder; the denoiser's own attention to "
            "the word when not given."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the masks, a subfolder an image.")] = Path("out/found"),
) -> None:
    """Find concepts by their names: writes NAME.png (0 and 255), NAME_score.png and NAME_overlay.png of every one.

    An image is segmented once for all concepts. Images that cannot be used are reported and skipped; a line an image
    and concept says how much of the image it covers, and how well its masks stand apart (0 to 1): a concept that is not
    there gets a mask too, and separates less well.
    """
    from emerdiff_probe.batch import list_pictures
    from emerdiff_probe.files import require_writable
    from emerdiff_probe.models.clip import load_clip
    from emerdiff_probe.naming.find import find as find_concept
    from emerdiff_probe.naming.find import name_files, write_found
    from emerdiff_probe.segmentation.segment import segment

    wanted = _read_concepts(concepts)
    names = name_files(wanted)
    pictures = list_pictures(images)
    require_writable(out)
    probed = model.load()
    config = settings.config(probed)
    chooser = None if clip is None else load_clip(clip, device=probed.device)
    for note in pictures.notes:
        print(note, file=sys.stderr)
    written = 0
    for place, picture in enumerate(pictures.names):
        try:
            result = segment(probed, pictures[place].pixels(), config, progress=sys.stderr.isatty())
        except InputError as error:
            print(f"{picture}: skipped ({error})", file=sys.stderr)
            continue
        for concept, name in zip(wanted, names, strict=True):
            found = find_concept(probed, result, concept, clip=chooser)
            path = write_found(found, out / picture, name)
            share = {
                "image": picture,
                "concept": concept,
                "mask": str(path),
                "covers": round(float(found.mask.mean()), 4),
            }
            print(json.dumps(share | {"separation": round(found.separation, 4)}))
        written += 1
    if not written:
        raise InputError(f"{len(pictures)} images, none of which could be used; accepted: one or more")


def _read_concepts(text: str) -> list[str]:
    """Concepts from a text with commas, or from a file with one a line.

    Raises:
        InputError: none, one twice, or a file that cannot be read.
    """
    concepts = list(split_list(text))
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"{text[1:]}: no list of concepts can be read ({error}); accepted: one a line") from error
        concepts = [line.strip() for line in lines if line.strip()]
    if not concepts or len(set(concepts)) < len(concepts):
        raise InputError(f"concepts {text!r}; accepted: one or more, each once")
    return concepts
