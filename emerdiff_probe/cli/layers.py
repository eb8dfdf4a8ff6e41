"""`emerdiff-probe layers`."""

from __future__ import annotations

import csv
import json
import sys
from typing import Annotated

import typer

from emerdiff_probe.checks import is_one_of
from emerdiff_probe.cli.models import GivenModel, take_model
from emerdiff_probe.cli.options import app
from emerdiff_probe.errors import InputError

FORMATS = ("table", "json", "csv")


@app.command()
@take_model
def layers(
    model: GivenModel,
    stage: Annotated[
        str | None, typer.Option(help="Only of this stage: down, mid or up; of a transformer double or single.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind: self, cross, joint, linear, feedforward, resnet or block.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Only of grids with this many cells along a side.")] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Only this part: query, key, value, heads, output, or text_query to text_output."),
    ] = None,
    format: Annotated[str, typer.Option(help="table, json or csv.")] = "table",
) -> None:
    """Print the table of sites: every tensor of the denoiser that can be read, clustered or changed.

    All filters hold at once.
    """
    from emerdiff_probe.sites import check_properties, list_sites

    if not is_one_of(format, FORMATS):
        raise InputError(f"format {format!r}; accepted: {', '.join(FORMATS)}")
    wanted = {"stage": stage, "resolution": resolution, "kind": kind, "part": part}
    check_properties(**wanted)  # before a model is loaded
    sites = list_sites(model.load(), **wanted)  # type: ignore[arg-type]
    if format == "table":
        print(sites)
    elif format == "json":
        print(json.dumps(sites.records(), indent=1))
    else:
        writer = csv.DictWriter(sys.stdout, sites.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sites.records())
