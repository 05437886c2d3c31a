"""The convolution written for a CPU is the convolution."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from aigc_jax.nn.conv import NHWC, Conv, conv_general_dilated, conv_of_images

CHANNELS = 2, 3


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def arrays(size, kernel, b=3, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(b, *size, CHANNELS[0]))
    return jnp.asarray(x, dtype), jnp.asarray(rng.normal(size=(*kernel, *CHANNELS)), dtype)


def cotangent(shape):
    return np.random.default_rng(1).normal(size=shape)


def value_and_gradients(x, kernel, strides, pads):
    """Return the convolution and its gradients against the cotangent."""

    @jax.jit
    def run(x, kernel):
        value, pullback = jax.vjp(lambda x, k: conv_of_images(x, k, strides, pads), x, kernel)
        return value, *pullback(jnp.asarray(cotangent(value.shape), value.dtype))

    return run(x, kernel)


def by_definition(x, kernel, strides, pads):
    """Sum over the positions of the kernel, in float64, and the same sums transposed."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    h, w = (
        (length - k) // s + 1
        for length, k, s in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    windows = {
        (i, j): np.s_[:, i : i + (h - 1) * strides[0] + 1 : strides[0]]
        + np.s_[j : j + (w - 1) * strides[1] + 1 : strides[1],]
        for i, j in np.ndindex(kernel.shape[:2])
    }
    value = sum(padded[window] @ kernel[at] for at, window in windows.items())
    g = cotangent(value.shape)
    of_x, of_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for at, window in windows.items():
        of_x[window] += g @ kernel[at].T
        of_kernel[at] = np.einsum("bhwc,bhwd->cd", padded[window], g)
    (top, _), (left, _) = pads
    return value, of_x[:, top : top + x.shape[1], left : left + x.shape[2]], of_kernel


def resolve(padding, size, kernel, strides):
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, strides, padding)
    return tuple(tuple(pad) for pad in padding)


ASYMMETRIC = ((2, 0), (1, 3))


@pytest.mark.parametrize(
    ("stride", "side", "padding"),
    # Every pair of two of the three.
    [
        (stride, side, ("SAME", "VALID", ASYMMETRIC)[(stride + i) % 3])
        for stride in (1, 2, 3)
        for i, side in enumerate((1, 3, 4, 5))
    ],
    ids=str,
)
def test_value_and_gradients(stride, side, padding):
    size, kernel, strides = (7, 6), (side, side), (stride, stride)
    pads = resolve(padding, size, kernel, strides)
    x, k = arrays(size, kernel)
    result = value_and_gradients(x, k, strides, pads)
    expected = by_definition(x, k, strides, pads)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("b", "size", "kernel", "strides", "pads"),
    [
        (1, (5, 5), (3, 3), (1, 1), ((1, 1), (1, 1))),
        (7, (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),  # 7 images: one a group, 64 rows each
        (13, (2, 2), (3, 3), (1, 1), ((1, 1), (1, 1))),  # all 13 in one group
        (12, (8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),  # 3 groups of 4
        (2, (17, 17), (3, 3), (1, 1), ((1, 1), (1, 1))),  # an image is more than a group's rows
        (2, (7, 9), (2, 5), (3, 2), ((0, 1), (2, 2))),  # nothing is square
        (2, (9, 9), (2, 2), (3, 3), ((0, 0), (0, 0))),  # the windows leave pixels out
        (2, (5, 5), (5, 5), (1, 1), ((0, 0), (0, 0))),  # a single window
        (2, (4, 4), (1, 1), (1, 1), ((2, 1), (0, 2))),  # whole windows of padding
    ],
)
def test_batches_and_shapes(b, size, kernel, strides, pads):
    x, k = arrays(size, kernel, b)
    result = value_and_gradients(x, k, strides, pads)
    expected = by_definition(x, k, strides, pads)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)


PADS = ((1, 1), (1, 1))


def test_bfloat16_sums_in_float32():
    exact = by_definition(*arrays((8, 8), (3, 3), 64), (1, 1), PADS)
    half = value_and_gradients(*arrays((8, 8), (3, 3), 64, jnp.bfloat16), (1, 1), PADS)
    assert {a.dtype for a in half} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(half, exact, strict=True):
        error = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        # One rounding of each result, though 4096 products go into the kernel's gradient.
        assert error < 2**-7


