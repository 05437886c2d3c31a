import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.unet import Levels, ResidualBlock, UNet
from aigc_jax.nn import norm
from aigc_jax.nn.resample import downsample, upsample

KEY = jax.random.key(0)
SMALL = UNet(8, (1, 2), 1, attention=(), dropout=0.0, classes=3)
# What is compiled has one level and three blocks.
TINY = UNet(8, (1,), 0, attention=(), dropout=0.0, classes=3)


def rng(seed=0):
    return np.random.default_rng(seed)


X = rng().normal(size=(2, 4, 4, 1)).astype(np.float32)
T = np.array([3.0, 700.0], np.float32)
LABEL = np.array([0, 2], np.int32)


def shapes(network, size=8, channels=1, label=None, **options):
    """Return the output's shape and type, and those of the parameters, without computing any."""
    x = jnp.zeros((2, size, size, channels))
    init = functools.partial(network.init_with_output, **options)
    output, variables = jax.eval_shape(init, KEY, x, jnp.zeros(2), label)
    return output, variables["params"]


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def initial():
    return jax.jit(TINY.init_with_output)(KEY, X, T, LABEL)


@pytest.fixture(scope="module")
def params(initial):
    """As if they were trained: at the start all that is a residual is 0."""
    leaves, treedef = jax.tree.flatten(initial[1]["params"])
    leaves = [
        x + 0.1 * rng(i).normal(size=x.shape).astype(np.float32) for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, leaves)


@functools.cache
def compiled(network, train=False):
    def run(params, x, t, label, key):
        return network.apply({"params": params}, x, t, label, train=train, rngs={"dropout": key})

    return jax.jit(run)


def test_parameters_of_ddpm_for_32x32():
    # Ho et al. 2020, appendix B: 35.7 million.
    output, params = shapes(UNet(), size=32, channels=3)
    assert count(params) == 35_746_307
    assert output.shape == (2, 32, 32, 3) and output.dtype == jnp.float32
    # Attention at 16×16, by two blocks down and three up, and in the middle.
    assert sorted(name for name in params if "attention" in name) == [
        "down1_0_attention",
        "down1_1_attention",
        "middle_attention",
        "up1_0_attention",
        "up1_1_attention",
        "up1_2_attention",
    ]


def test_parameters_of_ddpm_for_256x256():
    # Ho et al. 2020, appendix B: 114 million.
    network = UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)
    _, params = shapes(network, size=256, channels=3)
    assert round(count(params) / 1e6) == 114


def test_output_starts_at_zero(initial):
    output, _ = initial
    assert output.shape == X.shape and (np.asarray(output) == 0).all()


def test_every_input_counts(params):
    run = lambda x, t, label: np.asarray(compiled(TINY)(params, x, t, label, KEY))
    output = run(X, T, LABEL)
    assert np.isfinite(output).all() and (output != 0).all()
    for other in (run(X + 1, T, LABEL), run(X, T + 1, LABEL), run(X, T, 2 - LABEL)):
        assert np.abs(other - output).max(axis=(1, 2, 3)).min() > 1e-4


def test_examples_do_not_mix(params):
    output = compiled(TINY)(params, X, T, LABEL, KEY)
    changed = compiled(TINY)(params, X * [[[[1.0]]], [[[2.0]]]], T, LABEL, KEY)
    assert (np.asarray(changed)[0] == np.asarray(output)[0]).all()
    assert (np.asarray(changed)[1] != np.asarray(output)[1]).any()


def test_no_label_is_the_label_after_the_last(params):
    none = compiled(TINY)(params, X, T, None, KEY)
    last = compiled(TINY)(params, X, T, np.full(2, 3, np.int32), KEY)
    assert (np.asarray(none) == np.asarray(last)).all()
    assert params["label"]["embedding"].shape == (3 + 1, 32)


def test_dropout_needs_a_key_and_heeds_it(params):
    network = TINY.clone(dropout=0.5)
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(lambda: network.apply({"params": params}, X, T, LABEL, train=True))
    train = compiled(network, train=True)
    one, same, other = (train(params, X, T, LABEL, jax.random.key(i)) for i in (0, 0, 1))
    assert (np.asarray(one) == np.asarray(same)).all()
    assert (np.asarray(one) != np.asarray(other)).any()
    # Without training there is none.
    jaxpr = jax.make_jaxpr(lambda: network.apply({"params": params}, X, T, LABEL))()
    assert "random_bits" not in str(jaxpr)


@pytest.mark.parametrize("remat", ["activations", "blocks"])
def test_remat_changes_no_output_and_no_gradient(params, remat):
    def run(network):
        def loss(params):
            output = network.apply({"params": params}, X, T, LABEL, train=True)
            return jnp.sum(jnp.sin(output)), output

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    plain, again = (run(TINY.clone(remat=remat)) for remat in ("nothing", remat))
    chex.assert_trees_all_close(plain(params), again(params), rtol=1e-4, atol=1e-5)


