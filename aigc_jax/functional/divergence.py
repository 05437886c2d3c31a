"""Gaussian latents: draws of them, their divergences, and how these are held up in a loss.

Everything is each example's own, in nats.
"""

import chex
import jax.numpy as jnp
from jax import Array

from aigc_jax.core.keys import normal
from aigc_jax.core.shapes import sum_flat


def reparameterise(mu: Array, logvar: Array, keys: Array, temperature: float = 1.0) -> Array:
    """Draw z = μ + τ·σ·ε, ε ~ N(0, 1), through which gradients reach μ and σ.

    Args:
        mu: (b, ...) means.
        logvar: (b, ...) log σ².
        keys: (b,); example i depends on `keys[i]` alone.
        temperature: τ; 1 draws from N(μ, σ²), 0 gives the mean.

    Returns:
        (b, ...) float32.

    Kingma and Welling 2014, *Auto-Encoding Variational Bayes*, eq. 10.
    """
    chex.assert_equal_shape([mu, logvar])
    chex.assert_shape(keys, mu.shape[:1])
    mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
    return mu + temperature * jnp.exp(0.5 * logvar) * normal(keys, mu.shape[1:])


def gaussian_kl_terms(mu: Array, logvar: Array) -> Array:
    """Return each dimension's KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − 1 − log σ²).

    Args:
        mu: (b, ...) means.
        logvar: (b, ...) log σ².

    Returns:
        (b, ...) nats, each at least 0.

    Kingma and Welling 2014, appendix B.
    """
    chex.assert_equal_shape([mu, logvar])
    mu, logvar = mu.astype(jnp.float32), logvar.astype(jnp.float32)
    # expm1 keeps the tiny divergence of a σ that is almost 1.
    return 0.5 * (jnp.square(mu) + jnp.expm1(logvar) - logvar)


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

    Kingma and Welling 2014, appendix B.
    """
    return sum_flat(gaussian_kl_terms(mu, logvar))


def gaussian_kl_between(mu: Array, logvar: Array, prior_mu: Array, prior_logvar: Array) -> Array:
    """Return KL(N(μ, σ²) ‖ N(m, s²)) = ½ Σ ((μ − m)²/s² + σ²/s² − 1 − log σ²/s²).

    It is the divergence from a prior that is learned, or given by a condition.

    Args:
        mu: (b, ...) means.
        logvar: (b, ...) log σ².
        prior_mu: broadcasts against `mu`: the prior's means m.
        prior_logvar: broadcasts against `mu`: log s².

    Returns:
        (b,) nats, at least 0.

    Example:
        >>> prior = jnp.ones((2,)), jnp.zeros((2,))
        >>> gaussian_kl_between(jnp.zeros((1, 2)), jnp.zeros((1, 2)), *prior).tolist()
        [1.0]

    Sohn et al. 2015, *Learning Structured Output Representation using Deep Conditional Generative
    Models*, eq. 4, has the divergence from such a prior.
    """
    chex.assert_equal_shape([mu, logvar])
    mu, logvar, prior_mu, prior_logvar = (
        x.astype(jnp.float32) for x in (mu, logvar, prior_mu, prior_logvar)
    )
    ratio = logvar - prior_logvar
    chex.assert_equal_shape([mu, ratio])
    gap = jnp.square(mu - prior_mu) * jnp.exp(-prior_logvar)
    return 0.5 * sum_flat(gap + jnp.expm1(ratio) - ratio)


def free_bits(kl: Array, minimum: float) -> Array:
    """Return Σ_j max(λ, KL_j): below λ nats a dimension costs nothing more, and does not collapse.

    The paper takes the maximum of the minibatch's average, which an example's own loss cannot; this
    is at least that. Of the divergence as a whole, `kl[:, None]`, λ frees the nats that MusicVAE's
    max(KL − λ, 0) does, and adds the constant λ.

    Args:
        kl: (b, d) nats by dimension, or by group of dimensions.
        minimum: λ, in nats.

    Returns:
        (b,) nats, at least d·λ.

    Example:
        >>> free_bits(jnp.array([[0.25, 3.0]]), 1.0).tolist()
        [4.0]

    Kingma et al. 2016, *Improving Variational Inference with Inverse Autoregressive Flow*, eq. 15.
    """
    chex.assert_rank(kl, 2)
    return sum_flat(jnp.maximum(kl, minimum))


def capacity_penalty(kl: Array, capacity: Array | float, gamma: float) -> Array:
    """Return γ·|KL − C|, which holds the divergence at C nats.

    Args:
        kl: (b,) nats.
        capacity: C, in nats; the paper raises it from 0 in the course of training.
        gamma: γ, the penalty of a nat.

    Returns:
        (b,) nats.

    Burgess et al. 2018, *Understanding disentangling in β-VAE*, eq. 8.
    """
    chex.assert_rank(kl, 1)
    return gamma * jnp.abs(kl - capacity)
