"""Models from strangers: whatever their files hold, nothing of theirs is run, and only typed errors come out."""

import contextlib
import json
import shutil

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emerdiff_probe.errors import ModelError, ProbeError
from emerdiff_probe.models.clip import load_clip
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.pocket.clip import save_clip

CODE = "raise SystemExit('code of a stranger was run')"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def scratch(folder, tmp_path_factory):
    return shutil.copytree(folder, tmp_path_factory.mktemp("strangers") / "copy")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("strangers") / "clip"
    save_clip(*tiny.clip(), place)
    return place


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("text", ["null", "7", "[]", '"unet"', "{", "", "[" * 100_000])
def test_an_index_that_is_no_object_is_refused(copied, text):
    (copied / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize(
    "named", ["NoSuchPipeline", "AutoencoderKL", "os", "", None, 7, ["pipeline", "MyPipeline"], {"a": 1}, "__name__"]
)
def test_a_pipeline_that_diffusers_does_not_have_is_refused(copied, named):
    (copied / "pipeline.py").write_text(CODE)
    change(copied / "model_index.json", _class_name=named)
    with pytest.raises(ModelError, match=r"the pipeline is .*accepted: the name of one in diffusers"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize(
    "component",
    [
        ["my_unet", "MyUNet"],
        ["os", "system"],
        ["diffusers", "NoSuchModel"],
        ["diffusers", "utils"],
        ["transformers", "pipeline"],
        ["transformers", "AutoModel"],
        ["diffusers"],
        ["diffusers", "UNet2DConditionModel", "more"],
        [],
        [None, "UNet2DConditionModel"],
        [["diffusers"], {}],
        ["numpy", "ndarray"],
    ],
)
def test_a_component_that_neither_library_has_is_refused(copied, component):
    (copied / "unet" / "my_unet.py").write_text(CODE)
    change(copied / "model_index.json", unet=component)
    with pytest.raises(ModelError, match=r"unet is .*none with code of its own"):
        load_model(copied, device="cpu")


@pytest.mark.parametrize("file", ["text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"])
def test_code_that_a_configuration_asks_for_is_not_run(copied, file):
    (copied / file).parent.joinpath("stranger.py").write_text(CODE)
    change(copied / file, auto_map={"AutoModel": "stranger.Model", "AutoTokenizer": ["stranger.T", None]})
    load_model(copied, device="cpu")


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json", "tokenizer_config.json"])
def test_a_clip_that_asks_for_code_is_refused_without_a_question(clip_folder, tmp_path, file, monkeypatch):
    copied = shutil.copytree(clip_folder, tmp_path / "clip")
    (copied / "stranger.py").write_text(CODE)
    monkeypatch.setattr("builtins.input", None)
    change(copied / file, auto_map={"AutoImageProcessor": "stranger.P", "AutoConfig": "stranger.C"})
    with pytest.raises(ModelError, match=rf"{file}: auto_map"):
        load_clip(copied, device="cpu")


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
@pytest.mark.parametrize("text", ["[1]", "null", "3", "{", ""])
def test_a_clip_with_a_configuration_that_is_no_object_is_refused(clip_folder, tmp_path, file, text):
    copied = shutil.copytree(clip_folder, tmp_path / "clip")
    (copied / file).write_text(text)
    with pytest.raises(ModelError, match=file):
        load_clip(copied, device="cpu")


FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
)


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_value_of_a_configuration_replaced_by_another_gives_a_model_or_a_typed_error(scratch, folder, file, data):
    """Numbers are small: a width of 2**40 would be a model of that size."""
    if not (folder / file).exists():
        pytest.skip(f"no {file}")
    original = json.loads((folder / file).read_text())
    key = data.draw(st.sampled_from(sorted(original)))
    (scratch / file).write_text(json.dumps(original | {key: data.draw(VALUES)}))
    try:
        load_model(scratch, device="cpu")
    except ProbeError:
        pass
    finally:
        shutil.copy(folder / file, scratch / file)


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_gives_a_model_or_a_typed_error(scratch, folder, file, data):
    if not (folder / file).exists():
        pytest.skip(f"no {file}")
    content = bytearray((folder / file).read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=4))
    (scratch / file).write_bytes(bytes(content))
    try:
        load_model(scratch, device="cpu")
    except ProbeError:
        pass
    finally:
        shutil.copy(folder / file, scratch / file)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"])
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_clip_with_another_value_gives_a_clip_or_a_typed_error(clip_folder, file, data, tmp_path_factory):
    copied = shutil.copytree(clip_folder, tmp_path_factory.mktemp("clip") / "copy")
    original = json.loads((copied / file).read_text())
    change(copied / file, **{data.draw(st.sampled_from(sorted(original))): data.draw(VALUES)})
    with contextlib.suppress(ProbeError):
        load_clip(copied, device="cpu")
