import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import lora
from aigc_jax.tasks.adapters import low_rank, prefix, prompt
from aigc_jax.tasks.lm import lm, lm_terms
from aigc_jax.train.step import init, make_step

NETWORK = GPT(7, 12, 2, 2, 16, scan=False)
TOKENS = np.random.default_rng(0).integers(0, 7, (3, 6), np.int32)
KEY = stream(0, "adapter")


def weights(network, scale=0.3):
    shapes = jax.eval_shape(network.init, KEY, TOKENS)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, scale, s.shape), s.dtype), shapes)


def logits(network, params, adapter, own, tokens=TOKENS, method=None, **options):
    def run(params, own, tokens, options):
        variables = {"params": params} | adapter.variables(network, params, own)
        with lora():
            return network.apply(variables, tokens, method=method, **options)

    return jax.jit(run)(params, own, tokens, options)


@pytest.mark.parametrize(
    "options", [{"scan": True}, {"positions": "alibi", "kv_heads": 1, "tied": False}], ids=str
)
def test_a_prompt_is_read_before_each_text(options):
    """As the first tokens of every row, whose embeddings it is, where positions do not matter."""
    network, n = NETWORK.clone(**options), 3
    params = weights(network)
    if "positions" in params:
        params["positions"] = jax.tree.map(jnp.zeros_like, params["positions"])
    adapter = prompt(n)
    own = {"embedding": jnp.asarray(np.random.default_rng(2).normal(size=(n, 16)), jnp.float32)}
    if network.positions == "alibi":  # the text stands where it stood: as far from none of it
        params["blocks"]["attention"]["out"]["kernel"] *= 0
    whole = network.clone(classes=n)
    table = jnp.concatenate([params["tokens"]["embedding"], own["embedding"]])
    ids = np.concatenate([np.broadcast_to(7 + np.arange(n, dtype=np.int32), (3, n)), TOKENS], 1)
    given = {"params": params | {"tokens": {"embedding": table}}}
    expected = jax.jit(whole.apply)(given, ids)[:, n:]
    np.testing.assert_allclose(logits(network, params, adapter, own), expected, atol=2e-5)


def test_a_prompt_begins_as_tokens_and_a_prefix_as_what_layers_make_of_them():
    params = weights(NETWORK)
    first, second = (adapter(5).init(KEY, NETWORK, params) for adapter in (prompt, prefix))
    rows = {tuple(row) for row in np.asarray(params["tokens"]["embedding"]).tolist()}
    drawn = [tuple(row) for row in np.asarray(first["embedding"]).tolist()]
    assert len(set(drawn)) == 5 and set(drawn) <= rows
    assert jax.tree.map(jnp.shape, second)["blocks"]["attention"] == {
        "key": (2, 5, 2, 8),
        "value": (2, 5, 2, 8),
    }
    np.testing.assert_allclose(
        logits(NETWORK, params, prompt(5), first),
        logits(NETWORK, params, prefix(5), second),
        atol=1e-5,
    )
    assert prompt(12).init(KEY, NETWORK, params)["embedding"].shape == (12, 16)  # there are 7


@pytest.mark.parametrize(
    "adapter", [prompt(2), prefix(2), low_rank(2)], ids=["prompt", "prefix", "low_rank"]
)
def test_packed_and_cached_texts_are_as_whole_ones(adapter):
    params = weights(NETWORK)
    own = adapter.init(KEY, NETWORK, params)
    noise = np.random.default_rng(3)
    own = jax.tree.map(lambda x: x + noise.normal(0, 0.5, x.shape).astype(np.float32), own)
    expected = logits(NETWORK, params, adapter, own)
    assert np.abs(expected - NETWORK.apply({"params": params}, TOKENS)).max() > 0.05

    packed = np.concatenate([TOKENS, TOKENS[::-1]], 1)
    segment = np.repeat([[0, 1]], 6, axis=1).repeat(3, 0)
    both = logits(NETWORK, params, adapter, own, packed, segment=jnp.asarray(segment))
    np.testing.assert_allclose(both, np.concatenate([expected, expected[::-1]], 1), atol=2e-5)

    cache, parts = NETWORK.make_cache(3), []
    for part in (slice(0, 4), slice(4, 6)):
        options = {"cache": cache, "slot": part.start, "method": "extend"}
        read, cache = logits(NETWORK, params, adapter, own, TOKENS[:, part], **options)
        parts.append(read)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=2e-5)


@pytest.mark.parametrize("adapter", [prompt(4), prefix(4)], ids=["prompt", "prefix"])
def test_they_learn_and_write(adapter):
    task = lm(NETWORK, optax.adam(0.1), adapter=adapter)
    text = np.array([3, 1, 4, 1, 5, 2, 6, 0, 3, 1, 4], np.int32)
    batch = {"tokens": jnp.tile(text, (2, 1))}
    base = weights(NETWORK)
    given = {"gpt": base, "adapter": adapter.init(KEY, NETWORK, base)}
    state = jax.jit(functools.partial(init, task))(stream(0, "init"), batch, given)
    nll = jax.jit(lambda params: lm_terms(NETWORK, adapter)(params, {}, batch, None)["nll"][0])
    before = nll(state.params)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(30):
        state, _ = step(state, batch)
    chex.assert_trees_all_equal(state.params["gpt"], base)
    after = nll(state.params)
    assert after < before - 0.2
    sample = jax.jit(functools.partial(task.sample, length=5, temperature=0))
    drawn = sample(state.params, {}, stream(0, "s")[None], {"tokens": text[None, :6]})
    greedy = np.zeros((1, 11), np.int32)
    greedy[:, :6] = text[:6]
    read = jax.jit(
        lambda own, tokens: NETWORK.apply(
            {"params": base} | adapter.variables(NETWORK, base, own), tokens
        )
    )
    for i in range(6, 11):
        greedy[:, i] = read(state.params["adapter"], greedy)[:, i - 1].argmax(-1)
    np.testing.assert_array_equal(drawn["tokens"], greedy)


def test_settings_of_adapters_are_checked():
    for make in (prompt, prefix):
        with pytest.raises(ValueError, match="length=0 must be at least 1"):
            make(0)
        with pytest.raises(ValueError, match="length=13 is more than context=12"):
            make(13).init(KEY, NETWORK, weights(NETWORK))
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        low_rank(0)
