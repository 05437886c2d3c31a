"""Texts longer than a network's context: window after window, each on from the last one's half."""

from typing import Any

import chex
import jax.numpy as jnp
from jax import Array, lax

from aigc_jax.core.keys import fold
from aigc_jax.samplers.autoregressive import Decoder, check_continuation, generate, is_among


def generate_long(
    decoder: Decoder,
    tokens: Array,
    start: Array | None,
    keys: Array,
    *,
    context: int,
    length: int,
    stop: tuple[int, ...] = (),
    pad: int = 0,
    **options: Any,
) -> Array:
    """Continue prompts, however far, by a network that sees `context` tokens.

    As far as they fit it is `generate`. From there on the last half of a context is read anew as a
    prompt, and continued until the context is full: so a cache is filled again once in so many
    tokens, and not at each. A repetition penalty counts what is in the window.

    Args:
        decoder: see there.
        tokens: (b, t) int32, the prompts, padded on the left; t at most `context`.
        start: (b,) int32, the slot where each begins; None is 0.
        keys: (b,).
        context: tokens that the network sees.
        length: the most tokens to generate.
        stop: as of `generate`.
        pad: ditto.
        **options: ditto.

    Returns:
        (b, length) int32, without the prompts.

    Raises:
        ValueError: a number is out of its range, or the prompts are longer than `context`.
    """
    chex.assert_shape(keys, tokens.shape[:1])
    check_continuation(tokens, start, length, stop, pad)
    b, t = tokens.shape
    if t > context:
        raise ValueError(f"prompts of {t} tokens are longer than context={context}")
    options |= {"stop": stop, "pad": pad}
    # The last token is written and not read: with it there is one more than the context.
    first = min(length, context + 1 - t)
    written = generate(decoder, tokens, start, keys, length=first, **options)
    if first == length:
        return written
    half = (context + 1) // 2
    each = context + 1 - half
    rounds = -(-(length - first) // each)
    start = jnp.zeros(b, jnp.int32) if start is None else start

    def go_on(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        text, start = state
        window = text[:, -half:]
        start = jnp.maximum(start - (text.shape[1] - half), 0)
        new = generate(decoder, window, start, fold(keys, i), length=each, **options)
        return (jnp.concatenate([window, new], 1), start), new

    text = jnp.concatenate([tokens, written], 1)[:, -(context + 1) :]
    start = jnp.maximum(start - (t + first - text.shape[1]), 0)
    # No token of a window was drawn by one of these keys.
    _, rest = lax.scan(go_on, (text, start), context + 1 + jnp.arange(rounds))
    rest = rest.swapaxes(0, 1).reshape(b, -1)  # (rounds, b, each) -> (b, rounds*each)
    written = jnp.concatenate([written, rest], 1)[:, :length]
    stops = is_among(written, stop)
    ended = stops.cumsum(1) > stops  # behind the first, though a later window went on
    return jnp.where(ended, pad, written)
