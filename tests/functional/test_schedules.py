import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.functional import schedules as sch

MAKERS = [sch.linear, sch.scaled_linear, sch.cosine, sch.sigmoid, sch.karras]
every_schedule = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def alpha_bar(betas):
    return np.cumprod(1 - np.asarray(betas, np.float64))


# Published constants


def test_published_constants():
    np.testing.assert_allclose(sch.linear().alpha(999) ** 2, 4.0358e-5, rtol=1e-4)
    np.testing.assert_allclose(sch.scaled_linear().alpha(999) ** 2, 0.0046601, rtol=1e-4)
    np.testing.assert_allclose(sch.scaled_linear().ratio(999), 14.6146, rtol=1e-5)
    np.testing.assert_allclose(sch.cosine().alpha(499) ** 2, 0.49384, atol=1e-5)


def test_karras_sigmas_of_18_steps_are_the_published_ones():
    falling = sch.karras(18).ratio_table[::-1]
    np.testing.assert_allclose(falling[[0, 1, -2, -1]], [80, 57.586, 0.007528, 0.002], rtol=1e-4)
    fine = sch.karras()
    times = sch.karras_times(fine, 18)
    np.testing.assert_allclose(fine.ratio(times), np.append(falling, 0), rtol=1e-4)


# The curve


@pytest.mark.parametrize("steps", [10, 1000])
def test_signal_is_the_product_of_one_minus_beta(steps):
    betas = np.linspace(1e-4, 0.02, steps)
    schedule, t = sch.linear(steps), np.arange(steps)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, alpha_bar(betas), rtol=2e-6)
    # Also 1 - ᾱ, which float32 could not recover from ᾱ.
    np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - alpha_bar(betas), rtol=2e-6)


def test_cosine_and_sigmoid_follow_their_curves_before_beta_is_clipped():
    u = np.arange(1, 1000) / 1000
    cosine = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(sch.cosine().alpha(np.arange(999)) ** 2, cosine, rtol=1e-5)

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    gamma = (logistic(3 / 0.7) - logistic((6 * u - 3) / 0.7)) / (
        logistic(3 / 0.7) - logistic(-3 / 0.7)
    )
    np.testing.assert_allclose(
        sch.sigmoid(tau=0.7).alpha(np.arange(999)) ** 2, gamma, rtol=1e-5, atol=1e-9
    )


def test_last_beta_of_cosine_is_clipped_and_finite():
    schedule = sch.cosine(max_beta=0.99)
    np.testing.assert_allclose(schedule.alpha(999) ** 2 / schedule.alpha(998) ** 2, 0.01, rtol=1e-4)
    assert np.isfinite(sch.cosine().ratio_table).all()


@every_schedule
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_curves_are_monotone_and_keep_their_kind(make, steps):
    schedule = make(steps)
    assert schedule.steps == steps and schedule.ratio_table.dtype == np.float32
    t = np.linspace(-1, steps - 1, 4 * steps + 1)
    r, alpha, sigma = (np.asarray(f(t)) for f in (schedule.ratio, schedule.alpha, schedule.sigma))
    assert (np.diff(r) > 0).all() and (np.diff(schedule.logsnr(t)) < 0).all()
    assert (np.diff(sigma) >= 0).all() and (np.diff(alpha) <= 0).all()
    np.testing.assert_allclose(sigma, r * alpha, rtol=1e-6)
    if schedule.preserving:
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    else:
        assert (alpha == 1).all()


@every_schedule
def test_time_is_exact_at_steps_linear_between_and_clean_at_minus_one(make):
    schedule, t = make(), np.arange(1000)
    np.testing.assert_array_equal(schedule.ratio(t), schedule.ratio_table)
    table = schedule.ratio_table
    np.testing.assert_allclose(schedule.ratio(10.25), 0.75 * table[10] + 0.25 * table[11], 1e-6)
    np.testing.assert_allclose(schedule.ratio(-0.5), table[0] / 2, 1e-6)
    assert (float(schedule.ratio(-1)), float(schedule.alpha(-1)), float(schedule.sigma(-1))) == (
        0.0,
        1.0,
        0.0,
    )
    assert float(schedule.logsnr(-1)) == np.inf and float(schedule.time(np.inf)) == -1


@every_schedule
def test_time_inverts_ratio_and_logsnr(make):
    schedule, t = make(), np.linspace(-1, 999, 3001).astype(np.float32)
    np.testing.assert_allclose(schedule.time_of_ratio(schedule.ratio(t)), t, atol=2e-3)
    np.testing.assert_allclose(schedule.time(schedule.logsnr(t)), t, atol=2e-2)
    r = np.geomspace(schedule.ratio_table[0], schedule.ratio_table[-1], 301, dtype=np.float32)
    # A float32 time near T is spaced by 6e-5, and cosine rises 30-fold in its last step.
    np.testing.assert_allclose(schedule.ratio(schedule.time_of_ratio(r)), r, rtol=5e-3)
    np.testing.assert_array_equal(schedule.time_of_ratio(np.array([0.0, 1e9])), [-1, 999])


