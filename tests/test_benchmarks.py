"""Benchmarks: the yardstick is the method that it measures, counts are right, and tables say what was stored."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

from benchmarks import (
    atlas,
    ceilings,
    criteria,
    fast_modes,
    features,
    growth,
    ideas,
    many_pictures,
    merging,
    pocket_quality,
    sharpening,
)
from benchmarks.emerdiff import MODES, Setup, agreement, rows_of, run
from benchmarks.hooks import Ways, largest_differences
from benchmarks.reference import Paper, Reference
from benchmarks.rounds import beside_the_first, seconds_of
from emerdiff_probe.calibration.criteria import CRITERION
from emerdiff_probe.calibration.result import Calibration
from emerdiff_probe.calibration.space import Space
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
from emerdiff_probe.methods.catalogue import METHODS, configure, find_method
from emerdiff_probe.metrics.overlaps import majority_confusion
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.pocket.world import PART_NAMES, draw_scene
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import DRAFT, FAST, POCKET

STEPS = 6
"""501, 401, 301, 201, 101, 1 of the grid of ten."""
OWN_STEPS = len(range(1, 1 + POCKET["modulate_at"], 50))
"""601, 551 … 51, 1 of the pocket model's own grid of twenty."""
DRAWS = POCKET["feature_draws"] * len(POCKET["feature_timesteps"])


def fast_steps(steps):
    """Those of the fast mode: the first ones, then every second, and the last."""
    return FAST["skip_after"] + len(range(FAST["skip_after"], steps - 1, 2)) + 1


OWN_FAST_STEPS = fast_steps(OWN_STEPS)


@pytest.fixture(scope="module")
def setup(folder):
    return Setup(str(folder), "cpu", "float32", None, scene=0, steps=10, modulate_at=501)


@pytest.fixture(scope="module")
def runs(setup):
    """The reference and the library, three masks, counted."""
    return {mode: run(setup, mode, 3, counting=True) for mode in MODES}


def test_the_library_gives_what_the_paper_written_plainly_gives(runs):
    found = agreement(runs["exact"], runs["reference"])
    assert found["same_low_resolution_masks"]
    assert found["max_relative_difference"] < 1e-3
    assert found["label_agreement"] > 0.999  # a pixel between two masks may go either way by rounding
    assert runs["reference"].maps.max() > 1e-3
    assert len(np.unique(runs["reference"].labels)) == 3


def test_the_yardstick_asks_as_often_as_the_paper_and_the_library_less(runs):
    assert runs["reference"].rows == runs["reference"].calls == 10 + STEPS * (1 + 2 * 3)
    assert (runs["exact"].rows, runs["exact"].calls) == (1 + STEPS * (1 + 2 * 3), 1 + STEPS)
    assert runs["fast"].rows == 1 + fast_steps(STEPS) * (1 + 3)
    assert runs["draft"].rows == 1 + DRAFT["denoising_steps"] * (1 + 3)
    assert runs["reference"].flop > runs["exact"].flop > runs["fast"].flop > runs["draft"].flop > 0


def test_a_user_gets_the_models_own_settings(setup):
    one = run(replace(setup, own=True), "draft", 3, counting=False)
    assert one.rows == DRAWS + DRAFT["denoising_steps"] * (1 + 3)


def test_rows_of_the_table_are_ratios_to_the_yardstick(setup, runs):
    exact, *others = rows_of(setup, 3, {mode: [one, one] for mode, one in runs.items()})
    assert [row["mode"] for row in (exact, *others)] == ["exact", "fast", "draft"]
    assert exact["speedup"] == pytest.approx(runs["reference"].seconds / runs["exact"].seconds, rel=1e-2)
    assert exact["miou_ratio"] == pytest.approx(1, abs=0.01)


def test_the_yardstick_puts_the_pipelines_own_processors_back(folder):
    model = load_model(folder, device="cpu")
    model.pipeline.scheduler = model.scheduler
    before = model.denoiser.attn_processors
    paper = Paper(clusters=2, block="no.such.block", steps=10, modulate_at=301)
    with pytest.raises(AttributeError):
        Reference(model.pipeline, paper).segment(torch.zeros(1, 3, 64, 64))
    assert all(model.denoiser.attn_processors[name] is processor for name, processor in before.items())


