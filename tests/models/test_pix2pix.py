import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aigc_jax.core.keys import example_keys, fold, stream, uniform
from aigc_jax.models.pix2pix import UNetGenerator
from aigc_jax.nn.conv import NHWC

KEY = jax.random.key(0)
KEYS = example_keys(stream(0, "test"), jnp.arange(4))
X = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 2)).astype(np.float32)
SMALL = UNetGenerator((4, 6, 8, 8))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(network, shape):
    """Return the shapes of a network's result and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, jnp.zeros(shape))


@functools.cache
def variables():
    """As if it were trained: no scale is 1 and no bias and no mean is 0."""
    leaves, treedef = jax.tree.flatten(jax.jit(SMALL.init)(KEY, X))
    rng = np.random.default_rng(1)
    return treedef.unflatten([x + rng.uniform(0, 0.2, x.shape).astype(np.float32) for x in leaves])


@functools.cache
def compiled(network=SMALL, **options):
    return jax.jit(functools.partial(network.apply, **options))


def test_parameters_of_the_papers_network():
    # Kernels of 16 c d on the way down, 3-64-128-256 and 512 five times: 19,532,800. On the way up,
    # twice as wide by the skips but at the bottom: 512, 512 three times, 256, 128, 64 and 3:
    # 34,871,296. BatchNorm, a scale and a bias each: 128, 256, 512 four times on the way down; 512
    # four times, 256, 128, 64 on the way up: 9,856. Biases where there is none of it: 64, 512, 3.
    image, of = shapes(UNetGenerator(), (2, 256, 256, 3))
    assert image.shape == (2, 256, 256, 3) and image.dtype == jnp.float32
    total = 19_532_800 + 34_871_296 + 9_856 + 64 + 512 + 3
    assert count(of["params"]) == total == 54_414_531
    # The authors' PyTorch code has 54,413,955: its first convolution and its bottleneck, which it
    # does not normalise either, go without a bias.
    assert count(of["params"]) - 64 - 512 == 54_413_955
    assert count(of["batch_stats"]) == 9_856


@pytest.mark.parametrize(("levels", "size"), [(6, 64), (8, 256)])
def test_the_bottleneck_is_one_pixel_and_not_normalised(levels, size):
    network = UNetGenerator(tuple(8 * min(2**i, 8) for i in range(levels)))
    init = functools.partial(network.init, capture_intermediates=True)
    of = jax.eval_shape(init, KEY, jnp.zeros((1, size, size, 1)))
    seen = of["intermediates"]
    down = [seen[f"down{i}"]["__call__"][0].shape[1:3] for i in range(levels)]
    assert down == [(size // 2 ** (i + 1),) * 2 for i in range(levels)] and down[-1] == (1, 1)
    up = [seen[f"up{i}"]["__call__"][0].shape[1:3] for i in range(levels - 1)]
    assert up == [(2 ** (i + 1),) * 2 for i in range(levels - 1)]
    normalised = {name for name in seen if name.endswith("_norm")}
    assert normalised == {f"down{i}_norm" for i in range(1, levels - 1)} | {
        f"up{i}_norm" for i in range(levels - 1)
    }


def reference(of, x, keys=None, rate=0.5):
    """Write the network out: what comes before each convolution, and what beside it."""

    def norm(x, name):
        affine, running = of["params"][name], of["batch_stats"][name]
        x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        return x * affine["scale"] + affine["bias"]

    def down(x, name):
        layer = of["params"][name]
        pads = ((1, 1), (1, 1))
        y = lax.conv_general_dilated(x, layer["kernel"], (2, 2), pads, dimension_numbers=NHWC)
        return y + layer.get("bias", 0)

    def up(x, name):
        layer = of["params"][name]
        x = np.maximum(x, 0)
        y = lax.conv_transpose(x, layer["kernel"], (2, 2), "SAME", dimension_numbers=NHWC)
        return y + layer.get("bias", 0)

    leaky = lambda x: np.where(x > 0, x, 0.2 * x)
    a = down(x, "down0")  # 8×8
    b = norm(down(leaky(a), "down1"), "down1_norm")  # 4×4
    c = norm(down(leaky(b), "down2"), "down2_norm")  # 2×2
    y = down(leaky(c), "down3")  # 1×1
    for i, skip in enumerate((c, b, a)):
        y = norm(up(y, f"up{i}"), f"up{i}_norm")
        if keys is not None:
            y = y * (uniform(fold(keys, i), y.shape[1:]) >= rate) / (1 - rate)
        y = np.concatenate([skip, y], -1)
    return np.tanh(up(y, "image"))


def test_it_is_the_network_written_out():
    of = variables()
    np.testing.assert_allclose(compiled()(of, X), reference(of, X), atol=1e-5)
    dropped = compiled()(of, X, keys=KEYS)
    np.testing.assert_allclose(dropped, reference(of, X, KEYS), atol=1e-5)
    assert np.abs(np.asarray(dropped) - compiled()(of, X)).max() > 0.01
    rarely = compiled(SMALL.clone(dropout=0.25))(of, X, keys=KEYS)
    np.testing.assert_allclose(rarely, reference(of, X, KEYS, 0.25), atol=1e-5)


def test_dropout_is_each_examples_own():
    whole = np.asarray(compiled()(variables(), X, keys=KEYS))
    some = np.array([2, 0])
    np.testing.assert_allclose(
        compiled()(variables(), X[some], keys=KEYS[some]), whole[some], atol=1e-6
    )
    # The same image under another key is another image, and under the same one the same.
    alike = np.broadcast_to(X[:1], X.shape)
    first, second, third, _ = np.asarray(
        compiled()(variables(), alike, keys=KEYS[jnp.array([0, 0, 1, 1])])
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - third).max() > 0.01


def test_dropout_is_in_the_first_three_layers_of_the_way_up_and_with_keys_alone():
    network = UNetGenerator((2,) * 5)
    of = jax.eval_shape(network.init, KEY, jnp.zeros((1, 32, 32, 1)))
    draws = lambda **options: str(
        jax.make_jaxpr(functools.partial(network.apply, mutable=["batch_stats"], **options))(
            of, jnp.zeros((1, 32, 32, 1))
        )
    ).count("random_bits")
    for train in (False, True):
        assert draws(keys=KEYS[:1], train=train) == 3
        assert draws(train=train) == 0


def test_batch_statistics_are_live_in_training_alone():
    of = variables()
    image, kept = SMALL.apply(of, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(kept["batch_stats"], of["batch_stats"])
    np.testing.assert_allclose(image, compiled()(of, X), atol=1e-6)
    live, moved = compiled(train=True, mutable=("batch_stats",))(of, X)
    mean = lambda stats: stats["batch_stats"]["up0_norm"]["mean"]
    assert np.abs(np.asarray(mean(moved)) - mean(of)).max() > 1e-3
    # Over a mapped axis they are the whole batch's, and the images then what they were.
    together, shared = jax.vmap(
        lambda x: SMALL.apply(of, x, train=True, axis="i", mutable=["batch_stats"]), axis_name="i"
    )(X.reshape(2, 2, *X.shape[1:]))
    np.testing.assert_allclose(together.reshape(live.shape), live, atol=1e-4)
    np.testing.assert_allclose(mean(shared)[0], mean(moved), atol=1e-5)


def test_computing_in_bfloat16_keeps_parameters_and_images_in_float32():
    network = SMALL.clone(dtype=jnp.bfloat16)
    of = variables()
    chex.assert_trees_all_equal_dtypes(of, shapes(network, X.shape)[1])
    image = compiled(network)(of, X, keys=KEYS)
    assert image.dtype == jnp.float32
    np.testing.assert_allclose(image, compiled()(of, X, keys=KEYS), atol=0.05)


def test_kernels_start_as_the_paper_says():
    kernels = [x for x in jax.tree.leaves(SMALL.init(KEY, X)["params"]) if x.ndim == 4]
    values = np.concatenate([np.ravel(kernel) for kernel in kernels])
    n = len(values)
    assert abs(values.mean()) < 4 * 0.02 / math.sqrt(n)
    assert abs(values.std() / 0.02 - 1) < 4 / math.sqrt(2 * n)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^channels=\(4, 6, 8, 8\) are .* by 16, not 16×24"):
        shapes(SMALL, (1, 16, 24, 3))
    with pytest.raises(ValueError, match=r"^dropout=1 must be in \[0, 1\)"):
        shapes(SMALL.clone(dropout=1), X.shape)
    # What is larger than needs be has a larger bottleneck.
    assert shapes(SMALL, (1, 16, 48, 3))[0].shape == (1, 16, 48, 3)