@pytest.fixture
def one_cpu_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def is_rewritten(conv, *args):
    return "custom_vjp_call" in str(jax.make_jaxpr(conv)(*args))


def test_one_cpu_device_runs_the_rewritten_gradients(one_cpu_device):
    x, kernel = arrays((6, 6), (3, 3))
    for padding in ("SAME", "VALID", [(1, 0), (0, 1)]):
        conv = functools.partial(
            conv_general_dilated, window_strides=[2, 2], padding=padding, dimension_numbers=NHWC
        )
        assert is_rewritten(conv, x, kernel)
        expected = plain(x, kernel, (2, 2), padding)
        np.testing.assert_allclose(conv(x, kernel), expected, atol=1e-5)


def test_accelerators_run_plain_lax():
    # Four simulated devices stand in for an accelerator.
    assert not is_rewritten(
        lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC),
        *arrays((6, 6), (3, 3)),
    )


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"lhs_dilation": (2, 2)}, (3, 3, 2, 3)),
        ({"rhs_dilation": (1, 2)}, (3, 3, 2, 3)),
        ({"feature_group_count": 2}, (3, 3, 1, 4)),
    ],
)
def test_what_is_not_rewritten_runs_plain_lax(options, kernel, one_cpu_device):
    (x, _), k = arrays((6, 6), (3, 3)), jnp.ones(kernel)
    options = {"window_strides": (1, 1), "padding": PADS, "dimension_numbers": NHWC, **options}
    conv = functools.partial(conv_general_dilated, **options)
    assert not is_rewritten(conv, x, k)
    expected = lax.conv_general_dilated(x, k, **options)
    np.testing.assert_allclose(conv(x, k), expected, atol=1e-5)


def test_one_axis_runs_plain_lax(one_cpu_device):
    x, layer = jnp.ones((2, 6, 3)), Conv(4, (3,))
    variables = layer.init(jax.random.key(0), x)
    expected = nn.Conv(4, (3,)).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"batch_group_count": 3}, {"dimension_numbers": None}])
def test_no_option_is_ignored(options, one_cpu_device):
    options = {"dimension_numbers": NHWC, **options}
    x, kernel = jnp.ones((3, 3, 3, 3)), jnp.ones((3, 3, 3, 3)).at[0, 1, 2].set(2)
    conv = functools.partial(lax.conv_general_dilated, **options)
    result = conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    np.testing.assert_allclose(result, conv(x, kernel, (1, 1), "SAME"), atol=1e-5)


def test_layer_is_linens(one_cpu_device):
    x, _ = arrays((6, 6), (3, 3))
    make = lambda of: of(4, (3, 3), strides=(2, 2), use_bias=True)
    variables = nn.Conv(4, (3, 3)).init(jax.random.key(0), x)
    loss = lambda of: lambda variables, x: jnp.sum(make(of).apply(variables, x) ** 3)
    assert is_rewritten(loss(Conv), variables, x)
    assert not is_rewritten(loss(nn.Conv), variables, x)
    result, expected = (
        jax.jit(jax.value_and_grad(loss(of), (0, 1)))(variables, x) for of in (Conv, nn.Conv)
    )
    chex.assert_trees_all_close(result, expected, rtol=1e-4, atol=1e-4)


def test_gradients_inside_a_scan():
    x, kernel = arrays((6, 6), (3, 3), 4)

    def total(conv):
        def loss(kernel, x):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        def add(total, x):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(kernel, x)), None

        return lambda x: lax.scan(add, jnp.zeros_like(kernel), x.reshape(2, 2, 6, 6, -1))[0], loss

    scanned, _ = total(lambda x, k: conv_of_images(x, k, (1, 1), PADS))
    _, loss = total(lambda x, k: plain(x, k, (1, 1), PADS))
    expected = jax.grad(loss)(kernel, x)
    np.testing.assert_allclose(jax.jit(scanned)(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_under_vmap_and_remat():
    x, kernel = arrays((5, 5), (3, 3), 2)
    many = jnp.stack([x, 2 * x, -x])  # (3, b, h, w, c)

    def gradient(conv):
        loss = jax.checkpoint(lambda k, x: jnp.sum(jnp.sin(conv(x, k))))
        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, many)

    result = gradient(lambda x, k: conv_of_images(x, k, (2, 2), PADS))
    expected = gradient(lambda x, k: plain(x, k, (2, 2), PADS))
    chex.assert_trees_all_close(result, expected, rtol=1e-4, atol=1e-4)
