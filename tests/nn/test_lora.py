import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import init_lora, lora, merge, unmerge

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6), np.int32)
SCALE, RANK = 0.75, 3
ALL = ("qkv", "attention/out", "mlp")


def noise(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def make(targets=ALL, **options):
    network = GPT(11, 6, 2, 2, 8, **options)
    params = noise(jax.eval_shape(network.init, stream(0, "init"), TOKENS)["params"], 1)
    factors = noise(init_lora(stream(0, "lora"), params, RANK, targets), 2)
    return network, params, factors


def run(network, params, factors):
    @jax.jit
    def logits(params, factors):
        with lora(SCALE):
            return network.apply({"params": params, "lora": factors}, TOKENS)

    return logits(params, factors)


def test_factors_begin_as_nothing_added():
    network, params, _ = make()
    factors = init_lora(stream(0, "lora"), params, RANK, ALL)
    blocks = jax.tree.map(jnp.shape, factors["blocks"], is_leaf=lambda x: hasattr(x, "shape"))
    assert blocks == {
        "attention": {
            "qkv": {"a": (2, 8, 3), "b": (2, 3, 2, 3, 4)},
            "out": {"a": (2, 2, 4, 3), "b": (2, 3, 8)},
        },
        "mlp": {
            "in": {"a": (2, 8, 3), "b": (2, 3, 32)},
            "out": {"a": (2, 32, 3), "b": (2, 3, 8)},
        },
    }
    flat = jax.tree.leaves_with_path(factors)
    assert not any(leaf.any() for path, leaf in flat if path[-1].key == "b")
    a = factors["blocks"]["mlp"]["out"]["a"]
    # Uniform in ±1/√32, and every layer's its own.
    assert 0.9 < jnp.abs(a).max() * 32**0.5 <= 1 and abs(a.std() * 96**0.5 - 1) < 0.15
    assert jnp.abs(a[0] - a[1]).max() > 0.05
    chex.assert_trees_all_equal(run(network, params, factors), run(network, params, {}))
    # More targets leave the others' as they are.
    alone = init_lora(stream(0, "lora"), params, RANK, ["mlp/out"])
    assert list(alone["blocks"]) == ["mlp"] and list(alone["blocks"]["mlp"]) == ["out"]
    chex.assert_trees_all_equal(alone["blocks"]["mlp"]["out"]["a"], a)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": False, "remat": True},
        {"positions": "rotary", "mlp": "swiglu", "bias": False, "tied": False, "kv_heads": 1},
    ],
    ids=["scan", "no scan", "modern"],
)
def test_merged_equals_unmerged(options):
    network, params, factors = make((*ALL, "head") if "tied" in options else ALL, **options)
    merged = merge(params, factors, SCALE)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    adapted = run(network, params, factors)
    np.testing.assert_allclose(adapted, run(network, merged, {}), rtol=0, atol=1e-5)
    assert np.abs(adapted - run(network, params, {})).max() > 0.1
    chex.assert_trees_all_close(unmerge(merged, factors, SCALE), params, atol=1e-6)


def test_what_is_added_is_the_product():
    _, params, factors = make()
    merged = merge(params, factors, SCALE)
    for layer in range(2):
        kernel = lambda tree, *path: np.asarray(
            jax.tree.map(lambda x: x[layer], tree)["blocks"][path[0]][path[1]][path[2]]
        )
        for path, sum_ in {
            ("attention", "qkv"): "ir,rhjd->ihjd",
            ("attention", "out"): "hdr,ro->hdo",
            ("mlp", "in"): "ir,ro->io",
        }.items():
            a, b = (kernel(factors, *path, name) for name in "ab")
            expected = kernel(params, *path, "kernel") + SCALE * np.einsum(sum_, a, b)
            np.testing.assert_allclose(kernel(merged, *path, "kernel"), expected, atol=1e-6)


def test_it_holds_while_decoding_from_a_cache():
    network, params, factors = make()
    expected = run(network, params, factors)

    @jax.jit
    def cached(params, factors):
        variables, cache, parts = {"params": params, "lora": factors}, network.make_cache(2, 6), []
        with lora(SCALE):
            for slots in (slice(0, 4), slice(4, 5), slice(5, 6)):
                read = network.apply(
                    variables, TOKENS[:, slots], cache, slots.start, method="extend"
                )
                parts.append(read[0])
                cache = read[1]
        return jnp.concatenate(parts, 1)

    np.testing.assert_allclose(cached(params, factors), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_of_the_factors_by_the_chain_rule():
    network, params, factors = make(("qkv",))
    loss = lambda params, factors: (run(network, params, factors) ** 2).mean()
    merged = lambda factors: loss(merge(params, factors, SCALE), {})
    chex.assert_trees_all_close(
        jax.grad(loss, 1)(params, factors), jax.grad(merged)(factors), rtol=1e-3, atol=1e-6
    )


def test_without_the_context_nothing_is_added():
    network, params, factors = make()
    bare = jax.jit(network.apply)
    chex.assert_trees_all_equal(
        bare({"params": params, "lora": factors}, TOKENS), bare({"params": params}, TOKENS)
    )


def test_in_bfloat16_layers_compute_in_it():
    network, params, factors = make(dtype=jnp.bfloat16)
    coarse, fine = run(network, params, factors), run(network.clone(dtype=None), params, factors)
    assert 0 < np.abs(coarse - fine).max() < 0.1 * np.abs(fine).max()


def test_what_cannot_be_is_refused():
    _, params, factors = make(("qkv",))
    key = stream(0, "lora")
    with pytest.raises(ValueError, match=r"^rank=0 must be at least 1"):
        init_lora(key, params, 0)
    with pytest.raises(ValueError, match=r"targets='c_attn' is no layer.*blocks/attention/qkv, "):
        init_lora(key, params, 1, ["qkv", "c_attn"])
    with pytest.raises(ValueError, match="factors for blocks/attention/qkv, of which there is no"):
        merge({"tokens": params["tokens"]}, factors, 1.0)
    wrong = jax.tree.map(lambda x: x[..., :2], factors)
    with pytest.raises(ValueError, match=r"blocks/attention/qkv: factors .* do not fit"):
        merge(params, wrong, 1.0)
