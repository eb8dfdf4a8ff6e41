"""Where the work of a study is done: in this process, or by Ray on as many machines as it has."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from emerdiff_probe.errors import InputError
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import Scene
from emerdiff_probe.studies.study import Cell, Measured, Study, Value

Units = tuple[tuple[Mapping[str, Value], Mapping[Cell, tuple[int, ...]]], ...]
"""Values of the axes `apart` for units of work, each with its cells: places on the grid by the axes `together`."""
Found = tuple[int, tuple[int, ...], Measured]
"""Index of the image, place on the grid, what was measured there."""


@dataclass(frozen=True)
class Task:
    """What is still to be measured on one image.

    Attributes:
        image: its index.
        scene: the image with its ground truth.
        units: of work, with the cells that are wanted of each.
    """

    image: int
    scene: Scene
    units: Units


def measured(model: ProbeModel, study: Study, tasks: Iterable[Task], workers: int | None) -> Iterator[Found]:
    """Every cell of every task, here or by Ray's workers, as soon as it is known."""
    return _here(model, study, tasks) if workers is None else _with_ray(model, study, tasks, workers)


def _here(model: ProbeModel, study: Study, tasks: Iterable[Task]) -> Iterator[Found]:
    """Every image inverted once, then unit by unit."""
    for task in tasks:
        probed = study.probe(model, task.scene)
        for unit, cells in task.units:
            values = study.measure(probed, task.scene, unit)
            for chosen, place in cells.items():
                yield task.image, place, values[chosen]


def _with_ray(model: ProbeModel, study: Study, tasks: Iterable[Task], workers: int) -> Iterator[Found]:
    """Image by image in the order in which Ray's workers finish them.

    Workers get equal shares of the processors (on CUDA: of the GPUs) of the cluster that Ray is connected to, else of
    the one that RAY_ADDRESS names, else of this machine. Every worker holds its own copy of the model, and at most one
    image more than there are workers is drawn ahead of them.

    Raises:
        InputError: `workers` below 1 or more than the cluster has room for, or Ray is not installed.
    """
    if workers < 1:
        raise InputError(f"{workers} workers; accepted: 1 or more")
    if importlib.util.find_spec("ray") is None:
        raise InputError("workers need Ray; install it with: pip install 'emerdiff_probe[ray]'")
    import ray
    from ray.util import ActorPool

    connected = ray.is_initialized()
    if not connected:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share: dict[str, Any] = equal_share(nodes, workers, cuda=model.device.type == "cuda")
        held = ray.put((model, study))
        worker = ray.remote(_Worker).options(**share)
        pool = ActorPool([worker.remote(held) for _ in range(workers)])
        waiting = 0
        for task in tasks:
            pool.submit(_ask, task)
            waiting += 1
            if waiting > workers:
                yield from pool.get_next_unordered()
                waiting -= 1
        while pool.has_next():
            yield from pool.get_next_unordered()
    finally:
        if not connected:
            ray.shutdown()


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


class _Worker:
    """A model and a study on a worker of Ray's."""

    def __init__(self, held: tuple[ProbeModel, Study]) -> None:
        self.model, self.study = held

    def measure(self, task: Task) -> list[Found]:
        return list(_here(self.model, self.study, [task]))


def _ask(worker: Any, task: Task) -> Any:
    return worker.measure.remote(task)
