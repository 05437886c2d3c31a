"""Guidance: how a condition is made to count for more than the model gives it."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

from aigc_jax.core.shapes import expand


def guide(
    network: Callable[[Array, Array, Any], Array],
    cond: Any,
    null: Any,
    scale: float,
    rescale: float = 0.0,
) -> Callable[[Array, Array], Array]:
    """Extrapolate from a network's unconditional output through its conditional one.

    guided = null + scale·(cond - null), then with φ = rescale:
    guided·(1 - φ + φ·std(cond)/std(guided)), which undoes the gain in contrast.

    Both are evaluated as one batch of 2b; at scale 1 only the conditional one is. Channels of the
    output beyond those of xt (a learned variance) are taken from the conditional one.

    Args:
        network: `(xt, t, cond) -> output`, of (b, ..., c), (b,) and a pytree of (b, ...).
        cond: pytree of (b, ...), the condition.
        null: pytree like `cond`, the condition that was dropped to in training.
        scale: 0 is unconditional, 1 conditional, more is guided; the paper's 1 + w.
        rescale: φ in [0, 1].

    Returns:
        `(xt, t) -> output`.

    Raises:
        ValueError: `rescale` lies outside [0, 1].

    Example:
        >>> network = lambda xt, t, cond: cond[:, None] * jnp.ones_like(xt)
        >>> guided = guide(network, jnp.array([3.0]), jnp.array([1.0]), scale=2.0)
        >>> guided(jnp.zeros((1, 2)), jnp.zeros(1)).tolist()
        [[5.0, 5.0]]

    Ho and Salimans 2022, *Classifier-Free Diffusion Guidance*, eq. 6; Lin et al. 2023, *Common
    Diffusion Noise Schedules and Sample Steps are Flawed*, eq. 15 and 16.
    """
    chex.assert_trees_all_equal_shapes(cond, null)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale={rescale} must lie in [0, 1]")
    if scale == 1:
        return lambda xt, t: network(xt, t, cond)

    def interleave(a: Array, b: Array) -> Array:
        # Side by side, not end to end: a batch sharded over devices then stays where it is.
        return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])  # 2 x (b, ...) -> (2b, ...)

    both = jax.tree.map(lambda a, b: interleave(jnp.asarray(a), jnp.asarray(b)), cond, null)

    def guided(xt: Array, t: Array) -> Array:
        chex.assert_shape(t, xt.shape[:1])
        output = network(interleave(xt, xt), interleave(t, t), both)
        output = output.reshape(-1, 2, *output.shape[1:])  # (2b, ...) -> (b, 2, ...)
        c = xt.shape[-1]
        with_cond, without = output[:, 0, ..., :c], output[:, 1, ..., :c]
        mean = without + scale * (with_cond - without)
        if rescale:
            gain = _std(with_cond) / _std(mean)
            mean = mean * expand(1 - rescale + rescale * gain, mean.ndim)
        return jnp.concatenate([mean, output[:, 0, ..., c:]], -1)  # -> (b, ..., c or 2c)

    return guided


def _std(x: Array) -> Array:
    return jnp.std(x, axis=tuple(range(1, x.ndim)))  # (b, ...) -> (b,)
