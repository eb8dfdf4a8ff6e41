"""Workers of Ray give the bits of this process, for the engine and each of its clients."""

import json
import os
import sys
from dataclasses import dataclass

import jobs
import numpy as np
import pytest
import ray
import tiny
import xarray as xr
from PIL import Image

from emerdiff_probe.batch import list_pictures, segment_pictures
from emerdiff_probe.data.sources import open_data
from emerdiff_probe.errors import InputError
from emerdiff_probe.evaluation.run import Evaluation, run_evaluation
from emerdiff_probe.methods.colour import RgbKMeans
from emerdiff_probe.methods.upsampling import Bilinear
from emerdiff_probe.runs.run import run
from emerdiff_probe.runs.store import FORMAT
from emerdiff_probe.segmentation.configuration import EmerDiffConfig
from emerdiff_probe.segmentation.result import Segmentation
from emerdiff_probe.studies.catalogue import make_study
from emerdiff_probe.studies.run import ZARR, run_study

HERE, THERE = ("here", None), ("there", 1)
"""Stores of both, and workers: every worker costs the import of torch and of diffusers."""


@pytest.fixture(scope="module")
def cluster():
    """One of two processors, started once."""
    ray.cloudpickle.register_pickle_by_value(jobs)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config(model):
    return EmerDiffConfig.paper(
        model, clusters=3, feature_sites="up8.cross0.query", layer="up8.cross2.output", modulate_at=101, steps=10
    )


@pytest.fixture(scope="module")
def scenes():
    return open_data("world:2,first=3", side=64)


def bits(folder, *, but=()):
    """All files of a folder, but those in folders of some names."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path: (folder / path).read_bytes() for path in paths if not set(path.parts) & set(but)}


def test_pictures_are_segmented_the_same_on_a_cluster_that_is_started_and_stopped(model, config, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate(((64, 64), (40, 72))):
        Image.fromarray(tiny.picture(*size, number)).save(photos / f"photo {number}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    told = []
    one, other = (
        segment_pictures(
            model,
            list_pictures([str(photos)]),
            config,
            tmp_path / place,
            workers=count,
            report=lambda _: None,
            warn=told.append,
        )
        for place, count in (HERE, THERE)
    )
    assert not ray.is_initialized()
    assert one.skipped.keys() == other.skipped.keys() == {"broken"}
    assert len(told) == 2
    assert list(one.folders) == list(other.folders)
    for name in one.folders:
        pair = [Segmentation.load(batch.folders[name]) for batch in (one, other)]
        for part in ("labels", "low_resolution_masks", "responses", "mask_embeddings", "linkage"):
            assert np.array_equal(*(getattr(result, part) for result in pair)), part
        assert pair[0].config == pair[1].config


@dataclass(frozen=True)
class Deadly(jobs.Means):
    """Kills its worker: on one picture the first time only, on another always."""

    folder: str = ""

    def measure(self, model, sample, cells):
        once = os.path.join(self.folder, "once")
        if sample.name == "p3" or (sample.name == "p2" and not os.path.exists(once)):
            if sample.name == "p2":
                open(once, "w").close()
            os._exit(1)
        yield from super().measure(model, sample, cells)


def test_a_worker_that_dies_costs_its_own_sample_and_the_others_give_the_same_bits(cluster, model, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def ran(job, store, workers=None):
        data, place = jobs.Pictures((1, 2, 3)), tmp_path / store
        return run(model, job, data, store=place, warn=lambda _: None, workers=workers)

    ran(jobs.Means(), "here")
    killed = ran(Deadly(folder=str(tmp_path)), "killed", workers=2)
    with pytest.raises(InputError, match="3 workers; accepted: a processor for each, on this cluster up to 2"):
        ran(jobs.Means(), "crowded", workers=3)
    assert (killed.names, list(killed.skipped)) == (("p1", "p2"), ["p3"])
    assert "its worker died 2 times" in killed.skipped["p3"]
    mended = ran(jobs.Means(), "killed")
    assert (mended.computed, mended.reused) == (3, 6)
    assert bits(tmp_path / "killed") == bits(tmp_path / "here")
    assert json.loads((tmp_path / "here" / "run.json").read_text())["format"] == FORMAT


def test_a_study_measures_the_same(cluster, model, config, scenes, tmp_path):
    study = make_study("strength", model, scenes, config, quick=True)
    here, there = (
        run_study(model, study, scenes, store=tmp_path / place, workers=count) for place, count in (HERE, THERE)
    )
    xr.testing.assert_identical(here.dataset, there.dataset)
    assert there.computed == here.computed > 0
    assert bits(tmp_path / "here", but=[ZARR]) == bits(tmp_path / "there", but=[ZARR])


def test_an_evaluation_scores_the_same(cluster, model, config, scenes, tmp_path):
    methods = Evaluation((RgbKMeans(), Bilinear()), (2,), config)
    here, there = (
        run_evaluation(model, scenes, methods, store=tmp_path / place, workers=count) for place, count in (HERE, THERE)
    )
    for cell in methods.cells:
        for one, other in zip(here.records(cell), there.records(cell), strict=True):
            assert one.figures == other.figures
            for held, made in zip(vars(one.overlap).values(), vars(other.overlap).values(), strict=True):
                assert np.array_equal(held, made, equal_nan=True)
        for name in here.images:
            assert np.array_equal(here.labels(name, cell), there.labels(name, cell))
