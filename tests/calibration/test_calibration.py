"""Calibration: the criterion by hand, nothing measured twice, ties and few pictures keep the preset."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from diffusers.models.attention import BasicTransformerBlock

from emerdiff_probe.calibration.calibrate import calibrate
from emerdiff_probe.calibration.control import forget
from emerdiff_probe.calibration.criteria import CRITERIA, CRITERION, SEEDS, SHARPENED, Ground
from emerdiff_probe.calibration.job import (
    ENLARGED,
    PUSHED,
    SECONDS,
    SHARP_ENLARGED,
    SHARP_PUSHED,
    CalibrationJob,
    Picture,
)
from emerdiff_probe.calibration.result import FEW, MEAN_RANK, Calibration
from emerdiff_probe.calibration.space import Setting, Space, list_equal_layers
from emerdiff_probe.data.pictures import Pictures
from emerdiff_probe.data.sample import Sample
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError, ModelError
from emerdiff_probe.metrics.colour import explained_variance, lab_colours
from emerdiff_probe.reading.correspondence import assign
from emerdiff_probe.reading.features import one_hot_masks
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.presets import approximations
from emerdiff_probe.segmentation.sharpen import read_labels
from emerdiff_probe.viz.calibration import calibration_figure, criterion_figure, write_report

OPEN = EmerDiffConfig().change(clusters=3, steps=10, feature_draws=1)
SEARCHED = ("layer", "modulate_at", "strength")
TWO = ("modulate_at", "strength")
PICTURES = [tiny.picture(seed=seed) for seed in range(6)]


@pytest.fixture
def measured(monkeypatch):
    """Have settings measured by a function of picture and setting in the place of the model; gives what was asked."""
    asked = []

    def measure(gain, stop=math.inf, untrained=-1.0):
        def record(self, picture, setting):
            if len(asked) >= stop:
                raise KeyboardInterrupt
            asked.append((picture.sample.name, setting))
            value = gain(int(picture.sample.name.split()[-1]), setting)
            return dict.fromkeys(CRITERIA, value)

        monkeypatch.setattr(CalibrationJob, "_record", record)
        monkeypatch.setattr(CalibrationJob, "_control", lambda self, picture, setting, twin: {CRITERION: untrained})
        return asked

    return measure


def peak(number, setting):
    """Best at strength 95 and timestep 301, and at another layer than the preset's; pictures differ much alike."""
    away = abs(math.log10(setting.strength / 95)) + abs(setting.modulate_at - 301) / 1000
    return 0.3 + 0.05 * number - 0.1 * away + 0.02 * (setting.layer == "up16.self0.output")


def test_the_search_climbs_to_the_best_setting_and_measures_nothing_twice(model, measured):
    asked = measured(peak)
    found = calibrate(model, PICTURES, OPEN, search=SEARCHED)
    assert found.found
    assert found.chosen == Setting("up16.self0.output", 301, 95.0, "after", "self+cross", 10)
    assert found.config == OPEN.resolve(model).change(layer="up16.self0.output", modulate_at=301, strength=95.0)
    assert set(Counter(asked).values()) == {1}
    whole = len(PICTURES) * math.prod(len(values) for values in found.space.values.values())
    assert len(asked) < whole / 10, "no blind grid"
    assert found.notes[0].startswith("found:")
    assert len(found.complete) < len(found.records), "most are dropped after a few pictures"


def test_a_search_that_was_killed_goes_on_to_the_same_result(model, measured, tmp_path):
    asked = measured(peak)
    whole = calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path / "whole")
    expected = list(asked)
    asked.clear()
    measured(peak, stop=29)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path / "halves")
    measured(peak)
    again = calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path / "halves")
    assert asked == expected
    assert again.table().equals(whole.table())
    asked.clear()
    assert calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path / "halves").table().equals(whole.table())
    assert asked == []


def test_when_the_time_is_over_the_search_stops_and_more_time_goes_on(model, measured, tmp_path, monkeypatch):
    measured(peak)
    whole = calibrate(model, PICTURES, OPEN, search=TWO)
    clock = iter(range(10**6))
    monkeypatch.setattr("emerdiff_probe.calibration.job.time.perf_counter", lambda: next(clock))  # a second a record
    asked = measured(peak)
    asked.clear()
    for _ in range(2):
        short = calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path, minutes=0.5)
        assert (len(asked), short.seconds, short.finished) == (30, 30, False)
        assert "goes on" in " ".join(short.notes)
    longer = calibrate(model, PICTURES, OPEN, search=TWO, store=tmp_path, minutes=1e6)
    assert longer.finished
    assert longer.table().equals(whole.table())


