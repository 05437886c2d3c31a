import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax.nn.embed import Embed, append_label, check_label, sinusoidal, tied_logits
from aigc_jax.nn.norm import GroupNorm, group_norm
from aigc_jax.nn.resample import depth_to_space, downsample, space_to_depth, upsample

# Normalisation


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(512, 32), (128, 32), (64, 16), (32, 8), (16, 4), (8, 2), (4, 1), (3, 1), (1, 1), (100, 25)],
)
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("channels", [6, 36, 132, 130, 7, 320])
def test_groups_divide_any_number_of_channels(channels):
    groups = group_norm(channels).num_groups
    assert channels % groups == 0 and groups <= 32
    assert channels / groups >= 4 or groups == 1


def test_groups_and_epsilon_may_be_given():
    norm = group_norm(128, groups=4, epsilon=0.5)
    assert (norm.num_groups, norm.epsilon) == (4, 0.5)


def test_each_group_is_normalised():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 4, 8)).astype(np.float32)
    y, _ = group_norm(8).init_with_output(jax.random.key(0), x)
    groups = np.asarray(y, np.float64).reshape(2, 16, 2, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var((1, 3)), 1, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 3, 12), (3, 5, 12), (2, 12)])
def test_it_is_flaxs_group_norm(shape):
    r = np.random.default_rng(0)
    x, g = (r.normal(1.0, 2.0, shape).astype(np.float32) for _ in range(2))
    params = {name: r.normal(size=12).astype(np.float32) for name in ("scale", "bias")}
    results = [
        jax.vjp(lambda params, x, norm=norm: norm.apply({"params": params}, x), params, x)
        for norm in (GroupNorm(3), nn.GroupNorm(3))
    ]
    chex.assert_trees_all_close(*((y, back(g)) for y, back in results), rtol=1e-4, atol=1e-4)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_groups=3 must divide the 8 channels"):
        GroupNorm(3).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


def test_statistics_are_taken_in_float32():
    # Whole numbers about 128 are exact in bfloat16; their squares and sums are not.
    x = 128.0 + np.random.default_rng(0).integers(-2, 3, (1, 16, 16, 4))
    y, variables = group_norm(4, jnp.bfloat16).init_with_output(
        jax.random.key(0), jnp.asarray(x, jnp.bfloat16)
    )
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    expected = (x - x.mean()) / x.std()
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.02)


# Embedding


def test_sinusoidal_is_sines_then_cosines_of_geometric_wavelengths():
    t, channels, longest = np.array([0.0, 1.0, 2.5, 999.0]), 8, 100.0
    frequency = [longest ** -(i / 3) for i in range(4)]  # 1 down to 1/longest
    angle = np.outer(t, frequency)
    expected = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    result = sinusoidal(jnp.asarray(t), channels, longest)
    np.testing.assert_allclose(result, expected, atol=2e-4)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("freq_shift", [0, 0.5, 1])
def test_sinusoidal_may_begin_with_cosines_and_shift_its_frequencies(freq_shift):
    t, n = np.array([0.0, 1.0, 31.5, 999.0]), 8
    angle = np.outer(t, [10_000.0 ** -(i / (n - freq_shift)) for i in range(n)])
    expected = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    result = sinusoidal(jnp.asarray(t), 2 * n, freq_shift=freq_shift, flip_sin_to_cos=True)
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_sinusoidal_needs_more_channels_than_it_shifts():
    assert sinusoidal(jnp.zeros(1), 2, freq_shift=0).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="channels=0 must be even and at least 2"):
        sinusoidal(jnp.zeros(1), 0, freq_shift=0)
    with pytest.raises(ValueError, match="channels=4 must be even and at least 6"):
        sinusoidal(jnp.zeros(1), 4, freq_shift=2)


def test_sinusoidal_tells_the_steps_of_ddpm_apart():
    embedded = np.asarray(sinusoidal(jnp.arange(1000), 32))
    apart = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1)
    assert apart[~np.eye(1000, dtype=bool)].min() > 0.5


@pytest.mark.parametrize("channels", [0, 2, 7])
def test_sinusoidal_needs_an_even_number_of_channels(channels):
    with pytest.raises(ValueError, match=f"channels={channels} must be even and at least 4"):
        sinusoidal(jnp.zeros(1), channels)


def test_sinusoidal_takes_times_by_example():
    with pytest.raises(AssertionError, match="rank"):
        sinusoidal(jnp.zeros(()), 4)


@pytest.mark.parametrize("pixels", [(), (2, 3)])
def test_a_label_is_appended_at_every_pixel(pixels):
    label = jnp.array([2, 0, 1, 2])
    x = np.random.default_rng(0).normal(size=(4, *pixels, 5)).astype(np.float32)
    y = append_label(x, label, 4)
    assert y.shape == (4, *pixels, 9) and y.dtype == jnp.float32
    np.testing.assert_array_equal(y[..., :5], x)
    expected = np.eye(4, dtype=np.float32)[np.asarray(label)]
    flat = np.asarray(y[..., 5:]).reshape(4, -1, 4)
    np.testing.assert_array_equal(flat, np.broadcast_to(expected[:, None], flat.shape))


