"""The task of reading one sequence and writing another."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.types import Mode
from aigc_jax.models.seq2seq import Seq2Seq
from aigc_jax.tasks.seq2seq import noam, seq2seq, seq2seq_terms
from aigc_jax.train.step import init, make_step

END, BEGIN, PAD = 5, 6, 7
NETWORK = Seq2Seq(8, 1, 2, 16)
KEYS = jax.random.split(jax.random.key(0), 3)
# Each source is told by its first token.
SOURCE = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 0]], np.int32)
SOURCE_MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
TOKENS = np.array([[2, 1, 0, END], [4, 4, END, PAD], [3, END, PAD, PAD]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
BATCH = {"source": SOURCE, "source_mask": SOURCE_MASK, "tokens": TOKENS, "mask": MASK}


def make(**options):
    return seq2seq(
        NETWORK, optax.adam(1e-2), **{"begin": BEGIN, "stop": (END,), "pad": PAD} | options
    )


@functools.cache
def trained():
    task = make()
    state = jax.jit(functools.partial(init, task))(stream(0, "init"), BATCH)
    step = jax.jit(make_step(task, seed=0))
    for _ in range(100):
        state, metrics = step(state, BATCH)
    return state, metrics


@functools.cache
def run_loss(**options):
    [phase] = make(**options).phases
    return jax.jit(lambda params, batch, keys: phase.loss(params, {}, batch, keys, Mode(True)))


def unsure():
    """Return weights that say nothing clearly."""
    return jax.tree.map(lambda x: 0.5 * x, trained()[0].params)


apply = jax.jit(lambda params, *args: NETWORK.apply({"params": params["seq2seq"]}, *args))


def logp_by_hand(params):
    """Return what is said of each token, given those before it and what begins."""
    before = np.concatenate([np.full((3, 1), BEGIN, np.int32), TOKENS[:, :-1]], 1)
    logits = apply(params, SOURCE, before, SOURCE_MASK)
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def test_the_loss_is_the_nats_of_a_token_and_weighs_its_tokens():
    params = trained()[0].params
    logp = logp_by_hand(params)
    picked = np.take_along_axis(logp, TOKENS[..., None], 2)[..., 0]
    mask = np.array([[1, 0, 0.5, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    out = run_loss()(params, BATCH | {"mask": mask}, KEYS)
    np.testing.assert_array_equal(out.weight, [1.5, 4, 0])
    np.testing.assert_allclose(out.loss * out.weight, -(picked * mask).sum(1), rtol=1e-4)
    hits = mask * (logp.argmax(-1) == TOKENS)
    assert 0 < hits.sum() < mask.sum()
    np.testing.assert_allclose(out.metrics["accuracy"] * out.weight, hits.sum(1), rtol=1e-5)

    terms = jax.jit(seq2seq_terms(NETWORK, BEGIN))(params, {}, BATCH | {"mask": mask}, KEYS)
    np.testing.assert_allclose(terms["nll"], out.loss * out.weight, rtol=1e-5)
    np.testing.assert_array_equal(terms["tokens"], out.weight)


def test_without_masks_everything_counts():
    params = trained()[0].params
    plain = {"source": SOURCE, "tokens": TOKENS}
    whole = {"source_mask": np.ones((3, 3), np.float32), "mask": np.ones((3, 4), np.float32)}
    found, expected = (run_loss()(params, batch, KEYS) for batch in (plain, plain | whole))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(found.weight, [4, 4, 4])


def test_smoothing_is_the_cross_entropy_of_smooth_labels():
    params = trained()[0].params
    out = run_loss(smoothing=0.1)(params, BATCH, KEYS)
    labels = 0.9 * np.eye(8)[TOKENS] + 0.1 / 8
    expected = -(labels * logp_by_hand(params)).sum(-1) * MASK
    np.testing.assert_allclose(out.loss, expected.sum(1) / MASK.sum(1), rtol=1e-4)


def test_it_learns_pairs_by_heart_and_writes_them():
    """By its likeliest tokens and by a search for the likeliest text, whatever padding holds."""
    state, metrics = trained()
    assert metrics["seq2seq/loss"].total / metrics["seq2seq/loss"].weight < 0.05
    other = np.where(SOURCE_MASK > 0, SOURCE, 4)
    cond = {"source": other, "source_mask": SOURCE_MASK}
    for options in ({"temperature": 0.0}, {"beams": 3}):
        run = jax.jit(functools.partial(make().sample, length=4, **options))
        drawn = run(state.params, {}, KEYS, cond)
        np.testing.assert_array_equal(drawn["tokens"], TOKENS)
        np.testing.assert_array_equal(drawn["source"], other)


def test_what_it_draws_is_as_likely_as_it_says():
    n, temperature = 4000, 1.5
    run = jax.jit(functools.partial(make().sample, length=1, temperature=temperature))
    keys = jax.random.split(jax.random.key(1), n)
    cond = {"source": np.tile(SOURCE[:1], (n, 1)), "source_mask": np.ones((n, 3), np.float32)}
    drawn = np.bincount(run(unsure(), {}, keys, cond)["tokens"][:, 0], minlength=8) / n
    p = np.exp(logp_by_hand(unsure())[0, 0] / temperature)
    assert p.max() < 0.9 * p.sum()
    np.testing.assert_allclose(drawn, p / p.sum(), atol=4 * math.sqrt(0.25 / n))


def test_beams_that_follow_everything_find_the_likeliest_text():
    """Of a model that is unsure: so that a cache of the wrong row would show."""
    params = unsure()
    options = {"length": 2, "length_penalty": 0.0}
    run = jax.jit(functools.partial(make().sample, beams=64, **options))
    cond = {"source": SOURCE, "source_mask": SOURCE_MASK}
    found = np.asarray(run(params, {}, KEYS, cond)["tokens"])

    pairs = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    terms = jax.jit(seq2seq_terms(NETWORK, BEGIN))
    for row in range(3):
        mask = np.stack([np.ones(64), pairs[:, 0] != END], 1).astype(np.float32)
        rows = {name: np.tile(x[row], (64, 1)) for name, x in cond.items()}
        batch = rows | {"tokens": pairs.astype(np.int32), "mask": mask}
        best = pairs[np.argmin(terms(params, {}, batch, jnp.tile(KEYS[:1], 64))["nll"])]
        assert found[row].tolist() == [best[0], PAD if best[0] == END else best[1]]


def test_dropout_is_live_in_training_alone():
    network = Seq2Seq(8, 1, 2, 16, dropout=0.1)
    [phase] = seq2seq(network, optax.adam(1e-2)).phases
    for train in (True, False):
        run = functools.partial(phase.loss, mode=Mode(train))
        program = jax.make_jaxpr(run)(trained()[0].params, {}, BATCH, KEYS)
        assert ("random_bits" in str(program)) == train


def test_the_rate_rises_and_falls_as_published():
    rate = noam(512)
    np.testing.assert_allclose(rate(0), 512**-0.5 * 4000**-1.5, rtol=1e-5)
    np.testing.assert_allclose(rate(3999), (512 * 4000) ** -0.5, rtol=1e-5)
    np.testing.assert_allclose(rate(99_999), (512 * 1e5) ** -0.5, rtol=1e-5)
    peak = np.argmax([float(rate(n)) for n in range(3990, 4010)])
    assert peak + 3990 == 3999
    np.testing.assert_allclose(noam(512, scale=2.0)(77), 2 * rate(77), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 8}, r"begin=8 must lie in \[0, 8\)"),
        ({"stop": (1, -1)}, "stop=-1 must lie"),
        ({"pad": 9}, "pad=9 must lie"),
        ({"smoothing": 1.0}, r"smoothing=1.0 must lie in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_rates_out_of_range_are_refused():
    with pytest.raises(ValueError, match="warmup=0 must be positive"):
        noam(512, warmup=0)


def test_something_to_read_is_needed():
    for use in (
        lambda: make().sample({"seq2seq": {}}, {}, KEYS, {}),
        lambda: init(make(), KEYS[0], {"tokens": TOKENS}),
    ):
        with pytest.raises(ValueError, match="no sequence to read, 'source', among"):
            use()
