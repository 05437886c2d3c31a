import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aigc_jax.models.dcgan import Discriminator, Generator
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.nn.conv import NHWC

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 5)).astype(np.float32)
X = RNG.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
GENERATOR = Generator((6, 4))
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


def test_parameters_for_64x64_are_pytorchs():
    # The DCGAN tutorial's, of nz = 100, ngf = ndf = 64 and 3 colours.
    image, of = shapes(Generator(), jnp.zeros((2, 100)))
    assert image.shape == (2, 64, 64, 3) and image.dtype == jnp.float32
    assert count(of["params"]) == 3_576_704
    logits, of = shapes(Discriminator(), jnp.zeros((2, 64, 64, 3)))
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    assert count(of["params"]) == 2_765_568


def test_parameters_for_32x32():
    image, of = shapes(Generator((256, 128, 64), colours=1), jnp.zeros((2, 100)))
    assert image.shape == (2, 32, 32, 1)
    kernels = 16 * (100 * 256 + 256 * 128 + 128 * 64 + 64)
    assert count(of["params"]) == kernels + 2 * (256 + 128 + 64) == 1_066_880
    assert count(of["batch_stats"]) == 2 * (256 + 128 + 64)
    logits, of = shapes(Discriminator((64, 128, 256)), jnp.zeros((2, 32, 32, 1)))
    assert logits.shape == (2,)
    kernels = 16 * (64 + 64 * 128 + 128 * 256 + 256)
    assert count(of["params"]) == kernels + 2 * (128 + 256) == 661_248
    assert count(of["batch_stats"]) == 2 * (128 + 256)


def test_labels_go_beside_the_latent_and_the_image():
    _, plain = shapes(Generator(), jnp.zeros((2, 100)))
    _, of = shapes(Generator(classes=10), jnp.zeros((2, 100)), jnp.zeros(2, jnp.int32))
    assert count(of["params"]) - count(plain["params"]) == 16 * 10 * 512
    x = jnp.zeros((2, 64, 64, 3))
    _, plain = shapes(Discriminator(), x)
    _, of = shapes(Discriminator(classes=10), x, jnp.zeros(2, jnp.int32))
    assert count(of["params"]) - count(plain["params"]) == 16 * 10 * 64


@pytest.mark.parametrize("widths", [1, 2, 5])
def test_a_side_twice_as_long_is_a_width_more(widths):
    side = 4 * 2**widths
    assert shapes(Generator((4,) * widths), Z)[0].shape == (4, side, side, 3)
    assert shapes(Discriminator((4,) * widths), jnp.zeros((2, side, side, 3)))[0].shape == (2,)


def test_weights_start_as_the_paper_has_them():
    for network, x in [
        (Generator((64, 32, 16)), jnp.zeros((1, 20))),
        (Discriminator((16, 32, 64)), jnp.zeros((1, 32, 32, 3))),
    ]:
        params = jax.jit(network.init)(KEY, x)["params"]
        kernels = [of["kernel"] for of in params.values() if "kernel" in of]
        scales, biases = zip(
            *((of["scale"], of["bias"]) for of in params.values() if "scale" in of), strict=True
        )
        for mean, values in [(0, kernels), (1, scales)]:
            values = np.concatenate([np.ravel(x) for x in values])
            # Five standard errors of the mean and of the standard deviation.
            error = 5 * 0.02 / math.sqrt(values.size)
            assert abs(values.mean() - mean) < error
            assert abs(values.std() - 0.02) < error / math.sqrt(2)
        assert not np.concatenate(biases).any()


def test_the_generator_is_transposed_convolutions_and_relu():
    network = GENERATOR.clone(norm="none")
    of = variables(network)
    x = Z[:, None, None]
    for i in range(3):
        layer = of["params"][f"ConvTranspose_{i}"]
        stride, padding = (1, "VALID") if i == 0 else (2, "SAME")
        x = lax.conv_transpose(
            np.maximum(x, 0) if i else x, layer["kernel"], (stride, stride), padding
        )
        x = x + layer["bias"]
    assert np.std(x) > 0.1
    np.testing.assert_allclose(compiled(network)(of, Z)[0], np.tanh(x), atol=1e-5)


