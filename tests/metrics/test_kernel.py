import numpy as np
import pytest
from numpy.testing import assert_allclose

from aigc_jax.metrics.kernel import kernel_distance, unbiased_mmd


def by_loops(x, y):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def among(s):
        n = len(s)
        return sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return among(x) + among(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_the_estimate_is_its_formula_term_by_term():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1
    assert_allclose(unbiased_mmd(x, y), by_loops(x.tolist(), y.tolist()), rtol=1e-12)


def test_points_on_a_line_give_the_value_worked_by_hand():
    # k(a, b) = (ab + 1)³: among {0, 1} 1, among {1, 2} 27, between them (1 + 1 + 8 + 27) / 4.
    assert_allclose(unbiased_mmd([[0.0], [1.0]], [[1.0], [2.0]]), 1 + 27 - 2 * 37 / 4)


def test_sets_of_one_distribution_average_to_zero_from_either_side():
    rng = np.random.default_rng(1)
    values = [unbiased_mmd(*rng.normal(size=(2, 20, 2))) for _ in range(400)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert 0.2 < np.mean(np.array(values) < 0) < 0.8


def test_a_shifted_set_is_many_spreads_away():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 8))
    mean, std = kernel_distance(x, rng.normal(size=(300, 8)) + 0.5, subsets=20, size=100)
    same, same_std = kernel_distance(x, rng.normal(size=(300, 8)), subsets=20, size=100)
    assert mean > 5 * std
    assert abs(same) < 2 * same_std


def test_subsets_are_addressed_by_the_seed_and_whole_sets_have_no_spread():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 30, 4))
    first = kernel_distance(x, y, subsets=3, size=10)
    assert kernel_distance(x, y, subsets=3, size=10) == first
    assert kernel_distance(x, y, subsets=3, size=10, seed=1) != first
    mean, std = kernel_distance(x, y, subsets=3, size=30)
    assert_allclose(mean, unbiased_mmd(x, y))
    assert std < 1e-12


@pytest.mark.parametrize("subsets", [2, 30])  # fewer pairs drawn than there are, and more
def test_each_value_is_the_estimate_of_its_own_subsets(subsets):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(40, 3)) + 0.2
    draws = np.random.default_rng(7)
    pick = lambda rows: rows[draws.choice(len(rows), 12, replace=False)]
    values = [unbiased_mmd(pick(x), pick(y)) for _ in range(subsets)]
    got = kernel_distance(x, y, subsets=subsets, size=12, seed=7)
    assert_allclose(got, (np.mean(values), np.std(values)), rtol=1e-9)


def test_options_out_of_range_are_refused():
    x = np.zeros((9, 2))
    with pytest.raises(ValueError, match=r"^size=10 must be from 2 to the smaller set's 9 rows$"):
        kernel_distance(x, np.zeros((20, 2)), size=10)
    with pytest.raises(ValueError, match=r"^size=1 "):
        kernel_distance(x, x, size=1)
    with pytest.raises(ValueError, match=r"^subsets=0 "):
        kernel_distance(x, x, size=4, subsets=0)
    with pytest.raises(ValueError, match=r"^y has 1 row;"):
        unbiased_mmd(x, x[:1])
