"""Diffusion: the forward process and its posterior, what a network may predict, and the losses.

Everything is written in α, σ and r = σ/α of a `Schedule`, for xt = α·x0 + σ·ε, and holds for
variance preserving and variance exploding schedules alike. Coefficients are (b,), data (b, ...).
"""

from collections.abc import Callable
from math import log
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from aigc_jax.core.keys import fold, normal, uniform
from aigc_jax.core.shapes import expand, mean_flat
from aigc_jax.functional.schedules import Schedule

Kind = Literal["eps", "x0", "v"]
Variance = Literal["small", "large", "learned"]


class Prediction(NamedTuple):
    """What a network says of a noisy example, whatever it was trained to predict.

    Attributes:
        x0: (b, ...) the clean example.
        eps: (b, ...) the noise in it.
        mix: (b, ...) raw output from -1, the small variance, to 1, the large one, of a network that
            learns its variance.
    """

    x0: Array
    eps: Array
    mix: Array | None = None


Predict = Callable[[Array, Array], Prediction]  # (xt: (b, ...), t: (b,) float32) -> Prediction


class Transition(NamedTuple):
    """The Gaussians that tie xt to the cleaner xs, each field a scalar or (b,).

    Attributes:
        alpha: α_{t|s}, of q(xt | xs) = N(α_{t|s}·xs, σ²_{t|s}).
        variance: σ²_{t|s}, the paper's βt when s = t - 1: the "large" choice of sampling variance.
        from_xt: the weight of xt in the mean of q(xs | xt, x0).
        from_x0: the weight of x0 in it.
        posterior_variance: of q(xs | xt, x0), the paper's β̃t when s = t - 1: the "small" choice.
    """

    alpha: Array
    variance: Array
    from_xt: Array
    from_x0: Array
    posterior_variance: Array


# The forward process