def test_the_discriminator_is_strided_convolutions_and_leaky_relu():
    network = DISCRIMINATOR.clone(norm="none")
    of = variables(network)
    x = X
    for i in range(3):
        layer = of["params"][f"Conv_{i}"]
        x = np.where(x > 0, x, 0.2 * x) if i else x
        stride, pad = (2, (1, 1)) if i < 2 else (1, (0, 0))
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), (pad, pad), dimension_numbers=NHWC
        )
        x = x + layer["bias"]
    assert np.std(x) > 0.1
    np.testing.assert_allclose(compiled(network)(of, X)[0], x.reshape(4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("network", "x"), BOTH)
def test_batch_statistics_are_live_in_training_alone(network, x):
    of = variables(network)
    run = compiled(network, train=True)
    live, moved = run(of, x)
    used, _ = compiled(network)(of, x)
    assert np.abs(np.asarray(live) - np.asarray(used)).max() > 1e-2
    # The first layer's, by hand; running averages keep nine tenths.
    x = np.asarray(x)
    if network is GENERATOR:
        y = np.einsum("bz,hwzd->bhwd", x, of["params"]["ConvTranspose_0"]["kernel"])
    else:
        first, second = (of["params"][f"Conv_{i}"]["kernel"] for i in range(2))
        conv = functools.partial(
            lax.conv_general_dilated,
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=NHWC,
        )
        y = conv(x, first)
        y = np.asarray(conv(np.where(y > 0, y, 0.2 * y), second))
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (of, moved))
    for name, of_batch in [("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))]:
        np.testing.assert_allclose(
            after[name], 0.9 * before[name] + 0.1 * of_batch, rtol=1e-4, atol=1e-4
        )
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
def test_without_norm_there_are_biases_and_no_statistics(network, x):
    _, of = shapes(network.clone(norm="none"), x)
    assert set(of) == {"params"}
    assert all(set(layer) == {"kernel", "bias"} for layer in of["params"].values())
    _, of = shapes(network, x)
    assert all("kernel" not in layer or "bias" not in layer for layer in of["params"].values())


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("network", "x"), BOTH)
def test_the_label_matters_to_its_example(network, x, norm):
    network = network.clone(classes=3, norm=norm)
    of = variables(network, True)
    one, other = (
        np.asarray(compiled(network)(of, x, label)[0]).reshape(4, -1)
        for label in (LABEL, np.array([0, 2, 0, 2], np.int32))
    )
    changed = np.abs(one - other).max(1)
    assert changed[2] > 1e-3 and changed[[0, 1, 3]].max() < 1e-5


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("network", "x"), BOTH)
def test_bfloat16_computes_and_float32_remembers(network, x, classes):
    network = network.clone(classes=classes)
    half = network.clone(dtype=jnp.bfloat16)
    label = [LABEL] * bool(classes)
    output, of = shapes(half, jnp.asarray(x, jnp.bfloat16), *label)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, of))} == {jnp.dtype(jnp.float32)}
    of = variables(network, bool(classes))
    whole, rounded = (np.asarray(compiled(n)(of, x, *label)[0]) for n in (network, half))
    np.testing.assert_allclose(rounded, whole, atol=0.05 * np.abs(whole).max())
    assert (rounded != whole).any()


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (GENERATOR, (Z, LABEL), "a label was given, but this network has classes=0"),
        (GENERATOR.clone(classes=3), (Z,), "a network of classes=3 needs a label"),
        (DISCRIMINATOR, (X, LABEL), "a label was given, but this network has classes=0"),
        (DISCRIMINATOR.clone(classes=3), (X,), "a network of classes=3 needs a label"),
        (DISCRIMINATOR, (X[:, :8, :8],), r"channels=\(4, 6\) are for 16×16 images, not 8×8"),
        (DISCRIMINATOR, (X[:, :, :8],), r"channels=\(4, 6\) are for 16×16 images, not 16×8"),
    ],
)
def test_what_makes_no_sense_is_refused(network, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes(network, *inputs)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Generator((8,), 1, norm="bacth"), (2, 4)),  # pyright: ignore[reportArgumentType]
        (Discriminator((8,), norm="bacth"), (2, 8, 8, 1)),  # pyright: ignore[reportArgumentType]
        (PatchGAN((8, 8), norm="bacth"), (2, 8, 8, 1)),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_misspelt_norm_is_refused(network, shape):
    with pytest.raises(ValueError, match="norm='bacth' must be one of batch, none"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("channels", [(), (8, 0)])
def test_widths_that_are_none_are_refused(channels):
    with pytest.raises(ValueError, match=r"channels=\(.*\) must be one width or more"):
        jax.eval_shape(Generator(channels).init, jax.random.key(0), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"channels=\(.*\) must be one width or more"):
        jax.eval_shape(Discriminator(channels).init, jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
