"""GPT: a decoder-only Transformer, GPT-2 or a modern one, read whole or on from a cache."""

import functools
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold
from aigc_jax.nn.dropout import drop
from aigc_jax.nn.embed import Embed, sinusoidal, tied_logits
from aigc_jax.nn.positions import alibi
from aigc_jax.nn.transformer import (
    MLP,
    Attention,
    Block,
    Cache,
    extend_blocks,
    look_back,
    run_blocks,
)

Positions = Literal["learned", "sinusoidal", "rotary", "alibi"]


class GPT(nn.Module):
    """A decoder-only Transformer; its defaults are the smallest GPT-2, of 124M parameters.

    Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, §2.3. The modern one
    (Touvron et al. 2023, *LLaMA*, §2.2) is `positions="rotary", norm="rms", mlp="swiglu",
    bias=False, tied=False`.

    Tokens from `vocabulary` on are never predicted: token `vocabulary + i` begins a sequence of
    class i, or any sequence where there is one class.

    Attributes:
        vocabulary: how many tokens there are to predict.
        context: the longest sequence.
        layers: blocks of attention and perceptron.
        heads: of the attention.
        width: of the embeddings and of all heads together.
        kv_heads: heads with keys and values of their own; None is all.
        hidden: units of a perceptron; None is 4·width, or two thirds of it for SwiGLU, which has
            three matrices for two.
        positions: how a token knows where it stands.
        norm: LayerNorm, or RMSNorm (Zhang & Sennrich 2019), before each part.
        mlp: GELU by its tanh form, or SwiGLU.
        bias: whether layers have one.
        classes: how many tokens there are to begin with, besides the vocabulary.
        tied: whether the embeddings of tokens are also the weights of the logits.
        dropout: share of the embeddings and of each part's output that training zeroes.
        scan: compile one block for all layers; see `nn.transformer.run_blocks`.
        remat: compute blocks again on the way back.
        dtype: of the computation; parameters, normalisation, softmax and logits stay float32.
    """

    vocabulary: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    kv_heads: int | None = None
    hidden: int | None = None
    positions: Positions = "learned"
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    classes: int = 0
    tied: bool = True
    dropout: float = 0.0
    scan: bool = True
    remat: bool = False
    dtype: Any = None

    def setup(self) -> None:
        """Hold embeddings, blocks and head."""
        self._check()
        init, dtype, bias = nn.initializers.normal(0.02), self.dtype, self.bias
        tokens = self.vocabulary + self.classes
        self.tokens = Embed(tokens, self.width, embedding_init=init, dtype=dtype)
        if self.positions == "learned":
            self.places = Embed(
                self.context, self.width, embedding_init=init, dtype=dtype, name="positions"
            )
        # Radford et al.: what is added along the depth keeps the variance of one layer.
        added = nn.initializers.normal(0.02 / (2 * self.layers) ** 0.5)
        common: dict[str, Any] = {"bias": bias, "dtype": dtype}
        common |= {"kernel_init": init, "out_kernel_init": added}
        gated = self.mlp == "swiglu"
        hidden = self.hidden or (8 * self.width // 3 if gated else 4 * self.width)
        norm = (
            functools.partial(nn.LayerNorm, 1e-5, use_bias=bias, dtype=dtype)
            if self.norm == "layer"
            else functools.partial(nn.RMSNorm, 1e-5, dtype=dtype)
        )
        self.blocks = Block(
            functools.partial(
                Attention, self.heads, self.kv_heads, self.positions == "rotary", **common
            ),
            functools.partial(MLP, hidden, jax.nn.silu if gated else jax.nn.gelu, gated, **common),
            norm,
            dropout=self.dropout,
        )
        self.final_norm: Any = norm(name="norm")
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=init, dtype=dtype)

    def __call__(
        self, tokens: Array, keys: Array | None = None, segment: Array | None = None
    ) -> Array:
        """Map tokens to the logits of the one after each.

        Args:
            tokens: (b, t).
            keys: (b,) of the dropout, an example's own; None to drop nothing.
            segment: (b, t) which document of its row a token is of, where rows hold several, one
                after another; a token attends to its own document alone.

        Returns:
            (b, t, vocabulary) float32.

        Raises:
            ValueError: there are more tokens than `context`.
        """
        return self.logits(self.features(tokens, keys, segment))

    def features(
        self, tokens: Array, keys: Array | None = None, segment: Array | None = None
    ) -> Array:
        """Map (b, t) tokens to (b, t, width), normalised, of which `logits` are made."""
        chex.assert_rank(tokens, 2)
        t = tokens.shape[1]
        if t > self.context:
            raise ValueError(f"context={self.context}; the sequence has {t} tokens")
        position = jnp.arange(t)[None]
        attending: dict[str, Any] = {}
        if segment is not None:
            attending["mask"] = segment[:, None, :, None] == segment[:, None, None]  # (b, 1, t, t)
            # A document's first token stands at 0.
            first = jnp.diff(segment, axis=1, prepend=segment[:, :1] - 1) != 0
            start = jax.lax.cummax(jnp.where(first, position, 0), axis=1)
            position = position - start
        x = self._embed(tokens, position)  # (b, t) -> (b, t, width)
        x = drop(x, None if keys is None else fold(keys, self.layers), self.dropout)
        if self.positions == "alibi":
            attending["bias"] = alibi(self.heads, position, position)
        x = run_blocks(
            self.blocks,
            x,
            self.layers,
            keys=keys,
            scan=self.scan,
            remat=self.remat,
            position=position,
            is_causal=True,
            **attending,
        )
        return self.final_norm(x)

    def logits(self, x: Array) -> Array:
        """Map (b, t, width) features to (b, t, vocabulary) float32 logits."""
        if not self.tied:
            return self.head(x).astype(jnp.float32)
        return tied_logits(x, self.tokens.embedding[: self.vocabulary])

    def extend(
        self,
        tokens: Array,
        cache: tuple[Cache, ...],
        slot: int | Array = 0,
        start: Array | None = None,
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Read tokens after others that are remembered, and remember them too.

        Args:
            tokens: (b, t), or embeddings that stand for them, (b, t, width).
            cache: of the tokens before them; see `make_cache`.
            slot: where the first of them is kept, () or, where rows differ, (b,).
            start: (b,) the slot where each row's sequence begins; None is 0. Slots before it are
                not attended to, and a token stands at its slot − start. Beyond `context` the
                result means nothing.

        Returns:
            (b, t, vocabulary) logits, of the token after each, and the cache.
        """
        chex.assert_rank(tokens, {2, 3})
        slots = cache[0].key.shape[2]
        position, seen = look_back(slot, tokens.shape[1], slots, start)
        attending: dict[str, Any] = {"mask": seen}
        if self.positions == "alibi":
            begin = 0 if start is None else start[:, None]
            attending["bias"] = alibi(self.heads, position, jnp.arange(slots)[None] - begin)
        x = self._embed(tokens, position)  # (b, t) -> (b, t, width)
        x, cache = extend_blocks(self.blocks, x, cache, position=position, slot=slot, **attending)
        return self.logits(self.final_norm(x)), cache

    def make_cache(self, batch: int, slots: int | None = None) -> tuple[Cache, ...]:
        """Return the empty caches of all layers for so many tokens; `context` by default."""
        heads = self.kv_heads or self.heads
        shape = (batch, heads, slots or self.context, self.width // self.heads)
        empty = lambda: jnp.zeros(shape, self.dtype or jnp.float32)
        return tuple(Cache(empty(), empty()) for _ in range(self.layers))

    def _embed(self, tokens: Array, position: Array) -> Array:
        x = tokens if tokens.ndim == 3 else self.tokens(tokens)
        if self.positions == "learned":
            # Beyond the last place there is none, and what is not a number would spread.
            x = x + self.places(jnp.minimum(position, self.context - 1))
        if self.positions == "sinusoidal":
            waves = sinusoidal(position.reshape(-1), self.width, freq_shift=0)
            x = x + waves.reshape(*position.shape, self.width).astype(x.dtype)
        return x

    def _check(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        if self.classes < 0:
            raise ValueError(f"classes={self.classes} must be at least 0")
        for name, allowed in (
            ("positions", get_args(Positions)),
            ("norm", ("layer", "rms")),
            ("mlp", ("gelu", "swiglu")),
        ):
            if getattr(self, name) not in allowed:
                said = ", ".join(map(repr, allowed))
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {said}")
