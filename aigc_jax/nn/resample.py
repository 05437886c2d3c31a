"""Changing the resolution of images."""

import chex
import jax.numpy as jnp
from jax import Array


def upsample(x: Array) -> Array:
    """Repeat every pixel twice along both axes: (b, h, w, c) -> (b, 2h, 2w, c)."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)  # (b, h, 2, w, 2, c) -> (b, 2h, 2w, c)


def downsample(x: Array) -> Array:
    """Average 2×2 pixels: (b, h, w, c) -> (b, h/2, w/2, c)."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def space_to_depth(x: Array, p: int) -> Array:
    """Fold p×p patches into channels: (b, h, w, c) -> (b, h/p, w/p, p*p*c)."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)  # -> (b, h/p, w/p, p, p, c)
    return x.reshape(b, h // p, w // p, p * p * c)


def depth_to_space(x: Array, p: int) -> Array:
    """Unfold channels into p×p patches, the inverse: (b, h, w, p*p*c) -> (b, h*p, w*p, c)."""
    chex.assert_rank(x, 4)
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, p, p, c // p**2).swapaxes(2, 3)  # -> (b, h, p, w, p, c)
    return x.reshape(b, h * p, w * p, c // p**2)
