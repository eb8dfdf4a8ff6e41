"""The whole job: what comes out, what is refused before any model runs, saving, and interruption."""

import contextlib
import gc
import json
import os
import re
import shutil
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from emerdiff_probe.errors import InputError, InterventionError, ModelError, SiteError, TimestepError
from emerdiff_probe.files import seal
from emerdiff_probe.images import draw_segments, load_image
from emerdiff_probe.metrics.colour import explained_variance, lab_colours
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.reading.features import one_hot_masks, upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, check_config, find_feature_sites
from emerdiff_probe.segmentation.criteria import CRITERIA, ResponseOverlap, find_criterion
from emerdiff_probe.segmentation.result import DOUBTFUL, Segmentation, is_finished, read_summary, require_replaceable
from emerdiff_probe.segmentation.segment import measure_colour_gain, segment, segment_all, segment_probed
from emerdiff_probe.segmentation.sharpen import SHARPENINGS, read_labels
from emerdiff_probe.segmentation.tree import groups_within, likeness_linkage
from emerdiff_probe.sites import find_site

FAST = {"clusters": 4, "modulate_at": 301, "steps": 10}
IMAGE = tiny.picture(50, 81)


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, **FAST)


@pytest.fixture(scope="module")
def result(model, config):
    return segment(model, IMAGE, config)


@contextlib.contextmanager
def asleep(model):
    """Whatever runs the model in here fails."""

    def wake(*_):
        pytest.fail("a model ran")

    parts = (model.denoiser, model.autoencoder.encoder, model.pipeline.text_encoder)
    handles = [part.register_forward_pre_hook(wake) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_shapes_at_a_size_that_is_neither_native_nor_square(result, model, config):
    sites = find_feature_sites(model, config)
    height, width = model.working_size(50, 81)
    grid = sites[0].grid(height // model.factor, width // model.factor)
    assert result.labels.shape == (50, 81)
    assert result.difference_maps.shape == (4, height, width)
    assert result.difference_map(3).shape == (50, 81)
    assert result.difference_maps.dtype == np.float32
    assert result.low_resolution_masks.shape == grid
    assert set(np.unique(result.low_resolution_masks)) == {0, 1, 2, 3}
    channels = len(result.config.features.timesteps) * sum(site.channels for site in sites)
    assert result.mask_embeddings.shape == (4, channels)
    assert result.masks == 4
    assert np.array_equal(result.image, IMAGE)


@pytest.mark.parametrize("sharpen", SHARPENINGS)
def test_labels_are_read_off_the_maps_as_the_configuration_says(model, config, sharpen):
    result = segment(model, IMAGE, config.change(sharpen=sharpen))
    maps = np.stack([result.difference_map(mask) for mask in range(result.masks)])
    expected, _ = read_labels(torch.from_numpy(result.difference_maps), result.image, sharpen)
    assert np.array_equal(result.labels, expected)
    assert np.array_equal(result.labels, maps.argmax(0)) == (sharpen == "none")
    means = [maps[mask][result.labels == mask].mean() if (result.labels == mask).any() else 0 for mask in range(4)]
    assert np.allclose(result.responses, means, rtol=1e-5)
    assert (result.difference_maps >= 0).all()


def test_a_result_read_in_another_way_is_that_of_segmenting_anew(result, model, config):
    read = result.read("none")
    anew = segment(model, result.image, config.change(sharpen="none"))
    assert read.config == anew.config != result.config
    assert (read.labels == anew.labels).all()
    assert (read.responses == anew.responses).all()
    assert (read.labels != result.labels).any()
    assert read.seconds.keys() == result.seconds.keys()
    assert (read.read(result.config.sharpen).labels == result.labels).all()


def test_the_result_carries_what_made_it(result, model, config):
    assert result.config == config
    assert result.fingerprint == model.fingerprint
    assert set(result.seconds) == {"read", "invert", "features", "cluster", "modulate", "assign"}
    assert all(seconds >= 0 for seconds in result.seconds.values())


def test_the_same_call_gives_the_same_bits_and_leaves_no_hooks(result, model, config):
    weights = tiny.state_of(model.denoiser)
    again = segment(model, IMAGE, config)
    for name in ("labels", "low_resolution_masks", "difference_maps", "mask_embeddings", "linkage"):
        assert np.array_equal(getattr(again, name), getattr(result, name)), name
    assert not tiny.hooks_of(model.denoiser)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.denoiser.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 3.0},
        {"placement": "before"},
        {"injection": ()},
        {"injection": ("self",)},
        {"smoothing": 0.0},
        {"method": "ddim", "feature_draws": 1},
        {"prompt": "red car"},
        {"seed": 1},
        {"modulate_at": 101},
        {"layer": "up8.cross0.query"},
        {"feature_timesteps": 201},
    ],
    ids=str,
)
def test_every_setting_reaches_the_method(result, model, config, change):
    other = segment(model, IMAGE, config.change(**change))
    assert not np.allclose(other.difference_maps, result.difference_maps, atol=1e-5)