def test_ties_keep_the_preset(model, measured):
    noise = np.random.default_rng(0).normal(size=(6, 1000))
    seen = {}

    def tied(number, setting):
        return 0.2 + 0.01 * noise[number, seen.setdefault(setting, len(seen))]

    measured(tied)
    found = calibrate(model, PICTURES, OPEN, search=("strength",))
    assert (found.found, found.chosen) == (False, found.preset)
    assert found.preset in found.equals
    assert found.config == OPEN.resolve(model)
    assert found.notes[0].startswith("the preset is kept")
    measured(lambda number, setting: 0.2)
    assert calibrate(model, PICTURES, OPEN, search=("strength",)).best == found.preset


def test_the_best_of_many_has_to_exceed_what_chance_gives_the_best_of_so_many(model):
    config = OPEN.resolve(model)
    space, draw = Space.of(model, config, ("strength",)), np.random.default_rng(3)
    kept = 0
    for trial in range(20):
        records = {
            Setting.of(config).change("strength", 300.0 + setting): {
                f"p{place}": {CRITERION: float(value)} for place, value in enumerate(0.3 + draw.normal(0, 0.1, 12))
            }
            for setting in range(30)
        }
        found = Calibration(config, space, records, tuple(f"p{place}" for place in range(12)))
        kept += not found.found
        if trial == 0:
            assert found.preset == Setting.of(config)
    assert kept >= 18, "thirty settings that are all alike"


def test_where_a_denoiser_of_random_weights_does_as_well_nothing_is_found(model, measured, tmp_path):
    measured(peak, untrained=0.9)
    found = calibrate(model, PICTURES, OPEN, search=("strength",), store=tmp_path)
    assert (found.leads, found.found, found.chosen) == (True, False, found.preset)
    assert found.notes[0].startswith("nothing found: a denoiser of random weights does as well")
    assert [len(twin) for twin in found.control] == [6, 6]


def test_the_control_is_the_same_model_with_other_weights_and_leaves_the_model_alone(model):
    before = tiny.state_of(model.denoiser)
    twins = [forget(model, seed) for seed in (0, 0, 1)]
    first, same, other = (tiny.state_of(twin.denoiser) for twin in twins)
    for name, weights in before.items():
        assert torch.equal(weights, model.denoiser.state_dict()[name])
        assert torch.equal(first[name], same[name])
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert twins[0].autoencoder is model.autoencoder
    config = OPEN.change(**approximations("fast", model)).resolve(model)
    job = CalibrationJob(config, config.start, settings=(Setting.of(config),), twins=2)
    measured = dict(job.measure(model, Sample("a", PICTURES[0], None, "a"), list(job.cells)))
    assert list(measured) == [(*Setting.of(config), 0), (*Setting.of(config), 1)]
    assert all(-1 <= record[CRITERION] <= 1 for record in measured.values())


def test_where_labels_explain_no_more_than_the_enlarged_masks_nothing_is_found(model, measured):
    measured(lambda number, setting: peak(number, setting) - 0.6)
    found = calibrate(model, PICTURES, OPEN, search=TWO)
    assert found.best != found.preset
    assert (found.found, found.chosen) == (False, found.preset)
    assert found.notes[0].startswith("nothing found")


@pytest.mark.parametrize(("pictures", "spread", "leaves"), [(1, 0.0, False), (3, 0.2, False), (3, 0.001, True)])
def test_few_pictures_keep_the_preset_unless_it_is_beyond_doubt(model, measured, pictures, spread, leaves):
    def gain(number, setting):
        return 0.5 + (0.1 + spread * (number - 1)) * math.log10(300 / setting.strength)

    measured(gain)
    found = calibrate(model, PICTURES[:pictures], OPEN, search=("strength",))
    assert found.best.strength == 3
    assert found.found == leaves
    assert f"{pictures} pictures are too few" in str(found)
    assert pictures < FEW


def test_what_overflows_is_the_worst_and_ends_nothing(model, measured, monkeypatch):
    def gain(number, setting):
        return math.nan if setting.strength > 3000 else 0.1 + setting.strength / 1e5

    measured(gain)
    found = calibrate(model, PICTURES, OPEN, search=("strength",))
    assert found.chosen.strength == 3000
    for trace in calibration_figure(found).data:
        assert np.isfinite(np.array(trace.y, float)).all()
    job = CalibrationJob(OPEN.resolve(model), 301)
    monkeypatch.undo()
    monkeypatch.setattr(Picture, "maps", lambda *_, **__: (_ for _ in ()).throw(ModelError("overflow")))
    sample = Sample("a", PICTURES[0], None, "a")
    ((_, record),) = job.measure(model, sample, [tuple(found.preset)])
    assert all(math.isnan(record[name]) for name in CRITERIA)


