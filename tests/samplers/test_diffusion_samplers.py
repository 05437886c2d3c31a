from functools import cache, partial
from itertools import pairwise
from math import inf

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import batch_sharding, make_mesh
from aigc_jax.functional.diffusion import Prediction, precondition, predict, target, transition
from aigc_jax.functional.schedules import (
    cosine,
    karras,
    karras_times,
    linear,
    linspace_times,
    trailing_times,
    uniform_times,
)
from aigc_jax.samplers import diffusion as smp

DETERMINISTIC = {
    "ddim": smp.sample_ddim,
    "euler": smp.sample_euler,
    "heun": smp.sample_heun,
    "dpmpp_2m": smp.sample_dpmpp_2m,
}
STOCHASTIC = {
    "ddpm": smp.sample_ddpm,
    "ddim_eta": partial(smp.sample_ddim, eta=0.7),
    "heun_churn": partial(smp.sample_heun, churn=10.0),
}
EVERY = DETERMINISTIC | STOCHASTIC
every_sampler = pytest.mark.parametrize("name", EVERY)
every_solver = pytest.mark.parametrize("sample", DETERMINISTIC.values(), ids=DETERMINISTIC.keys())

MEAN, STD = 0.3, 0.5  # x0 ~ N(MEAN, STD²), whose ideal predictor and probability flow are known


def gaussian(schedule, mean=MEAN, std=STD):
    def predict(xt, t):
        shape = (-1, *[1] * (xt.ndim - 1))
        alpha, r = (f(t).reshape(shape) for f in (schedule.alpha, schedule.ratio))
        away = (xt / alpha - mean) / (std**2 + r**2)
        return Prediction(mean + std**2 * away, r * away)

    return predict


def flow(schedule, x, t):
    """Where the probability flow takes x at t: y - MEAN is proportional to √(STD² + r²)."""
    r, alpha = (np.asarray(f(t), np.float64) for f in (schedule.ratio, schedule.alpha))
    return MEAN + (np.asarray(x, np.float64) / alpha - MEAN) * STD / np.sqrt(STD**2 + r**2)


def keys_of(name, b):
    return jax.random.split(stream(0, name), b)


