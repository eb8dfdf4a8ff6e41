"""What every training has in common: a budget, steps that are logged and resumed, and a stop that keeps the work."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emerdiff_probe.errors import InputError, ModelError

_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: minutes, steps, or whichever ends first."""

    minutes: float | None = None
    steps: int | None = None

    def progress(self, *, step: int, seconds: float) -> float:
        """Part of the budget that is spent; 1 or more when the stage is over."""
        spent = [
            done / total if total else 1.0
            for done, total in ((seconds / 60, self.minutes), (step, self.steps))
            if total is not None
        ]
        return max(spent)


class Settings(Protocol):
    """What a loop asks of the configuration of its run."""

    @property
    def out(self) -> Path:
        """The run folder."""

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises to its peak."""

    @property
    def ema_decay(self) -> float:
        """Share of the averaged weights that a step keeps."""

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds between checkpoints."""

    @property
    def log_every(self) -> int:
        """Steps a line of the log."""

    def budget(self, stage: str) -> Budget:
        """How long a stage trains."""


class Run(Protocol):
    """What a loop asks of its run."""

    @property
    def config(self) -> Settings:
        """Its configuration."""

    stop: Stop
    report: Callable[[str], None]
    device: torch.device

    def autocast(self) -> AbstractContextManager:
        """Mixed precision where the device is made for it."""


class Loop:
    """The steps of one stage: optimizer, learning rate, averaged weights, log and checkpoints.

    The state is in ``out / "state" / f"{stage}.pt"``, from which a loop of the same stage goes on; losses are logged
    in ``out / "losses.jsonl"``. ``averaged`` holds the modules with exponentially averaged weights.
    """

    def __init__(self, stage: str, modules: dict[str, nn.Module], run: Run, *, peak: float):
        self.stage, self.modules, self.peak = stage, modules, peak
        self.config: Settings = run.config
        self.budget = self.config.budget(stage)
        self.stop, self.report, self.autocast = run.stop, run.report, run.autocast
        self.step = 0
        self.seconds = 0.0
        self._started: float | None = None
        self.averaged: dict[str, Any] = {name: copy.deepcopy(module).eval() for name, module in modules.items()}
        for module in self.averaged.values():
            module.requires_grad_(False)
        fused = run.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self._parameters(), lr=peak, weight_decay=0.01, fused=fused)
        self.path = self.config.out / "state" / f"{stage}.pt"
        self.log_path = self.config.out / "losses.jsonl"
        if self.path.exists():
            self._load(run.device)
        self._forget_later_losses()

    @property
    def progress(self) -> float:
        """Part of the stage's budget that is spent."""
        return self.budget.progress(step=self.step, seconds=self._elapsed())

    @property
    def figures(self) -> dict[str, Any]:
        """Steps, minutes and parameters of the schedule, for the model card."""
        return {"steps": self.step, "minutes": self.seconds / 60, "learning_rate": self.peak}

    def start_clock(self) -> None:
        """Count the time from now on (for work of the stage before its first step)."""
        if self._started is None:
            self._started = time.monotonic()

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Take steps down ``loss_of(step)`` until the budget is spent or the run is stopped."""
        self.start_clock()
        for module in self.modules.values():
            module.train()
        parameters = self._parameters()
        losses: list[Tensor] = []
        saved = told = time.monotonic()
        while (progress := self.progress) < 1 and not self.stop:
            rate = self.peak * min(1.0, (self.step + 1) / self.config.warmup_steps) * _cosine(progress)
            losses.append(self._take_step(loss_of, parameters, rate))
            if self.step % self.config.log_every == 0:
                value = self._log(losses, rate)
                losses = []
                if time.monotonic() - told > _REPORT_SECONDS:
                    told = time.monotonic()
                    self.report(f"{self.stage}: step {self.step}, {self.progress:.0%}, loss {value:.4f}")
            if time.monotonic() - saved > self.config.checkpoint_seconds:
                saved = time.monotonic()
                self._save()
        if losses:
            self._log(losses, rate)
        self._save()
        self._started = None
        for module in self.modules.values():
            module.eval()
        self.report(f"{self.stage}: {self.step} steps in {self.seconds / 60:.1f} minutes")

    def _take_step(self, loss_of: Callable[[int], Tensor], parameters: list[Tensor], rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            with self.autocast():
                loss = loss_of(self.step)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average(parameters)
        return loss.detach()

    def _parameters(self) -> list[Tensor]:
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def _average(self, parameters: list[Tensor]) -> None:
        # Averaging over fewer steps at first: otherwise the average remembers its random start for long.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averaged = [parameter for module in self.averaged.values() for parameter in module.parameters()]
        get_ema_multi_avg_fn(decay)(averaged, parameters, None)

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    def _log(self, losses: list[Tensor], rate: float) -> float:
        value = torch.stack(losses).mean().item()
        if not math.isfinite(value):
            raise ModelError(
                f"{self.stage}: the loss is {value} at step {self.step}; resume from the last checkpoint "
                f"with a learning rate below {self.peak}"
            )
        line = {
            "stage": self.stage,
            "step": self.step,
            "loss": value,
            "rate": rate,
            "seconds": self._elapsed(),
        }
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        return value

    def _save(self) -> None:
        now = time.monotonic()
        if self._started is not None:
            self.seconds += now - self._started
            self._started = now
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averaged": {name: module.state_dict() for name, module in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".writing")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def _load(self, device: torch.device) -> None:
        state = torch.load(self.path, map_location=device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        for name in self.modules:
            self.modules[name].load_state_dict(state["modules"][name])
            self.averaged[name].load_state_dict(state["averaged"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    def _forget_later_losses(self) -> None:
        """Drop what a killed run logged after its last checkpoint: those steps are taken again."""
        if self.log_path.exists():
            lines = [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]
            kept = [line for line in lines if line["stage"] != self.stage or line["step"] <= self.step]
            write_atomically(self.log_path, "".join(json.dumps(line) + "\n" for line in kept).encode())


class Stop:
    """True once the session is over or Ctrl-C was pressed; a second Ctrl-C interrupts at once."""

    def __init__(self, minutes: float | None):
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.interrupted = False
        self._previous: Any = None

    def __bool__(self) -> bool:
        return self.interrupted or time.monotonic() > self.deadline

    def __enter__(self) -> Stop:
        # Python delivers signals to the main thread only, and only there may handlers be set.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def open_run(out: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Make a run folder that knows its identity, or check that a resumed run is the one in it.

    Raises:
        InputError: a folder in use, or a run of another identity.
    """
    path = out / "config.json"
    if resume and path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        for name, value in identity.items():
            if then.get(name) != value:
                raise InputError(f"{out}: {name} was {then.get(name)} there and is {value} now; resume needs the same")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: in use; a new or empty folder is accepted, or resume with the run in it")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(identity, indent=1).encode())


def _cosine(progress: float) -> float:
    """Factor of the learning rate: from 1 down to 1%."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole or not at all."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(content)
    os.replace(temporary, path)
