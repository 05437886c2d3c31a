"""Convolutions, all through one place: XLA's CPU compiler needs help with their gradients.

GPUs and TPUs run plain `lax.conv_general_dilated`. A CPU runs fast only convolutions of images
whose channels come last, by kernels that are not reversed. The compiler brings others into that
form where they stand in a program's main computation, and leaves those in a `lax.scan` to plain
loops, 5 to 100 times as slow. Here the gradients are written in that form to begin with.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from aigc_jax.nn.resample import depth_to_space, space_to_depth

NHWC = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **kwargs: Any,
) -> Array:
    """Convolve as `lax.conv_general_dilated` does, with gradients suited to the platform.

    A process with several simulated CPU devices, or one of several processes, stands in for an
    accelerator, and runs what one runs. The rewriting has no forward mode (`jax.jvp`).
    """
    dilation = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    plain = set(dilation) <= {1} and feature_group_count == 1 and not any(kwargs.values())
    if plain and _of_images(lhs, rhs, dimension_numbers) and _on_one_cpu():
        size, kernel, strides = lhs.shape[1:3], rhs.shape[:2], tuple(window_strides)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(size, kernel, strides, padding)
        pads: Any = tuple(tuple(p) for p in padding)
        stride = strides[0]
        sides = [n + sum(p) for n, p in zip(size, pads, strict=True)]
        if strides == (stride, stride) != (1, 1) and not any(n % stride for n in (*sides, *kernel)):
            return _conv_of_patches(lhs, rhs, stride, pads)
        return conv_of_images(lhs, rhs, strides, pads)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **kwargs,
    )


def _of_images(lhs: Array, rhs: Array, dimension_numbers: Any) -> bool:
    """Return whether a convolution is over two axes, and its channels come last."""
    numbers = functools.partial(lax.conv_dimension_numbers, lhs.shape, rhs.shape)
    return lhs.ndim == 4 and numbers(dimension_numbers) == numbers(NHWC)


def _on_one_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _conv_of_patches(x: Array, kernel: Array, s: int, pads: Pads) -> Array:
    """Convolve with stride s by a kernel of whole patches of s×s, as one of stride 1 over them.

    Neither gradient then meets the zeros that a stride would spread between its values.
    """
    kh, kw, c, d = kernel.shape
    x = space_to_depth(_border(x, pads), s)  # -> (b, h/s, w/s, s*s*c)
    kernel = kernel.reshape(kh // s, s, kw // s, s, c, d).swapaxes(1, 2)
    kernel = kernel.reshape(kh // s, kw // s, s * s * c, d)  # (kh/s, kw/s, s, s, c, d) -> ...
    return conv_of_images(x, kernel, (1, 1), ((0, 0), (0, 0)))


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


def check_widths(channels: tuple[int, ...]) -> None:
    """Refuse widths of layers that are none, or not positive.

    Raises:
        ValueError: as said.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"channels={channels} must be one width or more, each at least 1")


