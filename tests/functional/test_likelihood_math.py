import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.core.keys import example_keys, fold, normal, stream
from aigc_jax.functional.likelihood import (
    BERNOULLI,
    CATEGORICAL,
    DISCRETISED_LOGISTIC,
    bernoulli_nll,
    categorical_nll,
    discretised_logistic_nll,
    gaussian,
    gaussian_nll,
    importance_weighted_nll,
    nats_to_bits_per_dim,
)

LEVELS = np.linspace(-1, 1, 256)
LIKELIHOODS = {
    "bernoulli": BERNOULLI,
    "fixed gaussian": gaussian(0.1),
    "gaussian": gaussian(),
    "logistic": DISCRETISED_LOGISTIC,
    "categorical": CATEGORICAL,
}


def draws(*shape, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def test_bernoulli_nll_is_scipys():
    logits, x = draws(3, 2, 2, scale=3), np.random.default_rng(1).integers(0, 2, (3, 2, 2))
    expected = -stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits.astype(float)))).sum((1, 2))
    np.testing.assert_allclose(bernoulli_nll(jnp.asarray(logits), jnp.asarray(x)), expected, 1e-5)


def test_bernoulli_nll_of_grey_levels_is_the_cross_entropy():
    logits, x = draws(3, 2, 2, scale=3), np.random.default_rng(1).uniform(0, 1, (3, 2, 2))
    p = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum((1, 2))
    nll = bernoulli_nll(jnp.asarray(logits), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_bernoulli_nll_stays_finite_where_probabilities_do_not():
    logits, x = jnp.array([[200.0, -200.0], [200.0, -200.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(bernoulli_nll(logits, x), [0.0, 400.0])


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), ()])
def test_gaussian_nll_is_scipys(shape):
    mean, logvar, x = draws(3, 4), draws(*shape, seed=1), draws(3, 4, scale=2, seed=2)
    expected = -stats.norm.logpdf(x, mean, np.exp(logvar / 2)).sum(1)
    nll = gaussian_nll(jnp.asarray(mean), jnp.asarray(logvar), jnp.asarray(x))
    np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_discretised_logistic_nll_is_scipys_difference():
    """Of every level, under locations within and without, and scales from narrow to wide."""
    mean, log_scale = np.meshgrid([-1.5, -0.2, 0.3, 1.0], [-4.0, -1.0, 2.0])
    mean, log_scale = mean.reshape(-1, 1), log_scale.reshape(-1, 1)
    law = stats.logistic(mean, np.exp(log_scale))
    edges = LEVELS + 1 / 255
    mass = np.diff(law.cdf(np.r_[-np.inf, edges[:-1], np.inf]))  # (12, 256)
    survival = -np.diff(law.sf(np.r_[-np.inf, edges[:-1], np.inf]))
    expected = -np.log(np.where(mean > LEVELS, mass, survival))  # either is exact in one tail
    shape = (12, 256)
    arguments = [np.broadcast_to(x, shape).reshape(-1, 1) for x in (mean, log_scale, LEVELS)]
    nll = discretised_logistic_nll(*(jnp.asarray(x, jnp.float32) for x in arguments))
    np.testing.assert_allclose(nll.reshape(shape), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -3.0), (5.0, 0.0), (-40.0, 1.0), (0.0, 9.0)])
def test_the_masses_of_the_discretised_logistic_sum_to_1(mean, log_scale):
    same = lambda value: jnp.full((256, 1), value)
    x = jnp.asarray(LEVELS, jnp.float32)[:, None]
    nll = discretised_logistic_nll(same(mean), same(log_scale), x)
    np.testing.assert_allclose(np.exp(-np.asarray(nll, float)).sum(), 1, rtol=1e-4)


