"""Options of the model, which every verb that loads one takes."""

import shutil

import pytest
import typer

from emerdiff_probe import cli
from emerdiff_probe.cli.models import OPTIONS


def test_every_verb_that_takes_a_model_takes_all_of_its_options():
    commands = typer.main.get_command(cli.app).commands
    asked = {name: {each.name for each in command.params} for name, command in commands.items()}
    with_model = {name for name, names in asked.items() if "model" in names}
    assert with_model >= {"segment", "evaluate", "study", "layers", "find"}
    for name in with_model:
        assert asked[name] >= OPTIONS.keys(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "models/sd.safetensors"), "no such model folder or file"),
        (("--family", "sd3"), "family 'sd3' for pocket; accepted: pocket, sd1, sd2, sdxl"),
        (("--lora", "style.safetensors:0.5"), "no such safetensors file"),
        (("--embedding", "toy.pt"), "pickled weights can run code"),
        (("--variant", "ema"), "no component has weights of variant 'ema'"),
        (("--revision", "v2"), "revisions of models on the hub"),
        (("--precision", "float8"), "accepted: float32, float16, bfloat16"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_exit_code_2(run, options, message):
    code, out, err = run("layers", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_options_reach_the_model(run, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    for weights in copied.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".ema.safetensors"))
    code, out, err = run("layers", "--model", copied, "--variant", "ema", "--device", "cpu", "--kind", "block")
    assert (code, err) == (0, "")
    assert "up8.block0.output" in out
    assert run("layers", "--model", copied, "--device", "cpu")[0] == 2
