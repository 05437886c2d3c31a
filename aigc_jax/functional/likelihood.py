"""Likelihoods of data: each example's −log p(x|…) in nats, and images under what a decoder says.

Nothing here overflows at outputs of ±10⁴, whatever the data.
"""

from collections.abc import Callable
from math import log, pi
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.nn import softplus
from jax.scipy.special import logsumexp

from aigc_jax.core.keys import fold
from aigc_jax.core.shapes import sum_flat

LEVELS = 256


def bernoulli_nll(logits: Array, x: Array) -> Array:
    """Return −log p(x) = Σ softplus(l) − x·l of independent Bernoulli variables of logits l.

    For grey levels x in between it is the cross-entropy, which is not a likelihood, but a bound on
    that of any way to make them black and white whose expectation they are.

    Args:
        logits: (b, ...).
        x: (b, ...) in [0, 1].

    Returns:
        (b,) nats.

    Example:
        >>> round(float(bernoulli_nll(jnp.zeros((1, 4)), jnp.ones((1, 4)))[0]), 4)  # 4 log 2
        2.7726

    Kingma and Welling 2014, *Auto-Encoding Variational Bayes*, appendix C.1.
    """
    chex.assert_equal_shape([logits, x])
    logits = logits.astype(jnp.float32)
    return sum_flat(softplus(logits) - x * logits)


def gaussian_nll(mean: Array, logvar: Array | float, x: Array) -> Array:
    """Return −log p(x) = ½ Σ ((x − μ)²/σ² + log σ² + log 2π), of a density.

    Args:
        mean: (b, ...) μ.
        logvar: log σ², which broadcasts against `x`; it is clipped to [−30, 30].
        x: (b, ...).

    Returns:
        (b,) nats; of data of many digits it may be negative.

    Example:
        >>> round(float(gaussian_nll(jnp.zeros((1, 1)), 0.0, jnp.ones((1, 1)))[0]), 4)
        1.4189

    Kingma and Welling 2014, appendix C.2.
    """
    chex.assert_equal_shape([mean, x])
    logvar = jnp.clip(jnp.asarray(logvar, jnp.float32), -30, 30)
    gap = jnp.square(x - mean.astype(jnp.float32))
    return 0.5 * sum_flat(gap * jnp.exp(-logvar) + logvar + log(2 * pi))


def discretised_logistic_nll(mean: Array, log_scale: Array, x: Array) -> Array:
    """Return −log of the mass that a logistic puts on the bin of each 8-bit value, summed.

    P(x) = F((x + 1/255 − μ)/s) − F((x − 1/255 − μ)/s), F the sigmoid. The 256 bins are 2/255 wide
    about x = −1, …, 1; the outermost reach to ∓∞, so that the masses sum to 1. With a and b the two
    arguments it is F(a)·F(−b)·(1 − exp(b − a)), exact however far x lies in a tail.

    Args:
        mean: (b, ...) μ.
        log_scale: (b, ...) log s, clipped to [−7, 7]: as the paper's code does from below, where
            all of the mass is on one level.
        x: (b, ...) in [−1, 1], 8-bit values scaled.

    Returns:
        (b,) nats, at least 0.

    Salimans et al. 2017, *PixelCNN++*, eq. 2.
    """
    chex.assert_equal_shape([mean, log_scale, x])
    precision = jnp.exp(-jnp.clip(log_scale.astype(jnp.float32), -7, 7))
    centre, half = (x - mean.astype(jnp.float32)) * precision, precision / 255
    first, last = x < -1 + 1 / 255, x > 1 - 1 / 255
    below = jnp.where(last, 0, softplus(-centre - half))  # −log F(a), of x + 1/255
    above = jnp.where(first, 0, softplus(centre - half))  # −log F(−b), of x − 1/255
    without = jnp.where(first | last, 0, jnp.log(-jnp.expm1(-2 * half)))
    return sum_flat(below + above - without)


def categorical_nll(logits: Array, tokens: Array, mask: Array | None = None) -> Array:
    """Return −log p = Σ log Σ_v exp(l_v) − l_token of independent choices.

    Args:
        logits: (b, ..., v).
        tokens: (b, ...) integers in [0, v).
        mask: (b, ...) 1 where a token counts, 0 where none stands; by default all count.

    Returns:
        (b,) nats.

    Example:
        >>> logits, tokens = jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]])
        >>> round(float(categorical_nll(logits, tokens, jnp.array([[1, 1, 0]]))[0]), 4)  # 2 log 4
        2.7726
    """
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
    if mask is not None:
        chex.assert_equal_shape([mask, tokens])
        nll = nll * mask
    return sum_flat(nll)


def nats_to_bits_per_dim(nats: Array, dims: int) -> Array:
    """Convert the nats of examples to bits per dimension: nats / (dims·log 2).

    Args:
        nats: (b,).
        dims: values an example has, h·w·c of an image.

    Example:
        >>> float(nats_to_bits_per_dim(jnp.array([784 * 8 * log(2)]), 784)[0])
        8.0
    """
    chex.assert_rank(nats, 1)
    return nats / (dims * log(2))


