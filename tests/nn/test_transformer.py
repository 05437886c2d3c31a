"""What Transformers are made of, against the equations in float64."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax.nn.transformer import (
    MLP,
    Attention,
    Block,
    Cache,
    extend_blocks,
    look_back,
    run_blocks,
    write,
)

B, T, S, WIDTH, HEADS, HIDDEN, LAYERS = 2, 5, 3, 8, 4, 6, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, WIDTH)).astype(np.float32)
MEMORY = RNG.normal(size=(B, S, WIDTH)).astype(np.float32)
# Row 0 reads all three, row 1 the last two.
THERE = np.array([[1, 1, 1], [0, 1, 1]], bool)[:, None, None]


def make(module, *args, **kwargs):
    """Return a module and weights large enough that every part of it counts."""
    start = functools.partial(module.init, jax.random.key(0))
    shapes = jax.eval_shape(start, *args, **kwargs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)


def in_double(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def attention(p, x, memory=None, mask=None):
    """Multi-head attention, head by head: x (t, width), memory (s, width), mask (t, s)."""
    own = memory is None
    memory = x if own else memory
    bias = lambda layer, *at: p[layer]["bias"][at] if "bias" in p[layer] else 0
    read = lambda x, layer, *at: x @ p[layer]["kernel"][:, *at] + bias(layer, *at)
    kv, each, d = p["qkv" if own else "query"]["kernel"].shape[1:]
    group = each - 2 if own else each
    y = np.zeros_like(x) + bias("out")
    for head in range(kv * group):
        shared, nth = divmod(head, group)
        if own:
            q = read(x, "qkv", shared, nth)
            k, v = (read(x, "qkv", shared, group + i) for i in range(2))
        else:
            q = read(x, "query", shared, nth)
            k, v = (read(memory, "kv", shared, i) for i in range(2))
        scores = q @ k.T / math.sqrt(d)
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        y = y + weight / weight.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
    return y


def mlp(p, x, activation=lambda y: np.maximum(y, 0)):
    y = activation(x @ p["in"]["kernel"] + p["in"]["bias"])
    if "gate" in p:
        y = y * (x @ p["gate"]["kernel"] + p["gate"]["bias"])
    return y @ p["out"]["kernel"] + p["out"]["bias"]


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_the_papers(kv_heads, bias):
    module = Attention(HEADS, kv_heads, bias=bias)
    params = make(module, X)
    assert params["qkv"]["kernel"].shape[1] == (kv_heads or HEADS)
    assert ("bias" in params["out"]) == bias
    y, cache = module.apply({"params": params}, X, is_causal=True)
    p, past = in_double(params), np.tri(T, dtype=bool)
    np.testing.assert_allclose(y, np.stack([attention(p, x, mask=past) for x in X]), atol=1e-5)
    assert cache is None


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_attention_to_another_sequence(kv_heads):
    """From what it is, or from keys and values that were made of it."""
    module = Attention(HEADS, kv_heads)
    params = make(module, X, MEMORY)
    assert params.keys() == {"query", "kv", "out"}
    p, run = in_double(params), functools.partial(module.apply, {"params": params}, X)
    plain, made = run(MEMORY)
    expected = np.stack([attention(p, *pair) for pair in zip(X, MEMORY, strict=True)])
    np.testing.assert_allclose(plain, expected, atol=1e-5)

    masked, _ = run(MEMORY, mask=THERE)
    alone = attention(p, X[1], MEMORY[1, 1:])
    np.testing.assert_allclose(masked[1], alone, atol=1e-5)

    assert made.key.shape == made.value.shape == (B, kv_heads or HEADS, S, WIDTH // HEADS)
    again, same = run(made, mask=THERE)
    np.testing.assert_array_equal(again, masked)
    chex.assert_trees_all_equal(same, made)


def test_positions_turn_a_sequence_but_not_another():
    params = make(Attention(HEADS, rotary=True), X, MEMORY)
    turned, plain = (
        Attention(HEADS, rotary=rotary).apply({"params": params}, X, MEMORY)[0]
        for rotary in (True, False)
    )
    np.testing.assert_array_equal(turned, plain)

    module = Attention(HEADS, rotary=True)
    params = make(module, X, position=np.arange(T)[None])
    far, near = (
        module.apply({"params": params}, X, position=np.arange(T)[None] + by)[0] for by in (7, 0)
    )
    # All that counts is how far apart they stand; but they do not stand in one place.
    np.testing.assert_allclose(far, near, atol=1e-4)
    still = module.apply({"params": params}, X, position=np.zeros((1, T), int))[0]
    assert np.abs(still - near).max() > 0.1


def test_tokens_are_written_to_slots():
    slots, x = np.zeros((2, 4, 6, 3), np.float32), RNG.normal(size=(2, 2, 4, 3)).astype(np.float32)
    for slot, places in ((1, [1, 1]), (jnp.int32(4), [4, 4]), (jnp.array([0, 3]), [0, 3])):
        expected = slots.copy()
        for row, place in enumerate(places):
            expected[row, :, place : place + 2] = x[row].swapaxes(0, 1)
        np.testing.assert_array_equal(jax.jit(write)(slots, x, slot), expected)
    written = write(slots.astype(jnp.bfloat16), x, 0)
    assert written.dtype == jnp.bfloat16


@pytest.mark.parametrize("slot", [2, [2, 0]], ids=["one slot", "a slot each"])
def test_what_is_in_a_cache_is_attended_to(slot):
    """Token after token into a cache full of what is not a number but where it is masked."""
    module = Attention(HEADS, 2)
    params = make(module, X)
    expected, _ = module.apply({"params": params}, X, is_causal=True)
    places = np.resize(slot, B)
    empty = np.full((B, 2, 8, WIDTH // HEADS), 7.0, np.float32)
    cache, start = Cache(empty, empty), np.asarray(places, np.int32)
    step = jax.jit(functools.partial(module.apply, {"params": params}))
    for i in range(T):
        at = jnp.asarray(slot, jnp.int32) + i
        _, mask = look_back(at, 1, 8, start)
        y, cache = step(X[:, i : i + 1], cache=cache, slot=at, mask=mask)
        np.testing.assert_allclose(y[:, 0], expected[:, i], atol=1e-5)
    for row, place in enumerate(places):
        untouched = np.delete(cache.key[row], range(place, place + T), 1)
        np.testing.assert_array_equal(untouched, 7.0)


def test_a_token_looks_back_to_where_its_sequence_begins():
    position, mask = look_back(jnp.array([0, 2]), 2, 5, jnp.array([0, 3]))
    np.testing.assert_array_equal(position, [[0, 1], [0, 0]])
    # Slot 2 of the second row is padding, and sees itself alone.
    seen = [["1____", "11___"], ["__1__", "___1_"]]
    expected = np.array([[[c == "1" for c in row] for row in rows] for rows in seen])
    np.testing.assert_array_equal(mask[:, 0], expected)
    position, mask = look_back(3, 1, 5)
    np.testing.assert_array_equal(position, [[3]])
    np.testing.assert_array_equal(mask[0, 0], [[True, True, True, True, False]])


SIGMOID = lambda y: 1 / (1 + np.exp(-y))


@pytest.mark.parametrize(
    ("gated", "ours", "theirs"),
    [
        (False, jax.nn.relu, lambda y: np.maximum(y, 0)),
        (True, jax.nn.silu, lambda y: y * SIGMOID(y)),  # SwiGLU
        (True, jax.nn.sigmoid, SIGMOID),  # GLU
    ],
)
def test_perceptrons_are_those_of_each_token(gated, ours, theirs):
    module = MLP(HIDDEN, ours, gated)
    params = make(module, X)
    assert params["in"]["kernel"].shape == (WIDTH, HIDDEN)
    assert ("gate" in params) == gated
    expected = mlp(in_double(params), X.astype(np.float64), theirs)
    np.testing.assert_allclose(module.apply({"params": params}, X), expected, atol=1e-5)


def block(**options):
    return Block(
        functools.partial(Attention, HEADS, 2, bias=False),
        functools.partial(MLP, HIDDEN, jax.nn.relu),
        nn.LayerNorm,
        **options,
    )


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("cross", [False, True], ids=["alone", "cross"])
def test_a_block_is_attention_and_a_perceptron(pre_norm, cross):
    module = block(pre_norm=pre_norm, cross=cross)
    reading = (None, MEMORY, THERE) if cross else ()
    params = make(module, X, *reading)
    y, cache = jax.jit(module.apply)({"params": params}, X, *reading)
    assert cache is None
    p = in_double(params)
    for row in range(B):
        x = X[row].astype(np.float64)
        there = MEMORY[row][THERE[row, 0, 0]]
        parts = {"attention": lambda x: attention(p["attention"], x)}
        if cross:
            parts["cross"] = lambda x, there=there: attention(p["cross"], x, there)
        parts["mlp"] = lambda x: mlp(p["mlp"], x)
        for name, part in parts.items():
            normed = functools.partial(norm, p[f"{name}_norm"])
            x = x + part(normed(x)) if pre_norm else normed(x + part(x))
        np.testing.assert_allclose(y[row], x, atol=1e-4)


def test_a_blocks_dropout_is_of_what_each_part_adds():
    """With all of it dropped, what is left is what went in."""
    keys = jax.random.split(jax.random.key(0), B)
    params = make(block(cross=True), X, None, MEMORY)
    run = lambda rate: jax.jit(block(dropout=rate, cross=True).apply)(
        {"params": params}, X, keys, MEMORY
    )
    np.testing.assert_array_equal(run(1 - 1e-7)[0], X)


class Stack(nn.Module):
    """A stack of blocks, read whole or on from caches."""

    scan: bool = True
    remat: bool = False

    def setup(self):
        self.blocks = block(pre_norm=False, cross=True)

    def __call__(self, x, memory):
        compiled = {"scan": self.scan, "remat": self.remat}
        reading = {"memory": memory, "memory_mask": THERE}
        return run_blocks(self.blocks, x, LAYERS, is_causal=True, **compiled, **reading)

    def extend(self, x, caches, memories, slot):
        mask = look_back(slot, x.shape[1], caches[0].key.shape[2])[1]
        reading = {"memory_mask": THERE, "slot": slot, "mask": mask}
        return extend_blocks(self.blocks, x, caches, memories, **reading)


def test_a_stack_is_the_same_however_it_is_compiled():
    """Values, and gradients by weights and by what it reads."""
    params = make(Stack(), X, MEMORY)
    assert {x.shape[0] for x in jax.tree.leaves(params)} == {LAYERS}

    def run(**options):
        module = Stack(**options)
        loss = lambda params, memory: (module.apply({"params": params}, X, memory) ** 3).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, MEMORY)

    expected = run()
    assert np.abs(expected[1][1]).max() > 0.1
    for options in ({"scan": False}, {"remat": True}):
        chex.assert_trees_all_close(run(**options), expected, rtol=1e-4, atol=1e-4)


def test_a_stack_goes_on_from_caches():
    params = make(Stack(), X, MEMORY)
    expected = jax.jit(Stack().apply)({"params": params}, X, MEMORY)
    cross = Attention(HEADS, 2, bias=False)
    of = lambda layer: jax.tree.map(lambda x: x[layer], params["blocks"]["cross"])
    memories = tuple(cross.apply({"params": of(layer)}, X, MEMORY)[1] for layer in range(LAYERS))
    empty = np.full((B, 2, T + 1, WIDTH // HEADS), 7.0, np.float32)
    caches = (Cache(empty, empty),) * LAYERS
    extend = jax.jit(functools.partial(Stack().apply, {"params": params}, method="extend"))
    for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
        y, caches = extend(X[:, part], caches, memories, part.start)
        np.testing.assert_allclose(y, expected[:, part], atol=1e-4)
