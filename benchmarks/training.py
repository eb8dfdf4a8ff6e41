"""What a change of the training earns at equal time of a processor, by the loss on held-out pictures at fixed noise.

    python -m benchmarks.training --images PHOTOGRAPHS --init MODEL --cpu-minutes 8 --out runs
    python -m benchmarks.training --costs
    python -m benchmarks.training --out runs --variants "optimizer=adamw; optimizer=muon; optimizer=muon, batch=32"

Every variant is a run of its own, on one thread, of as many steps as the minutes pay for (by five timed ones, of which
Muon's own work is a part). `--only 1` runs one of them, so that several can run side by side; a run that is over is not
run again. Seconds are those of the processor, not of the clock: other jobs do not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.loading import SHIPPED
from emerdiff_probe.pocket.architecture import Parts
from emerdiff_probe.pocket.optimizer import OPTIMIZERS, Optimizer
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


def costs(parts: Parts, batch: int, repeats: int) -> pd.DataFrame:
    """Median seconds of the processor that the pieces of a step take."""
    size = parts.image_size
    denoiser, autoencoder = (
        module.to(memory_format=torch.channels_last) for module in (parts.denoiser, parts.autoencoder)
    )
    side, width = denoiser.config.sample_size, denoiser.config.cross_attention_dim
    noisy = torch.randn(batch, denoiser.config.in_channels, side, side).contiguous(memory_format=torch.channels_last)
    context = torch.randn(batch, parts.tokenizer.model_max_length, width)
    timestep = torch.arange(batch) * 1000 // batch
    pictures = torch.randn(8, 3, size, size).contiguous(memory_format=torch.channels_last)

    def step(mixed: bool, processor: Any) -> None:
        denoiser.set_attn_processor(processor)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = denoiser(noisy, timestep, context).sample.float().square().mean()
        loss.backward()

    @torch.no_grad()
    def encode(mixed: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            autoencoder.encode(pictures)

    def optimize(optimizer: Optimizer) -> None:
        for parameter in denoiser.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step(1e-9)

    kinds = {kind: Optimizer({"denoiser": denoiser}, kind) for kind in OPTIMIZERS}
    ways: dict[str, Callable[[], None]] = {
        f"{batch} latents, forward and backward, bfloat16": partial(step, True, AttnProcessor()),
        "the same with fused attention": partial(step, True, AttnProcessor2_0()),
        "the same in float32": partial(step, False, AttnProcessor2_0()),
        "8 pictures encoded, bfloat16": partial(encode, True),
        "the same in float32 ": partial(encode, False),
        **{f"a step of {kind}": partial(optimize, optimizer) for kind, optimizer in kinds.items()},
    }
    rows = []
    for name, way in ways.items():
        way()
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            way()
            seconds.append(time.process_time() - began)
        rows.append({"what": name, "cpu_seconds": round(median(seconds), 3)})
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for every variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=Path, default=None, help="folder of pictures; drawn scenes by default")
    parser.add_argument("--init", default="pocket", help="pipeline folder to start from")
    parser.add_argument("--variants", default="optimizer=adamw; optimizer=muon", help="options of each, by semicolons")
    parser.add_argument("--only", type=int, nargs="*", default=None, help="which of them, from 0")
    parser.add_argument("--cpu-minutes", type=float, default=8.0)
    parser.add_argument("--scenes", type=int, default=None, help="pictures at most")
    parser.add_argument("--out", type=Path, default=Path("runs/training"), help="folder of the runs")
    parser.add_argument("--costs", action="store_true", help="time the pieces of a step in the place of training")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.costs:
        print(costs(Parts.load(SHIPPED.get(given.init, Path(given.init))), 16, 3).to_string(index=False))
        return
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
