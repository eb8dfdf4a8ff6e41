"""Every rival labels the pixels of one probed image, by one interface."""

import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import tiny
import torch

from emerdiff_probe.errors import InputError, SiteError, TimestepError
from emerdiff_probe.methods.catalogue import METHODS
from emerdiff_probe.methods.choices import resolve_for
from emerdiff_probe.methods.colour import CoordinateKMeans, Felzenszwalb, RgbKMeans, Slic
from emerdiff_probe.methods.diffcut import DiffCut, assign_by_features, last_of_encoder
from emerdiff_probe.methods.diffseg import DiffSeg
from emerdiff_probe.methods.interface import Bounded
from emerdiff_probe.methods.upsampling import Bilinear, Guided, Nearest
from emerdiff_probe.methods.walking import RandomWalk
from emerdiff_probe.pocket.world import draw_scene
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import upsampled
from emerdiff_probe.segmentation.configuration import EmerDiffConfig, find_feature_sites
from emerdiff_probe.segmentation.settings import FeatureSettings

SIZES = {"square": (64, 64), "wide": (70, 101)}
FROM_MODEL = (
    "emerdiff",
    "emerdiff fast",
    "emerdiff draft",
    "emerdiff without injection",
    "nearest",
    "bilinear",
    "guided filter",
    "bilinear + wls",
    "bilinear + crf",
    "diffseg",
    "diffcut",
    "random walk",
)


@pytest.fixture(scope="module", params=SIZES)
def probed(request, model):
    return ProbedImage(model, tiny.picture(*SIZES[request.param]), start=301, steps=10)


class Picture:
    """An image without a model."""

    def __init__(self, image):
        self.image = image


def patches(height=48, width=80):
    """Six patches of clearly different colours, and their numbers."""
    labels = np.arange(6).reshape(2, 3).repeat(height // 2, 0).repeat(-(-width // 3), 1)[:, :width]
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30], [30, 220, 220], [220, 30, 220]])
    return Picture(colours[labels].astype(np.uint8)), labels


def same_partition(first, second):
    pairs = set(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("name", METHODS)
def test_every_rival_labels_every_pixel_the_same_way_twice(name, probed):
    rival = METHODS[name]
    counts = (4, 1) if rival.counts == "given" else (4, 1, None)
    answers = [rival.segment(probed, clusters) for clusters in counts]
    for clusters, labels in zip(counts, answers, strict=True):
        assert labels.shape == probed.image.shape[:2]
        assert labels.dtype.kind in "iu"
        assert labels.min() >= 0
        assert labels.max() < labels.size
        if clusters is not None and name not in {"felzenszwalb", "slic"}:
            assert len(np.unique(labels)) <= clusters
    assert np.array_equal(rival.segment(probed, 4), answers[0])
    if rival.counts == "either":
        assert np.array_equal(rival.segment(probed), answers[-1])


def test_rivals_are_values():
    assert set(FROM_MODEL) == {name for name, method in METHODS.items() if method.probes}
    for method in METHODS.values():
        assert method.counts in {"given", "either"}
        with pytest.raises(FrozenInstanceError):
            method.seed = 1


def test_rivals_share_one_inversion_and_leave_no_hooks(model, monkeypatch):
    from emerdiff_probe import probe

    passes = []
    plain = probe.capture
    monkeypatch.setattr(probe, "capture", lambda *args: passes.append(args[2]) or plain(*args))
    image = ProbedImage(model, tiny.picture(), start=301, steps=10)
    for name in FROM_MODEL:
        METHODS[name].segment(image, 3)
    own = resolve_for(image, EmerDiffConfig()).features.timesteps
    assert len(passes) == len(own) + 1  # EmerDiff's features and DiffCut's; attention is read apart
    assert not tiny.hooks_of(model.denoiser)


def test_the_answer_does_not_depend_on_what_was_asked_before(model):
    answers = []
    for names in (FROM_MODEL, reversed(FROM_MODEL)):
        image = ProbedImage(model, tiny.picture(*SIZES["wide"]), start=301, steps=10)
        answers.append({name: METHODS[name].segment(image, 3) for name in names})
    for name in FROM_MODEL:
        assert np.array_equal(answers[0][name], answers[1][name]), name


def test_upsampling_starts_from_emerdiffs_own_masks(probed):
    config = resolve_for(probed, EmerDiffConfig())
    coarse = probed.low_resolution_masks(find_feature_sites(probed.model, config), 5, config.features.timesteps)
    height, width = probed.image.shape[:2]
    assert np.array_equal(Nearest().segment(probed, 5), upsampled(coarse, height, width, "nearest"))
    assert np.array_equal(Bilinear().segment(probed, 5), upsampled(coarse, height, width))
    other = Nearest(FeatureSettings(sites=("up16.self0.query",), timesteps=(201,)))
    assert not np.array_equal(other.segment(probed, 5), Nearest().segment(probed, 5))


def test_a_guided_filter_changes_bilinear_masks_little(probed):
    assert np.mean(Guided().segment(probed, 4) == Bilinear().segment(probed, 4)) > 0.5


def plant(probed, labels, monkeypatch):
    """Make cells of each label hold one direction, and attend to one another alone."""
    directions = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]

    def by_cell(site):
        height, width = probed.grid(site)
        rows, columns = np.linspace(0, labels.shape[0] - 1, height).round(), np.linspace(0, labels.shape[1] - 1, width)
        return torch.from_numpy(labels[np.ix_(rows.astype(int), columns.round().astype(int))].ravel())

    def attentions(sites, timestep):
        for site in sites:
            alike = (by_cell(site)[:, None] == by_cell(site)[None]).float()
            yield site, alike / alike.sum(1, keepdim=True)

    site = last_of_encoder(probed.model)
    for timestep in probed.trajectory.timesteps:
        values = directions[by_cell(site)][:, : site.channels] * 40
        monkeypatch.setitem(probed._features, (site, timestep), values)
    monkeypatch.setattr(probed, "attentions", attentions)


