import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.mlp_gan import Discriminator, Generator

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 5)).astype(np.float32)
X = RNG.uniform(-1, 1, (4, 3, 2, 2)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
GENERATOR = Generator((3, 2, 2), hidden=(7, 6))
DISCRIMINATOR = Discriminator(hidden=(6,))
BOTH = [(GENERATOR, Z), (DISCRIMINATOR, X)]


def shapes(network, *inputs):
    """Return the shapes of what a network returns and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, *inputs)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_parameters_of_the_textbooks_networks():
    image, of = shapes(Generator(), jnp.zeros((2, 100)))
    assert image.shape == (2, 28, 28, 1) and image.dtype == jnp.float32
    dense = (100 * 256 + 256) + (256 * 128 + 128) + (128 * 784 + 784)
    assert set(of) == {"params"} and count(of) == dense == 159_888
    logits, of = shapes(Discriminator(), jnp.zeros((2, 28, 28, 1)))
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    assert set(of) == {"params"} and count(of) == (784 * 128 + 128) + (128 + 1) == 100_609


def test_labels_go_beside_the_input():
    label = jnp.zeros(2, jnp.int32)
    _, of = shapes(Generator(classes=10), jnp.zeros((2, 100)), label)
    assert count(of) == 159_888 + 10 * 256
    _, of = shapes(Discriminator(classes=10), jnp.zeros((2, 28, 28, 1)), label)
    assert count(of) == 100_609 + 10 * 128


def by_hand(params, x, activate):
    x = x.reshape(len(x), -1)
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = (activate(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


@pytest.mark.parametrize("classes", [0, 3])
def test_they_are_dense_layers_and_what_is_between(classes):
    label = [LABEL] * bool(classes)
    beside = np.eye(3)[LABEL] if classes else np.zeros((4, 0))
    joined = lambda x: np.concatenate([x.reshape(4, -1), beside], 1)

    output, of = GENERATOR.clone(classes=classes).init_with_output(KEY, Z, *label)
    x = by_hand(of["params"], joined(Z), lambda x: np.maximum(x, 0))
    np.testing.assert_allclose(output, np.tanh(x).reshape(X.shape), atol=1e-5)

    output, of = DISCRIMINATOR.clone(classes=classes).init_with_output(KEY, X, *label)
    x = by_hand(of["params"], joined(X), lambda x: np.where(x > 0, x, 0.2 * x))
    np.testing.assert_allclose(output, x[:, 0], atol=1e-5)


def test_they_are_the_same_in_training():
    for network, x in BOTH:
        output, of = network.init_with_output(KEY, x)
        np.testing.assert_array_equal(network.apply(of, x, train=True, axis="i"), output)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("network", "x"), BOTH)
def test_bfloat16_computes_and_float32_remembers(network, x, classes):
    network, label = network.clone(classes=classes), [LABEL] * bool(classes)
    half = network.clone(dtype=jnp.bfloat16)
    rounded, of = half.init_with_output(KEY, jnp.asarray(x, jnp.bfloat16), *label)
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded, of))} == {jnp.dtype(jnp.float32)}
    whole = network.apply(of, x, *label)
    np.testing.assert_allclose(rounded, whole, atol=0.05 * np.abs(whole).max())
    assert (np.asarray(rounded) != np.asarray(whole)).any()


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_a_label_must_match_the_classes(network, x):
    with pytest.raises(ValueError, match="a label was given, but this network has classes=0"):
        shapes(network, x, LABEL)
    with pytest.raises(ValueError, match="a network of classes=3 needs a label"):
        shapes(network.clone(classes=3), x)