def test_pictures_that_cannot_be_read_are_told_once_and_left_out(model, measured, image_file, tmp_path):
    measured(peak)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [*[image_file] * 3, tmp_path / "broken.png", *[image_file] * 3]
    told = []
    found = calibrate(model, files, OPEN, search=("strength",), warn=told.append)
    assert len(found.pictures) == 6
    assert len(told) == len(found.skipped) == 1


def test_layers_that_cannot_differ_are_one_and_named_together(model):
    equal = list_equal_layers(model)
    assert equal["up8.self1.output"] == equal["up8.cross1.output"] == ("up8.self1.output", "up8.cross1.output")
    config = OPEN.change(**approximations("fast", model)).resolve(model)
    space = Space.of(model, config, ["layer", "injection"])
    assert len(space.values["layer"]) == len(equal) // 2
    setting = Setting.of(config).change("layer", "up8.self0.output")
    other = setting.change("layer", "up8.cross0.output")
    assert space.unify(other) == setting
    assert space.names(other) == ("up8.self0.output", "up8.cross0.output")
    for change in (("placement", "before"), ("injection", "self"), ("injection", "none")):
        assert space.unify(other.change(*change)) == other.change(*change)
    picture = Picture(model, Sample("a", PICTURES[0], None, "a"), config, config.start)
    maps = [picture.maps(one) for one in (setting, other)]
    assert torch.allclose(*maps, rtol=1e-3)
    assert (assign(maps[0]) == assign(maps[1])).float().mean() > 0.999
    assert not torch.allclose(maps[0], picture.maps(other.change("injection", "self")), rtol=1e-3)


def test_gated_blocks_have_no_layers_alike(model, monkeypatch):
    for block in model.denoiser.modules():
        if isinstance(block, BasicTransformerBlock):
            monkeypatch.setattr(block, "norm_type", "ada_norm_single")
    assert list_equal_layers(model) == {}


def test_values_go_from_coarse_to_fine_and_hold_their_own(model):
    config = EmerDiffConfig().resolve(model)
    space = Space.of(model, config, Setting._fields)
    assert [one.strength for one in space.variants(space.preset, "strength")] == [3, 30, 300, 3000, 30000]
    tried = space.variants(space.preset, "strength")
    assert [one.strength for one in space.refine(space.preset, "strength", tried)] == [95, 950]
    times = [one.modulate_at for one in space.variants(space.preset, "modulate_at")]
    assert 601 in times
    assert 4 <= len(times) <= 7
    assert set(space.grids) == {10, 20, 40}
    assert space.values["injection"] == ("none", "self", "cross", "self+cross")
    at_51 = space.preset.change("modulate_at", 51)
    assert [one.steps for one in space.variants(at_51, "steps")] == [20, 40], "a grid of ten has no 51"


def test_criteria_of_maps_known_by_hand():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    latents = torch.arange(4.0).reshape(1, 2, 2)
    coarse = np.array([[0, 0], [1, 1]])  # rows, while the picture has columns
    ground = Ground(image, latents, coarse, (8, 8))
    columns = torch.zeros(2, 8, 8)
    columns[0, :, :4], columns[1, :, 4:] = 3.0, 1.0
    found = ground.measure(columns)
    assert list(found) == list(CRITERIA)
    assert found["colour"] == pytest.approx(1)
    assert found[CRITERION] == pytest.approx(1)
    assert found["latents_gain"] == pytest.approx(1 / 5 - 4 / 5)  # 0 1 / 2 3: columns explain a fifth, rows the rest
    assert (found["strongest"], found["margin"]) == (1.0, 1.0)
    assert found["contrast"] == pytest.approx(0.5)
    assert found["agreement"] < 0.1
    assert found["edges"] > 1
    rows = ground.measure(torch.stack([columns[0] * 0 + 1, columns[0] * 0 + 1]))
    assert (rows["colour"], rows["margin"], rows["edges"], rows["strongest"]) == (0, 0, 0, 0.5)


def confusion(hits, misses):
    """Of two classes: so many of each right, so many of the first taken for the second."""
    return np.array([[hits, misses], [0, hits + misses]])