class ConvTranspose(nn.Module):
    """Transposed convolution of images, with the parameters of flax's.

    Attributes:
        features: channels of the result.
        kernel_size: (kh, kw).
        strides: how far apart the painted kernels lie, by axis.
        padding: "SAME" gives s times the size; "VALID" all that is painted.
        use_bias: whether a bias is added.
        kernel_init: of the kernel (kh, kw, c, d).
        dtype: of the computation; parameters stay float32.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Literal["SAME", "VALID"] = "SAME"
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, h, w, c) to (b, h', w', d)."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv_transpose(x, kernel, self.strides, self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y


def conv_transpose(
    x: Array, kernel: Array, strides: tuple[int, int], padding: Literal["SAME", "VALID"]
) -> Array:
    """Convolve as `lax.conv_transpose` does, with gradients suited to the platform.

    Args:
        x: (b, h, w, c).
        kernel: (kh, kw, c, d).
        strides: how far apart the painted kernels lie, by axis.
        padding: "SAME" or "VALID".

    Returns:
        (b, h', w', d).
    """
    kh, kw, c, d = kernel.shape
    if x.shape[1:3] == (1, 1) and padding == "VALID":  # one kernel is painted: a matrix product
        y = x.reshape(-1, c) @ kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, kh * kw * d)
        return y.reshape(-1, kh, kw, d)  # (b, kh*kw*d) -> (b, kh, kw, d)
    case = (kh, kw, *strides, padding)
    if case == (5, 5, 2, 2, "SAME") and _on_one_cpu():
        # A patch of 2×2 pixels of the result sees 3×3 of the image, by a kernel of 6×6 whose last
        # row and column are zeros: one convolution paints four channels for every feature.
        kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
        kernel = kernel.reshape(3, 2, 3, 2, c, d)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        kernel = kernel.reshape(3, 3, c, 4 * d)  # (3, 3, c, 2, 2, d) -> (3, 3, c, 4*d)
        return depth_to_space(conv_of_images(x, kernel, (1, 1), ((1, 1), (1, 1))), 2)
    if case in ((4, 4, 2, 2, "SAME"), (3, 3, 2, 2, "VALID")) and _on_one_cpu():
        if kh == 3:  # a 4×4 one whose zeros alone paint the last row and column
            kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
        # A pixel of the result sees 2×2 of the image, the same window as its neighbour across the
        # edge of a 2×2 patch. So one convolution of windows, border and all, paints four channels
        # for every feature, its odd rows and columns before the even ones (Shi et al. 2016, §2).
        kernel = kernel.reshape(2, 2, 2, 2, c, d)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        kernel = kernel.reshape(2, 2, c, 4 * d)  # (2, 2, c, 2, 2, d) -> (2, 2, c, 4*d)
        y: Any = conv_of_images(x, kernel, (1, 1), ((1, 1), (1, 1)))  # -> (b, h+1, w+1, 4*d)
        y = depth_to_space(y, 2)  # -> (b, 2*h + 2, 2*w + 2, d)
        return y[:, :-1, :-1] if kh == 3 else y[:, 1:-1, 1:-1]
    return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_of_images(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Convolve images, with both gradients written as convolutions of images, and theirs again.

    Args:
        x: (b, h, w, c).
        kernel: (kh, kw, c, d).
        strides: of the window, by axis.
        pads: (low, high) zeros, by axis.

    Returns:
        (b, h', w', d).
    """
    if kernel.shape[0] > x.shape[1] or kernel.shape[1] > x.shape[2]:
        # A window larger than its image is slow, unless the image has its border already; without
        # the barrier, the compiler would make the two one again.
        x = lax.optimization_barrier(_border(x, pads))
        pads = ((0, 0), (0, 0))
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _border(x: Array, pads: Pads) -> Array:
    """Put zeros around images, or take pixels away where a pad is negative."""
    around = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _forward(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> tuple[Array, Any]:
    return conv_of_images(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int], pads: Pads, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    return (
        _input_gradient(g, kernel, x.shape[1:3], strides, pads),
        _kernel_gradient(x, g, kernel.shape[:2], strides, pads).astype(kernel.dtype),
    )


conv_of_images.defvjp(_forward, _backward)


def _input_gradient(
    g: Array, kernel: Array, size: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> Array:
    """Convolve the cotangent, spread out by the strides, with the kernel flipped and transposed."""
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # (kh, kw, c, d) -> (kh, kw, d, c)
    if strides != (1, 1):
        zero = jnp.zeros((), g.dtype)
        # An explicit interior padding keeps the convolution itself free of dilation.
        g = lax.pad(g, zero, ((0, 0, 0), *((0, 0, s - 1) for s in strides), (0, 0, 0)))
    around: Any = tuple(
        (k - 1 - low, n + low - spread)
        for k, (low, _), n, spread in zip(kernel.shape[:2], pads, size, g.shape[1:3], strict=True)
    )
    return conv_of_images(g, flipped, (1, 1), around)


def _kernel_gradient(
    x: Array, g: Array, size: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> Array:
    """Convolve the images with the cotangent, examples in the place of channels, in float32."""
    images = x.transpose(3, 1, 2, 0)  # (b, h, w, c) -> (c, h, w, b)
    cotangent = g.transpose(1, 2, 0, 3)  # (b, h', w', d) -> (h', w', b, d)
    around: Any = tuple(
        (low, k - 1 + (spread - 1) * s + 1 - n - low)
        for k, s, (low, _), n, spread in zip(
            size, strides, pads, x.shape[1:3], g.shape[1:3], strict=True
        )
    )
    images, cotangent = images.astype(jnp.float32), cotangent.astype(jnp.float32)
    if strides == (1, 1):
        kernel: Any = conv_of_images(images, cotangent, strides, around)
    else:
        kernel = lax.conv_general_dilated(
            images, cotangent, (1, 1), around, rhs_dilation=strides, dimension_numbers=NHWC
        )
    return kernel.transpose(1, 2, 0, 3)  # (c, kh, kw, d) -> (kh, kw, c, d)
