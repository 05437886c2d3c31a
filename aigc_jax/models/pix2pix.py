"""The U-Net that translates images into images (Isola et al. 2017, §6.1.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, uniform
from aigc_jax.nn.conv import Conv, ConvTranspose


class UNetGenerator(nn.Module):
    """Halve an image by 4×4 convolutions to a pixel or few, and double it back, with skips.

    The defaults are the paper's for 256×256 images, eight halvings to a single pixel: 54.4 M
    parameters. `(64, 128, 256, 512, 512, 512)` does so with 64×64 images.

    Attributes:
        channels: widths of the convolutions on the way down, one a halving.
        colours: channels of the result.
        dropout: probability, after the first three convolutions on the way up: all of the noise
            that the generator has.
        dtype: of the computation; parameters and statistics stay float32.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512, 512, 512)
    colours: int = 3
    dropout: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        axis: str | None = None,
        keys: Array | None = None,
    ) -> Array:
        """Translate a batch of images.

        Args:
            x: (b, h, w, c) in [−1, 1].
            train: whether batch statistics are live.
            axis: the mapped axis over which they are gathered too.
            keys: (b,), of dropout, in training and in sampling alike; None is without.

        Returns:
            (b, h, w, colours) float32 in (−1, 1).

        Raises:
            ValueError: h or w is not a multiple of 2^levels, or `dropout` is not in [0, 1).
        """
        h, w = x.shape[1:3]
        levels = len(self.channels)
        if h % 2**levels or w % 2**levels:
            raise ValueError(
                f"channels={self.channels} are for images that divide by {2**levels}, not {h}×{w}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")

        def conv(kind: Any, width: int, padding: Any, bias: bool, name: str) -> Any:
            """A bias is for what is not normalised; kernels start as N(0, 0.02²) (§6.2)."""
            return kind(
                width,
                (4, 4),
                (2, 2),
                padding,
                use_bias=bias,
                kernel_init=nn.initializers.normal(0.02),
                dtype=self.dtype,
                name=name,
            )

        def norm(x: Array, name: str) -> Array:
            return nn.BatchNorm(
                not train,
                momentum=0.9,
                epsilon=1e-5,
                axis_name=axis,
                dtype=self.dtype,
                name=name,
            )(x)

        skips = []
        for i, width in enumerate(self.channels):
            x = x if i == 0 else jax.nn.leaky_relu(x, 0.2)
            # The statistics of a bottleneck of one pixel would leave nothing of it in batches of 1.
            bare = i in (0, levels - 1)
            x = conv(Conv, width, 1, bare, f"down{i}")(x)  # -> (b, h/2^(i+1), ..., width)
            x = x if bare else norm(x, f"down{i}_norm")
            skips.append(x)

        x = skips.pop()
        for i, width in enumerate(self.channels[-2::-1]):
            x = conv(ConvTranspose, width, "SAME", False, f"up{i}")(nn.relu(x))
            x = norm(x, f"up{i}_norm")
            if i < 3 and keys is not None:
                kept = uniform(fold(keys, i), x.shape[1:]) >= self.dropout
                x = jnp.where(kept, x / (1 - self.dropout), 0)
            x = jnp.concatenate([skips.pop(), x], -1)  # -> (b, ..., 2*width)
        x = conv(ConvTranspose, self.colours, "SAME", True, "image")(nn.relu(x))
        return jnp.tanh(x.astype(jnp.float32))
