"""Sequences from sequences: translation, by the encoder-decoder Transformer (Vaswani 2017)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.models.seq2seq import Seq2Seq
from aigc_jax.nn.transformer import TENSOR_AXES, unstack
from aigc_jax.samplers.autoregressive import Decoder, generate
from aigc_jax.samplers.beam import beam_search


def seq2seq(
    network: Seq2Seq,
    tx: optax.GradientTransformation,
    *,
    begin: int = 0,
    stop: tuple[int, ...] = (),
    pad: int = 0,
    smoothing: float = 0.0,
    decay: float | None = None,
) -> Task:
    """Make the task of writing `tokens` when given `source`.

    Its loss is −log p(x_t | x_{<t}, source) in nats a token, averaged over those that count; or
    with smoothing, the cross entropy of (1 − ε)·δ + ε/vocabulary. Batches hold `source` (b, s) and
    `tokens` (b, t), a token that ends last; and may hold `source_mask` (b, s), 1 where a token is
    and 0 where padding, and `mask` (b, t) float32, what each token counts for as a target.

    Vaswani et al. 2017, *Attention Is All You Need*; Szegedy et al. 2016, *Rethinking the Inception
    Architecture*, §7, of the smoothing.

    Args:
        network: such as `models.seq2seq.Seq2Seq`.
        tx: the optimiser; in the paper `optax.adam(noam(512), b2=0.98, eps=1e-9)`.
        begin: the token that the decoder begins from; batches do not hold it.
        stop: tokens that end a target.
        pad: the token that stands after an end.
        smoothing: ε, in [0, 1); 0.1 in the paper.
        decay: of the moving average of the weights, if there is to be one.

    Returns:
        The task, of the network `seq2seq`, and one phase of that name. It measures `accuracy`, the
        share of tokens that were the likeliest.

    Raises:
        ValueError: a token is not one of the network's, or `smoothing` is out of range; later, a
            batch holds no `source`.
    """
    for name, token in (("begin", begin), ("pad", pad), *(("stop", token) for token in stop)):
        if not 0 <= token < network.vocabulary:
            raise ValueError(
                f"{name}={token} must lie in [0, {network.vocabulary}), the network's tokens"
            )
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must lie in [0, 1)")

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"seq2seq": network.init(key, *_source(batch)[:1], batch["tokens"])["params"]}, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        given = keys if mode.train else None
        logits, mask = _teach(network, params["seq2seq"], batch, begin, given)
        tokens, count = batch["tokens"], mask.sum(1)
        # A row without a target has no loss, and weighs nothing.
        average = lambda total: total / jnp.maximum(count, 1e-9)
        nll = categorical_nll(logits, tokens, mask)
        if smoothing:
            # −Σ q log p = −log p(x) + ε·(l(x) − mean l), of the logits l.
            right = jnp.take_along_axis(logits, tokens[..., None], 2)[..., 0]
            nll += smoothing * (mask * (right - logits.mean(-1))).sum(1)
        hits = (mask * (logits.argmax(-1) == tokens)).sum(1)
        return Out(average(nll), count, {}, {"accuracy": average(hits)})

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        length: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> dict[str, Array]:
        """Write the targets of sources.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"source": (b, s)}, and {"source_mask": (b, s)} if some are padded.
            length: tokens to write, at most.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: keep the k likeliest tokens; 0 keeps all.
            top_p: keep the likeliest tokens that make up this probability.
            beams: of more than 1, search for the likeliest target by so many at a time, and draw
                nothing.
            length_penalty: of that search; more favours longer targets.

        Returns:
            What was given, and {"tokens": (b, length) int32}.

        Raises:
            ValueError: there is no `source`, or an option is out of range.
        """
        source, mask = _source(cond)
        start = jnp.full((len(keys), 1), begin, jnp.int32)
        translator = decoder(network, params["seq2seq"], source, mask)
        if beams == 1:
            tokens = generate(
                translator,
                start,
                None,
                keys,
                length=length,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop=stop,
                pad=pad,
            )
        else:
            tokens, _ = beam_search(
                translator,
                start,
                None,
                length=length,
                beams=beams,
                length_penalty=length_penalty,
                stop=stop,
                pad=pad,
            )
        given = {name: cond[name] for name in ("source", "source_mask") if name in cond}
        return given | {"tokens": tokens}

    average = {} if decay is None else {"seq2seq": decay}
    return Task(init, (Phase("seq2seq", ("seq2seq",), loss, tx),), sample, average, TENSOR_AXES)


def decoder(network: Seq2Seq, params: Any, source: Array, mask: Array | None = None) -> Decoder:
    """Bind weights, and sources that are read here and now, as what `samplers` decode by.

    Args:
        network: see there.
        params: its weights.
        source: (b, s).
        mask: (b, s), 1 where a token is.
    """
    apart = {"params": unstack(params, "decoder")}
    memory: Any = network.apply({"params": params}, source, mask, method="encode")

    def make_cache(batch: int, slots: int) -> Any:
        return network.apply({"params": params}, memory, mask, slots, method="make_cache")

    def extend(
        tokens: Array, cache: Any, slot: int | Array, start: Array | None
    ) -> tuple[Array, Any]:
        read: Any = network.apply(apart, tokens, cache, slot, start, method="extend")
        return read

    return Decoder(make_cache, extend)


def seq2seq_terms(
    network: Seq2Seq, begin: int = 0
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make the terms by which `metrics.likelihood.evaluate_terms` measures a translator.

    Returns:
        `(params, stats, batch, keys) -> {"nll", "tokens"}`, each (b,): the nats of a row's tokens,
        without smoothing, and how many they are.
    """

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        logits, mask = _teach(network, params["seq2seq"], batch, begin, None)
        return {"nll": categorical_nll(logits, batch["tokens"], mask), "tokens": mask.sum(1)}

    return terms


def noam(width: int, *, warmup: int = 4000, scale: float = 1.0) -> optax.Schedule:
    """Make the learning rate width^(−½)·min(n^(−½), n·warmup^(−3/2)) of step n = 1, 2, ….

    Vaswani et al. 2017, eq. 3. It rises for `warmup` steps and then falls as 1/√n.

    Args:
        width: of the network.
        warmup: steps.
        scale: multiplies it.

    Returns:
        The schedule, `(updates so far) -> rate`.

    Raises:
        ValueError: an argument is not positive.

    >>> rate = noam(512)
    >>> [round(float(rate(n)), 6) for n in (0, 3999, 15999)]
    [0.0, 0.000699, 0.000349]
    """
    for name, value in (("width", width), ("warmup", warmup), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive")

    def rate(count: Any) -> Array:
        n = jnp.asarray(count, jnp.float32) + 1
        return scale * width**-0.5 * jnp.minimum(n**-0.5, n * warmup**-1.5)

    return rate


def _teach(
    network: Seq2Seq, params: Any, batch: Batch, begin: int, keys: Array | None
) -> tuple[Array, Array]:
    """Return the (b, t, vocabulary) logits of rows' tokens, and what each counts for, (b, t)."""
    tokens, mask = batch["tokens"], batch.get("mask")
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=begin)
    source, source_mask = _source(batch)
    logits: Any = network.apply({"params": params}, source, before, source_mask, keys)
    return logits, jnp.ones(tokens.shape, jnp.float32) if mask is None else mask


def _source(given: Batch) -> tuple[Array, Array | None]:
    if "source" not in given:
        raise ValueError(f"there is no sequence to read, 'source', among {sorted(given)}")
    return given["source"], given.get("source_mask")