def diffuse(x0: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """Add noise: xt = α·x0 + σ·ε.

    Args:
        x0: (b, ...) clean examples.
        eps: (b, ...) standard normal noise.
        alpha: (b,) signal's share.
        sigma: (b,) noise's share.

    Ho et al. 2020, *Denoising Diffusion Probabilistic Models*, eq. 4.
    """
    _check(alpha, sigma, x0, eps)
    return expand(alpha, x0.ndim) * x0 + expand(sigma, x0.ndim) * eps


def transition(schedule: Schedule, t: ArrayLike, s: ArrayLike) -> Transition:
    """Return the coefficients of q(xt | xs) and of q(xs | xt, x0), for s < t.

    With k = rs²/rt²: α_{t|s} = αt/αs, σ²_{t|s} = σt² - α²_{t|s}·σs² = σt²·(1 - k), and the
    posterior has mean αs·(k·xt/αt + (1 - k)·x0) and variance σ²_{t|s}·σs²/σt² = σs²·(1 - k).

    Args:
        schedule: of either kind.
        t: scalar or (b,), in (-1, T-1].
        s: like `t`, earlier; -1 is clean data.

    Example:
        >>> from aigc_jax.functional.schedules import linear
        >>> round(float(transition(linear(), 420, 400).posterior_variance), 4)
        0.1477

    Ho et al. 2020, eq. 6 and 7; Kingma et al. 2021, *Variational Diffusion Models*, appendix A.
    """
    alpha_t, alpha_s, r_t, r_s = *map(schedule.alpha, (t, s)), *map(schedule.ratio, (t, s))
    chex.assert_equal_shape([alpha_t, alpha_s])
    kept = jnp.square(r_s / r_t)
    lost = (r_t - r_s) * (r_t + r_s) / jnp.square(r_t)  # 1 - kept would cancel when s is near t
    return Transition(
        alpha=alpha_t / alpha_s,
        variance=jnp.square(r_t * alpha_t) * lost,
        from_xt=kept * alpha_s / alpha_t,
        from_x0=lost * alpha_s,
        posterior_variance=jnp.square(r_s * alpha_s) * lost,
    )


# What a network predicts


def target(kind: Kind, x0: Array, eps: Array, alpha: Array, sigma: Array) -> Array:
    """Return what a network of a kind is trained to output: ε, x0, or v = α·ε - σ·x0.

    Raises:
        ValueError: `kind` is not one of "eps", "x0", "v".

    Salimans and Ho 2022, *Progressive Distillation for Fast Sampling of Diffusion Models*, appendix
    D.
    """
    _check(alpha, sigma, x0, eps)
    _one_of("kind", kind, Kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    return expand(alpha, x0.ndim) * eps - expand(sigma, x0.ndim) * x0


def predict(kind: Kind, output: Array, xt: Array, alpha: Array, sigma: Array) -> Prediction:
    """Read a network's output as x0 and ε, in float32.

    ε: x0 = (xt - σ·ε)/α. x0: ε = (xt - α·x0)/σ. v: x0 = (α·xt - σ·v)/(α² + σ²) and
    ε = (σ·xt + α·v)/(α² + σ²). Where a divisor is 0 (ε of clean data), so is the quotient.

    Args:
        kind: what the network was trained to output.
        output: (b, ..., c), or (b, ..., 2c) of which the second half is `Prediction.mix`.
        xt: (b, ..., c).
        alpha: (b,).
        sigma: (b,).

    Raises:
        ValueError: `kind` is not one of "eps", "x0", "v".
    """
    _one_of("kind", kind, Kind)
    _check(alpha, sigma, xt)
    output, mix = output.astype(jnp.float32), None
    if output.shape[-1] == 2 * xt.shape[-1]:
        output, mix = jnp.split(output, 2, axis=-1)  # (b, ..., 2c) -> 2 x (b, ..., c)
    chex.assert_equal_shape([output, xt])
    a, s = expand(alpha, xt.ndim), expand(sigma, xt.ndim)
    if kind == "eps":
        return Prediction(_inverse(a) * (xt - s * output), output, mix)
    if kind == "x0":
        return Prediction(output, _inverse(s) * (xt - a * output), mix)
    inverse = _inverse(a * a + s * s)
    return Prediction(inverse * (a * xt - s * output), inverse * (s * xt + a * output), mix)


def clip_x0(prediction: Prediction, clip: float | None) -> Prediction:
    """Clip the predicted x0 to [-clip, clip]; leave ε as it is. None does nothing.

    Raises:
        ValueError: `clip` is not positive.
    """
    if clip is None:
        return prediction
    if clip <= 0:
        raise ValueError(f"clip={clip} must be positive, or None")
    return prediction._replace(x0=jnp.clip(prediction.x0, -clip, clip))


class Preconditioning(NamedTuple):
    """The scalings of D(x; σ) = skip·x + out·F(inner·x; noise), like σ, and its loss weight."""

    skip: Array
    out: Array
    inner: Array
    noise: Array
    weight: Array


def precondition(ratio: ArrayLike, data_std: float = 0.5) -> Preconditioning:
    """Return the scalings that keep a denoiser's input, output and target at unit variance.

    Args:
        ratio: scalar or (b,), the paper's σ > 0 for x = x0 + σ·ε.
        data_std: σ_data, the standard deviation of the data.

    Example:
        >>> p = precondition(0.5)
        >>> [round(float(c), 4) for c in p]
        [0.5, 0.3536, 1.4142, -0.1733, 8.0]

    Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, table
    1.
    """
    sigma = jnp.asarray(ratio, jnp.float32)
    chex.assert_rank(sigma, {0, 1})
    power = sigma**2 + data_std**2
    return Preconditioning(
        skip=data_std**2 / power,
        out=sigma * data_std / jnp.sqrt(power),
        inner=1 / jnp.sqrt(power),
        noise=jnp.log(sigma) / 4,
        weight=power / jnp.square(sigma * data_std),
    )


# Losses, per example


def simple_loss(output: Array, target: Array) -> Array:
    """Return (b,) the mean squared error of each example, in float32.

    Ho et al. 2020, eq. 14.
    """
    chex.assert_equal_shape([output, target])
    return mean_flat(jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)))


def min_snr_weight(logsnr: Array, gamma: float, kind: Kind) -> Array:
    """Weight `simple_loss` so that, seen as a loss on x0, its weight is min(SNR, γ).

    x0: min(SNR, γ). ε: min(SNR, γ)/SNR. v: min(SNR, γ)/(SNR + 1), for a variance-preserving
    schedule.

    Args:
        logsnr: (b,) in nats, of any size: nothing here overflows.
        gamma: γ > 0, 5 in the paper.
        kind: what the network outputs.

    Returns:
        (b,) positive weights.

    Raises:
        ValueError: `kind` is not one of "eps", "x0", "v", or `gamma` is not positive.

    Example:
        >>> snr = jnp.array([0.5, 20.0])
        >>> min_snr_weight(jnp.log(snr), 5.0, "eps").round(4).tolist()
        [1.0, 0.25]

    Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting Strategy*, section 3.4.
    """
    chex.assert_rank(logsnr, 1)
    _one_of("kind", kind, Kind)
    if gamma <= 0:
        raise ValueError(f"gamma={gamma} must be positive")
    if kind == "eps":
        return jnp.minimum(1, gamma * jnp.exp(-logsnr))
    if kind == "x0":
        return jnp.exp(jnp.minimum(logsnr, log(gamma)))
    return jnp.minimum(jax.nn.sigmoid(logsnr), gamma * jax.nn.sigmoid(-logsnr))


