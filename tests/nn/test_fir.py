"""The filter [1, 3, 3, 1] and the layers of equalised learning rate."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn.equalized import EqualizedConv, EqualizedDense
from aigc_jax.nn.resample import smooth, smooth_downsample, smooth_upsample

KEY = jax.random.key(0)
TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def rng(seed=0):
    return np.random.default_rng(seed)


def image(h=6, w=4, dtype=np.float32):
    return rng().normal(size=(2, h, w, 3)).astype(dtype)


def filtered(x, pads):
    """Filter by the definition, in float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), pads, pads, (0, 0)))
    h, w = x.shape[1] - 3, x.shape[2] - 3
    return sum(TAPS[i, j] * x[:, i : i + h, j : j + w] for i, j in np.ndindex(4, 4))


# The filter


@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (2, 1), (1, 0), (3, 3)])
def test_smoothing_is_the_filter(pads):
    x = image()
    np.testing.assert_allclose(smooth(x, pads), filtered(x, pads), atol=1e-6)


@pytest.mark.parametrize("pads", [(0, 0), (1, 0), (2, 2)])
def test_its_gradient_is_its_transpose(pads):
    x = image()
    y, back = jax.vjp(lambda x: smooth(x, pads), x)
    g = rng(1).normal(size=y.shape).astype(np.float32)
    transposed = back(jnp.asarray(g))[0]
    assert transposed.shape == x.shape
    np.testing.assert_allclose(np.vdot(g, y), np.vdot(transposed, x), rtol=1e-4)
    # And the gradient of its gradient is the filter again.
    again = jax.grad(lambda g: jnp.vdot(back(g)[0], x))(jnp.asarray(g))
    np.testing.assert_allclose(again, y, atol=1e-6)


def test_halving_and_doubling_take_filtered_pixels():
    x = image()
    np.testing.assert_allclose(smooth_downsample(x), filtered(x, (1, 1))[:, ::2, ::2], atol=1e-6)
    spread = np.zeros((2, 12, 8, 3))
    spread[:, ::2, ::2] = x
    padded = np.pad(spread, ((0, 0), (2, 1), (2, 1), (0, 0)))
    np.testing.assert_allclose(smooth_upsample(x), 4 * filtered(padded, (0, 0)), atol=1e-6)


@pytest.mark.parametrize("change", [smooth_upsample, smooth_downsample])
def test_constants_stay_what_they_are_inside(change):
    y = np.asarray(change(np.full((1, 8, 8, 2), 0.7, np.float32)))
    np.testing.assert_allclose(y[:, 1:-1, 1:-1], 0.7, atol=1e-6)
    # Beyond the border are zeros: of the weights (1, 3, 3, 1)/8 a 1 is lost, halving or doubling.
    lost = {smooth_downsample: 1 / 8, smooth_upsample: 1 / 4}[change]
    np.testing.assert_allclose(y[:, 0, 1:-1], 0.7 * (1 - lost), atol=1e-6)


def test_ramps_stay_straight_and_in_place():
    # Centres of pixels: doubling turns 0, 1, 2, … into −1/4, 1/4, 3/4, …, halving into 1/2, 5/2, ….
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (1, 8, 8, 1))
    up, down = (np.asarray(f(ramp))[0, :, 2, 0] for f in (smooth_upsample, smooth_downsample))
    np.testing.assert_allclose(up[1:-1], (np.arange(1, 15) - 0.5) / 2, atol=1e-6)
    np.testing.assert_allclose(down[1:-1], [2.5, 4.5], atol=1e-6)


def test_doubling_is_four_times_the_transpose_of_halving():
    x = image(8, 4)
    y = rng(1).normal(size=(2, 4, 2, 3)).astype(np.float32)
    down, up = smooth_downsample(x), smooth_upsample(y)
    np.testing.assert_allclose(np.vdot(up, x), 4 * np.vdot(y, down), rtol=1e-4)
    np.testing.assert_allclose(jax.vjp(smooth_downsample, x)[1](y)[0], up / 4, atol=1e-6)


@pytest.mark.parametrize("change", [smooth_upsample, smooth_downsample])
def test_the_type_is_kept(change):
    x = image(4, 4)
    y = change(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), change(x), atol=0.03)


@pytest.mark.parametrize(
    "change", [smooth_upsample, smooth_downsample, lambda x: smooth(x, (1, 1))]
)
def test_smoothing_takes_images(change):
    with pytest.raises(AssertionError, match="rank"):
        change(jnp.zeros((4, 4, 4)))


# Equalised layers


@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_a_dense_layer_is_scaled_by_its_fan_in(lr):
    x = rng().normal(size=(5, 400)).astype(np.float32)
    layer = EqualizedDense(300, bias=2.0, lr=lr)
    y, variables = layer.init_with_output(KEY, x)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    # Parameters of scale 1/lr, which the layer takes lr/√400 and lr times.
    np.testing.assert_allclose(kernel.std() * lr, 1, atol=0.01)
    np.testing.assert_allclose(bias * lr, 2, rtol=1e-6)
    np.testing.assert_allclose(y, x @ kernel * lr / 20 + bias * lr, atol=1e-4)
    np.testing.assert_allclose(np.asarray(y).std(), 1, atol=0.1)


def test_a_steps_effect_is_scaled_as_the_parameters_are():
    x = np.ones((1, 4), np.float32)
    effect = {}
    for lr in (1.0, 0.01):
        layer = EqualizedDense(1, bias=None, lr=lr)
        params = layer.init(KEY, x)["params"]
        assert set(params) == {"kernel"}
        moved = jax.tree.map(lambda p: p + 0.1, params)
        effect[lr] = layer.apply({"params": moved}, x) - layer.apply({"params": params}, x)
    np.testing.assert_allclose(effect[1.0], 4 * 0.1 / 2, rtol=1e-5)
    np.testing.assert_allclose(effect[0.01], 0.01 * effect[1.0], rtol=1e-2)


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, "SAME", 6), (2, "VALID", 2)])
def test_a_convolution_is_scaled_by_its_fan_in(stride, padding, size):
    x = rng().normal(size=(1, 6, 6, 4)).astype(np.float32)
    layer = EqualizedConv(5, stride, padding)
    y, variables = layer.init_with_output(KEY, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    chex.assert_shape([y, kernel, bias], [(1, size, size, 5), (3, 3, 4, 5), (5,)])
    # The middle of the result's first pixel, whose whole window is inside.
    at = (1, 1) if padding == "SAME" else (0, 0)
    expected = np.einsum("ijc,ijcd->d", x[0, :3, :3], kernel) / 6  # √(9·4)
    np.testing.assert_allclose(y[0][at], expected, atol=1e-5)


@pytest.mark.parametrize("layer", [EqualizedDense, EqualizedConv])
def test_parameters_stay_float32(layer):
    init = functools.partial(layer(5, dtype=jnp.bfloat16).init_with_output, KEY)
    y, variables = jax.eval_shape(init, jnp.zeros((1, 4, 4, 3)))
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
