import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.functional.quantize import (
    CodeStatistics,
    adopt_codes,
    bound_levels,
    code_statistics,
    codebook_loss,
    commitment_loss,
    index_to_levels,
    levels_to_index,
    nearest_code,
    perplexity,
    read_code,
    read_codebook,
    round_to_levels,
    straight_through,
)

adopt = jax.jit(adopt_codes, static_argnames="chance")
statistics = jax.jit(code_statistics, static_argnames="codes")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3, 5)).astype(np.float32)
CODEBOOK = RNG.normal(size=(7, 5)).astype(np.float32)


def keys(n, name="test"):
    return example_keys(stream(0, name), jnp.arange(n))


def test_the_nearest_code_is_nearest():
    distances = np.square(X[..., None, :].astype(np.float64) - CODEBOOK).sum(-1)
    index = nearest_code(X, CODEBOOK)
    assert index.shape == (4, 2, 3) and index.dtype == jnp.int32
    np.testing.assert_array_equal(index, distances.argmin(-1))
    np.testing.assert_allclose(read_code(index, CODEBOOK), CODEBOOK[distances.argmin(-1)])


def test_of_codes_equally_near_the_first_is_taken_whatever_the_type():
    codebook = jnp.array([[2.0], [0.0], [0.0], [2.0]], jnp.bfloat16)
    index = nearest_code(jnp.array([[1.0], [-1.0], [3.0]], jnp.bfloat16), codebook)
    assert index.tolist() == [0, 1, 0]


