"""Convolutions, all through one place: XLA's CPU compiler needs help with their gradients.

GPUs and TPUs run plain `lax.conv_general_dilated`. A CPU runs fast only convolutions of images
whose channels come last, by kernels that are not reversed. The compiler brings others into that
form where they stand in a program's main computation, and leaves those in a `lax.scan` to plain
loops, 5 to 100 times as slow. Here the gradients are written in that form to begin with.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

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
        return conv_of_images(lhs, rhs, strides, tuple(tuple(p) for p in padding))
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


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_of_images(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Convolve images, with both gradients written as convolutions of images.

    Args:
        x: (b, h, w, c).
        kernel: (kh, kw, c, d).
        strides: of the window, by axis.
        pads: (low, high) zeros, by axis.

    Returns:
        (b, h', w', d).
    """
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


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
    around = [
        (k - 1 - low, n + low - spread)
        for k, (low, _), n, spread in zip(kernel.shape[:2], pads, size, g.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(g, flipped, (1, 1), around, dimension_numbers=NHWC)


def _kernel_gradient(
    x: Array, g: Array, size: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> Array:
    """Convolve the images with the cotangent, examples in the place of channels, in float32."""
    images = x.transpose(3, 1, 2, 0)  # (b, h, w, c) -> (c, h, w, b)
    cotangent = g.transpose(1, 2, 0, 3)  # (b, h', w', d) -> (h', w', b, d)
    around = [
        (low, k - 1 + (spread - 1) * s + 1 - n - low)
        for k, s, (low, _), n, spread in zip(
            size, strides, pads, x.shape[1:3], g.shape[1:3], strict=True
        )
    ]
    kernel = lax.conv_general_dilated(
        images,
        cotangent,
        (1, 1),
        around,
        rhs_dilation=strides,
        dimension_numbers=NHWC,
        preferred_element_type=jnp.float32,
    )
    return kernel.transpose(1, 2, 0, 3)  # (c, kh, kw, d) -> (kh, kw, c, d)
