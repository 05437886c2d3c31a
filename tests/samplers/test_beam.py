"""Beam search against searching everything; against transformers' see `tests/parity`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from history import History

from aigc_jax.data.tokens import bucket
from aigc_jax.samplers.autoregressive import Decoder
from aigc_jax.samplers.beam import beam_search

PROMPTS = [[1, 2, 3, 0, 2], [3], [2, 2, 1, 1, 0, 0, 1]]


def search(history, prompts, **options):
    run = jax.jit(lambda *prompts: beam_search(history.decoder, *prompts, **options))
    text, score = run(*bucket(prompts))
    return np.asarray(text), np.asarray(score)


def log_probability(history, prompt, text):
    total = 0.0
    for i, token in enumerate(text):
        logits = history.logits_after(prompt + list(text[:i]))
        total += logits[token] - np.log(np.exp(logits).sum())
    return total


def ended(text, stop):
    """Cut a text behind its first stop token."""
    hits = [i for i, token in enumerate(text) if token in stop]
    return tuple(text[: hits[0] + 1] if hits else text)


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.5, -1.0])
def test_with_beams_enough_it_finds_the_best_text_of_all(penalty):
    history, length, stop = History(4, seed=3), 4, (3,)
    texts, scores = search(
        history, PROMPTS, length=length, beams=256, length_penalty=penalty, stop=stop, pad=2
    )
    everything = {ended(text, stop) for text in itertools.product(range(4), repeat=length)}
    for prompt, text, score in zip(PROMPTS, texts, scores, strict=True):
        value = lambda t, p=prompt: log_probability(history, p, t) / len(t) ** penalty
        best = max(everything, key=value)
        assert text.tolist() == [*best, *[2] * (length - len(best))]
        np.testing.assert_allclose(score, value(best), atol=1e-5)


def test_the_penalty_decides_how_long_texts_are():
    history = History(4, seed=3, bias=[0, 0, 0, 1.0])
    lengths = {}
    for penalty in (-2.0, 0.0, 4.0):
        texts, _ = search(
            history, PROMPTS, length=6, beams=4, length_penalty=penalty, stop=(3,), pad=3
        )
        lengths[penalty] = [len(ended(text.tolist(), (3,))) for text in texts]
    assert all(np.less_equal(lengths[-2.0], lengths[0.0]))
    assert all(np.less_equal(lengths[0.0], lengths[4.0]))
    assert sum(lengths[-2.0]) < sum(lengths[4.0])


def test_a_score_is_that_of_the_text_and_a_row_is_searched_alone():
    history, stop = History(9, seed=4), (4, 7)
    prompts = [[1, 8, 3], [5], [2, 2, 6, 1, 0, 0]]
    options = {"length": 7, "beams": 3, "length_penalty": 0.8, "stop": stop}
    texts, scores = search(history, prompts, **options)
    for prompt, text, score in zip(prompts, texts, scores, strict=True):
        text = ended(text.tolist(), stop)
        expected = log_probability(history, prompt, text) / len(text) ** 0.8
        np.testing.assert_allclose(score, expected, atol=1e-5)
    alone, score = search(history, prompts[2:], **options)
    np.testing.assert_array_equal(alone[0], texts[2])
    # In a larger bucket.
    beside, _ = search(history, [[3] * 20, prompts[0]], **options)
    np.testing.assert_array_equal(beside[1], texts[0])


def test_one_beam_that_nothing_ends_is_greedy():
    history = History(9, seed=4)
    texts, _ = search(history, [[1, 8, 3], [5]], length=8, beams=1)
    assert texts.tolist() == [history.greedy([1, 8, 3], 8), history.greedy([5], 8)]


def test_two_beams_find_what_the_likeliest_first_token_misses():
    # 0 is likeliest at first, but what follows it is not likely; 1 is followed by 2 for sure.
    p = np.array([[0.6, 0.4, 1e-9], [0.5, 0.4, 0.1], [1e-9, 1e-9, 1.0], [0.4, 0.3, 0.3]])
    after = jnp.log(jnp.asarray(p, jnp.float32))
    # Token 0 as prompt is told from token 0 as drawn by the slot.
    decoder = Decoder(
        lambda batch, slots: jnp.zeros((batch, slots)),
        lambda tokens, cache, slot, start: (after[jnp.where(slot == 0, 0, tokens + 1)], cache),
    )
    run = lambda beams: beam_search(
        decoder, jnp.zeros((1, 1), jnp.int32), None, length=2, beams=beams, length_penalty=0.0
    )
    for beams, text, score in ((1, [0, 0], 0.6 * 0.5), (2, [1, 2], 0.4 * 1.0)):
        found, logp = run(beams)
        assert found[0].tolist() == text
        np.testing.assert_allclose(np.exp(logp[0]), score, rtol=1e-5)


def test_it_stops_as_soon_as_nothing_better_is_to_be_hoped_for():
    reads = []
    history = History(6, seed=5, bias=[0, 0, 0, 0, 0, 6.0])
    extend = history.decoder.extend

    def counted(tokens, cache, slot, start):
        jax.debug.callback(lambda slot: reads.append(int(slot)), slot)
        return extend(tokens, cache, slot, start)

    decoder = history.decoder._replace(extend=counted)
    text, _ = beam_search(decoder, *bucket([[1, 2]]), length=30, beams=2, stop=(5,))
    jax.effects_barrier()
    assert 5 in text[0].tolist() and len(reads) < 10


@pytest.mark.parametrize("options", [{"length": 0}, {"beams": 0}, {"stop": (-1,)}, {"pad": -1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        search(History(4), PROMPTS, **{"length": 2, "beams": 2, **options})
