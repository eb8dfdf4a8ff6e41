"""What the notebooks show of many images, measured by one command and kept as small files beside them.

    python -m benchmarks.notebook_results --scenes 50                       # everything, into notebooks/results
    python -m benchmarks.notebook_results --scenes 50 --only strength,rivals
    python -m benchmarks.notebook_results --model FOLDER --data folder:PATH --out notebooks/results/photographs

A study becomes NAME.zarr.zip (`emerdiff_probe.read_result` reads it), an evaluation or a calibration a folder NAME of
tables with about.json. Records are kept in --store: what was stopped goes on, and what is there is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from emerdiff_probe.calibration.calibrate import calibrate
from emerdiff_probe.calibration.control import forget
from emerdiff_probe.data.dataset import DataSet
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
from emerdiff_probe.files import write_whole
from emerdiff_probe.methods.catalogue import METHODS, TRAININGS, Method, find_method
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.naming import Words
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.studies.catalogue import make_study
from emerdiff_probe.studies.portable import write_result
from emerdiff_probe.studies.run import run_study

OPTIONS: dict[str, Any] = {"steps": 10, "sharpen": "none"}
"""Of studies and evaluations: half the grid, and labels read off as in the paper."""
TABLES = ("scores", "gains", "segments")
"""Of a report that are kept: those of classes are large."""
NAMINGS = ("maskclip", "maskclip + emerdiff fast", "cross-attention", "cross-attention + emerdiff fast")
SHARPENED = "wls"
"""How EmerDiff and its rivals take the picture's own borders where all do."""
RIVALS = ("bilinear", "diffseg", "diffcut", "random walk", "slic", "felzenszwalb", "rgb k-means", "coordinate k-means")
LABELLED = 500_000
"""Seed of the first scene that the reference of notebook 13 is trained on."""


