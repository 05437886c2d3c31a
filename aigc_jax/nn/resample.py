"""Changing the resolution of images."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def smooth(x: Array, pads: tuple[int, int]) -> Array:
    """Filter images by [1, 3, 3, 1]/8 along both axes, in their own type.

    By sums of shifted images: a convolution by channel is many times slower on a CPU. The gradient
    is written out, as the filter itself. There is no forward mode (`jax.jvp`).

    Args:
        x: (b, h, w, c).
        pads: zeros (before, after) along both axes.

    Returns:
        (b, h + before + after − 3, w + before + after − 3, c).
    """
    chex.assert_rank(x, 4)
    for axis in (1, 2):
        config = [(*pads, 0) if i == axis else (0, 0, 0) for i in range(4)]
        padded = lax.pad(x, jnp.zeros((), x.dtype), config)
        n = padded.shape[axis] - 3
        a, b, c, d = (lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(4))
        x = (a + 3 * (b + c) + d) / 8
    return x


def _smooth_forward(x: Array, pads: tuple[int, int]) -> tuple[Array, None]:
    return smooth(x, pads), None


def _smooth_backward(pads: tuple[int, int], _: None, g: Array) -> tuple[Array]:
    return (smooth(g, (3 - pads[0], 3 - pads[1])),)


smooth.defvjp(_smooth_forward, _smooth_backward)


def smooth_upsample(x: Array) -> Array:
    """Double an image, every second pixel zero, and smooth it: (b, h, w, c) -> (b, 2h, 2w, c).

    Constants stay what they are but next to the border, beyond which there are zeros. This is 4
    times the transpose of `smooth_downsample`.

    >>> smooth_upsample(jnp.ones((1, 3, 3, 1)))[0, 2, :, 0].tolist()
    [0.75, 1.0, 1.0, 1.0, 1.0, 0.75]
    """
    chex.assert_rank(x, 4)
    spread = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0)))
    y: Array = smooth(spread, (2, 2))
    return 4 * y


def smooth_downsample(x: Array) -> Array:
    """Smooth an image and keep every second pixel: (b, h, w, c) -> (b, h/2, w/2, c)."""
    chex.assert_rank(x, 4)
    y: Array = smooth(x, (1, 1))
    return y[:, ::2, ::2]
