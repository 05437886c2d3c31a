import math

import numpy as np
import pytest

from aigc_jax.metrics.classes import agreement, class_entropy, class_histogram


def test_histogram_counts_each_class_and_shows_those_missing():
    counts = class_histogram(np.array([3, 0, 3, 1], np.int32), 5)
    assert counts.tolist() == [1, 1, 0, 2, 0]
    assert np.count_nonzero(counts) == 3


def test_entropy_runs_from_zero_to_the_logarithm_of_the_classes():
    assert class_entropy([7, 0, 0]) == 0.0
    assert math.copysign(1, class_entropy([7])) == 1
    assert class_entropy([3] * 10) == pytest.approx(math.log(10))
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert class_entropy([2, 1, 0, 1]) == pytest.approx(expected)


def test_agreement_is_the_share_judged_as_asked():
    assert agreement(np.arange(10), np.arange(10)) == 1.0
    assert agreement([0, 1, 2], [1, 2, 0]) == 0.0
    assert agreement([4, 4, 4, 4], [4, 4, 4, 5]) == 0.75


def test_labels_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"^labels run from 0 to 5; there are 5 classes, from 0$"):
        class_histogram([0, 5], 5)
    with pytest.raises(ValueError, match=r"^labels run from -1 to 0"):
        class_histogram([0, -1], 5)
    with pytest.raises(ValueError, match=r"^labels is float64 of shape"):
        class_histogram([0.0, 1.0], 5)
    with pytest.raises(ValueError, match=r"^asked has 2 labels; judged has 3$"):
        agreement([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"^judged is int64 of shape \(1, 2\)"):
        agreement([0, 1], [[0, 1]])
    for bad in ([0, 0], [-1, 2], [math.nan, 1]):
        with pytest.raises(ValueError, match=r"^histogram="):
            class_entropy(bad)
