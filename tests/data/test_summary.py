"""Which classes occur and how much is ignored, counted by hand."""

import numpy as np
import pytest

from emerdiff_probe.data.sample import IGNORED
from emerdiff_probe.data.summary import count_labels, summarize
from emerdiff_probe.errors import InputError

NAMES = ("sky", "sea", "sand")


def test_pixels_of_samples_are_added():
    first, second = np.array([[0, 0], [IGNORED, 2]]), np.array([[2, IGNORED]])
    assert count_labels(first, 3).tolist() == [2, 0, 1, 1]
    found = summarize(count_labels(first, 3) + count_labels(second, 3), NAMES)
    assert (found.pixels, found.ignored, found.occurring) == ((2, 0, 2), 2, ("sky", "sand"))
    assert str(found) == "2 of 3 classes occur, 33.3% of the pixels are ignored"
    assert found.to_json() == {
        "classes": 3, "occurring": 2, "ignored_share": 1 / 3, "pixels": {"sky": 2, "sea": 0, "sand": 2}
    }  # fmt: skip
    found.require_scorable()


def test_regions_of_several_people_have_no_classes():
    found = summarize(count_labels(np.array([[[4, IGNORED]], [[7, 1]]]), 0), ())
    assert str(found) == "regions, no classes, 25.0% of the pixels are ignored"
    found.require_scorable()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2), int), r"1 of 3 classes occur, 0.0% .*\(only sky\): every method would be right"),
        (np.where(np.eye(10, dtype=bool), 0, IGNORED), r"only sky.*numbers=0\+255,ignore=none"),
        (np.r_[0, 1, np.full(198, IGNORED)][None], "99.0% .*nearly nothing is left to score"),
        (np.full((2, 2), IGNORED), "100.0% .*nearly nothing"),
        (np.zeros((0, 2), int), "0 of 3 classes occur"),
    ],
)
def test_labels_on_which_all_methods_are_alike_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        summarize(count_labels(labels, 3), NAMES).require_scorable()
