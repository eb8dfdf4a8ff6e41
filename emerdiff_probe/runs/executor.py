"""Where the work of a run is done: in this process, or by Ray on as many machines as it has."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from threadpoolctl import threadpool_limits

from emerdiff_probe.data.sample import Sample
from emerdiff_probe.errors import InputError, ProbeError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.runs.job import Cell, Job, Record

ATTEMPTS = 2
"""Times that a sample is tried whose worker dies, the second time by a new one, and that Ray is started here."""
CONNECTING = 10.0
"""Seconds in which the machine that RAY_ADDRESS names must answer; Ray itself would try for minutes."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is still to be measured on one sample.

    Attributes:
        place: number of the sample.
        sample: with its pixels, so that other machines need none of its files.
        cells: those that are wanted.
    """

    place: int
    sample: Sample
    cells: tuple[Cell, ...]


class Measured(NamedTuple):
    """A record of the sample of this number."""

    place: int
    cell: Cell
    record: Record


class Failed(NamedTuple):
    """Why no more records of the sample of this number come."""

    place: int
    reason: str


def execute(model: ProbeModel, job: Job, tasks: Iterable[Task], workers: int | None) -> Generator[Measured | Failed]:
    """Every record of every task as soon as it is known, here or by Ray's workers.

    Raises:
        InputError: as `connect` and `equal_share`.
    """
    return _here(model, job, tasks) if workers is None else _with_ray(model, job, tasks, workers)


def _here(model: ProbeModel, job: Job, tasks: Iterable[Task]) -> Generator[Measured | Failed]:
    for task in tasks:
        wanted = set(task.cells)
        try:
            for cell, record in job.measure(model, task.sample, task.cells):
                if cell in wanted:
                    yield Measured(task.place, cell, record)
        except ProbeError as error:
            yield Failed(task.place, str(error))


def _with_ray(model: ProbeModel, job: Job, tasks: Iterable[Task], workers: int) -> Generator[Measured | Failed]:
    """Sample by sample in the order in which Ray's workers finish them.

    Every worker holds its own copy of the model; a sample is read when a worker is free for it. A worker that dies
    costs its own sample's work: another takes its place and tries the sample once more.
    """
    with connect(workers):
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share: dict[str, Any] = equal_share(nodes, workers, cuda=model.device.type == "cuda")
        held = ray.put((model, job, torch.get_num_threads()))

        def hire() -> Any:
            return ray.remote(_Worker).options(**share).remote(held)

        idle, tried, running = [hire() for _ in range(workers)], dict[int, int](), dict[Any, tuple[Any, Task]]()
        try:
            ray.get([worker.ready.remote() for worker in idle])
        except RayActorError as error:
            raise ProbeError(f"workers cannot be started: {error}") from error
        waiting = iter(tasks)
        again: list[Task] = []
        while True:
            while idle and (task := again.pop() if again else next(waiting, None)) is not None:
                worker = idle.pop()
                running[worker.measure.remote(task)] = worker, task
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            worker, task = running.pop(done)
            try:
                yield from ray.get(done)
            except (RayActorError, OutOfMemoryError, WorkerCrashedError):
                worker = hire()
                tried[task.place] = tried.get(task.place, 1) + 1
                if tried[task.place] <= ATTEMPTS:
                    again.append(task)
                else:
                    yield Failed(task.place, f"its worker died {ATTEMPTS} times, for want of memory perhaps")
            except RayTaskError as error:
                raise error.as_instanceof_cause() from None
            idle.append(worker)


class _Worker:
    """A model and a job on a worker of Ray's."""

    def __init__(self, held: tuple[ProbeModel, Job, int]) -> None:
        self.model, self.job, threads = held
        # Ray gives a worker as many threads as processors; sums of other numbers of threads may differ in last bits
        torch.set_num_threads(threads)
        threadpool_limits(threads)

    def ready(self) -> None:
        """Answer, once the model is there."""

    def measure(self, task: Task) -> list[Measured | Failed]:
        return list(_here(self.model, self.job, [task]))


@contextmanager
def connect(workers: int) -> Iterator[None]:
    """Ray as it is connected already, else to the cluster that RAY_ADDRESS names, else started on this machine.

    Raises:
        InputError: `workers` below 1, Ray is not installed, or the cluster cannot be reached.
    """
    if workers < 1:
        raise InputError(f"{workers} workers; accepted: 1 or more")
    if importlib.util.find_spec("ray") is None:
        raise InputError("workers need Ray; install it with: pip install 'emerdiff_probe[ray]'")
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    require_reachable(address)
    for attempt in range(ATTEMPTS):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
            break
        except Exception as error:  # of bare Exception too, where a busy machine takes it half a minute to start
            ray.shutdown()
            if address or attempt + 1 == ATTEMPTS:
                place = f"RAY_ADDRESS {address!r}: no Ray cluster answers" if address else "Ray cannot be started here"
                raise InputError(f"{place} ({error}); {_ACCEPTED}") from error
    try:
        yield
    finally:
        ray.shutdown()


_ACCEPTED = "accepted: HOST:PORT of a cluster that runs, or no RAY_ADDRESS for this machine"


def require_reachable(address: str, connection: Callable[..., socket.socket] = socket.create_connection) -> None:
    """Refuse the address of a Ray cluster whose machine does not answer; none, "auto" and "local" are left to Ray.

    Raises:
        InputError: no machine answers there within a few seconds.
    """
    if not address or address in {"auto", "local"}:
        return
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        with connection((parts.hostname or "", parts.port or 10001), timeout=CONNECTING):
            pass
    except (OSError, ValueError) as error:
        raise InputError(f"RAY_ADDRESS {address!r} cannot be reached ({error}); {_ACCEPTED}") from error


def equal_share(nodes: Sequence[Mapping[str, float]], workers: int, *, cuda: bool) -> dict[str, float]:
    """The largest share of a cluster with which every worker has its place; Ray would wait for ever for more.

    Args:
        nodes: numbers of "CPU" and "GPU" on each machine; a worker is on one.
        workers: how many.
        cuda: whether they need GPUs: whole ones, or a part of one.

    Returns:
        `num_cpus` and, on CUDA, `num_gpus`, as Ray's options.

    Raises:
        InputError: more workers than there is room for.
    """
    cpus, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))

    def room(cpu: int, gpu: Fraction) -> int:
        return sum(min(c // cpu, g // gpu) if cuda else c // cpu for c, g in zip(cpus, gpus, strict=True))

    parts = [Fraction(1, sharing) for sharing in range(1, workers + 1)]
    for gpu in [*map(Fraction, range(max(gpus), 1, -1)), *parts] if cuda else parts[:1]:
        for cpu in range(max(cpus), 0, -1):
            if room(cpu, gpu) >= workers:
                # Ray counts GPUs in ten-thousandths.
                return {"num_cpus": cpu} | ({"num_gpus": math.floor(gpu * 10_000) / 10_000} if cuda else {})
    each = "a processor and a part of a GPU" if cuda else "a processor"
    raise InputError(f"{workers} workers; accepted: {each} for each, on this cluster up to {room(1, parts[-1])}")
