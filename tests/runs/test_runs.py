"""The engine: resumed runs equal whole ones, what fails is told, and nothing damaged is taken for a record."""

import shutil
import time
from dataclasses import dataclass

import pytest
import tiny
from jobs import CELLS, Means, Pictures

from emerdiff_probe.errors import InputError
from emerdiff_probe.runs.executor import equal_share, require_reachable
from emerdiff_probe.runs.run import run, stored
from emerdiff_probe.runs.store import FORMAT, Store


def bits(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def warned():
    return []


@pytest.fixture
def ran(model, tmp_path, warned):
    """Runs a job over pictures into a store of the test's own."""

    def go(job=None, data=None, store="store", **settings):
        return run(
            model, job or Means(), data or Pictures((1, 2, 3)), store=tmp_path / store, warn=warned.append, **settings
        )

    return go


def test_records_are_what_was_measured_and_are_measured_once(ran, tmp_path):
    job = Means()
    first = ran(job)
    assert first.names == ("p1", "p2", "p3")
    assert (first.computed, first.reused, first.skipped) == (9, 0, {})
    assert job.calls[0] == ("prepare", tuple(CELLS))
    for place, sample in enumerate(Pictures((1, 2, 3))):
        assert float(first.record(f"p{place + 1}", ("mean", 2))["mean"]) == 2 * sample.image.mean()
        assert first.record(sample.name, ("shape", None))["shape"].tolist() == [64, 64, 3]
    job.calls.clear()
    again = ran(job)
    assert (again.computed, again.reused, job.calls) == (0, 9, [])
    held = stored(tmp_path / "store", CELLS, print)
    assert (held.names, held.store.description["title"]) == (first.names, "Means")


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(ran, tmp_path, monkeypatch):
    ran(store="whole")
    genuine, written = Store.write, []

    def interrupted(self, *record):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(record)
        genuine(self, *record)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ran(store="halves")
    resumed = ran(store="halves")
    assert (resumed.computed, resumed.reused) == (5, 4)
    assert bits(tmp_path / "halves") == bits(tmp_path / "whole")


def test_samples_and_cells_may_come_and_go(ran, tmp_path):
    some = {cell: CELLS[cell] for cell in list(CELLS)[:1]}
    ran(Means(some), Pictures((2,)))
    whole = ran()
    assert (whole.computed, whole.reused) == (8, 1)
    assert ran(data=Pictures((3,))).names == ("p3",)


def test_what_cannot_be_read_or_measured_is_told_skipped_and_tried_again(ran, warned):
    dark = Means(dark=min(sample.image.mean() for sample in Pictures((1, 2, 3))) + 1e-9)
    first = ran(dark, Pictures((1, 2, 3, 4), bad=(4,)))
    assert len(first.samples) == 2
    assert sorted(first.skipped.values()) == ["p4: truncated", "too dark"]
    assert sum("is skipped" in message for message in warned) == 2
    mended = ran(data=Pictures((1, 2, 3, 4)))
    assert (len(mended.samples), mended.skipped, mended.computed) == (4, {}, 4)


def test_no_sample_at_all_is_an_error(ran):
    with pytest.raises(InputError, match="none of its samples can be used; the first: p1: p1: truncated"):
        ran(data=Pictures((1,), bad=(1,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job": Means(factor=2.0)}, "factor was 1.0 there and is 2.0 now"),
        ({"job": Means({("shape", None): {"digits": 4}})}, "digits was 3 there and is 4 now"),
        ({"data": Pictures((1, 2), shade=1)}, "sample p1 had other pixels"),
        ({"resume": False}, "without resume: a new folder"),
    ],
)
def test_a_store_of_something_else_is_refused_and_kept(ran, tmp_path, change, message):
    ran()
    before = bits(tmp_path / "store")
    with pytest.raises(InputError, match=message):
        ran(**change)
    assert bits(tmp_path / "store") == before


def test_a_store_of_another_model_is_refused(ran, tmp_path):
    from emerdiff_probe.models.loading import load_model

    ran()
    other = load_model(tiny.pocket(seed=1), device="cpu")
    with pytest.raises(InputError, match="fingerprint was"):
        run(other, Means(), Pictures((1,)), store=tmp_path / "store")


@pytest.mark.parametrize("address", ["s3://bucket/store", "memory://x", "simplecache::s3://bucket", "gs:/bucket"])
def test_addresses_are_refused_and_leave_no_folder(ran, tmp_path, address, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    for given in (address, Path(address)):
        with pytest.raises(InputError, match="accepted: a folder on this machine"):
            Store(given, {})
    assert not list(tmp_path.iterdir())


def test_a_refused_command_leaves_no_folder_and_does_not_block_the_next(ran, tmp_path):
    with pytest.raises(InputError, match="none of its samples"):
        ran(Means(factor=7.0), Pictures((1,), bad=(1,)))
    assert not (tmp_path / "store").exists()
    assert ran().computed == 9


@pytest.mark.parametrize("file", ["thesis.tex", "zarr.json", "evaluation.json"])
def test_folders_of_something_else_and_of_earlier_formats_are_left_alone(ran, tmp_path, file):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / file).write_text("years of work")
    with pytest.raises(InputError, match="holds no run" if file == "thesis.tex" else "a store of format 1"):
        ran()
    assert [path.name for path in (tmp_path / "store").iterdir()] == [file]


def test_another_format_is_refused_by_name(ran, tmp_path):
    from emerdiff_probe.files import seal, unseal

    ran()
    about = tmp_path / "store" / "run.json"
    about.write_text(seal(unseal(about.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(InputError, match=rf"run.json: format {FORMAT + 1}; accepted: {FORMAT}"):
        ran()


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()


KINDS = {
    "run": "run.json",
    "cell": "cells/shape*.json",
    "sample": "samples/p2-*/sample.json",
    "record": "samples/p2-*/mean, 2*.npz",
}


@pytest.mark.parametrize("damage", [delete, empty, truncate, flip, make_folder])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_named_and_mended_and_never_read(ran, tmp_path, warned, kind, damage):
    whole = ran()
    before = bits(tmp_path / "store")
    (path,) = (tmp_path / "store").glob(KINDS[kind])
    damage(path)
    if kind == "record":
        with pytest.raises(InputError, match=r"mean.*npz"):
            whole.record("p2", ("mean", 2))
        assert list(stored(tmp_path / "store", CELLS, print).skipped) == ["p2"]
    elif kind == "run" or (kind == "sample" and damage is not delete):
        with pytest.raises(InputError, match=path.name):
            stored(tmp_path / "store", CELLS, print)
    mended = ran()
    assert mended.computed == (kind == "record")
    if damage is not delete or kind == "run":
        assert any(path.name in message for message in warned)
    assert bits(tmp_path / "store") == before


def test_a_record_in_the_place_of_another_is_not_taken_for_it(ran, tmp_path, warned):
    ran()
    ran(Means(factor=2.0), store="other")
    before = bits(tmp_path / "store")
    one, two = ((tmp_path / "store" / f"samples/{next(p.name for p in (tmp_path / 'store/samples').glob(f'{name}-*'))}")
                for name in ("p1", "p2"))  # fmt: skip
    record = next(path.name for path in one.glob("mean, 2*"))
    foreign = tmp_path / "other" / one.relative_to(tmp_path / "store") / record
    for source in (two / record, next(one.glob("mean, 1*")), foreign):
        shutil.copy(source, one / record)
        warned.clear()
        assert ran().computed == 1
        assert "not the record of ('mean', 2) of sample p1" in warned[0]
        assert bits(tmp_path / "store") == before


def test_what_killed_writers_left_is_swept(ran, tmp_path):
    ran(data=Pictures((1,)))
    import socket

    left = next((tmp_path / "store" / "samples").iterdir()) / f".{socket.gethostname()}-999999999-ab.partial"
    left.write_bytes(b"half")
    ran()
    assert not left.exists()


def test_names_of_any_length_and_script_make_files(ran, tmp_path):
    @dataclass(frozen=True, repr=False)
    class Odd(Pictures):
        @property
        def names(self):
            return tuple(f"{'ü/' * 200}{seed}" for seed in self.seeds)

    assert ran(data=Odd((1, 2))).names == Odd((1, 2)).names
    assert all(len(path.name) < 100 for path in (tmp_path / "store").rglob("*"))


def test_every_worker_has_its_place_on_a_node():
    alone, many = [{"CPU": 8.0, "GPU": 8.0}], [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert equal_share([{"CPU": 8.0}], 3, cuda=False) == {"num_cpus": 2}
    assert equal_share(many, 2, cuda=False) == {"num_cpus": 2}, "eight in all, but four on one node only"
    assert equal_share(alone, 3, cuda=True) == {"num_cpus": 2, "num_gpus": 2}, "Ray takes whole GPUs only above one"
    assert equal_share(many, 2, cuda=True) == {"num_cpus": 2, "num_gpus": 1}
    assert equal_share(many, 3, cuda=True) == {"num_cpus": 2, "num_gpus": 0.5}, "no worker lies on parts of two GPUs"
    for workers in range(1, 9):
        share = equal_share(alone, workers, cuda=True)
        assert share["num_gpus"] <= 1 or share["num_gpus"] % 1 == 0
        assert workers * share["num_gpus"] <= 8
        assert workers * share["num_cpus"] <= 8
    for nodes, cuda, room in ((many, False, 8), (many, True, 6), ([{"CPU": 4.0}], True, 0)):
        with pytest.raises(InputError, match=f"9 workers; accepted: .* up to {room}"):
            equal_share(nodes, 9, cuda=cuda)


def test_workers_are_counted_and_need_ray(ran, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="0 workers"):
        ran(workers=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'emerdiff_probe\[ray\]'"):
        ran(workers=2)


def test_a_cluster_that_cannot_be_reached_is_given_up_soon(ran, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"RAY_ADDRESS '127.0.0.1:9' cannot be reached"):
        ran(workers=2)
    assert time.perf_counter() - began < 30

    def silent(place, timeout):
        assert timeout <= 10
        raise TimeoutError("timed out")

    for address in ("10.0.0.1:6379", "ray://head.example:10001"):
        with pytest.raises(InputError, match="cannot be reached"):
            require_reachable(address, silent)
