import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aigc_jax.nn.dense import dot_general

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((3, 2, 4), (4, 5)),  # the kernel's gradient turns x around,
        ((3, 2, 8), (8, 5)),  # or the cotangent
        ((3, 2, 4, 2), (4, 2, 5)),  # heads that are joined,
        ((3, 2, 4), (4, 2, 3, 5)),  # and heads that are made
    ],
)
def test_it_is_laxs_and_so_are_its_gradients(x, kernel):
    x, kernel = (RNG.normal(size=shape).astype(np.float32) for shape in (x, kernel))
    n = x.ndim - 2
    dimensions = ((tuple(range(2, 2 + n)), tuple(range(n))), ((), ()))
    expected, back = jax.vjp(lambda *a: lax.dot_general(*a, dimensions), x, kernel)
    g = RNG.normal(size=expected.shape).astype(np.float32)
    found, ours = jax.vjp(lambda *a: dot_general(*a, dimensions), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours(g), back(g), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_other_products_are_laxs_own():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    dimensions = (((2,), (1,)), ((0,), (0,)))
    expected = lax.dot_general(x, kernel, dimensions)
    np.testing.assert_array_equal(dot_general(x, kernel, dimensions), expected)


def test_types_are_kept():
    x, kernel = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    assert dot_general(x, kernel, (((1,), (0,)), ((), ()))).dtype == jnp.bfloat16
