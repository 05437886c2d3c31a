import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn.positions import alibi, rotate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)


def test_rotation_multiplies_complex_numbers():
    position = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 100, 1000]])
    turned = rotate(X, position)
    z = X[..., :4] + 1j * X[..., 4:]
    angle = position[:, :, None, None] * 10_000.0 ** -(2 * np.arange(4) / 8)
    expected = z * np.exp(1j * angle)
    np.testing.assert_allclose(turned[..., :4], expected.real, atol=1e-3)
    np.testing.assert_allclose(turned[..., 4:], expected.imag, atol=1e-3)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = X[:1, :1], X[1:, :1]
    products = [
        float((rotate(q, jnp.array([[i + 3]])) * rotate(k, jnp.array([[i]]))).sum())
        for i in (0, 5, 40)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)


def test_an_odd_head_is_refused():
    with pytest.raises(ValueError, match="heads of d=7 channels cannot be turned"):
        rotate(X[..., :7], jnp.zeros((1, 5), int))


def test_alibi_has_the_published_slopes():
    one = jnp.array([[1]]), jnp.array([[0]])
    slopes = lambda heads: -np.asarray(alibi(heads, *one))[0, :, 0, 0]
    np.testing.assert_allclose(slopes(8), 2.0 ** -np.arange(1, 9))
    # The authors' own for 12 heads: 8 of 8, then every second of 16.
    np.testing.assert_allclose(slopes(12)[8:], 2.0 ** (-0.5 * np.array([1, 3, 5, 7])), rtol=1e-6)
    np.testing.assert_allclose(slopes(1), 2.0**-8)


def test_alibi_grows_with_distance():
    bias = np.asarray(alibi(2, jnp.array([[3], [4]]), jnp.arange(5)[None]))
    assert bias.shape == (2, 2, 1, 5)
    np.testing.assert_allclose(bias[0, 0, 0], -np.array([3, 2, 1, 0, 1]) / 16)