def test_reading_codes_has_the_gradient_of_a_lookup():
    index = jnp.array([[0, 6, 0]])
    g = RNG.normal(size=(1, 3, 5)).astype(np.float32)
    gradient = jax.vjp(lambda c: read_code(index, c), CODEBOOK)[1](g)[0]
    expected = np.zeros_like(CODEBOOK)
    np.add.at(expected, np.array([0, 6, 0]), g[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_straight_through_is_the_rounded_value_to_the_bit_with_the_gradient_of_the_other():
    x, rounded = jnp.array([0.1, 1e8]), jnp.array([1.0, 1 / 3])
    y, pullback = jax.vjp(straight_through, x, rounded)
    assert (y == rounded).all()
    to_x, to_rounded = pullback(jnp.array([2.0, 3.0]))
    assert to_x.tolist() == [2, 3] and to_rounded.tolist() == [0, 0]


def test_each_loss_is_the_mean_squared_distance_and_moves_one_side():
    x, e = jnp.array([[[1.0, 2.0]], [[0.0, 0.0]]]), jnp.array([[[0.0, 0.0]], [[3.0, 1.0]]])
    for loss, moved, still in ((commitment_loss, 0, 1), (codebook_loss, 1, 0)):
        np.testing.assert_allclose(loss(x, e), [2.5, 5.0])
        gradients = jax.grad(lambda *args, f=loss: f(*args).sum(), (0, 1))(x, e)
        np.testing.assert_allclose(gradients[moved], ((x, e)[moved] - (x, e)[still]))
        assert not gradients[still].any()


def test_statistics_are_frequencies_and_sums_and_average_over_parts():
    index = nearest_code(X, CODEBOOK)
    frequency, sums = statistics(X, index, codes=7)
    np.testing.assert_allclose(frequency, np.bincount(np.ravel(index), minlength=7) / 24)
    for i in range(7):
        expected = X[np.asarray(index) == i].sum(0) / 24
        np.testing.assert_allclose(sums[i], expected, atol=1e-6)
    parts = [statistics(X[i : i + 2], index[i : i + 2], codes=7) for i in (0, 2)]
    mean = jax.tree.map(lambda *x: sum(x) / 2, *parts)
    np.testing.assert_allclose(mean.sums, sums, atol=1e-6)
    np.testing.assert_allclose(mean.frequency, frequency, atol=1e-6)


def test_a_codebook_is_the_means_of_what_its_codes_stand_for():
    index = jnp.array([[0, 0], [2, 0]])
    x = jnp.array([[[1.0], [2.0]], [[7.0], [6.0]]])
    codebook = read_codebook(code_statistics(x, index, 3))
    np.testing.assert_allclose(codebook, [[3.0], [0.0], [7.0]], rtol=1e-6)
    # eq. 6 to 8 with the published smoothing, of frequencies 0.7, 0.3 and ε = 0.1.
    smoothed = read_codebook(CodeStatistics(jnp.array([0.7, 0.3]), jnp.ones((2, 1))), 0.1)
    np.testing.assert_allclose(smoothed, [[1.2 / 0.8], [1.2 / 0.4]], rtol=1e-6)
    assert not read_codebook(CodeStatistics(jnp.zeros(2), jnp.zeros((2, 3)))).any()


def test_dead_codes_alone_are_adopted_and_become_a_vector_of_the_batch():
    dead = jnp.array([True, False, True, True])
    frequency, sums = adopt(X, dead, keys(4), chance=0.25)
    assert frequency[1] == 0 and not sums[1].any()
    # One adopter of 4 examples at a chance of ¼ gives a code its even share, ¼.
    np.testing.assert_array_equal(frequency * 4 % 1, 0)
    vectors = X.reshape(24, 5)
    for i in np.flatnonzero(frequency == 0.25):
        distance = np.abs(vectors - sums[i] / 0.25).max(-1)
        assert distance.min() < 1e-6
    assert (frequency == 0.25).any()


def test_adopters_are_as_many_as_the_chance_says_from_everywhere_and_by_their_own_keys():
    n, dead = 1000, jnp.ones(16, bool)
    x = jnp.broadcast_to(jnp.arange(6.0)[:, None], (n, 6, 1))
    frequency, sums = adopt(x, dead, keys(n), chance=0.1)
    # 16,000 draws: the mean frequency is 1/16 within 4 standard errors, and the places even.
    assert abs(float(frequency.mean()) * 16 - 1) < 4 * np.sqrt(0.9 / (0.1 * 16 * n))
    assert abs(float(sums.sum() / frequency.sum()) - 2.5) < 4 * np.sqrt(35 / 12 / (0.1 * 16 * n))
    parts = [adopt(x[i : i + 500], dead, keys(n)[i : i + 500], chance=0.1) for i in (0, 500)]
    mean = jax.tree.map(lambda *p: sum(p) / 2, *parts)
    np.testing.assert_allclose(mean.sums, sums, rtol=1e-5)


def test_perplexity_is_between_one_and_all():
    assert float(perplexity(jnp.array([0.0, 3.0, 0.0]))) == 1
    np.testing.assert_allclose(perplexity(jnp.ones((2, 512)) / 512), [512, 512], rtol=1e-5)
    np.testing.assert_allclose(
        perplexity(jnp.array([1.0, 3.0])), np.exp(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))
    )


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5, 4), (2, 7)])
def test_levels_are_all_reached_and_numbered_one_by_one(levels):
    axes = [np.arange(n) - n // 2 for n in levels]
    grid = np.array(list(itertools.product(*axes)), np.float32) / (np.array(levels) // 2)
    index = levels_to_index(jnp.asarray(grid), levels)
    assert sorted(index.tolist()) == list(range(np.prod(levels)))
    np.testing.assert_allclose(index_to_levels(index, levels), grid, rtol=1e-6)
    assert levels_to_index(grid[:1], levels).tolist() == [0]
    far = jnp.linspace(-20, 20, 2001)[:, None] * jnp.ones(len(levels))
    codes = np.asarray(round_to_levels(far, levels))
    for i, n in enumerate(levels):
        np.testing.assert_allclose(np.unique(codes[:, i]), axes[i] / (n // 2), rtol=1e-6)
    assert not round_to_levels(jnp.zeros(len(levels)), levels).any()


def test_bounds_are_the_papers_and_so_is_the_gradient():
    z = jnp.array([[0.3, -0.7]])
    # Odd: (L − 1)/2·tanh z. Even: the same about a half, through 0.
    half = np.array([1.001 * 2, 1.001 * 1.5])
    shift = np.arctanh(0.5 / half[1])
    expected = [half[0] * np.tanh(0.3), half[1] * np.tanh(-0.7 + shift) - 0.5]
    np.testing.assert_allclose(bound_levels(z, (5, 4))[0], expected, rtol=1e-5)
    assert abs(float(bound_levels(jnp.zeros((1, 2)), (5, 4)).max())) < 1e-6
    gradient = jax.grad(lambda z: round_to_levels(z, (5, 4)).sum())(z)
    slopes = half * (1 - np.tanh([0.3, -0.7 + shift]) ** 2) / 2
    np.testing.assert_allclose(gradient[0], slopes, rtol=1e-5)


@pytest.mark.parametrize("levels", [(), (5, 1), (65536, 65536)])
def test_a_grid_must_be_one(levels):
    with pytest.raises(ValueError, match=r"^levels="):
        bound_levels(jnp.zeros((1, len(levels))), levels)
