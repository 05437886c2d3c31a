import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.vqvae import Decoder, Encoder, Residual


def shapes(network, *shape):
    return jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros(shape))


def size(variables):
    return sum(x.size for x in jax.tree.leaves(variables))


@pytest.mark.parametrize(("side", "colours"), [(32, 3), (28, 1)])
def test_a_quarter_of_the_size_lies_between_them(side, colours):
    z, _ = shapes(Encoder(), 2, side, side, colours)
    assert z.shape == (2, side // 4, side // 4, 64)
    assert shapes(Decoder(colours), *z.shape)[0].shape == (2, side, side, colours)


def test_they_have_the_published_recipes_size():
    def conv(kernel, c, d):
        return kernel**2 * c * d + d

    residual = 2 * (conv(3, 128, 32) + conv(1, 32, 128))
    encoder = conv(4, 3, 64) + conv(4, 64, 128) + conv(3, 128, 128) + residual + conv(1, 128, 64)
    decoder = conv(3, 64, 128) + residual + conv(4, 128, 64) + conv(4, 64, 3)
    assert size(shapes(Encoder(), 1, 32, 32, 3)[1]) == encoder == 372_416
    assert size(shapes(Decoder(), 1, 8, 8, 64)[1]) == decoder == 290_307


def test_residual_blocks_add_to_what_they_read():
    network, x = Residual(4, 2), jnp.linspace(-1, 1, 32).reshape(1, 4, 4, 2)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), params)
    np.testing.assert_array_equal(network.apply(zeros, x), jnp.maximum(x, 0))


def test_in_bfloat16_weights_and_results_stay_float32():
    for network, shape in ((Encoder(dtype=jnp.bfloat16), (1, 8, 8, 1)), (Decoder(), (1, 2, 2, 4))):
        y, variables = shapes(network, *shape)
        assert y.dtype == jnp.float32
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_images_must_divide_by_four():
    with pytest.raises(ValueError, match=r"^the encoder halves images twice; 30×28 does not"):
        shapes(Encoder(), 1, 30, 28, 1)
