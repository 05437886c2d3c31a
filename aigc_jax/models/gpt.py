"""GPT-2: a decoder-only Transformer (Radford et al. 2019), read whole or token by token."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from aigc_jax.nn.attention import attend


class Cache(NamedTuple):
    """What one layer remembers of the tokens it has read.

    Attributes:
        key: (b, context, heads, d).
        value: (b, context, heads, d).
    """

    key: Array
    value: Array


class GPT(nn.Module):
    """A decoder-only Transformer of GPT-2's architecture; 124M are its smallest's defaults.

    Tokens from `vocabulary` on are never predicted: token `vocabulary + i` begins a sequence of
    class i, or any sequence where there is one class.

    Attributes:
        vocabulary: how many tokens there are to predict.
        context: the longest sequence.
        layers: blocks of attention and perceptron.
        heads: of the attention.
        width: of the embeddings and of all heads together.
        classes: how many tokens there are to begin with, besides the vocabulary.
        tied: whether the embeddings of tokens are also the weights of the logits.
        dtype: of the computation; parameters, normalisation, softmax and logits stay float32.

    Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, §2.3.
    """

    vocabulary: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    classes: int = 0
    tied: bool = True
    dtype: Any = None

    def setup(self) -> None:
        """Hold embeddings, blocks and head."""
        for name in ("vocabulary", "context", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.classes < 0:
            raise ValueError(f"classes={self.classes} must be at least 0")
        init, dtype = nn.initializers.normal(0.02), self.dtype
        tokens = self.vocabulary + self.classes
        self.tokens = nn.Embed(tokens, self.width, embedding_init=init, dtype=dtype)
        self.positions = nn.Embed(self.context, self.width, embedding_init=init, dtype=dtype)
        scale = 0.02 / (2 * self.layers) ** 0.5
        self.blocks = [Block(self.heads, scale, dtype) for _ in range(self.layers)]
        self.norm = nn.LayerNorm(1e-5, dtype=dtype)
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=init, dtype=dtype)

    def __call__(self, tokens: Array) -> Array:
        """Map (b, t) tokens to (b, t, vocabulary) logits, of the token after each."""
        x = self._embed(tokens, 0)  # (b, t) -> (b, t, width)
        for block in self.blocks:
            x = block(x)
        return self._logits(x)

    def extend(
        self, tokens: Array, cache: tuple[Cache, ...], position: int | Array
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Read tokens after others that are remembered, and remember them too.

        Args:
            tokens: (b, t).
            cache: of the tokens before them; see `make_cache`.
            position: () how many these are. Beyond `context - t` the result means nothing.

        Returns:
            (b, t, vocabulary) logits, of the token after each, and the cache.
        """
        x = self._embed(tokens, position)  # (b, t) -> (b, t, width)
        caches = []
        for block, of_layer in zip(self.blocks, cache, strict=True):
            x, of_layer = block.extend(x, of_layer, position)
            caches.append(of_layer)
        return self._logits(x), tuple(caches)

    def decode(
        self, token: Array, cache: tuple[Cache, ...], position: int | Array
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Read one token more: (b,) to (b, vocabulary) logits of the next, and the cache."""
        logits, cache = self.extend(token[:, None], cache, position)
        return logits[:, 0], cache  # (b, 1, v) -> (b, v)

    def make_cache(self, batch: int) -> tuple[Cache, ...]:
        """Return the empty caches of all layers for sequences of up to `context` tokens."""
        shape = (batch, self.context, self.heads, self.width // self.heads)
        empty = jnp.zeros(shape, self.dtype or jnp.float32)
        return (Cache(empty, empty),) * self.layers

    def _embed(self, tokens: Array, position: int | Array) -> Array:
        chex.assert_rank(tokens, 2)
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"context={self.context}; the sequence has {t} tokens")
        return self.tokens(tokens) + self.positions(position + jnp.arange(t))

    def _logits(self, x: Array) -> Array:
        x = self.norm(x)
        if not self.tied:
            return self.head(x).astype(jnp.float32)
        weights = self.tokens.embedding[: self.vocabulary].astype(x.dtype)
        return jnp.matmul(x, weights.T, preferred_element_type=jnp.float32)


class Block(nn.Module):
    """Causal attention and a perceptron, each normalised before and added to what it read.

    Attributes:
        heads: of the attention.
        scale: the standard deviation at which the two projections that are added start.
        dtype: of the computation.
    """

    heads: int
    scale: float
    dtype: Any = None

    @nn.compact
    def _apply(
        self, x: Array, cache: Cache | None, position: int | Array
    ) -> tuple[Array, Cache | None]:
        width = x.shape[-1]

        def dense(features: int, name: str, std: float = 0.02) -> nn.Dense:
            init = nn.initializers.normal(std)
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        y = nn.LayerNorm(1e-5, dtype=self.dtype, name="attention_norm")(x)
        y = dense(3 * width, "qkv")(y)
        y = y.reshape(*y.shape[:2], 3, self.heads, width // self.heads)  # -> (b, t, 3, heads, d)
        q, k, v = (y[:, :, i] for i in range(3))
        if cache is None:
            y = attend(q, k, v, is_causal=True)
        else:
            cache = Cache(
                *(
                    lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), position, 1)
                    for old, new in zip(cache, (k, v), strict=True)
                )
            )
            # Each token sees those up to itself, and none of what is yet to be written.
            own = position + jnp.arange(x.shape[1])
            mask = jnp.arange(cache.key.shape[1]) <= own[:, None]  # (t, context)
            y = attend(q, cache.key, cache.value, mask=mask[None, None])
        y = y.reshape(*y.shape[:2], width)  # (b, t, heads, d) -> (b, t, width)
        x = x + dense(width, "attention_out", self.scale)(y)
        y = nn.LayerNorm(1e-5, dtype=self.dtype, name="mlp_norm")(x)
        y = jax.nn.gelu(dense(4 * width, "mlp_in")(y), approximate=True)
        return x + dense(width, "mlp_out", self.scale)(y), cache

    def __call__(self, x: Array) -> Array:
        """Map (b, t, width) to (b, t, width)."""
        return self._apply(x, None, 0)[0]

    def extend(self, x: Array, cache: Cache, position: int | Array) -> tuple[Array, Cache]:
        """Map (b, t, width) after `position` others, which are in the cache."""
        y, cache_after = self._apply(x, cache, position)
        assert cache_after is not None
        return y, cache_after
