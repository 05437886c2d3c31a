import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.gpt import GPT

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6), np.int32)


@functools.cache
def make(**options):
    model = GPT(11, 6, 2, 2, 8, classes=3, **options)
    shapes = jax.eval_shape(model.init, stream(0, "init"), TOKENS)["params"]
    # Large weights, and biases, so that every part counts.
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)
    return model, params, jax.jit(lambda tokens: model.apply({"params": params}, tokens))


def gpt2(params, tokens, heads=2, eps=1e-5):
    """GPT-2 of one sequence, in float64, from its description."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * p["scale"] + p["bias"]

    dense = lambda x, p: x @ p["kernel"] + p["bias"]
    x = params["tokens"]["embedding"][tokens] + params["positions"]["embedding"][: len(tokens)]
    for i in range(2):
        p = params[f"blocks_{i}"]
        q, k, v = np.split(dense(norm(x, p["attention_norm"]), p["qkv"]), 3, -1)
        heard = []
        for q, k, v in zip(*(np.split(a, heads, -1) for a in (q, k, v)), strict=True):
            scores = np.where(np.tri(len(x)), q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            heard.append(weight / weight.sum(-1, keepdims=True) @ v)
        x = x + dense(np.concatenate(heard, -1), p["attention_out"])
        h = dense(norm(x, p["mlp_norm"]), p["mlp_in"])
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + dense(h, p["mlp_out"])
    return norm(x, params["norm"]) @ params["tokens"]["embedding"][:11].T


def test_it_is_gpt2():
    _, params, apply = make()
    expected = np.stack([gpt2(params, tokens) for tokens in TOKENS])
    np.testing.assert_allclose(apply(TOKENS), expected, atol=1e-4)


def test_what_is_remembered_gives_the_same_logits():
    model, params, apply = make()
    variables, read = {"params": params}, 3
    logits, cache = model.apply(
        variables, TOKENS[:, :read], model.make_cache(2), 0, method="extend"
    )
    parts = [logits]
    decode = jax.jit(functools.partial(model.apply, method="decode"))
    for position in range(read, 6):
        logits, cache = decode(variables, TOKENS[:, position], cache, position)
        assert logits.shape == (2, 11)
        parts.append(logits[:, None])
    np.testing.assert_allclose(np.concatenate(parts, 1), apply(TOKENS), rtol=1e-5, atol=1e-5)


def test_a_class_begins_a_sequence_and_is_never_predicted():
    _, _, apply = make()
    starts = np.concatenate([np.array([[11], [13]]), TOKENS[:1].repeat(2, 0)[:, 1:]], 1)
    logits = apply(starts.astype(np.int32))
    assert logits.shape == (2, 6, 11)
    assert np.abs(logits[0] - logits[1]).max(-1).min() > 1e-3


def test_the_head_may_have_weights_of_its_own():
    _, tied, _ = make()
    _, params, _ = make(tied=False)
    assert params.keys() - tied.keys() == {"head"}
    assert params["head"]["kernel"].shape == (8, 11)


def test_the_smallest_gpt2_has_its_size():
    shapes = jax.eval_shape(GPT().init, jax.random.key(0), TOKENS)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808


def test_it_starts_as_published():
    model = GPT(500, 100, 1, 4, 96)
    params = jax.jit(model.init)(stream(0, "init"), TOKENS)["params"]
    block = params["blocks_0"]
    for kernel, std in (
        (params["tokens"]["embedding"], 0.02),
        (params["positions"]["embedding"], 0.02),
        (block["qkv"]["kernel"], 0.02),
        (block["mlp_in"]["kernel"], 0.02),
        (block["attention_out"]["kernel"], 0.02 / math.sqrt(2)),
        (block["mlp_out"]["kernel"], 0.02 / math.sqrt(2)),
    ):
        assert abs(kernel.std() / std - 1) < 4 / math.sqrt(2 * kernel.size)
    biases = [x for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "bias"]
    assert len(biases) == 7 and not any(x.any() for x in biases)


def test_in_bfloat16_weights_and_logits_stay_float32():
    model, params, _ = make(dtype=jnp.bfloat16)
    shape = jax.eval_shape(model.apply, {"params": params}, TOKENS)
    assert shape.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert model.make_cache(2)[0].key.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"heads": 3}, "width=8 must be a multiple of heads=3"),
        ({"classes": -1}, "classes=-1 must be at least 0"),
        ({"context": 5}, "context=5; the sequence has 6 tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sizes = {"vocabulary": 11, "context": 6, "layers": 1, "heads": 2, "width": 8}
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(GPT(**sizes | options).init, jax.random.key(0), TOKENS)
