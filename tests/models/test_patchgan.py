import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.nn.conv import NHWC

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (4, 12, 16, 3)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
NETWORK = PatchGAN((4, 6))


def shapes(network, *inputs):
    """Return the shapes of what a network returns and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, *inputs)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def variables(network, conditional=False):
    """As if it were trained, with nothing compiled."""
    inputs = [X] + [LABEL] * conditional
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        x = 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        return x**2 + 0.5 if path[-1].key == "var" else x

    return jax.tree_util.tree_map_with_path(fill, shapes(network, *inputs)[1])


@functools.cache
def compiled(network, train=False):
    mutable = ["batch_stats"] if train else []
    return jax.jit(functools.partial(network.apply, train=train, mutable=mutable))


def test_it_is_pix2pixs():
    logits, of = shapes(PatchGAN(), jnp.zeros((2, 256, 256, 6)))
    assert logits.shape == (2, 30, 30) and logits.dtype == jnp.float32
    assert count(of["params"]) == 2_768_705
    assert count(of["batch_stats"]) == 2 * (128 + 256 + 512)


@pytest.mark.parametrize(
    ("widths", "field"), [((8,) * 4, 70), ((8,) * 3, 34), ((8,) * 2, 16), ((8,), 7)]
)
def test_a_logit_sees_a_patch(widths, field):
    network = PatchGAN(widths, norm="none")
    side = field + 3 * 2 ** (len(widths) - 1)
    x = np.zeros((1, side, side, 1), np.float32)
    params = jax.eval_shape(network.init, KEY, x)
    of = jax.tree.map(lambda p: jnp.ones(p.shape), params)  # nothing cancels
    middle = (0, *(n // 2 for n in shapes(network, x)[0].shape[1:]))
    seen = jax.jit(jax.grad(lambda x: network.apply(of, x)[middle]))(x)[0, :, :, 0]
    rows, columns = np.nonzero(np.asarray(seen))
    for at in (rows, columns):
        assert at.max() - at.min() + 1 == field


def test_it_is_convolutions_and_leaky_relu():
    network = NETWORK.clone(norm="none")
    of = variables(network)
    x = X
    for i, stride in enumerate((2, 1, 1)):
        layer = of["params"][f"Conv_{i}"]
        x = np.where(x > 0, x, 0.2 * x) if i else x
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=NHWC
        )
        x = x + layer["bias"]
    logits, _ = compiled(network)(of, X)
    assert logits.shape == (4, 4, 6) and np.std(logits) > 0.1
    np.testing.assert_allclose(logits, x[..., 0], rtol=1e-4, atol=1e-4)


def test_weights_start_as_the_paper_has_them():
    params = jax.jit(PatchGAN((16, 32, 64)).init)(KEY, jnp.zeros((1, 16, 16, 3)))["params"]
    kernels = np.concatenate([np.ravel(p["kernel"]) for p in params.values() if "kernel" in p])
    error = 5 * 0.02 / math.sqrt(kernels.size)  # five standard errors
    assert abs(kernels.mean()) < error and abs(kernels.std() - 0.02) < error / math.sqrt(2)


def test_all_but_the_first_and_the_last_are_normalised():
    _, of = shapes(PatchGAN((4, 6, 8)), jnp.zeros((1, 16, 16, 3)))
    assert [("bias" in of["params"][f"Conv_{i}"]) for i in range(4)] == [True, False, False, True]
    assert {n: s["mean"].shape for n, s in of["batch_stats"].items()} == {
        "BatchNorm_0": (6,),
        "BatchNorm_1": (8,),
    }
    _, of = shapes(NETWORK.clone(norm="none"), X)
    assert set(of) == {"params"} and all("bias" in layer for layer in of["params"].values())


def test_batch_statistics_are_live_in_training_alone():
    of = variables(NETWORK)
    live, moved = compiled(NETWORK, train=True)(of, X)
    used, _ = compiled(NETWORK)(of, X)
    assert np.abs(np.asarray(live) - np.asarray(used)).max() > 1e-2
    conv = functools.partial(
        lax.conv_general_dilated, padding=((1, 1), (1, 1)), dimension_numbers=NHWC
    )
    first, second = (of["params"][f"Conv_{i}"] for i in range(2))
    y = conv(X, first["kernel"], (2, 2)) + first["bias"]
    y = np.asarray(conv(np.where(y > 0, y, 0.2 * y), second["kernel"], (1, 1)))
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (of, moved))
    for name, of_batch in [("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))]:
        expected = 0.9 * before[name] + 0.1 * of_batch
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-4)
    alone, _ = compiled(NETWORK)(of, X[2:3])
    np.testing.assert_allclose(alone, used[2:3], rtol=1e-4, atol=1e-4)
    # Over a mapped axis they are the whole batch's.
    run = functools.partial(NETWORK.apply, of, train=True, axis="i", mutable=["batch_stats"])
    together, _ = jax.jit(jax.vmap(run, axis_name="i"))(X.reshape(2, 2, *X.shape[1:]))
    np.testing.assert_allclose(together.reshape(live.shape), live, rtol=1e-3, atol=1e-3)


def test_the_label_matters_to_its_example():
    network = NETWORK.clone(classes=3)
    of = variables(network, True)
    one, other = (
        np.asarray(compiled(network)(of, X, label)[0])
        for label in (LABEL, np.array([0, 2, 0, 2], np.int32))
    )
    changed = np.abs(one - other).max((1, 2))
    assert changed[2] > 1e-3 and changed[[0, 1, 3]].max() < 1e-5


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_bfloat16_computes_and_float32_remembers(norm):
    network = NETWORK.clone(norm=norm)
    half = network.clone(dtype=jnp.bfloat16)
    output, of = shapes(half, jnp.asarray(X, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((output, of))} == {jnp.dtype(jnp.float32)}
    of = variables(network)
    whole, rounded = (np.asarray(compiled(n)(of, X)[0]) for n in (network, half))
    np.testing.assert_allclose(rounded, whole, atol=0.05 * np.abs(whole).max())
    assert (rounded != whole).any()


def test_the_smallest_image_has_a_single_logit():
    for widths in ((4,), (4, 4), (4, 4, 4)):
        least = 3 * 2 ** (len(widths) - 1)
        network = PatchGAN(widths)
        assert shapes(network, jnp.zeros((2, least, least + 1, 1)))[0].shape[:2] == (2, 1)
        with pytest.raises(
            ValueError, match=f"need {least} pixels a side, not {least}×{least - 1}"
        ):
            shapes(network, jnp.zeros((2, least, least - 1, 1)))


def test_a_label_must_match_the_classes():
    with pytest.raises(ValueError, match="a label was given, but this network has classes=0"):
        shapes(NETWORK, X, LABEL)
    with pytest.raises(ValueError, match="a network of classes=3 needs a label"):
        shapes(NETWORK.clone(classes=3), X)
