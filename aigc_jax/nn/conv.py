"""Convolutions, all through one place: XLA's CPU compiler needs help with their gradients.

GPUs and TPUs run plain `lax.conv_general_dilated`. On a CPU its gradients fall off the fast path:
by 15 to 40 times inside a `lax.scan`, 2 to 3 times outside for larger images. There the same
gradients are spelled as what the CPU does well: matrix products of patches that stay in cache,
and ordinary forward convolutions. Both spellings are exact.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

NHWC = ("NHWC", "HWIO", "NHWC")
_ROWS = 256  # patches to a matrix product: fewer leave the cores idle, more leave the cache
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
        return conv_by_patches(lhs, rhs, strides, tuple(tuple(p) for p in padding))
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
def conv_by_patches(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Convolve images, with both gradients written for a CPU.

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
    return conv_by_patches(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int], pads: Pads, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    return _input_gradient(g, kernel, x.shape, strides, pads), _kernel_gradient(
        x, g, kernel.shape, strides, pads
    ).astype(kernel.dtype)


conv_by_patches.defvjp(_forward, _backward)


def _input_gradient(
    g: Array, kernel: Array, shape: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> Array:
    """Convolve the cotangent, spread out by the strides, with the kernel flipped and transposed."""
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # (kh, kw, c, d) -> (kh, kw, d, c)
    if strides != (1, 1):
        zero = jnp.zeros((), g.dtype)
        # An explicit interior padding keeps the convolution itself free of dilation.
        g = lax.pad(g, zero, ((0, 0, 0), *((0, 0, s - 1) for s in strides), (0, 0, 0)))
    transposed = tuple(
        (k - 1 - low, size + low - spread)
        for k, (low, _), size, spread in zip(
            kernel.shape[:2], pads, shape[1:3], g.shape[1:3], strict=True
        )
    )
    return lax.conv_general_dilated(g, flipped, (1, 1), transposed, dimension_numbers=NHWC)


def _kernel_gradient(
    x: Array, g: Array, shape: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> Array:
    """Accumulate patchesᵀ·cotangent over groups of images, in float32."""
    kh, kw, c, d = shape
    b, h, w, _ = g.shape
    (sh, sw), padding = strides, ((0, 0), *pads, (0, 0))
    group = max(m for m in range(1, b + 1) if b % m == 0 and (m == 1 or m * h * w <= _ROWS))

    def patches(images: Array) -> Array:
        images = jnp.pad(images, padding)
        windows = [
            images[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
        return jnp.concatenate(windows, -1).reshape(-1, kh * kw * c)  # -> (m*h*w, kh*kw*c)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        images, cotangents = group
        rows = cotangents.reshape(-1, d)  # (m, h, w, d) -> (m*h*w, d)
        return total + jnp.dot(patches(images).T, rows, preferred_element_type=jnp.float32), None

    split = lambda a: a.reshape(b // group, group, *a.shape[1:])
    zeros = jnp.zeros((kh * kw * c, d), jnp.float32)
    return lax.scan(add, zeros, (split(x), split(g)))[0].reshape(shape)
