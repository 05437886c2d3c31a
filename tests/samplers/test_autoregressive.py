"""Sampling token by token, of chains whose distributions are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.samplers.autoregressive import sample_tokens

# p(next | last) of a chain over three tokens; 2 follows 2 alone.
CHAIN = jnp.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])


def follow(carry, token):
    """Read a token, counting those read."""
    return carry + 1, jnp.log(CHAIN[token])


def draw(n, length, **options):
    keys = jax.random.split(jax.random.key(0), n)
    start = jnp.zeros(n, jnp.int32)
    return np.asarray(
        sample_tokens(follow, jnp.zeros((), int), start, keys, length=length, **options)
    )


def test_tokens_have_the_distribution_of_the_chain():
    tokens = draw(4000, 3)
    assert tokens.shape == (4000, 3) and tokens.dtype == np.int32
    expected = np.array([1.0, 0.0, 0.0])
    for position in range(3):
        expected = expected @ np.asarray(CHAIN)
        seen = np.bincount(tokens[:, position], minlength=3) / 4000
        np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / 4000**0.5)


def test_a_temperature_raises_probabilities_to_a_power():
    powered = np.asarray(CHAIN[0]) ** 2
    seen = np.bincount(draw(4000, 1, temperature=0.5)[:, 0], minlength=3) / 4000
    np.testing.assert_allclose(seen, powered / powered.sum(), atol=4 * 0.5 / 4000**0.5)


def test_without_temperature_the_likeliest_is_taken():
    assert draw(2, 4, temperature=0.0).tolist() == [[1, 0, 1, 0]] * 2


def test_an_example_is_its_keys_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    some = lambda keys: sample_tokens(
        follow, jnp.zeros((), int), jnp.zeros(len(keys), jnp.int32), keys, length=5
    )
    np.testing.assert_array_equal(some(keys)[4:], some(keys[4:]))


def test_what_follows_the_stop_is_the_stop():
    # 1 may follow 0, and anything 1, but once it is drawn nothing else is.
    tokens = draw(200, 6, stop=1)
    stopped = np.maximum.accumulate(tokens == 1, axis=1)
    assert stopped.any() and (tokens[stopped] == 1).all()
    # A sequence may start from the token that ends it.
    keys = jax.random.split(jax.random.key(0), 50)
    begun = sample_tokens(follow, 0, jnp.ones(50, jnp.int32), keys, length=3, stop=1)
    assert (np.asarray(begun[:, 0]) != 1).any()


def test_several_tokens_a_position():
    step = lambda carry, tokens: (
        tokens,
        jax.nn.one_hot((tokens + 1) % 5, 5),
    )  # (b, 2) -> (b, 2, 5)
    start = jnp.array([[0, 1], [2, 3], [4, 0]])
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = sample_tokens(step, start, start, keys, length=4, temperature=0.0)
    np.testing.assert_array_equal(tokens, (start[:, None] + np.arange(1, 5)[:, None]) % 5)
    # Drawn independently: equal logits give unequal tokens.
    flat = lambda carry, tokens: (carry, jnp.zeros((*tokens.shape, 5)))
    drawn = sample_tokens(flat, None, start, keys, length=30)
    assert (drawn[..., 0] != drawn[..., 1]).mean() > 0.6


@pytest.mark.parametrize(
    ("options", "named"),
    [({"length": 0}, "length"), ({"length": 2, "temperature": -1.0}, "temperature")],
)
def test_numbers_out_of_range_are_refused(options, named):
    with pytest.raises(ValueError, match=f"^{named}="):
        draw(1, **options)
