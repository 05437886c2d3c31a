"""The autoencoder of latent diffusion (Rombach et al. 2022, appendix G): an encoder, a decoder.

Their blocks are those of `models.unet`, without a time.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.models.unet import ResidualBlock, ddpm_init
from aigc_jax.nn.attention import ImageAttention
from aigc_jax.nn.conv import Conv
from aigc_jax.nn.norm import group_norm
from aigc_jax.nn.resample import upsample


class Encoder(nn.Module):
    """Halve images by convolutions, once for each multiplier but the last, to a latent's Gaussian.

    The defaults, here and of the `Decoder`, are those of Stable Diffusion, "kl-f8": 83.7 M
    parameters together, and a latent of h/8 × w/8 × 4.

    Attributes:
        channels: at the first level.
        multipliers: of the channels, by level; each further level halves the resolution.
        blocks: residual blocks a level.
        attention: image heights at which blocks attend; the middle does in any case.
        latent: channels of the latent.
        pointwise: a 1×1 convolution comes last (`quant_conv` in the published weights).
        dtype: of the computation; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    latent: int = 4
    pointwise: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Describe the latents of images.

        Args:
            x: (b, h, w, c) in [−1, 1].

        Returns:
            The mean μ and log σ² of q(z|x), each (b, h/f, w/f, latent) float32, f = 2^(levels − 1);
            log σ² is clipped to [−30, 20].

        Raises:
            ValueError: h or w is not a multiple of f.
        """
        _, h, w, _ = x.shape
        last = len(self.multipliers) - 1
        if h % 2**last or w % 2**last:
            raise ValueError(
                f"images of {h}×{w} do not divide by {2**last}, as multipliers="
                f"{self.multipliers} need"
            )
        x = _conv(self.channels, "conv_in", self.dtype)(x)
        for level, multiplier in enumerate(self.multipliers):
            width = round(multiplier * self.channels)
            for i in range(self.blocks):
                x = _stage(x, width, f"down{level}_{i}", self.attention, self.dtype)
            if level < last:
                # Zeros after the rows and columns alone, as published: (b, h, w, c) -> (b, h/2, …)
                options = {"strides": (2, 2), "padding": ((0, 1), (0, 1))}
                x = _conv(width, f"down{level}_resample", self.dtype, **options)(x)
        x = nn.silu(group_norm(x.shape[-1], self.dtype, name="norm_out")(_middle(x, self.dtype)))
        x = _conv(2 * self.latent, "conv_out", jnp.float32)(x)
        if self.pointwise:
            x = nn.Dense(2 * self.latent, name="pointwise")(x)
        mu, logvar = jnp.split(x, 2, -1)  # (b, h/f, w/f, 2*latent) -> 2 x (b, h/f, w/f, latent)
        return mu, jnp.clip(logvar, -30.0, 20.0)


class Decoder(nn.Module):
    """Double latents, by repeating pixels and convolving, to images: the `Encoder`'s mirror.

    It has a residual block a level more than the encoder.

    Attributes:
        channels: at the last level, the images'.
        multipliers: of the channels, by level, the images' first, as of the encoder.
        blocks: residual blocks a level of the encoder.
        attention: image heights at which blocks attend; the middle does in any case.
        colours: channels of the image.
        pointwise: a 1×1 convolution comes first (`post_quant_conv` in the published weights).
        dtype: of the computation; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    colours: int = 3
    pointwise: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Map (b, h, w, latent) to (b, h·f, w·f, colours) float32, about [−1, 1], not clipped."""
        x = nn.Dense(z.shape[-1], dtype=self.dtype, name="pointwise")(z) if self.pointwise else z
        widths = [round(m * self.channels) for m in self.multipliers]
        x = _middle(_conv(widths[-1], "conv_in", self.dtype)(x), self.dtype)
        for level in reversed(range(len(widths))):
            for i in range(self.blocks + 1):
                x = _stage(x, widths[level], f"up{level}_{i}", self.attention, self.dtype)
            if level > 0:
                # (b, h, w, c) -> (b, 2h, 2w, c)
                x = _conv(widths[level], f"up{level}_resample", self.dtype)(upsample(x))
        x = nn.silu(group_norm(x.shape[-1], self.dtype, name="norm_out")(x))
        return _conv(self.colours, "conv_out", jnp.float32)(x)


def _conv(width: int, name: str, dtype: Any, **options: Any) -> Any:
    return Conv(width, (3, 3), dtype=dtype, kernel_init=ddpm_init, name=name, **options)


def _stage(x: Array, width: int, name: str, attention: tuple[int, ...], dtype: Any) -> Array:
    """Apply a residual block, and attention where the image is as high as `attention` says."""
    x = ResidualBlock(width, dtype=dtype, name=name)(x, None, False)
    attends = x.shape[1] in attention
    return ImageAttention(dtype=dtype, name=f"{name}_attention")(x) if attends else x


def _middle(x: Array, dtype: Any) -> Array:
    """Apply two residual blocks around attention."""
    width = x.shape[-1]
    x = ResidualBlock(width, dtype=dtype, name="middle1")(x, None, False)
    x = ImageAttention(dtype=dtype, name="middle_attention")(x)
    return ResidualBlock(width, dtype=dtype, name="middle2")(x, None, False)
