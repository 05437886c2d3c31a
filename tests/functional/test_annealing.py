import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.functional.annealing import (
    at_step,
    check_weights,
    cyclical_schedule,
    logistic_schedule,
)


def test_cycles_rise_and_stay_and_start_again():
    schedule = cyclical_schedule(8, ramp=0.5)
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    np.testing.assert_allclose([schedule(step) for step in range(24)], 3 * expected)
    sawtooth = cyclical_schedule(4, ramp=1.0)
    np.testing.assert_allclose([sawtooth(step) for step in range(5)], [0, 0.25, 0.5, 0.75, 0])


def test_the_logistic_is_bowmans():
    schedule = logistic_schedule(0.0025, 2500)
    steps = np.array([0, 1000, 2500, 4000, 10**6])
    expected = 1 / (1 + np.exp(-0.0025 * (steps - 2500.0)))
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", [cyclical_schedule(10), logistic_schedule(0.01, 5)])
def test_a_schedule_takes_the_step_of_a_training(schedule):
    traced = jax.jit(schedule)(jnp.int32(3))
    assert traced.dtype == jnp.float32 and traced.shape == ()
    np.testing.assert_allclose(traced, schedule(3), rtol=1e-6)


def test_a_weight_is_itself_or_what_its_schedule_says():
    assert at_step(0.5, None) == 0.5
    assert at_step(cyclical_schedule(8), jnp.int32(2)) == 0.5
    check_weights(beta=0.0, capacity=None, gamma=cyclical_schedule(8))
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"^gamma={bad} must be at least 0$"):
            check_weights(beta=1.0, gamma=bad)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"^period=0 must be at least 1$"):
        cyclical_schedule(0)
    for ramp in (0, 1.5):
        with pytest.raises(ValueError, match=rf"^ramp={ramp} must lie in \(0, 1\]$"):
            cyclical_schedule(10, ramp)
    with pytest.raises(ValueError, match=r"^rate=0 must be positive$"):
        logistic_schedule(0, 1)
