"""Numbers of any size on the command line: refused in one line, before a model is loaded or a folder is made."""

import sys
import time

import pytest
import typer

from emerdiff_probe import cli

BAD = ("-1", "nan", "inf", "-inf", "1e38", str(2**64), str(-(2**70)), "abc", "1" * 5000)
"""What no numeric option takes."""
LARGE = ("0", str(2**31), str(2**63 - 1))
"""What some take: then it is the model that is not there."""
EVERY = 4
"""Each option takes one value in so many, its neighbour the next ones: all of them took ten minutes."""
CALLS = {
    "segment": ("IMAGE", "--model", "./no-model"),
    "study": ("strength", "--data", "world:1", "--model", "./no-model"),
    "evaluate": ("--model", "./no-model"),
    "calibrate": ("--data", "world:1", "--model", "./no-model"),
    "train": ("--world", "--steps", "1"),
    "train-clip": ("--steps", "1"),
    "world": (),
    "find": ("car", "IMAGE", "--model", "./no-model"),
    "layers": ("--model", "./no-model"),
}
PLACES = {
    "study": ("--store", "place"),
    "calibrate": ("--store", "place"),
    "evaluate": ("--store", "place"),
    "layers": (),
}
COMMANDS = typer.main.get_command(cli.app).commands


def numeric_options(verb):
    """Flags of a verb that take numbers, and no word beside them."""
    return [
        option.opts[0]
        for option in COMMANDS[verb].params
        if option.opts[0].startswith("--")
        and (option.type_descriptor.annotation in {int, float} or option.metavar in {"INTEGER", "NUMBER", "INTEGERS"})
    ]


def test_every_verb_that_takes_numbers_is_tried():
    assert {verb for verb in COMMANDS if numeric_options(verb)} == CALLS.keys()
    assert {"--seed", "--strength", "--smoothing", "--feature-draws", "--workers"} <= set(numeric_options("segment"))
    assert {"--width", "--count"} <= set(numeric_options("world"))


@pytest.mark.parametrize("verb", CALLS)
def test_a_bad_number_is_one_line_and_leaves_no_folder(monkeypatch, capfd, image_file, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    values = BAD + (() if verb in {"train", "train-clip", "world"} else LARGE)
    for place, option in enumerate(numeric_options(verb)):
        for value in values[place % EVERY :: EVERY]:
            arguments = [str(image_file) if text == "IMAGE" else text for text in CALLS[verb]]
            call = [verb, *arguments, *PLACES.get(verb, ("--out", "place")), option, value]
            monkeypatch.setattr(sys, "argv", ["emerdiff-probe", *call])
            began = time.monotonic()
            with pytest.raises(SystemExit) as stop:
                cli.main()
            said = capfd.readouterr()
            assert (stop.value.code, said.out) == (2, ""), call
            assert said.err.startswith("emerdiff-probe: "), call
            assert len(said.err.splitlines()) == 1, call
            assert value not in BAD or "no-model" not in said.err, call
            assert time.monotonic() - began < 20, call
            assert not (tmp_path / "place").exists(), call
