"""State dicts of our own making; tests/parity/test_dcgan.py has PyTorch make them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.dcgan import Discriminator, Generator
from aigc_jax.pretrained.dcgan import read_dcgan

# The convolutions and norms of the tutorial's 64×64 networks, as it names them.
CONVS = {"generator": (0, 3, 6, 9, 12), "discriminator": (0, 2, 5, 8, 11)}
NORMS = {"generator": (1, 4, 7, 10), "discriminator": (3, 6, 9)}
WIDTHS = {"generator": (5, 8, 6, 4, 3, 2), "discriminator": (2, 3, 4, 6, 8, 1)}


def state_dict(kind, convs=None, norms=None, widths=None, dtype=np.float32):
    """Fill a state dict with noise."""
    convs, norms = convs or CONVS[kind], NORMS[kind] if norms is None else norms
    widths = widths or WIDTHS[kind]
    rng = np.random.default_rng(0)
    arrays = {}
    for n, i in enumerate(convs):
        before, after = widths[n : n + 2]
        ends = (before, after) if kind == "generator" else (after, before)
        arrays[f"main.{i}.weight"] = rng.normal(size=(*ends, 4, 4))
    for n, i in enumerate(norms):
        d = widths[n + (1 if kind == "generator" else 2)]
        for leaf in ("weight", "bias", "running_mean"):
            arrays[f"main.{i}.{leaf}"] = rng.normal(size=d)
        arrays[f"main.{i}.running_var"] = rng.uniform(0.5, 2, size=d)
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    return arrays | {f"main.{i}.num_batches_tracked": np.int64(3) for i in norms}


@pytest.mark.parametrize(
    ("network", "x", "weights"),
    [
        (Generator((8, 6, 4, 3), 2), (1, 5), state_dict("generator")),
        (Discriminator((3, 4, 6, 8)), (1, 64, 64, 2), state_dict("discriminator")),
        (Generator((6, 4), 1), (1, 5), state_dict("generator", (0, 3, 6), (1, 4), (5, 6, 4, 1))),
        (
            Discriminator((4, 6)),
            (1, 16, 16, 1),
            state_dict("discriminator", (0, 2, 5), (3,), (1, 4, 6, 1)),
        ),
        (Discriminator((4,)), (1, 8, 8, 1), state_dict("discriminator", (0, 2), (), (1, 4, 1))),
    ],
    ids=["generator", "discriminator", "shallow", "shallow", "without norms"],
)
def test_they_fit_a_network_of_their_widths(network, x, weights):
    expected = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(x))
    params, stats = read_dcgan(weights)
    chex.assert_trees_all_equal_shapes_and_dtypes({"params": params, **stats}, expected)
    # Nothing of them is lost.
    of = jax.tree.leaves((params, stats))
    assert sum(leaf.sum(dtype=float) for leaf in of) == pytest.approx(
        sum(a.sum(dtype=float) for name, a in weights.items() if "num_batches" not in name)
    )


def test_the_generator_paints_kernels_as_pytorch_does():
    weights = state_dict("generator", (0, 3), (1,), (5, 3, 2))
    first, second = (weights[f"main.{i}.weight"] for i in (0, 3))
    z = np.random.default_rng(1).normal(size=(1, 5)).astype(np.float32)
    x = np.einsum("z,zcij->ijc", z[0], first)
    norm = {leaf: weights[f"main.1.{leaf}"] for leaf in ("weight", "bias")}
    x = (x - weights["main.1.running_mean"]) / np.sqrt(weights["main.1.running_var"] + 1e-5)
    x = np.maximum(x * norm["weight"] + norm["bias"], 0)
    canvas = np.zeros((10, 10, 2))  # 8×8 and a border of 1, which the padding cuts off
    for i, j in np.ndindex(4, 4):
        canvas[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,cdij->ijd", x[i, j], second)
    params, stats = read_dcgan(weights)
    image = Generator((3,), 2).apply({"params": params, **stats}, z)
    np.testing.assert_allclose(image[0], np.tanh(canvas[1:-1, 1:-1]), atol=1e-4)


def test_the_discriminators_kernels_are_transposed():
    weights = state_dict("discriminator")
    params, _ = read_dcgan(weights)
    assert params["Conv_1"]["kernel"][0, 3, 1, 2] == weights["main.2.weight"][2, 1, 0, 3]


@pytest.mark.parametrize("kind", CONVS)
def test_other_precisions_become_float32_and_old_files_have_no_counts(kind):
    weights = state_dict(kind, dtype=np.float16)
    read = read_dcgan(weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float32)}
    uncounted = {name: a for name, a in weights.items() if "num_batches" not in name}
    chex.assert_trees_all_equal(read_dcgan(uncounted), read)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("generator", {"main.4.running_var": None}, "generator's: main.4.running_var is missing$"),
        ("generator", {"main.1.weight": None}, "generator's: main.1.weight is missing$"),
        ("discriminator", {"main.9.bias": None}, "discriminator's: main.9.bias is missing$"),
        ("generator", {"main.0.bias": np.zeros(8)}, "main.0.bias is unexpected$"),
        ("discriminator", {"main.0.bias": np.zeros(8)}, "main.0.bias is unexpected$"),
        (
            "generator",
            {"main.3.weight": np.zeros((8, 6, 3, 3))},
            r"main.3.weight is of \(8, 6, 3, 3\), not 4×4$",
        ),
        ("generator", {"main.12.weight": None}, "main.10.weight is unexpected"),
        ("discriminator", {"module.main.0.weight": np.zeros(1)}, "module.main.0.weight is unexp"),
    ],
)
def test_what_is_not_a_dcgans_is_refused_by_name(kind, change, message):
    weights = {n: a for n, a in (state_dict(kind) | change).items() if a is not None}
    with pytest.raises(ValueError, match=message):
        read_dcgan(weights)


def test_nothing_is_not_a_network():
    with pytest.raises(ValueError, match=r"main\.0\.weight is missing"):
        read_dcgan({})
