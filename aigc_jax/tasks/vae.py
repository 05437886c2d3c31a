"""Variational autoencoders of images, of any two networks and any likelihood."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, normal
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.annealing import Weight, at_step, check_weights
from aigc_jax.functional.divergence import capacity_penalty, gaussian_kl_terms, reparameterise
from aigc_jax.functional.divergence import free_bits as hold_free
from aigc_jax.functional.likelihood import (
    BERNOULLI,
    Likelihood,
    gaussian_nll,
    nats_to_bits_per_dim,
)
from aigc_jax.functional.likelihood import importance_weighted_nll as iw
from aigc_jax.tasks.gan import choose_label

Terms = Callable[[Any, Any, Batch, Array], dict[str, Array]]


def vae(
    encoder: nn.Module,
    decoder: nn.Module,
    tx: optax.GradientTransformation,
    *,
    latent: int,
    likelihood: Likelihood = BERNOULLI,
    beta: Weight = 1.0,
    free_bits: float = 0.0,
    capacity: Weight | None = None,
    gamma: float = 30.0,
    classes: int = 0,
) -> Task:
    """Make the task of a variational autoencoder (Kingma and Welling 2014).

    Its loss is −ELBO = E[−log p(x|z)] + β·KL(q(z|x) ‖ N(0, 1)) in nats (eq. 7; Higgins et al. 2017,
    eq. 4), of one draw of z. Batches hold `image` (b, h, w, c) in [−1, 1], and `label` (b,) if
    there are classes, which then are a condition of both networks (Sohn et al. 2015).

    Args:
        encoder: `x -> (mu, logvar)`, each (b, latent), or of `(x, label)` if there are classes;
            such as `models.vae.MLPEncoder`.
        decoder: `z -> output`, (b, h, w, c·outputs) as the likelihood takes it, or of `(z, label)`;
            such as `models.vae.MLPDecoder`.
        tx: the optimiser.
        latent: dimensions of z.
        likelihood: of an image given the decoder's output.
        beta: weight of the divergence, or a schedule of it: `step -> weight`, such as
            `functional.annealing` makes.
        free_bits: nats of each dimension's divergence that cost nothing (Kingma et al. 2016).
        capacity: nats, or a schedule of them, at which the divergence is held in place of weighing
            it: γ·|KL − C| (Burgess et al. 2018).
        gamma: the γ of it.
        classes: number of labels; 0 is unconditional.

    Returns:
        The task, of the networks `encoder` and `decoder`, and one phase, `vae`.

    Raises:
        ValueError: a weight is negative, or `capacity` is given beside `beta` or `free_bits`.
    """
    check_weights(beta=beta, free_bits=free_bits, capacity=capacity, gamma=gamma)
    if capacity is not None and (beta != 1.0 or free_bits):
        raise ValueError(f"capacity={capacity} goes with neither beta nor free_bits")
    bound = _bound(encoder, decoder, likelihood, classes)
    encode = posterior(encoder, classes=classes)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        keys = jax.random.split(key)
        z = jnp.zeros((batch["image"].shape[0], latent))
        label = (batch["label"],) if classes else ()
        return {
            "encoder": encoder.init(keys[0], batch["image"], *label)["params"],
            "decoder": decoder.init(keys[1], z, *label)["params"],
        }, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        reconstruction, terms = bound(params, batch, keys)
        kl = terms.sum(-1)
        if capacity is None:
            divergence = hold_free(terms, free_bits) if free_bits else kl
            value = reconstruction + at_step(beta, mode.step) * divergence
        else:
            value = reconstruction + capacity_penalty(kl, at_step(capacity, mode.step), gamma)
        metrics = {"reconstruction": reconstruction, "kl": kl}
        return Out(value, jnp.ones_like(value), metrics=metrics)

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, temperature: float = 1.0
    ) -> Array:
        """Draw images, or reconstruct some: the means of p(x|z).

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"z": (b, latent)} to decode; or {"image": (b, h, w, c)} to draw z from the
                posteriors of; or neither, to draw z from the prior. And {"label": (b,)} if there
                are classes; without it, samples are of classes at random.
            temperature: scales the standard deviation of z; 0 takes its mean.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: a label is given to a model without classes, an image comes without its
                label to one with classes, or a latent is not (b, latent).
        """
        if classes and "image" in cond and not {"z", "label"} & set(cond):
            raise ValueError("cond holds image and no label, which this model reads it with")
        label = choose_label(cond, keys, classes)
        z = choose_latent(cond, keys, (latent,), "image", lambda: encode(params, cond), temperature)
        return likelihood.mean(_apply(decoder, params["decoder"], z, label))

    return Task(init, (Phase("vae", ("encoder", "decoder"), loss, tx),), sample)


def choose_latent(
    cond: Batch,
    keys: Array,
    shape: tuple[int, ...],
    column: str,
    encode: Callable[[], tuple[Array, Array]],
    temperature: float,
) -> Array:
    """Return the latents that the sampler of an autoencoder is to decode.

    Args:
        cond: what it was given: {"z": (b, *shape)}, those themselves; or data, of whose posteriors
            they are drawn; or neither, and they are drawn from the prior, N(0, 1).
        keys: (b,).
        shape: of a latent.
        column: under which the condition holds data.
        encode: gives its (mu, logvar), each (b, *shape).
        temperature: scales the standard deviation of what is drawn; 0 takes the mean.

    Returns:
        (b, *shape).

    Raises:
        ValueError: the latents given have another shape.
    """
    if "z" in cond:
        if cond["z"].shape[1:] != shape:
            raise ValueError(
                f"cond['z'] has shape {cond['z'].shape}; this model's latents are (b, "
                f"{', '.join(map(str, shape))})"
            )
        return cond["z"]
    if column in cond:
        return reparameterise(*encode(), keys, temperature)
    return temperature * normal(keys, shape)


def posterior(
    encoder: nn.Module, *, classes: int = 0
) -> Callable[[Any, Batch], tuple[Array, Array]]:
    """Make `(params, batch) -> (mu, logvar)` of q(z|x), each (b, latent)."""

    def encode(params: Any, batch: Batch) -> tuple[Array, Array]:
        label = batch["label"] if classes else None
        return _apply(encoder, params["encoder"], batch["image"], label)

    return encode


def elbo_terms(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood = BERNOULLI,
    *,
    classes: int = 0,
) -> Terms:
    """Make `(params, stats, batch, keys) -> terms` of the bound on −log p(x), each (b,).

    The arguments are those of `vae`.

    Returns:
        The function; its terms are `reconstruction`, `kl` and their sum `negative_elbo`, in nats;
        and that sum as `bits_per_dim`, where the likelihood gives 8-bit images probabilities.
    """
    bound = _bound(encoder, decoder, likelihood, classes)

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        reconstruction, kl = bound(params, batch, keys)
        kl = kl.sum(-1)
        nats = reconstruction + kl
        found = {"reconstruction": reconstruction, "kl": kl, "negative_elbo": nats}
        if likelihood.discrete:
            dims = math.prod(batch["image"].shape[1:])
            found["bits_per_dim"] = nats_to_bits_per_dim(nats, dims)
        return found

    return terms


def importance_weighted_nll(
    encoder: nn.Module,
    decoder: nn.Module,
    likelihood: Likelihood = BERNOULLI,
    *,
    k: int,
    chunk: int = 50,
    classes: int = 0,
) -> Terms:
    """Make `(params, stats, batch, keys) -> {"iw<k>_nll": (b,)}`: −log p(x) from k draws of z.

    It is a bound from above (Burda et al. 2016, eq. 8), in nats, on what `elbo_terms` bounds less
    closely; see `functional.likelihood.importance_weighted_nll`, whose arguments `k` and `chunk`
    are. The others are those of `vae`.
    """

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        x, label = batch["image"], batch["label"] if classes else None
        mu, logvar = _apply(encoder, params["encoder"], x, label)

        def log_weight(keys: Array) -> Array:
            z = reparameterise(mu, logvar, fold(keys, 0))
            nll = likelihood.nll(_apply(decoder, params["decoder"], z, label), x)
            prior = gaussian_nll(jnp.zeros_like(z), 0.0, z)
            return gaussian_nll(mu, logvar, z) - nll - prior

        return {f"iw{k}_nll": iw(log_weight, keys, k=k, chunk=chunk)}

    return terms


def _bound(
    encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, classes: int
) -> Callable[[Any, Batch, Array], tuple[Array, Array]]:
    """Make `(params, batch, keys) -> (reconstruction, kl)`, (b,) and (b, latent) nats."""

    def bound(params: Any, batch: Batch, keys: Array) -> tuple[Array, Array]:
        x, label = batch["image"], batch["label"] if classes else None
        mu, logvar = _apply(encoder, params["encoder"], x, label)
        z = reparameterise(mu, logvar, fold(keys, 0))
        output = _apply(decoder, params["decoder"], z, label)
        return likelihood.nll(output, x), gaussian_kl_terms(mu, logvar)

    return bound


def _apply(network: nn.Module, params: Any, *args: Array | None) -> Any:
    """Apply a network, to a label as well if there is one."""
    return network.apply({"params": params}, *(x for x in args if x is not None))
