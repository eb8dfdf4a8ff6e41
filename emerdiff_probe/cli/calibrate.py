"""`emerdiff-probe calibrate`."""

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
    format_options,
    require_settings_name,
    take_settings,
    write_settings,
)
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import require_writable

MINUTES = 10**6
"""The most that may be asked for: two years."""


@app.command()
@take_model
@take_settings()
def calibrate(
    model: GivenModel,
    settings: GivenSettings,
    data: Annotated[
        str,
        typer.Option(
            help="Pictures: a folder, or any data set that `evaluate` takes, such as images:PATH or folder:PATH. "
            "Labels are not used to choose: with them the choice is held against mIoU."
        ),
    ],
    images: Annotated[int, typer.Option(min=1, help="How many pictures, evenly spread over the data.")] = 12,
    minutes: Annotated[float, typer.Option(help="Of measuring, at most.")] = 10.0,
    save_config: Annotated[
        Path | None, typer.Option(help="Write the settings, .toml or .json; --config of every verb reads them.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of the records and the report; its own in out/calibration by default."),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Also measure how labels agree under two draws of noise; twice as long.")
    ] = False,
) -> None:
    """Find where to push and how hard on pictures that need no labels; interrupted it goes on where it stopped.

    Layer, timestep and strength are searched, then placement, injection and steps; what is given as an option stays.
    Prints what was found, a table with 95% intervals and options to paste, writes report.html with the figure, and ends
    with one JSON object.
    """
    from emerdiff_probe.calibration.calibrate import calibrate as find_settings
    from emerdiff_probe.calibration.calibrate import open_pictures
    from emerdiff_probe.runs.store import require_local
    from emerdiff_probe.viz.calibration import write_report

    if not 0 < minutes <= MINUTES:
        raise InputError(f"--minutes {minutes}; accepted: above 0, up to {MINUTES:,}")
    if save_config is not None:
        require_settings_name(save_config)
        require_writable(save_config.parent)
    require_writable(require_local(store or Path("out")))
    probed = model.load()
    samples = open_pictures(data, probed)
    for note in samples.notes:
        print(f"{samples.name}: {note}", file=sys.stderr)
    config = settings.open_config(probed)
    own = name_store(probed.fingerprint, str(probed.dtype), samples.identity(), config.to_dict(), seeds)
    folder = store or Path("out") / "calibration" / own
    result = find_settings(
        probed,
        samples,
        config,
        images=images,
        minutes=minutes,
        store=folder,
        seeds=seeds,
        progress=sys.stderr.isatty(),
    )
    print(result)
    print(f"\n{write_report(result, folder / 'report.html')}: the table and the figure")
    print(f"{'chosen' if result.found else 'the preset'}: {format_options(result.options)}")
    if save_config is not None:
        write_settings(result.config, save_config)
        print(f"{save_config}: these settings, for --config")
    summary = {"store": str(folder), "found": result.found, "pictures": len(result.pictures)}
    print(json.dumps(summary | {"skipped": len(result.skipped), "settings": result.options}))


def name_store(*parts: object) -> str:
    """A name for a folder that is the same for the same model, data and settings, and another for others."""
    import hashlib

    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