def test_every_fast_mode_is_a_configuration_and_the_first_is_exact():
    configs = {name: EmerDiffConfig().change(**switches) for name, switches in fast_modes.all_modes().items()}
    assert next(iter(configs)) == fast_modes.EXACT
    assert configs[fast_modes.EXACT] == EmerDiffConfig()
    assert len(set(configs.values())) == len(configs)
    with pytest.raises(InputError, match="accepted: exact"):
        fast_modes.some_modes("3 steps; warp")
    assert list(fast_modes.some_modes("3 steps")) == ["exact", "exact, not sharpened", "masks alone", "3 steps"]
    front = fast_modes.some_modes("")
    assert {
        "skipping, one-sided latents, 1 shared level",
        "2 steps, one-sided latents, 1 shared level, 4 draws",
    } <= set(front)
    switches = [EmerDiffConfig().change(**{"sign_patterns": "auto", **options}) for options in front.values()]
    assert all(EmerDiffConfig().change(**mode) in switches for mode in (FAST, DRAFT))


def test_finished_scenes_are_not_measured_again(model, tmp_path, monkeypatch):
    config = EmerDiffConfig.for_model(model, clusters=2, modulate_at=101, steps=10)
    modes = {"exact": config}
    first = fast_modes.measure(model, range(1), modes, tmp_path)
    asked = []
    score = fast_modes.score
    monkeypatch.setattr(fast_modes, "score", lambda *given: asked.append(given[1]) or score(*given))
    second = fast_modes.measure(model, range(2), modes, tmp_path)
    assert asked == [1]
    assert all(np.array_equal(first["exact"][0][name], second["exact"][0][name]) for name in first["exact"][0])


def test_masks_alone_are_those_of_the_exact_mode_sharpened_without_a_push(model, tmp_path):
    config = EmerDiffConfig.for_model(model, clusters=3, modulate_at=101, steps=10)
    modes = {"exact": config, "exact, not sharpened": config.change(sharpen="none"), "masks alone": config}
    (alone,) = fast_modes.measure(model, range(1), modes, tmp_path)["masks alone"]
    scene = draw_scene(0)
    bilinear = configure(find_method("bilinear + wls"), config)
    labels = bilinear.segment(config.probe(model, scene.image), 3)
    assert np.array_equal(alone["confusion"], majority_confusion(labels, scene.parts, len(PART_NAMES)))
    assert alone["modulate"] == 0


def test_the_front_holds_what_nothing_faster_equals():
    def scenes(hits, seconds):
        """Scenes of two classes, of which so many pixels of a hundred are right."""
        confusion = np.array([[hits, 100 - hits], [100 - hits, hits]])
        return [{"confusion": confusion, "seconds": np.array(seconds), "modulate": np.array(seconds)}] * 3

    modes = {
        "exact": (90, 8.0),
        "good": (89.5, 2.0),
        "bad": (60, 4.0),
        "quick": (70, 1.0),
        "exact, not sharpened": (68, 8.0),  # this and the next are no modes, whatever they are worth
        "masks alone": (92, 0.5),
    }
    table = fast_modes.report({name: scenes(*mode) for name, mode in modes.items()})
    assert fast_modes.choose(table) == {"fast": "good", "draft": "quick"}
    assert fast_modes.choose(table[table["mode"] == "bad"]) == {"fast": None, "draft": None}
    table = table.set_index("mode")
    assert list(table.index) == ["masks alone", "quick", "good", "bad", "exact", "exact, not sharpened"]
    assert table["front"].to_dict() == {
        "masks alone": False, "quick": True, "good": True, "bad": False, "exact": True, "exact, not sharpened": False
    }  # fmt: skip
    assert table["speedup"].to_dict() == {
        "masks alone": 16, "quick": 8, "good": 4, "bad": 2, "exact": 1, "exact, not sharpened": 1
    }  # fmt: skip
    assert table.loc["quick", "gain"] == pytest.approx(100 * (70 / 130 - 68 / 132), abs=0.01)
    assert table.loc["exact", "share"] == 100
    assert table.loc["good", "share"] == pytest.approx(100 * (89.5 / 110.5) / (90 / 110), abs=0.01)
    speeds, shares = fast_modes.pareto_figure(table.reset_index(), 20).data
    assert list(speeds.x) == [16, 8, 4, 2, 1, 1]
    assert list(shares.y) == ["<i>masks alone</i>", "quick", "good", "bad", "exact", "<i>exact, not sharpened</i>"]
    assert list(shares.x) == list(table["share"])


