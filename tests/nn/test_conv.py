"""The convolution written for a CPU is the convolution."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from aigc_jax.nn.conv import (
    NHWC,
    Conv,
    ConvTranspose,
    conv_general_dilated,
    conv_of_images,
    conv_transpose,
)

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


# Gradients of gradients, as a penalty on a critic's gradient takes them


def to_second_order(conv, x, kernel):
    """Return a value, its gradients, and the gradients of their squares."""
    g = cotangent(jax.eval_shape(conv, x, kernel).shape).astype(np.float32)
    first = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)) * g), (0, 1))
    penalty = lambda x, kernel: sum(jnp.sum(jnp.square(d)) for d in first(x, kernel))
    run = lambda x, kernel: (
        conv(x, kernel),
        first(x, kernel),
        jax.grad(penalty, (0, 1))(x, kernel),
    )
    return jax.jit(run)(x, kernel)


def assert_alike(conv, expected, x, kernel):
    of_both = (jax.tree.leaves(to_second_order(f, x, kernel)) for f in (conv, expected))
    for a, b in zip(*of_both, strict=True):
        # What is near 0 in a sum of large terms has lost its digits in both.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def by_stride(strides, padding):
    """Return our convolution and lax's."""
    options = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    return (
        functools.partial(f, **options) for f in (conv_general_dilated, lax.conv_general_dilated)
    )


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((6, 6), (3, 3), 1, "SAME"),
        ((7, 6), (3, 3), 2, "SAME"),
        ((7, 6), (4, 4), 2, ASYMMETRIC),
        ((1, 1), (3, 3), 1, "SAME"),  # a window larger than its image
        ((2, 5), (4, 4), 1, "SAME"),
        ((4, 4), (4, 4), 1, "VALID"),  # a single window
    ],
    ids=str,
)
def test_gradients_of_gradients(size, kernel, stride, padding, one_cpu_device):
    assert_alike(*by_stride((stride, stride), padding), *arrays(size, kernel))


def strided(conv, x, kernel):
    """Return whether a convolution, or a gradient of it, has strides or dilation."""
    loss = lambda x, kernel: jnp.sum(conv(x, kernel) ** 2)
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    options = ("window_strides", "lhs_dilation", "rhs_dilation")
    return any(f"{name}=({n}, " in text for name in options for n in (2, 3, 4))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((8, 8), (4, 4), 2, ((1, 1), (1, 1))),  # a GAN's
        ((8, 6), (2, 2), 2, "VALID"),
        ((8, 8), (4, 4), 4, "SAME"),
        ((7, 6), (4, 2), 2, ((2, 1), (0, 0))),
        ((2, 2), (4, 4), 2, ((1, 1), (1, 1))),  # a single window
        ((9, 6), (3, 6), 3, ((0, 0), (1, 2))),
    ],
    ids=str,
)
def test_kernels_of_whole_patches_need_no_stride(size, kernel, stride, padding, one_cpu_device):
    conv, expected = by_stride((stride, stride), padding)
    x, k = arrays(size, kernel)
    assert is_rewritten(conv, x, k) and not strided(conv, x, k)
    assert strided(expected, x, k)
    assert_alike(conv, expected, x, k)


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((8, 8), (3, 3), (2, 2), "SAME"),  # no whole patches in the kernel
        ((7, 8), (2, 2), (2, 2), "VALID"),  # none in the image
        ((8, 8), (4, 4), (2, 4), "VALID"),  # no square ones
    ],
)
def test_other_kernels_keep_their_stride(size, kernel, strides, padding, one_cpu_device):
    conv, expected = by_stride(strides, padding)
    x, k = arrays(size, kernel)
    assert is_rewritten(conv, x, k) and strided(conv, x, k)
    assert_alike(conv, expected, x, k)


# Transposed


def plain_transpose(x, kernel, strides, padding):
    return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=NHWC)


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((4, 4), (4, 4), (2, 2), "SAME"),  # a GAN's
        ((3, 5), (4, 4), (2, 2), "SAME"),
        ((1, 1), (4, 4), (2, 2), "SAME"),
        ((2, 2), (5, 5), (2, 2), "SAME"),  # DCGAN's
        ((1, 4), (5, 5), (2, 2), "SAME"),
        ((1, 1), (4, 4), (1, 1), "VALID"),  # a GAN's first
        ((1, 1), (2, 3), (2, 2), "VALID"),
        ((2, 3), (4, 4), (2, 2), "VALID"),
        ((3, 2), (3, 3), (2, 2), "VALID"),  # StyleGAN2's
        ((1, 2), (3, 3), (2, 2), "VALID"),
        ((3, 3), (3, 3), (2, 2), "SAME"),
    ],
    ids=str,
)
def test_transposed(size, kernel, strides, padding, one_cpu_device):
    conv, expected = (
        lambda x, k, f=f: f(x, k, strides, padding) for f in (conv_transpose, plain_transpose)
    )
    x, k = arrays(size, kernel)
    if padding == "SAME":
        assert conv(x, k).shape[1:3] == tuple(n * s for n, s in zip(size, strides, strict=True))
    rewritten = {(4, 4, 2, 2, "SAME"), (5, 5, 2, 2, "SAME"), (3, 3, 2, 2, "VALID")}
    assert is_rewritten(conv, x, k) == ((*kernel, *strides, padding) in rewritten)
    assert_alike(conv, expected, x, k)


