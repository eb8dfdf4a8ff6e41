"""An evaluation: resumed to the same bits, independent of what else is run, and honest about images it cannot use."""

import os
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import tiny
from PIL import Image

from emerdiff_probe.data.folders import FolderDataset
from emerdiff_probe.data.labels import LabelMap
from emerdiff_probe.data.pairs import Pair
from emerdiff_probe.data.resizing import Resizing
from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError, LabelError, ModelError, TimestepError
from emerdiff_probe.evaluation.cost import measured
from emerdiff_probe.evaluation.report import make_report
from emerdiff_probe.evaluation.run import Cell, Evaluation, run_evaluation
from emerdiff_probe.files import seal, unseal
from emerdiff_probe.methods.catalogue import METHODS, configure
from emerdiff_probe.methods.colour import RgbKMeans
from emerdiff_probe.methods.diffcut import DiffCut
from emerdiff_probe.methods.emerdiff import EmerDiff
from emerdiff_probe.methods.naming import Naming
from emerdiff_probe.methods.predictions import Predictions
from emerdiff_probe.methods.references import Reference
from emerdiff_probe.methods.supervised import ProbeTraining, UNetTraining
from emerdiff_probe.methods.upsampling import Bilinear
from emerdiff_probe.metrics.overlaps import covering, overlaps
from emerdiff_probe.metrics.protocols import concept_embeddings, region_sums
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.naming.vocabulary import Vocabulary
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.runs.store import Store
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.segmentation.presets import FAST
from emerdiff_probe.segmentation.segment import segment, segment_probed
from emerdiff_probe.segmentation.settings import FeatureSettings

COMPARED = (EmerDiff(), Bilinear(), DiffCut(), RgbKMeans())
EVERY = ("majority", "hungarian-per-image", "hungarian-per-dataset", "concept")


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.for_model(model, steps=10, modulate_at=101, feature_timesteps=101, feature_draws=2)


@pytest.fixture(scope="module")
def evaluation(config):
    return Evaluation(COMPARED, (3, None), config)


@pytest.fixture(scope="module")
def scenes():
    return open_data("world:3", side=64)


@pytest.fixture(scope="module")
def result(model, scenes, evaluation, tmp_path_factory):
    return run_evaluation(model, scenes, evaluation, store=tmp_path_factory.mktemp("whole") / "store")