def test_time_outside_the_schedule_is_clipped():
    schedule = sch.linear(10)
    np.testing.assert_array_equal(
        schedule.ratio(np.array([-5.0, 50.0])), schedule.ratio(np.array([-1, 9]))
    )


def test_curves_trace_under_jit_and_vmap():
    schedule, t = sch.cosine(), jnp.array([-1.0, 3.5, 999.0])
    expected = schedule.sigma(t)
    np.testing.assert_allclose(jax.jit(schedule.sigma)(t), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(schedule.sigma)(t), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("betas", "words"), [([0.1, 1.0], "betas"), ([0.0, 0.5], "betas"), ([-0.1], "betas")]
)
def test_bad_betas_are_refused(betas, words):
    with pytest.raises(ValueError, match=words):
        sch.from_betas(betas)


@pytest.mark.parametrize("ratios", [[], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [1.0, np.inf]])
def test_bad_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match="ratios"):
        sch.from_ratios(ratios)


def test_prior_is_unit_noise_or_the_largest_sigma():
    assert sch.linear().prior_std == 1.0
    assert sch.karras(sigma_max=40.0).prior_std == 40.0


# Times to sample at


def test_published_timesteps():
    schedule = sch.linear()
    assert sch.uniform_times(schedule, 5, offset=1).tolist() == [801, 601, 401, 201, 1, -1]
    assert sch.uniform_times(schedule, 10).tolist() == [*range(900, -1, -100), -1]
    assert sch.trailing_times(schedule, 5).tolist() == [999, 799, 599, 399, 199, -1]
    # As DDIM's own: int(linspace(0, √(0.8·T), n)²), here for n = 10.
    published = [int(root**2) for root in np.linspace(0, np.sqrt(800), 10)]
    assert sch.quadratic_times(schedule, 10)[-2::-1].tolist() == published
    assert sch.linspace_times(sch.linear(1100), 10)[[0, 1, -2, -1]].tolist() == pytest.approx(
        [1099, 1099 * 8 / 9, 0, -1]
    )


def test_all_steps_is_every_integer():
    schedule, every = sch.linear(50), [*range(49, -2, -1)]
    for times in (sch.uniform_times, sch.trailing_times, sch.linspace_times):
        assert times(schedule, 50).tolist() == every


@pytest.mark.parametrize("schedule", [sch.linear(), sch.karras()], ids=["linear", "karras"])
def test_karras_times_space_the_seventh_root_evenly(schedule):
    times = sch.karras_times(schedule, 30)
    roots = np.asarray(schedule.ratio(times[:-1])) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.mean(np.diff(roots)), rtol=2e-3)
    ends = sch.karras_times(schedule, 30, low=0.1, high=5.0)[[0, -2]]
    np.testing.assert_allclose(schedule.ratio(ends), [5.0, 0.1], rtol=1e-5)


SPACINGS = [
    sch.uniform_times,
    sch.trailing_times,
    sch.linspace_times,
    sch.quadratic_times,
    sch.karras_times,
]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.integers(2, 1200), times=st.sampled_from(SPACINGS))
def test_times_fall_from_the_schedule_to_minus_one(data, steps, times):
    most = int(0.8 * steps) if times is sch.quadratic_times else steps
    n = data.draw(st.integers(1, most))
    result = times(sch.linear(steps), n)
    assert result.shape == (n + 1,) and result.dtype == np.float32
    assert (np.diff(result) < 0).all()
    assert result[-1] == -1 and result[0] <= steps - 1 and result[-2] >= 0


@pytest.mark.parametrize("times", SPACINGS, ids=lambda times: times.__name__)
def test_no_steps_are_refused(times):
    with pytest.raises(ValueError, match="n=0"):
        times(sch.linear(), 0)


def test_impossible_times_are_refused():
    schedule = sch.linear(100)
    for times, most in (
        (sch.uniform_times, 100),
        (sch.trailing_times, 100),
        (sch.quadratic_times, 80),
    ):
        with pytest.raises(ValueError, match=f"n={most + 1} must be at least 1 and at most {most}"):
            times(schedule, most + 1)
    with pytest.raises(ValueError, match=r"offset=10 must lie in \[0, 9\]"):
        sch.uniform_times(schedule, 10, offset=10)
    with pytest.raises(ValueError, match="high=1000"):
        sch.karras_times(schedule, 10, high=1000.0)
    with pytest.raises(ValueError, match="low=2"):
        sch.karras_times(schedule, 10, low=2.0, high=1.0)
