"""Faults on purpose, counted: what is survived, what is detected, what is not.

python -m benchmarks.faults --quick
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from PIL import Image

from emerdiff_probe.errors import InputError, ProbeError
from emerdiff_probe.images import load_image
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.models.probe_model import ProbeModel
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.runs.store import Known, Store
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import Segmentation, is_finished
from emerdiff_probe.segmentation.segment import segment

SETTINGS = {"clusters": 3, "feature_draws": 1, "steps": 10, "modulate_at": 101, "feature_timesteps": 101}
STAGES = (
    "emerdiff_probe.probe.ProbedImage.__init__",
    "emerdiff_probe.probe.ProbedImage.features",
    "emerdiff_probe.probe.ProbedImage.low_resolution_masks",
    "emerdiff_probe.probe.ProbedImage.difference_maps",
    "emerdiff_probe.reading.correspondence.denoise",
    "emerdiff_probe.segmentation.segment.assign_enlarged",
    "emerdiff_probe.segmentation.segment.likeness_linkage",
)
"""Functions that fail in turn while an image is segmented."""
DAMAGES = ("deleted", "emptied", "cut", "flipped", "replaced", "a folder")


def fuzz_images(count: int) -> Counter[str]:
    """Bytes of pictures changed by seeds 0 … count - 1: read, refused by an InputError, or any other error."""
    rng, found = np.random.default_rng(0), Counter[str]()
    picture = Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8))
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            draw = np.random.default_rng(seed)
            buffer = io.BytesIO()
            picture.save(buffer, kinds[seed % len(kinds)])
            content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            places = draw.integers(0, len(content), draw.integers(1, 6))
            content[places] = draw.integers(0, 256, len(places))
            path = Path(folder) / f"{seed}.{kinds[seed % len(kinds)].lower()}"
            end = draw.integers(1, len(content) + 1) if seed % 4 == 0 else len(content)
            path.write_bytes(content[:end].tobytes())
            try:
                load_image(path)
                found["survived"] += 1
            except InputError:
                found["detected"] += 1
            except Exception as error:
                found[f"raw {type(error).__name__}, seed {seed}"] += 1
    return found


def damage(path: Path, way: str) -> None:
    """Damage a file in one of `DAMAGES`."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way != "deleted":
        flipped = content.copy()
        flipped[len(flipped) // 2] ^= 1
        half = content[: len(content) // 2]
        path.write_bytes(bytes({"emptied": b"", "cut": half, "flipped": flipped, "replaced": b"{}"}[way]))


def damage_result(model: ProbeModel, result: Segmentation, place: Path) -> Counter[str]:
    """Every file of a result folder in every way: named when it is loaded, and not taken as finished."""
    found = Counter[str]()
    for name in sorted(path.name for path in result.save(place, maps=True).iterdir()):
        for way in DAMAGES:
            shutil.rmtree(place)
            damage(result.save(place, maps=True) / name, way)
            try:
                Segmentation.load(place)
                found[f"missed {way} {name}"] += 1
            except InputError as error:
                done = is_finished(place, model, result.image, result.config, maps=True)
                found["detected" if name in str(error) and not done else f"unnamed {way} {name}"] += 1
    return found


def damage_store(place: Path) -> Counter[str]:
    """Every file of a store of records in every way: never read as if nothing had happened."""
    found, cell = Counter[str](), ("cell",)
    known = Known("sample", "0" * 16, (1,))
    record = {"values": np.arange(100.0)}
    quiet: list[str] = []

    def open_store() -> Store:
        store = Store(place, {"model": "m"}, warn=quiet.append)
        store.require_cells({cell: {"method": "m"}})
        return store

    def fill() -> list[Path]:
        shutil.rmtree(place, ignore_errors=True)
        store = open_store()
        store.keep_sample(known)
        store.write(known, cell, record)
        return sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())

    for name in fill():
        for way in DAMAGES:
            fill()
            damage(place / name, way)
            quiet.clear()
            try:
                store = open_store()
                seen = store.known("sample") is None or bool(quiet) or store.state(known, cell) is not None
                same = seen or np.array_equal(store.read(known, cell)["values"], record["values"])
                found["detected" if seen else "survived" if same else f"missed {way} {name}"] += 1
            except InputError:
                found["detected"] += 1
            except Exception as error:
                found[f"raw {type(error).__name__} {way} {name}"] += 1
    return found


def fail_at_stages(model: ProbeModel, image: np.ndarray, result: Segmentation) -> Counter[str]:
    """Each stage raises, by an error and by an interrupt: no hook stays, and the next result is the same to the bit."""
    found = Counter[str]()
    for stage in STAGES:
        for error in (RuntimeError("injected"), KeyboardInterrupt()):
            try:
                with patch(stage, side_effect=error):
                    segment(model, image, result.config)
                found[f"unreached {stage}"] += 1
            except (RuntimeError, KeyboardInterrupt):
                hooks = sum(
                    len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.denoiser.modules()
                )
                same = np.array_equal(segment(model, image, result.config).labels, result.labels)
                found["survived" if same and not hooks else f"broken by {stage}"] += 1
    return found


def kill_and_resume(model: ProbeModel, config: EmerDiffConfig, kills: int, place: Path) -> Counter[str]:
    """`segment` killed in its second image and run again: the labels of a run in one piece, and nothing else there."""
    found, names = Counter[str](), ("0", "1")
    for number, name in enumerate(names):
        Image.fromarray(draw_scene(number).image).save(place / f"{name}.png")
    (place / "settings.json").write_text(json.dumps(config.to_dict()))
    images = [str(place / f"{name}.png") for name in names]
    whole = {name: segment(model, place / f"{name}.png", config).labels for name in names}
    for kill in range(kills):
        out = place / f"killed{kill}"
        call = [sys.executable, "-m", "emerdiff_probe", "segment", *images, "--device", "cpu", "--out", str(out)]
        call += ["--config", str(place / "settings.json")]
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (out / names[0]).exists():
                time.sleep(0.01)
            time.sleep(kill / max(kills, 1))
            process.kill()
        subprocess.run(call, check=True, capture_output=True)
        same = all(np.array_equal(Segmentation.load(out / name).labels, whole[name]) for name in names)
        clean = sorted(path.name for path in out.iterdir()) == list(names)
        found["survived" if same and clean else f"broken by kill {kill}"] += 1
    return found


def _save_often(result: Segmentation, place: Path) -> None:
    for _ in range(5):
        result.save(place)


def write_at_once(result: Segmentation, place: Path) -> Counter[str]:
    """Two processes that write one result folder again and again: at the end it is whole, and nothing else is there."""
    spawn = get_context("spawn")
    writers = [spawn.Process(target=_save_often, args=(result, place / "shared")) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    whole = np.array_equal(Segmentation.load(place / "shared").labels, result.labels)
    alone = [path.name for path in place.iterdir()] == ["shared"]
    fine = whole and alone and all(writer.exitcode == 0 for writer in writers)
    return Counter({"survived" if fine else "broken": 1})


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[bool]:
    """A file system of this size where it may be mounted; whether it is there."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=False, capture_output=True)


def fill_disk(result: Segmentation, place: Path) -> Counter[str]:
    """Saving onto a disk that is full: an error that says so, and the older result stays whole."""
    with small_disk(place / "disk", 4096) as mounted:
        if not mounted:
            return Counter({"not tried, as no disk may be mounted here": 1})
        folder = result.save(place / "disk" / "photo")
        left = shutil.disk_usage(folder).free
        (place / "disk" / "ballast").write_bytes(b"0" * max(0, left - 20_000))
        try:
            result.save(folder)
            return Counter({"missed": 1})
        except (OSError, ProbeError):
            whole = np.array_equal(Segmentation.load(folder).labels, result.labels)
            return Counter({"survived" if whole and len(list((place / "disk").iterdir())) == 2 else "broken": 1})


def try_all(quick: bool) -> list[dict[str, Any]]:
    """Every kind of fault; a row each with how many tries were survived, detected, and neither."""
    model = load_model("pocket", device="cpu")
    image = draw_scene(0).image
    result = segment(model, image, EmerDiffConfig.for_model(model, **SETTINGS))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:

        def fresh(name: str) -> Path:
            (Path(scratch) / name).mkdir()
            return Path(scratch) / name

        kinds: dict[str, Callable[[], Counter[str]]] = {
            "pictures with changed bytes": lambda: fuzz_images(600 if quick else 10_000),
            "files of a result folder damaged": lambda: damage_result(model, result, fresh("result") / "photo"),
            "files of a store damaged": lambda: damage_store(fresh("store") / "run"),
            "errors and interrupts at stages": lambda: fail_at_stages(model, image, result),
            "two writers of one result": lambda: write_at_once(result, fresh("writers")),
            "a full disk": lambda: fill_disk(result, fresh("full")),
            "segment killed and resumed": lambda: kill_and_resume(
                model, result.config, 1 if quick else 20, fresh("kills")
            ),
        }
        for kind, attempt in kinds.items():
            began = time.perf_counter()
            counts = attempt()
            fine = counts["survived"], counts["detected"]
            others = {name: number for name, number in counts.items() if name not in {"survived", "detected"}}
            rows.append(
                {
                    "fault": kind,
                    "survived": fine[0],
                    "detected": fine[1],
                    "neither": others,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            print(f"# {kind}: {dict(counts)}", file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and, as the last line, one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer tries, in two minutes")
    given = parser.parse_args(arguments)
    rows = try_all(given.quick)
    print(pd.DataFrame(rows).to_string(index=False))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
