"""Speculative sampling: a small network drafts tokens, and a large one reads them all at once."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

from aigc_jax.core.keys import fold, uniform
from aigc_jax.functional.logits import adjust_logits
from aigc_jax.samplers.autoregressive import (
    Decoder,
    check_continuation,
    extend_text,
    is_among,
    prefill,
)


class Speculation(NamedTuple):
    """Texts, and how well they were foreseen.

    Attributes:
        tokens: (b, length) int32, without the prompts.
        accepted: (b, length) int32, how many drafted tokens a row took in its n-th round, 0 to
            `ahead`, whether or not its text ended among them; -1 in rounds after its end.
    """

    tokens: Array
    accepted: Array


def speculate(
    target: Decoder,
    draft: Decoder,
    tokens: Array,
    start: Array | None,
    keys: Array,
    *,
    length: int,
    ahead: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: tuple[int, ...] = (),
    pad: int = 0,
) -> Speculation:
    """Continue prompts as `generate` with the target would, in distribution, in fewer readings.

    A round: the draft draws k tokens, x from its q; the target reads them all and gives its p for
    each, and for one more. One by one they are accepted with the probability min(1, p(x)/q(x)). In
    place of the first that is not, one is drawn from max(0, p − q) made to sum to 1; after k
    accepted ones, from p. So every round gives 1 to k + 1 tokens, each distributed as p. The
    options adjust p and q alike; at temperature 0 the tokens are those of `generate`.

    What a row becomes hangs on its own key, and not on the other rows.

    Args:
        target: see `Decoder`.
        draft: ditto, of the same vocabulary.
        tokens: (b, t) int32, the prompts, padded on the left.
        start: (b,) int32 in [0, t-1], the slot where each prompt begins; None where all are of t.
        keys: (b,), one per row.
        length: the most tokens to generate, at least 1.
        ahead: k, at least 1, the tokens drafted a round; both caches get as many slots more.
        temperature: as of `adjust_logits`, as are the next three; 0 takes the likeliest token.
        top_k: ditto.
        top_p: ditto.
        min_p: ditto.
        stop: tokens, any of which is a row's last.
        pad: what stands after a row's last, a token of the vocabulary.

    Raises:
        ValueError: a number is out of its range.

    Leviathan et al. 2023, *Fast Inference from Transformers via Speculative Decoding*, algorithm 1;
    Chen et al. 2023, *Accelerating Large Language Model Decoding with Speculative Sampling*,
    algorithm 2.
    """
    chex.assert_shape(keys, tokens.shape[:1])
    check_continuation(tokens, start, length, stop, pad)
    if ahead < 1:
        raise ValueError(f"ahead={ahead} must be at least 1")
    if tokens.shape[1] == 1:
        # The draft reads a text's last two tokens: give it one before the first.
        tokens = jnp.concatenate([jnp.full_like(tokens, pad), tokens], 1)  # (b, 1) -> (b, 2)
        start = (0 if start is None else start) + jnp.ones(len(tokens), jnp.int32)
    b, t = tokens.shape
    adjust = partial(adjust_logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows, offsets = jnp.arange(b)[:, None], jnp.arange(ahead + 1)

    def draw_ahead(text: Array, n: Array, keys: Array, cache: Any) -> tuple[Array, Array, Any]:
        """Return k drafted tokens (b, k), the logits they were drawn by (b, k, v), the cache."""

        def draw(j: int | Array, logits: Array) -> tuple[Array, Array]:
            logits = adjust(logits[:, -1])  # (b, t, v) -> (b, v)
            token = jax.vmap(jax.random.categorical)(fold(keys, j), logits)
            return token.astype(jnp.int32), logits

        def step(carry: tuple[Array, Any], j: Array) -> tuple[tuple[Array, Any], Any]:
            token, cache = carry
            logits, cache = draft.extend(token[:, None], cache, t - 1 + n + j, start)
            drawn = draw(j, logits)
            return (drawn[0], cache), drawn

        # Where all it drafted was accepted, it has yet to read the last but one.
        slot = t - 2 + n
        logits, cache = draft.extend(text[rows, slot[:, None] + offsets[:2]], cache, slot, start)
        first = draw(0, logits)
        (_, cache), others = lax.scan(step, (first[0], cache), jnp.arange(1, ahead))
        join = lambda x, xs: jnp.moveaxis(jnp.concatenate([x[None], xs]), 0, 1)  # -> (b, k, ...)
        token, logits = jax.tree.map(join, first, others)
        return token, logits, cache

    def advance(state: tuple[Array, Array, Array, Array, Any, Any]) -> tuple:
        # n counts the tokens a row has, and is `length` once it has ended: what is drawn for it
        # from then on is written behind what is returned.
        i, n, text, accepted, cache, draft_cache = state
        keys_now = jax.vmap(jax.random.fold_in)(keys, n)
        drafted, draft_logits, draft_cache = draw_ahead(text, n, keys_now, draft_cache)
        slot = t - 1 + n
        last = text[rows, slot[:, None]]
        logits, cache = target.extend(
            jnp.concatenate([last, drafted], 1), cache, slot, start
        )  # -> (b, k + 1, v)
        p, q = jax.nn.softmax(adjust(logits)), jax.nn.softmax(draft_logits)
        of_drafted = lambda x: jnp.take_along_axis(x[:, :ahead], drafted[:, :, None], 2)[:, :, 0]
        accepts = uniform(fold(keys_now, ahead), (ahead,)) * of_drafted(q) < of_drafted(p)
        taken = jnp.cumprod(accepts, 1).sum(1)  # (b, k) -> (b,)
        q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # nothing was drafted after the k-th
        p, q = p[rows[:, 0], taken], q[rows[:, 0], taken]  # (b, k + 1, v) -> (b, v)
        rest = jnp.maximum(p - q, 0)
        # Equal but for rounding, p and q leave nothing.
        rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)
        token = jax.vmap(jax.random.categorical)(fold(keys_now, ahead + 1), jnp.log(rest))

        of_row = offsets[None] <= taken[:, None]
        window = jnp.where(offsets < taken[:, None], extend_text(drafted, 1, pad), token[:, None])
        stops = is_among(window, stop) & of_row
        after = jnp.cumsum(stops, 1) - stops > 0
        window = jnp.where(of_row & ~after, window, pad).astype(jnp.int32)
        text = text.at[rows, t + n[:, None] + offsets].set(window)
        accepted = accepted.at[:, i].set(jnp.where(n < length, taken, -1))
        n = jnp.where(stops.any(1), length, jnp.minimum(n + taken + 1, length))
        return i + 1, n, text, accepted, cache, draft_cache

    def unfinished(state: tuple[Array, Array, Array, Array, Any, Any]) -> Array:
        return (state[1] < length).any()

    slots = t + length + ahead
    caches = (prefill(network, tokens, start, slots) for network in (target, draft))
    text, none = extend_text(tokens, length + ahead + 1, pad), jnp.full((b, length), -1, jnp.int32)
    before = (jnp.int32(0), jnp.zeros(b, jnp.int32), text, none, *caches)
    _, _, text, accepted, _, _ = lax.while_loop(unfinished, advance, before)
    return Speculation(text[:, t : t + length], accepted)