def log_variance(
    schedule: Schedule, t: Array, s: Array, prediction: Prediction, variance: Variance
) -> Array:
    """Return the log variance of p(xs | xt): log Σ = v·log σ²_{t|s} + (1 - v)·log σ̃²_{t|s}.

    v is 0 for "small", 1 for "large" and (mix + 1)/2 for "learned". The small variance vanishes
    where s = -1; there that of the step above, from t = 1 to 0, stands in for it.

    Args:
        schedule: of either kind.
        t: (b,).
        s: (b,), earlier.
        prediction: its `mix` is read if the variance is learned.
        variance: one of "small", "large", "learned".

    Returns:
        (b, ...) that broadcasts against `prediction.x0`, in nats.

    Raises:
        ValueError: `variance` is none of these, or is "learned" and the prediction has no `mix`.

    Nichol and Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, eq. 15.
    """
    chex.assert_rank([t, s], 1)
    _one_of("variance", variance, Variance)
    above = transition(schedule, jnp.maximum(t, 1), jnp.maximum(s, 0))
    small = above.posterior_variance
    large = transition(schedule, t, s).variance
    small, large = (expand(jnp.log(x), prediction.x0.ndim) for x in (small, large))
    if variance == "small":
        return small
    if variance == "large":
        return large
    if prediction.mix is None:
        raise ValueError(
            "variance='learned' needs a network that outputs twice the channels of xt; "
            "use 'small' or 'large'"
        )
    v = (prediction.mix + 1) / 2
    return v * large + (1 - v) * small


def discretized_gaussian(x: Array, mean: Array, logvar: Array) -> Array:
    """Return -log of the mass that a Gaussian puts on the bin of each 8-bit value, in nats.

    The 256 bins are 2/255 wide about x = -1, …, 1; the outermost reach to ∓∞, so that the masses
    sum to 1. Exact however far x lies in the tail.

    Args:
        x: (b, ...) in [-1, 1], 8-bit values scaled.
        mean: (b, ...) the Gaussian's mean.
        logvar: broadcasts against `x`, the log of its variance.

    Returns:
        (b, ...).

    Ho et al. 2020, eq. 13.
    """
    chex.assert_equal_shape([x, mean])
    precision = jnp.exp(-logvar / 2)
    half = precision / 255
    centre = (x - mean) * precision
    first, last = x < -1 + 1 / 255, x > 1 - 1 / 255
    # By symmetry both edges of a bin are taken in the lower tail, where log Φ is accurate.
    towards = jnp.where(first, centre, jnp.where(last, -centre, -jnp.abs(centre)))
    upper, lower = log_ndtr(towards + half), log_ndtr(-jnp.abs(centre) - half)
    without = jnp.log(-jnp.expm1(-jnp.maximum(upper - lower, 1e-12)))
    return -upper - jnp.where(first | last, 0, without)


def variational_term(
    schedule: Schedule,
    prediction: Prediction,
    x0: Array,
    t: Array,
    variance: Variance = "learned",
) -> Array:
    """Return one term of the variational bound, each example's own, in bits/dim.

    L_t = KL(q(x_{t-1} | xt, x0) ‖ p(x_{t-1} | xt)) for t > 0, and L_0 = -log p(x0 | x1) by
    `discretized_gaussian`. The bound is their sum over t = 0..T-1, and `prior_bits`.

    Args:
        schedule: of either kind.
        prediction: from xt ~ q(xt | x0); ε is not read.
        x0: (b, ...) 8-bit data scaled to [-1, 1].
        t: (b,) integers in 0..T-1, of any type.
        variance: which the model has.

    Returns:
        (b,) bits/dim.

    Ho et al. 2020, eq. 5; Nichol and Dhariwal 2021, eq. 4 to 7.
    """
    chex.assert_equal_shape([x0, prediction.x0])
    chex.assert_shape(t, (x0.shape[0],))
    t = t.astype(jnp.float32)
    logvar = log_variance(schedule, t, t - 1, prediction, variance)
    noisy = expand(t, x0.ndim) > 0
    # Far-off predictions at t > 0 would put an infinite gradient into the branch not taken.
    decoder = discretized_gaussian(x0, jnp.where(noisy, x0, prediction.x0), logvar)
    step = transition(schedule, jnp.maximum(t, 1), jnp.maximum(t - 1, 0))
    truth = jnp.log(expand(step.posterior_variance, x0.ndim))
    # Both means weigh xt alike, so they differ by the error in x0 alone.
    gap = expand(step.from_x0, x0.ndim) * (x0 - prediction.x0)
    kl = (logvar - truth - 1 + jnp.exp(truth - logvar) + gap**2 * jnp.exp(-logvar)) / 2
    return mean_flat(jnp.where(noisy, kl, decoder)) / log(2)


