"""The tries of benchmarks/faults.py that need no model: nothing is missed."""

from benchmarks.faults import damage_store, fuzz_images, small_disk


def test_changed_bytes_of_a_picture_are_read_or_refused():
    found = fuzz_images(120)
    assert set(found) <= {"survived", "detected"}
    assert min(found["survived"], found["detected"]) > 5


def test_no_damage_of_a_store_is_missed(tmp_path):
    found = damage_store(tmp_path / "store")
    assert set(found) <= {"survived", "detected"}
    assert found["detected"] > 15


def test_a_disk_that_may_not_be_mounted_is_told(tmp_path):
    with small_disk(tmp_path / "disk", 64) as mounted:
        assert mounted == (tmp_path / "disk").is_mount()
    assert not (tmp_path / "disk").is_mount()