def test_accelerators_run_plain_transposed_lax():
    conv = lambda x, k: conv_transpose(x, k, (2, 2), "SAME")
    x, k = arrays((3, 5), (4, 4))
    assert not is_rewritten(conv, x, k)
    np.testing.assert_array_equal(conv(x, k), plain_transpose(x, k, (2, 2), "SAME"))


def test_transposed_is_the_transpose_of_a_strided_convolution():
    # <conv(y), x> = <y, conv_transpose(x)>, with the kernel flipped and its channels exchanged.
    x, kernel = arrays((3, 3), (4, 4))
    y = cotangent((3, 6, 6, 3))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # (4, 4, c, d) -> (4, 4, d, c)
    inner = jnp.vdot(plain(jnp.asarray(y, jnp.float32), flipped, (2, 2), PADS), x)
    painted = conv_transpose(x, kernel, (2, 2), "SAME")
    np.testing.assert_allclose(inner, jnp.vdot(y, painted), rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"strides": (2, 2)},
        {"strides": (2, 2), "use_bias": False, "kernel_init": nn.initializers.ones},
        {"padding": "VALID"},
    ],
    ids=["doubled", "without a bias", "painted whole"],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_transposed_layer_is_linens(size, options, dtype, one_cpu_device):
    x = arrays(size, (1, 1))[0]
    ours, linens = (
        of(5, (4, 4), dtype=dtype, **options) for of in (ConvTranspose, nn.ConvTranspose)
    )
    variables = ours.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(variables, linens.init(jax.random.key(0), x))
    if "bias" in variables["params"]:
        variables["params"]["bias"] = jnp.arange(5.0)
    result, expected = (layer.apply(variables, x) for layer in (ours, linens))
    assert result.dtype == expected.dtype == (dtype or jnp.float32)
    tolerance = 1e-5 if dtype is None else 2**-7 * np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(result, np.float32), np.asarray(expected, np.float32), atol=tolerance
    )


def test_a_penalty_on_two_layers_inside_a_scan(one_cpu_device):
    """A critic's step as accumulation and several steps a call have it."""
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 4, 2, 3), (4, 4, 3, 1))]
    x = jnp.asarray(rng.normal(size=(2, 2, 4, 4, 2)), jnp.float32)  # (steps, b, h, w, c)

    def penalty(down, up):
        def critic(x, kernels):
            h = jnp.tanh(down(x, kernels[0]))  # (b, 2, 2, 3)
            return jnp.sum(jnp.sin(up(h, kernels[1])))  # (b, 4, 4, 1)

        return lambda kernels, x: jnp.sum(jnp.square(jax.grad(critic)(x, kernels)))

    def add(total, x):
        ours = penalty(
            lambda x, k: conv_general_dilated(x, k, (2, 2), PADS, dimension_numbers=NHWC),
            lambda x, k: conv_transpose(x, k, (2, 2), "SAME"),
        )
        return jax.tree.map(jnp.add, total, jax.grad(ours)(kernels, x)), None

    scanned = jax.jit(lambda x: lax.scan(add, jax.tree.map(jnp.zeros_like, kernels), x)[0])(x)
    lax_penalty = penalty(
        lambda x, k: plain(x, k, (2, 2), PADS), lambda x, k: plain_transpose(x, k, (2, 2), "SAME")
    )
    expected = jax.jit(jax.grad(lambda k: sum(lax_penalty(k, x[i]) for i in range(2))))(kernels)
    chex.assert_trees_all_close(scanned, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(3, 5), (4, 4)], ids=str)
def test_doubling_by_kernels_of_three(size, one_cpu_device):
    conv, expected = (
        lambda x, k, f=f: f(x, k, (2, 2), "VALID") for f in (conv_transpose, plain_transpose)
    )
    x, k = arrays(size, (3, 3))
    assert conv(x, k).shape[1:3] == tuple(2 * n + 1 for n in size)
    assert is_rewritten(conv, x, k) and not strided(conv, x, k)
    assert_alike(conv, expected, x, k)
