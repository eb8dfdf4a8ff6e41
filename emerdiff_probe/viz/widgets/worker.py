"""Work off the kernel's main thread, of which only the newest request counts."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from IPython.core.getipython import get_ipython


@dataclass(frozen=True)
class Progress:
    """How a worker is doing: at work, or done after so many seconds, or failed by an error."""

    busy: bool
    seconds: float = 0.0
    error: Exception | None = None


class Worker:
    """One request runs, the newest one waits, those between are dropped.

    What runs is shown even when it was overtaken meanwhile, so that the page follows a slider that is being dragged.
    Answers are shown on the event loop that runs where the worker is made (a notebook kernel's), so that widgets are
    changed by one thread alone; without a loop they are shown on the working thread.

    Args:
        report: called with every change of progress. An error in the work or in showing its answer is reported,
            unless a newer request has overtaken it.
        background: work of minutes, that a notebook's next cell does not wait for. It enters MODELS_IN_USE for a few
            seconds at a time, and stands still while a cell runs.
    """

    def __init__(self, report: Callable[[Progress], None], *, background: bool = False) -> None:
        self._report = report
        self._condition = threading.Condition()
        self._newest: _Request | None = None
        self._waiting: _Request | None = None
        self._running = False
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        if not background:
            _WORKERS.add(self)
        _keep_apart_from_cells()

    def ask(self, work: Callable[[], Any], show: Callable[[Any], None]) -> None:
        """Run `work` on another thread, then `show` its answer; a request that still waits is dropped for this one."""
        with self._condition:
            self._newest = self._waiting = _Request(work, show)
            if self._running:
                return
            self._running = True
        self._report(Progress(busy=True))
        threading.Thread(target=self._run, name="explorer", daemon=True).start()

    def answer(self, work: Callable[[], Any], show: Callable[[Any], None]) -> None:
        """Run `work` on this thread and show its answer before anything else is asked."""
        began = time.perf_counter()
        self._newest = request = _Request(work, show)
        self._report(Progress(busy=True))
        self._finish(request, *_worked(request), began)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits; False when that takes longer than `timeout` seconds."""
        with _CELL.released(), self._condition:
            return self._condition.wait_for(lambda: not self._running, timeout)

    def _run(self) -> None:
        began = time.perf_counter()
        while (request := self._next()) is not None:
            self.hand_over(self._finish, request, *_worked(request), began)

    def _next(self) -> _Request | None:
        with self._condition:
            request, self._waiting = self._waiting, None
            if request is None:
                self._running = False
                self._condition.notify_all()
            return request

    def _finish(self, request: _Request, answer: Any, error: Exception | None, began: float) -> None:
        if error is None:
            try:
                request.show(answer)
            except Exception as failure:
                error = failure
        if request is self._newest:
            self._report(Progress(busy=False, seconds=time.perf_counter() - began, error=error))

    def hand_over(self, call: Callable[..., None], *args: Any) -> None:
        """Call on the loop that widgets are changed by."""
        if self._loop is None:
            call(*args)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def later(self, seconds: float, call: Callable[[], None]) -> bool:
        """Call on the loop that widgets are changed by, after so many seconds; False where there is no loop."""
        if self._loop is None or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, call)
        return True


@dataclass(frozen=True, eq=False)
class _Request:
    work: Callable[[], Any]
    show: Callable[[Any], None]


def _worked(request: _Request) -> tuple[Any, Exception | None]:
    try:
        return request.work(), None
    except Exception as error:
        return None, error


MODELS_IN_USE = threading.RLock()
"""Held while a model runs, and then alone: hooks belong to a model, and two runs at once would edit one another."""
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


class _Cell:
    """A notebook's cell has the models to itself from its beginning to its end."""

    def __init__(self) -> None:
        self.running = False

    def begin(self, *_: Any) -> None:
        """Let work under way end, then keep what comes waiting."""
        for worker in list(_WORKERS):
            worker.wait()
        if not self.running:
            MODELS_IN_USE.acquire()
            self.running = True

    def end(self, *_: Any) -> None:
        """Let work go on."""
        if self.running:
            self.running = False
            MODELS_IN_USE.release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let work go on for as long as a cell waits for it."""
        held = self.running and threading.current_thread() is threading.main_thread()
        if held:
            MODELS_IN_USE.release()
        try:
            yield
        finally:
            if held:
                MODELS_IN_USE.acquire()


_CELL = _Cell()


def _keep_apart_from_cells() -> None:
    shell = get_ipython()
    if shell is not None and _CELL.begin not in shell.events.callbacks["pre_run_cell"]:
        shell.events.register("pre_run_cell", _CELL.begin)
        shell.events.register("post_run_cell", _CELL.end)
