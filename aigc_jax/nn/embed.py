"""Embeddings of tokens, of times and of labels."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax


class Embed(nn.Module):
    """Vectors of tokens or of labels, with the parameter of flax's `nn.Embed`.

    Whatever the compute type, a vector's gradient is summed in float32. In bfloat16, where 256 + 1
    is 256, a token that is frequent in a batch would get the gradient of a rare one.

    Attributes:
        num_embeddings: how many there are.
        features: of each.
        embedding_init: of the table (num_embeddings, features).
        dtype: of what is looked up; by default float32, as the table.
    """

    num_embeddings: int
    features: int
    embedding_init: Any = nn.linear.default_embed_init
    dtype: Any = None

    def setup(self) -> None:
        """Hold the table, `embedding`."""
        shape = (self.num_embeddings, self.features)
        self.embedding = self.param("embedding", self.embedding_init, shape)

    def __call__(self, index: Array) -> Array:
        """Map (...) integers to (..., features); those out of range to NaN."""
        return jnp.take(self.embedding, index, axis=0).astype(self.dtype or self.embedding.dtype)


@jax.custom_vjp
def tied_logits(x: Array, embedding: Array) -> Array:
    """Return the logits x Wᵀ, of which W also embeds the tokens (Press & Wolf 2017).

    Logits are float32 whatever the type of x. Their gradient goes back in x's type, in which an
    accelerator multiplies matrices, and W's is summed in float32. There is no forward mode
    (`jax.jvp`).

    Args:
        x: (..., width) features.
        embedding: (v, width) float32.

    Returns:
        (..., v) float32.
    """
    return jnp.matmul(x, embedding.astype(x.dtype).T, preferred_element_type=jnp.float32)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, embedding = saved
    g = g.astype(x.dtype)
    rows = tuple(range(g.ndim - 1))
    of_embedding = lax.dot_general(g, x, ((rows, rows), ((), ())), preferred_element_type="float32")
    return g @ embedding.astype(x.dtype), of_embedding.astype(embedding.dtype)


tied_logits.defvjp(lambda x, embedding: (tied_logits(x, embedding), (x, embedding)), _backward)


def sinusoidal(
    t: Array,
    channels: int,
    longest: float = 10_000.0,
    *,
    freq_shift: float = 1,
    flip_sin_to_cos: bool = False,
) -> Array:
    """Embed real numbers in sines and cosines of geometric wavelengths (Vaswani et al. 2017, §3.5).

    Frequency i of n = channels/2 is longest^(−i / (n − freq_shift)).

    Args:
        t: (b,) times, in steps.
        channels: of the embedding; even.
        longest: ratio of the longest wavelength to the shortest.
        freq_shift: 1 reaches the longest wavelength (DDPM's code), 0 stops one short of it (ADM's).
        flip_sin_to_cos: cosines first (ADM's code).

    Returns:
        (b, channels) float32 in [−1, 1]: sines, then cosines.

    Raises:
        ValueError: `channels` is odd, or not more than 2·freq_shift.

    >>> sinusoidal(jnp.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    chex.assert_rank(t, 1)
    half = channels // 2
    if channels % 2 or half <= max(freq_shift, 0):
        least = 2 * max(math.floor(freq_shift) + 1, 1)
        raise ValueError(f"channels={channels} must be even and at least {least}")
    # By NumPy, whatever compiles the rest: a thousandth step multiplies a rounding by a thousand.
    exponent = np.float32(-math.log(longest)) * np.arange(half, dtype=np.float32)
    frequency = np.exp(exponent / np.float32(half - freq_shift))
    angle = t.astype(jnp.float32)[:, None] * frequency  # (b,) -> (b, channels/2)
    waves = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, -1)


def append_label(x: Array, label: Array | None, classes: int) -> Array:
    """Append labels to channels as one-hot vectors, the same at every pixel.

    Args:
        x: (b, ..., c).
        label: (b,) integers in [0, classes), or None if there are no classes.
        classes: how many there are.

    Returns:
        (b, ..., c + classes), of x's type; x itself without classes.

    Raises:
        ValueError: there are classes and no label, or a label and no classes.

    >>> append_label(jnp.zeros((2, 1)), jnp.array([2, 0]), 3).tolist()
    [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]
    """
    check_label(label, classes)
    if label is None:
        return x
    chex.assert_shape(label, (x.shape[0],))
    vector = jax.nn.one_hot(label, classes, dtype=x.dtype)
    vector = jnp.expand_dims(vector, range(1, x.ndim - 1))  # (b, classes) -> (b, 1, ..., classes)
    return jnp.concatenate([x, jnp.broadcast_to(vector, (*x.shape[:-1], classes))], -1)


def check_label(label: Array | None, classes: int) -> None:
    """Refuse a label where a network has no classes, and none where it has some.

    Raises:
        ValueError: as said.
    """
    if label is None and classes:
        raise ValueError(f"a network of classes={classes} needs a label")
    if label is not None and not classes:
        raise ValueError("a label was given, but this network has classes=0")