def timeless(result):
    """All that is reported, but for times and memory."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(held) for name, held in value.items() if name not in {"seconds_per_image", "peak_mib"}}
        return [plain(held) for held in value] if isinstance(value, list) else value

    return plain(make_report(result, EVERY).to_json())


def folder_of(place, samples):
    """A data set on disk of images (height, width, 3) and labels by name."""
    pairs = []
    for name, (image, labels) in samples.items():
        Image.fromarray(image).save(place / f"{name}.png")
        Image.fromarray(labels.astype(np.uint8)).save(place / f"{name}.labels.png")
        pairs.append(Pair(name, place / f"{name}.png", place / f"{name}.labels.png"))
    return FolderDataset("pictures", ("sky", "sea"), tuple(pairs), LabelMap())


@pytest.fixture
def pictures(tmp_path):
    labels = np.arange(64).repeat(64).reshape(64, 64) // 32
    place = tmp_path / "pictures"
    place.mkdir()
    return folder_of(place, {name: (tiny.picture(seed=seed), labels) for seed, name in enumerate("abcd")})


def test_every_method_has_a_record_of_every_image_and_number(result, scenes):
    assert result.images == scenes.names
    either = {(name, count) for name in ("emerdiff", "diffcut") for count in (3, None)}
    expected = either | {("bilinear", 3), ("rgb k-means", 3)}
    assert set(result.evaluation.cells) == expected
    assert (result.run.computed, result.run.reused) == ((len(expected) + 1) * len(scenes), 0), "and one of the image"
    assert all(len(result.records(cell)) == len(scenes) for cell in result.evaluation.cells)


def test_a_record_holds_what_the_method_says_of_the_image(result, model, scenes, config):
    sample = scenes[1]
    probed = config.probe(model, sample.pixels())
    site = find_feature_sites(model, config)
    features = probed.features(site, config.features.timesteps).reshape(*probed.grid(site), -1).numpy()
    for cell, method in result.evaluation.cells.items():
        labels = method.segment(probed, cell.clusters)
        assert np.array_equal(result.labels(sample.name, cell), labels)
        record = result.records(cell)[1]
        sums, pixels = region_sums(features, labels, labels.max() + 1)
        means = (sums / np.maximum(pixels, 1)[:, None]).astype(np.float32)
        direct = overlaps(labels, sample.labels, len(scenes.classes), ignore_index=IGNORED, embeddings=means)
        for held, made in zip(vars(record.overlap).values(), vars(direct).values(), strict=True):
            assert np.array_equal(held, made)
        assert record.figures["covering"] == covering(labels, sample.labels)
        assert record.figures["segments"] == len(np.unique(labels))
        assert record.seconds > 0


def test_concepts_are_means_over_the_truth_of_all_images(result, model, scenes, config):
    site = find_feature_sites(model, config)
    sums, pixels = 0, 0
    for sample in scenes:
        probed = config.probe(model, sample.pixels())
        features = probed.features(site, config.features.timesteps).reshape(*probed.grid(site), -1).numpy()
        some, count = region_sums(features, sample.labels, len(scenes.classes))
        sums, pixels = sums + some, pixels + count
    assert np.array_equal(result.concepts, concept_embeddings(sums, pixels), equal_nan=True)


def test_the_inversion_that_all_share_replays_to_the_image(result, model, scenes, config):
    errors = [config.probe(model, sample.pixels()).replay_error() for sample in scenes]
    assert result.replay_error == max(errors) < 1e-4


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(result, model, scenes, evaluation, tmp_path, monkeypatch):
    store = tmp_path / "store"
    genuine, written = Store.write, []

    def interrupted(self, *record):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(record)
        genuine(self, *record)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(model, scenes, evaluation, store=store)
    resumed = run_evaluation(model, scenes, evaluation, store=store)
    assert (resumed.run.computed, resumed.run.reused) == (14, 7)
    assert timeless(resumed) == timeless(result)
    monkeypatch.setattr(ProbedImage, "__init__", None)  # a third time nothing is inverted or segmented
    again = run_evaluation(model, scenes, evaluation, store=store)
    assert (again.run.computed, again.run.reused) == (0, 21)
    assert str(make_report(again, EVERY)) == str(make_report(resumed, EVERY))
    assert not list(store.rglob("*.partial"))


def test_what_else_is_run_does_not_matter(result, model, scenes, config, tmp_path):
    store = tmp_path / "store"
    some = Evaluation((RgbKMeans(), DiffCut()), (3,), config)
    run_evaluation(model, scenes[2:], some, store=store)
    run_evaluation(model, scenes[:1], replace(some, methods=(DiffCut(),), clusters=(None,)), store=store)
    rest = run_evaluation(model, scenes, Evaluation(COMPARED, (3, None), config), store=store)
    assert (rest.run.computed, rest.run.reused) == (16, 5)
    assert timeless(rest) == timeless(result)


@pytest.mark.parametrize("change", ["strength", "classes", "device", "model", "parameters", "pixels", "resizing"])
def test_a_store_of_something_else_is_refused(change, model, pictures, config, tmp_path):
    some = Evaluation((RgbKMeans(), Bilinear()), (2,), config)
    run_evaluation(model, pictures[:1], some, store=tmp_path / "store")
    other, data, probed = some, pictures, model
    expected = {
        "classes": "classes was",
        "device": "cpu there",
        "model": "fingerprint was",
        "resizing": "resizing.side was",
    }
    if change == "strength":
        other = replace(some, config=config.change(strength=3.0))
        expected["strength"] = rf"strength was {config.modulation.strength} there and is 3.0 now"
    elif change == "classes":
        data = replace(pictures, classes=("sea", "sky"))
    elif change == "device":
        kept = tmp_path / "store" / "run.json"
        about = unseal(kept.read_text())
        assert about["identity"]["device"] == "cpu"
        about["identity"]["device"] = "cuda"
        kept.write_text(seal(about))
        expected["device"] = "device was cuda there and is cpu now"
    elif change == "model":
        probed = load_model(tiny.pocket(seed=1), device="cpu")
    elif change == "parameters":
        other = replace(some, methods=(RgbKMeans(restarts=2),))
        expected["parameters"] = "restarts was 1 there and is 2 now"
    elif change == "resizing":
        other = replace(some, resizing=Resizing(side=32))
    elif change == "pixels":
        Image.fromarray(tiny.picture(seed=9)).save(pictures.pairs[0].image)
        other = replace(some, clusters=(3,))
        expected["pixels"] = "sample a had other pixels"
    with pytest.raises(InputError, match=expected[change]):
        run_evaluation(probed, data, other, store=tmp_path / "store")


@pytest.mark.parametrize("change", ["reader", "folder", "labels", "image"])
def test_records_that_are_all_there_are_of_the_same_files_read_the_same_way(change, model, config, tmp_path):
    labels = np.arange(64).repeat(64).reshape(64, 64) // 32
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        data = folder_of(tmp_path / place, {name: (tiny.picture(), labels) for name in "ab"})
    some = Evaluation((RgbKMeans(), Bilinear()), (2,), config)
    run_evaluation(model, data, some, store=tmp_path / "store")
    if change == "reader":
        data, message = replace(data, reader=LabelMap(ignore=())), "reader.ignore was .* there and is"
    elif change == "folder":
        data, message = folder_of(tmp_path / "one", {"a": (tiny.picture(), labels)}), "image_folder was .*two there"
    elif change == "labels":
        Image.fromarray(1 - labels.astype(np.uint8)).save(data.pairs[1].labels)
        message = "sample b had other pixels or another truth"
    elif change == "image":
        Image.fromarray(tiny.picture(seed=9)).save(data.pairs[1].image)
        message = "sample b had other pixels or another truth"
    with pytest.raises(InputError, match=message):
        run_evaluation(model, data, some, store=tmp_path / "store")


def test_files_that_were_written_again_are_read_once_more(model, pictures, config, tmp_path, monkeypatch):
    some, read, genuine = Evaluation((RgbKMeans(),), (2,), config), [], FolderDataset._read
    first = run_evaluation(model, pictures, some, store=tmp_path / "store")
    os.utime(pictures.pairs[2].labels, ns=(1, 1))
    monkeypatch.setattr(FolderDataset, "_read", lambda self, place: read.append(place) or genuine(self, place))
    for _ in range(2):
        again = run_evaluation(model, pictures, some, store=tmp_path / "store")
        assert (again.images, again.run.computed, read) == (first.images, 0, [2])
    assert np.array_equal(again.concepts, first.concepts, equal_nan=True)


def test_a_folder_of_something_else_is_left_alone(model, pictures, config, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds no run"):
        run_evaluation(model, pictures, Evaluation((RgbKMeans(),), (2,), config), store=tmp_path)


def test_images_that_cannot_be_used_are_reported_and_counted_until_they_can(model, pictures, config, tmp_path):
    whole = pictures.pairs[1].image.read_bytes()
    pictures.pairs[1].image.write_bytes(whole[:200])
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(pictures.pairs[2].labels)  # all of it ignored
    pictures.pairs[3].labels.write_bytes(pictures.pairs[3].labels.read_bytes()[:60])
    warned = []
    some = Evaluation((RgbKMeans(), Bilinear()), (2,), config)
    found = run_evaluation(model, pictures, some, store=tmp_path / "store", warn=warned.append)
    assert found.images == ("a",)
    assert sorted(found.skipped) == ["b", "c", "d"]
    assert "cannot be read" in found.skipped["b"]
    assert "every pixel is ignored" in found.skipped["c"]
    assert "d.labels.png: cannot be read" in found.skipped["d"]
    assert sorted(message.split()[0] for message in warned) == ["b", "c", "d"]
    assert make_report(found).to_json()["skipped"] == 3
    pictures.pairs[1].image.write_bytes(whole)
    repaired = run_evaluation(model, pictures, some, store=tmp_path / "store", warn=warned.append)
    assert (repaired.images, repaired.run.computed) == (("a", "b"), 3)


def test_labels_that_are_no_class_stop_a_run(model, pictures, config, tmp_path):
    """Under a wrong offset only the images with the last class can be told; the others would be scored, and wrong."""
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(pictures.pairs[1].labels)
    with pytest.raises(LabelError, match="labels 7 are no class"):
        run_evaluation(model, pictures, Evaluation((RgbKMeans(),), (2,), config), store=tmp_path / "store")
    with pytest.raises(LabelError, match="labels 7 are no class"):
        Reference(UNetTraining(), pictures).trained(model, config, tmp_path / "weights.safetensors")


@dataclass(frozen=True)
class Fragile:
    """Fails where an image is darker than it should be, until it is mended."""

    darkest: float
    name: ClassVar[str] = "fragile"
    counts: ClassVar[str] = "given"
    probes: ClassVar[bool] = False
    mended: ClassVar[bool] = False

    def segment(self, probed, clusters=None):
        if probed.image.mean() < self.darkest and not self.mended:
            raise ModelError("the denoiser overflowed")
        return np.zeros(probed.image.shape[:2], int)


def test_an_image_that_a_method_fails_on_is_skipped_and_the_others_go_on(
    model, pictures, config, tmp_path, monkeypatch
):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures.pairs[1].image)
    some, warned = Evaluation((RgbKMeans(), Fragile(1), Bilinear()), (2,), config), []
    found = run_evaluation(model, pictures, some, store=tmp_path / "store", warn=warned.append)
    assert found.images == ("a", "c", "d")
    assert found.skipped == {"b": "fragile: the denoiser overflowed"}
    assert warned == ["b is skipped: fragile: the denoiser overflowed"]
    assert make_report(found).to_json()["skipped"] == 1
    again = run_evaluation(model, pictures, some, store=tmp_path / "store", warn=str)
    assert (again.images, again.run.computed, again.run.reused) == (found.images, 0, 12)
    monkeypatch.setattr(Fragile, "mended", True)
    mended = run_evaluation(model, pictures, some, store=tmp_path / "store")
    assert (len(mended.images), mended.skipped, mended.run.computed, mended.run.reused) == (4, {}, 2, 14)


def test_a_method_that_cannot_be_trained_stops_at_once(model, scenes, config, tmp_path):
    class Torn(type(scenes)):
        def _read(self, place):
            raise InputError("truncated")

    data = Torn(range(500_000, 500_002), side=scenes.side)
    some = Evaluation((Reference(UNetTraining(width=4, levels=2, crop=16, steps=1, batch=1), data),), (3,), config)
    with pytest.raises(InputError, match="no samples"):
        run_evaluation(model, scenes, some, store=tmp_path / "store", warn=str)


def test_no_usable_image_is_an_error(model, pictures, config, tmp_path):
    for pair in pictures.pairs:
        pair.image.unlink()
    with pytest.raises(InputError, match=r"none of its samples can be used; the first: .*no such image"):
        run_evaluation(model, pictures, Evaluation((RgbKMeans(),), (2,), config), store=tmp_path / "s", warn=str)


def test_scores_are_taken_at_the_original_resolution(model, config, tmp_path):
    labels = np.zeros((90, 70), int)
    labels[20:50] = 1
    data = folder_of(tmp_path, {"tall": (tiny.picture(90, 70), labels)})
    for resizing, size in ((Resizing(32), (90, 70)), (Resizing(48, "crop"), (70, 70)), (Resizing(), (90, 70))):
        some = Evaluation((Bilinear(), RgbKMeans()), (2,), config, resizing)
        found = run_evaluation(model, data, some, store=tmp_path / f"store-{resizing.side}")
        for cell in some.cells:
            assert found.labels("tall", cell).shape == size
            assert found.records(cell)[0].overlap.counts.sum() == size[0] * size[1]


def test_regions_of_several_people_are_scored_without_classes(model, config, tmp_path):
    data = replace(folder_of(tmp_path, {"x": (tiny.picture(), np.zeros((64, 64)))}), classes=(), reader=_two_people)
    some = Evaluation((Bilinear(),), (2,), config)
    found = run_evaluation(model, data, some, store=tmp_path / "store")
    cell = Cell("bilinear", 2)
    record, labels = found.records(cell)[0], found.labels("x", cell)
    assert record.overlap is None
    both = [covering(labels, person) for person in _two_people(None, 0)]
    assert both[0] != both[1]
    assert record.figures["covering"] == pytest.approx(np.mean(both))
    report = make_report(found)
    assert (report.rows, report.gains) == ((), ())
    assert report.to_json()["without_classes"][0]["seconds_per_image"] > 0
    assert "bilinear" in str(report)


def _two_people(path, classes):
    rows = np.arange(64).repeat(64).reshape(64, 64)
    return np.stack([rows // 32, rows.T // 8]).astype(np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "methods none"),
        ({"methods": (Bilinear(), Bilinear(FeatureSettings(timesteps=(21,))))}, "each once"),
        ({"clusters": ()}, r"clusters \[\]"),
        ({"clusters": (3, 3)}, "each once"),
        ({"clusters": (0,)}, "integers from 1"),
        ({"clusters": (None,)}, "bilinear finds no number of segments by itself"),
    ],
)
def test_what_cannot_be_run_is_refused(evaluation, change, message):
    with pytest.raises(InputError, match=message):
        replace(evaluation, **change)


def test_data_without_labels_is_refused_before_the_model_runs(model, pictures, evaluation, tmp_path):
    unlabelled = FolderDataset.from_pictures(pictures.pairs[0].image.parent)
    with pytest.raises(InputError, match=r"no labels.*nothing to score against; accepted: a data set with labels"):
        run_evaluation(model, unlabelled, evaluation, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_settings_that_do_not_fit_the_model_are_refused_before_it_runs(model, scenes, evaluation, tmp_path):
    with pytest.raises(InputError, match="100 clusters, but"):
        run_evaluation(model, scenes, replace(evaluation, clusters=(100,)), store=tmp_path / "store")
    with pytest.raises(InputError, match="diffcut: 17 clusters of 16 cells; accepted: 1 to 16"):
        run_evaluation(model, scenes, replace(evaluation, clusters=(17,)), store=tmp_path / "store")
    naming = Naming("cross-attention", Vocabulary.of(scenes.classes), DiffCut())
    named = replace(evaluation, methods=(naming,), clusters=(17,))
    with pytest.raises(InputError, match="cross-attention \\+ diffcut: 17 clusters of 16 cells"):
        run_evaluation(model, scenes, named, store=tmp_path / "store")
    wrong = replace(evaluation, config=evaluation.config.change(modulate_at=100))
    with pytest.raises(TimestepError, match="near ones"):
        run_evaluation(model, scenes, wrong, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_trained_method_has_never_seen_what_it_is_scored_on(model, scenes, config, tmp_path):
    training = UNetTraining(width=4, levels=2, crop=16, steps=1, batch=1)
    seen = Evaluation((Reference(training, open_data("world:5,first=2", side=64)),), (3,), config)
    with pytest.raises(InputError, match="1 images are trained on and evaluated, such as world: scene-000002"):
        run_evaluation(model, scenes, seen, store=tmp_path / "store")
    objects = replace(seen, methods=(Reference(training, open_data("world:5,first=9,labels=objects", side=64)),))
    with pytest.raises(InputError, match="trained on classes of"):
        run_evaluation(model, scenes, objects, store=tmp_path / "store")
    with pytest.raises(InputError, match="accepted: images as they are"):
        replace(seen, resizing=Resizing(32))


def test_a_folder_that_is_trained_on_is_known_by_its_files(model, pictures, config, tmp_path):
    training = UNetTraining(width=4, levels=2, crop=16, steps=1, batch=1)
    renamed = replace(pictures, name="holidays", pairs=(replace(pictures.pairs[2], name="x"),))
    seen = Evaluation((Reference(training, renamed),), (3,), config)
    with pytest.raises(InputError, match=r"1 images are trained on and evaluated, such as .*c\.png"):
        run_evaluation(model, pictures, seen, store=tmp_path / "store")
    place = tmp_path / "others"
    place.mkdir()
    others = folder_of(place, {"a": (tiny.picture(seed=8), np.zeros((64, 64)))})
    apart = replace(seen, methods=(Reference(training, others),))
    assert run_evaluation(model, pictures[:1], apart, store=tmp_path / "store").run.computed == 2


def test_trained_methods_are_trained_once_and_name_classes(model, scenes, config, tmp_path, monkeypatch):
    from emerdiff_probe.methods import references

    data = open_data("world:2,first=500000", side=64)
    quick = UNetTraining(width=4, levels=2, crop=32, steps=3, batch=2)
    probing = ProbeTraining(pixels=64, steps=3)
    some = Evaluation((Reference(quick, data), Reference(probing, data)), (3,), config)
    first = run_evaluation(model, scenes[:1], some, store=tmp_path / "store")
    monkeypatch.setattr(references, "train_unet", None)
    monkeypatch.setattr(references, "train_linear_probe", None)
    both = run_evaluation(model, scenes, some, store=tmp_path / "store")
    assert (first.run.computed, both.run.computed, both.run.reused) == (3, 6, 3)
    rows = make_report(both, EVERY).to_json()["rows"]
    assert [(row["method"], row["clusters"]) for row in rows] == [("unet", None), ("linear probe", None)]
    assert all("supervised" in row["protocol"] for row in rows)
    assert max(both.labels(scenes.names[2], cell).max() for cell in some.cells) < len(scenes.classes)
    other = replace(some, methods=(Reference(replace(quick, steps=4), data),))
    with pytest.raises(InputError, match=r"training\.steps was 3 there and is 4 now"):
        run_evaluation(model, scenes, other, store=tmp_path / "store")


def test_weights_that_were_damaged_are_trained_anew(model, scenes, config, tmp_path):
    data = open_data("world:2,first=500000", side=64)
    training = UNetTraining(width=4, levels=2, crop=32, steps=1, batch=2)
    some, warned = Evaluation((Reference(training, data),), (3,), config), []
    first = run_evaluation(model, scenes[:1], some, store=tmp_path / "store")
    (weights,) = (tmp_path / "store" / "weights").glob("unet-*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    both = run_evaluation(model, scenes[:2], some, store=tmp_path / "store", warn=warned.append)
    assert "model.safetensors is not what was written; unet is trained anew" in warned[0]
    assert (both.run.reused, both.run.computed) == (first.run.computed, 2)


@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
@pytest.mark.parametrize(
    ("name", "changes"), [("emerdiff", {}), ("emerdiff without injection", {"injection": ()}), ("emerdiff fast", FAST)]
)
def test_emerdiff_among_its_rivals_is_segment(model, config, size, name, changes):
    image = tiny.picture(*size)
    expected = segment(model, image, config.change(clusters=4, **changes)).labels
    probed = config.probe(model, image)
    resolved = configure(METHODS[name], config.change(readout=None))
    assert np.array_equal(resolved.segment(probed, 4), expected)
    assert np.array_equal(METHODS[name].segment(probed, 4), expected)  # 101 is nearest to 281
    assert resolved.name == METHODS[name].name == name


def test_emerdiff_read_in_several_ways_is_run_once_and_says_what_it_says_alone(
    model, scenes, config, tmp_path, monkeypatch
):
    variants = {"sharpen": "none"}, {"sharpen": "wls", "strength": 90.0}, {"sharpen": "wls"}
    plain, other, sharp = (
        EmerDiff(EmerDiffConfig().change(**settings), varied=("sharpen", "strength")) for settings in variants
    )
    runs = []

    def counted(*given):
        runs.append(given)
        return segment_probed(*given)

    monkeypatch.setattr("emerdiff_probe.methods.emerdiff.segment_probed", counted)
    evaluation = Evaluation((plain, other, sharp), (2, 3), config)
    together = run_evaluation(model, scenes, evaluation, store=tmp_path / "together")
    assert len(runs) == 2 * 2 * len(scenes)  # strengths, numbers
    alone = run_evaluation(model, scenes, Evaluation((sharp,), (2, 3), config), store=tmp_path / "alone")
    for count in (2, 3):
        own, _, read = (Cell(method.name, count) for method in evaluation.methods)
        assert all((together.labels(name, read) == alone.labels(name, read)).all() for name in together.images)
        assert any((together.labels(name, read) != together.labels(name, own)).any() for name in together.images)
        for first, second in zip(together.records(own), together.records(read), strict=True):
            assert second.seconds > first.seconds / 2  # the maps' time is in both


def test_a_method_reads_as_many_draws_of_noise_as_it_says_and_never_more_than_there_are(model, scenes, config):
    image = scenes[0].pixels()
    probed = config.probe(model, image)
    one = EmerDiff(config.change(feature_draws=1))
    alone = segment(model, image, config.change(feature_draws=1, clusters=3))
    assert (one.segment(probed, 3) == alone.labels).all()
    assert one.find(probed, 3).config == alone.config
    with pytest.raises(InputError, match="3 draws of an image probed with 2"):
        EmerDiff(config.change(feature_draws=3)).segment(probed, 3)


def test_a_cost_is_the_time_and_the_peak_of_the_work_alone(model):
    def allocate(mebibytes):
        return lambda: np.ones(mebibytes * 2**20, np.uint8).sum()

    large, much = measured(allocate(256), model.device)
    _, little = measured(allocate(1), model.device)
    assert large == 256 * 2**20
    assert much.seconds > little.seconds > 0
    if little.peak_mib is None:
        pytest.skip("this system does not tell the peak of memory anew")
    assert 200 < much.peak_mib - little.peak_mib < 300


def test_label_maps_of_another_tool_stand_beside_methods_and_follow_their_files(model, pictures, config, tmp_path):
    folder, lines = tmp_path / "masks", []
    folder.mkdir()
    truth = np.arange(64).repeat(64).reshape(64, 64) // 32
    for name in "abc":
        Image.fromarray((truth * 200).astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(truth[:32].astype(np.uint8)).save(folder / "d.png")

    def run():
        methods = (RgbKMeans(), Predictions.open(folder, "sam"))
        evaluation = Evaluation(methods, (2,), config)
        return run_evaluation(model, pictures, evaluation, store=tmp_path / "store", warn=lines.append)

    first = run()
    sam = Cell("predictions:sam", None)
    assert list(first.evaluation.cells) == [Cell("rgb k-means", 2), sam]
    assert first.images == ("a", "b", "c"), "where one method has nothing, none is scored"
    assert "d.png: a label map of shape (32, 64) for an image of 64 x 64" in first.skipped["d"]
    report = make_report(first, EVERY)
    scores = {(row.line.cell.method, row.miou.protocol): row.miou.value for row in report.rows}
    assert scores["predictions:sam", "majority (oracle)"] == 1
    assert scores["predictions:sam", "Hungarian per image"] == 1
    assert len(scores) == 8, "embeddings are means of the model's features, as for every method"
    assert np.isnan(first.records(sam)[0].seconds)
    assert (run().run.computed, run().run.reused) == (0, 9)

    lines.clear()
    swapped = truth.copy()
    swapped[0] = 1
    Image.fromarray(swapped.astype(np.uint8)).save(folder / "b.png")
    Image.fromarray(truth.astype(np.uint8)).save(folder / "d.png")
    again = run()
    assert again.images == ("a", "b", "c", "d")
    assert again.run.computed == 1 + 3, "b once more, and all of d"
    assert [line for line in lines if "changed" in line] == [
        "b: what ('predictions:sam', None) is made of changed; it is measured anew"
    ]
    assert np.array_equal(again.labels("b", sam), 1 - swapped), "numbered as they appear"
    (folder / "c.png").unlink()
    assert run().images == ("a", "b", "d")


def test_label_maps_of_other_images_are_refused_before_anything_is_written(model, pictures, config, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "a_mask.png")
    evaluation = Evaluation((Predictions.open(folder),), (2,), config)
    with pytest.raises(InputError, match=r"Images: a, b, c, d; label maps: a_mask"):
        run_evaluation(model, pictures, evaluation, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_label_maps_are_cut_to_what_methods_see(model, config, tmp_path):
    labels = np.zeros((64, 96), int)
    labels[:, 16:] = 7
    labels[:, 80:] = 9
    truth = (labels == 7).astype(int)
    (tmp_path / "pictures").mkdir()
    data = folder_of(tmp_path / "pictures", {"wide": (tiny.picture(width=96), truth)})
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "wide.npy", labels)
    evaluation = Evaluation((Predictions.open(tmp_path / "masks"),), (2,), config, Resizing(64, "crop"))
    result = run_evaluation(model, data, evaluation, store=tmp_path / "store")
    assert np.array_equal(result.labels("wide", *result.evaluation.cells), np.zeros((64, 64)))