def noise(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


# Published cases


def published_start():
    """NCHW ramp from a (3, 8, 8, 4) one, brought to NHWC."""
    ramp = np.arange(768, dtype=np.float32) / 768
    return jnp.asarray(ramp.reshape(3, 8, 8, 4).transpose(3, 1, 2, 0))


def stand_in(schedule):
    def network(xt, t):
        t = t[:, None, None, None]
        return xt * t / (t + 1)

    return lambda xt, t: predict("eps", network(xt, t), xt, schedule.alpha(t), schedule.sigma(t))


def check_sums(x, total, mean):
    assert abs(float(jnp.abs(x).sum()) - total) < 1e-2
    assert abs(float(jnp.abs(x).mean()) - mean) < 1e-3


def test_published_ddim_case():
    schedule = linear()
    times = uniform_times(schedule, 10)
    x = smp.sample_ddim(
        stand_in(schedule), schedule, times, published_start(), keys_of("ddim", 4), clip=1.0
    )
    check_sums(x, 172.0067, 0.223967)


def test_published_euler_case():
    # The published loop keeps the rescaled input x/√(σ² + 1) as its state, so that every step
    # starts from that: here it is ten samplings of one step each.
    schedule = linear(1100)._replace(preserving=False)
    times = linspace_times(schedule, 10)
    step = jax.jit(
        lambda pair, x: smp.sample_euler(
            stand_in(schedule), schedule, pair, x, keys_of("euler", 4), clip=None
        )
    )
    x = published_start() * schedule.prior_std
    for pair in np.stack([times[:-1], times[1:]], 1):
        x = step(pair, x / jnp.sqrt(schedule.ratio(pair[0]) ** 2 + 1))
    check_sums(x, 10.0807, 0.0131)


def test_published_karras_case():
    schedule = karras(sigma_min=0.002, sigma_max=80, rho=7)

    def denoise(x, t):
        skip, out, inner, level, _ = (
            c[:, None, None, None] for c in precondition(schedule.ratio(t), data_std=0.5)
        )
        x0 = skip * x + out * (inner * x * level / (level + 1))
        return predict("x0", x0, x, schedule.alpha(t), schedule.sigma(t))

    start = published_start() * (schedule.prior_std**2 + 1) ** 0.5
    times = karras_times(schedule, 10)
    x = smp.sample_euler(denoise, schedule, times, start, keys_of("edm", 4), clip=None)
    check_sums(x, 34.1855, 34.1855 / 768)


# The probability flow of a Gaussian


def solve(sample, schedule, times, **options):
    x = schedule.prior_std * noise((4, 16))
    run = jax.jit(
        lambda times, x: sample(
            gaussian(schedule), schedule, times, x, keys_of("solve", 4), clip=None, **options
        )
    )
    return float(np.abs(run(times, x) - flow(schedule, x, times[0])).max())


@every_solver
def test_solvers_follow_the_probability_flow(sample):
    schedule = cosine()
    error = solve(sample, schedule, karras_times(schedule, 80, high=80.0))
    assert error < (0.1 if sample in (smp.sample_ddim, smp.sample_euler) else 0.01)


@every_solver
def test_solvers_converge_at_their_order(sample):
    schedule, order = karras(), 1 if sample in (smp.sample_ddim, smp.sample_euler) else 2
    coarse, fine = (solve(sample, schedule, karras_times(schedule, n)) for n in (40, 80))
    assert 2 ** (order - 0.3) < coarse / fine < 2 ** (order + 0.5)
    assert fine < (0.05 if order == 1 else 0.005)


def test_every_kind_of_network_draws_the_same_samples():
    schedule = linear()
    times, x, keys = trailing_times(schedule, 8), noise((2, 6)), keys_of("kind", 2)

    def network(kind, xt, t):
        ideal = gaussian(schedule)(xt, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return predict(kind, target(kind, *ideal[:2], alpha, sigma), xt, alpha, sigma)

    eps, x0, v = (
        smp.sample_ddim(partial(network, kind), schedule, times, x, keys)
        for kind in ("eps", "x0", "v")
    )
    np.testing.assert_allclose(eps, x0, atol=1e-4)
    np.testing.assert_allclose(v, x0, atol=1e-4)


def test_inversion_finds_the_noise_and_sampling_returns():
    schedule = linear()
    x0, keys, model = MEAN + STD * noise((2, 32)), keys_of("invert", 2), gaussian(schedule)
    invert = jax.jit(lambda times: smp.invert_ddim(model, schedule, times, x0, keys))
    again = jax.jit(lambda times, x: smp.sample_ddim(model, schedule, times, x, keys, clip=None))
    errors = []
    for n in (100, 200):
        times = karras_times(schedule, n)
        found = invert(times)
        np.testing.assert_allclose(flow(schedule, found, times[0]), x0, atol=0.05)
        errors.append(np.abs(again(times, found) - x0).max())
    assert errors[1] < 0.04
    assert 1.6 < errors[0] / errors[1] < 2.5


# Stochastic samplers


def chain_moments(schedule, times, variance):
    """Mean and variance of DDPM's linear-Gaussian chain under the ideal predictor, in float64."""
    mean, power = 0.0, schedule.prior_std**2
    for t, s in pairwise(times):
        step = [float(c) for c in transition(schedule, t, s)]
        alpha, r = float(schedule.alpha(t)), float(schedule.ratio(t))
        pull = STD**2 / (STD**2 + r**2)
        gain = step[2] + step[3] * pull / alpha
        mean = gain * mean + step[3] * MEAN * (1 - pull)
        small, large = step[4], step[1]
        added = {"small": small, "large": large, "learned": (small * large) ** 0.5}[variance]
        power = gain**2 * power + (added if s >= 0 else 0)
    return mean, power**0.5


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_draws_the_moments_of_its_chain(variance):
    schedule, b = linear(), 8
    times, keys = trailing_times(schedule, 25), keys_of("moments", 8)
    model = gaussian(schedule)

    def halfway(xt, t):
        return model(xt, t)._replace(mix=jnp.zeros_like(xt))

    x = smp.sample_prior(schedule, keys, (5000,))
    x = smp.sample_ddpm(halfway, schedule, times, x, keys, variance=variance, clip=None)
    mean, std = chain_moments(schedule, times, variance)
    n = b * 5000
    assert abs(float(x.mean()) - mean) < 4 * std / n**0.5
    assert abs(float(x.std()) / std - 1) < 4 / (2 * n) ** 0.5


def test_ddpm_with_every_step_draws_the_data():
    schedule, keys = linear(), keys_of("data", 4)
    x = smp.sample_prior(schedule, keys, (2000,))
    times = uniform_times(schedule, 1000)
    x = smp.sample_ddpm(gaussian(schedule), schedule, times, x, keys, clip=None)
    assert abs(float(x.mean()) - MEAN) < 0.02
    assert abs(float(x.std()) - STD) < 0.02


def test_learned_variance_reaches_the_fixed_one():
    schedule = linear()
    times, x, keys = trailing_times(schedule, 5), noise((2, 6)), keys_of("learned", 2)

    def extreme(xt, t):
        return gaussian(schedule)(xt, t)._replace(mix=jnp.ones_like(xt))

    fixed, learned = (
        smp.sample_ddpm(extreme, schedule, times, x, keys, variance=variance)
        for variance in ("large", "learned")
    )
    np.testing.assert_allclose(learned, fixed, atol=1e-5)


@pytest.mark.parametrize(
    ("clip", "recompute"), [(None, False), (0.5, True)], ids=["unclipped", "clipped"]
)
def test_ddim_with_full_noise_is_ddpm(clip, recompute):
    schedule = linear()
    times, x, keys = trailing_times(schedule, 10), noise((3, 8)), keys_of("eta", 3)
    run = (gaussian(schedule), schedule, times, x, keys)
    ddim = smp.sample_ddim(*run, eta=1.0, clip=clip, recompute=recompute)
    np.testing.assert_allclose(ddim, smp.sample_ddpm(*run, clip=clip), atol=2e-5)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_euler_is_ddim_in_other_coordinates(clip):
    schedule = cosine()
    times, x, keys = trailing_times(schedule, 10), noise((3, 8)), keys_of("euler", 3)
    run = (gaussian(schedule), schedule, times, x, keys)
    ddim = smp.sample_ddim(*run, clip=clip, recompute=True)
    np.testing.assert_allclose(smp.sample_euler(*run, clip=clip), ddim, atol=1e-3)


def test_churn_keeps_the_marginals():
    schedule = linear()
    times, keys = karras_times(schedule, 120), keys_of("churn", 4)
    x = smp.sample_prior(schedule, keys, (2000,))
    run = (gaussian(schedule), schedule, times, x)
    churned = smp.sample_heun(*run, keys, clip=None, churn=20.0, churn_min=0.05, churn_max=50.0)
    assert abs(float(churned.mean()) - MEAN) < 0.02
    assert abs(float(churned.std()) - STD) < 0.02
    still = smp.sample_heun(*run, keys, clip=None)
    assert float(jnp.abs(churned - still).mean()) > 0.1
    # Outside its window of r there is none.
    none = smp.sample_heun(*run, keys, clip=None, churn=20.0, churn_min=500.0, churn_max=inf)
    np.testing.assert_allclose(none, still, atol=1e-4)


def test_prior_is_scaled_to_the_schedule_and_addressed_by_key():
    keys = keys_of("prior", 4)
    x = smp.sample_prior(linear(), keys, (3, 2))
    np.testing.assert_array_equal(smp.sample_prior(linear(), keys[2:3], (3, 2)), x[2:3])
    np.testing.assert_allclose(smp.sample_prior(karras(), keys, (3, 2)), 80 * x, rtol=1e-6)


# What all of them share


SCHEDULE = linear()
TIMES = trailing_times(SCHEDULE, 6)


def drawn(sample, x, keys, times=TIMES, **options):
    return sample(gaussian(SCHEDULE), SCHEDULE, times, x, keys, **options)


@cache
def compiled(name):
    """One program for the tests that follow, at one shape; tracing it again is an error."""
    chex.clear_trace_counter()  # chex counts by name, and every sampler's `run` has the same

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, keys, times):
        return drawn(EVERY[name], x, keys, times)

    return run


X = noise((4, 5, 3))


@every_sampler
def test_example_does_not_depend_on_its_batch(name):
    run, keys = compiled(name), keys_of("batch", 4)
    whole = run(X, keys, TIMES)
    other = run(X.at[1:].add(1.0), keys.at[1:].set(keys_of("other", 3)), TIMES)
    np.testing.assert_array_equal(whole[0], other[0])
    assert (np.asarray(whole[1:]) != other[1:]).any(axis=(1, 2)).all()


@every_sampler
def test_noise_comes_from_the_keys_alone(name):
    run = compiled(name)
    first, again, other = (run(X, keys_of(seed, 4), TIMES) for seed in "aab")
    np.testing.assert_array_equal(first, again)
    assert (float(jnp.abs(other - first).max()) > 0.01) == (name in STOCHASTIC)


@every_sampler
def test_times_are_data_and_do_not_recompile(name):
    run, keys = compiled(name), keys_of("times", 4)
    trailing, uniform = run(X, keys, TIMES), run(X, keys, uniform_times(SCHEDULE, 6))
    assert float(jnp.abs(uniform - trailing).max()) > 0


@every_sampler
def test_clip_bounds_the_samples(name):
    x = drawn(EVERY[name], X, keys_of("clip", 4), clip=0.2)  # beneath the mean of the data
    assert 0.199 < float(jnp.abs(x).max()) < 0.2 + 1e-5


@every_sampler
def test_trajectory_holds_every_state(name):
    keys = keys_of("trajectory", 4)
    last, xs = drawn(EVERY[name], X, keys, trajectory=True)
    assert xs.shape == (6, 4, 5, 3)
    np.testing.assert_array_equal(xs[-1], last)
    np.testing.assert_allclose(last, compiled(name)(X, keys, TIMES), atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_trajectory_is_that_of_fewer_steps(name):
    keys = keys_of("trajectory", 4)
    _, xs = drawn(EVERY[name], X, keys, trajectory=True)
    np.testing.assert_allclose(drawn(EVERY[name], X, keys, TIMES[:4]), xs[2], atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "heun", "dpmpp_2m"])
def test_samplers_agree_under_vmap(name):
    keys = keys_of("vmap", 4)
    run = jax.vmap(partial(drawn, EVERY[name]))
    x = run(X.reshape(2, 2, 5, 3), keys.reshape(2, 2)).reshape(X.shape)
    np.testing.assert_allclose(x, compiled(name)(X, keys, TIMES), atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "heun", "dpmpp_2m"])
