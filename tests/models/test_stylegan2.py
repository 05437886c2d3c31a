import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import normal
from aigc_jax.models.stylegan2 import (
    Discriminator,
    Generator,
    Mapping,
    StyledConv,
    activate,
    minibatch_deviation,
    modulated_conv,
    normalise,
)
from aigc_jax.nn.equalized import EqualizedDense
from aigc_jax.nn.resample import smooth_upsample

KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 4)
# By 4×4 with 6 features and 8×8 with 4; 4 styles.
SMALL = {"width": 32, "max_width": 6, "mapping_layers": 2}
GENERATOR = Generator(8, latent=5, **SMALL)
JUDGE = Discriminator(**SMALL, group=2)
LABEL = np.array([0, 2, 1, 2], np.int32)


def rng(seed=0):
    return np.random.default_rng(seed)


Z = rng().normal(size=(4, 5)).astype(np.float32)
X = rng().uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(network, *inputs):
    """Return the shapes of what a network returns and of its variables, computing neither."""
    return jax.eval_shape(network.init_with_output, KEY, *inputs)


@functools.cache
def initial(network, conditional=False):
    x = Z if isinstance(network, Generator) else X
    return jax.jit(network.init)(KEY, x, LABEL if conditional else None)


@functools.cache
def trained(network, conditional=False):
    """As if it were trained: noise and biases, 0 at first, and w̄ are something."""
    leaves, treedef = jax.tree.flatten(initial(network, conditional))
    leaves = [
        p + 0.3 * rng(i).normal(size=p.shape).astype(np.float32) for i, p in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, leaves)


@functools.cache
def compiled(network, **options):
    """Return `(variables, *inputs) -> (output, what its modules returned)`."""

    def run(variables, *inputs, **kwargs):
        options_ = {**options, **kwargs, "capture_intermediates": True}
        output, state = network.apply(variables, *inputs, **options_)
        seen = state["intermediates"]
        return output, {name: of["__call__"][0] for name, of in seen.items() if "__call__" in of}

    return jax.jit(run)


def paint(ws, keys=None):
    """Return the trained generator's images and what its layers returned."""
    keys = KEYS if keys is None else keys
    return compiled(GENERATOR, method="synthesise")(trained(GENERATOR), ws, keys)


# Counting


def test_parameters_of_configuration_f():
    # What the authors' programs print for 1024×1024; the paper, table 1, has 30 and 29 million.
    image, generator = shapes(Generator(), jnp.zeros((1, 512)))
    logit, discriminator = shapes(Discriminator(), jnp.zeros((4, 1024, 1024, 3)))
    assert image.shape == (1, 1024, 1024, 3) and logit.shape == (4,)
    assert count(generator["params"]) == 30_370_060
    assert count(discriminator["params"]) == 29_012_513


def test_parameters_of_a_small_generator():
    mapping = 2 * (5 * 5 + 5)
    style = lambda c: 5 * c + c
    conv = lambda c, d: 9 * c * d + d + 1 + style(c)  # with its bias and one strength of noise
    image = lambda c: 3 * c + 3 + style(c)
    expected = mapping + 16 * 6 + conv(6, 6) + image(6) + conv(6, 4) + conv(4, 4) + image(4)
    output, variables = shapes(GENERATOR, Z)
    assert count(variables["params"]) == expected == 1_049
    assert count(variables["averages"]) == 5
    assert output.shape == (4, 8, 8, 3) and output.dtype == jnp.float32
    # Labels: 3 embeddings and their bias, and a first layer twice as wide.
    _, conditional = shapes(GENERATOR.clone(classes=3), Z, LABEL)
    assert count(conditional["params"]) == expected + 3 * 5 + 5 + 5 * 5