@pytest.mark.parametrize(
    ("axis", "value", "passes"),
    [
        ("clusters", 3, DRAWS + OWN_FAST_STEPS * (1 + 3)),
        ("images", 2, 2 * (DRAWS + OWN_FAST_STEPS * (1 + 2))),
        ("width", 2, DRAWS + OWN_FAST_STEPS * (1 + 2)),
        ("batch", 16, OWN_FAST_STEPS * ((1 + 12) + (1 + 12))),
    ],
)
def test_a_point_of_growth_counts_what_it_asks_for(folder, monkeypatch, axis, value, passes):
    monkeypatch.setattr(growth, "CLUSTERS", 2)
    found = growth.measure(growth.Point(axis, value, str(folder), None, "cpu", "float32", True, 1))
    assert found["passes"] == passes
    assert found["seconds"] > 0


def test_the_order_of_growth_is_the_slope_of_logarithms():
    table = pd.DataFrame({"axis": ["width"] * 3 + ["batch"] * 3, "value": [1, 2, 8] * 2})
    table["seconds"] = 3.0 * table["value"] ** [1, 1, 1, 2, 2, 2]
    assert growth.order(table).fillna(0).tolist() == [0, 1, 1, 0, 2, 2]
    drawn = growth.growth_figure(table.assign(mebibytes=1.0), "made")
    assert len(drawn.data) == 7, "a line and its comparison each, but for seconds against batch"
    with pytest.raises(InputError, match="no axis 'height'; accepted: clusters, width, batch, images"):
        growth.some_axes(["height"])


def test_an_atlas_is_compared_with_the_masks_run_by_themselves(folder, tmp_path, capsys):
    asked = {"scenes": 2, "clusters": "2,3", "model": str(folder), "steps": 10, "modulate_at": 101, "device": "cpu"}
    asked |= {"layer": "up8.cross1.output", "strength": 300.0}
    outputs = []
    for _ in range(2):
        atlas.main(**asked, store=tmp_path)
        outputs.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert outputs[0] == outputs[1], "a finished scene was measured again"
    for row in outputs[0]["rows"]:
        assert 0.8 < row["correlation"] <= 1  # the preset pushes hard
        assert row["agreement_low"] <= row["agreement"] <= row["agreement_high"] <= 100
        assert row["agreement"] > 60
        assert row["milliseconds"] > 0


def test_hooks_and_nnsight_give_the_same(model):
    pytest.importorskip("nnsight")
    differences = largest_differences(Ways(model, 2))
    assert max(differences.values()) < 1e-6


def test_every_way_is_timed_in_every_round_and_all_but_the_bare_one_change_something(model):
    ways = Ways(model, 2)
    with torch.no_grad():
        bare, edited = ways.bare()[0], ways.edited()[0]
        assert torch.equal(ways.captured()[1], ways.stopped()[1])
    assert (bare - edited).abs().max() > 1e-4
    seconds = seconds_of(ways.all(), model.device, 3)
    assert seconds.shape == (3, len(ways.all()))
    assert (seconds > 0).all(axis=None)


def test_overhead_is_relative_to_the_bare_denoiser():
    seconds = pd.DataFrame({"bare": [1.0, 1.0, 1.0, 2.0], "slower": [1.1, 1.1, 1.1, 2.1]})
    table = beside_the_first(seconds).set_index("way")
    assert table.loc["slower", "over"] == pytest.approx(10)
    assert table.loc["slower", "low"] <= 10 <= table.loc["slower", "high"]
    assert table.loc["bare", "over"] == 0


def test_every_idea_of_exact_mode_changes_the_time_alone(model):
    config = EmerDiffConfig.for_model(model, clusters=2, steps=10, modulate_at=201)
    ways = ideas.modulations(model, config)
    asked = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, rows: asked.append(len(rows[0])))
    try:
        calls = {name: (asked.clear(), way(), list(asked))[2] for name, way in ways.items()}
    finally:
        handle.remove()
    table = ideas.measure(ways, model, 2).set_index("way")
    assert (table["difference"] < 1e-4).all()
    assert calls["exact"] == [5] * 3  # 201, 101 and 1, the unchanged row among them
    assert calls["one variant at a time"] == [2] * 3 * 4
    assert calls["residuals by passes of their own"] == [3, *calls["exact"]]
    assert model.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last), "not put back"


