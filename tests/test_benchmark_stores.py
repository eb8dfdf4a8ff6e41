"""Seconds that benchmarks keep are of the machine, threads and precision that are asked about."""

import numpy as np
import pytest
import torch

from benchmarks import fast_modes, number_of_segments, store
from emerdiff_probe.segmentation.configuration import EmerDiffConfig


@pytest.fixture
def config(model):
    return EmerDiffConfig.for_model(model, clusters=2, modulate_at=101, steps=10)


def test_seconds_of_other_threads_or_precision_are_not_used(model, config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fast_modes, "score", lambda *_: asked.append(1) or {"seconds": torch.zeros(1).numpy()})

    def measured(probed):
        fast_modes.measure(probed, range(1), {"exact": config}, tmp_path)
        return len(asked)

    assert (measured(model), measured(model)) == (1, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert measured(model) == 2
    monkeypatch.setattr(type(model), "dtype", torch.float16)
    assert measured(model) == 3


def test_trees_are_compared_with_as_many_modulated_masks(model, config, tmp_path):
    asked = number_of_segments.Measured(model, 0, config, tmp_path)
    scene = asked.truth()
    labels = number_of_segments.assign(asked.maps(int(scene["objects"]))).numpy()
    assert scene[number_of_segments.FLAT] == number_of_segments.adjusted_rand(labels, asked.scene.objects)


def test_a_part_of_an_array_is_kept_as_it_is(tmp_path):
    whole = np.arange(12).reshape(3, 4)
    for _ in range(2):
        np.testing.assert_array_equal(
            store.kept(tmp_path / "a.safetensors", lambda: {"a": whole[:, :-1]})["a"], whole[:, :-1]
        )
