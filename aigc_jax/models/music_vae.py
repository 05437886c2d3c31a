"""The encoder and the hierarchical decoder of MusicVAE (Roberts et al. 2018), for several voices.

The paper's decoder makes one token a step. Here a step is a frame of several notes, each drawn
given those of the voices above it. What a conductor leads is a part: a bar in the paper, and any
number of frames here. The harmony of chorales changes by the quarter, and parts of a quarter learn
to reconstruct them in a fraction of the time that parts of a bar need.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.embed import Embed


class MusicEncoder(nn.Module):
    """Read a segment both ways, and map what was read to the Gaussian of its latent (§3.1).

    Attributes:
        latent: dimensions of the latent.
        vocabulary: number of tokens.
        embedding: dimensions of a token.
        hidden: units of the LSTM of either direction.
        part: frames after each of which the states are read; by default at the ends alone, as the
            paper does, where all has to be remembered to the end.
        dtype: of the computation; parameters stay float32.
    """

    latent: int = 128
    vocabulary: int = 47
    embedding: int = 32
    hidden: int = 256
    part: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, pitches: Array) -> tuple[Array, Array]:
        """Map (b, t, voices) tokens to (b, latent) means and log variances, in float32."""
        x = Embed(self.vocabulary, self.embedding, dtype=self.dtype)(pitches)
        x = x.reshape(*pitches.shape[:2], -1)  # (b, t, voices, e) -> (b, t, voices*e)
        part, ends = self.part or x.shape[1], []
        for reverse in (False, True):
            cell = nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype)
            h: Any = nn.RNN(cell, reverse=reverse, keep_order=True)(x)
            # (b, t, hidden) -> (b, t/part, hidden): each part's last frame, as it is read
            ends.append(h[:, ::part] if reverse else h[:, part - 1 :: part])
        # (b, t/part, 2*hidden) -> (b, t/part*2*hidden)
        x = jnp.concatenate(ends, -1).reshape(len(x), -1)
        x = nn.Dense(2 * self.latent, dtype=self.dtype)(x)
        mu, logvar = jnp.split(x.astype(jnp.float32), 2, -1)  # (b, 2*latent) -> 2 x (b, latent)
        return mu, logvar


class MusicDecoder(nn.Module):
    """Write a segment: a conductor says what each part is to be, and its notes follow (§3.2).

    The conductor, an LSTM of a step a part, starts from the latent, and at every step reads a view
    of it that is that part's own. What it gives of a part starts a second LSTM, and stands beside
    each frame that this one reads; nothing else passes from part to part but the last frame. A
    note's logits are read off its state and the notes above it.

    Attributes:
        parts: of a segment.
        part: frames of a part.
        voices: notes of a frame.
        vocabulary: number of tokens; the next one after them stands for a note that is not given.
        embedding: dimensions of a token.
        hidden: units of either LSTM, and of the layer before a note's logits.
        dtype: of the computation; parameters stay float32.
    """

    parts: int = 2
    part: int = 16
    voices: int = 4
    vocabulary: int = 47
    embedding: int = 32
    hidden: int = 256
    dtype: Any = None

    def setup(self):
        """Make the layers that the whole segment and a single step share."""
        cell = lambda: nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype)
        dense = lambda width: nn.Dense(width, dtype=self.dtype)
        self.embed = Embed(self.vocabulary + 1, self.embedding, dtype=self.dtype)
        self.conductor_start, self.conductor = dense(2 * self.hidden), nn.RNN(cell())
        self.views = dense(self.parts * self.hidden)
        self.part_start, self.cell = dense(2 * self.hidden), cell()
        self.rnn = nn.RNN(self.cell)
        self.mixes = [dense(self.hidden) for _ in range(self.voices)]
        self.outputs = [dense(self.vocabulary) for _ in range(self.voices)]

    @property
    def length(self) -> int:
        """How many notes `step` gives the logits of: those of the frames, from the top down."""
        return self.parts * self.part * self.voices

    def __call__(self, z: Array, pitches: Array, hidden: Array | None = None) -> Array:
        """Map (b, latent) and (b, t, voices) tokens to the logits of these tokens, in float32.

        Args:
            z: latents.
            pitches: the teacher's notes; a note's logits depend on those before it alone, that is
                on earlier frames and on higher voices of its own.
            hidden: (b, t, voices) bool, notes that the second LSTM is not given as what has gone
                before.

        Returns:
            (b, t, voices, vocabulary).
        """
        read = pitches if hidden is None else jnp.where(hidden, self.vocabulary, pitches)
        first = ((0, 0), (1, 0), (0, 0))
        read = jnp.pad(read[:, :-1], first, constant_values=self.vocabulary)
        context = self._conduct(z)  # (b, parts, hidden)
        # Given the teacher's notes, the parts are independent.
        # (b, t, voices) -> (b, parts, part, voices)
        x = self._input(context[:, :, None], read.reshape(-1, self.parts, self.part, self.voices))
        h: Any = self.rnn(x, initial_carry=self._begin(context))
        h = h.reshape(*pitches.shape[:2], -1)  # (b, parts, part, hidden) -> (b, t, hidden)
        return self._logits(h, pitches)

    def start(self, z: Array) -> tuple[Any, Array]:
        """Return the carry of `step` before the first note, and the (b,) token to begin from."""
        context = self._conduct(z)
        state, b = self._begin(context[:, 0]), len(z)
        frame = jnp.full((b, self.voices), self.vocabulary, jnp.int32)
        return (jnp.int32(0), context, state, frame), frame[:, 0]

    def step(self, carry: Any, token: Array) -> tuple[Any, Array]:
        """Read the (b,) notes of one place and give the (b, vocabulary) logits of the next.

        A place is a voice of a frame; only when a frame is whole does the second LSTM advance.
        """
        place, context, state, frame = carry
        frame = frame.at[:, (place - 1) % self.voices].set(token)
        time, voice = place // self.voices, place % self.voices

        def advance(self: "MusicDecoder", state: Any) -> Any:
            here = context[:, time // self.part]
            fresh = time % self.part == 0
            state = tuple(
                jnp.where(fresh, begun, held)
                for begun, held in zip(self._begin(here), state, strict=True)
            )
            return self.cell(state, self._input(here, frame))[0]

        state = nn.cond(voice == 0, advance, lambda _, state: state, self, state)
        logits = self._logits(state[1], frame)[:, voice]  # (b, voices, v) -> (b, v)
        return (place + 1, context, state, frame), logits

    def _conduct(self, z: Array) -> Array:
        """Map (b, latent) to what each part is to be, (b, parts, hidden)."""
        start = jnp.split(jnp.tanh(self.conductor_start(z)), 2, -1)
        # (b, latent) -> (b, parts, hidden)
        parts = self.views(z).reshape(-1, self.parts, self.hidden)
        context: Any = self.conductor(parts, initial_carry=tuple(start))
        return context

    def _begin(self, context: Array) -> tuple[Array, Array]:
        """Return the state, (..., hidden) each, with which a part begins."""
        cell, output = jnp.split(jnp.tanh(self.part_start(context)), 2, -1)
        return cell, output

    def _input(self, context: Array, frame: Array) -> Array:
        """Lay what a part is to be beside the notes of a frame: (..., hidden + voices*e)."""
        notes = self.embed(frame).reshape(*frame.shape[:-1], -1)  # -> (..., voices*e)
        context = jnp.broadcast_to(context, (*notes.shape[:-1], context.shape[-1]))
        return jnp.concatenate([context, notes], -1)

    def _logits(self, h: Array, frame: Array) -> Array:
        """Return the (..., voices, vocabulary) logits, of which voice v reads v notes of frame."""
        notes, logits = self.embed(frame), []
        for voice, (mix, output) in enumerate(zip(self.mixes, self.outputs, strict=True)):
            above = notes[..., :voice, :].reshape(*h.shape[:-1], -1)
            logits.append(output(nn.relu(mix(jnp.concatenate([h, above], -1)))))
        return jnp.stack(logits, -2).astype(jnp.float32)