def test_remat_stores_less_the_more_it_recomputes(params):
    def stored(remat):
        run = lambda params: TINY.clone(remat=remat).apply({"params": params}, X, T, LABEL)
        pullback = jax.eval_shape(lambda params: jax.vjp(run, params)[1], params)
        return sum(x.size for x in jax.tree.leaves(pullback))

    nothing, activations, blocks = map(stored, ("nothing", "activations", "blocks"))
    assert blocks < activations < 0.7 * nothing


def test_another_remat_is_refused():
    with pytest.raises(ValueError, match="remat='all' must be one of nothing, activations, blocks"):
        shapes(TINY.clone(remat="all"))


def test_bfloat16_computes_and_float32_remembers(params):
    network = TINY.clone(dtype=jnp.bfloat16)
    output, of = shapes(network)
    assert output.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(of)} == {jnp.dtype(jnp.float32)}
    half = compiled(network)(params, X, T, LABEL, KEY)
    exact = np.asarray(compiled(TINY)(params, X, T, LABEL, KEY))
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05
    jaxpr = str(jax.make_jaxpr(lambda: network.apply({"params": params}, X, T, LABEL))())
    of_convolutions = re.findall(r":(\w+)\[[^]]*\] = conv_general_dilated", jaxpr)
    assert of_convolutions == ["bf16"] * (len(of_convolutions) - 1) + ["f32"]


# The options of ADM


def test_embedding_may_scale_and_shift():
    _, params = shapes(SMALL.clone(scale_shift=True))
    assert params["middle1"]["embed"]["kernel"].shape == (32, 2 * 16)
    _, params = shapes(SMALL)
    assert params["middle1"]["embed"]["kernel"].shape == (32, 16)


def test_resolution_may_change_in_residual_blocks():
    output, params = shapes(SMALL.clone(resample_blocks=True))
    assert output.shape == (2, 8, 8, 1)
    for name in ("down0_resample", "up1_resample"):
        assert {"conv1", "conv2", "embed", "norm1", "norm2"} == set(params[name])
    _, params = shapes(SMALL)
    for name in ("down0_resample", "up1_resample"):
        assert set(params[name]) == {"kernel", "bias"}


def test_heads_have_the_channels_asked_for():
    _, params = shapes(SMALL.clone(attention=(4,), head_channels=4))
    assert params["down1_0_attention"]["query"]["kernel"].shape == (16, 4, 4)
    assert "down0_0_attention" not in params
    _, params = shapes(SMALL.clone(attention=(4,)))
    assert params["down1_0_attention"]["query"]["kernel"].shape == (16, 1, 16)


# What other codes differ in


def test_attention_may_be_by_level_and_side():
    _, params = shapes(SMALL.clone(attention=Levels(down=(1,), up=(0,))))
    assert sorted(name for name in params if "attention" in name) == [
        "down1_0_attention",
        "middle_attention",
        "up0_0_attention",
        "up0_1_attention",
    ]
    # Whatever the size of the image.
    of_another, _ = jax.tree.flatten(shapes(SMALL.clone(attention=Levels((1,), (0,))), size=6)[1])
    assert [x.shape for x in of_another] == [x.shape for x in jax.tree.leaves(params)]


def test_resolution_may_change_in_some_residual_blocks():
    network = SMALL.clone(multipliers=(1, 2, 2), resample_blocks=Levels(down=(1,), up=(1,)))
    _, params = shapes(network)
    in_blocks = {name for name in params if "resample" in name and "conv1" in params[name]}
    assert in_blocks == {"down1_resample", "up1_resample"}
    assert {name for name in params if "resample" in name} - in_blocks == {
        "down0_resample",
        "up2_resample",
    }


def test_the_middle_need_not_attend():
    _, params = shapes(SMALL.clone(middle_attention=False))
    assert "middle_attention" not in params and {"middle1", "middle2"} <= set(params)


@pytest.mark.parametrize(("groups", "middle_groups", "of_middle"), [(2, None, 2), (2, 4, 4)])
def test_groups_and_epsilon_are_of_every_normalisation(
    groups, middle_groups, of_middle, monkeypatch
):
    made = []

    class Recorded(norm.GroupNorm):
        def __call__(self, x):
            made.append((self.scope.path[0], self.num_groups, self.epsilon))
            return super().__call__(x)

    monkeypatch.setattr(norm, "GroupNorm", Recorded)
    shapes(SMALL.clone(groups=groups, middle_groups=middle_groups, epsilon=0.25))
    assert {epsilon for *_, epsilon in made} == {0.25}
    assert {n for module, n, _ in made if module == "middle_attention"} == {of_middle}
    assert {n for module, n, _ in made if module != "middle_attention"} == {groups}


