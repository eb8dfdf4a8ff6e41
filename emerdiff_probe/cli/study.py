"""`emerdiff-probe study`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from emerdiff_probe.cli.options import DeviceOption, FastOption, ModelOption, PrecisionOption, app, require_folder
from emerdiff_probe.errors import InputError


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which study; a name that does not exist lists them all.")],
    images: Annotated[int, typer.Option(help="Number of drawn scenes.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; training begins at 1,000,000.")] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the Zarr group; out/studies/NAME by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small grid.")] = False,
    fast: FastOption = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Refuse a store that is there already.")] = False,
    clusters: Annotated[int | None, typer.Option(help="Number of masks K.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the scheduler's grid.")] = None,
    modulate_at: Annotated[int | None, typer.Option(help="Timestep of the modulation, on that grid.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Share images among so many workers of Ray, here or where RAY_ADDRESS says.")
    ] = None,
    model: ModelOption = "pocket",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Run a study over drawn scenes; interrupted at any moment it goes on where it stopped.

    Prints a table with 95% intervals, what the paper reports beside it, and as the last line one JSON object.
    """
    from emerdiff_probe.models.loading import load_model
    from emerdiff_probe.segmentation.configuration import EmerDiffConfig
    from emerdiff_probe.studies.catalogue import STUDIES, make_study
    from emerdiff_probe.studies.run import run_study, world_scenes

    if name not in STUDIES:
        raise InputError(f"no study {name!r}; accepted: {', '.join(STUDIES)}")
    given: dict[str, Any] = {"clusters": clusters, "steps": steps, "modulate_at": modulate_at}
    changes = {key: value for key, value in given.items() if value is not None}
    EmerDiffConfig().change(**changes)  # refuses values out of range before a model is loaded
    folder = store or Path("out") / "studies" / name
    require_folder(folder)
    probed = load_model(model, device=device, dtype=precision)
    settings = (EmerDiffConfig.fast if fast else EmerDiffConfig.for_model)(probed, **changes)
    made = make_study(name, probed, settings, quick=quick)
    scenes = world_scenes(probed, images, seed)
    result = run_study(
        probed, made, scenes, store=folder, resume=not no_resume, workers=workers, progress=sys.stderr.isatty()
    )
    print(result)
    print(json.dumps({"store": str(folder), "computed": result.computed, "reused": result.reused}))
