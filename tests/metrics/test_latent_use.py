import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.sources import arrays
from aigc_jax.metrics.latent_use import active_units, evaluate_latent_use, mutual_information


def test_units_are_active_where_the_means_vary_by_more_than_a_hundredth():
    x = np.random.default_rng(0).standard_normal((500, 1))
    x /= x.std()
    assert active_units(x * [1.0, 0.101, 0.099, 0.0] + 7.0) == 2
    assert active_units(x * [1.0, 0.101, 0.099, 0.0], threshold=0.0) == 3


def test_posteriors_far_apart_tell_which_example_it_was():
    mu = 100.0 * np.arange(7)[:, None] * np.ones(3)
    assert mutual_information(mu, np.zeros((7, 3))) == pytest.approx(np.log(7), abs=1e-12)
    tiny = mutual_information(mu * 1e-6, np.full((7, 3), -30.0))
    assert tiny == pytest.approx(np.log(7), abs=1e-9)


def test_posteriors_all_alike_tell_nothing():
    mu, logvar = np.full((50, 4), 3.0), np.full((50, 4), -1.0)
    assert mutual_information(mu, logvar) == pytest.approx(0.0, abs=1e-12)


def test_two_overlapping_gaussians_have_the_information_that_quadrature_says():
    z = np.linspace(-12, 14, 200_001)
    density = lambda mean, std: np.exp(-0.5 * ((z - mean) / std) ** 2) / std / np.sqrt(2 * np.pi)
    p, q = density(0.0, 1.0), density(1.5, 0.5)
    mixture = (p + q) / 2
    safe = lambda a: np.where(a > 0, a * np.log(np.where(a > 0, a / mixture, 1)), 0)
    exact = 0.5 * np.trapezoid(safe(p) + safe(q), z)
    mu, logvar = [[0.0], [1.5]], [[0.0], [2 * np.log(0.5)]]
    assert mutual_information(mu, logvar, draws=8000) == pytest.approx(exact, abs=0.02)


def test_a_gaussian_channel_has_its_capacity():
    """Means N(0, 1 − σ²) and noise σ² make an aggregate N(0, 1): I = −d log σ, far below log n."""
    n, d, sigma = 4000, 2, 0.5
    rng = np.random.default_rng(0)
    mu = np.sqrt(1 - sigma**2) * rng.standard_normal((n, d))
    information = mutual_information(mu, np.full((n, d), 2 * np.log(sigma)), seed=1)
    assert information == pytest.approx(-d * np.log(sigma), abs=0.04)
    assert np.log(n) > 5 * -d * np.log(sigma)


def test_chunks_do_not_matter_and_no_estimate_exceeds_log_n():
    rng = np.random.default_rng(1)
    mu, logvar = rng.normal(size=(2, 30, 2))
    whole = mutual_information(3 * mu, logvar)
    assert mutual_information(3 * mu, logvar, chunk=7) == pytest.approx(whole, rel=1e-12)
    assert 1.0 < whole <= np.log(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logvar": np.zeros((3, 2))}, "logvar has 3 rows; mu has 4"),
        ({"logvar": np.zeros((4, 1))}, "logvar has 1 features a row"),
        ({"mu": np.full((4, 2), np.nan)}, "mu holds NaN"),
        ({"draws": 0}, "draws=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(**({"mu": np.zeros((4, 2)), "logvar": np.zeros((4, 2))} | arguments))


def test_a_model_is_measured_on_the_first_test_examples():
    x = 50.0 * np.arange(10, dtype=np.float32)[:, None, None]

    def posterior(params, batch):
        mu = jnp.concatenate([batch["x"], 0 * batch["x"]], 1) * params["scale"]
        return mu, jnp.zeros_like(mu)

    model = Model({"scale": 2.0}, {}, draw=lambda: None)
    data = arrays({"x": x}, {"x": x})
    scores = evaluate_latent_use(model, posterior, data, transform=None, n=6, batch=4)
    kl = 0.5 * np.mean((100.0 * np.arange(6)) ** 2)
    assert scores["active_units/test-6"] == 1
    assert scores["mutual_information/test-6"] == pytest.approx(np.log(6))
    assert scores["marginal_kl/test-6"] == pytest.approx(kl - np.log(6))
