"""BERT: a Transformer whose tokens see all others, before them and after."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.core.keys import fold
from aigc_jax.nn.dropout import drop
from aigc_jax.nn.embed import Embed, tied_logits
from aigc_jax.nn.transformer import MLP, Attention, Block, run_blocks

EPSILON = 1e-12

gelu = functools.partial(jax.nn.gelu, approximate=False)


class BERT(nn.Module):
    """An encoder of tokens in both directions; its defaults are BERT-base, of 110M parameters.

    Devlin et al. 2019, *BERT: Pre-training of Deep Bidirectional Transformers*, §3. There are two
    heads on its features, `logits` of tokens that are masked and `pool` of the whole; either has
    parameters if it is what `init` runs: `bert.init(key, tokens, method="predict")`.

    Attributes:
        vocabulary: how many tokens there are.
        context: the longest sequence.
        layers: blocks of attention and perceptron.
        heads: of the attention.
        width: of the embeddings and of all heads together.
        hidden: units of a perceptron; None is 4·width.
        segments: kinds of tokens, such as those of a first and of a second sentence.
        dropout: share of the embeddings and of each part's output that training zeroes.
        scan: compile one block for all layers; see `nn.transformer.run_blocks`.
        remat: compute blocks again on the way back.
        dtype: of the computation; parameters, normalisation, softmax and logits stay float32.
    """

    vocabulary: int = 30522
    context: int = 512
    layers: int = 12
    heads: int = 12
    width: int = 768
    hidden: int | None = None
    segments: int = 2
    dropout: float = 0.0
    scan: bool = True
    remat: bool = False
    dtype: Any = None

    def setup(self) -> None:
        """Hold embeddings, blocks and heads."""
        self._check()
        init, dtype = nn.initializers.normal(0.02), self.dtype
        embed = functools.partial(Embed, features=self.width, embedding_init=init, dtype=dtype)
        norm = functools.partial(nn.LayerNorm, EPSILON, dtype=dtype)
        self.tokens = embed(self.vocabulary)
        self.places = embed(self.context, name="positions")
        self.kinds = embed(self.segments, name="segments")
        self.embedding_norm = norm()
        self.blocks = Block(
            functools.partial(Attention, self.heads, dtype=dtype),
            functools.partial(MLP, self.hidden or 4 * self.width, gelu, dtype=dtype),
            norm,
            pre_norm=False,
            dropout=self.dropout,
        )
        self.head = MaskedHead(norm, dtype)
        self.pooler = nn.Dense(self.width, kernel_init=init, dtype=dtype)

    def __call__(
        self,
        tokens: Array,
        mask: Array | None = None,
        segment: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        """Map tokens to features.

        Args:
            tokens: (b, t).
            mask: (b, t) which tokens are real, one in each row or more: nothing attends to others;
                None is all.
            segment: (b, t) each token's kind, in [0, segments); None is 0.
            keys: (b,) of the dropout, an example's own; None to drop nothing.

        Returns:
            (b, t, width), of which `logits` and `pool` are made.

        Raises:
            ValueError: there are more tokens than `context`.
        """
        chex.assert_rank(tokens, 2)
        b, t = tokens.shape
        if t > self.context:
            raise ValueError(f"context={self.context}; the sequence has {t} tokens")
        segment = jnp.zeros((1, 1), jnp.int32) if segment is None else segment
        x = self.tokens(tokens) + self.places(jnp.arange(t)) + self.kinds(segment)
        x = self.embedding_norm(x)  # (b, t, width)
        x = drop(x, None if keys is None else fold(keys, self.layers), self.dropout)
        attending: dict[str, Any] = {}
        if mask is not None:
            chex.assert_shape(mask, (b, t))
            attending["mask"] = mask.astype(bool)[:, None, None]  # (b, t) -> (b, 1, 1, t)
        return run_blocks(
            self.blocks,
            x,
            self.layers,
            keys=keys,
            scan=self.scan,
            remat=self.remat,
            **attending,
        )

    def logits(self, x: Array) -> Array:
        """Map (..., width) features to (..., vocabulary) float32 logits of the tokens there."""
        return self.head(x, self.tokens.embedding)

    def pool(self, x: Array) -> Array:
        """Map (b, t, width) features to (b, width) in (−1, 1), of the first token, to classify."""
        return jnp.tanh(self.pooler(x[:, 0]))  # (b, t, width) -> (b, width)

    def predict(self, tokens: Array, **kwargs: Any) -> Array:
        """Map (b, t) tokens to (b, t, vocabulary) logits; keywords as those of a call."""
        return self.logits(self(tokens, **kwargs))

    def summarise(self, tokens: Array, **kwargs: Any) -> Array:
        """Map (b, t) tokens to (b, width), pooled; keywords as those of a call."""
        return self.pool(self(tokens, **kwargs))

    def _check(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width", "segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")


class TextClassifier(nn.Module):
    """A layer on what a BERT makes of a text as a whole (Devlin et al. 2019, §4.1).

    Its parameters are `bert`, which weights may be given to, `pooler` among them, and `head`.

    Attributes:
        bert: the encoder.
        classes: how many.
    """

    bert: BERT
    classes: int

    @nn.compact
    def __call__(self, tokens: Array, keys: Array | None = None, **kwargs: Any) -> Array:
        """Map (b, t) tokens to (b, classes) float32 logits.

        Args:
            tokens: (b, t), of which the first stands for the whole.
            keys: (b,) of the dropout; None to drop nothing.
            **kwargs: `mask` and `segment` of `BERT`.
        """
        x = self.bert.summarise(tokens, keys=keys, **kwargs)
        own = None if keys is None else fold(keys, self.bert.layers + 1)
        x = drop(x, own, self.bert.dropout).astype(jnp.float32)
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.02), name="head")(x)


class MaskedHead(nn.Module):
    """What makes logits of features: a layer, and the embeddings as the weights of another.

    Devlin et al. 2019, their code.

    Attributes:
        norm: makes the normalisation between.
        dtype: of the computation.
    """

    norm: Any
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        """Map (..., width) and (vocabulary, width) to (..., vocabulary) float32."""
        init = nn.initializers.normal(0.02)
        x = gelu(nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="dense")(x))
        x = self.norm(name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (len(embedding),))
        return tied_logits(x, embedding) + bias
