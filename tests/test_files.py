"""Files and folders: whole or not at all, damage is named, and nothing of killed writers stays."""

import os
import signal
import subprocess
import sys

import pytest

from emerdiff_probe.errors import InputError
from emerdiff_probe.files import (
    find_damage,
    list_checksums,
    list_files,
    require_writable,
    resolve,
    seal,
    sweep,
    unseal,
    write_folder,
    write_whole,
)

WRITER = """
import os, signal, sys
from pathlib import Path
from emerdiff_probe.files import write_folder, write_whole
write = {"file": write_whole, "folder": write_folder}[sys.argv[1]]
write(Path(sys.argv[2]), lambda partial: os.kill(os.getpid(), signal.SIGKILL))
"""


def killed_writer(kind, path):
    """A process that is killed while it writes."""
    done = subprocess.run([sys.executable, "-c", WRITER, kind, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_swept_and_what_a_living_one_writes_is_not(tmp_path, kind):
    killed_writer(kind, tmp_path / "result")
    left = [path.name for path in tmp_path.iterdir()]
    assert "result" not in left
    if kind == "folder":
        assert len(left) == 1
    seen = []
    write_whole(tmp_path / "other", lambda partial: (partial.write_text("x"), seen.append(sweep(tmp_path))))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert [path.name for path in seen[0]] == left


def test_a_folder_takes_the_place_of_an_older_one_and_sweeps(tmp_path):
    killed_writer("folder", tmp_path / "result")
    for text in ("one", "two"):
        write_folder(tmp_path / "result", lambda partial, text=text: (partial / text).write_text(text))
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["two"]


def test_of_two_writers_at_once_the_last_ones_folder_stays_whole(tmp_path):
    def outer(partial):
        write_folder(tmp_path / "result", lambda inner: (inner / "inner").write_text("inner"))
        (partial / "outer").write_text("outer")

    write_folder(tmp_path / "result", outer)
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["outer"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    write_folder(tmp_path / ("n" * 255), lambda partial: (partial / "file").write_text("x"))
    write_whole(tmp_path / ("m" * 255), lambda partial: partial.write_text("x"))
    require_writable(tmp_path / ("k" * 255))
    with pytest.raises(InputError, match="256 bytes; accepted: up to 255"):
        require_writable(tmp_path / ("é" * 128))


def test_links_in_a_loop_are_an_input_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for refuse in (resolve, require_writable):
        with pytest.raises(InputError, match="loop"):
            refuse(tmp_path / "a" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        require_writable(tmp_path / "closed" / "out")


def test_a_refused_place_is_not_made(tmp_path):
    require_writable(tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        require_writable(tmp_path / "file" / "out")


def test_damage_is_named(tmp_path):
    for name in "abcde":
        (tmp_path / name).write_text(name * 5)
    checksums = list_checksums(tmp_path)
    assert find_damage(tmp_path, checksums) == []
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("b")
    (tmp_path / "c").write_text("ccacc")
    (tmp_path / "d").unlink()
    (tmp_path / "d").mkdir()
    assert find_damage(tmp_path, checksums) == [
        "a is missing",
        "b has 1 bytes where 5 were written",
        "c is not what was written",
        "d is not a file",
    ]


def test_what_was_sealed_comes_back_and_nothing_else(tmp_path):
    content = {"seconds": {"read": 0.1}, "names": ["é", None], "masks": 3}
    text = seal(content)
    assert unseal(text) == content
    for broken in ("", "[]", "null", "{", text.replace("0.1", "0.2"), text.replace("masks", "tasks"), "{}"):
        with pytest.raises(InputError, match="damaged"):
            unseal(broken)


def test_files_below_a_folder_are_listed_but_for_hidden_ones(tmp_path):
    for name in ("b.txt", "a/c.txt", ".hidden", "._a", ".Trash-1000/d.txt", "a/.ipynb_checkpoints/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / ".Trash-1000")
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == [
        "a/c.txt", "b.txt", "linked/d.txt"
    ]  # fmt: skip
    for place in ("missing", "b.txt", "long" * 100):
        with pytest.raises(InputError, match="no such folder"):
            list_files(tmp_path / place)
