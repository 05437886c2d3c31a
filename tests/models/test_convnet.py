import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.convnet import ConvNet

KEY = jax.random.key(0)
NETWORK = ConvNet(3, channels=(4,), features=5, dropout=0.0)
X = np.random.default_rng(0).normal(1.0, 2.0, (8, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(NETWORK.init)(KEY, X)


def train(network, variables, x, key=KEY, axis=None):
    return network.apply(
        variables, x, train=True, axis=axis, mutable=["batch_stats"], rngs={"dropout": key}
    )


def test_each_stage_halves_the_resolution():
    network = ConvNet(10, channels=(8, 16), features=12)
    (logits, features), variables = jax.eval_shape(
        network.init_with_output, KEY, jnp.zeros((2, 28, 28, 1))
    )
    assert logits.shape == (2, 10) and features.shape == (2, 12)
    kernels = [variables["params"][f"Conv_{i}"]["kernel"].shape for i in range(4)]
    assert kernels == [(3, 3, 1, 8), (3, 3, 8, 8), (3, 3, 8, 16), (3, 3, 16, 16)]
    assert variables["params"]["Dense_0"]["kernel"].shape == (7 * 7 * 16, 12)


def test_features_feed_the_logits(variables):
    logits, features = NETWORK.apply(variables, X)
    last = variables["params"]["Dense_1"]
    np.testing.assert_allclose(logits, features @ last["kernel"] + last["bias"], atol=1e-5)
    assert (np.asarray(features) >= 0).all() and (np.asarray(features) > 0).any()


def test_statistics_are_the_batchs_in_training_and_its_average_after(variables):
    _, updated = jax.jit(functools.partial(train, NETWORK))(variables, X)
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (variables, updated))
    kernel = variables["params"]["Conv_0"]["kernel"]
    y = jax.lax.conv_general_dilated(
        X, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    for name, of_batch in [("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))]:
        expected = 0.9 * before[name] + 0.1 * of_batch
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5)
    # In use, an example's features are its own.
    trained = {**variables, **updated}
    alone, together = NETWORK.apply(trained, X[:1]), NETWORK.apply(trained, X)
    chex.assert_trees_all_close(alone, jax.tree.map(lambda a: a[:1], together), atol=1e-5)


def test_statistics_of_a_mapped_axis_are_the_whole_batchs(variables):
    shards = X.reshape(2, 4, *X.shape[1:])
    (logits, _), updated = jax.vmap(
        lambda x: train(NETWORK, variables, x, axis="i"), axis_name="i"
    )(shards)
    (expected, _), expected_stats = train(NETWORK, variables, X)
    np.testing.assert_allclose(logits.reshape(8, 3), expected, atol=1e-4)
    for shard in range(2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=shard: a[i], updated), expected_stats, atol=1e-5
        )


def test_dropout_is_live_in_training_alone(variables):
    network = NETWORK.clone(dropout=0.5)
    run = jax.jit(functools.partial(train, network))
    one, same, other = (run(variables, X, jax.random.key(i))[0][0] for i in (0, 0, 1))
    assert (np.asarray(one) == np.asarray(same)).all()
    assert (np.asarray(one) != np.asarray(other)).any()
    chex.assert_trees_all_equal(network.apply(variables, X), NETWORK.apply(variables, X))


def test_bfloat16_computes_and_float32_remembers():
    network = NETWORK.clone(dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(network.init_with_output, KEY, jnp.asarray(X))
    leaves = jax.tree.leaves((outputs, variables))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
