import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.types import Mode
from aigc_jax.models.gpt import GPT
from aigc_jax.nn.lora import merge
from aigc_jax.tasks.adapters import low_rank
from aigc_jax.tasks.lm import adamw, freeze, lm, lm_terms
from aigc_jax.train.step import init, make_step

NETWORK = GPT(7, 8, 1, 2, 16)
TEXT = np.array([3, 1, 4, 1, 5, 2, 6, 0], np.int32)  # each token tells the next, but for 1
KEYS = jax.random.split(jax.random.key(0), 4)


def make(**options):
    return lm(NETWORK, optax.adam(1e-2), **options)


@functools.cache
def trained():
    task = make()
    batch = {"tokens": jnp.tile(np.tile(TEXT, 2)[:9], (4, 1))}
    state = jax.jit(functools.partial(init, task))(stream(0, "init"), batch)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(150):
        state, metrics = step(state, batch)
    return state, metrics


apply = jax.jit(NETWORK.apply)


def nll_by_hand(params, tokens, mask):
    logits = apply({"params": params["gpt"]}, tokens[:, :-1])
    each = -np.asarray(jax.nn.log_softmax(logits), np.float64)
    picked = np.take_along_axis(each, np.asarray(tokens)[:, 1:, None], 2)[..., 0]
    return picked * np.asarray(mask)[:, 1:]


@jax.jit
def loss(params, batch):
    [phase] = make().phases
    return phase.loss(params, {}, batch, KEYS[: len(batch["tokens"])], Mode(train=True))


def test_the_loss_is_the_nats_of_a_token_and_weighs_its_tokens():
    state, _ = trained()
    tokens = np.random.default_rng(0).integers(0, 7, (3, 6)).astype(np.int32)
    out = loss(state.params, {"tokens": tokens})
    each = nll_by_hand(state.params, tokens, np.ones((3, 6)))
    np.testing.assert_allclose(out.loss, each.mean(1), rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [5, 5, 5])

    mask = np.array([[1, 1, 0, 0, 1, 0.5], [1, 0, 0, 0, 0, 0], [1] * 6], np.float32)
    out = loss(state.params, {"tokens": tokens, "mask": mask})
    each = nll_by_hand(state.params, tokens, mask)
    np.testing.assert_allclose(out.loss * out.weight, each.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [2.5, 0, 5])
    assert out.loss[1] == 0


def test_packed_documents_cost_what_they_do_alone():
    state, _ = trained()
    a, b = TEXT[:4], TEXT[3:8]
    packed = {"tokens": np.concatenate([a, b])[None], "segment": np.array([[0] * 4 + [1] * 5])}
    out = loss(state.params, packed)
    alone = [loss(state.params, {"tokens": part[None]}) for part in (a, b)]
    np.testing.assert_array_equal(out.weight, [3 + 4])
    expected = sum(float((part.loss * part.weight)[0]) for part in alone)
    np.testing.assert_allclose(out.loss[0] * 7, expected, rtol=1e-5)


def test_it_learns_a_text_by_heart_and_writes_it():
    state, metrics = trained()
    assert metrics["lm/loss"].total / metrics["lm/loss"].weight < 0.05
    drawn = make().sample(
        state.params, {}, KEYS[:1], {"tokens": TEXT[None, :3]}, length=5, temperature=0.0
    )
    np.testing.assert_array_equal(drawn["tokens"][0], TEXT)
    np.testing.assert_array_equal(drawn["start"], [0])


def test_from_nothing_it_begins_from_its_token_and_ends_at_a_stop():
    state, _ = trained()
    task = make(begin=3, stop=(2,), pad=6)
    drawn = task.sample(state.params, {}, KEYS[:2], {}, length=7, temperature=0.0)["tokens"]
    np.testing.assert_array_equal(drawn, [[3, 1, 4, 1, 5, 2, 6, 6]] * 2)


def test_it_writes_on_beyond_its_context():
    state, _ = trained()
    sample = functools.partial(make().sample, state.params, {}, KEYS[:1])
    drawn = sample({"tokens": TEXT[None, :4]}, length=30, temperature=0.0)["tokens"][0]
    # By position it learned only that the text goes on from where it stands in the context.
    np.testing.assert_array_equal(drawn[:9], np.tile(TEXT, 2)[:9])
    assert drawn.shape == (34,)


def test_tokens_that_do_not_exist_are_never_written():
    state, _ = trained()
    drawn = make(vocabulary=3).sample(state.params, {}, KEYS, {}, length=40, temperature=5.0)
    assert set(np.unique(drawn["tokens"])) == {0, 1, 2}


