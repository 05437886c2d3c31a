"""The encoder and decoder of VQ-VAE, a quarter of the image's size between them.

van den Oord et al. 2017, *Neural Discrete Representation Learning*, §4.1, with the widths of
DeepMind's published CIFAR-10 recipe: 128 channels, 32 within a residual block.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv, ConvTranspose


class Encoder(nn.Module):
    """Halve the image twice, then two residual blocks, then a projection to the codes' channels.

    Attributes:
        width: channels of a code.
        hidden: channels of the layers, half as many after the first.
        residual: channels within a residual block.
        blocks: residual blocks.
        dtype: of the computation; parameters stay float32.
    """

    width: int = 64
    hidden: int = 128
    residual: int = 32
    blocks: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, h, w, c) in [−1, 1] to (b, h/4, w/4, width), in float32.

        Raises:
            ValueError: the image does not divide by 4.
        """
        _, h, w, _ = x.shape
        if h % 4 or w % 4:
            raise ValueError(f"the encoder halves images twice; {h}×{w} does not divide by 4")
        x = nn.relu(Conv(self.hidden // 2, (4, 4), (2, 2), dtype=self.dtype)(x))
        x = nn.relu(Conv(self.hidden, (4, 4), (2, 2), dtype=self.dtype)(x))  # -> (b, h/4, w/4, c)
        x = Conv(self.hidden, (3, 3), dtype=self.dtype)(x)
        x = Residual(self.residual, self.blocks, self.dtype)(x)
        return Conv(self.width, (1, 1), dtype=self.dtype)(x).astype(jnp.float32)


class Decoder(nn.Module):
    """The encoder's mirror image.

    Attributes:
        colours: channels of the image.
        hidden: channels of the layers, half as many before the last.
        residual: channels within a residual block.
        blocks: residual blocks.
        dtype: of the computation; parameters stay float32.
    """

    colours: int = 3
    hidden: int = 128
    residual: int = 32
    blocks: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Map (b, h, w, width) to (b, 4·h, 4·w, colours), in float32, not bounded."""
        x = Conv(self.hidden, (3, 3), dtype=self.dtype)(z)
        x = Residual(self.residual, self.blocks, self.dtype)(x)
        x = nn.relu(ConvTranspose(self.hidden // 2, (4, 4), (2, 2), dtype=self.dtype)(x))
        x = ConvTranspose(self.colours, (4, 4), (2, 2), dtype=self.dtype)(x)  # -> (b, 4*h, 4*w, c)
        return x.astype(jnp.float32)


class Residual(nn.Module):
    """Residual blocks of ReLU, 3×3, ReLU, 1×1, and a last ReLU.

    Attributes:
        width: channels within a block.
        blocks: how many.
        dtype: of the computation.
    """

    width: int
    blocks: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, h, w, c) to (b, h, w, c)."""
        for _ in range(self.blocks):
            y = nn.relu(Conv(self.width, (3, 3), dtype=self.dtype)(nn.relu(x)))
            x = x + Conv(x.shape[-1], (1, 1), dtype=self.dtype)(y)
        return nn.relu(x)
