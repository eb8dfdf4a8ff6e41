"""What every training has in common: a budget, steps that are logged and resumed, and a stop that keeps the work."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.files import sweep, write_whole
from emerdiff_probe.pocket.optimizer import Optimizer

_REPORT_SECONDS = 10.0
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, UnpicklingError, zipfile.BadZipFile)
"""What a damaged checkpoint raises."""
BEFORE = ".before.pt"
"""End of the name of the checkpoint before the last."""
DECAY = 0.15
"""Part of a stretch, its last, over which the learning rate falls (Hagele et al. 2024, arXiv 2405.18392)."""
WINDOW = 9
"""Averaged weights are averaged over about as many steps as were taken, divided by this."""


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

    A stretch is what one budget pays for: the learning rate rises over `warmup_steps`, stays at its peak, and falls
    over the last part of the budget (`DECAY`). A loop whose budget was spent and is now larger begins another stretch,
    from the weights, moments and averages that it had; so may a stage be extended as often as one likes, without
    knowing beforehand where it ends. One that was stopped within a stretch goes on with it.

    Weights that were `given` (by a run that is over, perhaps in half precision) begin a stretch as well: with the
    warm-up, over which the new moments fill, and averages that begin at them and outlast the warm-up. Fresh weights are
    forgotten by the averages as fast as they change.

    The state is in ``out / "state" / f"{stage}.pt"``, and that of the checkpoint before in ``f"{stage}.before.pt"``:
    from them a loop of the same stage goes on, from the second where the first is damaged. Losses are logged in
    ``out / "losses.jsonl"``. ``averaged`` holds the modules with exponentially averaged weights.
    """

    def __init__(
        self,
        stage: str,
        modules: dict[str, nn.Module],
        run: Run,
        *,
        peak: float,
        optimizer: str = "adamw",
        given: bool = False,
    ) -> None:
        self.stage, self.modules, self.peak = stage, modules, peak
        self.config: Settings = run.config
        self.budget = self.config.budget(stage)
        self.stop, self.report, self.autocast = run.stop, run.report, run.autocast
        self.step = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.judged: dict[str, float] = {}
        """Its last figures on held-out pictures."""
        self.stretch = (0, 0.0)
        """Step and seconds at which the present stretch began."""
        self.head_start = WINDOW * self.config.warmup_steps if given else 0
        self._started: float | None = None
        self._cpu_started = 0.0
        self.averaged: dict[str, Any] = {name: copy.deepcopy(module).eval() for name, module in modules.items()}
        for module in self.averaged.values():
            module.requires_grad_(False)
        self.optimizer = Optimizer(modules, optimizer)
        self.path = self.config.out / "state" / f"{stage}.pt"
        self.log_path = self.config.out / "losses.jsonl"
        self._restore(run.device)
        self._forget_later_losses()

    @property
    def progress(self) -> float:
        """Part of the stage's budget that is spent."""
        return self.budget.progress(step=self.step, seconds=self._elapsed())

    @property
    def figures(self) -> dict[str, Any]:
        """Steps, minutes and parameters of the schedule, for the model card."""
        return {"steps": self.step, "minutes": self.seconds / 60, "learning_rate": self.peak, **self.judged}

    def start_clock(self) -> None:
        """Count the time from now on (for work of the stage before its first step)."""
        if self._started is None:
            self._started = time.monotonic()
            self._cpu_started = time.process_time()

    def run(
        self, loss_of: Callable[[int], Tensor], *, judge: Callable[[], dict[str, float]] | None = None, every: int = 500
    ) -> None:
        """Take steps down ``loss_of(step)`` until the budget is spent or the run is stopped.

        ``judge`` gives figures of the averaged weights on held-out pictures, logged ``every`` so many steps and at the
        end; it changes nothing.
        """
        self.start_clock()
        for module in self.modules.values():
            module.train()
        parameters = self._parameters()
        losses: list[Tensor] = []
        saved = told = time.monotonic()
        while self.progress < 1 and not self.stop:
            rate = self.peak * self._schedule()
            losses.append(self._take_step(loss_of, parameters, rate))
            due = judge is not None and (self.step % every == 0 or self.progress >= 1)
            if due or self.step % self.config.log_every == 0:
                value = self._log(losses, rate, judge if due else None)
                losses = []
                if time.monotonic() - told > _REPORT_SECONDS:
                    told = time.monotonic()
                    self.report(f"{self.stage}: step {self.step}, {self.progress:.0%}, loss {value:.4f}")
            if time.monotonic() - saved > self.config.checkpoint_seconds:
                saved = time.monotonic()
                self._save()
        if losses:
            self._log(losses, rate, judge)
        self._save()
        self._started = None
        for module in self.modules.values():
            module.eval()
        self.report(f"{self.stage}: {self.step} steps in {self.seconds / 60:.1f} minutes")

    def _take_step(self, loss_of: Callable[[int], Tensor], parameters: list[Tensor], rate: float) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            with self.autocast():
                loss = loss_of(self.step)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step(rate)
        self.step += 1
        self._average(parameters)
        return loss.detach()

    def _parameters(self) -> list[Tensor]:
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def _average(self, parameters: list[Tensor]) -> None:
        # Averaging over fewer steps at first: otherwise the average remembers its random start for long.
        age = self.step + self.head_start
        decay = min(self.config.ema_decay, (1 + age) / (1 + WINDOW + age))
        averaged = [parameter for module in self.averaged.values() for parameter in module.parameters()]
        get_ema_multi_avg_fn(decay)(averaged, parameters, None)

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    def _schedule(self) -> float:
        """Factor of the learning rate: up, level, and down to 1% at the end of the stretch."""
        step, seconds = self.stretch
        rise = (self.step - step + 1) / self.config.warmup_steps
        before = self.budget.progress(step=step, seconds=seconds)
        left = (1 - self.progress) / max(1 - before, 1e-9)
        return min(1.0, rise, 0.01 + 0.99 * left / DECAY)

    def _log(self, losses: list[Tensor], rate: float, judge: Callable[[], dict[str, float]] | None) -> float:
        value = torch.stack(losses).mean().item()
        if not math.isfinite(value):
            raise ModelError(
                f"{self.stage}: the loss is {value} at step {self.step}; resume from the last checkpoint "
                f"with a learning rate below {self.peak}"
            )
        line: dict[str, Any] = {
            "stage": self.stage,
            "step": self.step,
            "loss": value,
            "rate": rate,
            "seconds": self._elapsed(),
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._cpu_started,
        }
        if judge is not None:
            self.judged = judge()
            line |= self.judged
            figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.judged.items())
            self.report(f"{self.stage}: step {self.step}, {figures}")
        try:
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self.log_path}: the loss of step {self.step} cannot be logged ({error})") from error
        return value

    def _save(self) -> None:
        now = time.monotonic()
        if self._started is not None:
            self.seconds += now - self._started
            self.cpu_seconds += time.process_time() - self._cpu_started
            self._started, self._cpu_started = now, time.process_time()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "stretch": self.stretch,
            "spent": self.progress >= 1,
            "judged": self.judged,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averaged": {name: module.state_dict() for name, module in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
        }

        def write(partial: Path) -> None:
            torch.save(state, partial)
            if self.path.exists():
                before = self.path.with_suffix(BEFORE)
                before.unlink(missing_ok=True)
                try:
                    os.link(self.path, before)  # the last checkpoint stays in its place, too
                except OSError:  # a file system without links
                    self.path.replace(before)

        try:
            write_whole(self.path, write)
        except (OSError, RuntimeError) as error:  # torch raises the second where a disk is full
            raise InputError(
                f"{self.path}: the checkpoint of step {self.step} cannot be written ({_first_line(error)}); the one "
                "before is kept, from which --resume goes on"
            ) from error

    def _restore(self, device: torch.device) -> None:
        """Go on from the last checkpoint, or where it is damaged from the one before.

        Raises:
            InputError: none that is there can be read.
        """
        kept = [path for path in (self.path, self.path.with_suffix(BEFORE)) if path.exists()]
        for path in kept:
            try:
                self._load(path, device)
            except _DAMAGE as error:
                self.report(f"{path}: damaged ({_first_line(error)})")
            else:
                if path != kept[0]:
                    self.report(f"{self.stage}: goes on from the checkpoint before, step {self.step}")
                return
        if kept:
            raise InputError(
                f"{self.path}: no checkpoint of stage {self.stage} can be read; delete them ({len(kept)} in "
                f"{self.path.parent}) to begin the stage anew"
            )

    def _load(self, path: Path, device: torch.device) -> None:
        with zipfile.ZipFile(path) as archive:  # torch's loader does not check what it reads
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is not what was written")
        state = torch.load(path, map_location=device, weights_only=True)
        step, seconds, cpu_seconds = int(state["step"]), float(state["seconds"]), float(state["cpu_seconds"])
        stretch = (step, seconds) if state["spent"] else (int(state["stretch"][0]), float(state["stretch"][1]))
        for name in self.modules:
            self.modules[name].load_state_dict(state["modules"][name])
            self.averaged[name].load_state_dict(state["averaged"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.cpu_seconds, self.stretch = step, seconds, cpu_seconds, stretch
        self.judged = dict(state["judged"])

    def _forget_later_losses(self) -> None:
        """Drop what a killed run logged after its last checkpoint: those steps are taken again; and damaged lines."""
        if not self.log_path.exists():
            return
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise InputError(f"{self.log_path}: cannot be read as the log of losses ({error.strerror})") from error
        read = [line for line in map(_parse_loss, lines) if line is not None]
        if len(read) < len(lines):
            self.report(f"{self.log_path}: {len(lines) - len(read)} damaged lines are dropped")
        kept = [line for line in read if line["stage"] != self.stage or line["step"] <= self.step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.log_path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _parse_loss(line: str) -> dict[str, Any] | None:
    """A line of the log, None where it is damaged."""
    try:
        read = json.loads(line)
        return read if isinstance(read["stage"], str) and isinstance(read["step"], int) else None
    except (ValueError, LookupError, TypeError):
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def require_numbers(config: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers out of their bounds; those that are None are left to others.

    Raises:
        InputError: the first of them, with what is accepted.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name}: {value} given; {low} to {high} accepted")


def open_run(out: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Make a run folder that knows its identity, or check that a resumed run is the one in it.

    Raises:
        InputError: a folder in use, or a run of another identity.
    """
    path = out / "config.json"
    if resume and path.exists():
        try:
            then = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(then, dict):
                raise ValueError("no table of settings")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); accepted: what the run wrote, or a new run") from error
        for name, value in identity.items():
            if then.get(name) != value:
                raise InputError(f"{out}: {name} was {then.get(name)} there and is {value} now; resume needs the same")
        sweep(out)
        sweep(out / "state")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: in use; a new or empty folder is accepted, or resume with the run in it")
    text = json.dumps(identity, indent=1)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
