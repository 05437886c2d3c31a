import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.autoencoder_kl import Decoder, Encoder

KEY = jax.random.key(0)
ENCODER = Encoder(4, (1, 2), 1, latent=2)
DECODER = Decoder(4, (1, 2), 1, colours=1)
X = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 1)).astype(np.float32)


def shapes(network, *shape):
    """Return the shapes of what a network returns and of its parameters, computing neither."""
    output, variables = jax.eval_shape(network.init_with_output, KEY, jnp.zeros(shape))
    return output, variables["params"]


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_the_defaults_are_those_of_stable_diffusion():
    # Its `AutoencoderKL` has 83,653,863 parameters, and 4 channels at an eighth of the resolution.
    (mu, logvar), encoder = shapes(Encoder(), 1, 64, 96, 3)
    assert mu.shape == logvar.shape == (1, 8, 12, 4) and mu.dtype == logvar.dtype == jnp.float32
    image, decoder = shapes(Decoder(), *mu.shape)
    assert image.shape == (1, 64, 96, 3) and image.dtype == jnp.float32
    assert count(encoder) + count(decoder) == 83_653_863
    # Of which the 1×1 convolutions beside the latent are 8·8 + 8 and 4·4 + 4.
    plain = shapes(Encoder(pointwise=False), 1, 64, 64, 3)[1]
    assert count(encoder) - count(plain) == 8 * 8 + 8
    plain = shapes(Decoder(pointwise=False), *mu.shape)[1]
    assert count(decoder) - count(plain) == 4 * 4 + 4


def test_the_decoder_has_a_block_a_level_more():
    (mu, _), encoder = shapes(ENCODER.clone(multipliers=(1, 2, 2)), 1, 8, 8, 1)
    image, decoder = shapes(DECODER.clone(multipliers=(1, 2, 2)), *mu.shape)
    assert mu.shape == (1, 2, 2, 2) and image.shape == (1, 8, 8, 1)
    ends = {"conv_in", "conv_out", "norm_out", "pointwise"}
    middle = {"middle1", "middle2", "middle_attention"}
    down = {"down0_0", "down1_0", "down2_0", "down0_resample", "down1_resample"}
    up = {f"up{level}_{i}" for level in range(3) for i in range(2)}
    assert set(encoder) == ends | middle | down
    assert set(decoder) == ends | middle | up | {"up1_resample", "up2_resample"}
    assert "embed" not in encoder["down0_0"]
    assert encoder["down1_0"]["conv1"]["kernel"].shape == (3, 3, 4, 8)
    assert decoder["up0_0"]["conv1"]["kernel"].shape == (3, 3, 8, 4)


@pytest.mark.parametrize(("heights", "levels"), [((4,), {1}), ((8, 4), {0, 1}), ((2,), set())])
def test_blocks_attend_at_the_heights_told(heights, levels):
    (mu, _), encoder = shapes(ENCODER.clone(attention=heights), 1, 8, 12, 1)
    _, decoder = shapes(DECODER.clone(attention=heights), *mu.shape)
    for params, side, blocks in ((encoder, "down", 1), (decoder, "up", 2)):
        attending = {name for name in params if name.endswith("_attention")}
        expected = {f"{side}{level}_{i}_attention" for level in levels for i in range(blocks)}
        assert attending == expected | {"middle_attention"}


def test_only_the_end_of_rows_and_columns_is_padded_where_they_are_halved():
    jaxpr = str(jax.make_jaxpr(lambda: ENCODER.init_with_output(KEY, X)[0])())
    found = re.findall(r"padding=(\(\(.*?\)\)).*?window_strides=\((\d), \d\)", jaxpr, re.DOTALL)
    assert set(found) == {("((0, 1), (0, 1))", "2"), ("((1, 1), (1, 1))", "1")}


@pytest.fixture(scope="module")
def encode():
    """As if it were trained: at the start all that is a residual is 0."""
    leaves, treedef = jax.tree.flatten(shapes(ENCODER, *X.shape)[1])
    rng = np.random.default_rng(1)
    leaves = [0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(treedef, leaves)

    @jax.jit
    def run(x, bias):
        of = {**params["pointwise"], "bias": params["pointwise"]["bias"] + bias}
        return ENCODER.apply({"params": {**params, "pointwise": of}}, x)

    return functools.partial(run, bias=0.0), run


def test_log_variances_are_clipped_and_means_are_not(encode):
    plain, run = encode
    bias = np.array([500.0, -500.0, 500.0, -500.0], np.float32)
    mu, logvar = run(X, bias)
    np.testing.assert_allclose(mu - plain(X)[0], np.broadcast_to(bias[:2], mu.shape), atol=1e-3)
    np.testing.assert_array_equal(logvar, np.broadcast_to([20.0, -30.0], logvar.shape))
    assert (np.abs(plain(X)[1]) < 20).all()


def test_examples_do_not_mix(encode):
    plain, _ = encode
    once, again = plain(X), plain(X * [[[[1.0]]], [[[2.0]]]])
    for a, b in zip(once, again, strict=True):
        assert (np.asarray(a)[0] == np.asarray(b)[0]).all()
        assert (np.asarray(a)[1] != np.asarray(b)[1]).all()


def test_bfloat16_computes_and_float32_remembers():
    for network, shape in ((ENCODER, X.shape), (DECODER, (2, 2, 2, 2))):
        network = network.clone(dtype=jnp.bfloat16)
        output, params = shapes(network, *shape)
        float32 = {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves((output, params))} == float32
        jaxpr = str(
            jax.make_jaxpr(lambda n=network, s=shape: n.init_with_output(KEY, jnp.ones(s)))()
        )
        of_convolutions = re.findall(r":(\w+)\[[^]]*\] = conv_general_dilated", jaxpr)
        assert of_convolutions == ["bf16"] * (len(of_convolutions) - 1) + ["f32"]


def test_images_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="images of 6×8 do not divide by 4, as multipliers="):
        shapes(ENCODER.clone(multipliers=(1, 1, 1)), 1, 6, 8, 1)
