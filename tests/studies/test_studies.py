"""Studies: resumed halves equal one run, and measurements mean what they say."""

import html
import shutil
from dataclasses import replace

import numpy as np
import pytest
import ray
import tiny
import torch
import xarray as xr
import zarr

from emerdiff_probe.errors import InputError
from emerdiff_probe.interventions import attention_part
from emerdiff_probe.metrics.intervals import Interval
from emerdiff_probe.pocket.world import Factors, draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.correspondence import Modulation
from emerdiff_probe.reading.features import capture_replayed
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.sites import find_site
from emerdiff_probe.studies import appearance, features, modulation, responses
from emerdiff_probe.studies.catalogue import STUDIES, make_study
from emerdiff_probe.studies.execution import equal_share
from emerdiff_probe.studies.run import PROTOCOL, StudyResult, load_result, run_study, verdict, world_scenes
from emerdiff_probe.studies.store import open_study
from emerdiff_probe.studies.study import Axis, Direction, Measure, Study


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
def scenes(model):
    return world_scenes(model, 2, seed=3)


@pytest.fixture
def counting(config):
    """A study whose values are told by scene and cell, and a list of the units that were measured."""
    calls = []

    def measure(probed, scene, unit):
        calls.append((scene.seed, unit["speed"]))
        noise = float(probed.trajectory.latents.mean())
        return {
            (way,): {"value": unit["speed"] + scene.seed + noise, "confusion": np.eye(46, dtype=int)} for way in "ab"
        }

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


def test_a_study_gives_a_dataset_with_coordinates_units_and_where_it_comes_from(model, scenes, counting, tmp_path):
    study, calls = counting
    result = run_study(model, study, scenes, store=tmp_path / "store")
    dataset = xr.open_zarr(tmp_path / "store", consolidated=False)
    assert dataset["value"].dims == ("image", "speed", "way")
    assert dataset["image"].to_numpy().tolist() == [3, 4]
    assert dataset["way"].to_numpy().tolist() == ["a", "b"]
    assert dataset["value"].attrs["units"] == "m/s"
    assert model.fingerprint in dataset.attrs["identity"]
    assert "torch" in dataset.attrs["versions"]
    assert (result.computed, result.reused) == (12, 0)
    assert len(calls) == 6
    assert result.dataset["confusion"].shape == (2, 3, 2, 46, 46)
    assert result.interval("confusion", {"speed": 1}).value == 100


def test_finished_cells_are_not_measured_again_and_the_result_is_the_same_to_the_bit(model, scenes, counting, tmp_path):
    study, calls = counting
    whole = run_study(model, study, scenes, store=tmp_path / "whole")
    calls.clear()
    stop = 4

    def interrupted(probed, scene, unit):
        if len(calls) == stop:
            raise KeyboardInterrupt
        return study.measure(probed, scene, unit)

    with pytest.raises(KeyboardInterrupt):
        run_study(model, replace(study, measure=interrupted), scenes, store=tmp_path / "halves")
    first = list(calls)
    again = run_study(model, study, scenes, store=tmp_path / "halves")
    assert len(first) == stop
    assert sorted(first + calls[stop:]) == sorted(set(calls))
    assert (again.computed, again.reused) == (4, 8)
    xr.testing.assert_identical(whole.dataset, again.dataset)
    third = run_study(model, study, scenes, store=tmp_path / "halves")
    assert (third.computed, third.reused) == (0, 12)


def test_workers_of_ray_measure_the_same_to_the_bit(model, scenes, config, tmp_path):
    study = make_study("strength", model, config, quick=True)
    torch.set_num_threads(1)  # Ray gives a worker as many as processors
    here = run_study(model, study, scenes, store=tmp_path / "here")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        shared = run_study(model, study, scenes, store=tmp_path / "shared", workers=2)
        again = run_study(model, study, scenes, store=tmp_path / "shared", workers=2)
        with pytest.raises(InputError, match="3 workers; accepted: a processor for each, on this cluster up to 2"):
            run_study(model, study, scenes, store=tmp_path / "crowded", workers=3)
    finally:
        ray.shutdown()
    xr.testing.assert_identical(here.dataset.drop_attrs(), shared.dataset.drop_attrs())
    assert shared.computed == here.computed > 0
    assert (again.computed, again.reused) == (0, here.computed)


