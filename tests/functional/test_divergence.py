import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.functional.divergence import (
    capacity_penalty,
    free_bits,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_terms,
    reparameterise,
)


@pytest.mark.parametrize(("mu", "logvar"), [(0.0, 0.0), (1.5, 0.0), (-0.3, 1.2), (2.0, -4.0)])
def test_gaussian_kl_is_the_integral(mu, logvar):
    std = np.exp(logvar / 2)
    z = np.linspace(mu - 12 * std, mu + 12 * std, 200_001)
    log_q = -0.5 * ((z - mu) / std) ** 2 - np.log(std)
    integrand = np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + 0.5 * z**2)
    expected = np.sum(integrand) * (z[1] - z[0])
    kl = gaussian_kl(jnp.full((1, 1), mu), jnp.full((1, 1), logvar))
    np.testing.assert_allclose(kl, [expected], atol=1e-5)


def test_gaussian_kl_sums_over_dimensions_and_keeps_what_is_small():
    mu = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    assert gaussian_kl(jnp.asarray(mu), jnp.zeros((2, 2))).tolist() == [2.5, 0.0]
    # ½ (e^l − 1 − l) ≈ l²/4, which 1 + l in float32 would lose.
    tiny = gaussian_kl(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3))
    np.testing.assert_allclose(tiny, [0.25e-6], rtol=0.05)


def test_gaussian_kl_pulls_towards_the_prior():
    slope = jax.grad(lambda mu, logvar: gaussian_kl(mu, logvar).sum(), argnums=(0, 1))
    mu, logvar = slope(jnp.array([[0.7]]), jnp.array([[0.4]]))
    np.testing.assert_allclose(mu, [[0.7]], rtol=1e-6)
    np.testing.assert_allclose(logvar, [[0.5 * np.expm1(0.4)]], rtol=1e-5)


def test_the_terms_are_those_of_the_sum():
    mu, logvar = jnp.array([[1.0, 0.0], [2.0, 1.0]]), jnp.array([[0.0, 0.0], [1.0, -1.0]])
    terms = gaussian_kl_terms(mu, logvar)
    np.testing.assert_allclose(terms[0], [0.5, 0.0])
    np.testing.assert_allclose(terms.sum(1), gaussian_kl(mu, logvar), rtol=1e-6)


@pytest.mark.parametrize(("m", "log_s2"), [(0.0, 0.0), (0.5, -1.0), (-2.0, 1.5)])
def test_the_divergence_from_another_gaussian_is_the_integral(m, log_s2):
    mu, std, s = 0.7, 0.6, np.exp(log_s2 / 2)
    z = np.linspace(mu - 10 * std, mu + 10 * std, 100_001)
    q, p = stats.norm(mu, std), stats.norm(m, s)
    expected = np.sum(q.pdf(z) * (q.logpdf(z) - p.logpdf(z))) * (z[1] - z[0])
    posterior = jnp.full((1, 1), mu), jnp.full((1, 1), 2 * np.log(std))
    kl = gaussian_kl_between(*posterior, jnp.full((1,), m), jnp.full((1,), log_s2))
    np.testing.assert_allclose(kl, [expected], rtol=1e-4)
    if m == log_s2 == 0:
        np.testing.assert_allclose(kl, gaussian_kl(*posterior), rtol=1e-6)


def test_the_divergence_from_itself_is_0_and_sums_over_dimensions():
    mu, logvar = jnp.array([[3.0, -2.0]]), jnp.array([[0.3, -5.0]])
    assert gaussian_kl_between(mu, logvar, mu, logvar).tolist() == [0.0]
    np.testing.assert_allclose(
        gaussian_kl_between(mu, logvar, mu + 1, logvar),
        [(np.exp(-0.3) + np.exp(5.0)) / 2],
        rtol=1e-5,
    )


def test_below_the_free_bits_nothing_pulls():
    kl = jnp.array([[0.2, 3.0], [0.9, 0.1]])
    value, slope = jax.vjp(lambda kl: free_bits(kl, 0.5), kl)
    np.testing.assert_allclose(value, [3.5, 1.4], rtol=1e-6)
    assert slope(jnp.ones(2))[0].tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_a_capacity_pulls_from_either_side():
    kl = jnp.array([3.0, 10.0])
    assert capacity_penalty(kl, 5.0, 2.0).tolist() == [4.0, 10.0]
    slope = jax.grad(lambda kl: capacity_penalty(kl, 5.0, 2.0).sum())(kl)
    assert slope.tolist() == [-2.0, 2.0]


def test_draws_have_the_mean_and_the_deviation_of_their_gaussian():
    n = 20_000
    keys = example_keys(stream(0, "test"), jnp.arange(n))
    mu, logvar = jnp.full((n, 1), 0.5), jnp.full((n, 1), 2 * np.log(0.2))
    run = jax.jit(lambda temperature: reparameterise(mu, logvar, keys, temperature))
    for temperature in (1.0, 0.5):
        z = np.asarray(run(temperature))
        assert abs(z.mean() - 0.5) < 4 * 0.2 / np.sqrt(n)
        assert abs(z.std() - 0.2 * temperature) < 4 * 0.2 / np.sqrt(2 * n)
    assert (run(0.0) == mu).all()


def test_gradients_reach_both_parameters_of_a_draw():
    keys = example_keys(stream(0, "test"), jnp.arange(1))
    mu, logvar = jnp.array([[0.3]]), jnp.array([[-1.0]])
    z = reparameterise(mu, logvar, keys)
    total = lambda mu, logvar: reparameterise(mu, logvar, keys).sum()
    of_mu, of_logvar = jax.grad(total, (0, 1))(mu, logvar)
    np.testing.assert_allclose(of_mu, [[1.0]])
    np.testing.assert_allclose(of_logvar, (z - mu) / 2, rtol=1e-6)  # σ' = σ/2 in log σ²


@pytest.mark.parametrize("divergence", [gaussian_kl, gaussian_kl_terms])
def test_shapes_must_agree(divergence):
    with pytest.raises(AssertionError):
        divergence(jnp.zeros((2, 3)), jnp.zeros((3,)))
