"""Diffusion samplers, all of one signature.

    sample_xxx(predict, schedule, times, x, keys, *, its own options, trajectory=False) -> x

    predict     (xt: (b, ...), t: (b,) float32) -> Prediction
    times       (n+1,) falling, the last -1: see `functional.schedules`
    x           (b, ...) at times[0]: see `sample_prior`
    keys        (b,) example i depends on keys[i] alone; a deterministic sampler does not read them
    clip        bound on |x0| as predicted, or None; most samplers' data is in [-1, 1]
    trajectory  return (x, xs) instead, xs (n, b, ...) the state after every step

| sampler | x at s from x at t, with y = x/α and dy/dr = ε(y; r) | order | evaluations a step |
|---|---|---|---|
| `sample_ddpm` | a draw from q(xs given xt, x0) | 1, stochastic | 1 |
| `sample_ddim` | αs·x0 + σs·ε, some of ε drawn anew | 1 | 1 |
| `sample_euler` | y + (rs - rt)·ε | 1 | 1 |
| `sample_heun` | the same with ε averaged over both ends | 2 | 2 |
| `sample_dpmpp_2m` | (rs/rt)·y + (1 - rs/rt)·x0, x0 extrapolated from two steps | 2 | 1 |
| `invert_ddim` | Euler from s to t: data to noise | 1 | 1 |

Each is one `lax.scan`, so neither the program nor the time to compile it grows with the number of
steps.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import Any

import chex
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from aigc_jax.core.keys import fold, normal
from aigc_jax.functional.diffusion import (
    Predict,
    Prediction,
    Variance,
    clip_x0,
    log_variance,
    transition,
)
from aigc_jax.functional.schedules import Schedule

Sample = Any  # x: Array, or (x, xs) if `trajectory`


def sample_prior(schedule: Schedule, keys: Array, shape: tuple[int, ...]) -> Array:
    """Draw (b, *shape) noise to sample from: N(0, prior_std²), example i from `keys[i]` alone.

    The noise of step i = 1..n is addressed by `fold(keys, i)`; this is the chain's number 0.
    """
    chex.assert_rank(keys, 1)
    return schedule.prior_std * normal(fold(keys, 0), shape)


def sample_ddpm(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    variance: Variance = "small",
    clip: float | None = 1.0,
    trajectory: bool = False,
) -> Sample:
    """Sample by ancestral sampling: xs ~ N(mean of q(xs | xt, x0), Σ), the mean alone at s = -1.

    Args:
        predict: see the module, as for all that follow.
        schedule: ditto.
        times: ditto.
        x: ditto.
        keys: ditto.
        variance: Σ: the posterior's "small", the transition's "large", or "learned" between them.
        clip: bound on |x0| as predicted, or None.
        trajectory: also return every state.

    Raises:
        ValueError: `variance` or `clip` is not one of those allowed.

    Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, algorithm 2; for "learned" Nichol
    and Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, eq. 15.
    """

    def step(x: Array, t: Array, s: Array, index: Array) -> Array:
        prediction = clip_x0(predict(x, _each(t, x)), clip)
        back = transition(schedule, t, s)
        logvar = log_variance(schedule, _each(t, x), _each(s, x), prediction, variance)
        std = jnp.where(s < 0, 0, jnp.exp(logvar / 2))
        noise = normal(fold(keys, index), x.shape[1:])
        return back.from_xt * x + back.from_x0 * prediction.x0 + std * noise

    return _scan(step, times, x, keys, trajectory)


def sample_ddim(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    eta: float = 0.0,
    clip: float | None = 1.0,
    recompute: bool = False,
    trajectory: bool = False,
) -> Sample:
    """Sample by xs = αs·x0 + √(σs² - η²·σ̃²)·ε + η·σ̃·z, σ̃² the variance of q(xs | xt, x0).

    Args:
        predict: see the module.
        schedule: ditto.
        times: ditto.
        x: ditto.
        keys: ditto; read if `eta` is not 0.
        eta: η in [0, 1]: 0 is deterministic, 1 is `sample_ddpm` with the small variance.
        clip: bound on |x0| as predicted, or None.
        recompute: make ε agree with the clipped x0; by default it stays as predicted.
        trajectory: also return every state.

    Raises:
        ValueError: `eta` lies outside [0, 1], or `clip` is not positive.

    Song et al. 2021, *Denoising Diffusion Implicit Models*, eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]")

    def step(x: Array, t: Array, s: Array, index: Array) -> Array:
        prediction = predict(x, _each(t, x))
        r, y = schedule.ratio(t), x / schedule.alpha(t)
        eps = _slope(prediction, y, r, clip) if recompute else prediction.eps
        kept = jnp.square(schedule.ratio(s) / r)  # σ̃² = σs²·(1 - kept)
        share = jnp.sqrt(1 - eta**2 + eta**2 * kept)
        x = schedule.alpha(s) * clip_x0(prediction, clip).x0 + schedule.sigma(s) * share * eps
        if eta:
            std = jnp.sqrt(transition(schedule, t, s).posterior_variance)
            x += eta * std * normal(fold(keys, index), x.shape[1:])
        return x

    return _scan(step, times, x, keys, trajectory)


