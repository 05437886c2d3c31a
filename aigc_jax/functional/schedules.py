"""Noise schedules, each nothing but its noise-to-signal curve r(t) = σ(t)/α(t); times to sample at.

Time is a real number in [-1, T-1]. The integers 0..T-1 are the T discrete steps, t = -1 is clean
data (r = 0), and r is linear in t between integers. So every formula that steps from t to an
earlier s also holds for the last step, to s = -1, where α = 1 and σ = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


class Schedule(NamedTuple):
    """A noise schedule: xt = α(t)·x0 + σ(t)·ε. Static: close over it, never pass it through `jit`.

    Keeping r, and not ᾱ, keeps float32 accurate at both ends: neither σ where ᾱ is almost 1 nor α
    where it is almost 0 is ever a difference of nearly equal numbers.

    Attributes:
        ratio_table: (T,) float32, r at t = 0..T-1, strictly rising.
        preserving: α² + σ² = 1 if true (variance preserving), else α = 1 (variance exploding).

    Example:
        >>> schedule = linear()
        >>> round(float(schedule.alpha(999.0)) ** 2, 9)
        4.0358e-05
        >>> [round(float(schedule.time(schedule.logsnr(t))), 2) for t in (0, 12.5, 999)]
        [0.0, 12.5, 999.0]
    """

    ratio_table: np.ndarray
    preserving: bool = True

    @property
    def steps(self) -> int:
        """Return T, the number of discrete steps."""
        return len(self.ratio_table)

    @property
    def prior_std(self) -> float:
        """Return the standard deviation of the noise that sampling starts from at t = T-1."""
        return 1.0 if self.preserving else float(self.ratio_table[-1])

    @property
    def _knots(self) -> np.ndarray:
        return np.concatenate([np.zeros(1, np.float32), self.ratio_table])  # (T,) -> (T+1,)

    def ratio(self, t: ArrayLike) -> Array:
        """Return r(t) = σ(t)/α(t), exact at integers and linear between them.

        Args:
            t: scalar or (b,), clipped to [-1, T-1].

        Returns:
            Like `t`, float32, 0 at t = -1.
        """
        t = jnp.clip(jnp.asarray(t, jnp.float32), -1, self.steps - 1)
        chex.assert_rank(t, {0, 1})
        below = jnp.clip(jnp.floor(t), -1, self.steps - 2)
        index, part, knots = below.astype(jnp.int32) + 1, t - below, jnp.asarray(self._knots)
        return (1 - part) * knots[index] + part * knots[index + 1]

    def alpha(self, t: ArrayLike) -> Array:
        """Return α(t) = 1/√(1 + r²), or 1 if variance exploding; scalar or (b,), in (0, 1]."""
        r = self.ratio(t)
        if not self.preserving:
            return jnp.ones_like(r)
        # Left to itself, XLA turns x/α into x·√(1 + r²) in some programs and not in others, and the
        # same sample then differs in its last bits between one device and four.
        return lax.optimization_barrier(1 / jnp.sqrt(1 + r * r))

    def sigma(self, t: ArrayLike) -> Array:
        """Return σ(t) = r(t)·α(t), scalar or (b,)."""
        return self.ratio(t) * self.alpha(t)

    def unit(self, t: ArrayLike) -> Array:
        """Return 1/√(α² + σ²), which scales xt of unit-variance data to unit variance.

        1 if variance preserving; Karras et al. 2022, eq. 7, with σ_data = 1, if exploding.
        """
        r = self.ratio(t)
        return jnp.ones_like(r) if self.preserving else 1 / jnp.sqrt(1 + r * r)

    def logsnr(self, t: ArrayLike) -> Array:
        """Return log α²/σ² = -2 log r(t), scalar or (b,), in nats; +∞ at t = -1."""
        return -2 * jnp.log(self.ratio(t))

    def time_of_ratio(self, r: ArrayLike) -> Array:
        """Return the time in [-1, T-1] at which σ/α is `r`, scalar or (b,): `ratio` inverted."""
        r = jnp.asarray(r, jnp.float32)
        chex.assert_rank(r, {0, 1})
        return jnp.interp(r, self._knots, np.arange(-1, self.steps, dtype=np.float32))

    def time(self, logsnr: ArrayLike) -> Array:
        """Return the time in [-1, T-1] of a log SNR, scalar or (b,): `logsnr` inverted."""
        return self.time_of_ratio(jnp.exp(-jnp.asarray(logsnr, jnp.float32) / 2))


# Constructors


def from_ratios(ratios: ArrayLike, *, preserving: bool = True) -> Schedule:
    """Make a schedule of r at t = 0..T-1.

    Raises:
        ValueError: `ratios` is not a finite, positive, strictly rising vector in float32.
    """
    table = np.asarray(ratios, np.float32)
    if table.ndim != 1 or not len(table) or not np.isfinite(table).all():
        raise ValueError(f"ratios must be a non-empty finite vector, got shape {table.shape}")
    if table[0] <= 0 or (np.diff(table) <= 0).any():
        raise ValueError("ratios must be positive and strictly rising in float32")
    return Schedule(table, preserving)


def from_betas(betas: ArrayLike) -> Schedule:
    """Make the variance-preserving schedule of a diffusion's β: ᾱt = Π(1 - βi), r² = 1/ᾱ - 1.

    Args:
        betas: (T,) each in (0, 1).

    Raises:
        ValueError: a β lies outside (0, 1).

    Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, eq. 4.
    """
    betas = np.asarray(betas, np.float64)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"betas must lie in (0, 1), got a range of [{betas.min():g}, {betas.max():g}]"
        )
    return from_ratios(np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas)))))


def linear(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Schedule:
    """Make the schedule whose β rises linearly. Ho et al. 2020, section 4."""
    return from_betas(np.linspace(low, high, steps))


def scaled_linear(steps: int = 1000, low: float = 0.00085, high: float = 0.012) -> Schedule:
    """Make the schedule whose √β rises linearly, that of latent diffusion. Rombach et al. 2022."""
    return from_betas(np.linspace(low**0.5, high**0.5, steps) ** 2)


def cosine(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Make the schedule ᾱ(u) ∝ cos²((u + s)/(1 + s)·π/2), u = t/T, with β at most `max_beta`.

    Nichol and Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, eq. 17.
    """
    return _from_curve(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, steps, max_beta)


