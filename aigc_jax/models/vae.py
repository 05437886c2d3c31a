"""The encoder and the decoder of the textbook's VAE, a hidden layer each."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class MLPEncoder(nn.Module):
    """Map an image to the Gaussian of its latent.

    Attributes:
        latent: dimensions of the latent.
        hidden: units of the hidden layer.
        dtype: of the computation; parameters stay float32.
    """

    latent: int = 20
    hidden: int = 400
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Map (b, h, w, c) to (b, latent) means and (b, latent) log variances, in float32."""
        x = x.reshape(x.shape[0], -1)  # (b, h, w, c) -> (b, h*w*c)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        x = nn.Dense(2 * self.latent, dtype=self.dtype)(x).astype(jnp.float32)
        mu, logvar = jnp.split(x, 2, axis=-1)  # (b, 2*latent) -> 2 x (b, latent)
        return mu, logvar


class MLPDecoder(nn.Module):
    """Map a latent to the logits of an image.

    Attributes:
        shape: (h, w, c) of the image.
        hidden: units of the hidden layer.
        dtype: of the computation; parameters stay float32.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    hidden: int = 400
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Map (b, latent) to (b, h, w, c) logits, in float32."""
        h, w, c = self.shape
        z = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(z))
        z = nn.Dense(h * w * c, dtype=self.dtype)(z).astype(jnp.float32)
        return z.reshape(-1, h, w, c)  # (b, h*w*c) -> (b, h, w, c)
