import functools
import math

import chex
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


def gpt2(params, tokens, eps=1e-5):
    """GPT-2 of one sequence, in float64, from its description."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * p["scale"] + p["bias"]

    dense = lambda x, p: x @ p["kernel"] + p["bias"]
    x = params["tokens"]["embedding"][tokens] + params["positions"]["embedding"][: len(tokens)]
    for i in range(2):
        p = jax.tree.map(lambda v, i=i: v[i], params["blocks"])
        qkv, out = p["attention"]["qkv"], p["attention"]["out"]
        y = norm(x, p["attention_norm"])
        x = x + out["bias"]
        for head in range(2):
            q, k, v = (y @ qkv["kernel"][:, head, j] + qkv["bias"][head, j] for j in range(3))
            scores = np.where(np.tri(len(x)), q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + weight / weight.sum(-1, keepdims=True) @ v @ out["kernel"][head]
        h = dense(norm(x, p["mlp_norm"]), p["mlp"]["in"])
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + dense(h, p["mlp"]["out"])
    return norm(x, params["norm"]) @ params["tokens"]["embedding"][:11].T


def test_it_is_gpt2():
    _, params, apply = make()
    expected = np.stack([gpt2(params, tokens) for tokens in TOKENS])
    np.testing.assert_allclose(apply(TOKENS), expected, atol=1e-4)


MODERN = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "bias": False, "tied": False}


@pytest.mark.parametrize(
    "options",
    [{}, MODERN, {"positions": "alibi", "kv_heads": 1}, {"positions": "sinusoidal"}],
    ids=lambda options: options.get("positions", "learned"),
)
def test_what_is_remembered_gives_the_same_logits(options):
    """All at once, a few and then one by one, behind padding, and rows at different slots."""
    model, params, apply = make(**options)
    expected = apply(TOKENS)
    extend = jax.jit(functools.partial(model.apply, {"params": params}, method="extend"))
    logits, cache = extend(TOKENS[:, :3], model.make_cache(2, 8), 0)
    parts = [logits]
    for slot in range(3, 6):
        logits, cache = extend(TOKENS[:, slot : slot + 1], cache, slot)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-5, atol=1e-5)

    padded = np.stack([np.pad(TOKENS[0], (2, 0)), np.pad(TOKENS[1], (1, 1))]).astype(np.int32)
    starts = np.array([2, 1], np.int32)
    logits, _ = extend(padded, model.make_cache(2, 8), 0, starts)
    found = np.stack([logits[0, 2:], logits[1, 1:7]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    logits, _ = extend(TOKENS, model.make_cache(2, 8), starts, starts)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "alibi"])
def test_documents_in_a_row_do_not_see_each_other(positions):
    _, params, apply = make(positions=positions)
    model = make(positions=positions)[0]
    segment = np.array([[0, 0, 1, 1, 1, 1], [3, 3, 3, 3, 7, 7]])
    run = jax.jit(
        lambda tokens, segment=None: model.apply({"params": params}, tokens, None, segment)
    )
    logits = run(TOKENS, segment)
    for row, document in ((0, slice(0, 2)), (0, slice(2, 6)), (1, slice(0, 4)), (1, slice(4, 6))):
        alone = run(TOKENS[row : row + 1, document])
        np.testing.assert_allclose(logits[row, document], alone[0], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[:, 4:] - apply(TOKENS)[:, 4:]).max() > 0.1


def test_the_modern_one_is_llamas():
    """RMSNorm, rotations and SwiGLU of one sequence, in float64, from their descriptions."""
    _, params, apply = make(**MODERN, kv_heads=1)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    assert params["blocks"]["mlp"]["in"]["kernel"].shape == (2, 8, 21)

    def norm(x, p):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]

    def turn(x):  # (t, 4): two complex numbers, of frequencies 1 and 1/100
        z = x[:, :2] + 1j * x[:, 2:]
        z = z * np.exp(1j * np.arange(len(x))[:, None] * np.array([1, 0.01]))
        return np.concatenate([z.real, z.imag], -1)

    tokens = TOKENS[0]
    x = params["tokens"]["embedding"][tokens]
    for i in range(2):
        p = jax.tree.map(lambda v, i=i: v[i], params["blocks"])
        y, kernel = norm(x, p["attention_norm"]), p["attention"]["qkv"]["kernel"][:, 0]
        k, v = turn(y @ kernel[:, 2]), y @ kernel[:, 3]  # one for both heads
        for head in range(2):
            scores = turn(y @ kernel[:, head]) @ k.T / 2
            weight = np.exp(np.where(np.tri(len(x)), scores, -np.inf))
            heard = weight / weight.sum(-1, keepdims=True) @ v
            x = x + heard @ p["attention"]["out"]["kernel"][head]
        y, mlp = norm(x, p["mlp_norm"]), p["mlp"]
        h = y @ mlp["in"]["kernel"]
        h = h / (1 + np.exp(-h)) * (y @ mlp["gate"]["kernel"])
        x = x + h @ mlp["out"]["kernel"]
    expected = norm(x, params["norm"]) @ params["head"]["kernel"]
    np.testing.assert_allclose(apply(TOKENS)[0], expected, atol=1e-4)


def test_layers_are_the_same_however_they_are_compiled():
    """In a loop, one by one, and computed again on the way back: values and gradients."""
    _, params, _ = make()

    def run(**options):
        model = GPT(11, 6, 2, 2, 8, classes=3, **options)
        loss = lambda params: (model.apply({"params": params}, TOKENS) ** 2).mean()
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run()
    for options in ({"scan": False}, {"remat": True}, {"scan": False, "remat": True}):
        chex.assert_trees_all_close(run(**options), expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_an_examples_own():
    model, params, apply = make(dropout=0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(lambda tokens, keys: model.apply({"params": params}, tokens, keys))
    dropped = run(TOKENS, keys)
    assert (dropped != apply(TOKENS)).mean() > 0.9
    alone = run(TOKENS[1:], keys[1:])
    np.testing.assert_allclose(alone, dropped[1:], rtol=1e-5, atol=1e-5)


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
    model = GPT(500, 100, 2, 4, 96)
    params = jax.jit(model.init)(stream(0, "init"), TOKENS)["params"]
    block, layers = params["blocks"], 2
    for kernel, std in (
        (params["tokens"]["embedding"], 0.02),
        (params["positions"]["embedding"], 0.02),
        (block["attention"]["qkv"]["kernel"], 0.02),
        (block["mlp"]["in"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], 0.02 / math.sqrt(2 * layers)),
        (block["mlp"]["out"]["kernel"], 0.02 / math.sqrt(2 * layers)),
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
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=2"),
        ({"positions": "absolute"}, "positions='absolute' must be one of 'learned', 'sinusoidal'"),
        ({"positions": "rotary", "width": 6}, "heads of d=3 channels cannot be turned"),
        ({"heads": 3}, "width=8 must be a multiple of heads=3"),
        ({"classes": -1}, "classes=-1 must be at least 0"),
        ({"context": 5}, "context=5; the sequence has 6 tokens"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sizes = {"vocabulary": 11, "context": 6, "layers": 1, "heads": 2, "width": 8}
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(GPT(**sizes | options).init, jax.random.key(0), TOKENS)
