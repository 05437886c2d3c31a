import zlib
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from aigc_jax.core.keys import stream
from aigc_jax.functional import diffusion as df
from aigc_jax.functional.schedules import cosine, from_betas, from_ratios, karras, linear

KINDS = get_args(df.Kind)
SCHEDULES = {"preserving": linear(), "exploding": karras()}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def noise(name, shape):
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return jnp.asarray(generator.standard_normal(shape, np.float32))


discretized_gaussian = jax.jit(df.discretized_gaussian)


def variational_term(schedule, prediction, x0, t, variance="learned"):
    run = jax.jit(lambda *arrays: df.variational_term(schedule, *arrays, variance=variance))
    return run(prediction, x0, t)


def coefficients(schedule, t):
    """α and σ in float64."""
    r = np.append(schedule.ratio_table.astype(np.float64), 0)[np.asarray(t)]
    alpha = 1 / np.sqrt(1 + r**2) if schedule.preserving else np.ones_like(r)
    return alpha, r * alpha


def eight_bit(shape, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, shape)
    return jnp.asarray(values / 127.5 - 1, jnp.float32)


# The forward process


def test_diffuse_mixes_signal_and_noise_by_example():
    x0, eps = noise("x0", (2, 3, 1)), noise("eps", (2, 3, 1))
    xt = df.diffuse(x0, eps, jnp.array([1.0, 0.6]), jnp.array([0.0, 0.8]))
    np.testing.assert_array_equal(xt[0], x0[0])
    np.testing.assert_allclose(xt[1], 0.6 * x0[1] + 0.8 * eps[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("t", "s", "variance"),
    [(420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02), (0, -1, 0)],
)
def test_published_posterior_variances(t, s, variance):
    np.testing.assert_allclose(
        df.transition(linear(), t, s).posterior_variance, variance, atol=1.1e-5
    )


@every_schedule
def test_transition_agrees_with_bayes_rule(schedule):
    t, s = np.array([1, 300, 999, 999, 999]), np.array([0, 299, 998, 500, 0])
    (at, st), (a_s, ss) = coefficients(schedule, t), coefficients(schedule, s)
    a = at / a_s
    variance = st**2 - a**2 * ss**2
    posterior = 1 / (1 / ss**2 + a**2 / variance)
    step = df.transition(schedule, t, s)
    np.testing.assert_allclose(step.alpha, a, rtol=1e-5)
    np.testing.assert_allclose(step.variance, variance, rtol=1e-4)
    np.testing.assert_allclose(step.posterior_variance, posterior, rtol=1e-4)
    np.testing.assert_allclose(step.from_xt, posterior * a / variance, rtol=1e-4)
    np.testing.assert_allclose(step.from_x0, posterior * a_s / ss**2, rtol=1e-4)


def test_one_step_variance_is_beta():
    betas = np.linspace(1e-4, 0.02, 1000)
    t = np.arange(1000)
    step = df.transition(from_betas(betas), t, t - 1)
    np.testing.assert_allclose(step.variance, betas, rtol=2e-4)
    np.testing.assert_allclose(step.alpha, np.sqrt(1 - betas), rtol=1e-6)


@every_schedule
def test_the_step_to_clean_data_is_x0_without_noise(schedule):
    step = df.transition(schedule, jnp.array([0.0, 500.0]), jnp.array([-1.0, -1.0]))
    np.testing.assert_array_equal(step.from_xt, 0)
    np.testing.assert_array_equal(step.from_x0, 1)
    np.testing.assert_array_equal(step.posterior_variance, 0)


# What a network predicts


@every_schedule
@every_kind
def test_every_kind_recovers_x0_and_noise(kind, schedule):
    t = jnp.array([0.0, 100.0, 600.0, 999.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = noise("x0", (4, 3, 3, 2)), noise("eps", (4, 3, 3, 2))
    output = df.target(kind, x0, eps, alpha, sigma)
    found = df.predict(kind, output, df.diffuse(x0, eps, alpha, sigma), alpha, sigma)
    # Rounding of xt is magnified by σ/α in x0 and by α/σ in ε.
    ratio = np.asarray(sigma / alpha)[:, None, None, None]
    assert (np.abs(found.x0 - x0) < 1e-6 * (4 + 4 * ratio)).all()
    assert (np.abs(found.eps - eps) < 1e-6 * (4 + 4 / ratio)).all()
    assert found.mix is None


@every_schedule
@pytest.mark.parametrize("other", KINDS)
@every_kind
def test_kinds_convert_into_each_other_and_back(kind, other, schedule):
    t = jnp.array([200.0, 500.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    xt, output = noise("xt", (2, 5)), noise("output", (2, 5))
    read = df.predict(kind, output, xt, alpha, sigma)
    converted = df.target(other, read.x0, read.eps, alpha, sigma)
    again = df.predict(other, converted, xt, alpha, sigma)
    back = df.target(kind, again.x0, again.eps, alpha, sigma)
    np.testing.assert_allclose(back, output, atol=1e-4, rtol=1e-4)


def test_v_is_its_definition():
    x0, eps, alpha, sigma = (
        jnp.ones((1, 1)),
        2 * jnp.ones((1, 1)),
        jnp.array([0.6]),
        jnp.array([0.8]),
    )
    assert float(df.target("v", x0, eps, alpha, sigma)[0, 0]) == pytest.approx(0.6 * 2 - 0.8 * 1)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0)])
@every_kind
def test_ends_of_the_process_are_finite_with_finite_gradients(kind, alpha, sigma):
    xt, output = noise("xt", (1, 4)), noise("output", (1, 4))
    alpha, sigma = jnp.array([alpha]), jnp.array([sigma])

    def total(output):
        found = df.predict(kind, output, xt, alpha, sigma)
        return jnp.sum(found.x0 + found.eps), found

    gradient, found = jax.grad(total, has_aux=True)(output)
    chex.assert_tree_all_finite((gradient, found))
    if sigma == 0 and kind != "x0":
        np.testing.assert_array_equal(found.x0, xt)
    if sigma == 0 and kind == "x0":
        np.testing.assert_array_equal(found.eps, 0)
    if alpha == 0 and kind != "eps":
        np.testing.assert_array_equal(found.eps, xt)


def test_second_half_of_the_channels_is_the_mix():
    xt, output = noise("xt", (2, 4, 3)), noise("output", (2, 4, 6))
    half = jnp.full(2, 0.5**0.5)
    found = df.predict("eps", output, xt, half, half)
    np.testing.assert_array_equal(found.eps, output[..., :3])
    np.testing.assert_array_equal(found.mix, output[..., 3:])
    with pytest.raises(AssertionError):
        df.predict("eps", output[..., :5], xt, half, half)


def test_half_precision_outputs_are_read_in_single():
    xt, half = noise("xt", (2, 4)), jnp.full(2, 0.5**0.5)
    found = df.predict("x0", xt.astype(jnp.bfloat16), xt, half, half)
    assert found.x0.dtype == found.eps.dtype == jnp.float32


def test_clip_bounds_x0_alone():
    prediction = df.Prediction(jnp.array([[-3.0, 0.2, 3.0]]), jnp.array([[-3.0, 0.2, 3.0]]))
    clipped = df.clip_x0(prediction, 1.0)
    np.testing.assert_allclose(clipped.x0, [[-1.0, 0.2, 1.0]])
    assert clipped.eps is prediction.eps
    assert df.clip_x0(prediction, None) is prediction
    with pytest.raises(ValueError, match="clip=0"):
        df.clip_x0(prediction, 0)


def test_unknown_kinds_are_refused_with_the_known_ones():
    x, one = jnp.ones((1, 2)), jnp.ones(1)
    for call in (
        lambda: df.predict("epsilon", x, x, one, one),
        lambda: df.target("epsilon", x, x, one, one),
        lambda: df.min_snr_weight(one, 5.0, "epsilon"),
    ):
        with pytest.raises(ValueError, match="kind='epsilon' must be one of 'eps', 'x0', 'v'"):
            call()


@pytest.mark.parametrize("data_std", [0.5, 1.3])
def test_preconditioning_keeps_unit_variance(data_std):
    sigma = np.geomspace(0.002, 80, 20)
    p = df.precondition(sigma, data_std)
    # Input: Var(inner·(x0 + σ·ε)) = 1. Target: Var((x0 - skip·x)/out) = 1, with `out` the least.
    np.testing.assert_allclose(p.inner**2 * (sigma**2 + data_std**2), 1, rtol=1e-5)
    left = (1 - p.skip) ** 2 * data_std**2 + p.skip**2 * sigma**2
    np.testing.assert_allclose(left, p.out**2, rtol=1e-5)
    for nudged in (p.skip + 0.01, p.skip - 0.01):
        assert ((1 - nudged) ** 2 * data_std**2 + nudged**2 * sigma**2 > p.out**2 * 0.99999).all()
    np.testing.assert_allclose(p.weight * p.out**2, 1, rtol=1e-5)
    np.testing.assert_allclose(p.noise, 0.25 * np.log(sigma), rtol=1e-5)


# Losses


def test_simple_loss_is_each_examples_mean_square():
    output, target = noise("output", (3, 4, 4, 2)), noise("target", (3, 4, 4, 2))
    expected = np.mean((np.asarray(output, np.float64) - target) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(df.simple_loss(output, target), expected, rtol=1e-6)
    half = df.simple_loss(output.astype(jnp.bfloat16), target)
    assert half.dtype == jnp.float32 and half.shape == (3,)


@every_kind
def test_min_snr_is_one_weight_on_the_error_in_x0(kind):
    schedule, gamma = linear(), 5.0
    t = jnp.array([0.0, 50.0, 200.0, 600.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = noise("x0", (4, 64)), noise("eps", (4, 64))
    xt = df.diffuse(x0, eps, alpha, sigma)
    target = df.target(kind, x0, eps, alpha, sigma)
    output = target + noise("error", (4, 64))
    found = df.predict(kind, output, xt, alpha, sigma)
    loss = df.min_snr_weight(schedule.logsnr(t), gamma, kind) * df.simple_loss(output, target)
    snr = np.asarray(alpha / sigma, np.float64) ** 2
    expected = np.minimum(snr, gamma) * np.mean((np.asarray(found.x0) - x0) ** 2, axis=1)
    np.testing.assert_allclose(loss, expected, rtol=2e-3)


@every_kind
def test_min_snr_is_finite_at_any_ratio(kind):
    weight = df.min_snr_weight(jnp.array([-jnp.inf, -200.0, 0.0, 200.0, jnp.inf]), 5.0, kind)
    limits = {"eps": (1, 0), "x0": (0, 5), "v": (0, 0)}[kind]
    np.testing.assert_allclose(weight[jnp.array([0, -1])], limits, atol=1e-6)
    assert np.isfinite(weight).all()
    with pytest.raises(ValueError, match="gamma=0"):
        df.min_snr_weight(jnp.zeros(1), 0, kind)


# The variational bound


@every_schedule
def test_learned_variance_runs_from_small_to_large(schedule):
    t = jnp.array([0.0, 1.0, 400.0, 999.0])
    ones = jnp.ones((4, 2, 2, 1))

    def at(variance, mix=None):
        return df.log_variance(schedule, t, t - 1, df.Prediction(ones, ones, mix), variance)

    small, large = at("small"), at("large")
    assert small.shape == large.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(at("learned", -ones), small * ones, rtol=1e-6)
    np.testing.assert_allclose(at("learned", ones), large * ones, rtol=1e-6)
    np.testing.assert_allclose(at("learned", 0 * ones), (small + large) / 2 * ones, rtol=1e-6)
    # At t = 0 the posterior's variance is 0; that at t = 1 stands in.
    np.testing.assert_array_equal(small[0], small[1])
    step = df.transition(schedule, t, t - 1)
    np.testing.assert_allclose(jnp.exp(large[:, 0, 0, 0]), step.variance, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(small[1:, 0, 0, 0]), step.posterior_variance[1:], rtol=1e-5)


def test_impossible_variances_are_refused():
    t, one = jnp.array([3.0]), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="'medium' must be one of 'small', 'large', 'learned'"):
        df.log_variance(linear(), t, t - 1, df.Prediction(one, one), "medium")
    with pytest.raises(ValueError, match="twice the channels"):
        df.log_variance(linear(), t, t - 1, df.Prediction(one, one), "learned")


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 20.0])
@pytest.mark.parametrize("mean", [-1.4, 0.0, 0.503, 1.0])
def test_discretized_gaussian_is_a_distribution(mean, std):
    x = jnp.linspace(-1, 1, 256)[None]
    mean, logvar = jnp.full((1, 256), mean), jnp.full((1, 1), 2 * np.log(std))
    mass = np.exp(-np.asarray(discretized_gaussian(x, mean, logvar), np.float64))
    np.testing.assert_allclose(mass.sum(), 1, rtol=3e-4)
    edges = np.concatenate([[-np.inf], np.arange(-254, 255, 2) / 255, [np.inf]])
    exact = np.diff(norm.cdf(edges, np.asarray(mean, np.float64)[0, 0], std))
    np.testing.assert_allclose(mass[0], exact, rtol=5e-3, atol=1e-7)


def test_discretized_gaussian_is_exact_far_in_the_tail():
    x, mean = jnp.array([[0.0, -0.6, 1.0, -1.0]]), jnp.array([[1.0, 1.2, -1.0, 1.0]])
    std = 0.01
    logvar = jnp.float32(2 * np.log(std))
    total = jax.value_and_grad(lambda mean: df.discretized_gaussian(x, mean, logvar).sum())
    loss, gradient = jax.jit(total)(mean)
    z = (np.array([1.0, 1.8, 2.0, 2.0]) - 1 / 255) / std
    np.testing.assert_allclose(loss, -norm.logsf(z).sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs(gradient), [z / std], rtol=2e-2)


def kl_in_float64(schedule, x0, x0_hat, xt, t, logvar):
    (at, st), (a_s, ss) = coefficients(schedule, t), coefficients(schedule, t - 1)
    keep = (at / a_s) ** 2
    beta = st**2 - keep * ss**2

    def mean(x):
        return a_s * beta / st**2 * x + np.sqrt(keep) * ss**2 / st**2 * xt

    variance = beta * ss**2 / st**2
    gap = (mean(np.float64(x0)) - mean(np.float64(x0_hat))) ** 2
    return (
        np.mean(logvar - np.log(variance) + (variance + gap) / np.exp(logvar) - 1) / 2 / np.log(2)
    )


@every_schedule
@pytest.mark.parametrize("variance", get_args(df.Variance))
def test_variational_terms_are_the_divergences_of_the_two_posteriors(variance, schedule):
    t = np.array([1, 20, 500, 999])
    x0, eps, mix = eight_bit((4, 6)), noise("eps", (4, 6)), noise("mix", (4, 6))
    x0_hat = x0 + 0.1 * noise("error", (4, 6))
    xt = df.diffuse(x0, eps, schedule.alpha(t), schedule.sigma(t))
    prediction = df.Prediction(x0_hat, eps, mix)
    bits = variational_term(schedule, prediction, x0, jnp.asarray(t), variance)
    logvar = df.log_variance(schedule, jnp.asarray(t), jnp.asarray(t - 1), prediction, variance)
    logvar = np.broadcast_to(np.asarray(logvar, np.float64), x0.shape)
    for i in range(4):
        expected = kl_in_float64(schedule, x0[i], x0_hat[i], np.float64(xt[i]), t[i], logvar[i])
        np.testing.assert_allclose(bits[i], expected, rtol=1e-3, atol=2e-6)


def test_first_term_is_the_bits_of_the_discrete_data():
    schedule, x0 = linear(), eight_bit((2, 50))
    x0_hat = x0 + 0.01 * noise("error", (2, 50))
    prediction = df.Prediction(x0_hat, x0)
    bits = variational_term(schedule, prediction, x0, jnp.zeros(2), "large")
    nats = discretized_gaussian(x0, x0_hat, jnp.log(jnp.float32(1e-4)))
    np.testing.assert_allclose(bits, nats.mean(1) / np.log(2), rtol=1e-4)


@every_schedule
def test_prior_bits_are_a_divergence(schedule):
    x0 = eight_bit((3, 20))
    alpha, sigma = coefficients(schedule, 999)
    prior = 1.0 if schedule.preserving else sigma
    power = (sigma**2 + alpha**2 * np.mean(np.float64(x0) ** 2, 1)) / prior**2
    expected = (power - 1 - np.log(sigma**2 / prior**2)) / 2 / np.log(2)
    np.testing.assert_allclose(df.prior_bits(schedule, x0), expected, rtol=1e-3)


def test_hybrid_loss_is_the_simple_one_and_a_thousandth_of_the_bound():
    schedule, t = linear(200), jnp.array([0, 1, 50, 199])
    x0, eps = eight_bit((4, 3, 2)), noise("eps", (4, 3, 2))
    output = noise("output", (4, 3, 4))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    prediction = df.predict("v", output, df.diffuse(x0, eps, alpha, sigma), alpha, sigma)
    expected = df.simple_loss(output[..., :2], df.target("v", x0, eps, alpha, sigma))
    expected += 1e-3 * 200 * variational_term(schedule, prediction, x0, t)
    hybrid = jax.jit(lambda output: df.hybrid_loss(schedule, "v", output, x0, eps, t))
    np.testing.assert_allclose(hybrid(output), expected, 1e-5)


@every_kind
def test_hybrid_bound_trains_the_variance_alone(kind):
    schedule, t = cosine(), jnp.array([0, 1, 500, 998, 999])
    x0, eps = eight_bit((5, 4, 1)), noise("eps", (5, 4, 1))
    output = noise("output", (5, 4, 2))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)

    def hybrid(output):
        return df.hybrid_loss(schedule, kind, output, x0, eps, t).sum()

    def simple(output):
        return df.simple_loss(output[..., :1], df.target(kind, x0, eps, alpha, sigma)).sum()

    gradient = jax.jit(jax.grad(hybrid))(output)
    expected = jax.jit(jax.grad(simple))(output)[..., :1]
    np.testing.assert_allclose(gradient[..., :1], expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and (gradient[:3, :, 1] != 0).all()


def test_far_off_predictions_leave_gradients_finite():
    schedule, t = cosine(), jnp.array([0, 1, 500, 999])
    x0, mix = eight_bit((4, 3)), jnp.zeros((4, 3))

    def bits(x0_hat, mix):
        prediction = df.Prediction(x0_hat, x0_hat, mix)
        return df.variational_term(schedule, prediction, x0, t).sum()

    far = jnp.full((4, 3), 1e6).at[0].set(30.0)
    chex.assert_tree_all_finite(jax.jit(jax.grad(bits, (0, 1)))(far, mix))


# A Gaussian x0 ~ N(m, d²): what an ideal network predicts of it is known, and so is its bound.

MEAN, STD = 0.2, 0.3


def gaussian(schedule):
    def predict(xt, t):
        alpha, r = (f(t)[:, None] for f in (schedule.alpha, schedule.ratio))
        away = (xt / alpha - MEAN) / (STD**2 + r**2)
        return df.Prediction(MEAN + STD**2 * away, r * away)

    return predict


def exact_bound(schedule, x0, variance):
    """Each term's expectation over ε in float64, the first by Gauss-Hermite quadrature."""
    t = np.arange(1, schedule.steps)
    (at, st), (a_s, ss) = coefficients(schedule, t), coefficients(schedule, t - 1)
    r2, k = (st / at) ** 2, (ss / a_s) ** 2 / (st / at) ** 2
    error = ((x0[:, None] - MEAN) ** 2 * r2**2 + STD**4 * r2) / (STD**2 + r2) ** 2
    small, large = ss**2 * (1 - k), st**2 * (1 - k)
    model = small if variance == "small" else large
    terms = (np.log(model / small) + (small + a_s**2 * (1 - k) ** 2 * error) / model - 1) / 2
    alpha, sigma = coefficients(schedule, 0)
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    y = x0[:, None] + sigma / alpha * node
    mean = MEAN + STD**2 / (STD**2 + (sigma / alpha) ** 2) * (y - MEAN)
    std = np.sqrt(small[0]) if variance == "small" else sigma
    upper, lower = (norm.cdf((x0[:, None] + edge - mean) / std) for edge in (1 / 255, -1 / 255))
    first = -np.log(np.maximum(upper - lower, 1e-300)) @ weight / weight.sum()
    alpha, sigma = coefficients(schedule, schedule.steps - 1)
    prior = (sigma**2 + alpha**2 * x0**2 - 1 - np.log(sigma**2)) / 2
    return (terms.sum(1) + first + prior) / np.log(2)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_bound_of_an_ideal_gaussian_model_is_its_closed_form(variance):
    schedule = linear(100, 1e-3, 0.2)
    values = np.array([100, 140, 200]) / 127.5 - 1
    x0 = jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None], (3, 8_000))
    keys = jax.random.split(stream(0, "bound"), 3)
    bits = df.variational_bound(
        gaussian(schedule), schedule, x0, keys, variance=variance, clip=None
    )
    np.testing.assert_allclose(bits, exact_bound(schedule, values, variance), rtol=0.01)


