import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from aigc_jax.models.resnet_gan import (
    ConditionalBatchNorm,
    Discriminator,
    Generator,
    ResidualBlock,
    spectral_norm,
)
from aigc_jax.nn.conv import NHWC, Conv
from aigc_jax.nn.resample import downsample, upsample

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 5)).astype(np.float32)
X = RNG.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
LABEL = np.array([0, 2, 1, 2], np.int32)
GENERATOR = Generator(16, width=8)
DISCRIMINATOR = Discriminator(16, width=8)
R3GAN = {"fixup": True, "slope": 0.2}


def shapes(network, *inputs):
    """Return the shapes of what a network returns and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, *inputs)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def trained(tree):
    """As if it were trained: what starts at 0, or at 1, alike for all labels, no longer is."""
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    leaves = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(treedef, leaves)


def conv(x, layer):
    """Convolve without a module, in the papers' order of operations."""
    y = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
    return y + layer["bias"]


@functools.cache
def variables(network, conditional=False):
    x = Z if isinstance(network, Generator) else X
    return jax.jit(network.init)(KEY, x, *([LABEL] if conditional else []))


@functools.cache
def compiled(network):
    return jax.jit(network.apply)


def test_parameters_of_the_generator_for_32x32():
    # Dense 128 -> 4·4·256: 128·4096 + 4096 = 528,384.
    # A block: two convolutions of 9·256·256 + 256 = 590,080, a 1×1 one of 256·256 + 256 = 65,792
    # on the skip, which resampling blocks learn, two BatchNorms of 512: 1,246,976; three of them.
    # BatchNorm 512; convolution to the image 9·256·3 + 3 = 6,915.
    image, of = shapes(Generator(), jnp.zeros((2, 128)))
    assert image.shape == (2, 32, 32, 3) and image.dtype == jnp.float32
    assert count(of["params"]) == 528_384 + 3 * 1_246_976 + 512 + 6_915 == 4_276_739
    # Ten labels: a scale and a bias each, in place of one, in the six BatchNorms of the blocks.
    _, of = shapes(Generator(classes=10), jnp.zeros((2, 128)), jnp.zeros(2, jnp.int32))
    assert count(of["params"]) == 4_276_739 + 6 * 9 * 512
    assert count(of["batch_stats"]) == 7 * 512


def test_parameters_of_the_discriminator_for_32x32():
    # First block: 9·3·128 + 128 = 3,584, 9·128·128 + 128 = 147,584, skip 3·128 + 128 = 512.
    # Second: 2 · 147,584, skip 128·128 + 128 = 16,512. Two plain ones: 2 · 147,584. Dense 129.
    logits, of = shapes(Discriminator(), jnp.zeros((2, 32, 32, 3)))
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    assert count(of["params"]) == 3_584 + 147_584 + 512 + 6 * 147_584 + 16_512 + 129 == 1_053_825
    _, of = shapes(Discriminator(classes=10), jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32))
    assert count(of["params"]) == 1_053_825 + 10 * 128


@pytest.mark.parametrize("size", [16, 64, 128])
def test_a_side_twice_as_long_is_a_block_more(size):
    image, of = shapes(Generator(size, 1, 8), jnp.zeros((2, 5)))
    assert image.shape == (2, size, size, 1)
    assert sum(name.startswith("block") for name in of["params"]) == math.log2(size) - 2
    logits, of = shapes(Discriminator(size, 8), jnp.zeros((2, size, size, 1)))
    assert logits.shape == (2,)
    blocks = [of["params"][name] for name in sorted(of["params"]) if name.startswith("block")]
    # All but the last two halve, and so learn their skip.
    assert ["skip" in block for block in blocks] == [True] * int(math.log2(size) - 3) + [False] * 2