def test_samples_are_the_same_bits_on_one_device_and_on_four(name):
    x, keys = noise((8, 4, 3)), keys_of("devices", 8)
    run = partial(drawn, EVERY[name])
    alone = np.asarray(jax.jit(run)(x, keys))
    sharding = batch_sharding(make_mesh())
    spread = jax.jit(run)(jax.device_put(x, sharding), jax.device_put(keys, sharding))
    np.testing.assert_array_equal(spread, alone)
    mapped = jax.pmap(run)(x.reshape(4, 2, 4, 3), keys.reshape(4, 2))
    np.testing.assert_array_equal(np.asarray(mapped).reshape(alone.shape), alone)


def test_inversion_keeps_its_trajectory_from_data_to_noise():
    schedule, x = linear(), noise((2, 4))
    times, keys = trailing_times(schedule, 6), keys_of("upwards", 2)
    last, xs = smp.invert_ddim(gaussian(schedule), schedule, times, x, keys, trajectory=True)
    assert xs.shape == (6, 2, 4)
    np.testing.assert_array_equal(xs[-1], last)


# One program for any number of steps


def equations(jaxpr):
    inner = (
        sub
        for eqn in jaxpr.eqns
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns"))
        if hasattr(sub, "eqns")
    )
    return len(jaxpr.eqns) + sum(map(equations, inner))


