"""The two perceptrons of a first GAN: 100-256-128-784 against 784-128-1."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.embed import append_label


class Generator(nn.Module):
    """Paint images by dense layers, ReLU between them and tanh last.

    Attributes:
        shape: (h, w, c) of the images.
        hidden: units of the hidden layers.
        classes: number of labels, appended to z as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    hidden: tuple[int, ...] = (256, 128)
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, z: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, latent) and (b,) labels, if there are classes, to (b, h, w, c) in (−1, 1)."""
        x = append_label(z, label, self.classes)  # (b, latent) -> (b, latent + classes)
        for units in self.hidden:
            x = nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype)(x).astype(jnp.float32)
        return jnp.tanh(x).reshape(-1, *self.shape)  # (b, h*w*c) -> (b, h, w, c)


class Discriminator(nn.Module):
    """Judge images by dense layers, LeakyReLU of slope 0.2 between them.

    Attributes:
        hidden: units of the hidden layers.
        classes: number of labels, appended to the image as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    hidden: tuple[int, ...] = (128,)
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, h, w, c) in [−1, 1], and (b,) labels, to (b,) logits, in float32."""
        x = x.reshape(x.shape[0], -1)  # (b, h, w, c) -> (b, h*w*c)
        x = append_label(x, label, self.classes)  # -> (b, h*w*c + classes)
        for units in self.hidden:
            x = jax.nn.leaky_relu(nn.Dense(units, dtype=self.dtype)(x), 0.2)
        return nn.Dense(1, dtype=self.dtype)(x)[:, 0].astype(jnp.float32)
