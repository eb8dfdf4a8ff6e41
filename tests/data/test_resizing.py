"""Labels come back to the pixels that the segmenter saw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emerdiff_probe.data.resizing import Resizing
from emerdiff_probe.errors import InputError
from emerdiff_probe.metrics.overlaps import overlaps, pixel_accuracy
from emerdiff_probe.metrics.protocols import OpenVocabulary, confusions

POLICIES = st.builds(
    lambda cells, shape, multiple: Resizing(cells and cells * multiple, shape, multiple),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from(["keep", "crop", "squash"]),
    st.integers(1, 8),
)
SIDES = st.integers(16, 60)


@settings(max_examples=60, deadline=None)
@given(POLICIES, SIDES, SIDES)
def test_labels_come_back_at_the_size_of_what_was_seen(policy, height, width):
    image = np.zeros((height, width, 3), np.uint8)
    given = policy.apply(image)
    assert given.shape[:2] == policy.target(height, width)
    assert given.shape[0] % policy.multiple == given.shape[1] % policy.multiple == 0
    labels = np.arange(given.shape[0] * given.shape[1]).reshape(given.shape[:2])
    restored = policy.restore(labels, height, width)
    assert restored.shape == policy.seen(image[..., 0]).shape
    assert np.isin(restored, labels).all()
    if given.shape[:2] == restored.shape:
        assert np.array_equal(restored, labels)


def test_the_default_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    policy = Resizing()
    assert np.array_equal(policy.apply(image), image)
    assert np.array_equal(policy.restore(image[..., 0], 20, 31), image[..., 0])


@pytest.mark.parametrize(
    ("policy", "size"),
    [
        (Resizing(32), (32, 48)),
        (Resizing(32, "crop"), (32, 32)),
        (Resizing(32, "squash"), (32, 32)),
        (Resizing(multiple=8), (40, 64)),
        (Resizing(32, multiple=32), (32, 64)),
        (Resizing(None, "crop"), (42, 42)),
    ],
)
def test_sizes_by_hand(policy, size):
    assert policy.target(42, 63) == size
    assert policy.target(63, 42) == size[::-1]


def test_the_crop_is_central():
    assert Resizing(shape="crop").window(20, 31) == (slice(0, 20), slice(5, 25))
    truth = np.arange(2 * 20 * 31).reshape(2, 20, 31)
    assert np.array_equal(Resizing(shape="crop").seen(truth), truth[:, :, 5:25])


@pytest.mark.parametrize("shape", ["keep", "crop", "squash"])
def test_a_segmenter_that_sees_colours_scores_near_one_at_the_original_resolution(shape):
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 2, (4, 6)), np.ones((20, 20), int))
    policy = Resizing(64, shape)
    given = policy.apply(np.repeat(255 * truth.astype(np.uint8)[..., None], 3, axis=2))
    labels = policy.restore((given[..., 0] > 127).astype(int), *truth.shape)
    (confusion,) = confusions([overlaps(labels, policy.seen(truth), 2)], OpenVocabulary())
    assert confusion.sum() == (80 * 80 if shape == "crop" else 80 * 120)
    assert pixel_accuracy(confusion) > 0.97


@pytest.mark.parametrize(
    "given", [{"side": 0}, {"multiple": 0}, {"side": 30, "multiple": 8}, {"side": 8, "shape": "pad"}]
)
def test_a_policy_that_cannot_be_is_refused(given):
    with pytest.raises(InputError, match="accepted"):
        Resizing(**given)


def test_labels_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"accepted: \(32, 48\)"):
        Resizing(32).restore(np.zeros((32, 32), int), 42, 63)
