"""`emerdiff-probe study`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from emerdiff_probe.cli.models import GivenModel, take_model
from emerdiff_probe.cli.options import (
    GivenSettings,
    WorkersOption,
    app,
    format_options,
    require_settings_name,
    take_settings,
    write_settings,
)
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import require_writable


@app.command()
@take_model
@take_settings()
def study(
    model: GivenModel,
    settings: GivenSettings,
    name: Annotated[str, typer.Argument(help="Which study; a name that does not exist lists them all.")],
    data: Annotated[
        str,
        typer.Option(
            help="What is studied: world:COUNT, folder:PATH with labels, images:PATH without, or any data set that "
            "`evaluate` takes; then options such as ,first=1000."
        ),
    ] = "world:50",
    fit_on: Annotated[
        str | None,
        typer.Option(help="What linear probes of study layers are fitted on, written as --data; none overlap with it."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the records; out/studies/NAME by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small grid.")] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Refuse a store that is there already.")] = False,
    save_config: Annotated[
        Path | None,
        typer.Option(help="Write the settings of the best place of the grid, .toml or .json; --config reads them."),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Run a study over drawn scenes or pictures of one's own; interrupted at any moment it goes on where it stopped.

    Prints a table with 95% intervals, what the paper reports beside it, and as the last line one JSON object. Samples
    that cannot be read or measured, and damaged records, are reported; what the data does not allow to measure, too.
    """
    from emerdiff_probe.data.sources import open_data
    from emerdiff_probe.runs.store import require_local
    from emerdiff_probe.studies.catalogue import STUDIES, make_study
    from emerdiff_probe.studies.run import run_study

    if name not in STUDIES:
        raise InputError(f"no study {name!r}; accepted: {', '.join(STUDIES)}")
    if save_config is not None:
        require_settings_name(save_config)
    folder = require_local(store or Path("out") / "studies" / name)
    require_writable(folder)
    probed = model.load()
    samples = open_data(data, side=probed.native_size)
    fitted = None if fit_on is None else open_data(fit_on, side=probed.native_size)
    made = make_study(name, probed, samples, settings.config(probed), quick=quick, fit_on=fitted)
    result = run_study(
        probed, made, samples, store=folder, resume=not no_resume, workers=workers, progress=sys.stderr.isatty()
    )
    print(result)
    best = result.find_best()
    if best is not None:
        measure, found = best
        changed = made.config.change(**found).resolve(probed)
        shown = {option: changed.options()[option] for option in found}
        print(f"\nbest by {measure} ({made.measures[measure].description}): {format_options(shown)}")
        if save_config is not None:
            write_settings(changed, save_config)
            print(f"{save_config}: these settings, for --config")
    elif save_config is not None:
        print(f"{save_config} is not written: study {name} finds no settings", file=sys.stderr)
    summary = {"store": str(folder), "computed": result.computed, "reused": result.reused}
    print(json.dumps(summary | {"images": result.images, "skipped": len(result.skipped)}))