def test_pocket_quality_says_what_evaluate_says(folder, tmp_path, capsys):
    arguments = {"scenes": 2, "clusters": "2,3", "model": str(folder), "steps": 10, "modulate_at": 301, "device": "cpu"}
    outputs = []
    for _ in range(2):
        pocket_quality.main(**arguments, store=tmp_path)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    made = json.loads(outputs[0].splitlines()[-1])
    model = load_model(folder, device="cpu")
    methods = tuple(METHODS[name] for name in pocket_quality.SHOWN)
    config = EmerDiffConfig.for_model(model, steps=10, modulate_at=301, sharpen="none")  # as its rivals
    (store,) = tmp_path.glob("*/records")
    result = run_evaluation(model, open_data("world:2", side=256), Evaluation(methods, (2, 3), config), store=store)
    assert result.run.computed == 0
    expected = make_report(result).to_json()
    figures = {(row["method"], row["clusters"]): (row["miou"], row["low"], row["high"]) for row in expected["rows"]}
    assert {(row["method"], row["clusters"]): (row["miou"], row["low"], row["high"]) for row in made["rows"]} == figures
    ours = [gain for gain in expected["gains"] if (gain["method"], gain["over"]) == ("emerdiff", "bilinear")]
    gains = {str(gain["clusters"]): gain for gain in ours}
    for name, gain in {**made["gain_by_clusters"], "[2, 3]": made["gain_over_bilinear"]}.items():
        assert gain == {figure: gains[name][figure] for figure in ("miou", "low", "high")}
    assert (made["scenes"], made["replay_error"]) == (2, result.replay_error)
    assert made["replay_error"] < 1e-4


def test_readings_are_compared_with_the_papers_own():
    """Two images of two classes: the one reading has half the pixels right, the other all."""
    half, whole = np.array([[2, 0], [2, 0]]), np.array([[2, 0], [0, 2]])
    scores = {sharpening.PLAIN: [(half, 0.25)] * 2, "emerdiff + wls": [(whole, 0.75)] * 2}
    table = sharpening.report(scores, dict.fromkeys(scores, 1.0)).set_index("reading")
    assert table.loc[sharpening.PLAIN, ["miou", "miou_gain", "boundary_f"]].tolist() == [25, 0, 25]
    assert table.loc["emerdiff + wls", ["miou", "miou_gain", "miou_low", "boundary_f_gain"]].tolist() == [
        100,
        75,
        75,
        50,
    ]


def test_readings_read_what_is_kept():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 20:] = 255
    coarse = np.repeat([[0, 0, 1, 1]], 4, 0)
    held = {"maps": np.stack([coarse == 0, coarse == 1]).astype(np.float16), "coarse": coarse}
    for name, reading in sharpening.all_readings().items():
        labels = reading(picture, held)
        assert labels.shape == (32, 32), name
    moved = sharpening.read_off("bilinear", "wls", picture, held)
    assert (moved == (np.arange(32) >= 20)).all()


def test_candidate_features_name_sites_and_the_preset_is_the_configurations_own(model):
    config = EmerDiffConfig.fast(model, clusters=3)
    picture = features.Picture(model, config, tiny.picture(64, 80))
    assert all(picture.sites(candidate) for candidate in features.CANDIDATES.values())
    stage = picture.sites(features.CANDIDATES["stage"])
    assert {site.part for site in stage} == set(features.PARTS)
    assert {(site.stage, site.resolution, site.holds_cells) for site in stage} == {("up", 8, True)}
    own = features.Candidate(config.features.sites, config.features.timesteps, config.features.draws)
    expected = config.probe(model, picture.image).low_resolution_masks(picture.sites(own), 3, config.features.timesteps)
    assert np.array_equal(picture.masks(own, 3)["coarse"], expected)


