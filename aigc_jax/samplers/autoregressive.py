"""Autoregressive sampling: one token after another, in one `lax.scan`."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

from aigc_jax.core.keys import fold

Step = Callable[[Any, Array], tuple[Any, Array]]


def sample_tokens(
    step: Step,
    carry: Any,
    start: Array,
    keys: Array,
    *,
    length: int,
    temperature: float = 1.0,
    stop: int | None = None,
) -> Array:
    """Draw x₁, …, x_T, each from p(x_t | x_{<t}).

    Args:
        step: `(carry, tokens) -> (carry, logits)`: reads the tokens of one position, (b, ...)
            int32, and gives the logits of the next, (b, ..., vocabulary). A cache of keys and
            values, or a recurrent state, is its carry.
        carry: before the first step.
        start: (b, ...) int32, what stands before the first position. Where tokens have further
            axes, as the voices of a frame, these are drawn independently.
        keys: (b,), one per example.
        length: positions to draw, T.
        temperature: divides the logits; 0 takes the likeliest token.
        stop: the token after which every token is `stop`.

    Returns:
        (b, T, ...) int32.

    Raises:
        ValueError: `length` is less than 1 or `temperature` negative.

    Example:
        >>> count = lambda carry, token: (carry, jax.nn.one_hot(token + 1, 8))
        >>> start, keys = jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(0), 1)
        >>> sample_tokens(count, None, start, keys, length=4, temperature=0.0).tolist()
        [[1, 2, 3, 4]]
    """
    chex.assert_rank(keys, 1)
    chex.assert_equal_shape_prefix([start, keys], 1)
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must be at least 0")

    def choose(logits: Array, position: Array) -> Array:
        if not temperature:
            return logits.argmax(-1).astype(jnp.int32)
        draw = jax.vmap(jax.random.categorical)
        return draw(fold(keys, position), logits.astype(jnp.float32) / temperature).astype(
            jnp.int32
        )

    def advance(state: tuple[Any, Array], position: Array) -> tuple[tuple[Any, Array], Array]:
        carry, last = state
        carry, logits = step(carry, last)
        token = choose(logits, position)
        if stop is not None:
            # What `start` holds is not drawn: a sequence may begin from the token it ends by.
            token = jnp.where((last == stop) & (position > 0), stop, token)
        return (carry, token), token

    _, tokens = lax.scan(advance, (carry, start), jnp.arange(length))
    return jnp.moveaxis(tokens, 0, 1)  # (T, b, ...) -> (b, T, ...)