def test_without_classes_nothing_is_appended():
    x = jnp.ones((3, 2))
    assert append_label(x, None, 0) is x


def test_a_label_takes_the_type_it_is_appended_to():
    assert append_label(jnp.ones((1, 2), jnp.bfloat16), jnp.zeros(1, int), 3).dtype == jnp.bfloat16


def test_labels_are_taken_where_there_are_classes():
    check_label(jnp.zeros(2, int), 3)
    check_label(None, 0)
    for refuse in (
        check_label,
        lambda label, classes: append_label(jnp.ones((2, 1)), label, classes),
    ):
        with pytest.raises(ValueError, match="a network of classes=3 needs a label"):
            refuse(None, 3)
        with pytest.raises(ValueError, match="a label was given, but this network has classes=0"):
            refuse(jnp.zeros(2, int), 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_there_is_a_label_an_example(shape):
    with pytest.raises(AssertionError):
        append_label(jnp.ones((2, 1)), jnp.zeros(shape, int), 3)


# Resampling

X = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)


def test_upsample_repeats_pixels():
    assert (np.asarray(upsample(X)) == X.repeat(2, 1).repeat(2, 2)).all()


def test_downsample_averages_pixels():
    corners = [X[:, i::2, j::2].astype(np.float64) for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(downsample(X), np.mean(corners, 0), atol=1e-6)


def test_downsample_undoes_upsample():
    np.testing.assert_allclose(downsample(upsample(X)), X, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2])
def test_depth_to_space_undoes_space_to_depth(p):
    folded = space_to_depth(X, p)
    assert folded.shape == (2, 4 // p, 6 // p, 3 * p * p)
    assert (np.asarray(depth_to_space(folded, p)) == X).all()


def test_space_to_depth_folds_whole_patches():
    folded = np.asarray(space_to_depth(X, 2))
    assert (folded[1, 0, 2] == X[1, 0:2, 4:6].ravel()).all()
    other_way = depth_to_space(jnp.asarray(folded), 2)
    assert (np.asarray(space_to_depth(other_way, 2)) == folded).all()


@pytest.mark.parametrize(
    "change", [upsample, downsample, lambda x: space_to_depth(x, 2), lambda x: depth_to_space(x, 2)]
)
def test_resampling_takes_images(change):
    with pytest.raises(AssertionError, match="rank"):
        change(jnp.zeros((4, 4, 4)))


@pytest.mark.parametrize("change", [downsample, lambda x: space_to_depth(x, 2)])
def test_odd_sizes_are_refused(change):
    with pytest.raises(TypeError, match="reshape"):
        change(jnp.zeros((1, 5, 4, 1)))


def test_a_frequent_token_gets_all_of_its_gradient_in_half_precision_too():
    layer = Embed(3, 2, dtype=jnp.bfloat16)
    index = jnp.zeros((64, 64), jnp.int32).at[0, 0].set(2)
    params = layer.init(jax.random.key(0), index)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == {
        "params": {"embedding": ((3, 2), jnp.float32)}
    }
    assert layer.apply(params, index).dtype == jnp.bfloat16
    total = lambda params: layer.apply(params, index).astype(jnp.float32).sum()
    table = jax.grad(total)(params)["params"]["embedding"]
    np.testing.assert_array_equal(table, [[4095, 4095], [0, 0], [1, 1]])


def test_embeddings_are_those_of_flax():
    index = jnp.array([[0, 2], [1, 1]])
    params = nn.Embed(3, 4).init(jax.random.key(0), index)
    chex.assert_trees_all_equal(Embed(3, 4).init(jax.random.key(0), index), params)
    np.testing.assert_array_equal(
        Embed(3, 4).apply(params, index), nn.Embed(3, 4).apply(params, index)
    )
    assert np.isnan(Embed(3, 4).apply(params, jnp.array([3]))).all()


def test_tied_logits_and_their_gradients():
    rng = np.random.default_rng(0)
    x, table, g = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (5, 4), (2, 3, 5)))
    logits, back = jax.vjp(tied_logits, x, table)
    np.testing.assert_allclose(logits, x @ table.T, rtol=1e-5)
    np.testing.assert_allclose(back(g)[0], g @ table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back(g)[1], np.einsum("btv,btw->vw", g, x), rtol=1e-4, atol=1e-5)
    half = x.astype(jnp.bfloat16)
    train = lambda x, table: jax.vjp(tied_logits, x, table)[1](g)
    of_x, of_table = jax.eval_shape(train, half, table)
    assert of_x.dtype == jnp.bfloat16 and of_table.dtype == jnp.float32
    text = jax.jit(train).lower(half, table).as_text()
    operands = re.findall(r"dot_general .*: \(tensor<[^>]*x(\w+)>, tensor<[^>]*x(\w+)>\)", text)
    assert operands and set(operands) == {("bf16", "bf16")}


def test_a_normalised_activation_is_kept_in_its_own_type():
    x = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    layer = GroupNorm(2, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    _, back = jax.vjp(lambda x: layer.apply(params, x), x)
    kept = {leaf.dtype for leaf in jax.tree.leaves(back) if leaf.shape == x.shape}
    assert kept == {jnp.dtype(jnp.bfloat16)}
    assert back(jnp.ones_like(x))[0].dtype == jnp.bfloat16
