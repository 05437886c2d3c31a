"""Shape idioms: leading batch axes, broadcasting against them, reducing to them."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array


def batch_size(batch: Any) -> int:
    """Return the leading length that all leaves of a batch share.

    Raises:
        ValueError: the batch is empty, or a leaf has no or another leading axis; names the leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("the batch holds no arrays")
    lengths = [leaf.shape[0] for _, leaf in leaves if leaf.ndim]
    for path, leaf in leaves:
        if leaf.ndim == 0 or leaf.shape[0] != lengths[0]:
            name = jax.tree_util.keystr(path)
            wanted = f"({lengths[0]},)" if lengths else "the number of examples"
            raise ValueError(
                f"batch{name} has shape {leaf.shape}; every leaf must lead with {wanted}"
            )
    return lengths[0]


def expand(x: Array, ndim: int) -> Array:
    """Append axes of length 1 to a (b,) array: (b,) -> (b, 1, ..., 1) of `ndim` axes."""
    chex.assert_rank(x, 1)
    return x.reshape(x.shape + (1,) * (ndim - 1))  # (b,) -> (b, 1, ..., 1)


def mean_flat(x: Array) -> Array:
    """Average over every axis but the first: (b, ...) -> (b,)."""
    chex.assert_axis_dimension_gteq(x, 0, 0)
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def sum_flat(x: Array) -> Array:
    """Sum over every axis but the first: (b, ...) -> (b,)."""
    chex.assert_axis_dimension_gteq(x, 0, 0)
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