@pytest.mark.parametrize("classes", [0, 3])
def test_networks_without_batch_normalisation_have_no_statistics(classes):
    label = [LABEL] if classes else []
    _, of = shapes(Generator(16, width=8, classes=classes, norm="none"), Z, *label)
    assert set(of) == {"params"}
    _, of = shapes(Discriminator(16, 8, classes), X, *label)
    assert set(of) == {"params", "spectral"}
    _, of = shapes(Discriminator(16, 8, classes, spectral=False), X, *label)
    assert set(of) == {"params"}


def test_blocks_follow_the_paper():
    # The published order: the skip's convolution at the larger of the two resolutions.
    x = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    pool = lambda x: x.reshape(2, 2, 2, 2, 2, -1).mean((2, 4))
    for resample in (upsample, downsample, None):
        block = ResidualBlock(5, resample)
        params = trained(block.init(KEY, x)["params"])
        double = (lambda x: x.repeat(2, 1).repeat(2, 2)) if resample is upsample else lambda x: x
        halve = pool if resample is downsample else lambda x: x
        y = conv(double(nn.relu(x)), params["conv1"])
        y = halve(conv(nn.relu(y), params["conv2"]))
        expected = y + halve(conv(double(x), params["skip"]))
        np.testing.assert_allclose(block.apply({"params": params}, x), expected, atol=1e-5)
    # A block of an image does not activate it, and one that changes nothing learns no skip.
    block = ResidualBlock(3, image=True)
    params = trained(block.init(KEY, x)["params"])
    assert set(params) == {"conv1", "conv2"}
    expected = x + conv(nn.relu(conv(x, params["conv1"])), params["conv2"])
    np.testing.assert_allclose(block.apply({"params": params}, x), expected, atol=1e-5)


class Normalised(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        return spectral_norm(self.layer, train)(x)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Dense(6, use_bias=False), np.eye(7)),
        (Conv(6, (1, 1), use_bias=False), np.eye(7).reshape(7, 1, 1, 7)),
        # An image of one pixel alone, at each place and channel, of the 3×3 that a kernel sees.
        (Conv(6, (3, 3), use_bias=False, padding="VALID"), np.eye(27).reshape(27, 3, 3, 3)),
        (nn.Embed(7, 6), np.arange(7)),
    ],
)
def test_the_largest_singular_value_becomes_1(layer, x):
    network = Normalised(layer)
    of = network.init(KEY, x)
    step = jax.jit(functools.partial(network.apply, train=True, mutable=["spectral"]))
    for _ in range(200):
        of |= step(of, x)[1]
    (weight,) = jax.tree.leaves(of["params"])
    seen = np.asarray(network.apply(of, x)).reshape(-1, 6)
    np.testing.assert_allclose(np.linalg.svd(seen, compute_uv=False)[0], 1, rtol=1e-4)
    weight = np.asarray(weight).reshape(-1, 6)
    np.testing.assert_allclose(seen, weight / np.linalg.svd(weight, compute_uv=False)[0], atol=1e-4)


def test_every_layer_of_the_discriminator_is_normalised():
    network = DISCRIMINATOR.clone(classes=3)
    of = {**variables(network, True)}
    of["params"] = trained(of["params"])
    step = jax.jit(functools.partial(network.apply, train=True, mutable=["spectral"]))
    for _ in range(300):
        _, updated = step(of, X, LABEL)
        of |= updated
    largest = lambda w: np.linalg.svd(np.asarray(w).reshape(-1, w.shape[-1]), compute_uv=False)[0]
    divided = jax.tree.map(lambda w: w / largest(w) if w.ndim > 1 else w, of["params"])
    logits = network.clone(spectral=False).apply({"params": divided}, X, LABEL)
    np.testing.assert_allclose(network.apply(of, X, LABEL), logits, rtol=1e-3, atol=1e-4)


