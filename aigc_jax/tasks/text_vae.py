"""Variational autoencoders of sentences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold, uniform
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.annealing import Weight, at_step, check_weights
from aigc_jax.functional.divergence import free_bits as hold_free
from aigc_jax.functional.divergence import gaussian_kl, reparameterise
from aigc_jax.functional.likelihood import categorical_nll
from aigc_jax.samplers.autoregressive import sample_tokens
from aigc_jax.tasks.vae import choose_latent


def text_vae(
    encoder: nn.Module | None,
    decoder: nn.Module,
    tx: optax.GradientTransformation,
    *,
    latent: int,
    length: int,
    start: int,
    end: int,
    unk: int,
    beta: Weight = 1.0,
    free_bits: float = 0.0,
    word_dropout: float = 0.0,
) -> Task:
    """Make the task of a variational autoencoder of sentences (Bowman et al. 2016).

    Its loss is −Σ_t log p(x_t|x_{<t}, z) + β·KL(q(z|x) ‖ N(0, 1)) in nats a sentence, of one draw
    of z. A decoder that reads what came before can do without z; then the divergence falls to 0
    and the model has collapsed to a language model. Three remedies, which go together: a β that
    grows from 0 (section 3.1), inputs that are dropped (the same), and a divergence that costs
    nothing below a minimum (Kingma et al. 2016, appendix C.8).

    Batches hold `tokens` (b, t), each row a sentence and its end, and `mask` (b, t), 1 where a
    token is real; what follows the real ones changes nothing.

    Args:
        encoder: `(tokens, mask, keys) -> (mu, logvar)`, such as `models.text_vae.TextEncoder`;
            None if there is no latent.
        decoder: `(z, tokens, keys) -> logits`, with `begin` and `step`, such as
            `models.text_vae.TextDecoder`.
        tx: the optimiser.
        latent: dimensions of z; 0 leaves the decoder alone: a language model.
        length: tokens of the longest sentence that the sampler draws, its end included.
        start: the token before the first.
        end: the token that ends a sentence.
        unk: the token that takes a dropped one's place.
        beta: weight of the divergence, or a schedule of it by the step.
        free_bits: nats of a sentence's divergence, of all dimensions together, that cost nothing.
        word_dropout: the share of tokens that the decoder does not get to read in training.

    Returns:
        The task, of the networks `encoder`, if there is a latent, and `decoder`, and one phase,
        `text_vae`.

    Raises:
        ValueError: an argument is out of range, or an encoder comes without a latent, or a latent
            without an encoder.
    """
    if latent < 0 or (encoder is None) != (latent == 0):
        raise ValueError(f"{latent=} must be 0 without an encoder, and at least 1 with one")
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    check_weights(beta=beta, free_bits=free_bits)
    if not 0 <= word_dropout <= 1:
        raise ValueError(f"word_dropout={word_dropout} must lie in [0, 1]")
    encode, decode = posterior(encoder), _decoding(decoder, start)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        keys = jax.random.split(key)
        z = jnp.zeros((batch["tokens"].shape[0], latent))
        params = {"decoder": decoder.init(keys[1], z, batch["tokens"])["params"]}
        if encoder is not None:
            variables = encoder.init(keys[0], batch["tokens"], batch["mask"])
            params = {"encoder": variables["params"], **params}
        return params, {}

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        mu, logvar = encode(params, batch, fold(keys, 3) if mode.train else None)
        z = reparameterise(mu, logvar, fold(keys, 0))
        unread = None
        if word_dropout and mode.train:
            unread = uniform(fold(keys, 1), batch["tokens"].shape[1:]) < word_dropout
        logits = decode(params, z, batch, fold(keys, 2) if mode.train else None, unread, unk)
        reconstruction = categorical_nll(logits, batch["tokens"], batch["mask"])
        kl = gaussian_kl(mu, logvar)
        value = reconstruction + at_step(beta, mode.step) * hold_free(kl[:, None], free_bits)
        metrics = {
            "reconstruction": reconstruction,
            "kl": kl,
            "tokens": batch["mask"].astype(jnp.float32).sum(1),
        }
        return Out(value, jnp.ones_like(value), metrics=metrics)

    def sample(
        params: Any,
        stats: Any,
        keys: Array,
        cond: Batch,
        *,
        temperature: float = 1.0,
        token_temperature: float = 1.0,
    ) -> Array:
        """Write sentences: of latents, of those of given sentences, or of the prior.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"z": (b, latent)}, to decode; {"tokens": (b, t), "mask": (b, t)}, to reconstruct
                from a draw of the posterior; or empty, to draw from the prior.
            temperature: scales the standard deviation of z; 0 is its mean.
            token_temperature: divides the logits of the tokens; 0 takes the likeliest each time.

        Returns:
            (b, length) int32 tokens; after a sentence's end, ends.

        Raises:
            ValueError: a latent or a sentence is given to a model without one, a latent is not
                (b, latent), or tokens come without their mask.
        """
        if not latent and {"z", "tokens"} & set(cond):
            raise ValueError("a latent or a sentence was given, but this model has latent=0")
        if "tokens" in cond and "mask" not in cond:
            raise ValueError("cond holds tokens without their mask")
        read = lambda: encode(params, cond)
        z = choose_latent(cond, fold(keys, 0), (latent,), "tokens", read, temperature)
        variables = {"params": params["decoder"]}
        begin: Any = decoder.apply(variables, z, method="begin")

        def step(carry: Any, tokens: Array) -> Any:
            return decoder.apply(variables, carry, z, tokens, method="step")

        first = jnp.full(keys.shape, start, jnp.int32)
        return sample_tokens(
            step,
            begin,
            first,
            fold(keys, 1),
            length=length,
            temperature=token_temperature,
            stop=end,
        )

    networks = ("decoder",) if encoder is None else ("encoder", "decoder")
    return Task(init, (Phase("text_vae", networks, loss, tx),), sample)


def posterior(encoder: nn.Module | None) -> Callable[..., tuple[Array, Array]]:
    """Make `(params, batch, keys=None) -> (mu, logvar)`, each (b, latent), of q(z|x).

    The encoder is that of `text_vae`; without one, they are (b, 0). `keys` (b,) drop out.
    """

    def encode(params: Any, batch: Batch, keys: Array | None = None) -> tuple[Array, Array]:
        if encoder is None:
            nothing = jnp.zeros((batch["tokens"].shape[0], 0))
            return nothing, nothing
        variables = {"params": params["encoder"]}
        gaussian: Any = encoder.apply(variables, batch["tokens"], batch["mask"], keys)
        return gaussian

    return encode


def elbo_terms(
    encoder: nn.Module | None, decoder: nn.Module, *, start: int
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make `(params, stats, batch, keys) -> {name: (b,)}`, the terms of the bound, for evaluation.

    `reconstruction`, `kl` and their sum `negative_elbo`, an upper bound on −log p(x) of a sentence
    and its end, in nats, of one draw of z; and `tokens`, how many a sentence has. So
    exp(negative_elbo/tokens), of their averages, bounds the perplexity. The arguments are those of
    `text_vae`; nothing is dropped.
    """
    encode, decode = posterior(encoder), _decoding(decoder, start)

    def terms(params: Any, stats: Any, batch: Batch, keys: Array) -> dict[str, Array]:
        mu, logvar = encode(params, batch)
        logits = decode(params, reparameterise(mu, logvar, fold(keys, 0)), batch)
        reconstruction = categorical_nll(logits, batch["tokens"], batch["mask"])
        kl = gaussian_kl(mu, logvar)
        return {
            "reconstruction": reconstruction,
            "kl": kl,
            "negative_elbo": reconstruction + kl,
            "tokens": batch["mask"].astype(jnp.float32).sum(1),
        }

    return terms


def _decoding(decoder: nn.Module, start: int) -> Callable[..., Array]:
    """Make the teacher forcing: each token is predicted from the true ones before it."""

    def decode(
        params: Any,
        z: Array,
        batch: Batch,
        keys: Array | None = None,
        unread: Array | None = None,
        unk: int = 0,
    ) -> Array:
        tokens = batch["tokens"]
        if unread is not None:
            tokens = jnp.where(unread, unk, tokens)
        # (b, t): the start, and all but the last
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        logits: Any = decoder.apply({"params": params["decoder"]}, z, before, keys)
        return logits

    return decode
