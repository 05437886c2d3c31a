"""The encoder and the decoder of the textbook's VAE, a hidden layer each."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.embed import append_label


class MLPEncoder(nn.Module):
    """Map an image to the Gaussian of its latent.

    It reads levels as (x + 1)/2, black as 0: the background then moves no weight, and four epochs
    of MNIST end 1.6 nats lower than from −1.

    Attributes:
        latent: dimensions of the latent.
        hidden: units of the hidden layer.
        classes: number of labels, appended to the image as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    latent: int = 20
    hidden: int = 400
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> tuple[Array, Array]:
        """Map (b, h, w, c), and (b,) labels, to (b, latent) means and log variances, in float32."""
        x = (x.reshape(x.shape[0], -1) + 1) / 2  # (b, h, w, c) -> (b, h*w*c)
        x = append_label(x, label, self.classes)  # -> (b, h*w*c + classes)
        x = nn.relu(dense(x, self.hidden, self.dtype))
        x = dense(x, 2 * self.latent, self.dtype).astype(jnp.float32)
        mu, logvar = jnp.split(x, 2, axis=-1)  # (b, 2*latent) -> 2 x (b, latent)
        return mu, logvar


class MLPDecoder(nn.Module):
    """Map a latent to what a likelihood takes of an image.

    Attributes:
        shape: (h, w, c) of the image.
        hidden: units of the hidden layer.
        outputs: numbers a channel, those of `functional.likelihood.Likelihood`.
        classes: number of labels, appended to z as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    hidden: int = 400
    outputs: int = 1
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """Map (b, latent), and (b,) labels, to (b, h, w, c*outputs), in float32."""
        h, w, c = self.shape
        z = append_label(z, label, self.classes)  # (b, latent) -> (b, latent + classes)
        z = nn.relu(dense(z, self.hidden, self.dtype))
        z = dense(z, h * w * c * self.outputs, self.dtype).astype(jnp.float32)
        return z.reshape(-1, h, w, c * self.outputs)  # (b, h*w*c*outputs) -> (b, h, w, c*outputs)


def dense(x: Array, units: int, dtype: Any = None) -> Array:
    """Apply a new dense layer whose kernel and bias start as U(±1/√n), n being its inputs.

    The textbook's figures are of it: so PyTorch starts a layer. It is for a `compact` method.

    Args:
        x: (b, n).
        units: of the layer.
        dtype: of the computation.

    Returns:
        (b, units).

    LeCun et al. 1998, *Efficient BackProp*, section 4.6, gives √3 of it to the kernel.
    """
    bound = 1 / math.sqrt(x.shape[-1])

    def around_zero(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(units, dtype=dtype, kernel_init=around_zero, bias_init=around_zero)(x)