def test_categorical_nll_is_scipys_and_counts_what_the_mask_does():
    logits, tokens = draws(2, 3, 5, scale=3), np.array([[0, 4, 2], [1, 1, 3]])
    p = np.exp(logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    expected = -stats.multinomial.logpmf(np.eye(5)[tokens], 1, p)  # (2, 3)
    nll = categorical_nll(jnp.asarray(logits), jnp.asarray(tokens))
    np.testing.assert_allclose(nll, expected.sum(1), rtol=1e-5)
    mask = np.array([[1, 0, 1], [0, 0, 0]])
    nll = categorical_nll(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(nll, (mask * expected).sum(1), rtol=1e-5)


def test_bits_per_dim_of_even_odds_are_8():
    x = jnp.asarray(LEVELS.reshape(4, 8, 8, 1), jnp.float32)
    nll = CATEGORICAL.nll(jnp.zeros((4, 8, 8, 256)), x)
    np.testing.assert_allclose(nats_to_bits_per_dim(nll, 64), 8.0, rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_losses_and_gradients_are_finite_at_wild_outputs(name):
    likelihood = LIKELIHOODS[name]
    level = np.array([-1.0, -253 / 255, 1 / 255, 253 / 255, 1.0], np.float32)
    signs = np.where(np.arange(likelihood.outputs) % 2, -1, 1)  # a high mean of a low scale, too
    ones = np.ones_like(signs)
    wild = 1e4 * np.stack([ones, -ones, signs, -signs]).astype(np.float32)
    x = jnp.asarray(np.tile(level, 4).reshape(-1, 1, 1, 1))
    output = jnp.asarray(np.repeat(wild, 5, axis=0)[:, None, None])

    @jax.jit
    def run(output):
        loss, slope = jax.vjp(lambda o: likelihood.nll(o, x), output)
        return loss, slope(jnp.ones(len(x)))[0], likelihood.mean(output)

    loss, slope, mean = run(output)
    assert np.isfinite(loss).all() and np.isfinite(slope).all()
    assert mean.shape == x.shape and (np.abs(mean) <= 1).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_channels_are_read_as_they_are_laid_out(name):
    """An output that is sure of an image has it as its mean, and deems it likelier than another."""
    likelihood, levels = LIKELIHOODS[name], np.random.default_rng(0).integers(0, 256, (2, 3, 3, 2))
    if name == "bernoulli":
        levels = 255 * (levels > 127)
    x = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    if name == "categorical":
        output = jnp.asarray(50.0 * np.eye(256, dtype=np.float32)[levels].reshape(2, 3, 3, -1))
    elif name == "bernoulli":
        output = 20 * x
    else:
        output = jnp.concatenate([x, jnp.full_like(x, -4.0)][: likelihood.outputs], -1)
    np.testing.assert_allclose(likelihood.mean(output), x, atol=1e-3)
    own, other = likelihood.nll(output, x), likelihood.nll(output, x[::-1])
    assert own.shape == (2,) and (own + 10 < other).all()


def test_a_fixed_scale_is_one_that_was_learned():
    x, mean = draws(2, 2, 2, 1, seed=3), jnp.asarray(draws(2, 2, 2, 1))
    learned = jnp.concatenate([mean, jnp.full_like(mean, 2 * np.log(0.3))], -1)
    np.testing.assert_allclose(gaussian(0.3).nll(mean, x), gaussian().nll(learned, x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^scale=0 must be positive, or None$"):
        gaussian(0)


# Importance weights


KEYS = example_keys(stream(0, "test"), jnp.arange(64))


def log_weight(keys):
    """Of x = 1 under z ~ N(0, 1), x ~ N(z, 1), by the proposal q = N(0, 1): p(x) = N(0, 2)."""
    z = normal(keys, ())
    return -0.5 * (1 - z) ** 2 - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("chunk", [5, 50])
def test_the_bound_is_the_logarithm_of_the_average_weight_however_it_is_chunked(chunk):
    weights = jax.jit(jax.vmap(lambda i: log_weight(fold(KEYS, i))))(jnp.arange(12))
    expected = -np.log(np.exp(np.asarray(weights, float)).mean(0))
    bound = jax.jit(lambda keys: importance_weighted_nll(log_weight, keys, k=12, chunk=chunk))
    np.testing.assert_allclose(bound(KEYS), expected, rtol=1e-5)


def test_thousands_of_draws_reach_the_evidence_and_one_is_the_elbo():
    evidence = -stats.norm.logpdf(1, 0, np.sqrt(2))
    bound = jax.jit(lambda k: importance_weighted_nll(log_weight, KEYS, k=k), static_argnums=0)
    np.testing.assert_allclose(bound(1), -log_weight(fold(KEYS, 0)), rtol=1e-6)
    np.testing.assert_allclose(bound(5000), evidence, atol=0.05)
    assert evidence < np.mean(bound(1))


def test_weights_of_any_size_are_summed():
    distant = lambda keys: log_weight(keys) - 1e4
    run = jax.jit(lambda keys: [importance_weighted_nll(f, keys, k=7, chunk=3) for f in both])
    both = distant, log_weight
    far, near = run(KEYS)
    np.testing.assert_allclose(far, near + 1e4, rtol=1e-6)
    for option in ({"k": 0}, {"k": 1, "chunk": 0}):
        with pytest.raises(ValueError, match=r"=0 must be at least 1$"):
            importance_weighted_nll(log_weight, KEYS, **option)


@pytest.mark.parametrize("nll", [bernoulli_nll, lambda *x: gaussian_nll(x[0], 0.0, x[1])])
def test_shapes_must_agree(nll):
    with pytest.raises(AssertionError):
        nll(jnp.zeros((2, 3)), jnp.zeros((3,)))
