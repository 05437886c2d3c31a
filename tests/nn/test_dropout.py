import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.nn.dropout import drop

KEYS = jax.random.split(jax.random.key(0), 3)


def test_what_is_dropped_is_nought_and_what_is_left_makes_up_for_it():
    x = drop(jnp.ones((3, 2000)), KEYS, 0.25)
    np.testing.assert_allclose(np.unique(x), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose((x == 0).mean(1), 0.25, atol=0.04)
    assert (x[0] != x[1]).any()


def test_nothing_is_dropped_without_keys_or_a_share():
    x = jnp.ones((3, 2))
    assert drop(x, KEYS, 0.0) is x
    assert drop(x, None, 0.5) is x
