"""Self-attention as a walk: powers of it stay walks, and their flow is symmetric."""

import numpy as np
import pytest

from emerdiff_probe.errors import InputError
from emerdiff_probe.methods.walking import flow, walk


def test_a_walk_of_several_steps_stays_a_walk():
    rng = np.random.default_rng(0)
    transition = rng.random((6, 6))
    transition /= transition.sum(1, keepdims=True)
    assert np.allclose(walk(transition, 1), transition)
    assert np.allclose(walk(transition, 3), transition @ transition @ transition)
    assert np.allclose(walk(transition, 50).sum(1), 1)


def test_a_walk_shows_what_two_steps_reach():
    """Neighbours of a chain that never look at each other's neighbours are told from the other chain."""
    ring = np.zeros((8, 8))
    for place in range(8):
        ring[place, place // 4 * 4 + (place + 1) % 4] = ring[place, place] = 0.5
    assert (walk(ring, 1) > 0).sum() == 16
    far = walk(ring, 3) > 0
    assert np.array_equal(far, np.repeat(np.arange(2), 4)[:, None] == np.repeat(np.arange(2), 4))


def test_the_flow_of_a_walk_is_symmetric_and_keeps_its_rates():
    rng = np.random.default_rng(0)
    values = rng.random((6, 6))
    weights = values + values.T
    transition = weights / weights.sum(1, keepdims=True)
    assert np.allclose(flow(transition), weights / weights.sum())  # a reversible walk
    other = rng.random((6, 6))
    other /= other.sum(1, keepdims=True)
    rates = flow(other)
    assert np.allclose(rates, rates.T)
    assert np.isclose(rates.sum(), 1)
    assert np.allclose(rates.sum(1) @ other, rates.sum(1))  # where the walk stays


@pytest.mark.parametrize(
    ("transition", "steps", "message"), [(np.ones((3, 3)), 2, "sum to 1"), (np.eye(3), 0, "1 or more")]
)
def test_what_cannot_be_walked_is_refused(transition, steps, message):
    with pytest.raises(InputError, match=message):
        walk(transition, steps)