def sample_euler(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    clip: float | None = 1.0,
    trajectory: bool = False,
) -> Sample:
    """Sample by Euler's method on dy/dr = ε, y = x/α, r = σ/α.

    Without clipping this is `sample_ddim`; with it, ε is that of the clipped x0, (y - x0)/r.

    Args:
        predict: see the module.
        schedule: ditto.
        times: ditto; `karras_times` are the paper's.
        x: ditto.
        keys: ditto; not read.
        clip: bound on |x0| as predicted, or None.
        trajectory: also return every state.

    Raises:
        ValueError: `clip` is not positive.

    Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, eq. 1
    with σ(t) = t.
    """

    def step(x: Array, t: Array, s: Array, index: Array) -> Array:
        r, y = schedule.ratio(t), x / schedule.alpha(t)
        slope = _slope(predict(x, _each(t, x)), y, r, clip)
        return schedule.alpha(s) * (y + (schedule.ratio(s) - r) * slope)

    return _scan(step, times, x, keys, trajectory)


def sample_heun(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    clip: float | None = 1.0,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
    trajectory: bool = False,
) -> Sample:
    """Sample by Heun's method on dy/dr = ε, y = x/α, r = σ/α, optionally with fresh noise.

    The last step, to r = 0, is Euler's and evaluates the network once.

    Args:
        predict: see the module.
        schedule: ditto.
        times: ditto; `karras_times` are the paper's.
        x: ditto.
        keys: ditto; read if `churn` is not 0.
        clip: bound on |x0| as predicted, or None; ε is then that of the clipped x0.
        churn: S_churn >= 0: a step first raises r by the factor 1 + min(S_churn/n, √2 - 1), though
            never above the schedule's end.
        churn_min: S_tmin, the least r that is raised.
        churn_max: S_tmax, the greatest.
        churn_noise: S_noise, the standard deviation of the noise added.
        trajectory: also return every state.

    Raises:
        ValueError: `clip` is not positive, or `churn` is negative.

    Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*,
    algorithm 2.
    """
    if churn < 0:
        raise ValueError(f"churn={churn} must not be negative")
    gain = min(churn / (jnp.shape(times)[0] - 1), sqrt(2) - 1)

    def slope(y: Array, t: Array) -> Array:
        x = schedule.alpha(t) * y
        return _slope(predict(x, _each(t, x)), y, schedule.ratio(t), clip)

    def step(x: Array, t: Array, s: Array, index: Array) -> Array:
        r, y = schedule.ratio(t), x / schedule.alpha(t)
        if churn:
            churned = (churn_min <= r) & (r <= churn_max)
            t = jnp.where(churned, schedule.time_of_ratio(r * (1 + gain)), t)
            added = jnp.sqrt(jnp.maximum(schedule.ratio(t) ** 2 - r**2, 0))
            r = schedule.ratio(t)
            y += churn_noise * added * normal(fold(keys, index), x.shape[1:])
        h = schedule.ratio(s) - r
        first = slope(y, t)
        second = lax.cond(s < 0, lambda: first, lambda: slope(y + h * first, s))
        return schedule.alpha(s) * (y + h * (first + second) / 2)

    return _scan(step, times, x, keys, trajectory)