@dataclass(frozen=True)
class StudyPlan:
    """A study of a notebook.

    Attributes:
        fast: whether in the fast mode; what looks at whole images needs the exact one.
        quick: whether on the study's small grid.
        options: settings beside `OPTIONS`.
    """

    fast: bool = True
    quick: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation of a notebook.

    Attributes:
        methods: made for a model's data and the number of labelled samples.
        labels: of drawn scenes, "parts" or "objects".
        fast: whether EmerDiff's default is the fast mode.
        options: settings beside `OPTIONS`.
    """

    methods: Callable[[DataSet, int], tuple[Method, ...]]
    labels: str = "parts"
    fast: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration of a notebook, on data with labels, which it is held against.

    Attributes:
        untrained: with a denoiser of random weights in the place of the model's.
        quick: whether strength alone is searched.
    """

    untrained: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Measuring:
    """What all results of one run of this command share.

    Attributes:
        model, data: what is measured.
        store, out: folders of records and of the small files.
        about: what is written beside numbers.
        clusters: number of masks.
        labelled: labelled scenes for the reference of notebook 13.
        minutes: of measuring that a calibration may take.
    """

    model: ProbeModel
    data: DataSet
    store: Path
    out: Path
    about: dict[str, str]
    clusters: int
    labelled: int
    minutes: float

    def records(self, name: str, identity: dict[str, Any]) -> Path:
        """A folder of its own for all that would mean something else: other settings do not meet old records."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return self.store / self.model.fingerprint / f"{name}-{digest}"

    def config(self, fast: bool, **options: Any) -> EmerDiffConfig:
        """Of the exact or the fast mode, with `OPTIONS`."""
        make = EmerDiffConfig.fast if fast else EmerDiffConfig.for_model
        return make(self.model, **({"clusters": self.clusters} | OPTIONS | options))

    def write(self, name: str, tables: Mapping[str, pd.DataFrame], told: dict[str, Any]) -> Path:
        """Write tables and what they are of into a folder."""
        for table, frame in tables.items():
            write_whole(self.out / name / f"{table}.csv", partial(_write_table, frame))
        about = json.dumps(told | self.about, indent=2) + "\n"
        write_whole(self.out / name / "about.json", lambda path: path.write_text(about, "utf-8"))
        return self.out / name


def rivals(data: DataSet, scenes: int) -> tuple[Method, ...]:
    """All that need neither training nor words."""
    return tuple(METHODS.values())


def sharpened(data: DataSet, scenes: int) -> tuple[Method, ...]:
    """EmerDiff, and its rivals sharpened as it is."""
    return EmerDiff(), *(find_method(f"{name} + {SHARPENED}") for name in RIVALS)


def naming(data: DataSet, scenes: int) -> tuple[Method, ...]:
    """Namers by themselves and inside segments."""
    words = Words(data, source="pocket")
    return tuple(find_method(name, words=words) for name in NAMINGS)


def supervised(data: DataSet, scenes: int) -> tuple[Method, ...]:
    """EmerDiff, its masks, and a linear probe of the same features that was trained on labelled scenes."""
    labelled = open_data(f"world:{scenes},first={LABELLED}", side=256)
    return EmerDiff(), METHODS["bilinear"], Reference(TRAININGS["linear probe"], labelled)


PLANS: dict[str, StudyPlan | EvaluationPlan | CalibrationPlan] = {
    "layers": StudyPlan(fast=False),
    "feature_timestep": StudyPlan(quick=False),
    "modulate_at": StudyPlan(quick=False),
    "strength": StudyPlan(fast=False, quick=False),
    "placement": StudyPlan(fast=False),
    "injection": StudyPlan(fast=False),
    "locality": StudyPlan(fast=False),
    "additivity": StudyPlan(fast=False),
    "counterfactual": StudyPlan(),
    "clusters": StudyPlan(),
    "small_parts": StudyPlan(quick=False),
    "video": StudyPlan(),
    "rivals": EvaluationPlan(rivals),
    "sharpened": EvaluationPlan(sharpened, options={"sharpen": SHARPENED}),
    "naming": EvaluationPlan(naming, labels="objects", fast=True),
    "supervised": EvaluationPlan(supervised, fast=True),
    "calibration": CalibrationPlan(),
    "calibration_untrained": CalibrationPlan(untrained=True),
}
"""In the order of the notebooks."""


def main(
    scenes: Annotated[int, typer.Option(help="How many drawn scenes, from seed 0.")] = 50,
    only: Annotated[str, typer.Option(help="Some of them, with commas.")] = "",
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = "pocket",
    data: Annotated[str | None, typer.Option(help="Other data than drawn scenes, as `evaluate` takes it.")] = None,
    out: Annotated[Path, typer.Option(help="Where the small files go.")] = Path("notebooks/results"),
    store: Annotated[Path, typer.Option(help="Where records are kept.")] = Path("out/notebook_results"),
    quick: Annotated[bool, typer.Option("--quick", help="All studies on their small grids: a trial.")] = False,
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    labelled: Annotated[int, typer.Option(help="Labelled scenes for the reference of notebook 13.")] = 200,
    minutes: Annotated[float, typer.Option(help="Of measuring, a calibration; 'inf' until it ends.")] = math.inf,
    device: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Measure what the notebooks show, and say how long each took; what the data does not allow is left out."""
    names = [name.strip() for name in only.split(",")] if only else list(PLANS)
    if unknown := [name for name in names if name not in PLANS]:
        raise InputError(f"no results {', '.join(unknown)}; accepted: {', '.join(PLANS)}")
    probed = load_model(model, device=device)
    for name in names:
        began = time.perf_counter()
        plan = PLANS[name]
        labels = plan.labels if isinstance(plan, EvaluationPlan) else "parts"
        samples = open_data(data or f"world:{scenes},labels={labels}", side=probed.native_size)
        asked = f"python -m benchmarks.notebook_results --only {name} --model {model}"
        command = f"{asked} --data {data}" if data else f"{asked} --scenes {scenes}"
        command += f" --clusters {clusters}"
        if name == "supervised":
            command += f" --labelled {labelled}"
        if isinstance(plan, CalibrationPlan):
            command += f" --minutes {minutes:g}"
        if quick and not isinstance(plan, EvaluationPlan):
            plan, command = replace(plan, quick=True), f"{command} --quick"
        about = {"model": f"{probed.name} ({probed.fingerprint})", "measured by": command}
        measuring = Measuring(probed, samples, store, out, about, clusters, labelled, minutes)
        try:
            if isinstance(plan, StudyPlan):
                written = measure_study(name, plan, measuring)
            elif isinstance(plan, EvaluationPlan):
                written = measure_evaluation(name, plan, measuring)
            else:
                written = measure_calibration(name, plan, measuring)
        except InputError as error:
            print(f"{name}: left out: {error}")
            continue
        print(f"{name}: {written}, {time.perf_counter() - began:.0f} s", flush=True)


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def measure_study(name: str, plan: StudyPlan, given: Measuring) -> Path:
    """Run a study, or finish it, and write its small file."""
    config = given.config(plan.fast, **plan.options)
    study = make_study(name, given.model, given.data, config, quick=plan.quick)
    records = given.records(name, study.identity())
    result = run_study(given.model, study, given.data, store=records, progress=True)
    return write_result(replace(result, computed=0, reused=0), given.out / f"{name}.zarr.zip", about=given.about)


def measure_evaluation(name: str, plan: EvaluationPlan, given: Measuring) -> Path:
    """Run an evaluation, or finish it, and write its small tables."""
    config = given.config(plan.fast, **plan.options)
    evaluation = Evaluation(plan.methods(given.data, given.labelled), (given.clusters,), config)
    records = given.records(name, config.to_dict())
    report = make_report(run_evaluation(given.model, given.data, evaluation, store=records, progress=True))
    tables = {table: frame for table, frame in report.frames().items() if table in TABLES}
    told = {"title": report.title, "images": len(report.images), "classes": str(report.labels)}
    return given.write(name, tables, told | {"configuration": config.to_dict()})


def measure_calibration(name: str, plan: CalibrationPlan, given: Measuring) -> Path:
    """Search settings on all pictures to the end, or until the time is over, or go on, and write what was found."""
    config = EmerDiffConfig().change(clusters=given.clusters)
    model = forget(given.model, 0) if plan.untrained else given.model
    records = given.records(name, config.to_dict() | {"pictures": len(given.data)})
    images, search = len(given.data), ("strength",) if plan.quick else None
    found = calibrate(
        model, given.data, config, images=images, minutes=given.minutes, search=search, store=records, progress=True
    )
    if not found.labelled:
        raise InputError(f"{given.data.name} has no labels, which criteria are held against")
    told = {"images": len(found.pictures), "notes": list(found.notes), "regret": found.regret()}
    tables = {"settings": found.table(), "criteria": found.correlations(), "guard": found.guard()}
    return given.write(name, tables, told | {"configuration": found.base.to_dict(), "chosen": found.options})


if __name__ == "__main__":
    typer.run(main)
