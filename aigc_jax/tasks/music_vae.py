"""Variational autoencoders of music in several voices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, uniform
from aigc_jax.core.shapes import mean_flat, sum_flat
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.annealing import Weight, at_step, check_weights
from aigc_jax.functional.divergence import gaussian_kl, reparameterise
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.models.music_vae import MusicDecoder
from aigc_jax.samplers.autoregressive import sample_tokens
from aigc_jax.tasks.vae import choose_latent


def music_vae(
    encoder: nn.Module,
    decoder: MusicDecoder,
    tx: optax.GradientTransformation,
    *,
    latent: int,
    beta: Weight = 0.2,
    free_bits: float = 48.0,
    dropout: float = 0.0,
) -> Task:
    """Make the task of MusicVAE (Roberts et al. 2018).

    Its loss is E[−log p(x|z)] + β·max(KL(q(z|x) ‖ N(0, 1)) − τ, 0) in nats (eqs. 2 and 3), of one
    draw of z. Batches hold `pitches` (b, t, voices), tokens.

    Args:
        encoder: `pitches -> (mu, logvar)`, each (b, latent); such as
            `models.music_vae.MusicEncoder`.
        decoder: such as `models.music_vae.MusicDecoder()`.
        tx: the optimiser.
        latent: dimensions of z.
        beta: weight of the divergence, or `step -> weight`.
        free_bits: τ, the nats of divergence that cost nothing, of all dimensions together; the
            paper's are 48 bits, which is 33 nats.
        dropout: the share of notes that the decoder is not given as what has gone before, so that
            it has to ask z for them (Bowman et al. 2016, §3.3).

    Returns:
        The task, of the networks `encoder` and `decoder`, and one phase, `music_vae`.

    Raises:
        ValueError: `beta` or `free_bits` is negative, or `dropout` not in [0, 1).
    """
    check_weights(beta=beta, free_bits=free_bits)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must lie in [0, 1)")

    encode = posterior(encoder)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        keys, pitches = jax.random.split(key), batch["pitches"]
        z = jnp.zeros((pitches.shape[0], latent))
        return {
            "encoder": encoder.init(keys[0], pitches)["params"],
            "decoder": decoder.init(keys[1], z, pitches)["params"],
        }, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        pitches = batch["pitches"]
        mu, logvar = encode(params, batch)
        z, hidden = reparameterise(mu, logvar, fold(keys, 0)), None
        if dropout and mode.train:
            hidden = uniform(fold(keys, 1), pitches.shape[1:]) < dropout
        logits: Any = decoder.apply({"params": params["decoder"]}, z, pitches, hidden)
        reconstruction, kl = categorical_nll(logits, pitches), gaussian_kl(mu, logvar)
        value = reconstruction + at_step(beta, mode.step) * jnp.maximum(kl - free_bits, 0)
        metrics = {"reconstruction": reconstruction, "kl": kl}
        return Out(value, jnp.ones_like(value), metrics=metrics)

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        temperature: float = 1.0,
        note_temperature: float = 1.0,
    ) -> Array:
        """Draw music: of latents from the prior, from the posteriors of `pitches`, or given as `z`.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: empty, or `pitches` (b, t, voices) to reconstruct, or `z` (b, latent) to decode.
            temperature: scales the standard deviations of z; 0 is their mean.
            note_temperature: divides the logits of the notes; 0 takes the likeliest of each.

        Returns:
            (b, t, voices) int32 tokens.

        Raises:
            ValueError: a latent is not (b, latent).
        """
        read = lambda: encode(params, cond)
        z = choose_latent(cond, fold(keys, 0), (latent,), "pitches", read, temperature)
        return _decode(decoder, params, z, fold(keys, 1), note_temperature)

    return Task(init, (Phase("music_vae", ("encoder", "decoder"), loss, tx),), sample)


def posterior(encoder: nn.Module) -> Callable[[Any, Batch], tuple[Array, Array]]:
    """Make `(params, batch) -> (mu, logvar)`, each (b, latent), of q(z|x)."""

    def encode(params: Any, batch: Batch) -> tuple[Array, Array]:
        gaussian: Any = encoder.apply({"params": params["encoder"]}, batch["pitches"])
        return gaussian

    return encode


def elbo_terms(
    encoder: nn.Module, decoder: MusicDecoder
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make `(params, stats, batch, keys) -> {name: (b,)}`, the terms of the bound, for evaluation.

    The encoder and the decoder are those of `music_vae`; nothing is dropped, and its weights are
    not applied.

    Returns:
        The function. Of a segment, in nats, of one draw of z, are `reconstruction`, `kl` and their
        sum `negative_elbo`, an upper bound on −log p(x); `frame_nll` is that bound over the number
        of frames, in nats a frame. `accuracy` is the share of notes that are reconstructed: z is
        the mean of its posterior, and the decoder hears nothing but its own likeliest notes. Most
        of these are held from frame to frame: `onset_accuracy` is of those alone that are not the
        same as the one before.
    """
    encode = posterior(encoder)

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        pitches = batch["pitches"]
        mu, logvar = encode(params, batch)
        z = reparameterise(mu, logvar, fold(keys, 0))
        logits: Any = decoder.apply({"params": params["decoder"]}, z, pitches)
        reconstruction, kl = categorical_nll(logits, pitches), gaussian_kl(mu, logvar)
        right = (_decode(decoder, params, mu, keys, 0.0) == pitches).astype(jnp.float32)
        onset = jnp.diff(pitches, axis=1, prepend=-1) != 0  # every note of the first frame, too
        return {
            "reconstruction": reconstruction,
            "kl": kl,
            "negative_elbo": reconstruction + kl,
            "frame_nll": (reconstruction + kl) / pitches.shape[1],
            "accuracy": mean_flat(right),
            "onset_accuracy": sum_flat(right * onset) / sum_flat(onset),
        }

    return terms


def _decode(decoder: MusicDecoder, params: Any, z: Array, keys: Array, temperature: float) -> Array:
    """Write segments note by note: (b, latent) -> (b, t, voices) tokens."""
    variables = {"params": params["decoder"]}

    def step(carry: Any, token: Array) -> Any:
        return decoder.apply(variables, carry, token, method="step")

    begun: Any = decoder.apply(variables, z, method="start")
    length = decoder.length
    tokens = sample_tokens(step, *begun, keys=keys, length=length, temperature=temperature)
    return tokens.reshape(z.shape[0], -1, decoder.voices)  # (b, t*voices) -> (b, t, voices)
