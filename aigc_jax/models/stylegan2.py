"""StyleGAN2 (Karras et al. 2020, *Analyzing and improving the image quality of StyleGAN*).

Labels as in StyleGAN2-ADA (Karras et al. 2020, *Training GANs with limited data*).
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from aigc_jax.core.keys import fold, normal, randint, uniform
from aigc_jax.nn.conv import NHWC, conv_general_dilated, conv_transpose
from aigc_jax.nn.embed import check_label
from aigc_jax.nn.equalized import EqualizedConv, EqualizedDense, equalized_kernel
from aigc_jax.nn.resample import smooth, smooth_downsample, smooth_upsample

zeros = nn.initializers.zeros


def activate(x: Array) -> Array:
    """Apply √2 · LeakyReLU of slope 0.2, which keeps the size of what it maps."""
    return nn.leaky_relu(x, 0.2) * math.sqrt(2)


def normalise(x: Array) -> Array:
    """Scale vectors (b, c) to a mean square of 1."""
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-8)


def modulated_conv(
    x: Array, kernel: Array, style: Array, *, demodulate: bool = True, up: bool = False
) -> Array:
    """Convolve each image with a kernel of its own, whose input channels its style scales.

    w'_ijk = s_i w_ijk, w''_ijk = w'_ijk / √(Σ_ik w'_ijk² + ε)   (§2.2, eqs. 1 and 3).

    Both factors are an image's alone, so that scaling the channels of the image by s before one
    convolution with w, and those of the result by the root's inverse after it, is the same.

    Args:
        x: (b, h, w, c).
        kernel: (k, k, c, d), k odd; with `up`, 3.
        style: (b, c).
        demodulate: whether to divide by the root, taken in float32.
        up: whether to double the resolution, by a transposed convolution and smoothing.

    Returns:
        (b, h, w, d), or (b, 2h, 2w, d), of x's type.
    """
    chex.assert_shape(style, (x.shape[0], x.shape[-1]))
    y, w = x * _beside(style).astype(x.dtype), kernel.astype(x.dtype)
    if up:
        y: Array = smooth(conv_transpose(y, w, (2, 2), "VALID"), (1, 1))
        y = 4 * y  # (b, h, w, c) -> (b, 2h+1, 2w+1, d) -> (b, 2h, 2w, d)
    else:
        y = conv_general_dilated(y, w, (1, 1), "SAME", dimension_numbers=NHWC)
    if demodulate:
        squares = jnp.sum(kernel**2, (0, 1))  # (k, k, c, d) -> (c, d)
        # Accelerators would multiply float32 matrices in fewer bits.
        squares = jnp.dot(style**2, squares, precision="highest")  # (b, c) -> (b, d)
        y *= _beside(lax.rsqrt(squares + 1e-8)).astype(x.dtype)
    return y


def minibatch_deviation(x: Array, group: int) -> Array:
    """Append a channel: how much the images of a group differ (Karras et al. 2018, §3).

    It is the standard deviation over a group, averaged over channels and pixels.

    Args:
        x: (b, h, w, c).
        group: how many images, consecutive in the batch, are compared.

    Returns:
        (b, h, w, c + 1).

    Raises:
        ValueError: `group` does not divide b.
    """
    b, h, w, _ = x.shape
    if b % group:
        raise ValueError(f"group={group} must divide the batch a discriminator sees, {b}")
    groups = x.reshape(b // group, group, -1).astype(jnp.float32)  # -> (b/group, group, h*w*c)
    deviation = jnp.sqrt(jnp.var(groups, 1) + 1e-8).mean(-1)  # -> (b/group,)
    channel = jnp.repeat(deviation, group)[:, None, None, None].astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(channel, (b, h, w, 1))], -1)


class Mapping(nn.Module):
    """Dense layers from a latent, a label or both to styles, in float32.

    Attributes:
        features: of each layer, and of a label's embedding.
        layers: how many.
        classes: number of labels; 0 is unconditional.
    """

    features: int
    layers: int
    classes: int = 0

    @nn.compact
    def __call__(self, z: Array | None, label: Array | None) -> Array:
        """Map (b, latent) and labels (b,), of which one may be None, to (b, features)."""
        parts = [] if z is None else [normalise(z)]
        if label is not None:
            vector = jax.nn.one_hot(label, self.classes)
            parts.append(normalise(EqualizedDense(self.features, name="label")(vector)))
        w = jnp.concatenate(parts, -1)
        for i in range(self.layers):
            w = activate(EqualizedDense(self.features, lr=0.01, name=f"dense{i}")(w))
        return w


class StyledConv(nn.Module):
    """A modulated 3×3 convolution, noise, a bias and the activation (§2, figure 2c).

    Attributes:
        features: of the output.
        up: whether to double the resolution.
        dtype: of the computation.
    """

    features: int
    up: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, w: Array, keys: Array | None) -> Array:
        """Map (b, h, w, c) under w (b, latent) to (b, h', w', features); `keys` draw the noise."""
        c = x.shape[-1]
        style = EqualizedDense(c, bias=1.0, name="style")(w)
        kernel = equalized_kernel(self, (3, 3, c, self.features))
        bias = self.param("bias", zeros, (self.features,))
        strength = self.param("noise", zeros, ())
        x = modulated_conv(x.astype(self.dtype or jnp.float32), kernel, style, up=self.up)
        if keys is not None:
            noise = strength * normal(keys, x.shape[1:3])
            x += noise[..., None].astype(x.dtype)  # (b, h', w') -> (b, h', w', 1)
        return activate(x + bias.astype(x.dtype))


class ToImage(nn.Module):
    """A modulated 1×1 convolution without demodulation, to pixels in float32.

    Attributes:
        channels: of the image.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        """Map (b, h, w, c) under w (b, latent) to (b, h, w, channels)."""
        c = x.shape[-1]
        style = EqualizedDense(c, bias=1.0, name="style")(w)
        kernel = equalized_kernel(self, (1, 1, c, self.channels))
        bias = self.param("bias", zeros, (self.channels,))
        return modulated_conv(x, kernel, style, demodulate=False).astype(jnp.float32) + bias


class Generator(nn.Module):
    """Map a latent, and a label if `classes`, to styles, and paint an image by them.

    Each resolution, from a learned constant of 4×4 on, adds an image to that of the one below,
    doubled (the skip architecture, §3.1). The defaults are the paper's configuration F for
    1024×1024 images: 30.4 M parameters.

    The mean w̄ of all w is kept in the collection "averages", moved towards a batch's by 0.005 of
    the way in training where that collection is mutable. `truncation` needs it.

    Attributes:
        size: side of the image, a power of two, at least 8.
        channels: of the image.
        width: features of a layer are width/side, where that is less than `max_width`.
        max_width: of any layer.
        latent: dimensions of z and of w.
        mapping_layers: from z to w.
        classes: number of labels; 0 is unconditional.
        dtype: of the convolutions; styles, images and parameters stay float32.
    """

    size: int = 1024
    channels: int = 3
    width: int = 32_768
    max_width: int = 512
    latent: int = 512
    mapping_layers: int = 8
    classes: int = 0
    dtype: Any = None

    @property
    def layers(self) -> int:
        """How many styles paint an image: a convolution's each, and the last image's."""
        return 2 * self.size.bit_length() - 4

    def setup(self) -> None:
        """Make the mapping, the layers and the mean style."""
        _check_size(self.size)
        features = [min(self.width // side, self.max_width) for side in _sides(self.size)]
        self.mapping = Mapping(self.latent, self.mapping_layers, self.classes)
        self.constant = self.param("constant", nn.initializers.normal(1.0), (4, 4, features[0]))
        self.convs = [StyledConv(features[0], dtype=self.dtype)] + [
            StyledConv(d, up, self.dtype) for d in features[1:] for up in (True, False)
        ]
        self.images = [ToImage(self.channels) for _ in features]
        self.average = self.variable("averages", "w", jnp.zeros, (self.latent,))

    def __call__(
        self,
        z: Array,
        label: Array | None = None,
        *,
        train: bool = False,
        axis: str | None = None,
        keys: Array | None = None,
        mixing: float = 0.0,
        truncation: float = 1.0,
    ) -> Array:
        """Generate a batch of images.

        Args:
            z: (b, latent).
            label: (b,) integers in [0, classes), or None.
            train: whether w̄ follows.
            axis: not read: nothing depends on the rest of the batch.
            keys: (b,), of the noise and the mixing; None is without noise.
            mixing: probability that a second latent styles the layers after a random one.
            truncation: ψ of w̄ + ψ (w − w̄), 0 being the average image and 1 no truncation.

        Returns:
            (b, size, size, channels) float32: about [−1, 1], but as in the paper unbounded.

        Raises:
            ValueError: `size` is not a power of two; a label is given where `classes` is 0, or
                not given where it is not; or there is mixing without keys.
        """
        options = {"keys": keys, "mixing": mixing, "truncation": truncation}
        return self.synthesise(self.styles(z, label, train=train, **options), keys)

    def map(self, z: Array, label: Array | None = None, *, train: bool = False) -> Array:
        """Map latents (b, latent), and labels (b,) if there are classes, to w (b, latent)."""
        check_label(label, self.classes)
        chex.assert_axis_dimension(z, 1, self.latent)
        w = self.mapping(z, label)
        if train and self.is_mutable_collection("averages") and not self.is_initializing():
            mean = lax.stop_gradient(w).mean(0)
            self.average.value += 0.005 * (mean - self.average.value)
        return w

    def styles(
        self,
        z: Array,
        label: Array | None = None,
        *,
        train: bool = False,
        keys: Array | None = None,
        mixing: float = 0.0,
        truncation: float = 1.0,
    ) -> Array:
        """Map latents to the styles of all layers, (b, layers, latent); see `__call__`."""
        n = self.layers
        ws = jnp.repeat(self.map(z, label, train=train)[:, None], n, 1)  # (b, d) -> (b, n, d)
        if mixing:
            if keys is None:
                raise ValueError(f"mixing={mixing} needs keys")
            # The layers' noise is drawn from what is folded in below n.
            drawn, where, second = (fold(keys, n + i) for i in range(3))
            other = self.map(normal(second, (self.latent,)), label)
            first = jnp.where(uniform(drawn) < mixing, randint(where, 1, n), n)
            mixed = jnp.arange(n) >= first[:, None]  # (b,) -> (b, n)
            ws = jnp.where(mixed[..., None], other[:, None], ws)
        return self.average.value + truncation * (ws - self.average.value)

    def synthesise(self, ws: Array, keys: Array | None = None) -> Array:
        """Paint images from styles.

        Args:
            ws: (b, layers, latent). Of a resolution's, the first is of the layer that doubles to
                it, the second of the other, and the image's is the next resolution's first.
            keys: (b,), of the noise; None is without.

        Returns:
            (b, size, size, channels) float32, unbounded.
        """
        chex.assert_shape(ws, (None, self.layers, self.latent))
        x = jnp.broadcast_to(self.constant, (len(ws), *self.constant.shape))
        image = jnp.zeros((len(ws), 2, 2, self.channels))
        for i, conv in enumerate(self.convs):
            x = conv(x, ws[:, i], None if keys is None else fold(keys, i))
            if i % 2 == 0:  # the last of its resolution
                image = smooth_upsample(image) + self.images[i // 2](x, ws[:, i + 1])
        return image


class DownBlock(nn.Module):
    """Two convolutions, the second of which halves the resolution, and a skip (§3.1, figure 7c).

    Attributes:
        features: of the output.
        dtype: of the computation.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, h, w, c) to (b, h/2, w/2, features)."""
        y = activate(EqualizedConv(x.shape[-1], dtype=self.dtype, name="conv1")(x))
        conv = EqualizedConv(self.features, 2, "VALID", dtype=self.dtype, name="conv2")
        y = activate(conv(smooth(y, (2, 2))))  # -> (b, h+1, w+1, c) -> (b, h/2, w/2, features)
        skip = EqualizedDense(self.features, bias=None, dtype=self.dtype, name="skip")
        return (y + skip(smooth_downsample(x))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Map an image, and a label if `classes`, to a logit, by residual blocks that halve the side.

    The defaults are the paper's configuration F: 29.0 M parameters for 1024×1024 images. A label's
    mapping m is projected on: h·m / √d.

    Attributes:
        width: features of a layer are width/side, where that is less than `max_width`.
        max_width: of any layer.
        group: how many consecutive images `minibatch_deviation` compares; 1 leaves it out. It must
            divide the batch, under `pmap` a device's share of it. The groups of microbatches are
            inherently their own.
        mapping_layers: from a label to m.
        classes: number of labels; 0 is unconditional.
        dtype: of the convolutions; the layers at 4×4 and parameters stay float32.
    """

    width: int = 32_768
    max_width: int = 512
    group: int = 4
    mapping_layers: int = 8
    classes: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Judge a batch of images.

        Args:
            x: (b, size, size, c) in [−1, 1], the size a power of two, at least 8.
            label: (b,) integers in [0, classes), or None.
            train: not read.
            axis: not read.

        Returns:
            (b,) float32 logits.

        Raises:
            ValueError: the size is not a power of two, `group` does not divide b, or a label is
                given where `classes` is 0, or not given where it is not.
        """
        check_label(label, self.classes)
        size = x.shape[1]
        _check_size(size)
        chex.assert_axis_dimension(x, 2, size)
        features = [min(self.width // side, self.max_width) for side in _sides(size)]
        x = activate(EqualizedDense(features[-1], dtype=self.dtype, name="from_image")(x))
        for side, d in zip(_sides(size)[:0:-1], features[-2::-1], strict=True):
            x = DownBlock(d, self.dtype, name=f"block{side}")(x)

        x, d = x.astype(jnp.float32), features[0]
        if self.group > 1:
            x = minibatch_deviation(x, self.group)
        x = activate(EqualizedConv(d, name="conv")(x))
        x = x.reshape(x.shape[0], -1)  # (b, 4, 4, d) -> (b, 16*d)
        x = activate(EqualizedDense(d, name="dense")(x))
        if label is None:
            return EqualizedDense(1, name="logit")(x)[:, 0]  # (b, 1) -> (b,)
        m = Mapping(d, self.mapping_layers, self.classes, name="mapping")(None, label)
        return jnp.sum(EqualizedDense(d, name="logit")(x) * m, -1) / math.sqrt(d)


def _beside(style: Array) -> Array:
    """Lay an image's channels beside its pixels: (b, c) -> (b, 1, 1, c)."""
    return style[:, None, None, :]


def _sides(size: int) -> list[int]:
    """Return 4, 8, …, size."""
    return [2**i for i in range(2, size.bit_length())]


def _check_size(size: int) -> None:
    if size < 8 or size & (size - 1):
        raise ValueError(f"size={size} must be a power of two, at least 8")
