"""Masked language models: hidden tokens, of all those around them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from aigc_jax.core.keys import fold, uniform
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.models.bert import BERT
from aigc_jax.nn.transformer import TENSOR_AXES
from aigc_jax.samplers.autoregressive import choose_tokens


def masked_lm(
    network: BERT,
    tx: optax.GradientTransformation,
    *,
    hidden: int,
    ordinary: tuple[int, int],
    share: float = 0.15,
) -> Task:
    """Make the task of a masked language model (Devlin et al. 2019, §3.1 and appendix A.1).

    Of a row's real tokens a share is chosen: eight in ten of these are hidden, one in ten becomes
    any ordinary token, and one stays. The loss is −log p of each as it was, in nats a chosen token.
    Batches hold `tokens` (b, t), and perhaps `mask` (b, t), 1 where a token is real.

    Args:
        network: such as `models.bert.BERT`.
        tx: the optimiser.
        hidden: the token that stands for a hidden one.
        ordinary: (first, one behind the last) of the tokens that are chosen and put in: those that
            are not special.
        share: of the tokens that are chosen.

    Returns:
        The task, of the network `bert`, and one phase, `masked_lm`.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1]")
    if not 0 <= hidden < network.vocabulary:
        raise ValueError(f"hidden={hidden} must lie in [0, {network.vocabulary}), the vocabulary")
    if not 0 <= ordinary[0] < ordinary[1] <= network.vocabulary:
        raise ValueError(f"ordinary={ordinary} must be a range within [0, {network.vocabulary})")
    terms = masked_terms(network, hidden=hidden, ordinary=ordinary, share=share)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"bert": network.init(key, batch["tokens"], method="predict")["params"]}, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        of = terms(params, stats, batch, keys, dropout=mode.train)
        each = 1 / jnp.maximum(of["tokens"], 1)
        return Out(of["nll"] * each, of["tokens"], metrics={"accuracy": of["right"] * each})

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, temperature: float = 0.0
    ) -> dict[str, Array]:
        """Fill in what is hidden, all at once.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"tokens": (b, t)} of which some are hidden; and perhaps {"mask": (b, t)}.
            temperature: divides the logits; 0 takes the likeliest tokens.

        Returns:
            {"tokens": (b, t) int32}.

        Raises:
            ValueError: there are no tokens.
        """
        if "tokens" not in cond:
            raise ValueError("there is no text to fill in: a prompt is needed, with a hidden token")
        tokens = cond["tokens"]
        logits: Any = network.apply(
            {"params": params["bert"]}, tokens, mask=cond.get("mask"), method="predict"
        )
        first, last = ordinary
        drawn = choose_tokens(logits[..., first:last], keys, temperature=temperature) + first
        return {"tokens": jnp.where(tokens == hidden, drawn, tokens)}

    return Task(init, (Phase("masked_lm", ("bert",), loss, tx),), sample, {}, TENSOR_AXES)


def masked_terms(
    network: BERT, *, hidden: int, ordinary: tuple[int, int], share: float = 0.15
) -> Callable[..., dict[str, Array]]:
    """Make the terms by which `metrics.likelihood.evaluate_terms` measures a masked language model.

    The arguments are those of `masked_lm`.

    Returns:
        `(params, stats, batch, keys) -> {"nll", "tokens", "right"}`, each (b,): of a row's chosen
        tokens the nats, how many they are, and of how many the likeliest is right.
    """

    def terms(
        params: Any, stats: Any, batch: Batch, keys: Array, dropout: bool = False
    ) -> dict[str, Array]:
        tokens, real = batch["tokens"], batch.get("mask")
        seen, chosen = corrupt(tokens, keys, hidden=hidden, ordinary=ordinary, share=share)
        chosen = chosen if real is None else chosen * real
        logits: Any = network.apply(
            {"params": params["bert"]},
            jnp.where(chosen > 0, seen, tokens),
            mask=real,
            keys=fold(keys, 3) if dropout else None,
            method="predict",
        )
        right = (logits.argmax(-1) == tokens) * chosen
        nll = categorical_nll(logits, tokens, chosen)
        return {"nll": nll, "tokens": chosen.sum(1), "right": right.sum(1)}

    return terms


def corrupt(
    tokens: Array, keys: Array, *, hidden: int, ordinary: tuple[int, int], share: float = 0.15
) -> tuple[Array, Array]:
    """Choose tokens and hide most of them; see `masked_lm`.

    Args:
        tokens: (b, t).
        keys: (b,).
        hidden: the token that stands for a hidden one.
        ordinary: the range of tokens that may be chosen, and that are put in.
        share: of the tokens that are chosen.

    Returns:
        (b, t) tokens, and (b, t) float32, 1 where one was chosen.
    """
    first, last = ordinary
    shape = tokens.shape[1:]
    chosen = (uniform(fold(keys, 0), shape) < share) & (tokens >= first) & (tokens < last)
    fate = uniform(fold(keys, 1), shape)
    other = first + (uniform(fold(keys, 2), shape) * (last - first)).astype(jnp.int32)
    seen = jnp.where(fate < 0.8, hidden, jnp.where(fate < 0.9, other, tokens))
    return jnp.where(chosen, seen, tokens).astype(jnp.int32), chosen.astype(jnp.float32)