def test_workers_are_counted_and_need_ray(model, scenes, counting, tmp_path, monkeypatch):
    study, calls = counting
    with pytest.raises(InputError, match="0 workers"):
        run_study(model, study, scenes, store=tmp_path / "none", workers=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'emerdiff_probe\[ray\]'"):
        run_study(model, study, scenes, store=tmp_path / "none", workers=2)
    assert not calls


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


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_reaches_rays_workers(model, config, name):
    study = make_study(name, model, config, quick=True)
    _, there = ray.cloudpickle.loads(ray.cloudpickle.dumps((model, study)))
    assert there.identity() == study.identity()


def test_a_cell_that_was_cut_off_while_writing_is_measured_again(model, scenes, counting, tmp_path):
    study, calls = counting
    run_study(model, study, scenes, store=tmp_path / "store")
    group = zarr.open_group(tmp_path / "store", mode="r+")
    group["done"][1, 2, 1] = 0
    calls.clear()
    result = run_study(model, study, scenes, store=tmp_path / "store")
    assert calls == [(4, 3)]
    assert (result.computed, result.reused) == (1, 11)


def test_more_images_extend_a_store_and_fewer_read_a_part(model, scenes, counting, tmp_path):
    study, calls = counting
    run_study(model, study, scenes, store=tmp_path / "store")
    calls.clear()
    more = run_study(model, study, world_scenes(model, 3, seed=3), store=tmp_path / "store")
    assert {seed for seed, _ in calls} == {5}
    assert more.images == 3
    fewer = run_study(model, study, scenes[:1], store=tmp_path / "store")
    assert (fewer.images, fewer.computed, fewer.reused) == (1, 0, 6)
    assert load_result(study, tmp_path / "store").images == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: replace(study, start=201), "start was 101 there and is 201 now"),
        (lambda study: replace(study, name="other", together=()), "study was counting there"),
        (lambda study: replace(study, config=study.config.change(seed=1)), "configuration was"),
    ],
)
def test_a_store_of_another_study_is_refused_and_kept(model, scenes, counting, tmp_path, change, message):
    study, _ = counting
    run_study(model, study, scenes, store=tmp_path / "store")
    with pytest.raises(InputError, match=message):
        run_study(model, change(study), scenes, store=tmp_path / "store")
    assert load_result(study, tmp_path / "store").images == 2


def test_cells_of_another_image_of_the_same_seed_are_not_used(model, counting, tmp_path):
    study, calls = counting
    plain = [draw_scene(seed, height=64, width=64) for seed in (3, 4)]
    run_study(model, study, plain, store=tmp_path / "store")
    calls.clear()
    painted = [plain[0], draw_scene(4, height=64, width=64, factors=Factors(style="sketch"))]
    renamed = [plain[0], replace(plain[1], parts=np.zeros_like(plain[1].parts))]
    for other in (painted, renamed):
        with pytest.raises(InputError, match=r"images of seeds \[4\] had other pixels or another truth"):
            run_study(model, study, other, store=tmp_path / "store")
    assert not calls
    assert run_study(model, study, plain, store=tmp_path / "store").reused == 12


def test_a_result_holds_its_numbers_itself(model, scenes, counting, tmp_path):
    study, _ = counting
    ran = run_study(model, study, scenes, store=tmp_path / "store")
    read, expected = load_result(study, tmp_path / "store"), ran.table()
    shutil.rmtree(tmp_path / "store")
    assert ran.table().equals(expected)
    assert read.table().equals(expected)


def test_bad_stores_and_images_are_refused(model, scenes, counting, tmp_path):
    study, _ = counting
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no study"):
        run_study(model, study, scenes, store=tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="no images"):
        run_study(model, study, [], store=tmp_path / "store")
    run_study(model, study, scenes, store=tmp_path / "store")
    with pytest.raises(InputError, match="images of seeds"):
        run_study(model, study, world_scenes(model, 2, seed=9), store=tmp_path / "store")
    with pytest.raises(InputError, match="without resume"):
        run_study(model, study, scenes, store=tmp_path / "store", resume=False)
    with pytest.raises(InputError, match="no stored study"):
        open_study(tmp_path / "nowhere")
    with pytest.raises(InputError, match="accepted: its axes and measures"):
        replace(study, together=("height",))


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_measures_every_cell(model, scenes, config, tmp_path, name):
    study = make_study(name, model, config, quick=True)
    result = run_study(model, study, scenes[:1], store=tmp_path / name)
    assert result.computed == np.prod(study.shape)
    for measure, about in study.measures.items():
        values = result.dataset[measure].to_numpy()
        if about.kind == "confusion":
            assert (values.sum((-2, -1)) == 64 * 64).all()
        else:
            assert np.isfinite(values).any(), measure
    assert len(result.table()) == np.prod(study.shape)
    assert set(result.verdicts()["verdict"]) <= {"not resolved"}, "one image resolves nothing"
    assert html.escape(study.question) in result._repr_html_()