def test_its_terms_are_those_of_the_loss():
    state, _ = trained()
    tokens = np.random.default_rng(1).integers(0, 7, (3, 6)).astype(np.int32)
    terms = lm_terms(NETWORK)(state.params, {}, {"tokens": tokens}, KEYS[:3])
    out = loss(state.params, {"tokens": tokens})
    np.testing.assert_allclose(terms["nll"] / terms["tokens"], out.loss, rtol=1e-6)


def test_matrices_decay_and_nothing_else():
    params = jax.tree.map(jnp.ones_like, trained()[0].params)
    tx = adamw(1.0, weight_decay=0.25)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, update in jax.tree.leaves_with_path(updates):
        expected = -0.25 if path[-1].key in ("kernel", "embedding") else 0.0
        assert float(update.reshape(-1)[0]) == expected, path


def test_gradients_are_clipped():
    params = {"kernel": jnp.zeros(4)}
    tx = adamw(1.0, b1=0.0, b2=0.0, weight_decay=0.0, clip=1.0)
    state = tx.init(params)
    _, state = tx.update({"kernel": jnp.full(4, 50.0)}, state, params)
    [moments] = [
        s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "nu")) if hasattr(s, "nu")
    ]
    assert math.isclose(float(moments.nu["kernel"].sum()), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 7}, r"begin=7 must lie in \[0, 7\)"),
        ({"stop": (1, -1)}, "stop=-1 must lie"),
        ({"pad": 9}, "pad=9 must lie"),
        ({"vocabulary": 8}, r"vocabulary=8 must lie in \[1, 7\]"),
    ],
)
def test_tokens_of_another_vocabulary_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def adapted(**options):
    adapter = low_rank(**options)
    task = lm(NETWORK, optax.adam(1e-2), adapter=adapter)
    state = init(
        task, stream(1, "init"), {"tokens": TEXT[None]}, {"gpt": trained()[0].params["gpt"]}
    )
    return adapter, task, state


def test_an_adapter_trains_in_the_networks_stead():
    """It begins as the network it is given, learns another text, and leaves the network alone."""
    adapter, task, state = adapted(rank=2, targets=("qkv", "mlp"))
    base = trained()[0].params["gpt"]
    chex.assert_trees_all_equal(state.params["gpt"], base)
    other = {"tokens": jnp.tile(np.tile(TEXT[::-1], 2)[:9], (4, 1))}
    terms = jax.jit(lm_terms(NETWORK, adapter))
    before = terms(state.params, {}, other, KEYS)
    plain = jax.jit(lm_terms(NETWORK))({"gpt": base}, {}, other, KEYS)
    np.testing.assert_allclose(before["nll"], plain["nll"], rtol=1e-6)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(100):
        state, _ = step(state, other)
    after = terms(state.params, {}, other, KEYS)
    assert after["nll"][0] < before["nll"][0] / 4
    chex.assert_trees_all_equal(state.params["gpt"], base)

    # What it writes is of the adapted network, cached as uncached: as merged weights write.
    drawn = task.sample(
        state.params, {}, KEYS[:1], {"tokens": TEXT[None, ::-1][:, :3]}, length=5, temperature=0.0
    )
    merged = merge(base, state.params["adapter"], 16 / 2)
    expected = make().sample(
        {"gpt": merged},
        {},
        KEYS[:1],
        {"tokens": TEXT[None, ::-1][:, :3]},
        length=5,
        temperature=0.0,
    )
    np.testing.assert_array_equal(drawn["tokens"], expected["tokens"])


def test_frozen_layers_stay():
    network = GPT(7, 8, 3, 2, 16)
    task = lm(network, freeze(adamw(0.1), layers=2))
    batch = {"tokens": jnp.tile(TEXT, (2, 1))}
    state = jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))
    after, _ = jax.jit(make_step(task, seed=0))(state, batch)
    moved = jax.tree.map(lambda a, b: np.asarray(a != b), state.params, after.params)["gpt"]
    for x in jax.tree.leaves(moved["blocks"]):
        assert not x[:2].any()
    assert moved["blocks"]["mlp"]["in"]["kernel"][2].all()
    assert moved["norm"]["scale"].any()
    assert not moved["tokens"]["embedding"].any()
    assert not moved["positions"]["embedding"].any()


def test_settings_of_fine_tuning_are_checked():
    with pytest.raises(ValueError, match="layers=-1 must be at least 0"):
        freeze(adamw(0.1), -1)
