"""What a change of the training earns at equal time of a processor, by the loss on held-out pictures at fixed noise.

    python -m benchmarks.training --images PHOTOGRAPHS --init MODEL --cpu-minutes 8 --out runs
    python -m benchmarks.training --out runs --variants "optimizer=adamw; optimizer=muon; optimizer=muon, batch=32"

Every variant is a run of its own, on one thread, of as many steps as the minutes pay for (by five timed ones, of which
Muon's own work is a part). `--only 1` runs one of them, so that several can run side by side; a run that is over is not
run again. Seconds are those of the processor, not of the clock: other jobs do not count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from emerdiff_probe.errors import InputError
from emerdiff_probe.pocket.train import TrainConfig, train

TIMED = 5
"""Steps that are timed, of twice as many: the first are slower."""


def parse(text: str) -> dict[str, Any]:
    """Options of a training by name, from "name=value, name=value"."""
    known = {field.name for field in fields(TrainConfig)}
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in known:
            raise InputError(f"{name!r} of variant {text!r}; accepted: {', '.join(sorted(known))}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def losses(run: Path) -> pd.DataFrame:
    """The log of a run's denoiser."""
    lines = [json.loads(line) for line in (run / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame([line for line in lines if line["stage"] == "denoiser"])


def steps_for(config: TrainConfig, cpu_minutes: float) -> int:
    """Steps that so many minutes of the processor pay for."""
    with TemporaryDirectory() as folder:
        short = replace(config, out=Path(folder) / "run", steps=2 * TIMED, log_every=TIMED, held_out=0, pool=8)
        train(replace(short, samples=1, sample_steps=1), report=lambda _: None)
        first, last = losses(short.out)["cpu_seconds"]
    return max(1, round(60 * cpu_minutes / (last - first) * TIMED))


def run(config: TrainConfig, cpu_minutes: float) -> dict[str, Any]:
    """Train a variant, unless that was done; returns what it took and the losses that it came to."""
    finished = config.out / "figures.json"
    if not finished.exists():
        steps = steps_for(config, cpu_minutes)
        train(replace(config, steps=steps, held_out_every=max(1, steps // 6), resume=True), report=print)
    told = losses(config.out)
    judged = told.dropna(subset="held_out")
    return {
        "steps": int(told["step"].iloc[-1]),
        "cpu_minutes": round(told["cpu_seconds"].iloc[-1] / 60, 1),
        "held_out": " ".join(f"{value:.4f}" for value in judged["held_out"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for every variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=Path, default=None, help="folder of pictures; drawn scenes by default")
    parser.add_argument("--init", default="pocket", help="pipeline folder to start from")
    parser.add_argument("--variants", default="optimizer=adamw; optimizer=muon", help="options of each, by semicolons")
    parser.add_argument("--only", type=int, nargs="*", default=None, help="which of them, from 0")
    parser.add_argument("--cpu-minutes", type=float, default=8.0)
    parser.add_argument("--scenes", type=int, default=None, help="pictures at most")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for number, text in enumerate(given.variants.split(";")):
        if given.only is not None and number not in given.only:
            continue
        config = TrainConfig(
            out=given.out / text.strip().replace(" ", ""),
            world=given.images is None,
            images=given.images,
            init=given.init,
            device="cpu",
            autoencoder_minutes=0,
            steps=1,
            scenes=given.scenes,
        )
        rows.append({"variant": text.strip(), **run(replace(config, **parse(text)), given.cpu_minutes)})
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
