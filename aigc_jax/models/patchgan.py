"""The PatchGAN discriminator: a logit for each patch of an image (Isola et al. 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv, check_widths
from aigc_jax.nn.embed import append_label
from aigc_jax.nn.norm import Norm, check_norm


class PatchGAN(nn.Module):
    """Judge patches by 4×4 convolutions, all of stride 2 but the last two; LeakyReLU of slope 0.2.

    Each logit sees 70×70 pixels with four widths, the paper's, and 34×34 with three, 16×16 with two
    (Isola et al. 2017, §6.1.2).

    Attributes:
        channels: widths of the convolutions before the last, which gives the logits.
        classes: number of labels, beside the image as one-hot planes; 0 is unconditional.
        norm: "batch" after every convolution but the first and the last, as in the paper, or
            "none".
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
        """Map (b, h, w, c) in [−1, 1], and (b,) labels, to (b, h', w') logits, in float32.

        Raises:
            ValueError: the image is too small for a single patch.
        """
        check_norm(self.norm)
        check_widths(self.channels)
        _, h, w, _ = x.shape
        least = 3 * 2 ** (len(self.channels) - 1)
        if min(h, w) < least:
            raise ValueError(f"channels={self.channels} need {least} pixels a side, not {h}×{w}")
        x = append_label(x, label, self.classes)  # -> (b, h, w, c + classes)
        initial = nn.initializers.normal(0.02)
        for i, width in enumerate(self.channels):
            stride = 1 if i == len(self.channels) - 1 else 2
            bias = i == 0 or self.norm == "none"
            x = Conv(
                width,
                (4, 4),
                (stride, stride),
                1,
                use_bias=bias,
                kernel_init=initial,
                dtype=self.dtype,
            )(x)
            if not bias:
                x = nn.BatchNorm(
                    not train, momentum=0.9, epsilon=1e-5, axis_name=axis, dtype=self.dtype
                )(x)
            x = jax.nn.leaky_relu(x, 0.2)
        x = Conv(1, (4, 4), (1, 1), 1, kernel_init=initial, dtype=self.dtype)(x)
        return x[..., 0].astype(jnp.float32)  # (b, h', w', 1) -> (b, h', w')
