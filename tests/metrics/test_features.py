import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.metrics.features import as_features
from aigc_jax.metrics.frechet import fit
from aigc_jax.metrics.kernel import kernel_distance, unbiased_mmd
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.precision_recall import density_coverage, precision_recall

GOOD = np.random.default_rng(0).normal(size=(12, 3))


def pairs(metric):
    return lambda bad: metric(GOOD, bad)


TAKERS = {
    "fit": (fit, "features"),
    "unbiased_mmd": (pairs(unbiased_mmd), "y"),
    "kernel_distance": (pairs(lambda a, b: kernel_distance(a, b, size=4)), "fake"),
    "precision_recall": (pairs(precision_recall), "fake"),
    "density_coverage": (pairs(density_coverage), "fake"),
    "nearest": (pairs(nearest), "references"),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_row(taker, value):
    take, name = TAKERS[taker]
    bad = GOOD.copy()
    bad[[4, 9], 1] = value
    with pytest.raises(ValueError, match=f"^{name} holds NaN or infinity in 2 of its 12 rows.*4$"):
        take(bad)


@pytest.mark.parametrize("taker", [name for name in TAKERS if name != "fit"])
def test_sets_of_unlike_width_are_refused(taker):
    take, name = TAKERS[taker]
    with pytest.raises(ValueError, match=f"^{name} has 2 features a row; it is compared with 3$"):
        take(GOOD[:, :2])


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("shape", [(0, 3), (12,)])
def test_what_is_not_a_set_of_features_is_refused(taker, shape):
    take, name = TAKERS[taker]
    with pytest.raises(
        ValueError, match=rf"^{name} has shape \({shape[0]},.*features are \(n, d\)"
    ):
        take(np.zeros(shape))


def test_jax_arrays_and_half_precision_are_taken():
    x = jnp.arange(6.0, dtype=jnp.bfloat16).reshape(3, 2)
    assert as_features(x, "x").shape == (3, 2)
    np.testing.assert_allclose(fit(x).mean, [2.0, 3.0])
    np.testing.assert_allclose(nearest(x, x, k=2).distance[:, 1], np.sqrt(8))
