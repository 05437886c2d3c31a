import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.models.bert import BERT
from aigc_jax.tasks.masked_lm import corrupt, masked_lm, masked_terms
from aigc_jax.train.step import init, make_step

NETWORK = BERT(9, 8, 1, 2, 16)
OPTIONS = {"hidden": 0, "ordinary": (2, 9)}
KEYS = jax.random.split(jax.random.key(0), 4)
# 1 is special; what stands beside a token tells it.
TEXT = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [1, 8, 7, 6, 5, 4, 3, 2]] * 2, np.int32)


@functools.cache
def trained():
    task = masked_lm(NETWORK, optax.adam(1e-2), share=0.3, **OPTIONS)
    state = init(task, stream(0, "init"), {"tokens": TEXT})
    step = jax.jit(make_step(task, seed=0))
    for _ in range(200):
        state, metrics = step(state, {"tokens": TEXT})
    return task, state, metrics


def test_tokens_are_corrupted_as_published():
    tokens = np.random.default_rng(0).integers(1, 9, (4, 20_000)).astype(np.int32)
    seen, chosen = corrupt(jnp.asarray(tokens), KEYS, **OPTIONS)
    seen, chosen = np.asarray(seen), np.asarray(chosen) > 0
    assert not chosen[tokens == 1].any()
    assert (seen == tokens)[~chosen].all()
    np.testing.assert_allclose(chosen[tokens > 1].mean(), 0.15, atol=0.005)
    became = seen[chosen]
    np.testing.assert_allclose((became == 0).mean(), 0.8, atol=0.02)
    # One in ten is put in at random, of which a seventh is what it was.
    np.testing.assert_allclose((became == tokens[chosen]).mean(), 0.1 + 0.1 / 7, atol=0.015)
    put = became[(became != 0) & (became != tokens[chosen])]
    np.testing.assert_allclose(np.bincount(put, minlength=9)[2:] / len(put), 1 / 7, atol=0.03)
    assert set(np.unique(became)) == {0, *range(2, 9)}


def test_what_becomes_of_a_row_is_its_own_keys():
    alone, _ = corrupt(jnp.asarray(TEXT[1:2]), KEYS[1:2], **OPTIONS)
    together, _ = corrupt(jnp.asarray(TEXT), KEYS, **OPTIONS)
    np.testing.assert_array_equal(alone[0], together[1])


def test_the_terms_are_of_chosen_tokens_alone():
    _, state, _ = trained()
    mask = (np.arange(8) < 5) * np.ones((4, 1), np.float32)
    batch = {"tokens": jnp.asarray(TEXT), "mask": jnp.asarray(mask)}
    terms = masked_terms(NETWORK, share=0.5, **OPTIONS)(state.params, {}, batch, KEYS)
    seen, chosen = corrupt(batch["tokens"], KEYS, share=0.5, **OPTIONS)
    chosen = np.asarray(chosen) * mask
    read = np.where(chosen > 0, seen, TEXT)
    logits = NETWORK.apply({"params": state.params["bert"]}, read, mask=mask, method="predict")
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), TEXT[..., None], 2)[..., 0]
    np.testing.assert_allclose(terms["nll"], (nll * chosen).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(terms["tokens"], chosen.sum(1))
    right = (np.asarray(logits).argmax(-1) == TEXT) * chosen
    np.testing.assert_array_equal(terms["right"], right.sum(1))


def test_it_learns_to_fill_in():
    task, state, metrics = trained()
    assert metrics["masked_lm/loss"].total / metrics["masked_lm/loss"].weight < np.log(7) / 1.5
    hidden = TEXT.copy()
    hidden[0, 3] = hidden[1, 6] = hidden[2, 1] = 0
    filled = task.sample(state.params, {}, KEYS, {"tokens": jnp.asarray(hidden)})["tokens"]
    np.testing.assert_array_equal(filled, TEXT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, r"share=0 must lie in \(0, 1\]"),
        ({"hidden": 9}, r"hidden=9 must lie in \[0, 9\)"),
        ({"ordinary": (4, 4)}, r"ordinary=\(4, 4\) must be a range"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masked_lm(NETWORK, optax.sgd(0.1), **OPTIONS | options)


def test_there_must_be_a_text():
    with pytest.raises(ValueError, match="no text to fill in"):
        masked_lm(NETWORK, optax.sgd(0.1), **OPTIONS).sample({}, {}, KEYS, {})
