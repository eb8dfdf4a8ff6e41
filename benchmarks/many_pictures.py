"""A folder of photographs, start to end: seconds a picture, what more workers bring, and whether memory stays.

    python -m benchmarks.many_pictures --images PHOTOS --count 1000 --block 250
    python -m benchmarks.many_pictures --images PHOTOS --ways "2 workers,1 worker,2 nodes" --compared 1

The ways are one process without Ray ("here"), Ray's workers on this machine ("1 worker", "2 workers"), and two workers
on a cluster of two nodes ("2 nodes"; both on this machine, each with one processor). Every process has one thread.
Pictures are taken a block at a time, each block in every way in turn, so that a machine whose speed moves is as slow
for one as for the other (`--compared`: only so many blocks, the others in the first way alone); a block and way is a
fresh process that reads, segments in the fast mode and writes what `segment` writes. Its clock runs from the first
result to the last: loading and the start of Ray are told apart. Finished blocks are kept: a run that was stopped goes
on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import psutil
import typer

from benchmarks.store import folder_of
from emerdiff_probe.batch import list_pictures, segment_pictures
from emerdiff_probe.errors import InputError
from emerdiff_probe.files import seal, unseal, write_whole
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig

WAYS: dict[str, int | None] = {"here": None, "1 worker": 1, "2 workers": 2, "2 nodes": 2}
"""Workers of every way."""
EARLY = 5
"""Results after which memory is looked at for the first time: by then all that stays is there."""


class Block(NamedTuple):
    """Some pictures of a folder, in one way."""

    images: tuple[str, ...]
    way: str
    model: str
    clusters: int
    scratch: str


def measure(block: Block) -> dict[str, Any]:
    """Seconds, bytes and memory of one block in one way; in a process that has done nothing before."""
    began = time.perf_counter()
    model = load_model(block.model, device="cpu")
    pictures = list_pictures(block.images)
    config = EmerDiffConfig.fast(model, clusters=block.clusters)
    out = Path(block.scratch)
    shutil.rmtree(out, ignore_errors=True)
    ends: list[float] = []
    resident: list[int] = []

    def tell(_: str) -> None:
        ends.append(time.perf_counter())
        resident.append(psutil.Process().memory_info().rss)

    with _cluster(2 if block.way == "2 nodes" else 0), _watched() as workers:
        found = segment_pictures(model, pictures, config, out, workers=WAYS[block.way], report=tell)
    if len(ends) < 2:
        raise InputError(f"{len(ends)} pictures in a block; accepted: 2 or more that can be read")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return {
        "way": block.way,
        "pictures": len(ends),
        "skipped": len(found.skipped),
        "start": round(ends[0] - began, 2),
        "seconds": round(ends[-1] - ends[0], 2),
        "early_mib": resident[min(EARLY, len(resident)) - 1] // 2**20,
        "late_mib": resident[-1] // 2**20,
        "workers_mib": max(workers, default=0) // 2**20,
        "written_mib": round(written / 2**20, 1),
    }


@contextmanager
def _cluster(nodes: int) -> Iterator[None]:
    """A cluster of so many nodes of one processor each, to which Ray is connected; none when 0."""
    if not nodes:
        yield
        return
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _watched() -> Iterator[list[int]]:
    """The most bytes that one of Ray's workers below this process had resident, looked at every second."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(1):
            for child in psutil.Process().children(recursive=True):
                try:
                    if child.name().startswith("ray::"):
                        most[0] = max(most[0], child.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def summarise(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a way: seconds a picture, efficiency, memory.

    Efficiency is how many times as fast a way is as one worker, a worker, on the blocks that both took; the time is
    counted from every block's first result, so that the picture before it is not.
    """
    table = pd.DataFrame(records)
    alone = table[table["way"] == "1 worker"]
    rows = []
    for way, part in table.groupby("way", sort=False):
        both, one = (each[each["block"].isin(other["block"])] for each, other in ((part, alone), (alone, part)))
        rows.append(
            {
                "way": way,
                "pictures": int(part["pictures"].sum()),
                "skipped": int(part["skipped"].sum()),
                "seconds": _seconds(part),
                "efficiency": _seconds(one) / _seconds(both) / (WAYS[str(way)] or 1) if len(both) else float("nan"),
                "start": part["start"].median(),
                "growth_mib": int((part["late_mib"] - part["early_mib"]).max()),
                "peak_mib": int(part["late_mib"].max()),
                "worker_mib": int(part["workers_mib"].max()),
                "mib_a_picture": part["written_mib"].sum() / part["pictures"].sum(),
            }
        )
    return pd.DataFrame(rows).round({"seconds": 3, "efficiency": 3, "start": 1, "mib_a_picture": 2})


def _seconds(blocks: pd.DataFrame) -> float:
    return float(blocks["seconds"].sum() / (blocks["pictures"] - 1).sum())


def kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record in a file; made and written first where there is none."""
    if not path.exists():
        record = compute()
        write_whole(path, lambda partial: partial.write_text(seal(record)))
    return unseal(path.read_text())


def main(
    images: Annotated[str, typer.Option(help="Folder of pictures.")],
    count: Annotated[int, typer.Option(help="Pictures, at most.")] = 1000,
    block: Annotated[int, typer.Option(help="Pictures a block, 2 or more.")] = 250,
    ways: Annotated[str, typer.Option(help=f"With commas between: {', '.join(WAYS)}.")] = ",".join(WAYS),
    compared: Annotated[int | None, typer.Option(help="Blocks taken in every way; the others in the first.")] = None,
    model: Annotated[str, typer.Option(help="'pocket', a hub id, or a local folder.")] = "pocket",
    clusters: Annotated[int, typer.Option(help="Number of masks.")] = 12,
    store: Annotated[Path, typer.Option(help="Where finished blocks are kept.")] = Path("out/many_pictures"),
) -> None:
    """Print the table and, as the last line, one JSON object."""
    asked = ways.split(",")
    if unknown := sorted(set(asked) - set(WAYS)):
        raise InputError(f"ways {unknown}; accepted: {', '.join(WAYS)}")
    if block < 2:
        raise InputError(f"blocks of {block}; accepted: 2 or more")
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is started from here
    paths = [str(pair.image) for pair in list_pictures([images]).pairs][:count]
    if len(paths) < 2:
        raise InputError(f"{images}: {len(paths)} pictures; accepted: 2 or more")
    folder = folder_of(store, model, clusters, block, paths)
    cuts = [tuple(paths[start : start + block]) for start in range(0, len(paths), block)]
    if len(cuts) > 1 and len(cuts[-1]) < 2:
        cuts[-2:] = [cuts[-2] + cuts[-1]]
    records = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        for number, part in enumerate(cuts):
            for way in asked if compared is None or number < compared else asked[:1]:
                asking = Block(part, way, model, clusters, str(folder / "scratch"))
                path = folder / f"{number:04}-{way.replace(' ', '-')}.json"
                found = kept(path, lambda asking=asking: fresh.submit(measure, asking).result())  # type: ignore[misc]
                records.append({"block": number} | found)
                print(f"# block {number + 1} of {len(cuts)}: {records[-1]}", flush=True)
    table = summarise(records)
    print(f"\nfast mode, {model}, K = {clusters}, one thread a process, {len(paths)} pictures of {images}\n")
    print(f"{table.to_string(index=False)}\n\n{folder}")
    print(json.dumps({"rows": json.loads(table.to_json(orient="records"))}))


if __name__ == "__main__":
    typer.run(main)
