"""The Transformer: an encoder reads a sequence, and a decoder writes another, whole or cached."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold
from aigc_jax.nn.dropout import drop
from aigc_jax.nn.embed import Embed, sinusoidal, tied_logits
from aigc_jax.nn.transformer import (
    MLP,
    Attention,
    Block,
    Cache,
    extend_blocks,
    look_back,
    run_blocks,
)


class DecoderCache(NamedTuple):
    """What the decoder remembers of the tokens it has written, and of the source.

    Attributes:
        own: each layer's, of the tokens.
        memory: each layer's keys and values of the source.
        mask: (b, 1, 1, s) bool, which tokens of the source are there; None is all.
    """

    own: tuple[Cache, ...]
    memory: tuple[Cache, ...]
    mask: Array | None


class Seq2Seq(nn.Module):
    """The encoder-decoder Transformer; its defaults are the paper's base model.

    Vaswani et al. 2017, *Attention Is All You Need*, §3: sums are normalised, positions are waves,
    embeddings grow by √width, and source, target and logits share one matrix (§3.4). Projections
    have no biases, perceptrons have. Every matrix starts as Glorot and Bengio's of its own shape,
    embeddings from N(0, 1/width), as in the authors' code; of which LayerNorm's ε is, too.

    A token of the source stands where it is among those that its mask keeps: sources may be padded
    on either side.

    Attributes:
        vocabulary: how many tokens there are.
        layers: blocks of the encoder, and of the decoder.
        heads: of the attention.
        width: of the embeddings and of all heads together; even.
        hidden: units of a perceptron; None is 4·width.
        source_vocabulary: tokens of the source, if they have embeddings of their own; None shares
            the target's.
        tied: whether the embeddings of the target's tokens are also the weights of the logits.
        pre_norm: normalise what each part reads and not the sums (Xiong et al. 2020), and once
            behind each stack: training then needs no warm-up.
        dropout: share of the embeddings and of each part's output that training zeroes.
        scan: compile one block for all layers; see `nn.transformer.run_blocks`.
        remat: compute blocks again on the way back.
        dtype: of the computation; parameters, normalisation, softmax and logits stay float32.
    """

    vocabulary: int = 37000
    layers: int = 6
    heads: int = 8
    width: int = 512
    hidden: int | None = None
    source_vocabulary: int | None = None
    tied: bool = True
    pre_norm: bool = False
    dropout: float = 0.0
    scan: bool = True
    remat: bool = False
    dtype: Any = None

    def setup(self) -> None:
        """Hold embeddings, blocks and head."""
        self._check()
        dtype, glorot = self.dtype, nn.initializers.glorot_uniform()
        embed = functools.partial(
            Embed,
            features=self.width,
            embedding_init=nn.initializers.normal(self.width**-0.5),
            dtype=dtype,
        )
        self.tokens = embed(self.vocabulary)
        if self.source_vocabulary is not None:
            self.source_tokens = embed(self.source_vocabulary)
        # Glorot's of each square matrix, though several are one product.
        square = nn.initializers.lecun_uniform()
        self.attention = functools.partial(
            Attention,
            self.heads,
            bias=False,
            kernel_init=square,
            out_kernel_init=glorot,
            dtype=dtype,
        )
        mlp = functools.partial(
            MLP,
            self.hidden or 4 * self.width,
            jax.nn.relu,
            kernel_init=glorot,
            out_kernel_init=glorot,
            dtype=dtype,
        )
        norm = functools.partial(nn.LayerNorm, 1e-6, dtype=dtype)
        block = functools.partial(
            Block, self.attention, mlp, norm, self.pre_norm, dropout=self.dropout
        )
        self.encoder = block()
        self.decoder = block(cross=True)
        if self.pre_norm:
            self.encoder_norm, self.decoder_norm = norm(), norm()
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, kernel_init=glorot, dtype=dtype)

    def __call__(
        self,
        source: Array,
        tokens: Array,
        source_mask: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        """Map a source, and the tokens of the target, to the logits of the token after each.

        Args:
            source: (b, s).
            tokens: (b, t), a token that begins first.
            source_mask: (b, s) 1 where a token of the source is, 0 where padding; one at least of
                each row. None is all.
            keys: (b,) of the dropout, an example's own; None to drop nothing.

        Returns:
            (b, t, vocabulary) float32.
        """
        of_encoder, of_decoder = (None, None) if keys is None else (fold(keys, 0), fold(keys, 1))
        memory = self.encode(source, source_mask, of_encoder)
        return self.decode(tokens, memory, source_mask, of_decoder)

    def encode(self, source: Array, mask: Array | None = None, keys: Array | None = None) -> Array:
        """Read a source: (b, s) tokens, of which `mask` (b, s) are there, to (b, s, width)."""
        chex.assert_rank(source, 2)
        position = jnp.arange(source.shape[1])[None]
        if mask is not None:
            chex.assert_equal_shape([source, mask])
            position = jnp.maximum(jnp.cumsum(mask.astype(bool), 1) - 1, 0)
        table = self.tokens if self.source_vocabulary is None else self.source_tokens
        # (b, s) -> (b, s, width)
        x = self._drop(self._embed(table(source), position), keys)
        x = self._run(self.encoder, x, keys, mask=_attended(mask))
        return self.encoder_norm(x) if self.pre_norm else x

    def decode(
        self, tokens: Array, memory: Array, mask: Array | None = None, keys: Array | None = None
    ) -> Array:
        """Map (b, t) tokens, and a source that was read, to (b, t, vocabulary) float32 logits.

        Args:
            tokens: (b, t).
            memory: (b, s, width), of `encode`.
            mask: (b, s), the source's.
            keys: (b,).
        """
        chex.assert_rank([tokens, memory], [2, 3])
        x = self._embed(self.tokens(tokens), jnp.arange(tokens.shape[1])[None])
        x = self._drop(x, keys)  # (b, t) -> (b, t, width)
        x = self._run(
            self.decoder, x, keys, memory=memory, memory_mask=_attended(mask), is_causal=True
        )
        return self._logits(x)

    def make_cache(self, memory: Array, mask: Array | None = None, slots: int = 64) -> DecoderCache:
        """Return the cache of a source that was read, with room for so many tokens.

        Args:
            memory: (b, s, width), of `encode`.
            mask: (b, s), the source's.
            slots: tokens that are read and written, at most.
        """
        chex.assert_rank(memory, 3)
        b = len(memory)
        params = self.decoder.unbind()[1]["params"]["cross"]
        cross = self.attention(parent=None)
        # Nobody reads what one token attends to, and compiled, nothing computes it.
        read: Any = lambda params: cross.apply({"params": params}, memory[:, :1], memory)
        _, all_layers = jax.vmap(read)(params)
        layers = range(self.layers)
        of_source = tuple(jax.tree.map(lambda x, i=i: x[i], all_layers) for i in layers)
        shape = (b, self.heads, slots, self.width // self.heads)
        empty = lambda: jnp.zeros(shape, self.dtype or jnp.float32)
        own = tuple(Cache(empty(), empty()) for _ in layers)
        return DecoderCache(own, of_source, _attended(mask))

    def extend(
        self,
        tokens: Array,
        cache: DecoderCache,
        slot: int | Array = 0,
        start: Array | None = None,
    ) -> tuple[Array, DecoderCache]:
        """Read tokens of the target after others that are remembered, and remember them too.

        Args:
            tokens: (b, t).
            cache: of the source and of the tokens before them; see `make_cache`.
            slot: where the first of them is kept, () or, where rows differ, (b,).
            start: (b,) the slot where each row's target begins; None is 0.

        Returns:
            (b, t, vocabulary) logits, of the token after each, and the cache.
        """
        chex.assert_rank(tokens, 2)
        slots = cache.own[0].key.shape[2]
        position, seen = look_back(slot, tokens.shape[1], slots, start)
        x = self._embed(self.tokens(tokens), position)  # (b, t) -> (b, t, width)
        x, own = extend_blocks(
            self.decoder, x, cache.own, cache.memory, memory_mask=cache.mask, slot=slot, mask=seen
        )
        return self._logits(x), cache._replace(own=own)

    def _embed(self, x: Array, position: Array) -> Array:
        waves = sinusoidal(position.reshape(-1), self.width, freq_shift=0)
        # (n, width) -> (b or 1, t, width)
        return x * self.width**0.5 + waves.reshape(*position.shape, self.width).astype(x.dtype)

    def _drop(self, x: Array, keys: Array | None) -> Array:
        return drop(x, None if keys is None else fold(keys, self.layers), self.dropout)

    def _run(self, block: Block, x: Array, keys: Array | None, **options: Any) -> Array:
        compiled = {"scan": self.scan, "remat": self.remat}
        return run_blocks(block, x, self.layers, keys=keys, **compiled, **options)

    def _logits(self, x: Array) -> Array:
        x = self.decoder_norm(x) if self.pre_norm else x
        if not self.tied:
            return self.head(x).astype(jnp.float32)
        return tied_logits(x, self.tokens.embedding)

    def _check(self) -> None:
        for name in ("vocabulary", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.source_vocabulary is not None and self.source_vocabulary < 1:
            raise ValueError(f"source_vocabulary={self.source_vocabulary} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")


def _attended(mask: Array | None) -> Array | None:
    """Make a mask of `attend` of one of tokens: (b, s) -> (b, 1, 1, s)."""
    return None if mask is None else mask.astype(bool)[:, None, None]
