"""Randomness is addressed, never carried: a key is a function of what it is for.

The generator is pinned to threefry: its bits depend on the key and the position alone, not on how
an array is sharded (and `rbg` under `vmap` would use only its first key).
"""

import zlib

import chex
import jax
from jax import Array


def stream(seed: int, name: str) -> Array:
    """Return the key of a named stream of a seed: a phase's, the initialiser's, the sampler's.

    Streams are told apart by the checksum of their names, so adding one disturbs no other.

    Raises:
        ValueError: the seed is not in [0, 2³²), beyond which two seeds would share a key.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in [0, 2**32)")
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))


def example_keys(key: Array, index: Array) -> Array:
    """Return (b,) keys from one key and the (b,) positions of examples in the whole batch."""
    chex.assert_rank(index, 1)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def fold(keys: Array, data: int | Array) -> Array:
    """Fold one scalar into each of (b,) keys, giving (b,) fresh ones."""
    chex.assert_rank(keys, 1)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Draw (b, *shape) standard normal numbers, example i from `keys[i]` alone."""
    chex.assert_rank(keys, 1)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniform(keys: Array, shape: tuple[int, ...] = ()) -> Array:
    """Draw (b, *shape) numbers uniform in [0, 1), example i from `keys[i]` alone."""
    chex.assert_rank(keys, 1)
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def randint(keys: Array, low: int, high: int) -> Array:
    """Draw (b,) integers uniform in [low, high), example i from `keys[i]` alone."""
    chex.assert_rank(keys, 1)
    return jax.vmap(lambda key: jax.random.randint(key, (), low, high))(keys)