def test_singular_values_are_estimated_in_training_alone():
    of = variables(DISCRIMINATOR)
    run = lambda train: jax.jit(
        functools.partial(DISCRIMINATOR.apply, train=train, mutable=["spectral"])
    )(of, X)
    (used, kept), (_, moved) = run(False), run(True)
    chex.assert_trees_all_equal(kept["spectral"], of["spectral"])
    for before, after in zip(
        *map(jax.tree.leaves, (of["spectral"], moved["spectral"])), strict=True
    ):
        if before.size > 1:  # of one output, u is ±1 from the first
            assert (np.asarray(before) != np.asarray(after)).any()
    np.testing.assert_allclose(compiled(DISCRIMINATOR)(of, X), used, rtol=1e-6)
    # An example's logit is its own.
    alone = compiled(DISCRIMINATOR)(of, X[2:3])
    np.testing.assert_allclose(alone, used[2:3], rtol=1e-4, atol=1e-5)


def test_conditional_batch_normalisation_is_each_labels_own():
    x = RNG.normal(2, 3, (4, 5, 5, 6)).astype(np.float32)
    norm = ConditionalBatchNorm(3)
    of = norm.init(KEY, x, LABEL)
    of = {**of, "params": trained(of["params"])}
    y, updated = norm.apply(of, x, LABEL, train=True, mutable=["batch_stats"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale, bias = (np.asarray(of["params"][name]["embedding"])[LABEL] for name in ("scale", "bias"))
    expected = scale[:, None, None] * (x - mean) / np.sqrt(variance + 1e-5) + bias[:, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-4)
    # Over a mapped axis the statistics are the whole batch's.
    together, _ = jax.vmap(
        lambda x, label: norm.apply(of, x, label, train=True, axis="i", mutable=["batch_stats"]),
        axis_name="i",
    )(x.reshape(2, 2, *x.shape[1:]), LABEL.reshape(2, 2))
    np.testing.assert_allclose(together.reshape(x.shape), y, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_generator_follows_its_label(norm):
    network = GENERATOR.clone(classes=3, norm=norm)
    of = variables(network, True)
    of = {**of, "params": trained(of["params"])}
    run = compiled(network)
    image, other = run(of, Z, LABEL), run(of, Z, np.array([0, 2, 0, 2], np.int32))
    changed = np.abs(np.asarray(image) - np.asarray(other)).max((1, 2, 3))
    assert changed[2] > 1e-3 and changed[[0, 1, 3]].max() < 1e-6


def test_batch_statistics_are_live_in_training_alone():
    of = variables(GENERATOR)
    image, kept = GENERATOR.apply(of, Z, mutable=["batch_stats"])
    chex.assert_trees_all_equal(kept["batch_stats"], of["batch_stats"])
    live, moved = GENERATOR.apply(of, Z, train=True, mutable=["batch_stats"])
    assert np.abs(np.asarray(live) - np.asarray(image)).max() > 1e-2
    moments = zip(*map(jax.tree.leaves, (of["batch_stats"], moved["batch_stats"])), strict=True)
    for before, after in moments:
        assert (np.asarray(before) != np.asarray(after)).any()


def test_a_discriminator_projects_on_its_label():
    network = DISCRIMINATOR.clone(classes=3, spectral=False)
    params = {**variables(network, True)["params"]}
    # ψ(h) = w·h, and label k adds (k − 1) w·h: logits of 0, 1 and 2 times ψ.
    w = params["dense"]["kernel"][:, 0]
    params["label"] = {"embedding": jnp.stack([-w, 0 * w, w])}
    plain = {name: layer for name, layer in params.items() if name != "label"}
    psi = DISCRIMINATOR.clone(spectral=False).apply({"params": plain}, X)
    assert np.abs(np.asarray(psi)).min() > 1e-2
    logits = network.apply({"params": params}, X, LABEL)
    np.testing.assert_allclose(logits, LABEL * np.asarray(psi), rtol=1e-4, atol=1e-4)


def test_fixup_starts_the_generator_as_its_skips():
    network = GENERATOR.clone(norm="none", **R3GAN)
    params = jax.jit(network.init)(KEY, Z)["params"]
    x = (Z @ params["dense"]["kernel"] + params["dense"]["bias"]).reshape(4, 4, 4, 8)
    for i in range(2):
        x = conv(x.repeat(2, 1).repeat(2, 2), params[f"block{i}"]["skip"])
    image = np.tanh(conv(np.where(x > 0, x, 0.2 * x), params["image"]))
    np.testing.assert_allclose(network.apply({"params": params}, Z), image, atol=1e-5)
    assert np.abs(image).max() > 0.05


def test_fixup_starts_the_discriminator_as_its_skips():
    network = DISCRIMINATOR.clone(spectral=False, **R3GAN)
    params = jax.jit(network.init)(KEY, X)["params"]
    h = conv(X.reshape(4, 8, 2, 8, 2, 3).mean((2, 4)), params["block0"]["skip"])
    h = np.where(h > 0, h, 0.2 * h).sum((1, 2))
    logits = (h @ params["dense"]["kernel"] + params["dense"]["bias"])[:, 0]
    np.testing.assert_allclose(network.apply({"params": params}, X), logits, rtol=1e-4, atol=1e-4)
    assert np.abs(logits).max() > 0.05


def test_the_first_convolution_of_a_branch():
    network = Discriminator(16, 32, spectral=False)
    std = lambda network: [
        [np.std(of[name]["kernel"]) for name in ("conv1", "conv2")]
        for of in map(jax.jit(network.init)(KEY, X)["params"].get, ("block1", "block2"))
    ]
    # He's standard deviation for leaky ReLU by L^(−1/2), of L = 3 blocks; then 0.
    he = math.sqrt(2 / (1 + 0.2**2) / (9 * 32))
    fixup = std(network.clone(**R3GAN))
    np.testing.assert_allclose(fixup, [[he / math.sqrt(3), 0]] * 2, rtol=0.05)
    # Glorot's of gain √2 for the same number of channels in and out: √(2 / fan-in).
    np.testing.assert_allclose(std(network), np.full((2, 2), math.sqrt(2 / (9 * 32))), rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"classes": 3}])
def test_bfloat16_computes_and_float32_remembers(options):
    label = [LABEL] if options else []
    for network, x in ((GENERATOR, Z), (DISCRIMINATOR, X)):
        half = network.clone(dtype=jnp.bfloat16, **options)
        output, of = jax.jit(half.init_with_output)(KEY, jnp.asarray(x, jnp.bfloat16), *label)
        assert {leaf.dtype for leaf in jax.tree.leaves((output, of))} == {jnp.dtype(jnp.float32)}
        whole = compiled(network.clone(**options))(of, x, *label)
        np.testing.assert_allclose(output, whole, atol=0.1 * np.abs(whole).max())
        assert (np.asarray(output) != np.asarray(whole)).any()


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (GENERATOR, (Z, LABEL), "a label was given, but this network has classes=0"),
        (GENERATOR.clone(classes=3), (Z,), "a network of classes=3 needs a label"),
        (DISCRIMINATOR, (X, LABEL), "a label was given, but this network has classes=0"),
        (DISCRIMINATOR.clone(classes=3), (X,), "a network of classes=3 needs a label"),
        (GENERATOR.clone(size=28), (Z,), "size=28 must be a power of two, at least 16"),
        (DISCRIMINATOR.clone(size=8), (X,), "size=8 must be a power of two, at least 16"),
        (DISCRIMINATOR.clone(size=32), (X,), "images of 16×16 are not of size=32"),
        (GENERATOR.clone(norm="group"), (Z,), "norm='group' must be one of batch, none"),
        (DISCRIMINATOR.clone(fixup=True), (X,), "fixup=True needs spectral=False"),
    ],
)
def test_what_makes_no_sense_is_refused(network, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes(network, *inputs)
