"""Classification, of images and of texts; the judge of generated images is such a task."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.models.bert import TextClassifier
from aigc_jax.nn.transformer import TENSOR_AXES


def classifier(
    network: nn.Module,
    tx: optax.GradientTransformation,
    *,
    smoothing: float = 0.0,
    decay: float = 0.999,
) -> Task:
    """Make the task of classifying images by cross-entropy.

    Batches hold `image` (b, h, w, c) in [−1, 1] and `label` (b,). Its `sample` classifies the
    images of its `cond`.

    Args:
        network: `(image, *, train, axis) -> (logits, features)`, such as `models.convnet.ConvNet`.
        tx: the optimiser.
        smoothing: of the labels (Szegedy et al. 2016, §7), in [0, 1).
        decay: of the exponential moving average of weights and batch statistics.

    Returns:
        The task, of one network and one phase, both named `classifier`.

    Raises:
        ValueError: `smoothing` is outside [0, 1).
    """
    _check(smoothing)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        variables = network.init(key, batch["image"])
        return {"classifier": variables["params"]}, {"classifier": variables.get("batch_stats", {})}

    def apply(params: Any, stats: Any, image: Array, **kwargs: Any) -> Any:
        variables = {"params": params["classifier"], "batch_stats": stats["classifier"]}
        return network.apply(variables, image, **kwargs)

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        (logits, _), updated = apply(
            params,
            stats,
            batch["image"],
            train=mode.train,
            axis=mode.axis,
            mutable=["batch_stats"],
            rngs={"dropout": keys[0]},
        )
        nll, right = _score(logits, batch["label"], smoothing)
        return Out(
            loss=nll,
            weight=jnp.ones(nll.shape),
            stats={"classifier": updated.get("batch_stats", {})},
            metrics={"accuracy": right},
        )

    def sample(params: Any, stats: Any, keys: Array, cond: Batch) -> dict[str, Array]:
        if "image" not in cond:
            raise ValueError("a classifier samples labels of images: its cond must hold `image`")
        logits, features = apply(params, stats, cond["image"])
        return {"label": logits.argmax(-1), "logits": logits, "features": features}

    phase = Phase("classifier", ("classifier",), loss, tx)
    return Task(init, (phase,), sample, average={"classifier": decay})


def text_classifier(
    network: TextClassifier, tx: optax.GradientTransformation, *, smoothing: float = 0.0
) -> Task:
    """Make the task of classifying texts by cross-entropy.

    Batches hold `tokens` (b, t), `label` (b,), and perhaps `mask` (b, t), 1 where a token is real,
    and `segment` (b, t), each token's kind. Its `sample` classifies the tokens of its `cond`.

    Args:
        network: such as `models.bert.TextClassifier`.
        tx: the optimiser; to fine-tune the head alone, see `optax.masked`.
        smoothing: of the labels, in [0, 1).

    Returns:
        The task, of one network and one phase, both named `classifier`.

    Raises:
        ValueError: `smoothing` is outside [0, 1).
    """
    _check(smoothing)

    def apply(params: Any, batch: Batch, keys: Array | None) -> Array:
        known: Any = {name: batch[name] for name in ("mask", "segment") if name in batch}
        variables = {"params": params["classifier"]}
        logits: Any = network.apply(variables, batch["tokens"], keys=keys, **known)
        return logits

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"classifier": network.init(key, batch["tokens"])["params"]}, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        logits = apply(params, batch, keys if mode.train else None)
        nll, right = _score(logits, batch["label"], smoothing)
        return Out(nll, jnp.ones(nll.shape), metrics={"accuracy": right})

    def sample(params: Any, stats: Any, keys: Array, cond: Batch) -> dict[str, Array]:
        if "tokens" not in cond:
            raise ValueError("a classifier samples labels of texts: its cond must hold `tokens`")
        logits = apply(params, cond, None)
        return {"label": logits.argmax(-1), "logits": logits}

    phase = Phase("classifier", ("classifier",), loss, tx)
    return Task(init, (phase,), sample, {}, TENSOR_AXES)


def _check(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must be in [0, 1)")


def _score(logits: Array, label: Array, smoothing: float) -> tuple[Array, Array]:
    """Return the (b,) cross-entropy, and 1 where the likeliest class is right."""
    # A label that is no class makes the loss NaN, which the loop reports.
    rows = jnp.eye(logits.shape[-1]).at[label]
    target = optax.smooth_labels(rows.get(mode="fill", fill_value=jnp.nan), smoothing)
    right = (logits.argmax(-1) == label).astype(jnp.float32)
    return optax.softmax_cross_entropy(logits, target), right
