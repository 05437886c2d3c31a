"""A convolutional VAE: strided convolutions down to a latent vector, transposed ones up from it.

`ConvEncoder(channels=(32, 64))` against `ConvDecoder((28, 28, 1), channels=(64, 32))` halve 28×28
twice; 32×32 in colour takes a third, `ConvDecoder((32, 32, 3), (128, 64, 32))`.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv, ConvTranspose, check_widths
from aigc_jax.nn.embed import append_label

HE = nn.initializers.he_normal()


class ConvEncoder(nn.Module):
    """Map an image to the Gaussian of its latent.

    Attributes:
        latent: dimensions of the latent.
        channels: widths, one a halving.
        hidden: units of the dense layer behind them.
        classes: number of labels, beside the image as one-hot planes; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    latent: int = 20
    channels: tuple[int, ...] = (32, 64)
    hidden: int = 256
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> tuple[Array, Array]:
        """Map (b, h, w, c), and (b,) labels, to (b, latent) means and log variances, in float32.

        Raises:
            ValueError: the image cannot be halved as often as there are widths.
        """
        _grid(x.shape[1:3], self.channels)
        x = append_label(x, label, self.classes)  # -> (b, h, w, c + classes)
        for width in self.channels:
            x = Conv(width, (4, 4), (2, 2), 1, kernel_init=HE, dtype=self.dtype)(x)
            x = nn.relu(x)  # -> (b, h/2^(i+1), ..., width)
        x = x.reshape(x.shape[0], -1)  # (b, h', w', width) -> (b, h'*w'*width)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x))
        x = nn.Dense(2 * self.latent, dtype=self.dtype)(x).astype(jnp.float32)
        mu, logvar = jnp.split(x, 2, axis=-1)  # (b, 2*latent) -> 2 x (b, latent)
        return mu, logvar


class ConvDecoder(nn.Module):
    """Map a latent to what a likelihood takes of an image.

    Attributes:
        shape: (h, w, c) of the image.
        channels: widths, one a doubling, from the smallest map on.
        hidden: units of the dense layer before them.
        outputs: numbers a channel, those of `functional.likelihood.Likelihood`.
        classes: number of labels, appended to z as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters stay float32.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    channels: tuple[int, ...] = (64, 32)
    hidden: int = 256
    outputs: int = 1
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """Map (b, latent), and (b,) labels, to (b, h, w, c*outputs), in float32.

        Raises:
            ValueError: the image cannot be halved as often as there are widths.
        """
        h, w = _grid(self.shape[:2], self.channels)
        z = append_label(z, label, self.classes)  # (b, latent) -> (b, latent + classes)
        z = nn.relu(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(z))
        z = nn.Dense(h * w * self.channels[0], kernel_init=HE, dtype=self.dtype)(z)
        x = nn.relu(z).reshape(-1, h, w, self.channels[0])  # (b, h'*w'*width) -> (b, h', w', width)
        for width in self.channels[1:]:
            x = ConvTranspose(width, (4, 4), (2, 2), kernel_init=HE, dtype=self.dtype)(x)
            x = nn.relu(x)  # -> (b, 2*h', 2*w', width)
        outputs = self.shape[2] * self.outputs
        x = ConvTranspose(outputs, (4, 4), (2, 2), dtype=self.dtype)(x)  # -> (b, h, w, c*outputs)
        return x.astype(jnp.float32)


def _grid(size: tuple[int, ...], channels: tuple[int, ...]) -> tuple[int, int]:
    """Return (h', w') of an image halved once for each width."""
    check_widths(channels)
    h, w = size
    n = 2 ** len(channels)
    if h % n or w % n:
        raise ValueError(f"channels={channels} halve {len(channels)} times; {h}×{w} does not")
    return h // n, w // n
