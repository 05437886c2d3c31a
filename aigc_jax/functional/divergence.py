"""Divergences between distributions, and likelihoods of data: each example's, in nats."""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from aigc_jax.core.shapes import sum_flat


def gaussian_kl(mu: Array, logvar: Array) -> Array:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²).

    Args:
        mu: (b, ...) means.
        logvar: (b, ...) log σ².

    Returns:
        (b,) nats, at least 0.

    Example:
        >>> gaussian_kl(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))).tolist()
        [0.5]

    Kingma and Welling 2014, *Auto-Encoding Variational Bayes*, appendix B.
    """
    chex.assert_equal_shape([mu, logvar])
    mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
    # expm1 keeps the tiny divergence of a σ that is almost 1.
    return 0.5 * sum_flat(jnp.square(mu) + jnp.expm1(logvar) - logvar)


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

    Kingma and Welling 2014, appendix C.1.
    """
    chex.assert_equal_shape([logits, x])
    logits = logits.astype(jnp.float32)
    return sum_flat(jax.nn.softplus(logits) - x * logits)
