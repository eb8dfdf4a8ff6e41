"""Studies: on any data, resumed halves equal one run, and measurements mean what they say."""

import html
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from PIL import Image

from emerdiff_probe.data.sample import IGNORED, Sample
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.intervals import Interval
from emerdiff_probe.metrics.overlaps import consensus, majority_confusion, mean_iou
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import FAST
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import find_site
from emerdiff_probe.studies import appearance, features, modulation, responses, video
from emerdiff_probe.studies.catalogue import STUDIES, make_study
from emerdiff_probe.studies.run import (
    PROTOCOL,
    ZARR,
    StudyJob,
    StudyResult,
    load_result,
    open_study,
    run_study,
    stored_study,
    verdict,
)
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study, Subject
from emerdiff_probe.studies.truth import Truth, edge_distance

ANY_DATA = ("layers", "feature_timestep", "strength", "modulate_at", "injection", "locality")
SCENES_ONLY = ("counterfactual", "video")
NOT_FAST = ("layers", "additivity")


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.paper(
        model,
        clusters=3,
        feature_sites="up8.cross0.query",
        layer="up8.cross2.output",
        modulate_at=101,
        steps=10,
        strength=1.0,
    )


@pytest.fixture(scope="module")
def scenes():
    return open_data("world:2,first=3", side=64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same two pictures with labels, some of them ignored, and without."""
    root = tmp_path_factory.mktemp("pictures")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for seed in range(2):
        labels = np.arange(48).repeat(40).reshape(48, 40) // (20 + seed)
        labels[:, :3] = 255
        Image.fromarray(tiny.picture(48, 40, seed=seed)).save(root / "images" / f"{seed}.png")
        Image.fromarray(labels.astype(np.uint8)).save(root / "labels" / f"{seed}.png")
    (root / "classes.txt").write_text("sky\nsea\nsand\n")
    return {"labelled": open_data(f"folder:{root}", side=64), "bare": open_data(f"images:{root / 'images'}", side=64)}


@pytest.fixture
def counting(config):
    """A study whose values are told by sample and cell, and a list of the units that were measured."""
    calls = []

    def measure(subject, unit):
        calls.append((subject.sample.name, unit["speed"]))
        value = unit["speed"] + int(subject.sample.name[-1]) + float(subject.probed.trajectory.latents.mean())
        return {(way,): {"value": value, "confusion": np.eye(46, dtype=np.int32)} for way in "ab"}

    study = Study(
        name="counting",
        question="How much?",
        axes={"speed": Axis((1, 2, 3), "m/s"), "way": Axis(("a", "b"))},
        measures={"value": Measure("speed and seed", "m/s"), "confusion": Measure("hits", "%", "confusion")},
        config=config,
        measure=measure,
        together=("way",),
        start=101,
        directions=(Direction("faster is more", "value", {"speed": 3}, {"speed": 1}),),
    )
    return study, calls


def test_a_study_gives_a_dataset_with_coordinates_and_units_for_other_tools_too(model, scenes, counting, tmp_path):
    study, calls = counting
    result = run_study(model, study, scenes, store=tmp_path / "store")
    for dataset in (result.dataset, open_study(tmp_path / "store")):
        assert dataset["value"].dims == ("image", "speed", "way")
        assert dataset["image"].to_numpy().tolist() == ["scene-000003", "scene-000004"]
        assert dataset["way"].to_numpy().tolist() == ["a", "b"]
        assert dataset["value"].attrs["units"] == "m/s"
    zarr = xr.open_zarr(tmp_path / "store" / ZARR, consolidated=False, chunks=None, mask_and_scale=False).load()
    xr.testing.assert_equal(zarr, result.dataset)
    assert (result.computed, result.reused) == (12, 0)
    assert len(calls) == 6
    assert result.dataset["confusion"].shape == (2, 3, 2, 46, 46)
    assert result.interval("confusion", {"speed": 1}).value == 100
    values = result.dataset["value"].sel(speed=3) - result.dataset["value"].sel(speed=1)
    assert values.to_numpy() == pytest.approx(2)
    assert "2 images, 95% bootstrap" in str(result)
    assert "world parts: labels of 46 classes" in str(result)
    assert "of 46 classes occur, 0.0% of the pixels are ignored" in str(result)


def test_chunks_for_other_tools_carry_checksums(model, scenes, counting, tmp_path):
    study, _ = counting
    run_study(model, study, scenes, store=tmp_path / "store")
    (chunk,) = (path for path in (tmp_path / "store" / ZARR / "value" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(tmp_path / "store" / ZARR, consolidated=False, chunks=None)["value"].load()


def test_finished_cells_are_not_measured_again_and_the_result_is_the_same_to_the_bit(model, scenes, counting, tmp_path):
    study, calls = counting
    whole = run_study(model, study, scenes, store=tmp_path / "whole")
    calls.clear()

    def interrupted(subject, unit):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return study.measure(subject, unit)

    with pytest.raises(KeyboardInterrupt):
        run_study(model, replace(study, measure=interrupted), scenes, store=tmp_path / "halves")
    first = list(calls)
    again = run_study(model, study, scenes, store=tmp_path / "halves")
    assert sorted(first + calls[4:]) == sorted(set(calls))
    assert (again.computed, again.reused) == (4, 8)
    xr.testing.assert_identical(whole.dataset, again.dataset)
    assert load_result(tmp_path / "halves").table().equals(whole.table())


def test_a_damaged_cell_is_named_left_out_and_measured_anew(model, scenes, counting, tmp_path):
    study, calls = counting
    whole = run_study(model, study, scenes, store=tmp_path / "store")
    record = next((tmp_path / "store" / "samples").glob("scene-000004*/3, b*"))
    record.write_bytes(record.read_bytes()[:-80])
    found = load_result(tmp_path / "store")
    assert found.images == 1
    assert record.name in found.skipped["scene-000004"]
    assert "1 skipped" in str(found)
    calls.clear()
    warned = []
    result = run_study(model, study, scenes, store=tmp_path / "store", warn=warned.append)
    assert calls == [("scene-000004", 3)]
    assert record.name in warned[0]
    xr.testing.assert_identical(whole.dataset, result.dataset)


def test_a_study_of_its_store_alone_shows_the_same(model, scenes, counting, tmp_path):
    study, _ = counting
    result = run_study(model, study, scenes, store=tmp_path / "store")
    held = stored_study(tmp_path / "store")
    assert (held.identity(), held.question, held.directions) == (study.identity(), study.question, study.directions)
    expected = result.table()
    shutil.rmtree(tmp_path / "store")
    assert result.table().equals(expected)
    with pytest.raises(InputError, match="no run"):
        load_result(tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: replace(study, start=201), "start was 101 there and is 201 now"),
        (lambda study: replace(study, name="other", together=()), "study was counting there"),
        (lambda study: replace(study, config=study.config.change(seed=1)), "seed was 0 there and is 1 now"),
    ],
)
def test_a_store_of_another_study_is_refused_and_kept(model, scenes, counting, tmp_path, change, message):
    study, _ = counting
    run_study(model, study, scenes, store=tmp_path / "store")
    with pytest.raises(InputError, match=message):
        run_study(model, change(study), scenes, store=tmp_path / "store")
    assert load_result(tmp_path / "store").images == 2


def test_bad_studies_are_refused(model, scenes, counting, tmp_path):
    study, _ = counting
    with pytest.raises(InputError, match="no samples"):
        run_study(model, study, scenes[:0], store=tmp_path / "store")
    with pytest.raises(InputError, match="accepted: its axes and measures"):
        replace(study, together=("height",))
    with pytest.raises(InputError, match="no study 'layer'; accepted: layers, feature_timestep, clusters"):
        make_study("layer", model, scenes)


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_reaches_rays_workers(model, scenes, config, name):
    from ray import cloudpickle

    study = make_study(name, model, scenes, config, quick=True)
    _, there = cloudpickle.loads(cloudpickle.dumps((model, StudyJob(study))))
    assert there.identity() == study.identity()


@pytest.fixture(scope="module")
def exact(model, scenes, config, tmp_path_factory):
    """Every study in its small grid on one scene, each run when it is asked for first."""
    made = {}

    def ran(name):
        if name not in made:
            study = make_study(name, model, scenes, config, quick=True)
            made[name] = run_study(model, study, scenes[:1], store=tmp_path_factory.mktemp("exact") / name)
        return made[name]

    return ran


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_measures_every_cell(exact, name):
    result = exact(name)
    study = result.study
    assert result.computed == np.prod(study.shape) == len(result.table())
    for measure, about in study.measures.items():
        values = result.dataset[measure].to_numpy()
        if about.kind == "confusion":
            assert (values.sum((-2, -1)) == 64 * 64).all()
        else:
            assert np.isfinite(values).any(), measure
    assert set(result.verdicts()["verdict"]) <= {"not resolved"}, "one image resolves nothing"
    assert html.escape(study.question) in result._repr_html_()


@pytest.mark.parametrize("name", list(STUDIES))
def test_fast_changes_a_study_or_is_refused(model, scenes, config, exact, tmp_path, name):
    fast = config.change(**FAST)
    if name in NOT_FAST:
        with pytest.raises(InputError, match=f"study {name} .*accepted: .*exact readout"):
            make_study(name, model, scenes, fast, quick=True)
        return
    study = make_study(name, model, scenes, fast, quick=True)
    result = run_study(model, study, scenes[:1], store=tmp_path / name)
    assert study.identity() != exact(name).study.identity()
    shared = [measure for measure in study.measures if measure not in {"bilinear", "relative_strength", "area"}]
    assert any(not result.dataset[measure].equals(exact(name).dataset[measure]) for measure in shared)
    assert ("structure" in exact(name).study.measures) == ("structure" in study.left_out)


@pytest.mark.parametrize("approximations", [{}, FAST], ids=["exact", "fast"])
@pytest.mark.parametrize(
    "name", ["strength", "modulate_at", "placement", "injection", "feature_timestep", "feature_layer", "clusters"]
)
def test_a_cell_at_the_configurations_own_values_is_segment(model, pictures, config, name, approximations):
    own = config.change(clusters=12, **approximations)  # more masks than are decoded at once
    data = pictures["labelled"]
    study = make_study(name, model, data, own, quick=True)
    options = own.options() | {"injection": "all", "feature_sites": "up8.cross0.query", "feature_timesteps": 1}
    subject, unit = Subject(model, data[0], own, study.start), {axis: options[axis] for axis in study.axes}
    assert all(value in study.axes[axis].values for axis, value in unit.items())
    measured = study.measure(subject, unit)[()]
    labels = segment(model, data[0].pixels(), own).labels
    assert np.array_equal(measured["emerdiff"], majority_confusion(labels, data[0].labels, 3, ignore_index=IGNORED))
    assert len(np.unique(labels)) > 4


def test_masks_are_pushed_at_every_timestep_that_the_readout_can_take(model, pictures, config, tmp_path):
    data = pictures["labelled"][:1]
    exact, fast = (make_study("modulate_at", model, data, config.change(**each)) for each in ({}, FAST))
    last = model.schedule(config.inversion.steps).timesteps[-1]
    assert set(exact.axes["modulate_at"].values) - set(fast.axes["modulate_at"].values) == {last}
    assert run_study(model, fast, data, store=tmp_path).images == 1


@pytest.fixture(scope="module")
def stable_diffusion():
    """A Stable Diffusion 1.x of 32 pixels, narrow, with random weights: the probed block has 4 x 4 cells."""
    return load_model(
        tiny.stable_diffusion(
            sample_size=16,
            channels=(16, 16, 32, 32),
            levels=2,
            groups=8,
            heads=8,
            cross_width=32,
            prediction_type="epsilon",
        ),
        device="cpu",
    )


OWN = [
    (name, family, kind)
    for name in ANY_DATA
    for family in ("pocket", "sd1")
    for kind in ("labelled", "bare")
    if (family, kind) != ("sd1", "bare") or name in {"layers", "strength"}  # that pair asks nothing that others do not
]


@pytest.mark.parametrize(("name", "family", "kind"), OWN)
def test_studies_run_on_a_folder_of_ones_own_with_any_model(
    model, stable_diffusion, pictures, tmp_path, name, family, kind
):
    probed, data = model if family == "pocket" else stable_diffusion, pictures[kind]
    config = EmerDiffConfig.for_model(
        probed, clusters=4, steps=5, modulate_at=201, feature_timesteps=1, feature_draws=1
    )
    study = make_study(name, probed, data, config, quick=True)
    result = run_study(probed, study, data, store=tmp_path / "store")
    assert (result.images, result.computed) == (2, 2 * np.prod(study.shape))
    assert ("labels of 3 classes" if kind == "labelled" else "no labels: measured is what needs none") in str(result)
    for measure, about in study.measures.items():
        values = result.dataset[measure].to_numpy()
        if about.kind == "confusion":
            assert (values.sum((-2, -1)) == 48 * 37).all(), "ignored pixels are not counted"
        elif measure != "edges" and name != "locality":
            assert np.isfinite(values).all(), measure
    if kind == "bare" and name != "locality":
        assert set(study.measures) >= {"agreement", "seeds", "edges"}
        assert "clusters is not measured: the data has no labels" in str(result) or name != "layers"
    own = {"feature_timestep": {"feature_timesteps": 1}, "modulate_at": {"modulate_at": 201},
           "injection": {"injection": "all"}, "strength": {"strength": config.modulation.strength}}  # fmt: skip
    if kind == "bare" and name in own:
        assert (result.dataset["agreement"].sel(own[name]) == 1).all(), "with itself every segmentation agrees"
        assert (result.dataset["covering"].sel(own[name]) == 100).all()


def test_video_takes_frames_of_ones_own(model, config, tmp_path):
    for number in range(3):
        Image.fromarray(np.roll(tiny.picture(64, 80), 4 * number, 1)).save(tmp_path / f"{number}.png")
    data = open_data(f"frames:{tmp_path}", side=64)
    study = make_study("video", model, data, config)
    result = run_study(model, study, data, store=tmp_path / "store")
    assert study.axes["frames"].values == (1, 2)
    assert (result.dataset["agreement"].sel(by=video.ANEW) == 1).all(), "with itself every segmentation agrees"
    assert np.isfinite(result.dataset["agreement"]).all()
    assert "kept is not measured: the data has no labels" in str(result)


@pytest.mark.parametrize("name", SCENES_ONLY)
def test_studies_that_draw_scenes_anew_say_so_and_refuse_other_data(model, pictures, config, name):
    for data in pictures.values():
        with pytest.raises(InputError, match=f"study {name} draws scenes anew and needs the world, not FolderDataset"):
            make_study(name, model, data, config)


def test_small_parts_needs_classes(model, pictures, config):
    with pytest.raises(InputError, match="study small_parts needs labels with classes"):
        make_study("small_parts", model, pictures["bare"], config)
    assert "emerdiff" in make_study("small_parts", model, pictures["labelled"], config).measures


def test_a_consensus_is_of_all_cells_however_often_the_study_was_stopped(model, pictures, config, tmp_path):
    study = make_study("layers", model, pictures["bare"], config.change(feature_timesteps=(1, 101)), quick=True)
    assert study.measures["consensus"].kind == "consensus"
    once = run_study(model, study, pictures["bare"], store=tmp_path / "once")
    run_study(model, study, pictures["bare"][:1], store=tmp_path / "twice")
    for record in list((tmp_path / "twice" / "samples").glob("*/*.npz"))[::2]:
        record.unlink()
    again = run_study(model, study, pictures["bare"], store=tmp_path / "twice")
    assert again.reused > 0
    assert again.dataset.equals(once.dataset)
    first, probed = pictures["bare"][0], config.probe(model, pictures["bare"][0].pixels(), start=study.start)
    cells = [(site, timestep) for site in study.axes["site"].values for timestep in study.axes["timestep"].values]
    masks = [probed.low_resolution_masks(find_site(model, site), 3, timestep) for site, timestep in cells]
    shown = [
        float(once.dataset["consensus"].sel(image=first.name, site=site, timestep=timestep)) for site, timestep in cells
    ]
    assert shown == pytest.approx(consensus(masks))
    measure, best = once.find_best()
    assert (measure, set(best)) == ("consensus", {"feature_sites", "feature_timesteps"})


def test_linear_probes_are_fitted_on_other_samples_of_the_same_classes(model, pictures, scenes, config):
    data = pictures["labelled"]
    without = make_study("layers", model, data, config, quick=True)
    assert without.left_out == {"linear_probe": "no labelled samples to fit it on"}
    fitted = make_study("layers", model, data[:1], config, quick=True, fit_on=data[1:])
    assert "linear_probe" in fitted.measures
    with pytest.raises(InputError, match="1 samples are fitted on and measured"):
        make_study("layers", model, data, config, quick=True, fit_on=data[1:])
    with pytest.raises(InputError, match="fitted on classes of"):
        make_study("layers", model, data, config, quick=True, fit_on=scenes)


def test_a_linear_probe_is_as_right_as_its_predictions(model, scenes, config):
    probes = features._LinearProbes(model, config, [find_site(model, "up8.cross0.query")], scenes)
    probes.fitted[1, "up8.cross0.query"] = type("Always", (), {"predict": lambda self, cells: np.zeros(len(cells))})()
    site, labels = probes.sites[0], np.array([0, 0, 0, 2, IGNORED])
    assert probes.accuracy(site, 1, np.zeros((5, 2)), labels) == 75
    assert np.isnan(probes.accuracy(site, 1, np.zeros((1, 2)), np.array([IGNORED])))


def test_the_label_of_a_cell_is_its_most_frequent_one_that_counts():
    labels = np.array([[0, 1, IGNORED, IGNORED], [1, 1, IGNORED, 2]])
    assert features.majority_label(labels, (1, 2)).tolist() == [1, 2]
    assert features.majority_label(np.full((2, 2), IGNORED), (1, 1)).tolist() == [IGNORED]


def test_scores_of_segments_are_known_by_hand():
    drawn = np.array([[0, 0, 1, 1]] * 4)
    half = np.array([[0, 0, 0, 1]] * 4)
    sample = Sample("x", np.zeros((16, 16, 3), np.uint8), drawn, "x")
    classes, regions, bare = Truth(("a", "b"), True), Truth((), True), Truth((), False)
    assert mean_iou(classes.measure_score("emerdiff", drawn, sample)["emerdiff"]) == 1
    assert mean_iou(classes.measure_score("emerdiff", half, sample)["emerdiff"]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert regions.measure_score("emerdiff", half, sample) == {"emerdiff": pytest.approx(100 * (2 / 3 + 1 / 2) / 2)}
    two = replace(sample, labels=np.stack([drawn, half]))
    both = regions.measure_score("emerdiff", half, two)["emerdiff"]
    assert both == pytest.approx((100 + 100 * (2 / 3 + 1 / 2) / 2) / 2)
    assert regions.measure_boundaries(drawn, sample) == {"boundary": 100}
    assert bare.measure_score("emerdiff", half, sample) == bare.measure_boundaries(half, sample) == {}


def test_measures_without_labels_are_known_by_hand():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    half, off = (np.arange(64)[None].repeat(64, 0) >= column for column in (32, 42))
    assert edge_distance(half.astype(int), picture) <= 1
    assert edge_distance(off.astype(int), picture) == pytest.approx(10, abs=1)
    assert np.isnan(edge_distance(np.zeros((64, 64), int), picture))
    assert np.isnan(edge_distance(half.astype(int), np.zeros_like(picture)))
    values = Truth((), False).measure_alone(half.astype(int), picture, lambda: 1 - half, lambda: half.T.astype(int))
    assert (values["agreement"], values["covering"]) == (1, 100)
    assert values["seeds"] == pytest.approx(0, abs=0.01), "halves across each other agree by chance"
    assert Truth(("a",), True).measure_alone(half, picture, None, None) == {}


def test_what_is_unchanged_is_found_again_by_every_measure(model, scenes, config, monkeypatch):
    monkeypatch.setattr(appearance, "counterfactual_pair", lambda seed, factor, **_: (scenes[0].scene,) * 2)
    study = make_study("counterfactual", model, scenes, config, quick=True)
    found = study.measure(Subject(model, scenes[0], config, study.start), {})[("palette",)]
    assert [found[name] for name in ("same_part", "same_place")] == [100, 100]
    assert (found["clusters"], found["maps"]) == (1, pytest.approx(1))
    same = [np.mean(parts == features.majority_label(scenes[0].scene.parts, (8, 8)))
            for parts in features.majority_label(scenes[0].scene.parts, (8, 8))]  # fmt: skip
    assert found["same_part_by_chance"] == pytest.approx(100 * np.mean(same))


def test_a_clip_that_stands_still_keeps_everything(model, scenes, config, monkeypatch):
    monkeypatch.setattr(video, "draw_clip", lambda seed, frames, **_: [scenes[0].scene] * frames)
    study = make_study("video", model, scenes, config, quick=True)
    found = study.measure(Subject(model, scenes[0], config, study.start), {"motion": "camera"})
    assert found[1, "place"]["kept"] == pytest.approx(100)
    assert [found[1, carrier]["same_part"] for carrier in ("feature", "place")] == [100, 100]
    assert np.array_equal(found[1, "place"]["emerdiff"], found[1, video.ANEW]["emerdiff"])


@pytest.mark.parametrize("kind", ["world", "labelled", "bare"])
def test_an_even_response_is_as_dense_everywhere_and_one_inside_is_inside(
    model, scenes, pictures, config, monkeypatch, kind
):
    data = scenes if kind == "world" else pictures[kind]

    def even(model, trajectory, masks, modulation):
        return torch.ones(len(masks), 64, 64)

    def inside(model, trajectory, masks, modulation):
        return torch.from_numpy(np.kron(masks.numpy(), np.ones((8, 8), np.float32)))

    study = make_study("locality", model, data, config, quick=True)
    for maps, density in ((even, 1.0), (inside, None)):
        monkeypatch.setattr(responses, "difference_maps", maps)
        square = replace(data[0], image=tiny.picture(), labels=None if kind == "bare" else np.eye(64, dtype=np.int32))
        found = study.measure(Subject(model, square, config, study.start), {"mask": "cell"})
        assert sum(values["area"] for values in found.values()) == pytest.approx(100)
        assert sum(values["response"] for values in found.values()) == pytest.approx(100)
        assert found[("inside",)]["area"] == pytest.approx(100 / 64)
        if density is None:
            assert found[("inside",)]["response"] == pytest.approx(100)
            assert found[("inside",)]["density"] == pytest.approx(64)
        else:
            assert all(np.isnan(values["density"]) or values["density"] == pytest.approx(density)
                       for values in found.values())  # fmt: skip


def test_regions_of_labels_are_connected_parts_of_one_class():
    labels = np.array([[0, 0, 1], [1, 1, 0], [IGNORED, 1, 0]])
    classes, things = responses.regions_of(Sample("x", np.zeros((3, 3, 3)), labels, "x"))
    assert np.array_equal(classes, labels)
    assert things[2, 0] == 0
    assert len(np.unique(things[labels == 0])) == 2, "the zeros touch at a corner only"
    assert len(np.unique(things[labels == 1])) == 2
    assert things[0, 2] != things[1, 1]
    assert responses.regions_of(Sample("x", np.zeros((3, 3, 3)), None, "x")) is None


def test_twice_the_strength_is_twice_as_strong_relatively_and_alone_adds_up(exact):
    table = exact("strength").table(["relative_strength"])
    ratios = table["relative_strength"] / table["strength"]
    assert ratios.to_numpy() == pytest.approx(ratios[0])


def test_full_grids_hold_the_quick_ones_questions(model, scenes, config):
    for name in STUDIES:
        full, quick = make_study(name, model, scenes, config), make_study(name, model, scenes, config, quick=True)
        assert list(full.axes) == list(quick.axes)
        for axis, about in quick.axes.items():
            assert set(about.values) <= set(full.axes[axis].values), (name, axis)


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_quick_study_and_the_full_one_share_no_cells(model, scenes, config, name):
    full, quick = make_study(name, model, scenes, config), make_study(name, model, scenes, config, quick=True)
    assert full.identity() != quick.identity()


def test_the_quick_placement_answers_which_layer(model, scenes, config):
    study = make_study("placement", model, scenes, config, quick=True)
    assert study.shape == (3, 2, 1)
    assert len(study.directions) == 3


@pytest.mark.parametrize(
    ("interval", "within", "expected"),
    [
        ((1, 0.5, 2), None, "agrees"),
        ((1, -0.5, 2), None, "not resolved"),
        ((-1, -2, -0.5), None, "disagrees"),
        ((0, -1, 1), 2.0, "agrees"),
        ((0, -3, 1), 2.0, "not resolved"),
        ((5, 3, 7), 2.0, "disagrees"),
    ],
)
def test_verdicts_come_from_intervals(interval, within, expected):
    direction = Direction("claim", "value", {}, {}, within)
    assert verdict(direction, Interval(*interval), 5) == expected
    assert verdict(direction, Interval(*interval), 4) == "not resolved"
    assert verdict(replace(direction, comparable=False), Interval(*interval), 5) == "not comparable"


def made_of(first, second, config, tmp_path, **settings):
    """A result whose measure "value" is as given, one number an image, at the places "a" and "b"."""
    study = Study(
        name="made",
        question="How much?",
        axes={"way": Axis(("a", "b"))},
        measures={"value": Measure("a value"), "hits": Measure("hits", "%", "confusion")},
        config=config,
        measure=lambda *_: {},
        directions=(Direction("a is more", "value", {"way": "a"}, {"way": "b"}, **settings),
                    Direction("a hits more", "hits", {"way": "a"}, {"way": "b"})),
    )  # fmt: skip
    hits = np.broadcast_to(np.eye(46), (len(first), 2, 46, 46)).copy()
    arrays = {
        "value": (("image", "way"), np.stack([first, second], 1)),
        "hits": (("image", "way", "true_class", "assigned_class"), hits),
    }
    return StudyResult(study, xr.Dataset(arrays, {"way": ["a", "b"], "image": range(len(first))}), tmp_path)


def test_differences_are_of_the_same_images_where_values_are_missing(config, tmp_path):
    base = np.linspace(0, 10, 12)
    first = np.where(base > 5, np.nan, base + 1)  # one more on every image, but known on the low ones only
    result = made_of(first, base, config, tmp_path)
    assert result.difference("value", {"way": "a"}, {"way": "b"}) == pytest.approx((1, 1, 1))
    verdicts = result.verdicts().set_index("claim")
    assert verdicts.loc["a is more", "verdict"] == "agrees"
    assert verdicts["images"].to_dict() == {"a is more": 6, "a hits more": 12}


def test_differences_are_of_the_same_cells_where_axes_are_averaged_over(config, tmp_path):
    result = made_of(np.zeros(6), np.zeros(6), config, tmp_path)
    values = np.linspace(0, 10, 6)[:, None, None] + np.array([[1.0, 101.0], [0.0, 100.0]])
    values[:3, 0, 0] = np.nan
    study = replace(result.study, axes={"way": result.study.axes["way"], "speed": Axis((1, 2))}, directions=())
    dataset = xr.Dataset({"value": (("image", "way", "speed"), values)}, {"way": ["a", "b"], "speed": [1, 2]})
    found = StudyResult(study, dataset, tmp_path).difference("value", {"way": "a"}, {"way": "b"})
    assert found == pytest.approx((1, 1, 1))


def test_draws_without_a_finite_image_leave_the_interval_finite(config, tmp_path):
    first = np.full(20, np.nan)
    first[:2] = 2, 3  # one draw in eight holds neither
    result = made_of(first, np.zeros(20), config, tmp_path)
    assert result.interval("value", {"way": "a"}) == pytest.approx((2.5, 2, 3))
    assert result.difference("value", {"way": "a"}, {"way": "b"}) == pytest.approx((2.5, 2, 3))
    assert np.isnan(made_of(np.full(6, np.nan), np.zeros(6), config, tmp_path).interval("value", {"way": "a"})).all()


def test_only_images_with_both_values_count_towards_a_verdict(config, tmp_path):
    for known, expected in ((4, "not resolved"), (5, "agrees")):
        first = np.where(np.arange(20) < known, 1.0, np.nan)
        assert made_of(first, np.zeros(20), config, tmp_path).verdicts()["verdict"][0] == expected


def test_verdicts_on_miou_name_their_protocol_and_the_papers(config, tmp_path):
    verdicts = made_of(np.ones(6), np.zeros(6), config, tmp_path).verdicts()
    assert verdicts["protocol"].tolist() == ["", PROTOCOL]


def test_what_rises_with_the_number_of_masks_by_construction_gets_no_verdict(model, scenes, config, tmp_path):
    claims = features.clusters(model, scenes, config).directions
    assert claims
    assert not any(direction.comparable for direction in claims)
    result = made_of(np.ones(6), np.zeros(6), config, tmp_path, within=2.0, comparable=False)
    assert result.verdicts()["verdict"][0] == "not comparable"


def test_position_and_colour_explain_what_is_made_of_them():
    rng = np.random.default_rng(0)
    position = features.position_of((8, 8))
    assert features.explained(position @ rng.normal(size=(5, 7)), position) == pytest.approx(1)


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("predictors", [3, 5])
def test_position_and_colour_explain_nothing_of_noise_on_any_grid(side, predictors):
    rng = np.random.default_rng(0)
    cells = side * side
    given = features.position_of((side, side)) if predictors == 5 else rng.random((cells, predictors))
    found = [features.explained(rng.normal(size=(cells, 64)), given) for _ in range(20)]
    assert np.mean(found) == pytest.approx(0, abs=0.02)


def test_too_few_cells_explain_nothing_that_could_be_told():
    assert np.isnan(features.explained(np.random.default_rng(0).normal(size=(4, 7)), features.position_of((2, 2))))


def test_cells_hold_their_own_pixels():
    image = np.arange(16).reshape(4, 4)
    assert features.by_cell(image, (2, 2)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert features.by_cell(np.zeros((7, 7, 3)), (2, 3)).shape == (6, 6, 3)


def test_shares_of_a_response_sum_to_one_and_follow_it():
    scene = draw_scene(5, height=64, width=64)
    regions = scene.parts.astype(int), scene.instances.astype(int)
    mask = np.zeros((8, 8))
    mask[6:, 2:6] = 1
    even = responses.shares_of(np.ones((64, 64)), mask, regions)
    assert even.sum(0) == pytest.approx(1)
    assert even[:, 0] == pytest.approx(even[:, 1])
    inside = np.kron(mask, np.ones((8, 8)))
    assert responses.shares_of(inside, mask, regions)[0, 0] == pytest.approx(1)


def test_places_are_known_by_hand():
    mask = np.zeros((4, 4))
    mask[0, 0] = 1
    classes = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2], [0, 0, 2, 2]]).repeat(2, 0).repeat(2, 1)
    things = np.array([[1, 1, 2, 2], [2, 2, 2, 2], [1, 1, 1, 1], [3, 3, 1, 1]]).repeat(2, 0).repeat(2, 1)
    shares = responses.shares_of(np.ones((8, 8)), mask, (classes, things))[:, 1]
    cells = dict(zip(responses.PLACES, shares * 16, strict=True))
    assert cells == pytest.approx({"inside": 1, "same part": 1, "same object": 6, "same class elsewhere": 2,
                                   "nearby": 1.25, "elsewhere": 4.75})  # fmt: skip


def test_agreement_is_perfect_for_equal_responses_only():
    response = torch.randn(3, 8, 8)
    assert responses.agreement(response, response) == pytest.approx((1, 0), abs=1e-6)
    assert responses.agreement(response, -response) == pytest.approx((-1, 2), abs=1e-6)


def test_every_colour_is_nearest_to_itself_however_close_the_others_are():
    sky = 200 + 0.001 * np.arange(256)[:, None] * np.ones(3)
    order = np.random.default_rng(0).permutation(256)
    assert np.array_equal(appearance.nearest_colour(sky[order], sky), order)


def test_reclustering_splits_every_mask_and_mixes_none():
    coarse = np.repeat([0, 0, 1, 2], 4).reshape(4, 4)
    coarse[3, 1:] = 1
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 5)))
    finer = appearance.reclustered(points, coarse)
    assert len(np.unique(finer)) == 5
    for label in np.unique(finer):
        assert len(np.unique(coarse[finer == label])) == 1


def test_recall_by_area_of_the_truth_itself_is_one():
    scene = draw_scene(5, height=64, width=64)
    recalls = appearance.recall_by_area(scene.parts, scene.parts, 64)
    assert sum(count for _, count in recalls.values()) > 3
    assert all(recall == 1 for recall, count in recalls.values() if count)
    blank = appearance.recall_by_area(np.zeros_like(scene.parts), scene.parts, 64)
    assert min(recall for recall, count in blank.values() if count) == 0


def test_structure_of_the_image_itself_is_one(model, trajectory):
    reference = model.decode(trajectory.final)[0]
    assert modulation.structures(reference[None], reference) == [pytest.approx(1)]
    assert modulation.structures(torch.zeros_like(reference)[None], reference)[0] < 0.9


def test_recall_is_known_by_hand():
    truth = np.zeros((4, 8), int)
    truth[:, 6:] = 1
    truth[0, 0] = IGNORED
    labels = np.zeros((4, 8), int)
    labels[2:, 6:] = 1
    recalls = appearance.recall_by_area(labels, truth, 4)
    assert recalls["1 to 4"] == (pytest.approx(0.5), 1), "half of the 8 pixels of class 1 lie in a segment of theirs"
    assert recalls["4 to 16"] == (1.0, 1)


def test_the_interval_of_an_miou_lies_within_its_range(config, tmp_path):
    hits = np.zeros((6, 46, 46))
    hits[:, 0, 0] = 100
    hits[0, 1, 0] = 400
    result = made_of(np.ones(6), np.zeros(6), config, tmp_path)
    result.dataset["hits"].values[:] = hits[:, None]
    found = result.interval("hits", {"way": "a"})
    assert 0 <= found.low <= found.value <= found.high <= 100


def test_a_result_without_images_is_an_error(model, counting, scenes, tmp_path):
    study, _ = counting

    def broken(subject, unit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(model, replace(study, measure=broken), scenes, store=tmp_path / "store")
    with pytest.raises(InputError, match="no sample is complete"):
        load_result(tmp_path / "store")
    assert isinstance(run_study(model, study, scenes, store=tmp_path / "store"), StudyResult)