def prior_bits(schedule: Schedule, x0: Array) -> Array:
    """Return KL(q(x_{T-1} | x0) ‖ N(0, prior_std²)), the bound's term that no network changes.

    Args:
        schedule: of either kind.
        x0: (b, ...).

    Returns:
        (b,) bits/dim.

    Ho et al. 2020, eq. 5, L_T.
    """
    chex.assert_rank(x0, set(range(1, 9)))
    signal = jnp.square(schedule.alpha(schedule.steps - 1) / schedule.prior_std)
    # σ² = 1 - α² if variance preserving, else σ is the prior's own.
    spread = -jnp.log1p(-signal) - signal if schedule.preserving else 0.0
    return (spread + signal * mean_flat(x0**2)) / (2 * log(2))


def hybrid_loss(
    schedule: Schedule,
    kind: Kind,
    output: Array,
    x0: Array,
    eps: Array,
    t: Array,
    weight: float = 1e-3,
) -> Array:
    """Return L_simple + weight·L_vlb, in which L_vlb trains the learned variance alone.

    L_vlb = T·L_t, an unbiased estimate of the bound under uniform t; no gradient reaches the mean.

    Args:
        schedule: of either kind.
        kind: what the first half of the output predicts.
        output: (b, ..., 2c), the network's at `diffuse(x0, eps, alpha(t), sigma(t))`.
        x0: (b, ..., c) 8-bit data scaled to [-1, 1].
        eps: (b, ..., c) the noise in xt.
        t: (b,) integers in 0..T-1, of any type.
        weight: the paper's λ.

    Returns:
        (b,).

    Raises:
        ValueError: `kind` is not one of "eps", "x0", "v".

    Nichol and Dhariwal 2021, eq. 16.
    """
    chex.assert_equal_shape([x0, eps])
    chex.assert_shape(output, (*x0.shape[:-1], 2 * x0.shape[-1]))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    mean, mix = jnp.split(output, 2, axis=-1)  # (b, ..., 2c) -> 2 x (b, ..., c)
    frozen = jnp.concatenate([lax.stop_gradient(mean), mix], -1)  # -> (b, ..., 2c)
    prediction = predict(kind, frozen, diffuse(x0, eps, alpha, sigma), alpha, sigma)
    bound = schedule.steps * variational_term(schedule, prediction, x0, t)
    return simple_loss(mean, target(kind, x0, eps, alpha, sigma)) + weight * bound


def variational_bound(
    predict_fn: Predict,
    schedule: Schedule,
    x0: Array,
    keys: Array,
    *,
    variance: Variance = "small",
    terms: int | None = None,
    clip: float | None = 1.0,
) -> Array:
    """Estimate an upper bound on -log2 p(x0) per dimension, one evaluation of the network a term.

    All T terms are summed, each at one draw of xt; or `terms` of them, one uniform in each of as
    many equal strata of 0..T-1 and weighted by its stratum's length, which has the same
    expectation.

    Args:
        predict_fn: `(xt, t) -> Prediction`.
        schedule: of either kind.
        x0: (b, ...) 8-bit data scaled to [-1, 1].
        keys: (b,); example i depends on `keys[i]` alone.
        variance: which the model has.
        terms: how many to draw, T by default.
        clip: bound on |x0| as predicted, or None.

    Returns:
        (b,) bits/dim.

    Raises:
        ValueError: `terms` lies outside [1, T], or an option is not one of those allowed.

    Ho et al. 2020, eq. 5; Nichol and Dhariwal 2021, section 3.3.
    """
    chex.assert_shape(keys, x0.shape[:1])
    steps = schedule.steps
    terms = steps if terms is None else terms
    if not 1 <= terms <= steps:
        raise ValueError(f"terms={terms} must lie in [1, {steps}]")
    edges = np.arange(terms + 1) * steps // terms
    strata = jax.tree.map(jnp.float32, (edges[:-1], np.diff(edges))), jnp.arange(terms)

    def add(total: Array, stratum: Any) -> tuple[Array, None]:
        (low, length), index = stratum
        here = fold(keys, index)
        t = low + jnp.floor(length * uniform(fold(here, 0)))
        eps = normal(fold(here, 1), x0.shape[1:])
        xt = diffuse(x0, eps, schedule.alpha(t), schedule.sigma(t))
        prediction = clip_x0(predict_fn(xt, t), clip)
        return total + length * variational_term(schedule, prediction, x0, t, variance), None

    return lax.scan(add, prior_bits(schedule, x0), strata)[0]


def _check(alpha: Array, sigma: Array, *arrays: Array) -> None:
    chex.assert_equal_shape(arrays)
    chex.assert_shape([alpha, sigma], arrays[0].shape[:1])


def _inverse(x: Array) -> Array:
    zero = x == 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        names = ", ".join(map(repr, get_args(allowed)))
        raise ValueError(f"{name}={value!r} must be one of {names}")