@every_sampler
def test_program_does_not_grow_with_the_steps(name):
    run, keys = partial(drawn, EVERY[name]), keys_of("size", 4)
    few, many = (
        equations(jax.make_jaxpr(run)(X, keys, trailing_times(SCHEDULE, n)).jaxpr)
        for n in (50, 1000)
    )
    assert few == many > 20


def test_compiled_memory_does_not_grow_with_the_steps():
    x, keys, run = noise((2, 1024)), keys_of("memory", 2), jax.jit(partial(drawn, smp.sample_heun))
    few, many = (
        run.lower(x, keys, trailing_times(SCHEDULE, n)).compile().memory_analysis()
        for n in (50, 1000)
    )
    assert many.temp_size_in_bytes - few.temp_size_in_bytes < x.nbytes


@pytest.mark.parametrize(
    ("name", "count"),
    [("ddim", 7), ("heun", 13), ("dpmpp_2m", 7)],
)
def test_evaluations_of_the_network(name, count):
    schedule, seen = linear(), []
    model = gaussian(schedule)

    def counted(xt, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t)
        return model(xt, t)

    times = trailing_times(schedule, 7)
    EVERY[name](counted, schedule, times, noise((2, 4)), keys_of("count", 2))
    jax.effects_barrier()
    assert len(seen) == count and -1 not in seen
    assert set(seen) == set(times[:-1].tolist())


# Bad options


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (partial(smp.sample_ddpm, variance="medium"), "'small', 'large', 'learned'"),
        (partial(smp.sample_ddpm, variance="learned"), "twice the channels"),
        (partial(smp.sample_ddim, eta=1.5), r"eta=1.5 must lie in \[0, 1\]"),
        (partial(smp.sample_heun, churn=-1.0), "churn=-1.0 must not be negative"),
        *(
            (partial(sample, clip=0.0), "clip=0.0 must be positive, or None")
            for sample in EVERY.values()
        ),
    ],
)
def test_impossible_options_are_refused(sample, words):
    with pytest.raises(ValueError, match=words):
        drawn(sample, noise((2, 4)), keys_of("bad", 2))


def test_wrong_shapes_fail_when_traced():
    with pytest.raises(AssertionError):
        drawn(smp.sample_ddim, noise((2, 4)), keys_of("shapes", 3))
    with pytest.raises(AssertionError):
        drawn(smp.sample_ddim, jnp.zeros((2, 4), jnp.int32), keys_of("shapes", 2))
