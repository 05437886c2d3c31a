"""Language models: the next token, of all those before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import lora
from aigc_jax.nn.transformer import TENSOR_AXES, unstack
from aigc_jax.samplers.autoregressive import Decoder
from aigc_jax.samplers.window import generate_long
from aigc_jax.tasks.adapters import Adapter


def lm(
    network: GPT,
    tx: optax.GradientTransformation,
    *,
    adapter: Adapter | None = None,
    begin: int = 0,
    stop: tuple[int, ...] = (),
    pad: int = 0,
    vocabulary: int | None = None,
    decay: float | None = None,
) -> Task:
    """Make the task of a language model (Radford et al. 2019).

    Its loss is −log p(x_t | x_{<t}) in nats a token, averaged over those that count. Batches hold
    `tokens` (b, t + 1), of which the first t are read and the last t predicted; and may hold `mask`
    (b, t + 1) float32, what each counts for as a target, and `segment` (b, t + 1), the document
    each is of, where rows are packed.

    Args:
        network: such as `models.gpt.GPT`.
        tx: the optimiser; see `adamw`.
        adapter: trains in the network's stead, such as `adapters.low_rank`; the network then stays
            as it began, so that weights should be given to it.
        begin: the token that an empty prompt stands for.
        stop: tokens that end a text.
        pad: the token that comes after an end, and before a prompt that is shorter than others.
        vocabulary: how many tokens there are, from 0 on, if the network has more, such as a
            multiple of 128 for the sake of matrix units; the rest is never written.
        decay: of the moving average of the weights, if there is to be one.

    Returns:
        The task, of the network `gpt`, and `adapter` if there is one, and one phase, `lm`.

    Raises:
        ValueError: a token is not one of the network's.
    """
    trained = "gpt" if adapter is None else "adapter"
    known = network.vocabulary + network.classes
    if vocabulary is not None and not 1 <= vocabulary <= network.vocabulary:
        most = network.vocabulary
        raise ValueError(f"vocabulary={vocabulary} must lie in [1, {most}], the network's tokens")
    for name, token in (("begin", begin), ("pad", pad), *(("stop", token) for token in stop)):
        if not 0 <= token < known:
            raise ValueError(f"{name}={token} must lie in [0, {known}), the network's tokens")

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        params = {"gpt": network.init(key, batch["tokens"][:, :-1])["params"]}
        if adapter is not None:
            own = jax.random.fold_in(key, 1)
            params["adapter"] = adapter.init(own, network, params["gpt"])
        return params, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        run = _bind(network, params, adapter)
        nll, count = _nll(run, batch, keys if mode.train else None)
        # A row without a target has no loss, and weighs nothing.
        return Out(nll / jnp.maximum(count, 1e-9), count)

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        length: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        observe: Callable[[np.ndarray], Any] | None = None,
    ) -> dict[str, Array]:
        """Continue prompts, or write from nothing.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"tokens": (b, t)} prompts, and {"start": (b,)} where each begins, if they are
                padded before; or empty.
            length: tokens to write. Beyond the network's context, it goes on from the last half.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: keep the k likeliest tokens; 0 keeps all.
            top_p: keep the likeliest tokens that make up this probability.
            min_p: keep tokens of at least this share of the likeliest's probability.
            repetition_penalty: makes tokens that were there less likely; 1 does not.
            observe: called on the host with each step's (b,) tokens; see `generate`.

        Returns:
            {"tokens": (b, t + length) int32, prompts and what follows; "start": (b,)}.

        Raises:
            ValueError: an option is out of range, or the prompt leaves no room in the context.
        """
        b = len(keys)
        tokens = cond.get("tokens", jnp.full((b, 1), begin, jnp.int32)).astype(jnp.int32)
        start = cond.get("start", jnp.zeros(b, jnp.int32)).astype(jnp.int32)
        written = generate_long(
            decoder(network, params, vocabulary, adapter),
            tokens,
            start,
            keys,
            context=network.context,
            length=length,
            stop=stop,
            pad=pad,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            observe=observe,
        )
        return {"tokens": jnp.concatenate([tokens, written], 1), "start": start}

    average = {} if decay is None else {trained: decay}
    return Task(init, (Phase("lm", (trained,), loss, tx),), sample, average, TENSOR_AXES)


def decoder(
    network: GPT, params: Any, vocabulary: int | None = None, adapter: Adapter | None = None
) -> Decoder:
    """Bind weights as what the decoding algorithms of `samplers` read.

    Args:
        network: of the language model.
        params: by network, as the task has them.
        vocabulary: the logits of other tokens are left away.
        adapter: as of `lm`.
    """
    run = _bind(network, params, adapter, apart=True)

    def extend(
        tokens: Array, cache: Any, slot: int | Array, start: Array | None
    ) -> tuple[Array, Any]:
        logits, cache = run(tokens, cache, slot, start, method="extend")
        return logits[..., :vocabulary], cache

    return Decoder(network.make_cache, extend)


def lm_terms(
    network: GPT, adapter: Adapter | None = None
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make the terms by which `metrics.likelihood.evaluate_terms` measures a language model.

    Returns:
        `(params, stats, batch, keys) -> {"nll", "tokens"}`, each (b,): the nats of a row's tokens,
        and how many they are.
    """

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        nll, count = _nll(_bind(network, params, adapter), batch, None)
        return {"nll": nll, "tokens": count}

    return terms


