"""The encoder-decoder Transformer against its description, and its cache against itself."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.seq2seq import Seq2Seq

RNG = np.random.default_rng(0)
SOURCE = RNG.integers(0, 11, (2, 4), np.int32)
TOKENS = RNG.integers(0, 11, (2, 5), np.int32)
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32)


@functools.cache
def make(**options):
    model = Seq2Seq(11, 2, 2, 8, **options)
    shapes = jax.eval_shape(model.init, stream(0, "init"), SOURCE, TOKENS)["params"]
    # Large weights, and biases, so that every part counts.
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(np.float32), shapes)
    return model, params, jax.jit(functools.partial(model.apply, {"params": params}))


def published(params, source, tokens):
    """Vaswani et al.'s Transformer of one pair, in float64, from §3."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table, width = params["tokens"]["embedding"], 8

    def embed(tokens):
        angle = np.arange(len(tokens))[:, None] / 10_000 ** (2 * np.arange(width // 2) / width)
        return math.sqrt(width) * table[tokens] + np.concatenate([np.sin(angle), np.cos(angle)], 1)

    def attention(q, k, v, out, causal):
        y = 0
        for head in range(2):
            scores = q[:, head] @ k[:, head].T / math.sqrt(width // 2)
            if causal:
                scores = np.where(np.tri(len(scores)), scores, -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            y = y + weight / weight.sum(-1, keepdims=True) @ v[:, head] @ out[head]
        return y

    def run(x, p, memory=None):
        def norm(x, name):
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            return x * p[name]["scale"] + p[name]["bias"]

        own = np.einsum("tc,chnd->nthd", x, p["attention"]["qkv"]["kernel"])
        out = p["attention"]["out"]["kernel"]
        x = norm(x + attention(*own, out, memory is not None), "attention_norm")
        if memory is not None:
            [q] = np.einsum("tc,chnd->nthd", x, p["cross"]["query"]["kernel"])
            k, v = np.einsum("tc,chnd->nthd", memory, p["cross"]["kv"]["kernel"])
            heard = attention(q, k, v, p["cross"]["out"]["kernel"], False)
            x = norm(x + heard, "cross_norm")
        hidden = np.maximum(x @ p["mlp"]["in"]["kernel"] + p["mlp"]["in"]["bias"], 0)
        return norm(x + hidden @ p["mlp"]["out"]["kernel"] + p["mlp"]["out"]["bias"], "mlp_norm")

    memory, x = embed(source), embed(tokens)
    layer = lambda name, i: jax.tree.map(lambda v: v[i], params[name])
    for i in range(2):
        memory = run(memory, layer("encoder", i))
    for i in range(2):
        x = run(x, layer("decoder", i), memory)
    return x @ table.T


def test_it_is_the_papers():
    _, params, apply = make()
    assert params.keys() == {"tokens", "encoder", "decoder"}
    expected = np.stack([published(params, *pair) for pair in zip(SOURCE, TOKENS, strict=True)])
    np.testing.assert_allclose(apply(SOURCE, TOKENS), expected, atol=1e-4)


def test_padding_of_a_source_is_nowhere():
    """Neither behind nor before, whatever stands there."""
    _, params, apply = make()
    logits = apply(SOURCE, TOKENS, MASK)
    expected = published(params, SOURCE[0, :2], TOKENS[0])
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)
    before = np.stack([np.roll(SOURCE[0], 2), SOURCE[1]]), np.stack([MASK[0, ::-1], MASK[1]])
    before[0][0, :2] = 7
    np.testing.assert_allclose(apply(before[0], TOKENS, before[1]), logits, rtol=1e-5, atol=1e-5)


MODERN = {"pre_norm": True, "tied": False, "source_vocabulary": 13}


@pytest.mark.parametrize("options", [{}, MODERN], ids=["post-norm", "pre-norm"])
def test_what_is_remembered_gives_the_same_logits(options):
    """All at once, a few and then one by one, behind padding, and rows at different slots."""
    model, params, apply = make(**options)
    expected = apply(SOURCE, TOKENS, MASK)

    @jax.jit
    def begin(source, mask):
        bound = model.bind({"params": params})
        return bound.make_cache(bound.encode(source, mask), mask, 8)

    extend = jax.jit(functools.partial(model.apply, {"params": params}, method="extend"))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    empty = begin(SOURCE, MASK)
    # So that beam search can reorder what it holds.
    assert {x.shape[0] for x in jax.tree.leaves(empty)} == {2}
    logits, cache = extend(TOKENS[:, :3], empty, 0)
    parts = [logits]
    for slot in range(3, 5):
        logits, cache = extend(TOKENS[:, slot : slot + 1], cache, slot)
        parts.append(logits)
    close(np.concatenate(parts, 1), expected)
    chex.assert_trees_all_equal(cache.memory, empty.memory)

    swapped = jax.tree.map(lambda x: x[::-1], empty)
    close(extend(TOKENS[::-1], swapped, 0)[0], expected[::-1])

    padded = np.stack([np.pad(TOKENS[0], (2, 0)), np.pad(TOKENS[1], (1, 1))]).astype(np.int32)
    starts = np.array([2, 1], np.int32)
    logits, _ = extend(padded, empty, 0, starts)
    close(np.stack([logits[0, 2:], logits[1, 1:6]]), expected)
    close(extend(TOKENS, empty, starts, starts)[0], expected)


def test_a_source_without_padding_needs_no_mask():
    model, params, apply = make()

    @jax.jit
    def run(source, tokens):
        bound = model.bind({"params": params})
        cache = bound.make_cache(bound.encode(source), slots=5)
        assert cache.mask is None
        return bound.extend(tokens, cache)[0]

    logits = run(SOURCE, TOKENS)
    np.testing.assert_allclose(logits, apply(SOURCE, TOKENS), rtol=1e-5, atol=1e-5)
    masked = apply(SOURCE, TOKENS, np.ones((2, 4), np.float32))
    np.testing.assert_allclose(masked, logits, rtol=1e-5, atol=1e-5)


def test_dropout_is_an_examples_own():
    _, _, apply = make(dropout=0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    dropped = apply(SOURCE, TOKENS, MASK, keys)
    assert (dropped != make()[2](SOURCE, TOKENS, MASK)).mean() > 0.9
    alone = apply(SOURCE[1:], TOKENS[1:], MASK[1:], keys[1:])
    np.testing.assert_allclose(alone, dropped[1:], rtol=1e-5, atol=1e-5)


def test_source_and_logits_may_have_weights_of_their_own():
    _, tied, _ = make()
    _, params, apply = make(**MODERN)
    more = {"source_tokens", "head", "encoder_norm", "decoder_norm"}
    assert params.keys() - tied.keys() == more
    assert params["source_tokens"]["embedding"].shape == (13, 8)
    assert params["head"]["kernel"].shape == (8, 11)
    assert np.isfinite(apply(np.full((2, 4), 12, np.int32), TOKENS)).all()


def test_the_base_model_has_its_size():
    """65M in table 3: matrices and perceptrons' biases of 6 + 6 layers, norms, 37,000 tokens."""
    shapes = jax.eval_shape(Seq2Seq().init, jax.random.key(0), SOURCE, TOKENS)
    attention, mlp, norm = 4 * 512**2, 2 * 512 * 2048 + 2048 + 512, 2 * 512
    encoder, decoder = attention + mlp + 2 * norm, 2 * attention + mlp + 3 * norm
    found = sum(x.size for x in jax.tree.leaves(shapes))
    assert found == 6 * (encoder + decoder) + 37_000 * 512
    assert abs(found / 65e6 - 1) < 0.04


def test_it_starts_as_the_authors_code_does():
    """Matrices uniform with variance 2/(in + out), embeddings of norm 1, biases 0."""
    params = jax.jit(Seq2Seq(500, 1, 4, 64).init)(stream(0, "init"), SOURCE, TOKENS)["params"]
    decoder = params["decoder"]
    square, mlp = 1 / 64, 2 / (64 + 256)
    for kernel, variance in (
        (decoder["attention"]["qkv"]["kernel"], square),
        (decoder["attention"]["out"]["kernel"], square),
        (decoder["cross"]["query"]["kernel"], square),
        (decoder["cross"]["kv"]["kernel"], square),
        (decoder["mlp"]["in"]["kernel"], mlp),
        (decoder["mlp"]["out"]["kernel"], mlp),
    ):
        assert abs(kernel).max() <= math.sqrt(3 * variance)
        assert abs(kernel.var() / variance - 1) < 4 / math.sqrt(kernel.size)
    embedding = params["tokens"]["embedding"]
    assert abs(embedding.std() * 8 - 1) < 4 / math.sqrt(2 * embedding.size)
    biases = [x for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "bias"]
    assert biases and not any(x.any() for x in biases)


def test_in_bfloat16_weights_and_logits_stay_float32():
    model, params, _ = make(dtype=jnp.bfloat16)
    shape = jax.eval_shape(model.apply, {"params": params}, SOURCE, TOKENS)
    assert shape.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    cache = jax.eval_shape(
        lambda memory: model.apply({"params": params}, memory, method="make_cache"),
        jax.ShapeDtypeStruct((2, 4, 8), jnp.bfloat16),
    )
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"source_vocabulary": 0}, "source_vocabulary=0 must be at least 1"),
        ({"heads": 3}, "width=8 must be a multiple of heads=3"),
        ({"width": 9, "heads": 3}, "channels=9 must be even"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sizes = {"vocabulary": 11, "layers": 1, "heads": 2, "width": 8}
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(Seq2Seq(**sizes | options).init, jax.random.key(0), SOURCE, TOKENS)
