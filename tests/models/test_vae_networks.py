import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.conv_vae import ConvDecoder, ConvEncoder
from aigc_jax.models.vae import MLPDecoder, MLPEncoder


@functools.cache
def start(network, *args_shape):
    """Initialise a network on zeros of a shape, and labels if it has classes."""
    x = jnp.zeros(args_shape)
    label = (jnp.zeros(len(x), jnp.int32),) if network.classes else ()
    output, variables = jax.jit(network.init_with_output)(stream(0, "init"), x, *label)
    return output, variables["params"]


@pytest.mark.parametrize(
    ("network", "shape"),
    [(MLPEncoder(4, 32), (2, 16, 16, 1)), (MLPDecoder((8, 8, 1), 64), (2, 16))],
)
def test_dense_layers_start_as_pytorchs_do(network, shape):
    """Kernel and bias alike U(±1/√n): within, as wide as that, and of its variance 1/(3n)."""
    _, params = start(network, *shape)
    assert set(params) == {"Dense_0", "Dense_1"}
    for layer in params.values():
        n = layer["kernel"].shape[0]
        values = np.sqrt(n) * np.asarray(layer["kernel"]).ravel()
        assert np.abs(values).max() <= 1 and np.abs(values).max() > 0.99
        assert abs(values.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / values.size)
        bias = np.sqrt(n) * np.asarray(layer["bias"])
        assert 0.7 < np.abs(bias).max() <= 1


def test_the_encoder_reads_black_as_0():
    network = MLPEncoder(2, 8)
    _, params = start(network, 1, 4, 4, 1)
    black = -jnp.ones((1, 4, 4, 1))
    other = {**params, "Dense_0": {**params["Dense_0"], "kernel": jnp.ones((16, 8))}}
    for one, two in zip(
        network.apply({"params": params}, black),
        network.apply({"params": other}, black),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("size", "channels", "down", "grid"),
    [
        ((28, 28, 1), (4, 8), 16 * 1 * 4 + 4 + 16 * 4 * 8 + 8, 7 * 7 * 8),
        ((32, 32, 3), (4, 8, 8), 16 * 3 * 4 + 4 + 16 * 4 * 8 + 8 + 16 * 8 * 8 + 8, 4 * 4 * 8),
    ],
)
def test_convolutions_halve_and_double(size, channels, down, grid):
    shapes = lambda network, *shape: jax.eval_shape(
        network.init_with_output, stream(0, "init"), jnp.zeros(shape)
    )
    (mu, logvar), variables = shapes(ConvEncoder(5, channels, 6), 2, *size)
    assert mu.shape == logvar.shape == (2, 5)
    sizes = sum(x.size for x in jax.tree.leaves(variables))
    assert sizes == down + (grid * 6 + 6) + (6 * 10 + 10)
    for outputs in (1, 2):
        output, _ = shapes(ConvDecoder(size, channels[::-1], 6, outputs), 2, 5)
        assert output.shape == (2, *size[:2], outputs * size[2]) and output.dtype == jnp.float32


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_labels_change_what_comes_out(kind):
    if kind == "dense":
        pair = MLPEncoder(2, 8, classes=3), MLPDecoder((8, 8, 1), 8, classes=3)
    else:
        pair = ConvEncoder(2, (4,), 8, classes=3), ConvDecoder((8, 8, 1), (4,), 8, classes=3)
    label = jnp.array([0, 1, 2])
    for network, shape in zip(pair, ((3, 8, 8, 1), (3, 2)), strict=True):
        _, params = start(network, *shape)
        output = network.apply({"params": params}, jnp.zeros(shape), label)
        rows = np.asarray(jax.tree.leaves(output)[0]).reshape(3, -1)
        assert len(np.unique(rows, axis=0)) == 3
        with pytest.raises(ValueError, match=r"^a network of classes=3 needs a label"):
            network.apply({"params": params}, jnp.zeros(shape))


def test_a_decoder_of_logits_divides_over_its_channels():
    output, _ = start(MLPDecoder((2, 2, 3), 4, 256), 2, 2)
    assert output.shape == (2, 2, 2, 768)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"^channels=\(4, 4, 4\) halve 3 times; 28×28 does not"):
        start(ConvEncoder(2, (4, 4, 4)), 1, 28, 28, 1)
    with pytest.raises(ValueError, match=r"halve 3 times; 28×28 does not"):
        start(ConvDecoder((28, 28, 1), (4, 4, 4)), 1, 2)