def freeze(tx: optax.GradientTransformation, layers: int) -> optax.GradientTransformation:
    """Train all but the embeddings and the first blocks of a network of stacked layers.

    What is frozen does not decay either.

    Args:
        tx: the optimiser of the rest.
        layers: how many blocks stay as they are, with the embeddings; 0 freezes nothing.

    Raises:
        ValueError: `layers` is negative.
    """
    if layers < 0:
        raise ValueError(f"layers={layers} must be at least 0")
    if layers == 0:
        return tx

    def hold(path: Any, update: Array) -> Array:
        names = [getattr(key, "key", None) for key in path]
        if "blocks" in names:
            return update.at[:layers].set(0)
        return jnp.zeros_like(update) if "embedding" in names else update

    held = optax.stateless(lambda updates, params: jax.tree.map_with_path(hold, updates))
    return optax.chain(tx, held)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.1,
    clip: float = 1.0,
) -> optax.GradientTransformation:
    """Make the optimiser that Transformers are usually trained by (Brown et al. 2020, appendix B).

    Gradients are clipped to a norm; matrices decay, and biases and normalisation's scales do not.
    """

    def matrices(params: Any) -> Any:
        last = lambda path: getattr(path[-1], "key", None)
        return jax.tree.map_with_path(lambda path, _: last(path) in ("kernel", "embedding"), params)

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=matrices),
    )


def _bind(
    network: GPT, params: Any, adapter: Adapter | None, apart: bool = False
) -> Callable[..., Any]:
    """Make what `network.apply` is, of its weights, adapted or not; apart, for `extend` alone."""
    variables = {"params": params["gpt"]}
    if adapter is not None:
        variables |= adapter.variables(network, params["gpt"], params["adapter"])
    if apart:
        variables = {name: unstack(of) for name, of in variables.items()}

    def run(*args: Any, **kwargs: Any) -> Any:
        with lora():
            return network.apply(variables, *args, **kwargs)

    return run


def _nll(run: Callable[..., Any], batch: Batch, keys: Array | None) -> tuple[Array, Array]:
    """Return the (b,) nats of rows' targets, and their (b,) weights."""
    tokens, segment, mask = batch["tokens"], batch.get("segment"), batch.get("mask")
    mask = jnp.ones(tokens.shape, jnp.float32) if mask is None else mask
    if segment is not None:
        # A document does not tell how the next one begins.
        mask = mask.at[:, 1:].multiply(segment[:, 1:] == segment[:, :-1])
        segment = segment[:, :-1]
    logits = run(tokens[:, :-1], keys, segment)
    return categorical_nll(logits, tokens[:, 1:], mask[:, 1:]), mask[:, 1:].sum(1)