@pytest.fixture
def labelled(model):
    """Four settings on two pictures, whose mIoU and criteria are known."""
    config = OPEN.resolve(model)
    space = Space.of(model, config, ("strength",))
    records = {}
    known = (300.0, 30, 0.1), (95.0, 10, 0.9), (30.0, 0, 0.8), (9.5, 20, 0.3)
    for place, (strength, misses, gain) in enumerate(known):
        values = {name: float(place) for name in CRITERIA} | {CRITERION: gain, SEEDS: misses / 100}
        record = values | {PUSHED: confusion(50 - misses, misses), ENLARGED: confusion(30, 20), SECONDS: 1.0}
        records[Setting.of(config).change("strength", strength)] = dict.fromkeys(("a", "b"), record)
    return Calibration(config, space, records, ("a", "b"), labelled=True)


def test_rank_correlations_and_regret_are_held_against_the_labels(labelled):
    true = {300.0: 0.4, 95.0: 0.8, 30.0: 1.0}
    true = {strength: (hits + 1 / (2 - hits)) / 2 for strength, hits in true.items()}  # of both classes
    enlarged = (0.6 + 1 / 1.4) / 2
    for strength, score in true.items():
        setting = labelled.preset.change("strength", strength)
        assert labelled.true_gain(setting) == pytest.approx(100 * (score - enlarged))
    table = labelled.correlations().set_index("criterion")
    assert table.loc[CRITERION, "rank correlation"] == pytest.approx(0.8)  # 0 3 2 1 beside 0 2 3 1
    assert table.loc[SEEDS, "rank correlation"] == pytest.approx(-1)
    assert table.loc["edges", "rank correlation"] == pytest.approx(0.4)  # 0 1 2 3 beside 0 2 3 1
    assert table["settings"].eq(4).all()
    assert MEAN_RANK in table.index
    assert labelled.chosen.strength == 95
    regret = labelled.regret()
    assert regret["regret"] == pytest.approx(100 * (true[30.0] - true[95.0]))
    assert regret["preset"] == pytest.approx(100 * (true[300.0] - enlarged))
    assert "rank correlation" in str(labelled)
    assert "rank correlation" in labelled._repr_html_()


def test_settings_that_lose_by_sharpened_labels_are_left_out_and_it_is_said(model):
    config = OPEN.resolve(model)
    space = Space.of(model, config, ("strength",))
    noise = np.random.default_rng(0).normal(0, 0.001, 12)

    def found(sharpened):
        records = {
            Setting.of(config).change("strength", strength): {
                f"p{place}": {CRITERION: gain + each} | ({SHARPENED: sharp + each} if sharpened else {})
                for place, each in enumerate(noise)
            }
            for strength, gain, sharp in ((300.0, 0.1, 0.02), (95.0, 0.3, -0.04), (30.0, 0.2, 0.03))
        }
        return Calibration(config, space, records, tuple(f"p{place}" for place in range(12)))

    plain, both = found(False), found(True)
    assert (plain.chosen.strength, both.chosen.strength) == (95.0, 30.0)
    assert both.found
    assert both.config.modulation.strength == 30.0
    assert "1 settings that are ahead by plain labels are left out" in " ".join(both.notes)
    assert "left out" not in " ".join(plain.notes)
    assert [SHARPENED in one.criteria for one in (plain, both)] == [False, True]


def test_sharpened_labels_are_held_against_masks_sharpened_alike():
    image = tiny.picture(32, 32)
    image[:, 16:] = 255 - image[:, 16:] // 4
    masks = np.arange(4).reshape(2, 2)
    ground = Ground(image, torch.zeros(4, 8, 8), masks, (32, 32), "wls")
    alike = one_hot_masks(masks)
    assert ground.measure(torch.nn.functional.interpolate(alike[None], size=(32, 32), mode="bilinear")[0]).keys() == {
        *CRITERIA,
        SHARPENED,
    }
    labels = read_labels(alike, image, "wls")[0]
    assert ground.unpushed_sharpened == pytest.approx(explained_variance(labels, lab_colours(image)))
    assert ground.sharpened(alike) - ground.unpushed_sharpened == 0


