"""Beam search: the likeliest text that a few hypotheses, followed side by side, come upon."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

from aigc_jax.samplers.autoregressive import (
    Decoder,
    check_continuation,
    extend_text,
    is_among,
    prefill,
)


class Beams(NamedTuple):
    """Hypotheses of each row, the best first.

    Attributes:
        text: (b, beams, length) int32.
        score: (b, beams); −∞ where there is none.
    """

    text: Array
    score: Array


def beam_search(
    decoder: Decoder,
    tokens: Array,
    start: Array | None,
    *,
    length: int,
    beams: int,
    length_penalty: float = 1.0,
    stop: tuple[int, ...] = (),
    pad: int = 0,
) -> tuple[Array, Array]:
    """Look for the continuation of each prompt of the highest score, Σ log p / n^penalty.

    n is the number of its tokens, the stop token included. Each step extends the open hypotheses of
    a row by every token and looks at the (1 + stop tokens)·beams likeliest extensions, twice the
    beams at least. Those of the first `beams` that end are finished hypotheses, of which the best
    `beams` are kept; of those that do not end, the likeliest `beams` stay open. A row is searched
    until it has its `beams` finished ones and its likeliest open one, were it to end as it is,
    would score no better than the worst of them. At `length` every hypothesis ends.

    These are transformers' rules, with `early_stopping=False`, one sequence to return.

    Args:
        decoder: see there.
        tokens: (b, t) int32, the prompts, padded on the left.
        start: (b,) int32 in [0, t-1], the slot where each prompt begins; None where all are of t.
        length: the most tokens of a continuation, at least 1.
        beams: hypotheses to follow, at least 1.
        length_penalty: the power of n that divides; 0 favours short texts, more long ones.
        stop: tokens, any of which ends a text.
        pad: what stands after a text's end.

    Returns:
        The best text of each row (b, length) int32, without its prompt, and its score (b,).

    Raises:
        ValueError: `beams` or `length` is less than 1, or a token negative.

    Graves 2012, *Sequence Transduction with Recurrent Neural Networks*, algorithm 1; Wu et al.
    2016, *Google's Neural Machine Translation System*, §7, whose penalty n^α has become today.
    """
    check_continuation(tokens, start, length, stop, pad)
    if beams < 1:
        raise ValueError(f"beams={beams} must be at least 1")
    b, t = tokens.shape
    candidates = max(2, 1 + len(stop)) * beams
    by_beam = lambda x: jnp.repeat(x, beams, 0)  # (b, ...) -> (b*beams, ...)
    starts = None if start is None else by_beam(start)
    last = tokens[:, -1:]
    rows = beams * jnp.arange(b)[:, None]

    def advance(state: tuple[Array, Beams, Beams, Array, Any]) -> tuple:
        i, running, ended, hopeful, cache = state
        latest = lax.dynamic_index_in_dim(running.text, jnp.maximum(i - 1, 0), 2, keepdims=False)
        latest = jnp.where(i > 0, latest, last).reshape(-1, 1)  # (b, beams) -> (b*beams, 1)
        logits, cache = decoder.extend(latest, cache, t - 1 + i, starts)
        logp = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32))  # (b*beams, 1, v) -> ..., v
        v = logp.shape[-1]
        total = running.score[:, :, None] + logp.reshape(b, beams, v)
        score, index = lax.top_k(total.reshape(b, beams * v), candidates)  # -> (b, candidates)
        parent, token = index // v, index % v
        text = _take(running.text, parent).at[:, :, i].set(token)
        ends = is_among(token, stop) | (i + 1 == length)

        score_open, order = lax.top_k(jnp.where(ends, -jnp.inf, score), beams)
        running = Beams(_take(text, order), score_open)
        origin = (rows + _take(parent, order)).reshape(-1)  # (b, beams) -> (b*beams,)
        cache = jax.tree.map(lambda x: x[origin], cache)

        # The further candidates are there that enough stay open, not to be finished themselves.
        size = (i + 1).astype(jnp.float32) ** length_penalty
        counts = ends & (jnp.arange(candidates) < beams) & hopeful[:, None]
        scores = jnp.concatenate([ended.score, jnp.where(counts, score / size, -jnp.inf)], 1)
        score_ended, order = lax.top_k(scores, beams)
        ended = Beams(_take(jnp.concatenate([ended.text, text], 1), order), score_ended)
        hopeful &= running.score[:, 0] / size > ended.score[:, -1]
        return i + 1, running, ended, hopeful, cache

    def unfinished(state: tuple[Array, Beams, Beams, Array, Any]) -> Array:
        i, _, _, hopeful, _ = state
        return (i < length) & hopeful.any()

    cache = jax.tree.map(by_beam, prefill(decoder, tokens, start, t + length))
    text = extend_text(jnp.zeros((b * beams, 0), jnp.int32), length, pad).reshape(b, beams, length)
    none = Beams(text, jnp.full((b, beams), -jnp.inf))
    # All begin alike, so but one of them may be extended.
    first = Beams(text, none.score.at[:, 0].set(0.0))
    before = (jnp.int32(0), first, none, jnp.ones(b, bool), cache)
    ended: Beams = lax.while_loop(unfinished, advance, before)[2]
    return ended.text[:, 0], ended.score[:, 0]


def _take(x: Array, index: Array) -> Array:
    """Choose among the hypotheses of each row: (b, m, ...) by (b, n) to (b, n, ...)."""
    chex.assert_equal_shape_prefix([x, index], 1)
    return jax.vmap(lambda x, index: x[index])(x, index)