def test_bound_is_above_the_code_length_and_near_it():
    """In fine steps the bound of an ideal model is -log2 of the mass in the bin of x0."""
    schedule = from_ratios(np.geomspace(0.03, 50, 400))
    values = np.random.default_rng(0).normal(MEAN, STD, 4000).clip(-0.99, 0.99)
    x0 = jnp.asarray(np.round((values + 1) * 127.5) / 127.5 - 1, jnp.float32)[None]
    keys = jax.random.split(stream(0, "length"), 1)
    bound = df.variational_bound(gaussian(schedule), schedule, x0, keys, variance="large")
    centre = np.asarray(x0, np.float64)
    mass = norm.cdf(centre + 1 / 255, MEAN, STD) - norm.cdf(centre - 1 / 255, MEAN, STD)
    length = -np.log2(mass).mean()
    assert length < float(bound[0]) < length + 0.03


def test_fewer_terms_are_unbiased():
    schedule, examples = linear(40, 1e-3, 0.2), 4000
    x0 = jnp.broadcast_to(eight_bit((1, 2)), (examples, 2))
    keys = jax.random.split(stream(0, "terms"), examples)

    def constant(xt, t):  # so that a term depends on t alone
        return df.Prediction(jnp.full_like(xt, 0.1), xt)

    def bound(terms, n):
        return df.variational_bound(constant, schedule, x0[:n], keys[:n], terms=terms)

    whole = float(bound(None, 1)[0])
    few = np.asarray(bound(7, examples), np.float64)  # 7 does not divide 40
    assert few.std() > 0
    assert abs(few.mean() - whole) < 4 * few.std() / np.sqrt(examples)
    np.testing.assert_allclose(bound(40, 3), whole, rtol=1e-5)
    for terms in (0, 41):
        with pytest.raises(ValueError, match=rf"terms={terms} must lie in \[1, 40\]"):
            bound(terms, 1)


def test_bound_of_an_example_does_not_depend_on_its_batch():
    schedule, x0 = linear(20), eight_bit((4, 5))
    keys = jax.random.split(stream(0, "batch"), 4)
    run = jax.jit(lambda x0, keys: df.variational_bound(gaussian(schedule), schedule, x0, keys))
    other = run(x0.at[1:].set(0.5), keys.at[1:].set(keys[0]))
    assert run(x0, keys)[0] == other[0] and run(x0, keys)[1] != other[1]


def test_bound_is_one_loop_of_any_length():
    def program(steps):
        schedule = linear(steps)
        run = lambda x0, keys: df.variational_bound(gaussian(schedule), schedule, x0, keys)
        return jax.make_jaxpr(run)(jnp.zeros((2, 3)), jax.random.split(stream(0, "loop"), 2))

    assert len(program(10).eqns) == len(program(1000).eqns)