def importance_weighted_nll(
    log_weight: Callable[[Array], Array], keys: Array, *, k: int, chunk: int = 50
) -> Array:
    """Bound −log p(x) from above by −log 1/k Σᵢ wᵢ, which approaches it as k grows.

    w = p(x, z)/q(z|x), of draws z ~ q(z|x). k = 1 is −ELBO. Draws are made `chunk` at a time, in
    one `lax.scan` with a running sum of their weights, so that thousands fit in memory; the bound
    does not depend on it.

    Args:
        log_weight: `keys -> log w`, (b,) keys to (b,) nats, one draw of z for each example.
        keys: (b,).
        k: draws.
        chunk: how many of them at a time.

    Returns:
        (b,) nats.

    Raises:
        ValueError: `k` or `chunk` is less than 1.

    Example:
        >>> certain = lambda keys: jnp.full(keys.shape, -2.0)
        >>> nll = importance_weighted_nll(certain, jax.random.split(jax.random.key(0), 1), k=7)
        >>> round(float(nll[0]), 4)
        2.0

    Burda et al. 2016, *Importance Weighted Autoencoders*, eq. 8.
    """
    chex.assert_rank(keys, 1)
    for name, value in (("k", k), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    chunk = min(chunk, k)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        draws = start + jnp.arange(chunk)
        weights = jax.vmap(lambda i: log_weight(fold(keys, i)))(draws)  # -> (chunk, b)
        weights = jnp.where(draws[:, None] < k, weights, -jnp.inf)
        return jnp.logaddexp(total, logsumexp(weights, axis=0)), None

    starts = jnp.arange(0, k, chunk)
    total, _ = lax.scan(add, jnp.full(keys.shape, -jnp.inf), starts)
    return log(k) - total


class Likelihood(NamedTuple):
    """How images are distributed given what a decoder puts out, channel by channel.

    Attributes:
        outputs: numbers that a decoder gives for each channel of each pixel.
        nll: `(output, x) -> (b,)` nats, of output (b, h, w, c·outputs) and images x (b, h, w, c) in
            [−1, 1].
        mean: `output -> (b, h, w, c)`, the distribution's mean, in [−1, 1].
        discrete: whether it gives each 8-bit image a probability, which bits/dim can be told of.
    """

    outputs: int
    nll: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    discrete: bool = False


BERNOULLI = Likelihood(
    1, lambda logits, x: bernoulli_nll(logits, (x + 1) / 2), lambda l: 2 * jax.nn.sigmoid(l) - 1
)
"""Black and white, or grey levels x taken for probabilities (x + 1)/2; see `bernoulli_nll`."""


def gaussian(scale: float | None = None) -> Likelihood:
    """Make the likelihood of independent Gaussians about what a decoder puts out.

    Args:
        scale: σ, in the unit of images in [−1, 1]. None has the decoder put out all means, then all
            log σ², twice the channels.

    Raises:
        ValueError: `scale` is not positive.
    """
    if scale is None:
        return Likelihood(
            2, lambda output, x: gaussian_nll(*_halves(output), x), lambda o: _clip(_halves(o)[0])
        )
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive, or None")
    return Likelihood(1, lambda mean, x: gaussian_nll(mean, 2 * log(scale), x), _clip)


DISCRETISED_LOGISTIC = Likelihood(
    2,
    lambda output, x: discretised_logistic_nll(*_halves(output), x),
    lambda output: _clip(_halves(output)[0]),
    discrete=True,
)
"""Of 8-bit values: all means, clipped for that of x, then all log scales."""


def _categorical_image_nll(output: Array, x: Array) -> Array:
    level = jnp.round((x + 1) * ((LEVELS - 1) / 2)).astype(jnp.int32)
    return categorical_nll(output.reshape(*x.shape, LEVELS), level)


def _categorical_image_mean(output: Array) -> Array:
    logits = output.reshape(*output.shape[:-1], -1, LEVELS).astype(jnp.float32)
    return jax.nn.softmax(logits) @ jnp.linspace(-1, 1, LEVELS)  # (b, h, w, c, 256) -> (b, h, w, c)


CATEGORICAL = Likelihood(LEVELS, _categorical_image_nll, _categorical_image_mean, discrete=True)
"""Of 8-bit values: 256 logits a channel, those of one channel side by side."""


def _halves(output: Array) -> tuple[Array, Array]:
    """Divide what a decoder puts out: (b, h, w, 2c) -> 2 x (b, h, w, c)."""
    first, second = jnp.split(output, 2, axis=-1)
    return first, second


def _clip(mean: Array) -> Array:
    return jnp.clip(mean.astype(jnp.float32), -1, 1)
