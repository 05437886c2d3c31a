"""Variational autoencoders."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, normal
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.divergence import bernoulli_nll, gaussian_kl


def vae(
    encoder: nn.Module,
    decoder: nn.Module,
    tx: optax.GradientTransformation,
    *,
    latent: int,
    beta: float = 1.0,
) -> Task:
    """Make the task of a variational autoencoder of grey images (Kingma and Welling 2014).

    Its loss is −ELBO = E[−log p(x|z)] + β·KL(q(z|x) ‖ N(0, 1)) in nats (eq. 7; Higgins et al. 2017,
    eq. 4), of one draw of z. Batches hold `image` (b, h, w, c) in [−1, 1], which the likelihood
    reads as Bernoulli probabilities (x + 1)/2.

    Args:
        encoder: `x -> (mu, logvar)`, each (b, latent); such as `models.vae.MLPEncoder`.
        decoder: `z -> logits`, (b, h, w, c); such as `models.vae.MLPDecoder`.
        tx: the optimiser.
        latent: dimensions of z.
        beta: weight of the divergence.

    Returns:
        The task, of the networks `encoder` and `decoder`, and one phase, `vae`.

    Raises:
        ValueError: `beta` is negative.
    """
    if beta < 0:
        raise ValueError(f"beta={beta} must be at least 0")
    bound = negative_elbo(encoder, decoder)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        keys = jax.random.split(key)
        z = jnp.zeros((batch["image"].shape[0], latent))
        return {
            "encoder": encoder.init(keys[0], batch["image"])["params"],
            "decoder": decoder.init(keys[1], z)["params"],
        }, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        reconstruction, kl = bound(params, stats, batch, keys)
        value = reconstruction + beta * kl
        metrics = {"reconstruction": reconstruction, "kl": kl}
        return Out(value, jnp.ones_like(value), metrics=metrics)

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, temperature: float = 1.0
    ) -> Array:
        """Draw images: the means of p(x|z).

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: empty.
            temperature: standard deviation of z; less is more typical and less varied.

        Returns:
            (b, h, w, c) in [−1, 1].
        """
        z = temperature * normal(keys, (latent,))
        logits: Any = decoder.apply({"params": params["decoder"]}, z)
        return 2 * jax.nn.sigmoid(logits) - 1

    return Task(init, (Phase("vae", ("encoder", "decoder"), loss, tx),), sample)


def negative_elbo(
    encoder: nn.Module, decoder: nn.Module
) -> Callable[[Any, Any, Batch, Array], tuple[Array, Array]]:
    """Make `(params, stats, batch, keys) -> (reconstruction, kl)`, each (b,) nats.

    Their sum is −ELBO, an upper bound on −log p(x). The encoder and the decoder are those of `vae`.
    """

    def bound(params: Any, stats: Any, batch: Batch, keys: Array) -> tuple[Array, Array]:
        x = batch["image"]
        gaussian: Any = encoder.apply({"params": params["encoder"]}, x)
        mu, logvar = gaussian
        z = mu + jnp.exp(0.5 * logvar) * normal(fold(keys, 0), mu.shape[1:])  # eq. 10
        logits: Any = decoder.apply({"params": params["decoder"]}, z)
        return bernoulli_nll(logits, (x + 1) / 2), gaussian_kl(mu, logvar)

    return bound
