import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.functional.divergence import bernoulli_nll, gaussian_kl


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


def test_bernoulli_nll_is_the_cross_entropy():
    rng = np.random.default_rng(0)
    logits, x = rng.normal(0, 3, (3, 2, 2)), rng.uniform(0, 1, (3, 2, 2))
    p = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2))
    nll = bernoulli_nll(jnp.asarray(logits, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_bernoulli_nll_stays_finite_where_probabilities_do_not():
    logits, x = jnp.array([[200.0, -200.0], [200.0, -200.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(bernoulli_nll(logits, x), [0.0, 400.0])


@pytest.mark.parametrize("divergence", [gaussian_kl, bernoulli_nll])
def test_shapes_must_agree(divergence):
    with pytest.raises(AssertionError):
        divergence(jnp.zeros((2, 3)), jnp.zeros((3,)))
