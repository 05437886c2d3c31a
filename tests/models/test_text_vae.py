import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.models.text_vae import TextDecoder, TextEncoder

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(1, 9, (3, 6)), jnp.int32)
MASK = jnp.asarray(np.arange(6) < np.array([[6], [3], [1]]), jnp.float32)
Z = jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32)
DECODER = TextDecoder(9, features=8, embed=4, dropout=0.5)
KEYS = example_keys(stream(0, "test"), jnp.arange(3))


@functools.cache
def encoder():
    network = TextEncoder(9, latent=4, features=8, embed=4)
    variables = jax.jit(network.init)(stream(0, "init"), TOKENS, MASK)
    return jax.jit(functools.partial(network.apply, variables))


@functools.cache
def decoder(latent=4):
    """The variables, with biases that are not 0, and the compiled network."""
    variables = jax.jit(DECODER.init)(stream(0, "init"), Z[:, :latent], TOKENS)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    moved = [x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in leaves]
    return tree.unflatten(moved), jax.jit(DECODER.apply)


def test_the_encoder_does_not_see_what_is_not_real():
    mu, logvar = encoder()(TOKENS, MASK)
    assert mu.shape == logvar.shape == (3, 4) and mu.dtype == jnp.float32
    other = jnp.where(MASK > 0, TOKENS, (TOKENS + 3) % 9)
    assert (other != TOKENS).any()
    np.testing.assert_array_equal(encoder()(other, MASK), (mu, logvar))
    shorter = encoder()(TOKENS[1:, :3], MASK[1:, :3])
    np.testing.assert_allclose(shorter, (mu[1:], logvar[1:]), atol=1e-6)
    assert (encoder()((TOKENS + 1) % 9, MASK)[0] != mu).any(1).all()


@pytest.mark.parametrize("latent", [4, 0])
def test_steps_are_the_teacher_forced_logits_one_by_one(latent):
    variables, apply = decoder(latent)
    z = Z[:, :latent]
    expected = apply(variables, z, TOKENS)
    assert expected.shape == (3, 6, 9) and expected.dtype == jnp.float32
    step = jax.jit(functools.partial(DECODER.apply, variables, method="step"))
    carry = DECODER.apply(variables, z, method="begin")
    for t in range(6):
        carry, logits = step(carry, z, TOKENS[:, t])
        np.testing.assert_allclose(logits, expected[:, t], atol=1e-5)


def test_no_token_is_predicted_from_a_later_one():
    variables, apply = decoder()
    changed = apply(variables, Z, TOKENS.at[:, 3].set(0)) != apply(variables, Z, TOKENS)
    assert not changed[:, :3].any() and changed[:, 3:].any(-1).all()


def test_the_latent_sets_the_state_and_stands_beside_each_token():
    variables, apply = decoder()
    params = variables["params"]
    blind = {**params, "initial": jax.tree.map(jnp.zeros_like, params["initial"])}
    cell = jax.tree.map(jnp.array, params["cell"])
    for gate in "ifgo":
        cell[f"i{gate}"]["kernel"] = cell[f"i{gate}"]["kernel"].at[4:].set(0)  # after the embedding
    for one, reads in (({**params, "cell": cell}, True), (blind, True)):
        moved = apply({"params": one}, Z + 1, TOKENS) != apply({"params": one}, Z, TOKENS)
        assert moved.any(-1).all() == reads
    neither = {"params": {**blind, "cell": cell}}
    np.testing.assert_array_equal(apply(neither, Z + 1, TOKENS), apply(neither, Z, TOKENS))


def test_dropout_is_an_examples_own():
    variables, apply = decoder()
    dropped = apply(variables, Z, TOKENS, KEYS)
    assert (dropped != apply(variables, Z, TOKENS)).any()
    alone = apply(variables, Z[1:], TOKENS[1:], KEYS[1:])
    np.testing.assert_allclose(alone, dropped[1:], atol=1e-6)
