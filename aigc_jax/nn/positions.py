"""Positions of tokens: rotations of queries and keys, and biases by distance.

Learned positions are an `nn.embed.Embed`, and sinusoidal ones `nn.embed.sinusoidal`.
"""

import math

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array


def rotate(x: Array, position: Array, longest: float = 10_000.0) -> Array:
    """Turn queries or keys by their positions (RoPE, Su et al. 2021, eq. 34).

    Channels i and i + d/2 are one complex number, turned by position·longest^(−2i/d); so the
    product of a query and a key depends on how far apart they stand.

    Args:
        x: (b, t, heads, d); d even.
        position: (b or 1, t) integers.
        longest: of the wavelengths, over 2π.

    Returns:
        (b, t, heads, d), of x's type.

    Raises:
        ValueError: d is odd.

    >>> rotate(jnp.ones((1, 1, 1, 2)), jnp.array([[0]])).tolist()
    [[[[1.0, 1.0]]]]
    """
    chex.assert_rank([x, position], [4, 2])
    d = x.shape[-1]
    if d % 2:
        raise ValueError(f"heads of d={d} channels cannot be turned: d must be even")
    frequency = np.float32(longest) ** -(np.arange(0, d, 2, dtype=np.float32) / d)
    angle = position.astype(jnp.float32)[..., None, None] * frequency  # -> (b, t, 1, d/2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # 2 x (b, t, heads, d/2)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def alibi(heads: int, query: Array, key: Array) -> Array:
    """Return what attention loses by distance: −m·|i − j| (ALiBi, Press et al. 2022, §3).

    The slopes m are geometric, 2^(−8/n), 2^(−16/n), …, for n heads a power of two; for others, as
    the authors' code has it, those of the power of two below and every second one of twice it.

    Args:
        heads: how many.
        query: (b or 1, t) positions.
        key: (b or 1, s) positions.

    Returns:
        (b or 1, heads, t, s) float32, at most 0; a bias of `attend`.

    >>> alibi(2, jnp.array([[2]]), jnp.array([[0, 1]]))[0, :, 0].tolist()
    [[-0.125, -0.0625], [-0.0078125, -0.00390625]]
    """
    chex.assert_rank([query, key], 2)
    below = 2 ** math.floor(math.log2(heads))
    slopes = lambda n: 2.0 ** (-8.0 / n * np.arange(1, n + 1))
    m = np.concatenate([slopes(below), slopes(2 * below)[::2]])[:heads].astype(np.float32)
    distance = jnp.abs(query[:, :, None] - key[:, None]).astype(jnp.float32)  # (b, t, s)
    return distance[:, None] * -m[:, None, None]  # -> (b, heads, t, s)
