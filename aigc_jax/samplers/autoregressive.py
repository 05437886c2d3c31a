"""Autoregressive sampling: one token after another, in one `lax.scan` or `lax.while_loop`.

`sample_tokens` threads a carry of any kind; `generate` continues prompts by a network that keeps a
cache of what it has read, a `Decoder`, as beam search and speculative sampling do next door.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import io_callback

from aigc_jax.core.keys import fold
from aigc_jax.functional.logits import adjust_logits

Step = Callable[[Any, Array], tuple[Any, Array]]


class Decoder(NamedTuple):
    """A network that reads tokens into a cache of fixed size, a slot each, and predicts the next.

    Prompts of different lengths are padded on the left, so that all end in the same slot: the
    sequence of row i lies in slots `start[i]` and following, and a token's position is its slot
    less `start[i]`. A token attends to the slots from `start` to its own. A slot that is written
    again is overwritten.

    Attributes:
        make_cache: `(batch, slots) -> cache`, a pytree of (batch, ...): beam search copies and
            permutes its rows, so whatever else belongs to a row (an encoder's output) is of it too.
        extend: `(tokens (b, t) int32, cache, slot, start) -> (logits (b, t, vocabulary), cache)`
            reads tokens into slots `slot`, …, `slot + t - 1` and gives the logits of the token
            after each. `slot` is () int32, or (b,) where rows stand at different places; `start` is
            (b,) int32, or None for 0.
    """

    make_cache: Callable[[int, int], Any]
    extend: Callable[[Array, Any, Array, Array | None], tuple[Array, Any]]


def generate(
    decoder: Decoder,
    tokens: Array,
    start: Array | None,
    keys: Array,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tuple[int, ...] = (),
    pad: int = 0,
    observe: Callable[[np.ndarray], Any] | None = None,
) -> Array:
    """Continue prompts, until each has met a stop token or is `length` tokens longer.

    Token i of a row is drawn by `fold(keys, i)`: what a row becomes hangs neither on the others nor
    on how far its prompt was padded.

    Args:
        decoder: see there.
        tokens: (b, t) int32, the prompts, padded on the left; see `data.tokens.bucket`.
        start: (b,) int32 in [0, t-1], the slot where each prompt begins; None where all are of t.
        keys: (b,), one per row.
        length: the most tokens to generate, at least 1.
        temperature: as of `adjust_logits`, as are the next four; 0 takes the likeliest token.
        top_k: ditto.
        top_p: ditto.
        min_p: ditto.
        repetition_penalty: ditto; prompts count.
        stop: tokens, any of which is a row's last.
        pad: what stands after a row's last, a token of the vocabulary.
        observe: called on the host with each step's (b,) tokens as soon as they are drawn, in
            order, `pad` for rows that have ended: for a reader who watches. On one device.

    Returns:
        (b, length) int32, without the prompts.

    Raises:
        ValueError: a number is out of its range.
    """
    chex.assert_shape(keys, tokens.shape[:1])
    check_continuation(tokens, start, length, stop, pad)
    b, t = tokens.shape
    slots = jnp.arange(t + length)
    begin = jnp.zeros(b, jnp.int32) if start is None else start

    def advance(state: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        i, text, ended, cache = state
        slot = t - 1 + i
        last = lax.dynamic_slice_in_dim(text, slot, 1, 1)  # (b, t + length) -> (b, 1)
        logits, cache = decoder.extend(last, cache, slot, start)
        token = choose_tokens(
            logits[:, -1],  # (b, 1, v) -> (b, v)
            fold(keys, i),
            text,
            (begin[:, None] <= slots) & (slots <= slot),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        token = jnp.where(ended, pad, token)
        if observe is not None:
            io_callback(partial(_show, observe), None, token, ordered=True)
        text = lax.dynamic_update_slice_in_dim(text, token[:, None], slot + 1, 1)
        return i + 1, text, ended | is_among(token, stop), cache

    def unfinished(state: tuple[Array, Array, Array, Any]) -> Array:
        i, _, ended, _ = state
        # A loop of a known length: a GPU need not tell the host after each token whether to go on.
        return (i < length) & ~ended.all() if stop else i < length

    text = extend_text(tokens, length, pad)
    before = (jnp.int32(0), text, jnp.zeros(b, bool), prefill(decoder, tokens, start, t + length))
    _, text, _, _ = lax.while_loop(unfinished, advance, before)
    return text[:, t:]


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

    def advance(state: tuple[Any, Array], position: Array) -> tuple[tuple[Any, Array], Array]:
        carry, last = state
        carry, logits = step(carry, last)
        token = choose_tokens(logits, fold(keys, position), temperature=temperature)
        if stop is not None:
            # What `start` holds is not drawn: a sequence may begin from the token it ends by.
            token = jnp.where((last == stop) & (position > 0), stop, token)
        return (carry, token), token

    _, tokens = lax.scan(advance, (carry, start), jnp.arange(length))
    return jnp.moveaxis(tokens, 0, 1)  # (T, b, ...) -> (b, T, ...)


def choose_tokens(
    logits: Array,
    keys: Array,
    tokens: Array | None = None,
    counts: Array | None = None,
    *,
    temperature: float = 1.0,
    **options: Any,
) -> Array:
    """Draw a token by logits as adjusted, or take the likeliest.

    Args:
        logits: (b, ..., v).
        keys: (b,), one per example.
        tokens: as of `adjust_logits`.
        counts: ditto.
        temperature: ditto; at 0 no key is read.
        options: ditto.

    Returns:
        (b, ...) int32.

    Raises:
        ValueError: an option is out of its range.
    """
    chex.assert_shape(keys, logits.shape[:1])
    logits = adjust_logits(logits, tokens, counts, temperature=temperature, **options)
    if not temperature:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def check_continuation(
    tokens: Array, start: Array | None, length: int, stop: tuple[int, ...], pad: int
) -> None:
    """Refuse prompts of other shapes than (b, t) and (b,), and numbers out of range.

    Raises:
        ValueError: `length` is less than 1, or a token of `stop`, or `pad`, negative.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_type(tokens, int)
    chex.assert_axis_dimension_gteq(tokens, 1, 1)
    if start is not None:
        chex.assert_shape(start, tokens.shape[:1])
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    if any(token < 0 for token in stop):
        raise ValueError(f"stop={stop} must be tokens, each at least 0")
    if pad < 0:
        raise ValueError(f"pad={pad} must be a token, at least 0")


def prefill(decoder: Decoder, tokens: Array, start: Array | None, slots: int) -> Any:
    """Read prompts, all but the last token, which the first step of decoding reads.

    So nobody asks for their logits, and compiled, nothing computes any.

    Args:
        decoder: see there.
        tokens: (b, t).
        start: (b,) or None.
        slots: of the cache to make.

    Returns:
        The cache.
    """
    chex.assert_rank(tokens, 2)
    cache = decoder.make_cache(len(tokens), slots)
    if tokens.shape[1] > 1:
        _, cache = decoder.extend(tokens[:, :-1], cache, jnp.int32(0), start)
    return cache


def extend_text(tokens: Array, length: int, pad: int) -> Array:
    """Append room for so many tokens: (b, t) to (b, t + length) int32, `pad` in the new ones."""
    chex.assert_rank(tokens, 2)
    return jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, length)), constant_values=pad)


def is_among(tokens: Array, stop: tuple[int, ...]) -> Array:
    """Tell which tokens are among some: (...) to (...) bool."""
    chex.assert_type(tokens, int)
    return (tokens[..., None] == jnp.array(stop, tokens.dtype)).any(-1)


def _show(observe: Callable[[np.ndarray], Any], token: Array) -> None:
    observe(np.asarray(token))
