"""What asks the denoiser, and how often: counted, as time is not deterministic."""

import pytest
import tiny

from emerdiff_probe.data.world import World
from emerdiff_probe.probe import ProbedImage
from emerdiff_probe.reading.features import capture
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.segment import segment
from emerdiff_probe.sites import list_sites
from emerdiff_probe.studies.features import layers
from emerdiff_probe.studies.study import Subject

SETTINGS = {
    "clusters": 3,
    "feature_sites": "up8.cross0.query",
    "layer": "up8.cross2.output",
    "modulate_at": 301,
    "steps": 10,
}
STEPS = 4
"""301, 201, 101, 1."""


@pytest.fixture
def passes(model):
    """Rows of every pass of the denoiser."""
    rows = []
    handle = model.denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    handle.remove()


def test_all_sites_and_timesteps_of_a_trajectory_are_read_in_one_pass(model, trajectory, passes):
    capture(model, trajectory, list_sites(model), [301, 101, 1])
    assert passes == [3]


def test_a_sweep_over_layers_takes_one_pass_a_timestep_and_image(model, passes):
    data = World(range(3, 6), side=64)
    study = layers(model, data[:2], EmerDiffConfig.paper(model, **SETTINGS), quick=True, fit_on=data[2:])
    study.prepare([{"timestep": 1}])
    assert passes == [1]  # for every image that linear probes are fitted on, once
    for sample in data[:2]:
        passes.clear()
        measured = study.measure(Subject(model, sample, study.config, study.start), {"timestep": 1})
        assert passes == [1]
    assert len(measured) > 1


def test_what_is_known_is_not_asked_again(model, passes):
    probed = ProbedImage(model, tiny.picture(), start=301, steps=10)
    assert passes == []  # the inversion draws
    sites = list_sites(model, part="query")
    probed.capture(sites, 1)
    for site in sites:
        probed.features(site, 1)
    assert passes == [1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1] + STEPS * [1 + 2 * 3]),
        ({"denoising_steps": 2}, [1] + 2 * [1 + 2 * 3]),
        ({"skip_after": 1}, [1] + 3 * [1 + 2 * 3]),  # 301, 201, 1
        ({"one_sided": True}, [1] + STEPS * [1 + 3]),
        ({"clusters": 20}, [1] + STEPS * [1 + 40]),
        ({"clusters": 24}, [1] + 2 * STEPS * [1 + 24]),  # two batches as even as they can be
        ({"clusters": 20, "sign_patterns": 7, "denoising_steps": 1}, [1, 1 + 2 * 7]),
        ({"clusters": 24, "sign_patterns": "auto", "one_sided": True, "denoising_steps": 1}, [1, 1 + 24]),
        ({"clusters": 36, "sign_patterns": "auto", "one_sided": True, "denoising_steps": 1}, [1, 1 + 2 * 12]),
    ],
)
def test_a_segmentation_asks_once_for_features_and_once_a_step_for_every_mask_and_sign(
    model, passes, changes, expected
):
    """The unchanged image rides along in every batch."""
    segment(model, tiny.picture(), EmerDiffConfig.paper(model, **{**SETTINGS, **changes}))
    assert passes == expected
