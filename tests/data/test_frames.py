"""Clips: a folder of frames, or folders of them."""

import numpy as np
import pytest
from small_files import picture

from emerdiff_probe.data.frames import Clips
from emerdiff_probe.errors import InputError
from emerdiff_probe.images import load_image


def write_frames(folder, count, **given):
    for number in range(count):
        picture(folder / f"frame{number}.png", number, **given)


def test_a_folder_of_frames_is_one_clip_in_the_order_of_numbers(tmp_path):
    write_frames(tmp_path / "walk", 11)
    found = Clips.from_folder(tmp_path / "walk")
    assert (found.names, found.labelled, found.classes) == (("walk",), False, ())
    sample = found[0]
    assert [file.name for file in sample.scene.files] == [f"frame{number}.png" for number in range(11)]
    assert np.array_equal(sample.scene[10], load_image(tmp_path / "walk" / "frame10.png"))
    assert np.array_equal(sample.pixels(), sample.scene[0])
    assert len(sample.scene[2:5]) == 3
    assert sample.origin == found.origins[0] == str((tmp_path / "walk").resolve())
    assert len(found.stamp(0)) == 22
    with pytest.raises(IndexError):
        sample.scene[11]
    assert [file.name for file in Clips.from_folder(tmp_path / "walk", step=5)[0].scene.files] == [
        "frame0.png", "frame5.png", "frame10.png"
    ]  # fmt: skip


def test_a_digest_tells_all_frames_and_not_their_names(tmp_path):
    write_frames(tmp_path / "walk", 3)
    first = Clips.from_folder(tmp_path / "walk")[0].digest()
    (tmp_path / "walk").rename(tmp_path / "run")
    assert Clips.from_folder(tmp_path / "run")[0].digest() == first
    picture(tmp_path / "run" / "frame2.png", 7)
    found = Clips.from_folder(tmp_path / "run")[0]
    assert found.digest() != first
    (tmp_path / "run" / "frame2.png").unlink()
    with pytest.raises(InputError, match=r"frame2\.png: cannot be read"):
        found.digest()


def test_folders_of_frames_are_clips_each(tmp_path):
    for name, count in (("b/fast", 3), ("a", 2), ("short", 1), (".hidden", 4)):
        write_frames(tmp_path / name, count)
    found = Clips.from_folder(tmp_path)
    assert found.names == ("a", "b/fast")
    assert [len(sample.scene) for sample in found] == [2, 3]
    assert found[1:].names == ("b/fast",)
    assert found.notes == ("left out, 1 clips of one frame: short",)


def test_a_frame_of_another_size_is_named(tmp_path):
    write_frames(tmp_path, 2)
    picture(tmp_path / "frame2.png", size=(20, 20))
    with pytest.raises(InputError, match=r"frame2\.png: frame of \(20, 20\) in a clip of \(18, 24\)"):
        Clips.from_folder(tmp_path)[0].scene[2]


def test_folders_that_hold_no_clip_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Clips.from_folder(tmp_path / "none")
    write_frames(tmp_path, 1)
    with pytest.raises(InputError, match=r"no clip; accepted: a folder of two frames or more \(step 1\)"):
        Clips.from_folder(tmp_path)
    write_frames(tmp_path / "deep", 3)
    with pytest.raises(InputError, match="frames in it and in folders inside"):
        Clips.from_folder(tmp_path)
