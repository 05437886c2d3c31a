"""Vectors rounded to a codebook, or to a grid, and gradients that pass the rounding by.

All of it in float32, products at full precision: which code is nearest must not hang on how much of
a number a matrix unit reads.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from aigc_jax.core.keys import uniform
from aigc_jax.core.shapes import mean_flat

PRECISION = lax.Precision.HIGHEST


def nearest_code(x: Array, codebook: Array) -> Array:
    """Return which code is nearest to each vector: argmin_j ‖x − e_j‖².

    The distances are one matrix product, without the term ‖x‖² that all codes share. Of codes
    equally near the first is taken.

    Args:
        x: (..., d).
        codebook: (k, d) e.

    Returns:
        (...) int32 in 0..k-1.

    Example:
        >>> nearest_code(jnp.array([[0.9], [0.5], [-3.0]]), jnp.array([[0.0], [1.0]])).tolist()
        [1, 0, 0]

    van den Oord et al. 2017, *Neural Discrete Representation Learning*, eq. 1.
    """
    chex.assert_rank(codebook, 2)
    chex.assert_axis_dimension(x, -1, codebook.shape[1])
    x, codebook = x.astype(jnp.float32), codebook.astype(jnp.float32)
    product = jnp.matmul(x, codebook.T, precision=PRECISION)  # (..., d) -> (..., k)
    return jnp.argmin(jnp.square(codebook).sum(-1) / 2 - product, -1).astype(jnp.int32)


def read_code(index: Array, codebook: Array) -> Array:
    """Return the vectors of codes, by a product that differentiates alike on every run.

    A lookup's gradient would be a scatter, which a GPU adds up in whatever order it comes.

    Args:
        index: (...) integers in 0..k-1.
        codebook: (k, d).

    Returns:
        (..., d).
    """
    chex.assert_rank(codebook, 2)
    chosen = jax.nn.one_hot(index, codebook.shape[0], dtype=codebook.dtype)  # (...) -> (..., k)
    return jnp.matmul(chosen, codebook, precision=PRECISION)


def straight_through(x: Array, rounded: Array) -> Array:
    """Return what x was rounded to, whose gradient is taken for x's own.

    Bengio et al. 2013, *Estimating or Propagating Gradients Through Stochastic Neurons*, §2.3; van
    den Oord et al. 2017, §3.2.

    Example:
        >>> float(jax.grad(lambda x: 3 * straight_through(x, jnp.round(x)))(0.7))
        3.0
    """
    chex.assert_equal_shape([x, rounded])
    # Not x + (rounded − x), whose rounding error would leave the codebook.
    return lax.stop_gradient(rounded) + (x - lax.stop_gradient(x))


def commitment_loss(x: Array, codes: Array) -> Array:
    """Return how far an encoder's vectors lie from their codes, which do not move: ‖x − sg(e)‖².

    Averaged over all values, as DeepMind's published code does, not summed over d.

    Args:
        x: (b, ..., d).
        codes: (b, ..., d) e, the code of each.

    Returns:
        (b,).

    van den Oord et al. 2017, eq. 3, the third term without its β.
    """
    chex.assert_equal_shape([x, codes])
    return mean_flat(jnp.square(x.astype(jnp.float32) - lax.stop_gradient(codes)))


def codebook_loss(x: Array, codes: Array) -> Array:
    """Return how far codes lie from an encoder's vectors, which do not move: ‖sg(x) − e‖².

    Args:
        x: (b, ..., d).
        codes: (b, ..., d) e, the code of each.

    Returns:
        (b,) averages over all values.

    van den Oord et al. 2017, eq. 3, the second term.
    """
    return commitment_loss(codes, x)


class CodeStatistics(NamedTuple):
    """What a codebook is the average of.

    Attributes:
        frequency: (k,) share of an example's vectors that a code stands for.
        sums: (k, d) of those vectors, divided by the number of all.
    """

    frequency: Array
    sums: Array


def code_statistics(x: Array, index: Array, codes: int) -> CodeStatistics:
    """Average over a batch what its vectors contribute to their codes.

    Being averages over examples, those of parts of a batch average to those of the whole.

    Args:
        x: (b, ..., d).
        index: (b, ...) integers, the code of each.
        codes: k.

    van den Oord et al. 2017, appendix A.1, n_i and Σ z_{i,j} over the number of all vectors.
    """
    chex.assert_equal_shape_prefix([x, index], index.ndim)
    x = x.astype(jnp.float32).reshape(-1, x.shape[-1])  # (b, ..., d) -> (n, d)
    chosen = jax.nn.one_hot(index.reshape(-1), codes)  # (b, ...) -> (n, k)
    sums = jnp.matmul(chosen.T, x, precision=PRECISION)  # -> (k, d)
    return CodeStatistics(chosen.mean(0), sums / len(x))


def adopt_codes(x: Array, dead: Array, keys: Array, chance: float) -> CodeStatistics:
    """Offer dead codes to each example, which adopts one with a chance and gives it its vector.

    Several who adopt the same code contribute to it alike, so that it becomes their average; with
    none it waits. The sum over adopters is scaled so that a code's expected frequency is one k-th.

    Args:
        x: (b, ..., d).
        dead: (k,) bool, which codes are offered.
        keys: (b,); what example i adopts depends on `keys[i]` alone.
        chance: of an example to adopt a code, in (0, 1]; about 1/b gives it about one adopter.

    Returns:
        The average over the batch, to be added to statistics.
    """
    chex.assert_rank(dead, 1)
    chex.assert_shape(keys, x.shape[:1])
    k = len(dead)
    x = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])  # (b, ..., d) -> (b, n, d)
    n = x.shape[1]
    # One draw says whether, and, rescaled, which of the vectors.
    draw = uniform(keys, (k,)) / chance
    place = jnp.minimum(jnp.floor(draw * n), n - 1).astype(jnp.int32)  # (b, k)
    adopted = jnp.where((draw < 1) & dead, 1 / (chance * k), 0.0)
    given = jnp.take_along_axis(x, place[:, :, None], 1)  # (b, n, d) -> (b, k, d)
    return CodeStatistics(adopted.mean(0), (adopted[:, :, None] * given).mean(0))


def read_codebook(statistics: CodeStatistics, epsilon: float = 1e-8) -> Array:
    """Return the vectors of a codebook: e_i = m_i / N̂_i, N̂_i = (N_i + ε) Σ N / (Σ N + k ε).

    A code that has no statistics yet is 0.

    Args:
        statistics: N and m, running averages of `code_statistics`.
        epsilon: ε of the Laplace smoothing, as a frequency; 1e-5 of a batch's counts, as
            published, is 5e-9 of its 2,048 vectors.

    Returns:
        (k, d).

    Example:
        >>> read_codebook(CodeStatistics(jnp.array([0.5, 0.0]), jnp.array([[1.0], [0.0]]))).tolist()
        [[2.0], [0.0]]

    van den Oord et al. 2017, eq. 6 to 8; the smoothing is their published code's.
    """
    frequency, sums = statistics
    chex.assert_rank([frequency, sums], [1, 2])
    total = frequency.sum()
    smooth = (frequency + epsilon) * total / (total + len(frequency) * epsilon)
    return sums / jnp.maximum(smooth, jnp.finfo(jnp.float32).tiny)[:, None]


def perplexity(frequency: Array) -> Array:
    """Return how many codes, used equally, would be as varied: exp(−Σ p log p).

    Args:
        frequency: (..., k) at least 0, of any sum but 0.

    Returns:
        (...) in [1, k].

    Example:
        >>> float(perplexity(jnp.array([2.0, 2.0, 0.0, 0.0])))
        2.0
    """
    chex.assert_axis_dimension_gteq(frequency, -1, 1)
    p = frequency / frequency.sum(-1, keepdims=True)
    return jnp.exp(jax.scipy.special.entr(p).sum(-1))


# Finite scalar quantisation


def check_levels(levels: tuple[int, ...]) -> None:
    """Refuse a grid without axes, or with an axis of fewer than two levels.

    Raises:
        ValueError: as said; or the grid has too many points to be counted in 31 bits.
    """
    if not levels or min(levels) < 2:
        raise ValueError(f"levels={levels} must be one number or more, each at least 2")
    if math.prod(levels) > 2**31 - 1:
        raise ValueError(f"levels={levels} make {math.prod(levels)} codes; at most 2**31 - 1")


def bound_levels(z: Array, levels: tuple[int, ...]) -> Array:
    """Squash each channel so that rounding it gives as many integers as it has levels.

    f(z) = (L − 1)/2 · tanh(z + s) − o, with o = ½ for even L and 0 for odd, and s such that
    f(0) = 0. (The paper's listing has tan for the artanh in s, which is that to first order.)

    Args:
        z: (..., d).
        levels: L of each of the d channels.

    Returns:
        (..., d) float32, rounding to −⌊L/2⌋, …, ⌈L/2⌉ − 1.

    Mentzer et al. 2023, *Finite Scalar Quantization: VQ-VAE Made Simple*, §3.1 and appendix A.1.
    """
    check_levels(levels)
    chex.assert_axis_dimension(z, -1, len(levels))
    # A thousandth more, so that the outermost levels are reached by finite numbers.
    half = (np.array(levels) - 1) * 1.001 / 2
    offset = np.where(np.array(levels) % 2, 0.0, 0.5)
    shift = np.arctanh(offset / half)
    half, offset, shift = (jnp.asarray(a, jnp.float32) for a in (half, offset, shift))
    return half * jnp.tanh(z.astype(jnp.float32) + shift) - offset


def round_to_levels(z: Array, levels: tuple[int, ...]) -> Array:
    """Round each channel to one of its levels in [−1, 1], with the gradient of `bound_levels`.

    Args:
        z: (..., d).
        levels: L of each channel.

    Returns:
        (..., d) float32 multiples of 1/⌊L/2⌋.

    Example:
        >>> round_to_levels(jnp.array([[0.0, -9.0], [0.6, 9.0]]), (5, 4)).tolist()
        [[0.0, -1.0], [0.5, 0.5]]

    Mentzer et al. 2023, appendix A.1.
    """
    bounded = bound_levels(z, levels)
    width = jnp.array(levels) // 2
    return straight_through(bounded, jnp.round(bounded)) / width


def levels_to_index(codes: Array, levels: tuple[int, ...]) -> Array:
    """Number the points of a grid, the first channel running fastest.

    Args:
        codes: (..., d) of `round_to_levels`.
        levels: L of each channel.

    Returns:
        (...) int32 in 0..ΠL-1.

    Mentzer et al. 2023, appendix A.1.
    """
    check_levels(levels)
    chex.assert_axis_dimension(codes, -1, len(levels))
    width, basis = _radix(levels)
    digits = jnp.round(codes * width).astype(jnp.int32) + width
    return (digits * basis).sum(-1, dtype=jnp.int32)


def index_to_levels(index: Array, levels: tuple[int, ...]) -> Array:
    """Return the points of a grid by their numbers: the inverse of `levels_to_index`.

    Args:
        index: (...) integers in 0..ΠL-1.
        levels: L of each channel.

    Returns:
        (..., d) float32 in [−1, 1].

    Example:
        >>> index_to_levels(jnp.array([0, 7]), (5, 4)).tolist()
        [[-1.0, -1.0], [0.0, -0.5]]
    """
    check_levels(levels)
    chex.assert_type(index, int)
    width, basis = _radix(levels)
    digits = index[..., None] // basis % np.array(levels, np.int32)  # (...) -> (..., d)
    return (digits - width) / width.astype(np.float32)


def _radix(levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return ⌊L/2⌋ of each channel, and what a step of it counts for."""
    basis = np.cumprod((1, *levels[:-1]))
    return np.array(levels, np.int32) // 2, basis.astype(np.int32)
