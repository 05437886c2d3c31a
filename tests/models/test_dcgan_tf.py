import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aigc_jax.models.dcgan_tf import Discriminator, Generator
from aigc_jax.nn.conv import NHWC

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 5)).astype(np.float32)
X = RNG.uniform(-1, 1, (4, 7, 7, 3)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
GENERATOR = Generator((6, 4), size=7)  # 2×2, 4×4, 7×7
DISCRIMINATOR = Discriminator((4, 6))
BOTH = [(GENERATOR, Z), (DISCRIMINATOR, X)]


def shapes(network, *inputs):
    """Return the shapes of what a network returns and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, *inputs)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def variables(network, conditional=False):
    """As if it were trained, with nothing compiled."""
    inputs = [Z if isinstance(network, Generator) else X] + [LABEL] * conditional
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        x = 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        return x**2 + 0.5 if path[-1].key == "var" else x

    return jax.tree_util.tree_map_with_path(fill, shapes(network, *inputs)[1])


@functools.cache
def compiled(network, train=False):
    mutable = ["batch_stats"] if train else []
    return jax.jit(functools.partial(network.apply, train=train, mutable=mutable))


def normalised(x, of, i):
    """Normalise by running statistics."""
    seen, affine = of["batch_stats"][f"BatchNorm_{i}"], of["params"][f"BatchNorm_{i}"]
    x = (x - seen["mean"]) / np.sqrt(seen["var"] + 1e-5)
    return x * affine["scale"] + affine["bias"]


def test_parameters_for_28x28():
    image, of = shapes(Generator(), jnp.zeros((2, 100)))
    assert image.shape == (2, 28, 28, 3) and image.dtype == jnp.float32
    kernels = 100 * 2048 + 25 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    biases = 2048 + 256 + 128 + 64 + 3
    scales = 2 * (512 + 256 + 128 + 64)
    assert count(of["params"]) == kernels + biases + scales == 4_514_819
    assert count(of["batch_stats"]) == scales
    logits, of = shapes(Discriminator(), image)
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    kernels = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2048
    scales = 2 * (128 + 256 + 512)
    assert count(of["params"]) == kernels + (64 + 128 + 256 + 512 + 1) + scales == 4_310_401
    assert count(of["batch_stats"]) == scales


@pytest.mark.parametrize("size", [5, 8, 28, 64])
def test_an_image_is_of_any_size(size):
    assert shapes(Generator((8, 4, 4), size), Z)[0].shape == (4, size, size, 3)
    params = shapes(Discriminator((4, 4, 8)), jnp.zeros((2, size, size, 3)))[1]["params"]
    assert params["Dense_0"]["kernel"].shape == (math.ceil(size / 8) ** 2 * 8, 1)


def test_weights_start_as_the_code_has_them():
    for network, x in [
        (Generator((64, 32, 16), 20), jnp.zeros((1, 20))),
        (Discriminator((16, 32, 64)), jnp.zeros((1, 20, 20, 3))),
    ]:
        params = jax.jit(network.init)(KEY, x)["params"]
        kernels = np.concatenate([np.ravel(p["kernel"]) for p in params.values() if "kernel" in p])
        # Five standard errors of the mean and of the standard deviation.
        error = 5 * 0.02 / math.sqrt(kernels.size)
        assert abs(kernels.mean()) < error and abs(kernels.std() - 0.02) < error / math.sqrt(2)
        assert all((p["scale"] == 1).all() for p in params.values() if "scale" in p)
        assert not any(p["bias"].any() for p in params.values())


def test_the_generator_is_the_transpose_of_strided_convolutions():
    # TensorFlow's: what a convolution of stride 2 and SAME maps 7 to 4 to 2 pixels by.
    of = variables(GENERATOR)
    dense = of["params"]["Dense_0"]
    x = (Z @ dense["kernel"] + dense["bias"]).reshape(4, 2, 2, 6)
    for i, side in enumerate((4, 7)):
        layer = of["params"][f"ConvTranspose_{i}"]
        x = np.maximum(normalised(x, of, i), 0)
        flipped = np.flip(layer["kernel"], (0, 1)).swapaxes(2, 3)  # (5, 5, c, d) -> (5, 5, d, c)
        down = functools.partial(
            lax.conv_general_dilated,
            rhs=flipped,
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=NHWC,
        )
        image = jax.ShapeDtypeStruct((4, side, side, flipped.shape[2]), jnp.float32)
        [x] = jax.linear_transpose(down, image)(jnp.asarray(x))
        x = np.asarray(x + layer["bias"])
    assert np.std(x) > 0.1
    np.testing.assert_allclose(compiled(GENERATOR)(of, Z)[0], np.tanh(x), atol=1e-5)


def test_the_discriminator_is_strided_convolutions_and_a_dense_layer():
    of = variables(DISCRIMINATOR)
    x = X
    for i in range(2):
        layer = of["params"][f"Conv_{i}"]
        x = lax.conv_general_dilated(x, layer["kernel"], (2, 2), "SAME", dimension_numbers=NHWC)
        x = np.asarray(x + layer["bias"])
        x = normalised(x, of, i - 1) if i else x
        x = np.where(x > 0, x, 0.2 * x)
    dense = of["params"]["Dense_0"]
    x = x.reshape(4, 24) @ dense["kernel"] + dense["bias"]  # (b, 2, 2, 6) -> (b, 24) -> (b, 1)
    np.testing.assert_allclose(compiled(DISCRIMINATOR)(of, X)[0], x[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_batch_statistics_are_live_in_training_alone(network, x):
    of = variables(network)
    live, moved = compiled(network, train=True)(of, x)
    used, _ = compiled(network)(of, x)
    assert np.abs(np.asarray(live) - np.asarray(used)).max() > 1e-2
    # The first layer's, by hand; running averages keep nine tenths.
    if network is GENERATOR:
        dense = of["params"]["Dense_0"]
        y = (x @ dense["kernel"] + dense["bias"]).reshape(4, 2, 2, 6)
        before, after = (v["batch_stats"]["BatchNorm_0"] for v in (of, moved))
        for name, of_batch in [("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))]:
            expected = 0.9 * before[name] + 0.1 * of_batch
            np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-4)
    # In use, an example's output is its own.
    alone, _ = compiled(network)(of, x[2:3])
    np.testing.assert_allclose(alone, used[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_statistics_of_a_mapped_axis_are_the_whole_batchs(network, x):
    of = variables(network)
    expected, moved = compiled(network, train=True)(of, x)
    run = functools.partial(network.apply, of, train=True, axis="i", mutable=["batch_stats"])
    output, of_shards = jax.jit(jax.vmap(run, axis_name="i"))(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(output.reshape(expected.shape), expected, rtol=1e-3, atol=1e-3)
    for shard in range(2):
        mine = jax.tree.map(lambda a, i=shard: a[i], of_shards)
        chex.assert_trees_all_close(mine, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_the_label_matters_to_its_example(network, x):
    network = network.clone(classes=3)
    of = variables(network, True)
    one, other = (
        np.asarray(compiled(network)(of, x, label)[0]).reshape(4, -1)
        for label in (LABEL, np.array([0, 2, 0, 2], np.int32))
    )
    changed = np.abs(one - other).max(1)
    assert changed[2] > 1e-3 and changed[[0, 1, 3]].max() < 1e-5


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_bfloat16_computes_and_float32_remembers(network, x):
    half = network.clone(dtype=jnp.bfloat16)
    output, of = shapes(half, jnp.asarray(x, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((output, of))} == {jnp.dtype(jnp.float32)}
    of = variables(network)
    whole, rounded = (np.asarray(compiled(n)(of, x)[0]) for n in (network, half))
    np.testing.assert_allclose(rounded, whole, atol=0.05 * np.abs(whole).max())
    assert (rounded != whole).any()


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (GENERATOR, (Z, LABEL), "a label was given, but this network has classes=0"),
        (DISCRIMINATOR, (X, LABEL), "a label was given, but this network has classes=0"),
        (GENERATOR.clone(channels=()), (Z,), r"channels=\(\) must be one width or more"),
        (DISCRIMINATOR.clone(channels=(8, 0)), (X,), "must be one width or more, each at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(network, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes(network, *inputs)