def test_the_middles_attention_may_go_without_normalisation():
    _, params = shapes(SMALL.clone(middle_groups=0))
    assert "GroupNorm_0" not in params["middle_attention"]


def test_channels_may_be_any():
    _, params = shapes(SMALL.clone(channels=12, multipliers=(1, 20 / 12), embedding_channels=10))
    assert params["down1_0"]["conv1"]["kernel"].shape == (3, 3, 12, 20)
    assert params["time1"]["kernel"].shape == (12, 10)
    assert params["down1_0"]["embed"]["kernel"].shape == (10, 20)


def test_downsampling_convolutions_pad_as_told():
    def run(padding):
        network = UNet(4, (1, 1), 0, attention=(), dropout=0.0, downsample_padding=padding)
        x = jnp.zeros((1, 4, 4, 1))
        return str(jax.make_jaxpr(lambda: network.init_with_output(KEY, x, jnp.zeros(1))[0])())

    for padding in ((0, 1), (1, 1)):
        assert f"padding=({padding}, {padding})" in run(padding)
    assert "padding=((0, 1), (0, 1))" not in run((1, 1))


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, upsample, downsample])
def test_block_starts_as_its_skip(resample, scale_shift):
    x = rng(1).normal(size=(2, 4, 4, 8)).astype(np.float32)
    block = ResidualBlock(8, scale_shift=scale_shift, resample=resample)
    output, _ = block.init_with_output(KEY, x, jnp.ones((2, 8)), False)
    expected = resample(x) if resample else x
    assert (np.asarray(output) == np.asarray(expected)).all()


@pytest.mark.parametrize(("resample", "side"), [(upsample, 8), (downsample, 2)])
def test_block_changes_the_resolution_before_it_convolves(resample, side):
    block, x = ResidualBlock(8, resample=resample), jnp.zeros((2, 4, 4, 8))
    jaxpr = jax.make_jaxpr(lambda: block.init_with_output(KEY, x, jnp.ones((2, 8)), False)[0])()
    sizes = re.findall(r":f32\[([^]]*)\] = conv_general_dilated", str(jaxpr))
    assert sizes == [f"2,{side},{side},8"] * 2


def test_scale_and_shift_act_on_the_normalised_features():
    # The embedding's first half scales about 1, its second shifts.
    block = ResidualBlock(4, scale_shift=True)
    x, emb = rng(1).normal(size=(1, 4, 4, 4)).astype(np.float32), jnp.ones((1, 1))
    params = block.init(KEY, x, emb, False)["params"]
    eye = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    silu_of_one = jax.nn.silu(1.0)

    def run(scale, shift):
        kernel = jnp.concatenate([jnp.full((1, 4), scale), jnp.full((1, 4), shift)], 1)
        changed = {
            **params,
            "conv1": {"kernel": eye, "bias": jnp.zeros(4)},
            "conv2": {"kernel": eye, "bias": jnp.zeros(4)},
            "embed": {"kernel": kernel / silu_of_one, "bias": jnp.zeros(8)},
        }
        return block.apply({"params": changed}, x, emb, False)

    normalise = lambda y: (y - y.mean()) / jnp.sqrt(y.var() + 1e-6)
    features = normalise(jax.nn.silu(normalise(x)))
    for scale, shift in [(0.0, 0.0), (1.5, -0.5)]:
        expected = x + jax.nn.silu(features * (1 + scale) + shift)
        np.testing.assert_allclose(run(scale, shift), expected, atol=1e-4)


# Shapes


def test_patches_make_the_network_smaller_inside():
    network = SMALL.clone(patch=2, out_channels=6)
    output, params = shapes(network, channels=3)
    assert output.shape == (2, 8, 8, 6)
    assert params["conv_in"]["kernel"].shape == (3, 3, 3 * 4, 8)
    assert params["conv_out"]["kernel"].shape == (3, 3, 8, 6 * 4)


def test_images_need_not_be_square():
    output, _ = jax.eval_shape(SMALL.init_with_output, KEY, jnp.zeros((1, 4, 10, 3)), jnp.zeros(1))
    assert output.shape == (1, 4, 10, 3)


@pytest.mark.parametrize(
    ("network", "size", "label", "message"),
    [
        (SMALL, 7, None, "images of 7×7 do not divide by 2"),
        (
            SMALL.clone(multipliers=(1, 1, 1), patch=2),
            12,
            None,
            "images of 12×12 do not divide by 8",
        ),
        (SMALL.clone(classes=0), 8, LABEL, "a label was given to a U-Net with classes=0"),
        (SMALL.clone(channels=5), 8, None, "channels=5 must be even"),
    ],
)
def test_what_cannot_be_is_refused(network, size, label, message):
    with pytest.raises(ValueError, match=message):
        shapes(network, size, label=label)