def test_full_grids_hold_the_quick_ones_questions(model, config):
    for name in STUDIES:
        full, quick = make_study(name, model, config), make_study(name, model, config, quick=True)
        assert list(full.axes) == list(quick.axes)
        for axis, about in quick.axes.items():
            assert set(about.values) <= set(full.axes[axis].values), (name, axis)


@pytest.mark.parametrize("name", list(STUDIES))
def test_a_quick_study_and_the_full_one_share_no_cells(model, config, name):
    full, quick = make_study(name, model, config), make_study(name, model, config, quick=True)
    assert full.identity() != quick.identity()


def test_the_quick_placement_answers_which_layer(model, config):
    study = make_study("placement", model, config, quick=True)
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
    hits = np.broadcast_to(np.eye(46), (len(first), 2, 46, 46))
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


def test_what_rises_with_the_number_of_masks_by_construction_gets_no_verdict(model, config, tmp_path):
    claims = features.clusters(model, config).directions
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
    mask = np.zeros((8, 8))
    mask[6:, 2:6] = 1
    even = responses.shares_of(np.ones((64, 64)), mask, scene)
    assert even.sum(0) == pytest.approx(1)
    assert even[:, 0] == pytest.approx(even[:, 1])
    inside = np.kron(mask, np.ones((8, 8)))
    assert responses.shares_of(inside, mask, scene)[0, 0] == pytest.approx(1)


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
    recalls = appearance.recall_by_area(scene.parts, scene, 64)
    assert sum(count for _, count in recalls.values()) > 3
    assert all(recall == 1 for recall, count in recalls.values() if count)
    blank = appearance.recall_by_area(np.zeros_like(scene.parts), scene, 64)
    assert min(recall for recall, count in blank.values() if count) == 0


def test_structure_of_the_image_itself_is_one(model, trajectory):
    reference = model.decode(trajectory.final)[0]
    assert modulation.structure(reference[None], reference) == pytest.approx(1)
    assert modulation.structure(torch.zeros_like(reference)[None], reference) < 0.9


def test_an_unknown_study_lists_the_known_ones(model):
    with pytest.raises(InputError, match="layers, feature_timestep, clusters"):
        make_study("layer", model)


def test_a_result_without_images_is_an_error(model, counting, scenes, tmp_path):
    study, _ = counting

    def broken(probed, scene, unit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(model, replace(study, measure=broken), scenes, store=tmp_path / "store")
    with pytest.raises(InputError, match="no image is complete"):
        load_result(study, tmp_path / "store")
    assert isinstance(run_study(model, study, scenes, store=tmp_path / "store"), StudyResult)


@pytest.mark.parametrize("placement", ["after", "before"])
def test_the_relative_strength_is_of_the_activation_that_the_offset_is_added_to(model, placement):
    """Seen at the layer while it is modulated: |x + offset - x| over the mean of |x|; not of means over draws."""
    probed = ProbedImage(model, tiny.picture(), start=301, steps=10, draws=8)
    layer = find_site(model, "up8.cross2.output")
    site = attention_part(model, layer, "output" if placement == "after" else "heads")
    modulated = Modulation(layer, 3.0, 301, placement)
    variants = [[], modulated.variant(torch.ones(8, 8), 1.0)]
    plain, pushed = capture_replayed(model, probed.trajectory, variants, [site], [301], steps=1)[site, 301]
    expected = (pushed - plain).norm(dim=1).mean() / plain.norm(dim=1).mean()
    assert modulation.relative_strength(probed, modulated) == pytest.approx(float(expected), rel=2e-5)
    averaged = probed.features(site, 301).norm(dim=1).mean()
    assert abs(float(averaged / plain.norm(dim=1).mean()) - 1) > 1e-4  # five times what would pass