def test_the_guard_says_how_often_results_below_a_threshold_had_lost(model):
    config = OPEN.resolve(model)
    space = Space.of(model, config, ("strength",))
    records = {}
    for strength, known in ((300.0, ((-0.05, 30), (0.02, 10))), (95.0, ((-0.015, 10), (0.03, 0)))):
        records[Setting.of(config).change("strength", strength)] = {
            name: {CRITERION: gain, PUSHED: confusion(50 - misses, misses), ENLARGED: confusion(30, 20)}
            for name, (gain, misses) in zip("ab", known, strict=True)
        }
    table = Calibration(config, space, records, ("a", "b"), labelled=True).guard().set_index("below")
    assert table.loc[0, ["results", "lost %", "others results", "others lost %"]].tolist() == [2, 50, 2, 0]
    assert table.loc[-2, ["results", "lost %", "others results", "others lost %"]].tolist() == [1, 100, 3, 0]
    before, after = (0.6 + 1 / 1.4) / 2, (0.4 + 1 / 1.6) / 2
    assert table.loc[-2, "change"] == pytest.approx(100 * (after - before))
    assert table.loc[-12, "results"] == 0
    assert np.isnan(table.loc[-12, "change"])


def test_labels_are_measured_where_there_are_some(model):
    scenes = open_data("world:2,first=5", side=64)
    given = OPEN.change(layer="up8.cross1.output", modulate_at=101, placement="after", injection=("self",), steps=10)
    found = calibrate(model, scenes, given, images=1, seeds=True, minutes=0.01)
    assert set(found.space.values) == {"strength"}
    record = found.records[found.preset]["scene-000005"]
    assert record[PUSHED].sum() == record[ENLARGED].sum() == 64 * 64
    assert -1 <= record[SEEDS] <= 1
    assert len(found.correlations()) == len(CRITERIA) + 3, "seeds, sharpened, mean rank"
    assert record[SHARP_PUSHED].sum() == record[SHARP_ENLARGED].sum() == 64 * 64
    plain = calibrate(model, scenes, given.change(sharpen="none"), images=1, minutes=0.01)
    assert not {SHARPENED, SHARP_PUSHED} & set(plain.records[plain.preset]["scene-000005"])


def test_the_report_and_figures_mark_preset_and_choice(model, measured, labelled, tmp_path):
    measured(peak)
    found = calibrate(model, PICTURES, OPEN, search=("modulate_at", "strength", "placement"))
    figure = calibration_figure(found)
    names = [trace.name for trace in figure.data]
    assert {"preset", "chosen", "timestep 301", "others"} <= set(names)
    chosen = next(trace for trace in figure.data if trace.name == "chosen")
    assert chosen.x[0] == 95
    assert chosen.y[0] == pytest.approx(100 * found.gain(found.chosen).value)
    assert "strength=95.0" in found._repr_html_()
    assert write_report(found, tmp_path / "report.html").stat().st_size > 10**6
    with pytest.raises(InputError, match="with labels"):
        criterion_figure({"a": found})
    table = labelled.table()
    table.to_csv(tmp_path / "table.csv", index=False)
    drawn = criterion_figure({"a": labelled, "b": pd.read_csv(tmp_path / "table.csv")})
    assert len(drawn.data) == 6
    for one, other in zip(drawn.data[:3], drawn.data[3:], strict=True):
        np.testing.assert_allclose(one.x, other.x)
        np.testing.assert_allclose(one.y, other.y)
    assert list(drawn.data[0].x) == pytest.approx([100 * labelled.gain(one).value for one in labelled.complete])
    assert list(drawn.data[0].y) == pytest.approx([labelled.true_gain(one) for one in labelled.complete])
    assert f"{len(labelled.complete)} settings" in drawn.layout.annotations[0].text


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"images": 0}, "0 images"),
        ({}, {"minutes": 0}, "accepted: 1 or more in more than 0"),
        ({}, {"search": ("clusters",)}, "accepted: one or more of layer, modulate_at"),
        ({"clusters": "auto"}, {}, "clusters 'auto'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, change, options, message):
    with pytest.raises(InputError, match=message):
        calibrate(model, PICTURES, OPEN.change(**change), **options)


def test_a_configuration_that_leaves_nothing_open_is_refused_with_the_way_out(model):
    with pytest.raises(InputError, match=r"nothing is left open.*search="):
        calibrate(model, PICTURES, OPEN.resolve(model))
    with pytest.raises(InputError, match="no pictures"):
        calibrate(model, [], OPEN)


def test_pictures_at_hand_are_a_data_set_whose_parts_keep_their_names(image_file):
    data = Pictures.of([*PICTURES, image_file])
    assert data[::2][1:].names == ("picture 2", "picture 4", "picture 6")
    assert np.array_equal(data[::2][1].pixels(), PICTURES[2])
    assert data[6].pixels().shape == (64, 64, 3)
