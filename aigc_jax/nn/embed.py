"""Embeddings of continuous quantities."""

import math

import chex
import jax.numpy as jnp
from jax import Array


def sinusoidal(t: Array, channels: int, longest: float = 10_000.0) -> Array:
    """Embed real numbers in sines and cosines of geometric wavelengths (Vaswani et al. 2017, §3.5).

    Args:
        t: (b,) times, in steps.
        channels: of the embedding; even.
        longest: ratio of the longest wavelength to the shortest.

    Returns:
        (b, channels) float32 in [−1, 1]: sines, then cosines.

    Raises:
        ValueError: `channels` is odd or less than 4.

    >>> sinusoidal(jnp.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    chex.assert_rank(t, 1)
    if channels % 2 or channels < 4:
        raise ValueError(f"channels={channels} must be even and at least 4")
    half = channels // 2
    frequency = jnp.exp(-math.log(longest) / (half - 1) * jnp.arange(half))
    angle = t.astype(jnp.float32)[:, None] * frequency  # (b,) -> (b, channels/2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