def test_features_may_be_later_or_earlier_than_the_modulation(model, config):
    other = segment(model, IMAGE, config.change(feature_timesteps=501, modulate_at=101))
    assert other.masks == 4


def test_features_and_modulation_may_lie_on_different_grids(model, config):
    other = segment(model, IMAGE, config.change(feature_sites="up16.cross0.query", layer="up4.self0.output"))
    assert other.low_resolution_masks.shape == find_site(model, "up16.cross0.query").grid(16, 24)
    assert other.labels.shape == (50, 81)


def test_every_kind_of_source_gives_the_same_result(result, model, config, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(path)
    for source in (path, str(path), Image.fromarray(IMAGE)):
        assert np.array_equal(segment(model, source, config).labels, result.labels)


def test_an_image_of_one_colour_is_segmented(model, config):
    flat = segment(model, np.full((40, 40, 3), 99, np.uint8), config)
    assert 1 <= flat.masks <= 4


def test_defaults_come_from_the_model(model):
    default = EmerDiffConfig.for_model(model)
    assert find_feature_sites(model, default)[0].part == "query"
    assert find_site(model, default.modulation.layer).stage == "up"
    assert EmerDiffConfig.for_model(model, strength=3.5).modulation.strength == 3.5
    with pytest.raises(InputError, match="no such setting: lambda_"):
        EmerDiffConfig.for_model(model, lambda_=3.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clusters", 0),
        ("clusters", -3),
        ("clusters", 2.5),
        ("clusters", True),
        ("clusters", "4"),
        ("clusters", "elbow"),
        ("clusters", [4]),
        ("steps", 0),
        ("seed", -1),
        ("seed", 0.5),
        ("strength", 0.0),
        ("strength", -10.0),
        ("strength", float("nan")),
        ("strength", float("inf")),
        ("strength", "10"),
        ("smoothing", -0.1),
        ("smoothing", float("nan")),
        ("placement", "between"),
        ("method", "null-text"),
        ("injection", ("selves",)),
        ("injection", "self"),
        ("injection", 3),
        ("injection", [["self"]]),
        ("clusters", np.arange(3)),
        ("placement", ["after"]),
        ("method", {}),
        ("feature_sites", 3),
        ("modulate_at", "281"),
        ("feature_timesteps", 1.5),
        ("feature_timesteps", ()),
        ("feature_timesteps", (1, 1)),
        ("feature_sites", ("up8.cross0.query", 3)),
        ("inversion", "ddpm"),
        ("features", 3),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"{name} .*accepted: "):
        EmerDiffConfig().change(**{name: value})


def test_numbers_of_numpy_are_saved_like_any_other(result, tmp_path):
    numbers = {
        "clusters": np.arange(5)[4],
        "seed": np.uint8(0),
        "modulate_at": np.int32(301),
        "strength": np.float32(0.5),
        "smoothing": np.float64(2),
        "denoising_steps": np.int64(2),
        "one_sided": np.bool_(True),
    }
    made = result.config.change(**numbers)
    plain = result.config.change(**{name: value.item() for name, value in numbers.items()})
    assert made == plain
    assert Segmentation.load(replace(result, config=made).save(tmp_path / "photo")).config == plain


@pytest.mark.parametrize(
    ("source", "change", "error", "message"),
    [
        ("missing.png", {}, InputError, "no such image file"),
        (np.zeros((1, 1, 3), np.uint8), {}, InputError, "too small"),
        (np.full((40, 40), np.nan), {}, InputError, "NaN"),
        (IMAGE, {"clusters": 10_000}, InputError, "10000 clusters, but .* cells"),
        (IMAGE, {"feature_sites": "up99.cross0.query"}, SiteError, "near ones"),
        (IMAGE, {"layer": "nowhere"}, SiteError, "near ones"),
        (IMAGE, {"feature_sites": "up8.cross0.key"}, InputError, "text tokens"),
        (IMAGE, {"feature_timesteps": 2}, TimestepError, "near ones: 1, "),
        (IMAGE, {"modulate_at": 281}, TimestepError, "near ones: .*301"),
        (IMAGE, {"steps": 1000}, InputError, "accepted: 1 to 999"),
    ],
)
def test_bad_input_is_refused_before_any_model_runs(model, config, source, change, error, message):
    with asleep(model), pytest.raises(error, match=message):
        segment(model, source, config.change(**change))


def test_a_layer_that_cannot_be_modulated_is_refused_before_any_model_runs(model, config):
    with asleep(model), pytest.raises(InterventionError, match="no attention layer"):
        segment(model, IMAGE, config.change(layer="up8.resnet0.output"))


def test_as_many_clusters_as_cells_is_the_most(model, config):
    rows, columns = find_feature_sites(model, config)[0].grid(16, 16)
    check_config(model, config.change(clusters=rows * columns), 64, 64)
    with pytest.raises(InputError, match=f"accepted: 1 to {rows * columns}"):
        check_config(model, config.change(clusters=rows * columns + 1), 64, 64)


def test_a_larger_image_has_more_cells_to_cluster(model, config):
    rows, columns = find_feature_sites(model, config)[0].grid(32, 32)
    probed = config.probe(model, tiny.picture(), scale=2)
    many = config.change(clusters=rows * columns // 4 + 1, denoising_steps=1)
    assert segment_probed(probed, many).masks == rows * columns // 4 + 1
    with pytest.raises(InputError, match=f"accepted: 1 to {rows * columns}"):
        segment_probed(probed, config.change(clusters=rows * columns + 1))


@pytest.mark.parametrize("name", ["auto", *CRITERIA])
def test_the_number_of_masks_can_be_found(model, config, name):
    found = segment(model, IMAGE, config.change(clusters=name))
    cells = found.low_resolution_masks.size
    assert 1 <= found.masks <= cells
    assert found.labels.max() < found.masks == len(found.difference_maps)
    assert set(np.unique(found.low_resolution_masks)) == set(range(found.masks))
    assert len(found.mask_embeddings) == found.masks
    assert found.config.clusters == name
    if find_criterion(name).name == "overlap":  # merges masks after they are modulated
        return
    site = find_feature_sites(model, config)
    start = config.start
    probed = config.probe(model, IMAGE, start=start)
    features = probed.features(site, config.features.timesteps)
    count = find_criterion(name).clusters(features, probed.grid(site))
    assert np.array_equal(segment(model, IMAGE, config.change(clusters=count)).labels, found.labels)


def test_masks_that_overlap_are_merged_without_another_pass(model, config, monkeypatch):
    passes = []
    handle = model.denoiser.register_forward_pre_hook(lambda *_: passes.append(True))
    try:
        fine = segment(model, IMAGE, config.change(clusters=6))
        enough = len(passes)
        threshold = float(np.median(fine.linkage[:, 2]))
        criteria = {**CRITERIA, "overlap": ResponseOverlap(masks=6, threshold=threshold)}
        monkeypatch.setattr("emerdiff_probe.segmentation.criteria.CRITERIA", criteria)
        merged = segment(model, IMAGE, config.change(clusters="overlap"))
    finally:
        handle.remove()
    assert len(passes) == 2 * enough
    groups = groups_within(fine.linkage, threshold)
    assert 1 < merged.masks < fine.masks
    assert np.array_equal(merged.low_resolution_masks, groups[fine.low_resolution_masks])
    one, other = (assign(torch.from_numpy(found.difference_maps)).numpy() for found in (merged, fine))
    assert np.array_equal(one, groups[other])


def test_what_needs_a_number_refuses_one_that_is_to_be_found(config):
    assert config.given_clusters == 4
    with pytest.raises(InputError, match="clusters 'auto'; accepted here: an integer"):
        _ = config.change(clusters="auto").given_clusters


def test_levels_go_from_the_labels_to_one_segment(result, tmp_path):
    assert np.array_equal(result.tree.cut(result.masks), result.labels)
    assert not result.tree.cut(1).any()
    loaded = Segmentation.load(result.save(tmp_path / "photo"))
    for count in range(1, result.masks + 1):
        assert np.array_equal(loaded.tree.cut(count), result.tree.cut(count))
    with Image.open(tmp_path / "photo" / "levels.png") as picture:
        assert np.array_equal(np.array(picture), np.array(result.tree.levels(IMAGE)))


def test_what_was_saved_comes_back(result, tmp_path):
    folder = result.save(tmp_path / "deep" / "photo", maps=True)
    loaded = Segmentation.load(folder)
    half = result.difference_maps.astype(np.float16).astype(np.float32)
    assert np.array_equal(loaded.difference_maps, half)
    for name in ("image", "labels", "low_resolution_masks", "responses", "mask_embeddings", "linkage"):
        assert np.array_equal(getattr(loaded, name), getattr(result, name)), name
        assert getattr(loaded, name).dtype == getattr(result, name).dtype, name
    for name in ("config", "model", "fingerprint", "precision"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert loaded.seconds == result.seconds | {"write": loaded.seconds["write"]}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["photo"]


def test_the_files_are_what_the_documentation_says(result, tmp_path):
    folder = result.save(tmp_path / "photo")
    tensors = load_file(folder / "segmentation.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "low_resolution_masks": result.low_resolution_masks.shape,
        "responses": (4,),
        "mask_embeddings": result.mask_embeddings.shape,
        "linkage": (3, 4),
    }
    assert not tensors["low_resolution_masks"].is_floating_point()
    summary = json.loads((folder / "result.json").read_text())
    assert summary["configuration"]["modulation"]["strength"] == result.config.modulation.strength
    assert (summary["masks"], summary["height"], summary["width"]) == (4, 50, 81)
    with Image.open(folder / "labels.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.array(labels), result.labels)
    for name in ("overlay.png", "contours.png", "image.png"):
        with Image.open(folder / name) as picture:
            assert picture.size == (81, 50)


def test_saving_again_replaces_the_whole_result(result, tmp_path):
    folder = result.save(tmp_path / "photo")
    (folder / "old.txt").write_text("from an older version")
    result.save(folder)
    assert not (folder / "old.txt").exists()
    assert np.array_equal(Segmentation.load(folder).labels, result.labels)


def test_saving_never_replaces_a_folder_that_holds_something_else(result, tmp_path):
    folder = tmp_path / "photo"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"photo.*no segmentation"):
        result.save(folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="file"):
        result.save(tmp_path / "file")


def test_saving_never_replaces_the_current_folder(result, tmp_path, monkeypatch):
    """The process would be left in a folder that is deleted."""
    monkeypatch.chdir(result.save(tmp_path / "photo"))
    for folder in (".", "../photo", tmp_path / "photo"):
        with pytest.raises(InputError, match="current folder"):
            result.save(folder)
    assert np.array_equal(Segmentation.load(".").labels, result.labels)


def test_a_relative_folder_is_written_where_it_says(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(result.save("photo")) == "photo"
    assert np.array_equal(Segmentation.load(tmp_path / "photo").labels, result.labels)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_save_that_fails_leaves_the_older_result_whole(result, tmp_path, monkeypatch, error):
    folder = result.save(tmp_path / "photo")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("emerdiff_probe.segmentation.result.save", fail)
    with pytest.raises(error):
        replace(result, labels=1 - result.labels.clip(0, 1)).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["photo"]


def damages(path):
    """Everything that can happen to a file, by name."""
    content = bytearray(path.read_bytes())
    flipped = content.copy()
    flipped[len(flipped) // 2] ^= 1
    return {
        "deleted": path.unlink,
        "emptied": lambda: path.write_bytes(b""),
        "truncated": lambda: path.write_bytes(content[: len(content) // 2]),
        "flipped": lambda: path.write_bytes(flipped),
        "replaced by another": lambda: path.write_bytes(b"{}"),
        "replaced by a folder": lambda: (path.unlink(), path.mkdir()),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("result.json", "segmentation.safetensors", "labels.png", "image.png", "overlay.png", "contours.png"),
        *("side_by_side.png", "readings.png", "difference_maps.png", "levels.png"),
    ],
)
def test_a_damaged_file_is_named_and_the_image_is_not_finished(result, model, config, tmp_path, name):
    for damage in damages(result.save(tmp_path / "photo") / name):
        folder = result.save(tmp_path / "photo")
        assert is_finished(folder, model, IMAGE, config)
        damages(folder / name)[damage]()
        with pytest.raises(InputError, match=re.escape(name)):
            Segmentation.load(folder)
        assert not is_finished(folder, model, IMAGE, config), damage
        shutil.rmtree(folder)


def test_no_bit_of_the_summary_can_flip_unseen(result, model, config, tmp_path):
    path = result.save(tmp_path / "photo") / "result.json"
    content, summary = path.read_bytes(), read_summary(path.parent)
    for place in np.random.default_rng(0).choice(len(content), 200, replace=False).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with contextlib.suppress(InputError):
            assert read_summary(path.parent) == summary  # blanks between values are no content


def test_a_folder_of_another_format_is_refused_by_name(result, tmp_path, model, config):
    folder = result.save(tmp_path / "photo")
    summary = read_summary(folder)
    older = {name: value for name, value in summary.items() if name not in {"format", "files", "image"}}
    for text, message in ((json.dumps(older), "of format 1"), (seal(summary | {"format": 3}), "of format 3")):
        (folder / "result.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Segmentation.load(folder)
        assert not is_finished(folder, model, IMAGE, config)
        require_replaceable(folder)


def test_maps_that_were_not_kept_are_asked_for_by_name(result, model, config, tmp_path):
    loaded = Segmentation.load(result.save(tmp_path / "photo"))
    with pytest.raises(InputError, match="--maps"):
        _ = loaded.difference_maps
    assert not is_finished(tmp_path / "photo", model, IMAGE, config, maps=True)
    assert is_finished(result.save(tmp_path / "photo", maps=True), model, IMAGE, config, maps=True)
    assert loaded.tree.cut(2).max() == 1
    assert loaded.masks == result.masks


def test_files_have_the_modes_that_the_user_asks_for(result, tmp_path):
    before = os.umask(0o027)
    try:
        folder = result.save(tmp_path / "photo", maps=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert folder.stat().st_mode & 0o777 == 0o750


def test_a_large_picture_keeps_its_labels_whole_and_its_checksum(result, model, config, tmp_path):
    image = np.array(Image.fromarray(tiny.picture(64, 96)).resize((1248, 900)))
    labels = np.array(Image.fromarray(result.labels).resize((1248, 900), Image.Resampling.NEAREST))
    folder = replace(result, image=image, labels=labels).save(tmp_path / "photo")
    loaded = Segmentation.load(folder)
    assert np.array_equal(loaded.labels, labels)
    assert not (folder / "image.png").exists()
    assert np.abs(loaded.image.astype(int) - image).mean() < 3
    assert np.array_equal(Segmentation.load(folder, image).image, image)
    with pytest.raises(InputError, match="not the one"):
        Segmentation.load(folder, 255 - image)
    assert is_finished(folder, model, image, config)
    assert not is_finished(folder, model, loaded.image, config)
    for name in ("overlay.png", "contours.png"):
        with Image.open(folder / name) as picture:
            assert max(picture.size) == 1024


def test_more_than_256_masks_are_saved_with_16_bits(result, tmp_path):
    labels = np.arange(50 * 81).reshape(50, 81) % 300
    maps = one_hot_masks(labels).numpy()
    many = replace(
        result,
        labels=labels.astype(np.uint16),
        maps=maps,
        mask_embeddings=np.zeros((300, 2), np.float32),
        linkage=likeness_linkage(maps),
    )
    loaded = Segmentation.load(many.save(tmp_path / "many"))
    assert loaded.masks == 300
    assert np.array_equal(loaded.labels, labels)


def test_a_result_shows_itself(result):
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "4 masks" in repr(result)
    assert result.overlay().size == result.contours().size == (81, 50)
    assert result.overlay(names={0: "tree"}).tobytes() != result.overlay().tobytes()
    assert result.side_by_side().width > 4 * 81


def test_readings_show_the_masks_the_papers_labels_and_the_sharpened_ones_at_one_size(result):
    plain = replace(result, config=result.config.change(sharpen="none"))
    sharp = replace(result, config=result.config.change(sharpen="wls"), labels=np.zeros_like(result.labels))
    three, four = (np.array(one.readings()) for one in (plain, sharp))
    assert (four.shape[1] - three.shape[1]) == 81 + 8, "one panel and a gap more"
    assert four.shape[0] >= 50
    panels = [four[-50:, place * 89 : place * 89 + 81] for place in range(4)]
    assert np.array_equal(panels[0], IMAGE)
    assert np.array_equal(panels[1], draw_segments(upsampled(result.low_resolution_masks, 50, 81)))
    labels, _ = read_labels(torch.from_numpy(result.difference_maps), IMAGE)
    assert np.array_equal(panels[2], draw_segments(labels))
    assert np.array_equal(panels[3], draw_segments(sharp.labels))
    with pytest.raises(InputError, match="without difference maps"):
        replace(result, maps=None).readings()


def test_a_result_says_where_its_labels_explain_much_less_colour_than_the_enlarged_masks(result, config, tmp_path):
    maps = torch.from_numpy(result.difference_maps)
    size = maps.shape[1:]
    colours = lab_colours(IMAGE, tuple(size))
    plain = explained_variance(assign(maps).numpy(), colours)
    assert result.colour_gain == plain - explained_variance(upsampled(result.low_resolution_masks, *size), colours)
    assert Segmentation.load(result.save(tmp_path / "out")).colour_gain == result.colour_gain
    good, bad = replace(result, colour_gain=DOUBTFUL), replace(result, colour_gain=-0.0812)
    assert good.notes == () == replace(result, colour_gain=None).notes
    assert good._repr_html_() is None
    assert "explain 8.1 points less" in repr(bad)
    assert "emerdiff-probe calibrate" in bad._repr_html_()


def test_the_guard_reads_a_large_photograph_at_the_size_of_the_maps(result):
    large = np.kron(IMAGE, np.ones((40, 40, 1), np.uint8))
    maps = torch.from_numpy(result.difference_maps)
    began = time.perf_counter()
    gain = measure_colour_gain(maps, result.low_resolution_masks, large)
    assert time.perf_counter() - began < 1
    assert gain == pytest.approx(result.colour_gain, abs=0.02)


def test_several_images_of_any_size_equal_one_at_a_time(result, model, config):
    pictures = [IMAGE, tiny.picture(64, 64, 1)]
    both = list(segment_all(model, pictures, config))
    assert np.array_equal(both[0].difference_maps, result.difference_maps)
    assert np.array_equal(both[1].labels, segment(model, pictures[1], config).labels)


def test_of_several_images_one_at_a_time_is_held(model, config, tmp_path, monkeypatch):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        Image.fromarray(tiny.picture(64, 64, index)).save(path)
    loaded, alive = [], []

    def load(source):
        image = load_image(source)
        loaded.append(weakref.ref(image))
        return image

    monkeypatch.setattr("emerdiff_probe.segmentation.segment.load_image", load)
    for _ in segment_all(model, paths, config):
        gc.collect()
        alive.append(sum(image() is not None for image in loaded))
    assert max(alive) <= 1


def test_settings_that_one_of_several_images_cannot_have_are_refused_before_the_first_runs(model, config):
    rows, columns = find_feature_sites(model, config)[0].grid(16, 24)
    with asleep(model), pytest.raises(InputError, match="clusters, but"):
        segment_all(model, [tiny.picture(64, 96), IMAGE, tiny.picture(64, 64)], config.change(clusters=rows * columns))


def test_a_bad_image_among_several_is_refused_before_the_first_runs(model, config):
    with asleep(model), pytest.raises(InputError, match="missing"):
        list(segment_all(model, [IMAGE, "missing.png"], config))


def test_an_interrupt_keeps_the_results_so_far_and_leaves_no_hooks(result, model, config):
    passes, kept = [], []

    def interrupt(*_):
        passes.append(True)
        if len(kept) == 1 and len(passes) > 3:
            raise KeyboardInterrupt

    handle = model.denoiser.get_submodule("up_blocks.1").register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for done in segment_all(model, [IMAGE, IMAGE], config):
                kept.append(done)
                passes.clear()
    finally:
        handle.remove()
    assert len(kept) == 1
    assert np.array_equal(kept[0].labels, result.labels)
    assert not tiny.hooks_of(model.denoiser)
    assert np.array_equal(segment(model, IMAGE, config).labels, result.labels)


@pytest.mark.parametrize("build", [tiny.sd2, tiny.sdxl])
def test_other_families_run_the_whole_job_by_their_presets(build):
    other = load_model(build(), device="cpu")
    config = EmerDiffConfig.for_model(other, clusters=3, modulate_at=81)
    found = segment(other, tiny.picture(32, 48), config)
    assert found.masks == 3
    assert found.difference_maps.max() > 0
    assert not tiny.hooks_of(other.denoiser)


def test_stable_diffusions_topology_saved_and_reloaded_runs_the_whole_job(tmp_path):
    pipeline = tiny.sd1()
    pipeline.save_pretrained(tmp_path / "sd", safe_serialization=True)
    loaded = load_model(tmp_path / "sd", device="cpu")
    assert (loaded.family, loaded.native_size) == ("sd1", 512)
    config = EmerDiffConfig.for_model(loaded, clusters=2, modulate_at=1)
    assert config.modulation.strength == 10.0
    assert find_site(loaded, config.modulation.layer).path == "up_blocks.1.attentions.2.transformer_blocks.0.attn2"
    assert find_feature_sites(loaded, config)[0].attention == "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    found = segment(loaded, tiny.picture(100, 100), config)
    assert found.low_resolution_masks.shape == (16, 16)
    assert found.labels.shape == (100, 100)
    assert Segmentation.load(found.save(tmp_path / "out")).fingerprint == loaded.fingerprint
    shutil.rmtree(tmp_path / "sd" / "unet")
    with pytest.raises(ModelError):
        load_model(tmp_path / "sd")


def test_half_precision_gives_nearly_the_same_maps(folder):
    full, half = (load_model(folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    config = EmerDiffConfig.for_model(full, **{**FAST, "clusters": 2})
    one, other = segment(full, IMAGE, config), segment(half, IMAGE, config)
    assert np.corrcoef(one.difference_maps.max(0).ravel(), other.difference_maps.max(0).ravel())[0, 1] > 0.8