def sigmoid(
    steps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
) -> Schedule:
    """Make the schedule ᾱ(u) ∝ S(end/τ) - S((start + u·(end - start))/τ), S the logistic function.

    Jabri et al. 2022, *Scalable Adaptive Computation for Iterative Generation*; Chen 2023, *On the
    Importance of Noise Scheduling for Diffusion Models*, algorithm 1. β is at most `max_beta`.
    """

    def curve(u: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-end / tau)) - 1 / (1 + np.exp(-(start + u * (end - start)) / tau))

    return _from_curve(curve, steps, max_beta)


def karras(
    steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Schedule:
    """Make the variance-exploding schedule whose σ^(1/ρ) rises linearly.

    Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, eq. 5.
    """
    return from_ratios(_karras_ratios(steps, sigma_min, sigma_max, rho), preserving=False)


def _from_curve(curve: Callable[[np.ndarray], np.ndarray], steps: int, max_beta: float) -> Schedule:
    signal = curve(np.linspace(0, 1, steps + 1))
    return from_betas(np.minimum(1 - signal[1:] / signal[:-1], max_beta))


def _karras_ratios(n: int, low: float, high: float, rho: float) -> np.ndarray:
    return np.linspace(low ** (1 / rho), high ** (1 / rho), n) ** rho


# Times to sample at: each returns (n+1,) falling float32 times, the last of them -1.


def uniform_times(schedule: Schedule, n: int, offset: int = 0) -> np.ndarray:
    """Return every (T // n)-th step counted up from `offset`: the "leading" spacing.

    Args:
        schedule: of T steps.
        n: how many steps to take, in [1, T].
        offset: the last of them.

    Raises:
        ValueError: `n` or `offset` asks for more steps than there are.

    Example:
        >>> uniform_times(linear(), 5, offset=1).tolist()
        [801.0, 601.0, 401.0, 201.0, 1.0, -1.0]

    Song et al. 2021, *Denoising Diffusion Implicit Models*, appendix D.2 ("linear").
    """
    _check_count(n, schedule.steps)
    stride = schedule.steps // n
    highest = schedule.steps - 1 - stride * (n - 1)
    if not 0 <= offset <= highest:
        raise ValueError(f"offset={offset} must lie in [0, {highest}] for n={n}")
    return _falling(offset + stride * np.arange(n)[::-1])


def trailing_times(schedule: Schedule, n: int) -> np.ndarray:
    """Return n steps evenly spaced down from T-1, so that sampling starts at the noisiest.

    Raises:
        ValueError: `n` lies outside [1, T].

    Example:
        >>> trailing_times(linear(), 4).tolist()
        [999.0, 749.0, 499.0, 249.0, -1.0]

    Lin et al. 2023, *Common Diffusion Noise Schedules and Sample Steps are Flawed*, table 2.
    """
    _check_count(n, schedule.steps)
    return _falling(np.round(schedule.steps * (1 - np.arange(n) / n)) - 1)


def linspace_times(schedule: Schedule, n: int) -> np.ndarray:
    """Return n real times evenly spaced from T-1 to 0, both included (T-1 alone for n = 1).

    Raises:
        ValueError: `n` is less than 1.

    Example:
        >>> linspace_times(linear(), 3).tolist()
        [999.0, 499.5, 0.0, -1.0]
    """
    _check_count(n)
    return _falling(np.linspace(schedule.steps - 1, 0, n))


def quadratic_times(schedule: Schedule, n: int) -> np.ndarray:
    """Return n steps spaced as squares over [0, 0.8T], so that most are taken at little noise.

    Steps that would coincide near 0 are moved up to the next free integer.

    Raises:
        ValueError: `n` lies outside [1, 0.8T].

    Example:
        >>> quadratic_times(linear(), 5).tolist()
        [800.0, 450.0, 200.0, 50.0, 0.0, -1.0]

    Song et al. 2021, *Denoising Diffusion Implicit Models*, appendix D.2.
    """
    top = 0.8 * schedule.steps
    _check_count(n, int(top))
    squares = np.floor(top * np.linspace(1, 0, n) ** 2)
    return _falling(np.maximum(squares, np.arange(n)[::-1]))


def karras_times(
    schedule: Schedule,
    n: int,
    rho: float = 7.0,
    low: float | None = None,
    high: float | None = None,
) -> np.ndarray:
    """Return the n real times at which r^(1/ρ) falls evenly from `high` to `low`.

    Args:
        schedule: of any kind; r plays the part of the paper's σ.
        n: how many steps to take.
        rho: 1 spaces r evenly; larger values take more steps at little noise.
        low: the last r, r(0) by default.
        high: the first r, r(T-1) by default; a cosine or sigmoid schedule ends in thousands, where
            few steps should be spent: 80 is plenty.

    Raises:
        ValueError: `n` is less than 1, or `low` and `high` do not rise within [0, r(T-1)].

    Example:
        >>> schedule = karras()
        >>> [round(float(schedule.ratio(t)), 4) for t in karras_times(schedule, 4)]
        [80.0, 9.7232, 0.47, 0.002, 0.0]

    Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, eq. 5.
    """
    _check_count(n)
    table = schedule.ratio_table.astype(np.float64)
    low = float(table[0]) if low is None else low
    high = float(table[-1]) if high is None else high
    if not 0 < low < high <= table[-1]:
        raise ValueError(f"low={low} and high={high} must satisfy 0 < low < high <= {table[-1]}")
    ratios = _karras_ratios(n, high, low, rho)
    knots, times = np.append(0.0, table), np.arange(-1.0, schedule.steps)
    return _falling(np.interp(ratios, knots, times))


def _check_count(n: int, most: float = np.inf) -> None:
    if not 1 <= n <= most:
        raise ValueError(f"n={n} must be at least 1" + f" and at most {most}" * (most < np.inf))


def _falling(times: np.ndarray) -> np.ndarray:
    return np.append(times, -1).astype(np.float32)  # (n,) -> (n+1,)
