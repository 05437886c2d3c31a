"""DCGAN: transposed convolutions against strided ones (Radford et al. 2016), at any power of two.

The papers' and tutorials' two sizes: `Generator((512, 256, 128, 64))` against
`Discriminator((64, 128, 256, 512))` for 64×64, and `Generator((256, 128, 64))` against
`Discriminator((64, 128, 256))` for 32×32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv, ConvTranspose, check_widths
from aigc_jax.nn.embed import append_label
from aigc_jax.nn.norm import Norm, check_norm


class Generator(nn.Module):
    """Double 4×4 pixels until they are 4·2ⁿ, n the number of widths; tanh last.

    Attributes:
        channels: widths, from 4×4 pixels on.
        colours: channels of the image.
        classes: number of labels, appended to z as a one-hot vector; 0 is unconditional.
        norm: "batch" between convolution and ReLU, or "none" and a bias in its place.
        dtype: of the computation; parameters and statistics stay float32.
    """

    channels: tuple[int, ...] = (512, 256, 128, 64)
    colours: int = 3
    classes: int = 0
    norm: Norm = "batch"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, z: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, latent) and (b,) labels, if there are classes, to (b, s, s, colours) in (−1, 1).

        `train` makes batch statistics live, over the mapped axis `axis` too.
        """
        check_norm(self.norm)
        check_widths(self.channels)
        z = append_label(z, label, self.classes)  # (b, latent) -> (b, latent + classes)
        x = z[:, None, None]  # (b, z) -> (b, 1, 1, z)
        for i, width in enumerate(self.channels):
            stride, padding = (1, "VALID") if i == 0 else (2, "SAME")
            x = _conv(ConvTranspose, width, stride, padding, self.norm == "none", self.dtype)(x)
            x = nn.relu(_norm(x, self.norm, train, axis, self.dtype))  # -> (b, 4*2^i, ..., width)
        x = _conv(ConvTranspose, self.colours, 2, "SAME", self.norm == "none", self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Halve the image until it is 4×4, LeakyReLU of slope 0.2 between convolutions.

    Attributes:
        channels: widths, one a halving.
        classes: number of labels, beside the image as one-hot planes; 0 is unconditional.
        norm: "batch" after every convolution but the first and the last, or "none" and biases: a
            penalty on a critic's gradients allows no statistics of the batch.
        dtype: of the computation; parameters and statistics stay float32.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512)
    classes: int = 0
    norm: Norm = "batch"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, s, s, c) in [−1, 1], and (b,) labels, to (b,) logits, in float32.

        Raises:
            ValueError: the image is not square, or halving leaves another side than 4.
        """
        check_norm(self.norm)
        check_widths(self.channels)
        _, h, w, _ = x.shape
        if (h, w) != (4 * 2 ** len(self.channels),) * 2:
            side = 4 * 2 ** len(self.channels)
            raise ValueError(f"channels={self.channels} are for {side}×{side} images, not {h}×{w}")
        x = append_label(x, label, self.classes)  # -> (b, h, w, c + classes)
        for i, width in enumerate(self.channels):
            x = _conv(Conv, width, 2, 1, self.norm == "none", self.dtype)(x)
            if i > 0:
                x = _norm(x, self.norm, train, axis, self.dtype)
            x = jax.nn.leaky_relu(x, 0.2)  # -> (b, h/2^(i+1), ..., width)
        x = _conv(Conv, 1, 1, "VALID", self.norm == "none", self.dtype)(x)  # -> (b, 1, 1, 1)
        return x[:, 0, 0, 0].astype(jnp.float32)


def _conv(kind: Any, width: int, stride: int, padding: Any, bias: bool, dtype: Any) -> Any:
    """Return a 4×4 convolution whose kernel starts as N(0, 0.02²) (Radford et al. 2016, §4)."""
    return kind(
        width,
        (4, 4),
        (stride, stride),
        padding,
        use_bias=bias,
        kernel_init=nn.initializers.normal(0.02),
        dtype=dtype,
    )


def _norm(x: Array, norm: Norm, train: bool, axis: str | None, dtype: Any) -> Array:
    """Normalise a batch, by scales that start as N(1, 0.02²)."""
    if norm == "none":
        return x

    def scale_init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return 1 + 0.02 * jax.random.normal(key, shape, dtype)

    return nn.BatchNorm(
        not train, momentum=0.9, epsilon=1e-5, axis_name=axis, dtype=dtype, scale_init=scale_init
    )(x)