def test_ceilings_rise_to_the_truth_with_the_truths_own_masks_and_borders():
    truth = np.arange(16).repeat(16).reshape(16, 16) // 6  # borders at 6 and 12, cells of 4
    coarse = np.array([0, 0, 1, 1]).repeat(4).reshape(4, 4)
    found = ceilings.ceilings(coarse, np.full((16, 16, 3), 128, np.uint8), truth, 3)
    assert found[ceilings.OURS].shape == truth.shape
    assert (found["the cells' true majority, true borders"] == truth).all()
    assert len(np.unique(found["k-means of the cells' true classes, bilinear"])) == 2
    shares = ceilings.class_shares(np.where(truth == 0, IGNORED, truth), 3, (4, 4)).reshape(4, 4, 3)
    assert shares[:, 0].tolist() == [[0, 0, 0], [0, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    pieces = ceilings.regions_of(np.array([[1, 0, 1], [1, 0, 1]]))
    assert sorted(np.bincount(pieces.ravel())) == [2, 2, 2]
    assert ceilings.take_regions(np.array([[0, 0, 5], [0, 2, 2]]), pieces)[:, 0].tolist() == [0, 0]


def test_many_pictures_are_timed_from_the_first_result_to_the_last():
    def record(way, pictures, seconds):
        memory = {"early_mib": 700, "late_mib": 710, "workers_mib": 600, "written_mib": 2.0 * pictures}
        known = {"way": way, "pictures": pictures, "skipped": 0, "start": 20.0, "seconds": seconds}
        return {"block": len(records), **known, **memory}

    records = []
    for way, pictures, seconds in (("1 worker", 11, 20.0), ("1 worker", 6, 25.0)):
        records.append(record(way, pictures, seconds))
    records += [record("2 workers", 11, 8.0) | {"block": 0}, record("2 workers", 6, 27.0)]
    table = many_pictures.summarise(records).set_index("way")
    assert table.loc["1 worker", ["pictures", "seconds", "efficiency"]].tolist() == [17, 3, 1]
    assert table.loc["2 workers", ["seconds", "growth_mib", "mib_a_picture"]].tolist() == [2.333, 10, 2]
    assert table.loc["2 workers", "efficiency"] == 2 / 0.8 / 2, "on the block that both took"


def test_a_block_of_pictures_is_segmented_and_nothing_of_it_stays(folder, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths[:2]):
        Image.fromarray(tiny.picture(64, 64, number)).save(path)
    paths[2].write_bytes(b"no picture")
    scratch = tmp_path / "scratch"
    found = many_pictures.measure(many_pictures.Block(tuple(map(str, paths)), "here", str(folder), 2, str(scratch)))
    assert (found["pictures"], found["skipped"]) == (2, 1)
    assert min(found["start"], found["seconds"], found["written_mib"]) > 0
    assert not scratch.exists()


def test_the_largest_pieces_are_kept_and_the_others_go_to_the_nearest():
    labels = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 0, 0, 0]])
    assert merging.largest_pieces(labels, 2).tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert sorted(np.unique(merging.largest_pieces(np.array([[0, 1, 0]]), 3))) == [0, 1, 2], "pieces, not segments"


def test_merged_masks_are_compared_in_the_same_number_of_segments():
    right, wrong = np.diag([5, 5]), np.array([[0, 5], [0, 5]])
    rows = merging.summarise([{"a": wrong, "b": right}] * 3, "a")
    assert [row["labels"] for row in rows] == ["a", "b"]
    assert rows[1]["miou"] == 100
    assert rows[1]["gain low"] == rows[1]["gain miou"] == 100 - rows[0]["miou"]


def test_criteria_are_held_against_miou_as_a_calibration_holds_them(folder, tmp_path):
    model, scenes = load_model(folder, dtype="float32"), open_data("world:2,first=40", side=64)
    around = (["up16.self1.output", "up16.cross1.output"], [501, 601], [30.0])
    job = criteria.make_job(model, 3, len(scenes.classes), around, seeds=False)
    assert len(job.settings) == 3, "both layers of a block are one; the preset is first"
    made = criteria.run(model, job, scenes, store=tmp_path)
    records = {one: {name: made.record(name, tuple(one)) for name in made.names} for one in job.settings}
    config = EmerDiffConfig().change(clusters=3).resolve(model)
    whole = Calibration(config, Space.of(model, config, ("strength",)), records, made.names, labelled=True)
    expected = whole.correlations().set_index("criterion")["rank correlation"]
    gains, values = criteria.gains_of(made, job.settings), criteria.criteria_of(made, job.settings)
    settings = criteria.list_settings(job.settings, values, {"plain": gains}, 2)
    assert settings["plain mIoU gain"].tolist() == [round(gain, 2) for gain in sorted(whole.table()["mIoU gain"])[::-1]]
    found = criteria.summarise(values, gains, 2).set_index("criterion")["rank correlation"]
    assert found.to_dict() == pytest.approx(expected.round(2).to_dict(), nan_ok=True)
    with pytest.raises(InputError, match="timestep 602"):
        criteria.make_job(model, 3, 1, (["up16.cross1.output"], [602], [30.0]), seeds=False)


def test_a_criterion_that_is_the_truth_has_no_regret_and_its_opposite_all():
    draw = np.random.default_rng(0)
    gains = np.array([1.0, 4.0, 3.0, 0.0])
    pictures = gains[:, None] / 100 + draw.normal(0, 1e-6, (4, 30))
    known = dict.fromkeys(criteria.RANKED, pictures) | {"opposite": -pictures}
    truth = [lambda weights, gain=gain: np.full(len(weights), gain) for gain in gains]
    table = criteria.summarise(known, truth, 30).set_index("criterion")
    assert table.loc[CRITERION].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert table.loc["opposite"].tolist() == [-1, -1, -1, 4, 4, 4, 4]
