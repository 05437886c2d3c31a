"""The recurrent encoder and decoder of a variational autoencoder of sentences."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold
from aigc_jax.nn.dropout import drop
from aigc_jax.nn.embed import Embed

Carry = tuple[Array, Array]


class TextEncoder(nn.Module):
    """Read a sentence and give the Gaussian of its latent.

    Bowman et al. 2016 (figure 1) take it from the LSTM's last state, which remembers a sentence's
    end above all; here it is of the mean of all states, as in Long et al. 2019, *Preventing
    Posterior Collapse in Sequence VAEs with Pooling*.

    Attributes:
        vocabulary: how many tokens there are.
        latent: dimensions of the latent.
        features: units of the LSTM.
        embed: dimensions of a token's embedding.
        dropout: share of the LSTM's inputs and outputs that training zeroes (Zaremba et al. 2014).
        dtype: of the computation; parameters stay float32.
    """

    vocabulary: int
    latent: int = 32
    features: int = 256
    embed: int = 256
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Array, mask: Array, keys: Array | None = None
    ) -> tuple[Array, Array]:
        """Map (b, t) tokens, real where the (b, t) mask is 1, to means and log variances.

        The real ones come first in each row; what follows them is not read.

        Args:
            tokens: (b, t).
            mask: (b, t).
            keys: (b,) of the dropout, an example's own; None to drop nothing.

        Returns:
            Two of (b, latent) float32.
        """
        x = Embed(self.vocabulary, self.embed, dtype=self.dtype, name="embed")(tokens)
        x = x if keys is None else drop(x, fold(keys, 0), self.dropout)
        cell = nn.OptimizedLSTMCell(self.features, dtype=self.dtype, name="cell")
        x: Any = nn.RNN(cell)(x)
        x = x if keys is None else drop(x, fold(keys, 1), self.dropout)
        real = mask.astype(jnp.float32)
        share = real / jnp.maximum(real.sum(1, keepdims=True), 1)
        x = (x * share[..., None]).sum(1)  # (b, t, features) -> (b, features)
        x = nn.Dense(2 * self.latent, dtype=self.dtype, name="gaussian")(x).astype(jnp.float32)
        mu, logvar = jnp.split(x, 2, axis=-1)  # (b, 2*latent) -> 2 x (b, latent)
        return mu, logvar


class TextDecoder(nn.Module):
    """Predict each token from those before it and from the latent (Bowman et al. 2016).

    The latent sets the LSTM's state before the first token, and stands beside every token it reads.
    Of a latent of no dimensions what is left is a plain language model.

    Attributes:
        vocabulary: how many tokens there are.
        features: units of the LSTM.
        embed: dimensions of a token's embedding.
        dropout: share of the LSTM's inputs and outputs that training zeroes (Zaremba et al. 2014).
        dtype: of the computation; parameters stay float32.
    """

    vocabulary: int
    features: int = 256
    embed: int = 256
    dropout: float = 0.0
    dtype: Any = None

    def setup(self) -> None:
        """Make the layers that `__call__` and `step` share."""
        self.embedding = Embed(self.vocabulary, self.embed, dtype=self.dtype)
        self.initial = nn.Dense(2 * self.features, dtype=self.dtype)
        self.cell = nn.OptimizedLSTMCell(self.features, dtype=self.dtype)
        self.rnn = nn.RNN(self.cell)
        self.head = nn.Dense(self.vocabulary, dtype=self.dtype)

    def __call__(self, z: Array, tokens: Array, keys: Array | None = None) -> Array:
        """Map (b, latent) and the (b, t) tokens read, of which the first is the start, to logits.

        Args:
            z: (b, latent).
            tokens: (b, t), each before the one to be predicted.
            keys: (b,) of the dropout, an example's own; None to drop nothing.

        Returns:
            (b, t, vocabulary) float32.
        """
        x: Any = self._inputs(z, tokens)
        x = x if keys is None else drop(x, fold(keys, 0), self.dropout)
        x = self.rnn(x, initial_carry=self.begin(z))
        x = x if keys is None else drop(x, fold(keys, 1), self.dropout)
        return self.head(x).astype(jnp.float32)

    def begin(self, z: Array) -> Carry:
        """Return the LSTM's state before the first token, two of (b, features)."""
        # A dense layer of no inputs has no scale to be initialised at.
        x = z if z.shape[-1] else jnp.ones((*z.shape[:-1], 1))
        c, h = jnp.split(jnp.tanh(self.initial(x).astype(jnp.float32)), 2, axis=-1)
        return c, h

    def step(self, carry: Carry, z: Array, tokens: Array) -> tuple[Carry, Array]:
        """Read one (b,) token each, and return the state and the (b, vocabulary) logits after it.

        From `begin` on, these are the logits of `__call__`, one position after another.
        """
        carry, x = self.cell(carry, self._inputs(z, tokens[:, None])[:, 0])
        return carry, self.head(x).astype(jnp.float32)

    def _inputs(self, z: Array, tokens: Array) -> Array:
        x = self.embedding(tokens)
        z = jnp.broadcast_to(z[:, None], (*x.shape[:2], z.shape[-1]))
        return jnp.concatenate([x, z.astype(x.dtype)], axis=-1)  # -> (b, t, embed + latent)