@pytest.mark.parametrize("clusters", [None, 2])
def test_graph_rivals_find_two_clearly_separate_clusters(probed, clusters, monkeypatch):
    truth = np.zeros(probed.image.shape[:2], int)
    truth[:, truth.shape[1] // 2 :] = 1
    names = [f"up16.self0.{part}" for part in ("query", "key")]
    plant(probed, truth, monkeypatch)
    rivals = [
        DiffCut(),
        DiffSeg(sites=(names[0],)),
        RandomWalk(sites=(names[0],)),
        RandomWalk(sites=(names[1],), adjacency="flow"),
    ]
    for rival in rivals:
        labels = rival.segment(probed, clusters)
        assert len(np.unique(labels)) == 2, rival
        agreement = np.mean(labels == truth)
        assert max(agreement, 1 - agreement) > 0.93, rival


@pytest.mark.parametrize("name", [name for name, rival in METHODS.items() if isinstance(rival, Bounded)])
def test_a_capacity_is_the_largest_number_that_is_taken(name, model):
    rival, probed = METHODS[name], ProbedImage(model, tiny.picture(), start=301, steps=10)
    most = rival.capacity(model)
    rival.segment(probed, most)
    with pytest.raises(InputError, match=f"{most + 1} .*accepted"):
        rival.segment(probed, most + 1)


def test_diffcut_reads_the_last_self_attention_of_the_encoder(probed):
    site = last_of_encoder(probed.model)
    assert (site.stage, site.kind, site.part) == ("down", "self", "output")
    assert site.name == "down4.self1.output"
    named = DiffCut(site=site.name, timestep=1)
    assert np.array_equal(named.segment(probed), DiffCut().segment(probed))  # 1 is nearest to 50 on this grid


def test_products_are_upsampled_as_features_would_be():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    coarse = np.arange(12).reshape(3, 4) // 4
    unit = torch.nn.functional.normalize(features, dim=1)
    means = torch.stack([unit[coarse.ravel() == label].mean(0) for label in range(3)])
    maps = unit.T.reshape(1, 5, 3, 4)
    pixels = torch.nn.functional.interpolate(maps, size=(11, 9), mode="bilinear")[0]
    expected = torch.einsum("chw,mc->mhw", pixels, means).argmax(0)
    assert np.array_equal(assign_by_features(features, coarse, 11, 9), expected.numpy())


@pytest.mark.parametrize("assignment", ["bilinear", "nearest"])
def test_diffcut_can_enlarge_its_clusters(probed, assignment):
    labels = DiffCut(assignment=assignment).segment(probed, 3)
    assert labels.shape == probed.image.shape[:2]
    assert len(np.unique(labels)) <= 3


def test_colour_rivals_find_patches_of_colour():
    picture, truth = patches()
    for rival in (RgbKMeans(restarts=10), Felzenszwalb(smoothing=0, smallest=5)):
        assert same_partition(rival.segment(picture, 6), truth), rival
    assert len(np.unique(Slic().segment(picture, 6))) == 6


@pytest.mark.parametrize("clusters", [2, 5, 9, 20])
def test_superpixels_come_near_to_the_number_asked_for(clusters):
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    scene = draw_scene(500_000, height=256, width=256).image
    for rival in (Felzenszwalb(), Slic()):
        for picture in (image, scene):
            found = len(np.unique(rival.segment(Picture(picture), clusters)))
            assert abs(found - clusters) <= max(2, clusters // 4), rival


def test_fewer_colours_than_clusters_give_fewer_labels_without_a_warning(recwarn):
    assert len(np.unique(RgbKMeans().segment(patches()[0], 10))) == 6
    assert len(recwarn) == 0


def test_coordinate_k_means_sees_only_the_size():
    rng = np.random.default_rng(0)
    pictures = [Picture(rng.integers(0, 256, (30, 50, 3), np.uint8)) for _ in range(2)]
    one, two = (CoordinateKMeans().segment(picture, 5) for picture in pictures)
    assert np.array_equal(one, two)
    one[:] = 0  # what was handed out is the caller's
    assert np.array_equal(CoordinateKMeans().segment(pictures[0], 5), two)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("clusters", [0, -3, 2.5, True, 10**6])
def test_a_number_of_clusters_that_cannot_be_is_refused(name, clusters, probed):
    with pytest.raises(InputError, match="accepted"):
        METHODS[name].segment(probed, clusters)


@pytest.mark.parametrize("name", [name for name, rival in METHODS.items() if rival.counts == "given"])
def test_a_rival_without_a_criterion_of_its_own_asks_for_a_number(name, probed):
    with pytest.raises(InputError, match=re.escape(f"{name}: no number of clusters")):
        METHODS[name].segment(probed)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RgbKMeans(restarts=0), "restarts"),
        (lambda: CoordinateKMeans(seed=-1), "seed"),
        (lambda: Slic(compactness=0), "compactness"),
        (lambda: Slic(evaluations=0), "evaluations"),
        (lambda: Felzenszwalb(scale=np.inf), "scale"),
        (lambda: Felzenszwalb(evaluations=0), "evaluations"),
        (lambda: Guided(radius=0), "radius"),
        (lambda: Guided(epsilon=0), "epsilon"),
        (lambda: DiffCut(tau=3), "tau"),
        (lambda: DiffCut(assignment="cubic"), "assignment"),
        (lambda: RandomWalk(steps=0), "steps"),
        (lambda: RandomWalk(adjacency="graph"), "adjacency"),
        (lambda: replace(RandomWalk(), alpha=-1), "alpha"),
    ],
)
def test_parameters_out_of_range_are_refused(make, field):
    with pytest.raises(InputError, match=f": {field} .*accepted"):
        make()


def test_layers_and_timesteps_that_are_not_there_are_refused(probed):
    with pytest.raises(SiteError, match="near ones"):
        Nearest(FeatureSettings(sites=("up99.cross0.query",))).segment(probed, 3)
    with pytest.raises(InputError, match="text tokens"):
        DiffCut(site="up8.cross0.key").segment(probed)
    with pytest.raises(TimestepError, match="near ones"):
        DiffSeg(timestep=300).segment(probed)
    with pytest.raises(InputError, match="no self-attention layer"):
        RandomWalk(sites=("up8.cross0.query",)).segment(probed)
    with pytest.raises(InputError, match="one or more, or None"):
        DiffSeg(sites=()).segment(probed)
