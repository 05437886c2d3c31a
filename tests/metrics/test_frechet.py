from functools import reduce

import numpy as np
import pytest
from numpy.testing import assert_allclose

from aigc_jax.metrics.frechet import Moments, fit, frechet_distance, merge


def covariance(rng, d, rank=None):
    half = rng.normal(size=(d, rank or 2 * d))
    return half @ half.T / d


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_fit_is_the_mean_and_unbiased_covariance_however_chunked(chunk):
    x = np.random.default_rng(0).normal(size=(100, 4)) * [1, 2, 3, 4] + 50
    mean, cov, n = fit(x, chunk=chunk)
    assert n == 100
    assert_allclose(mean, x.mean(axis=0), rtol=1e-12)
    assert_allclose(cov, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)


def test_parts_of_any_size_merge_to_the_whole():
    x = np.random.default_rng(1).normal(size=(60, 3))
    parts = [x[:1], x[1:2], x[2:30], x[30:]]
    whole, merged = fit(x), reduce(merge, map(fit, parts))
    assert merged.n == 60
    assert_allclose(merged.mean, whole.mean, atol=1e-14)
    assert_allclose(merged.cov, whole.cov, atol=1e-13)


def test_float32_features_far_from_zero_keep_their_covariance():
    # In float32 the mean alone is off by more than this allows.
    x = (1e4 + np.random.default_rng(2).normal(size=(1000, 1))).astype(np.float32)
    assert_allclose(fit(x).cov[0, 0], np.var(x.astype(np.float64), ddof=1), rtol=1e-9)


def test_diagonal_gaussians_have_their_closed_form():
    # d² = Σ (μ_a - μ_b)² + Σ (σ_a - σ_b)²
    a = Moments(np.array([1.0, 2.0, 3.0]), np.diag([1.0, 4.0, 9.0]), 99)
    b = Moments(np.array([1.0, 0.0, 0.0]), np.diag([16.0, 4.0, 1.0]), 99)
    assert_allclose(frechet_distance(a, b), (4 + 9) + (9 + 0 + 4), rtol=1e-12)


def test_rotated_covariances_that_do_not_commute_have_their_closed_form():
    # For 2 x 2 matrices tr(M^½) = (tr M + 2 (det M)^½)^½.
    a, b = np.diag([4.0, 1.0]), np.array([[2.5, 1.5], [1.5, 2.5]])
    assert not np.allclose(a @ b, b @ a)
    m = a @ b
    root = np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    got = frechet_distance(Moments(np.zeros(2), a, 9), Moments(np.zeros(2), b, 9))
    assert_allclose(got, np.trace(a) + np.trace(b) - 2 * root, rtol=1e-12)


@pytest.mark.parametrize("d", [2, 5, 64])
def test_general_covariances_agree_with_the_eigenvalues_of_their_product(d):
    # Σ_a Σ_b is similar to Σ_a^½ Σ_b Σ_a^½: another matrix, another algorithm, the same trace.
    rng = np.random.default_rng(d)
    a, b = covariance(rng, d), covariance(rng, d)
    mean_a, mean_b = rng.normal(size=(2, d))
    cross = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(a) + np.trace(b) - 2 * cross
    got = frechet_distance(Moments(mean_a, a, 999), Moments(mean_b, b, 999))
    assert_allclose(got, expected, rtol=1e-8)
    assert_allclose(frechet_distance(Moments(mean_b, b, 999), Moments(mean_a, a, 999)), got)


def test_a_set_is_at_no_distance_from_itself_even_with_a_singular_covariance():
    rng = np.random.default_rng(3)
    full = fit(rng.normal(size=(200, 16)))
    assert 0 <= frechet_distance(full, full) < 1e-10
    flat = Moments(np.zeros(16), covariance(rng, 16, rank=2), 200)
    assert 0 <= frechet_distance(flat, flat) < 1e-6


def test_a_shift_of_the_features_adds_its_square():
    x = np.random.default_rng(4).normal(size=(50, 3))
    assert_allclose(frechet_distance(fit(x), fit(x + np.array([1, 2, 2]))), 9.0, rtol=1e-9)


def test_too_few_samples_and_unlike_widths_are_refused():
    many, few = fit(np.eye(9)[:, :4]), fit(np.eye(4))
    with pytest.raises(ValueError, match=r"^b has 4 samples of 4 features; .* more samples than"):
        frechet_distance(many, few)
    with pytest.raises(ValueError, match=r"^a has 4 samples"):
        frechet_distance(few, many)
    with pytest.raises(ValueError, match=r"^b has 3 features; it is compared with 4$"):
        frechet_distance(many, fit(np.eye(9)[:, :3]))