def test_parameters_of_a_small_discriminator():
    conv = lambda c, d: 9 * c * d + d
    dense = lambda c, d: c * d + d
    block = conv(4, 4) + conv(4, 6) + 4 * 6
    head = conv(6 + 1, 6) + dense(16 * 6, 6)
    expected = dense(3, 4) + block + head
    output, variables = shapes(JUDGE, X)
    assert count(variables["params"]) == expected + dense(6, 1) == 1_383
    assert output.shape == (4,) and output.dtype == jnp.float32 and set(variables) == {"params"}
    # Labels: 3 embeddings, two layers of mapping, and 6 values to be projected.
    _, conditional = shapes(JUDGE.clone(classes=3), X, LABEL)
    assert count(conditional["params"]) == expected + dense(3, 6) + 3 * dense(6, 6)
    # Alone, an image differs from none.
    _, alone = shapes(JUDGE.clone(group=1), X)
    assert count(alone["params"]) == expected + dense(6, 1) - 9 * 6


# Modulated convolution


def correlate(x, kernel, pad):
    """Correlate one image with one kernel by the definition, in float64."""
    x = np.pad(np.asarray(x, np.float64), ((pad, pad), (pad, pad), (0, 0)))
    k = kernel.shape[0]
    h, w = x.shape[0] - k + 1, x.shape[1] - k + 1
    return sum(x[i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(k, k))


def own_kernels(kernel, style, demodulate):
    """Return each image's kernel: eqs. 1 and 3."""
    own = np.asarray(kernel, np.float64) * np.asarray(style, np.float64)[:, None, None, :, None]
    return own / np.sqrt((own**2).sum((1, 2, 3), keepdims=True)) if demodulate else own


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_a_modulated_convolution_has_a_kernel_for_each_image(size, demodulate):
    x, style = rng().normal(size=(3, 4, 5, 6)), rng(1).normal(1, 0.5, (3, 6))
    kernel = rng(2).normal(size=(size, size, 6, 2))
    y = modulated_conv(*map(jnp.float32, (x, kernel, style)), demodulate=demodulate)
    kernels = own_kernels(kernel, style, demodulate)
    expected = [correlate(*pair, size // 2) for pair in zip(x, kernels, strict=True)]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_a_doubling_one_paints_kernels_and_smooths():
    x, style = rng().normal(size=(2, 3, 4, 3)), rng(1).normal(1, 0.5, (2, 3))
    kernel = rng(2).normal(size=(3, 3, 3, 2))
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1])[:, :, None, None] / 16 * np.eye(2)
    expected = []
    for image, own in zip(x, own_kernels(kernel, style, True), strict=True):
        spread = np.zeros((5, 7, 3))
        spread[::2, ::2] = image
        expected.append(correlate(correlate(spread, own, 2), taps, 1))
    y = modulated_conv(*map(jnp.float32, (x, kernel, style)), up=True)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    # Away from the border, that is doubling first and convolving then.
    x, style = map(jnp.float32, (x, style))
    after = modulated_conv(smooth_upsample(x), jnp.float32(kernel), style)
    np.testing.assert_allclose(y[:, 2:-2, 2:-2], after[:, 2:-2, 2:-2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_demodulated_features_have_unit_variance(scale):
    x = rng().normal(size=(2, 34, 34, 16)).astype(np.float32)
    style = (scale * rng(1).lognormal(size=(2, 16))).astype(np.float32)
    kernel = rng(2).normal(size=(3, 3, 16, 8)).astype(np.float32)
    y = np.asarray(modulated_conv(x, kernel, style))[:, 1:-1, 1:-1]
    variance = y.var((1, 2))  # of 1,024 pixels: 2/1,024 is its own, more as neighbours are alike
    np.testing.assert_allclose(variance, 1, atol=0.25)
    np.testing.assert_allclose(variance.mean(), 1, atol=0.05)


def test_demodulation_is_of_float32_in_bfloat16():
    x = rng().normal(size=(2, 6, 6, 64)).astype(np.float32)
    style, kernel = 1 + 0 * x[:, 0, 0], rng(2).normal(size=(3, 3, 64, 8)).astype(np.float32)
    y = modulated_conv(jnp.asarray(x, jnp.bfloat16), kernel, style)
    assert y.dtype == jnp.bfloat16
    expected = modulated_conv(x, kernel, style)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.05)


def test_activation_keeps_the_size_of_a_symmetric_input():
    x = np.float32([-2, 2])
    np.testing.assert_allclose(activate(x), [-0.4 * 2**0.5, 2 * 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(normalise(x[None]), [[-1, 1]], rtol=1e-6)


# Mapping and styles


def test_mapping_is_a_perceptron_of_a_normalised_latent():
    mapping = Mapping(5, 1)
    w, variables = mapping.init_with_output(KEY, Z, None)
    kernel = variables["params"]["dense0"]["kernel"]
    assert np.asarray(kernel).std() > 30  # N(0, 100²), used a hundredth
    expected = activate(normalise(Z) @ (kernel / 100 / np.sqrt(5)))
    np.testing.assert_allclose(w, expected, atol=1e-5)
    np.testing.assert_allclose(mapping.apply(variables, 7 * Z, None), w, atol=1e-5)


def styles(variables=None, z=Z, **options):
    return GENERATOR.apply(variables or trained(GENERATOR), z, method="styles", **options)


def test_an_average_of_styles_follows_training_alone():
    mapped = GENERATOR.init(KEY, Z, train=True, method="map")
    np.testing.assert_array_equal(mapped["averages"]["w"], np.zeros(5))

    variables = trained(GENERATOR)
    before = variables["averages"]["w"]
    run = functools.partial(GENERATOR.apply, variables, Z, method="map", mutable=["averages"])
    w, after = run(train=True)
    expected = 0.995 * before + 0.005 * np.asarray(w).mean(0)
    np.testing.assert_allclose(after["averages"]["w"], expected, rtol=1e-5)
    assert (np.asarray(after["averages"]["w"]) != np.asarray(before)).all()
    same, untouched = run(train=False)
    np.testing.assert_array_equal(untouched["averages"]["w"], before)
    np.testing.assert_array_equal(w, same)
    # Where nothing may change, training maps all the same; and mixing adds nothing to the average.
    np.testing.assert_array_equal(GENERATOR.apply(variables, Z, train=True, method="map"), w)
    _, mixed = run(train=True, keys=KEYS, mixing=1.0, method="styles")
    chex.assert_trees_all_equal(mixed, after)


def test_the_average_is_linear_over_the_batch():
    run = functools.partial(GENERATOR.apply, train=True, method="map", mutable=["averages"])
    variables = trained(GENERATOR)
    whole, *halves = (run(variables, z)[1]["averages"]["w"] for z in (Z, Z[:2], Z[2:]))
    np.testing.assert_allclose(whole, np.mean(halves, 0), rtol=1e-5)


def test_truncation_draws_styles_to_their_average():
    variables = trained(GENERATOR)
    mean = variables["averages"]["w"]
    w = GENERATOR.apply(variables, Z, method="map")
    for psi in (1.0, 0.7, 0.0, -1.0):
        expected = np.repeat((mean + psi * (w - mean))[:, None], 4, 1)
        np.testing.assert_allclose(styles(truncation=psi), expected, atol=1e-5)


def test_truncated_to_nothing_all_images_are_one():
    images, _ = compiled(GENERATOR, truncation=0.0)(trained(GENERATOR), Z)
    np.testing.assert_array_equal(images, images[::-1])
    assert len(np.unique(paint(styles(), KEYS[np.zeros(4, int)])[0], axis=0)) == 4


def test_mixing_changes_the_last_styles_and_keeps_the_first():
    network, b = GENERATOR.clone(size=32), 64
    keys = jax.random.split(KEY, b)
    run = functools.partial(
        network.apply, trained(GENERATOR), np.repeat(Z[:1], b, 0), keys=keys, method="styles"
    )
    plain, mixed = np.asarray(run()), np.asarray(run(mixing=1.0))
    assert mixed.shape == (b, 8, 5)
    kept = (mixed == plain).all(-1)  # (b, layers)
    crossover = kept.sum(1)
    assert set(crossover) == set(range(1, 8))  # every crossover occurs, and none keeps all or none
    np.testing.assert_array_equal(kept, np.arange(8) < crossover[:, None])
    # After it all layers share one style, another for every example.
    np.testing.assert_array_equal(mixed[~kept], np.repeat(mixed[:, -1], 8 - crossover, 0))
    assert len(np.unique(mixed[:, -1], axis=0)) == b
    # One chance in four is a fourth of the time.
    some = np.asarray(run(mixing=0.25)) != plain
    assert 6 <= some.any((1, 2)).sum() <= 27


def test_mixing_changes_the_image():
    image, _ = compiled(GENERATOR, mixing=1.0)(trained(GENERATOR), Z, keys=KEYS)
    mixed, plain = (paint(styles(keys=KEYS, mixing=mixing))[0] for mixing in (1.0, 0.0))
    np.testing.assert_allclose(image, mixed, atol=1e-5)
    assert (abs(np.asarray(image - plain)).max((1, 2, 3)) > 1e-3).all()


def test_mixing_needs_keys():
    with pytest.raises(ValueError, match=r"mixing=0\.5 needs keys"):
        styles(mixing=0.5)


# Synthesis


def test_noise_of_an_example_is_its_keys_alone():
    images, order = np.asarray(paint(styles())[0]), np.array([2, 0, 3, 1])
    permuted, _ = paint(styles(z=Z[order]), KEYS[order])
    np.testing.assert_allclose(permuted, images[order], atol=1e-5)
    alone, _ = paint(styles(z=Z[1:2]), KEYS[1:2])
    np.testing.assert_allclose(alone, images[1:2], atol=1e-5)
    other, _ = paint(styles(), KEYS[order])
    assert (abs(np.asarray(other) - images).max((1, 2, 3)) > 1e-3).all()


def test_mixed_styles_of_an_example_are_its_keys_alone():
    whole, order = styles(keys=KEYS, mixing=0.5), np.array([2, 0, 3, 1])
    permuted = styles(z=Z[order], keys=KEYS[order], mixing=0.5)
    np.testing.assert_allclose(permuted, whole[order], atol=1e-5)


def test_noise_starts_at_nothing():
    convs = [p for name, p in initial(GENERATOR)["params"].items() if "convs" in name]
    assert [conv["noise"] for conv in convs] == [0, 0, 0]


def test_a_layers_noise_is_scaled_and_added_to_all_its_features():
    x, w = rng().normal(size=(4, 2, 2, 3)), Z
    layer = StyledConv(6)
    run = jax.jit(layer.apply)
    conv = jax.tree.map(np.asarray, jax.jit(layer.init)(KEY, x, w, KEYS)["params"])
    bias = rng(1).normal(size=6).astype(np.float32)
    # Without weights a layer is its noise and its bias.
    params = {**conv, "kernel": 0 * conv["kernel"], "bias": bias, "noise": np.float32(0.7)}
    noise = normal(KEYS, (2, 2))[..., None]
    expected = activate(0.7 * noise + bias)
    np.testing.assert_allclose(run({"params": params}, x, w, KEYS), expected, atol=1e-5)
    # With them it convolves under the style that an affine map makes of w.
    affine = conv["style"]["kernel"] / np.sqrt(5)
    np.testing.assert_array_equal(conv["style"]["bias"], np.ones(3))
    y = modulated_conv(jnp.float32(x), conv["kernel"], w @ affine + 1)
    np.testing.assert_allclose(run({"params": conv}, x, w, KEYS), activate(y), atol=1e-4)


def test_images_of_all_resolutions_are_summed():
    image, seen = paint(styles())
    small, large = (seen[f"images_{i}"] for i in range(2))
    np.testing.assert_allclose(image, smooth_upsample(small) + large, atol=1e-5)
    assert abs(np.asarray(image)).max() > 1.5  # unbounded


def test_layers_take_the_styles_that_are_theirs():
    ws = styles()
    _, seen = paint(ws)
    # Which layers a style reaches: a convolution, all after it, and the images beside them.
    reached = {
        0: {"convs_0", "convs_1", "convs_2", "images_0", "images_1"},
        1: {"convs_1", "convs_2", "images_0", "images_1"},
        2: {"convs_2", "images_1"},
        3: {"images_1"},
    }
    assert GENERATOR.layers == len(reached) == ws.shape[1]
    for i, expected in reached.items():
        _, changed = paint(ws.at[:, i].add(1.0))
        assert {n for n in seen if (np.asarray(changed[n]) != seen[n]).any()} == expected


def test_a_path_lengths_gradient_is_finite():
    variables, ws = trained(GENERATOR), styles()

    @jax.jit
    @jax.grad
    def gradient(params):
        own = {**variables, "params": params}
        synthesise = lambda ws: GENERATOR.apply(own, ws, method="synthesise")
        slope = jax.grad(lambda ws: jnp.sum(synthesise(ws) * X))(ws)
        return jnp.sum(slope**2)

    grads = gradient(variables["params"])
    chex.assert_tree_all_finite(grads)
    assert all(np.asarray(grads[f"convs_{i}"]["kernel"]).any() for i in range(3))


# Judging


def test_deviation_is_the_groups_own():
    x = rng().normal(size=(6, 2, 3, 4)).astype(np.float32)
    y = np.asarray(minibatch_deviation(x, 3))
    assert y.shape == (6, 2, 3, 5)
    np.testing.assert_array_equal(y[..., :4], x)
    for group in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(y[group, ..., 4], x[group].std(0).mean(), rtol=1e-4)


def test_a_group_divides_the_batch():
    with pytest.raises(ValueError, match="group=4 must divide the batch a discriminator sees, 6"):
        minibatch_deviation(jnp.zeros((6, 2, 2, 1)), 4)
    with pytest.raises(ValueError, match="group=2 must divide"):
        shapes(JUDGE, X[:3])


def judge(x, network=JUDGE, variables=None):
    """Return a trained discriminator's logits and what its layers returned."""
    logits, seen = compiled(network)(variables or trained(JUDGE), x)
    return np.asarray(logits), seen


def test_a_group_knows_nothing_of_others():
    whole, _ = judge(X)
    np.testing.assert_allclose(judge(X[[2, 3, 0, 1]])[0], whole[[2, 3, 0, 1]], rtol=1e-4)
    np.testing.assert_allclose(judge(X[2:])[0], whole[2:], rtol=1e-4)
    regrouped, _ = judge(X[[0, 2, 1, 3]])
    assert (abs(regrouped[[0, 2, 1, 3]] - whole) > 1e-4).all()


def test_a_block_adds_its_branch_to_its_skip():
    params = trained(JUDGE)["params"]
    block = params["block8"]
    silent = {**block, "conv2": jax.tree.map(jnp.zeros_like, block["conv2"])}
    (_, seen), (_, whole) = (
        judge(X, variables={"params": {**params, "block8": b}}) for b in (silent, block)
    )
    x = np.asarray(activate(seen["from_image"]))
    taps = np.array([1, 3, 3, 1]) / 8
    # The second pixel of the halved image is of rows and columns 1 to 4.
    centre = np.einsum("i,j,bijc->bc", taps, taps, x[:, 1:5, 1:5])
    skip = centre @ (np.asarray(block["skip"]["kernel"]) / 2) / 2**0.5  # √4 features in
    np.testing.assert_allclose(seen["block8"][:, 1, 1], skip, atol=1e-4)
    # The branch is smoothed, then convolved with stride 2 in the same place.
    first, second = (
        {k: np.asarray(v) for k, v in block[name].items()} for name in ("conv1", "conv2")
    )
    y = [activate(correlate(image, first["kernel"] / 6, 1) + first["bias"]) for image in x]
    taps = np.outer(taps, taps)[:, :, None, None] * np.eye(4)
    # With stride 2, the window of the second pixel begins at the third of what is smoothed.
    y = [correlate(correlate(image, taps, 2), second["kernel"] / 6, 0)[2, 2] for image in y]
    branch = activate(np.float32(y) + second["bias"]) / 2**0.5
    np.testing.assert_allclose(whole["block8"][:, 1, 1], skip + branch, atol=1e-4)


@functools.cache
def penalty_gradient():
    def penalty(params, x):
        logits = lambda x: JUDGE.apply({"params": params}, x).sum()
        return jnp.sum(jax.grad(logits)(x) ** 2)

    return jax.jit(jax.grad(penalty))


@pytest.mark.parametrize("x", [X, np.zeros_like(X)], ids=["images", "identical"])
def test_a_gradient_penaltys_gradient_is_finite(x):
    grads = penalty_gradient()(trained(JUDGE)["params"], x)
    chex.assert_tree_all_finite(grads)
    assert np.asarray(grads["from_image"]["kernel"]).any()


# Labels


def test_labels_style_the_image():
    network = GENERATOR.clone(classes=3)
    variables = network.init(KEY, Z, LABEL, method="map")
    run = functools.partial(network.apply, variables, Z, method="map")
    w, other = run(LABEL), run(LABEL * 0 + 2)
    changed = abs(np.asarray(w - other)).max(1)
    assert (changed[[0, 2]] > 1e-3).all() and (changed[[1, 3]] == 0).all()
    # The embedding is normalised as the latent is, so that neither drowns the other.
    params = variables["params"]["mapping"]
    embedding = params["label"]["kernel"][LABEL] / np.sqrt(3) + params["label"]["bias"]
    x = jnp.concatenate([normalise(Z), normalise(embedding)], -1)
    for i in range(2):
        layer = EqualizedDense(5, lr=0.01)
        x = activate(layer.apply({"params": params[f"dense{i}"]}, x))
    np.testing.assert_allclose(w, x, rtol=1e-4, atol=1e-5)
    image, conditional = shapes(network, Z, LABEL)
    assert image.shape == (4, 8, 8, 3) and set(conditional) == {"params", "averages"}


def test_a_label_is_projected_on():
    network = JUDGE.clone(classes=3)
    run = functools.partial(compiled(network), trained(network, conditional=True), X)
    logit, seen = run(LABEL)
    h, m = (np.asarray(seen[name]) for name in ("logit", "mapping"))
    np.testing.assert_allclose(logit, (h * m).sum(-1) / np.sqrt(6), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(m[1], m[3])
    other, seen = run(LABEL * 0 + 2)
    np.testing.assert_array_equal(h, seen["logit"])
    changed = abs(np.asarray(logit - other))
    assert (changed[[0, 2]] > 1e-4).all() and (changed[[1, 3]] == 0).all()


@pytest.mark.parametrize(("network", "x"), [(GENERATOR, Z), (JUDGE, X)])
def test_labels_are_given_to_conditional_networks_alone(network, x):
    with pytest.raises(ValueError, match="this network has classes=0"):
        shapes(network, x, LABEL)
    with pytest.raises(ValueError, match="classes=3 needs a label"):
        shapes(network.clone(classes=3), x)


# Types and sizes


def test_bfloat16_computes_and_float32_remembers():
    ws = styles()
    half = GENERATOR.clone(dtype=jnp.bfloat16)
    image, seen = compiled(half, method="synthesise")(trained(GENERATOR), ws, KEYS)
    assert {seen[f"convs_{i}"].dtype for i in range(3)} == {jnp.dtype(jnp.bfloat16)}
    assert image.dtype == jnp.float32
    expected, _ = paint(ws)
    np.testing.assert_allclose(image, expected, atol=0.05 * abs(np.asarray(expected)).max())
    # The judge ends in float32.
    half = JUDGE.clone(dtype=jnp.bfloat16)
    logits, seen = judge(X, half)
    assert [seen[n].dtype for n in ("block8", "conv")] == [jnp.bfloat16, jnp.float32]
    expected, _ = judge(X)
    np.testing.assert_allclose(logits, expected, atol=0.05 * abs(expected).max())
    assert logits.dtype == np.float32
    for network, x in ((GENERATOR, Z), (JUDGE, X)):
        _, variables = shapes(network.clone(dtype=jnp.bfloat16), x)
        assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("size", [4, 24, 0])
def test_sizes_are_powers_of_two(size):
    with pytest.raises(ValueError, match=f"size={size} must be a power of two, at least 8"):
        shapes(GENERATOR.clone(size=size), Z)
    with pytest.raises(ValueError, match=f"size={size} must be a power of two, at least 8"):
        shapes(JUDGE, jnp.zeros((2, size, size, 3)))


def test_grey_images_of_a_larger_size():
    image, _ = shapes(GENERATOR.clone(size=32, channels=1), Z)
    assert image.shape == (4, 32, 32, 1)
    logit, variables = shapes(JUDGE, image)
    assert logit.shape == (4,)
    assert {"block32", "block16", "block8"} < set(variables["params"])