def sample_dpmpp_2m(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    clip: float | None = 1.0,
    trajectory: bool = False,
) -> Sample:
    """Sample by DPM-Solver++(2M): exact in y, x0 extrapolated linearly in log r from two steps.

    ys = (rs/rt)·yt + (1 - rs/rt)·D, D = x0(t) + (h/2h')·(x0(t) - x0(t')), h = log rt/rs, t' the
    time before t and h' = log rt'/rt. The first step, and the last, to r = 0, have D = x0(t).

    Args:
        predict: see the module.
        schedule: ditto.
        times: ditto.
        x: ditto.
        keys: ditto; not read.
        clip: bound on |x0| as predicted, or None.
        trajectory: also return every state.

    Raises:
        ValueError: `clip` is not positive.

    Lu et al. 2022, *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models*, algorithm 2.
    """

    def step(
        carry: tuple[Array, Array, Array], t: Array, s: Array, index: Array
    ) -> tuple[Array, Array, Array]:
        x, x0_before, r_before = carry
        r, r_next, y = schedule.ratio(t), schedule.ratio(s), x / schedule.alpha(t)
        x0 = clip_x0(predict(x, _each(t, x)), clip).x0
        h = jnp.where(s < 0, 0, jnp.log(r / r_next))
        d = x0 + h / (2 * jnp.log(r_before / r)) * (x0 - x0_before)
        y = r_next / r * y + (1 - r_next / r) * d
        return schedule.alpha(s) * y, x0, r

    # Before the first step lies a time infinitely far off, whose x0 therefore counts for nothing.
    start = (x, jnp.zeros_like(x), jnp.float32(inf))
    return _scan(step, times, start, keys, trajectory)


def invert_ddim(
    predict: Predict,
    schedule: Schedule,
    times: ArrayLike,
    x: Array,
    keys: Array,
    *,
    trajectory: bool = False,
) -> Sample:
    """Find the noise from which `sample_ddim`, unclipped and with η = 0, draws given data.

    The same Euler steps climbed: yt = ys + (rt - rs)·ε(xs; s), with ε at t = 0 standing in for
    clean data.

    Args:
        predict: see the module.
        schedule: ditto.
        times: ditto, falling: those that sampling will use.
        x: (b, ...) clean data.
        keys: ditto; not read.
        trajectory: also return every state, from the least noisy to `times[0]`.

    Returns:
        (b, ...) at times[0].

    Song et al. 2021, *Denoising Diffusion Implicit Models*, section 4.3, eq. 14.
    """

    def step(x: Array, s: Array, t: Array, index: Array) -> Array:
        eps = predict(x, _each(jnp.maximum(s, 0), x)).eps
        rise = schedule.ratio(t) - schedule.ratio(s)
        return schedule.alpha(t) * (x / schedule.alpha(s) + rise * eps)

    return _scan(step, jnp.flip(jnp.asarray(times)), x, keys, trajectory)


def _scan(
    step: Callable[..., Any], times: ArrayLike, start: Any, keys: Array, trajectory: bool
) -> Sample:
    """Fold `step(carry, t, s, index) -> carry` over pairs of times; a carry is x or begins so."""
    times = jnp.asarray(times, jnp.float32)
    chex.assert_rank([times, keys], 1)
    chex.assert_axis_dimension(_state(start), 0, keys.shape[0])
    chex.assert_type(_state(start), float)

    def body(carry: Any, pair: tuple[Array, Array, Array]) -> tuple[Any, Array | None]:
        carry = step(carry, *pair)
        return carry, _state(carry) if trajectory else None

    pairs = (times[:-1], times[1:], jnp.arange(1, times.shape[0]))
    carry, xs = lax.scan(body, start, pairs)
    return (_state(carry), xs) if trajectory else _state(carry)


def _state(carry: Any) -> Array:
    return carry[0] if isinstance(carry, tuple) else carry


def _each(t: Array, x: Array) -> Array:
    return jnp.full(x.shape[:1], t)  # () -> (b,)


def _slope(prediction: Prediction, y: Array, r: Array, clip: float | None) -> Array:
    """Return dy/dr: ε as predicted, or that of the clipped x0."""
    return prediction.eps if clip is None else (1 / r) * (y - clip_x0(prediction, clip).x0)
