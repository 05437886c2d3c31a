"""Layers of equalised learning rate: weights of N(0, 1), scaled in use by √(1/fan in).

Adam's steps are then as large, relative to the weights, in every layer (Karras et al. 2018,
*Progressive growing of GANs*, §4.1).
"""

import math
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from aigc_jax.nn.conv import NHWC, conv_general_dilated


def equalized_kernel(module: nn.Module, shape: Sequence[int], lr: float = 1.0) -> Array:
    """Return a module's parameter "kernel" (..., c, d), as it is used: N(0, 1/fan in) at first.

    Args:
        module: whose it is, within its compact method.
        shape: of it; all but the last axis are fanned in.
        lr: how many times its effective learning rate is that of the rest.
    """
    kernel = module.param("kernel", nn.initializers.normal(1 / lr), tuple(shape))
    return kernel * (lr / math.sqrt(math.prod(shape[:-1])))


class EqualizedDense(nn.Module):
    """A matrix product along the last axis; of an image, a 1×1 convolution.

    Attributes:
        features: of the output.
        bias: its initial value; None leaves it out.
        lr: how many times the layer's effective learning rate is that of the rest.
        dtype: of the computation; parameters stay float32.
    """

    features: int
    bias: float | None = 0.0
    lr: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., c) to (..., features)."""
        kernel = equalized_kernel(self, (x.shape[-1], self.features), self.lr)
        bias = None
        if self.bias is not None:
            init = nn.initializers.constant(self.bias / self.lr)
            bias = self.lr * self.param("bias", init, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel if bias is None else x @ kernel + bias


class EqualizedConv(nn.Module):
    """A 3×3 convolution of images with a bias.

    Attributes:
        features: of the output.
        stride: of the window, along both axes.
        padding: "SAME" or "VALID".
        dtype: of the computation; parameters stay float32.
    """

    features: int
    stride: int = 1
    padding: str = "SAME"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (b, h, w, c) to (b, h', w', features)."""
        kernel = equalized_kernel(self, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        strides = (self.stride, self.stride)
        return conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=NHWC) + bias
