"""DCGAN as Kim's TensorFlow code has it, for images of any size.

It is the DCGAN of the tables that count modes. Beside `models.dcgan` its kernels are 5×5, z is
projected by a dense layer, each layer has a bias, sizes are halved rounding up, and so the
discriminator ends at the few pixels that the generator begins from. `Generator()` against
`Discriminator()` draw 28×28 from 2×2.

Reference: Kim 2016, "DCGAN-tensorflow", github.com/carpedm20/DCGAN-tensorflow; Lin et al. 2018,
"PacGAN: the power of two samples in generative adversarial networks", section 4.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv, ConvTranspose, check_widths
from aigc_jax.nn.embed import append_label

KERNEL = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Double ⌈size / 2ⁿ⌉² pixels until they are size², n the number of widths; tanh last.

    Attributes:
        channels: widths, from the fewest pixels on.
        size: pixels a side of the image.
        colours: channels of the image.
        classes: number of labels, appended to z as a one-hot vector; 0 is unconditional.
        dtype: of the computation; parameters and statistics stay float32.
    """

    channels: tuple[int, ...] = (512, 256, 128, 64)
    size: int = 28
    colours: int = 3
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, z: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, latent) and (b,) labels, if there are classes, to (b, s, s, colours) in (−1, 1).

        `train` makes batch statistics live, over the mapped axis `axis` too.
        """
        check_widths(self.channels)
        sides = [-(-self.size // 2**n) for n in range(len(self.channels), -1, -1)]
        x = append_label(z, label, self.classes)  # (b, latent) -> (b, latent + classes)
        units = sides[0] ** 2 * self.channels[0]
        x = nn.Dense(units, kernel_init=KERNEL, dtype=self.dtype)(x)
        x = x.reshape(-1, sides[0], sides[0], self.channels[0])  # (b, s*s*c) -> (b, s, s, c)
        for width, side in zip((*self.channels[1:], self.colours), sides[1:], strict=True):
            x = nn.relu(_norm(x, train, axis, self.dtype))
            x = ConvTranspose(width, (5, 5), (2, 2), kernel_init=KERNEL, dtype=self.dtype)(x)
            x = x[:, -side:, -side:]  # (b, 2*h, 2*w, width) -> (b, side, side, width)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Halve the image at every width, LeakyReLU of slope 0.2 after each; a dense layer last.

    Attributes:
        channels: widths, one a halving. All but the first are followed by BatchNorm.
        classes: number of labels, beside the image as one-hot planes; 0 is unconditional.
        dtype: of the computation; parameters and statistics stay float32.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512)
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, h, w, c) in [−1, 1], and (b,) labels, to (b,) logits, in float32."""
        check_widths(self.channels)
        x = append_label(x, label, self.classes)  # -> (b, h, w, c + classes)
        for i, width in enumerate(self.channels):
            x = Conv(width, (5, 5), (2, 2), kernel_init=KERNEL, dtype=self.dtype)(x)
            x = _norm(x, train, axis, self.dtype) if i > 0 else x
            x = jax.nn.leaky_relu(x, 0.2)  # -> (b, ⌈h/2^(i+1)⌉, ..., width)
        x = x.reshape(x.shape[0], -1)  # (b, h, w, c) -> (b, h*w*c)
        x = nn.Dense(1, kernel_init=KERNEL, dtype=self.dtype)(x)
        return x[:, 0].astype(jnp.float32)


def _norm(x: Array, train: bool, axis: str | None, dtype: Any) -> Array:
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, axis_name=axis, dtype=dtype)(x)
