"""Differentiable augmentation of what a discriminator sees, real and generated (Zhao et al. 2020).

An augmentation is `(x, keys) -> x`: images (b, h, w, c) in [−1, 1], each changed at random by its
own key alone, as a function that the generator's gradient passes through. Applied to both real and
generated images, in both the discriminator's loss and the generator's, it keeps a discriminator
from learning a small data set by heart.

Zhao, Liu, Lin, Zhu and Han 2020, *Differentiable Augmentation for Data-Efficient GAN Training*;
the strengths are those of the paper and of the code published with it.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

from aigc_jax.core.keys import fold, randint, uniform
from aigc_jax.core.shapes import expand

Augmentation = Callable[[Array, Array], Array]


def chain_augmentations(*augmentations: Augmentation) -> Augmentation:
    """Apply augmentations from left to right, each under keys of its own.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> augment = chain_augmentations(brightness, translation)
        >>> augment(jnp.zeros((2, 8, 8, 3)), keys).shape
        (2, 8, 8, 3)
    """

    def apply(x: Array, keys: Array) -> Array:
        for i, augment in enumerate(augmentations):
            x = augment(x, fold(keys, i))
        return x

    return apply


def brightness(x: Array, keys: Array) -> Array:
    """Add one number to all of an image: x + u, u ~ U(−½, ½).

    Args:
        x: (b, h, w, c) in [−1, 1]; u is on this scale.
        keys: (b,).

    Returns:
        (b, h, w, c), which may leave [−1, 1]: clipping would stop the gradient.
    """
    _assert_images(x, keys)
    return x + _draw(x, keys, -0.5, 0.5)


def saturation(x: Array, keys: Array) -> Array:
    """Scale each pixel's channels about their mean m: m + u (x − m), u ~ U(0, 2).

    A grey image, of one channel, stays as it is.

    Args:
        x: (b, h, w, c) in [−1, 1].
        keys: (b,).

    Returns:
        (b, h, w, c).
    """
    _assert_images(x, keys)
    mean = jnp.mean(x, axis=3, keepdims=True)  # (b, h, w, c) -> (b, h, w, 1)
    return mean + _draw(x, keys, 0.0, 2.0) * (x - mean)


def contrast(x: Array, keys: Array) -> Array:
    """Scale an image about its mean m, over pixels and channels: m + u (x − m), u ~ U(½, 3/2).

    Args:
        x: (b, h, w, c) in [−1, 1].
        keys: (b,).

    Returns:
        (b, h, w, c).
    """
    _assert_images(x, keys)
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)  # (b, h, w, c) -> (b, 1, 1, 1)
    return mean + _draw(x, keys, 0.5, 1.5) * (x - mean)


def translation(x: Array, keys: Array) -> Array:
    """Shift an image by whole pixels, at most an eighth of each side, filling up with 0.

    0 is the middle grey of [−1, 1], as in the paper, not the background of dark images.

    Args:
        x: (b, h, w, c).
        keys: (b,).

    Returns:
        (b, h, w, c): y[i, j] = x[i − s, j − t], s ~ U{−⌊h/8⌋, …, ⌊h/8⌋}, t ~ U{−⌊w/8⌋, …, ⌊w/8⌋}.
    """
    _assert_images(x, keys)
    _, h, w, c = x.shape
    p, q = h // 8, w // 8
    padded = jnp.pad(x, ((0, 0), (p, p), (q, q), (0, 0)))  # -> (b, h + 2p, w + 2q, c)
    top, left = (randint(fold(keys, axis), 0, 2 * n + 1) for axis, n in enumerate((p, q)))
    # A slice of each image: gathering its pixels takes three times as long on the way back.
    return jax.vmap(lambda x, i, j: lax.dynamic_slice(x, (i, j, 0), (h, w, c)))(padded, top, left)


def cutout(x: Array, keys: Array) -> Array:
    """Set a window of half the height and width to 0 (DeVries and Taylor 2017).

    Its centre is uniform over the image, so that it may reach over the border, as published.

    Args:
        x: (b, h, w, c).
        keys: (b,).

    Returns:
        (b, h, w, c).
    """
    _assert_images(x, keys)
    rows, columns = (_window(fold(keys, axis), length) for axis, length in enumerate(x.shape[1:3]))
    window = rows[:, :, None] & columns[:, None, :]  # (b, h), (b, w) -> (b, h, w)
    return jnp.where(window[..., None], 0, x)


def _assert_images(x: Array, keys: Array) -> None:
    chex.assert_rank(x, 4)
    chex.assert_shape(keys, x.shape[:1])


def _draw(x: Array, keys: Array, low: float, high: float) -> Array:
    """Draw a number for each image: (b, 1, 1, 1), of the images' type."""
    return expand(low + (high - low) * uniform(keys), 4).astype(x.dtype)


def _window(keys: Array, length: int) -> Array:
    """Mark half of a side around a random centre: (b, length) booleans."""
    half = length // 2
    # An even window lies between two pixels, and its centre may be either border.
    start = randint(keys, 0, length + 1 - half % 2) - half // 2
    place = jnp.arange(length) - start[:, None]  # (b,) -> (b, length)
    return (place >= 0) & (place < half)


color = chain_augmentations(brightness, saturation, contrast)

# The policy of the paper where data are few.
diff_augment = chain_augmentations(color, translation, cutout)
