import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.functional.diffusion import predict
from aigc_jax.functional.schedules import karras, karras_times
from aigc_jax.samplers.diffusion import sample_heun
from aigc_jax.samplers.guidance import guide


def noise(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def recording(calls):
    def network(xt, t, cond):
        calls.append(xt.shape)
        scale, shift = cond["scale"][:, None, None], cond["shift"][:, None, None]
        return jnp.sin(scale * xt) + shift + t[:, None, None] / 100

    return network


XT, T = noise((3, 4, 2)), jnp.array([10.0, 20.0, 30.0])
COND = {"scale": jnp.array([1.0, 2.0, 3.0]), "shift": jnp.array([0.5, -0.5, 0.1])}
NULL = {"scale": jnp.full(3, 0.3), "shift": jnp.zeros(3)}


def outputs():
    network = recording([])
    return network(XT, T, COND), network(XT, T, NULL)


def test_scale_one_is_one_conditional_pass():
    calls = []
    guided = guide(recording(calls), COND, NULL, scale=1.0)(XT, T)
    assert calls == [(3, 4, 2)]
    np.testing.assert_array_equal(guided, outputs()[0])


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, -1.0])
def test_guidance_extrapolates_in_one_doubled_batch(scale):
    calls, (cond, null) = [], outputs()
    guided = guide(recording(calls), COND, NULL, scale)(XT, T)
    assert calls == [(6, 4, 2)]
    np.testing.assert_allclose(guided, null + scale * (cond - null), atol=1e-5)


def test_rescale_restores_the_conditional_contrast():
    cond, null = outputs()
    full = guide(recording([]), COND, NULL, 4.0, rescale=1.0)(XT, T)
    np.testing.assert_allclose(full.std((1, 2)), cond.std((1, 2)), rtol=1e-5)
    plain = null + 4.0 * (cond - null)
    assert (np.abs(plain.std((1, 2)) / cond.std((1, 2)) - 1) > 0.1).all()
    part = guide(recording([]), COND, NULL, 4.0, rescale=0.7)(XT, T)
    np.testing.assert_allclose(part, 0.7 * full + 0.3 * plain, atol=1e-5)


def test_learned_variance_is_the_conditional_one():
    def network(xt, t, cond):
        shift = cond[:, None, None] * jnp.ones_like(xt)
        return jnp.concatenate([xt + shift, 10 * shift], -1)

    cond, null = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)
    guided = guide(network, cond, null, 3.0)(XT, T)
    np.testing.assert_allclose(guided[..., :2], XT + 3 * cond[:, None, None], rtol=1e-5)
    np.testing.assert_allclose(guided[..., 2:], 10 * cond[:, None, None] * jnp.ones_like(XT))


def test_impossible_rescale_is_refused():
    with pytest.raises(ValueError, match=r"rescale=1.5 must lie in \[0, 1\]"):
        guide(recording([]), COND, NULL, 2.0, rescale=1.5)
    with pytest.raises(AssertionError):
        guide(recording([]), COND, {"scale": jnp.zeros(3)}, 2.0)


def test_guided_gaussians_are_gaussians_of_extrapolated_means():
    """Guidance by w from N(0, d²) through N(m, d²) is exactly the model of N(w·m, d²)."""
    schedule, std, scale = karras(), 0.5, 2.5

    def network(xt, t, mean):
        r, mean = schedule.ratio(t)[:, None], mean[:, None]
        return r * (xt - mean) / (std**2 + r**2)

    means = jnp.array([0.2, -0.4])
    guided = guide(network, means, jnp.zeros(2), scale)

    def denoise(xt, t):
        return predict("eps", guided(xt, t), xt, schedule.alpha(t), schedule.sigma(t))

    start = schedule.prior_std * noise((2, 8))
    keys = jax.random.split(stream(0, "guided"), 2)
    x = sample_heun(denoise, schedule, karras_times(schedule, 60), start, keys, clip=None)
    mean = scale * means[:, None]
    expected = mean + (start - mean) * std / jnp.sqrt(std**2 + schedule.prior_std**2)
    np.testing.assert_allclose(x, expected, atol=0.01)
