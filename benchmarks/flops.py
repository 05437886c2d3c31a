"""Count the operations of a function's matrix products and convolutions, as written."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

# cuDNN's attention, whose products cannot be seen from outside: of queries with keys and of weights
# with values; and, back, the gradients of all four.
FUSED = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Count 2 per multiply-add of every matrix product and convolution that `fn(*args)` does.

    Everything else is left out: it is what "model FLOPs" leave out by custom. A loop of known
    length counts as often as it runs; of branches the costliest counts; a `while` of unknown length
    counts once.

    Example:
        >>> import jax.numpy as jnp
        >>> count_flops(jnp.dot, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
        60
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        taps = prod(kernel[axis] for axis in params["dimension_numbers"].rhs_spec[1:])
        return 2 * prod(equation.outvars[0].aval.shape) * taps
    if name in FUSED:
        b, t, heads, d = equation.invars[0].aval.shape
        s = equation.invars[1].aval.shape[1]
        return FUSED[name] * 2 * b * heads * t * s * d
    inner = [_of_jaxpr(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, default=0)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)
