"""A decoder whose logits hang on every token it has read, and on where these stand.

Its cache holds the tokens themselves, so that a slot misplaced, an uncovered padding or a row of
the wrong hypothesis shows. `logits_after` is the same without a cache.
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.samplers.autoregressive import Decoder


class History:
    """l(x) = Σ_s recent[distance of s, x_s] + place[position], for the latest `reach` tokens."""

    def __init__(self, vocabulary, seed=0, reach=4, std=1.0, bias=None):
        rng = np.random.default_rng(seed)
        decay = 0.7 ** np.arange(reach)[:, None, None]
        self.recent = std * decay * rng.normal(size=(reach, vocabulary, vocabulary))
        self.place = std * rng.normal(size=(5, vocabulary))
        if bias is not None:
            self.place += bias
        self.vocabulary, self.reach = vocabulary, reach

    def logits_after(self, tokens):
        """Return the (v,) logits after a list of tokens, in float64."""
        latest = enumerate(tokens[::-1][: self.reach])
        return sum(self.recent[d, x] for d, x in latest) + self.place[(len(tokens) - 1) % 5]

    def greedy(self, tokens, length):
        text = list(tokens)
        for _ in range(length):
            text.append(int(self.logits_after(text).argmax()))
        return text[len(tokens) :]

    @property
    def decoder(self):
        recent, place = jnp.asarray(self.recent, jnp.float32), jnp.asarray(self.place, jnp.float32)

        def make_cache(batch, slots):
            # What no one has written yet stands nowhere: reading it gives NaN.
            none = jnp.full((batch, slots), -1, jnp.int32)
            return {"token": none, "position": none}

        def extend(tokens, cache, slot, start):
            b, t = tokens.shape
            begin = jnp.zeros(b, jnp.int32) if start is None else start
            own = jnp.broadcast_to(slot, (b,))[:, None] + jnp.arange(t)  # (b, t)
            position = own - begin[:, None]
            written = {"token": tokens, "position": position}
            rows = jnp.arange(b)[:, None]
            cache = jax.tree.map(lambda old, new: old.at[rows, own].set(new), cache, written)
            logits = place[position % 5]
            for d in range(self.reach):
                there = {name: x[rows, jnp.maximum(own - d, 0)] for name, x in cache.items()}
                right = (there["position"] == position - d)[..., None]
                part = jnp.where(right, recent[d][there["token"]], jnp.nan)
                logits += jnp.where((position >= d)[..., None], part, 0)
            return logits, cache

        return Decoder(make_cache, extend)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)
