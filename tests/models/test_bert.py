import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.bert import BERT

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (2, 6), np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]])
SEGMENT = np.array([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])


def both(bert, tokens):
    x = bert(tokens)
    return bert.logits(x), bert.pool(x)


@functools.cache
def make(**options):
    model = BERT(11, 6, 2, 2, 8, **options)
    shapes = jax.eval_shape(functools.partial(model.init, method=both), stream(0, "init"), TOKENS)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes["params"]
    )
    return model, params, jax.jit(functools.partial(model.apply, {"params": params}))


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def described(params, tokens, mask, segment):
    """BERT of one sequence, in float64, from its description."""
    of = lambda name: params[name]["embedding"]
    x = of("tokens")[tokens] + of("positions")[: len(tokens)] + of("segments")[segment]
    x = norm(x, params["embedding_norm"])
    for i in range(2):
        p = jax.tree.map(lambda v, i=i: v[i], params["blocks"])
        qkv, out = p["attention"]["qkv"], p["attention"]["out"]
        heard = out["bias"]
        for head in range(2):
            q, k, v = (x @ qkv["kernel"][:, head, j] + qkv["bias"][head, j] for j in range(3))
            weight = np.exp(np.where(mask, q @ k.T / math.sqrt(q.shape[-1]), -np.inf))
            heard = heard + weight / weight.sum(-1, keepdims=True) @ v @ out["kernel"][head]
        x = norm(x + heard, p["attention_norm"])
        h = gelu(dense(x, p["mlp"]["in"]))
        x = norm(x + dense(h, p["mlp"]["out"]), p["mlp_norm"])
    return x


def test_it_is_bert():
    model, params, apply = make()
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = zip(TOKENS, MASK, SEGMENT, strict=True)
    expected = np.stack([described(exact, *row) for row in rows])
    x = apply(TOKENS, MASK, SEGMENT)
    np.testing.assert_allclose(x, expected, atol=1e-4)
    head = exact["head"]
    y = norm(gelu(dense(expected, head["dense"])), head["norm"])
    expected_logits = y @ exact["tokens"]["embedding"].T + head["bias"]
    logits = model.apply({"params": params}, x, method="logits")
    np.testing.assert_allclose(logits, expected_logits, atol=2e-4)
    pooled = model.apply({"params": params}, x, method="pool")
    np.testing.assert_allclose(pooled, np.tanh(dense(expected[:, 0], exact["pooler"])), atol=1e-4)


def test_padding_is_not_seen_and_there_may_be_none():
    _, _, apply = make()
    other = np.where(MASK, TOKENS, (TOKENS + 1) % 11)
    real = MASK.astype(bool)
    x = apply(TOKENS, MASK)
    np.testing.assert_array_equal(x[real], apply(other, MASK)[real])
    everything = apply(TOKENS, np.ones_like(MASK))
    np.testing.assert_allclose(apply(TOKENS), everything, atol=1e-6)
    assert np.abs(x - everything)[real].max() > 0.01
    np.testing.assert_array_equal(apply(TOKENS), apply(TOKENS, None, np.zeros_like(SEGMENT)))


def test_layers_are_the_same_however_they_are_compiled():
    _, params, _ = make()

    def run(**options):
        model = BERT(11, 6, 2, 2, 8, **options)
        predict = lambda p: model.apply({"params": p}, TOKENS, mask=MASK, method="predict")
        return jax.jit(jax.value_and_grad(lambda p: (predict(p) ** 2).mean()))(params)

    expected = run()
    assert not jax.tree.reduce(lambda n, g: n + np.abs(g).sum(), expected[1]["pooler"], 0)
    chex.assert_trees_all_close(run(scan=False, remat=True), expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_an_examples_own():
    _, _, apply = make(dropout=0.3)
    keys = jax.random.split(stream(0, "dropout"), 2)
    dropped = apply(TOKENS, keys=keys)
    assert (dropped != apply(TOKENS)).mean() > 0.9
    np.testing.assert_allclose(apply(TOKENS[1:], keys=keys[1:]), dropped[1:], atol=1e-5)


def test_heads_have_parameters_if_they_are_what_runs():
    model = make()[0]
    keys = lambda method: set(
        jax.eval_shape(functools.partial(model.init, method=method), stream(0, "init"), TOKENS)[
            "params"
        ]
    )
    trunk = keys(None)
    assert trunk == {"tokens", "positions", "segments", "embedding_norm", "blocks"}
    assert keys("predict") - trunk == {"head"} and keys("summarise") - trunk == {"pooler"}


def test_bert_base_has_its_size():
    init = functools.partial(BERT().init, method=both)
    shapes = jax.eval_shape(init, jax.random.key(0), TOKENS)["params"]
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(shapes) - count(shapes["head"]) == 109_482_240
    assert count(shapes["head"]) == 768 * 768 + 3 * 768 + 30522


def test_in_bfloat16_weights_and_logits_stay_float32():
    model, params, _ = make(dtype=jnp.bfloat16)
    of = lambda **options: jax.eval_shape(
        functools.partial(model.apply, **options), {"params": params}, TOKENS
    )
    assert of().dtype == jnp.bfloat16 and of(method="predict").dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"segments": 0}, "segments=0 must be at least 1"),
        ({"heads": 3}, "width=8 must be a multiple of heads=3"),
        ({"context": 5}, "context=5; the sequence has 6 tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sizes = {"vocabulary": 11, "context": 6, "layers": 1, "heads": 2, "width": 8}
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(BERT(**sizes | options).init, jax.random.key(0), TOKENS)
