"""Bottlenecks of discrete codes: `(x, keys, *, train) -> (quantised, index, loss)`.

Both have `codes`, how many there are, and a method `read` from indices to vectors.
"""

import math
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from aigc_jax.functional.quantize import (
    CodeStatistics,
    adopt_codes,
    check_levels,
    code_statistics,
    codebook_loss,
    commitment_loss,
    index_to_levels,
    levels_to_index,
    nearest_code,
    read_code,
    read_codebook,
    round_to_levels,
    straight_through,
)

Codebook = Literal["ema", "gradient"]


class Quantised(NamedTuple):
    """What a quantizer makes of a grid of vectors.

    Attributes:
        codes: (b, ..., d) float32, with the gradient of the vectors themselves.
        index: (b, ...) int32.
        loss: (b,) to be descended besides that of what follows.
    """

    codes: Array
    index: Array
    loss: Array


class VectorQuantizer(nn.Module):
    """Round vectors to the nearest of a learned codebook (van den Oord et al. 2017).

    An "ema" codebook is made of the running averages in the collection `codebook`: of how often a
    code is used and of the sum of what it stands for (appendix A.1), both linear in the batch. A
    code that is used much less than its even share is offered to the examples at hand to adopt
    (`functional.quantize.adopt_codes`); so the codebook starts, with all its codes dead. A
    "gradient" codebook is a parameter and descends `codebook_loss` (eq. 3).

    Attributes:
        codes: how many, K.
        width: channels of each, D.
        codebook: "ema" or "gradient".
        commitment: β, of `commitment_loss`.
        decay: of the running averages.
        restart: the chance of an example to adopt a dead code, best about one over the batch; 0
            restarts none and starts from N(0, 1/D), as a gradient codebook does not restart either.
        dead: the part of an even share, 1/K, below which a code is dead.
    """

    codes: int = 512
    width: int = 64
    codebook: Codebook = "ema"
    commitment: float = 0.25
    decay: float = 0.99
    restart: float = 1 / 32
    dead: float = 0.03

    def setup(self) -> None:
        """Hold the codebook, or what it is made of."""
        if self.codebook not in get_args(Codebook):
            names = ", ".join(map(repr, get_args(Codebook)))
            raise ValueError(f"codebook={self.codebook!r} must be one of {names}")
        for name, value in (("codes", self.codes), ("width", self.width)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.commitment < 0:
            raise ValueError(f"commitment={self.commitment} must be at least 0")
        for name, value in (("decay", self.decay), ("dead", self.dead)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} must lie in [0, 1)")
        if not 0 <= self.restart <= 1:
            raise ValueError(f"restart={self.restart} must lie in [0, 1]")

        shape = (self.codes, self.width)
        if self.codebook == "gradient":
            scale = nn.initializers.variance_scaling(1.0, "fan_out", "uniform")
            self.vectors = self.param("vectors", scale, shape)
            return
        share = 1 / self.codes if self.restart == 0 else 0.0

        def sums() -> Array:
            if self.restart:
                return jnp.zeros(shape)
            return share * self.width**-0.5 * jax.random.normal(self.make_rng("params"), shape)

        self.frequency = self.variable(
            "codebook", "frequency", lambda: share * jnp.ones(self.codes)
        )
        self.sums = self.variable("codebook", "sums", sums)

    def __call__(self, x: Array, keys: Array | None = None, *, train: bool = False) -> Quantised:
        """Round (b, ..., d) vectors to codes.

        In training the running averages move, and are read by the next call.

        Args:
            x: (b, ..., d).
            keys: (b,), needed in training by a codebook that restarts.
            train: whether the averages move.

        Raises:
            ValueError: the vectors are not of the codes' width, or keys are missing.
        """
        if x.shape[-1] != self.width:
            raise ValueError(f"width={self.width} of the codes; the vectors have {x.shape[-1]}")
        x = x.astype(jnp.float32)
        codebook = self._read_codebook()
        index = nearest_code(x, codebook)
        codes = read_code(index, codebook)
        loss = self.commitment * commitment_loss(x, codes)
        if self.codebook == "gradient":
            loss += codebook_loss(x, codes)
        elif train:
            self._move(lax.stop_gradient(x), index, keys)
        return Quantised(straight_through(x, codes), index, loss)

    def read(self, index: Array) -> Array:
        """Return (b, ..., d) vectors of (b, ...) indices."""
        return self._read_codebook()[index]

    def _read_codebook(self) -> Array:
        if self.codebook == "gradient":
            return self.vectors
        return read_codebook(CodeStatistics(self.frequency.value, self.sums.value))

    def _move(self, x: Array, index: Array, keys: Array | None) -> None:
        old = CodeStatistics(self.frequency.value, self.sums.value)
        seen = code_statistics(x, index, self.codes)
        new = jax.tree.map(lambda o, s: self.decay * o + (1 - self.decay) * s, old, seen)
        if self.restart:
            if keys is None:
                raise ValueError("keys=None; a codebook that restarts needs (b,) keys in training")
            dead = old.frequency < self.dead / self.codes
            new = jax.tree.map(jnp.add, new, adopt_codes(x, dead, keys, self.restart))
        self.frequency.value, self.sums.value = new


class FiniteScalarQuantizer(nn.Module):
    """Round each channel to one of a few levels; there is no codebook to learn, and no loss.

    Mentzer et al. 2023, *Finite Scalar Quantization: VQ-VAE Made Simple*: (8, 5, 5, 5) for about
    2¹⁰ codes, (8, 6, 5) for 2⁸ (table 1).

    Attributes:
        levels: how many, by channel.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def codes(self) -> int:
        """Count the codes there are."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Count the channels of a code."""
        return len(self.levels)

    def __call__(self, x: Array, keys: Array | None = None, *, train: bool = False) -> Quantised:
        """Round (b, ..., d) vectors to the grid; `keys` and `train` change nothing.

        Raises:
            ValueError: the vectors have not one channel for each number of levels.
        """
        check_levels(self.levels)
        if x.shape[-1] != self.width:
            raise ValueError(f"levels={self.levels}; the vectors have {x.shape[-1]} channels")
        codes = round_to_levels(x, self.levels)
        index = levels_to_index(codes, self.levels)
        return Quantised(codes, index, jnp.zeros(len(x)))

    def read(self, index: Array) -> Array:
        """Return (b, ..., d) vectors of (b, ...) indices."""
        chex.assert_type(index, int)
        return index_to_levels(index, self.levels)
