"""Dropout whose mask is an example's own, whatever share of a batch a device sees."""

import jax.numpy as jnp
from jax import Array

from aigc_jax.core.keys import uniform


def drop(x: Array, keys: Array | None, rate: float) -> Array:
    """Zero a share of (b, ...), example i's by `keys[i]` alone, and scale up what is left.

    Linen's dropout draws by one key for whatever share of a batch it sees.

    Args:
        x: (b, ...).
        keys: (b,); None to drop nothing, as outside of training.
        rate: the share, in [0, 1).
    """
    if keys is None or not rate:
        return x
    kept = uniform(keys, x.shape[1:]) >= rate
    return jnp.where(kept, x / (1 - rate), 0)
