"""Options that are made from the settings' fields: every one reaches the configuration, in every verb alike."""

import json
import subprocess
import sys

import pytest
import tiny
from typer import Typer
from typer.testing import CliRunner

from emerdiff_probe.cli.options import (
    GivenSettings,
    find_layers,
    format_options,
    parse_setting,
    read_settings,
    take_settings,
    write_settings,
)
from emerdiff_probe.errors import InputError, SiteError
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import FAST
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.segmentation.settings import OPTIONS

TEXTS = {
    "clusters": ("5", 5),
    "feature_sites": ("up16.*, up8.self0.query", ("up16.*", "up8.self0.query")),
    "feature_timesteps": ("1,301", (1, 301)),
    "feature_draws": ("2", 2),
    "layer": ("up8.self0.output", "up8.self0.output"),
    "modulate_at": ("101", 101),
    "strength": ("7.5", 7.5),
    "placement": ("before", "before"),
    "injection": ("none", ()),
    "denoising_steps": ("3", 3),
    "skip_after": ("2", 2),
    "compare": ("latents", "latents"),
    "one_sided": ("true", True),
    "sign_patterns": ("auto", "auto"),
    "shared_levels": ("1", 1),
    "steps": ("20", 20),
    "method": ("ddpm", "ddpm"),
    "prompt": ("12", "12"),
    "smoothing": ("0.5", 0.5),
    "sharpen": ("none", "none"),
    "seed": ("3", 3),
}


@pytest.fixture
def run():
    """Run a command with the options of all settings; gives what it got, or the error that it raised."""

    def run(*arguments, **how):
        app, got = Typer(pretty_exceptions_enable=False), []

        @app.command()
        @take_settings(**how)
        def command(name: str, count: int = 1, *, settings: GivenSettings) -> None:
            got.append((name, count, settings))

        result = CliRunner().invoke(app, [str(each) for each in arguments])
        if isinstance(result.exception, InputError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return got[0] if got else result.output

    return run


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.pocket(), device="cpu")


def test_every_setting_has_an_option_with_its_help(run):
    text = run("--help")
    for flag in ("--strength", "--feature-layer", "--feature-timestep", "--inversion", "--injection", "--config"):
        assert flag in text
    assert set(TEXTS) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_configuration(run, name):
    text, value = TEXTS[name]
    assert parse_setting(name, text) == value
    place, count, settings = run("place", "--count", 3, *format_options({name: value}).split(" ", 1)[:1], text)
    assert (place, count) == ("place", 3)
    assert settings.open_config() == EmerDiffConfig().change(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strength", "0"), "strength 0.0; accepted: a finite number above 0"),
        (("--strength", "strong"), "strength 'strong'; accepted: a finite number above 0"),
        (("--clusters", "0"), "clusters 0; accepted: an integer, 1 or more"),
        (("--steps", "1.5"), "steps '1.5'; accepted: an integer, 1 or more"),
        (("--seed", "-1"), "seed -1; accepted: an integer, 0 or more"),
        (("--injection", "selves"), "injection .* accepted: any of 'self', 'cross'"),
        (("--placement", "between"), "placement 'between'; accepted: 'after', 'before'"),
        (("--one-sided", "maybe"), "one_sided 'maybe'; accepted: True, False"),
        (("--config", "missing.toml"), "missing.toml: no settings can be read"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_bound_before_the_command_runs(run, options, message):
    with pytest.raises(InputError, match=message):
        run("place", *options)


@pytest.mark.parametrize("name", ["best.toml", "best.json"])
def test_a_file_of_settings_is_what_was_saved_and_options_overrule_it(run, model, tmp_path, name):
    config = EmerDiffConfig.fast(model, strength=2.5, feature_sites=("up16.*", "up8.self0.query"), injection=())
    write_settings(config, tmp_path / name)
    *_, settings = run("place", "--config", tmp_path / name)
    assert settings.config(model) == config
    *_, settings = run("place", "--config", tmp_path / name, "--strength", 9, "--fast")
    assert settings.config(model) == config.change(strength=9.0)


def test_a_result_folder_is_a_file_of_settings(run, model, tmp_path):
    config = EmerDiffConfig.fast(model, clusters=2, steps=10, modulate_at=101, feature_draws=1)
    folder = segment(model, tiny.picture(), config).save(tmp_path / "photo")
    for place in (folder, folder / "result.json"):
        *_, settings = run("place", "--config", place)
        assert settings.config(model) == config
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="holds no table of settings"):
        read_settings(tmp_path / "list.json")


def test_approximate_modes_fill_in_the_readout_alone(run, model):
    *_, settings = run("place", "--fast", "--strength", 5)
    assert settings.config(model) == EmerDiffConfig.fast(model, strength=5.0)
    *_, settings = run("place", "--fast", "--one-sided", "false")
    assert settings.config(model) == EmerDiffConfig.fast(model, one_sided=False)
    assert settings.config(model).readout.skip_after == FAST["skip_after"]
    *_, settings = run("place", "--draft", "--strength", 5)
    assert settings.config(model) == EmerDiffConfig.draft(model, strength=5.0)
    with pytest.raises(InputError, match="--fast and --draft; accepted: one of both"):
        run("place", "--draft", "--fast")


def test_lists_are_every_combination(run, model):
    *_, settings = run(
        "p",
        "--strength",
        "1,10",
        "--layer",
        "up8.cross*",
        "--feature-timestep",
        "1,301;1",
        "--prompt",
        "a, b",
        lists=True,
    )
    variants = settings.variants(model)
    assert len(variants) == 2 * 3 * 2
    assert {each["layer"] for each in variants} == {f"up8.cross{nth}.output" for nth in range(3)}
    assert {each["feature_timesteps"] for each in variants} == {(1, 301), (1,)}
    assert {each["prompt"] for each in variants} == {"a, b"}
    assert len({str(each) for each in settings.open_configs(model)}) == 12
    with pytest.raises(InputError, match="strength 'x'"):
        run("p", "--strength", "1,x", lists=True)
    assert find_layers(model, "up8.self1.query") == ["up8.self1.query"]
    with pytest.raises(SiteError, match="near ones"):
        find_layers(model, "up99.*")


def test_options_ready_to_paste_give_the_same_settings(run, model):
    import shlex

    config = EmerDiffConfig.fast(model, strength=1 / 3, injection=(), prompt="a 'red' car", feature_timesteps=(1, 301))
    *_, settings = run("place", *shlex.split(format_options(config.options())))
    assert settings.config(model) == config


def test_options_that_a_command_asks_for_itself_are_left_to_it(run):
    assert "--strength" not in run("--help", but=("strength",))


def test_the_command_line_starts_without_torch():
    code = "import sys, emerdiff_probe.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
