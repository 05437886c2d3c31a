"""Speculative sampling: the target's distribution exactly, whatever the draft's."""

import itertools

import jax
import numpy as np
import pytest
from history import History, keys

from aigc_jax.data.tokens import bucket
from aigc_jax.functional.logits import adjust_logits
from aigc_jax.samplers.autoregressive import generate
from aigc_jax.samplers.speculative import speculate

TARGET, DRAFT = History(4, seed=0), History(4, seed=1, std=0.7)
PROMPTS = [[1, 2, 3, 0, 2], [3], [2, 2, 1, 1, 0, 0, 1]]


def run(target, draft, tokens, start, every, **options):
    one = jax.jit(
        lambda tokens, start, every: speculate(
            target.decoder, draft.decoder, tokens, start, every, **options
        )
    )
    return jax.tree.map(np.asarray, one(tokens, start, every))


def exact(history, prompt, length, stop, **options):
    """Return the probability of each text, padded by 0 behind its stop token."""
    p = {}
    probabilities = jax.jit(lambda logits: jax.nn.softmax(adjust_logits(logits, **options)))
    for text in itertools.product(range(history.vocabulary), repeat=length):
        probability, tokens = 1.0, list(prompt)
        for i, token in enumerate(text):
            if i and text[i - 1] in stop:
                text = (*text[:i], *[0] * (length - i))
                break
            probability *= float(probabilities(history.logits_after(tokens))[token])
            tokens.append(token)
        p[text] = probability
    return p


@pytest.mark.parametrize(
    ("options", "ahead", "stop"),
    [
        ({}, 2, ()),
        ({"temperature": 0.7, "top_k": 3}, 1, (3,)),
        ({"temperature": 1.3, "top_p": 0.95, "min_p": 0.03}, 3, (3,)),
    ],
)
def test_texts_are_distributed_as_the_targets(options, ahead, stop):
    n, length, prompt = 10_000, 3, [2, 1, 1]
    tokens = np.tile([[3, *prompt]], (n, 1)).astype(np.int32)
    result = run(
        TARGET,
        DRAFT,
        tokens,
        np.ones(n, np.int32),
        keys(n),
        length=length,
        ahead=ahead,
        stop=stop,
        **options,
    )
    p = exact(TARGET, prompt, length, stop, **options)
    assert abs(sum(p.values()) - 1) < 1e-5
    seen = dict.fromkeys(p, 0)
    for text in map(tuple, result.tokens.tolist()):
        seen[text] += 1
    # What the options rule out is never drawn. Texts expected less than 5 times count as one.
    assert all(p[text] > 0 for text, times in seen.items() if times)
    rare = [text for text in p if n * p[text] < 5]
    cells = [([seen[text]], p[text]) for text in p if text not in rare]
    cells.append(([seen[text] for text in rare], sum(p[text] for text in rare)))
    observed, expected = np.array([(sum(s), n * q) for s, q in cells if q > 0]).T
    statistic = ((observed - expected) ** 2 / expected).sum()
    # By Wilson and Hilferty, of chi-square 1 in 10,000 lies beyond.
    d = len(expected) - 1
    assert d > 10 and statistic < d * (1 - 2 / (9 * d) + 3.719 * (2 / (9 * d)) ** 0.5) ** 3
    # Of both kinds, drafts taken and refused, there were many: neither is the test of nothing.
    rounds = result.accepted[result.accepted >= 0]
    assert 0.2 < rounds.mean() / ahead < 0.9


@pytest.mark.parametrize("ahead", [1, 4])
def test_greedy_texts_are_those_without_a_draft(ahead):
    # A draft that is right now and then: the target with noise.
    target, draft = History(7, seed=0), History(7, seed=0)
    draft.place = draft.place + np.random.default_rng(5).normal(size=draft.place.shape)
    tokens, start = bucket(PROMPTS)
    stop = (target.greedy(PROMPTS[0], 8)[7],)
    options = {"length": 17, "temperature": 0.0, "stop": stop, "pad": 6}
    expected = generate(target.decoder, tokens, start, keys(3), **options)
    result = run(target, draft, tokens, start, keys(3), ahead=ahead, **options)
    np.testing.assert_array_equal(result.tokens, expected)
    assert (result.tokens == 6).any()
    rounds = result.accepted[result.accepted >= 0]
    assert 0 in rounds and ahead in rounds


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_equal_to_the_target_is_taken_whole(temperature):
    tokens, start = bucket(PROMPTS)
    result = run(
        TARGET, TARGET, tokens, start, keys(3), length=11, ahead=3, temperature=temperature
    )
    # 3 rounds of 4 tokens, and none after.
    assert result.accepted.tolist() == [[3, 3, 3] + [-1] * 8] * 3


def test_a_text_hangs_on_its_own_key_and_prompt_alone():
    tokens, start = bucket(PROMPTS)
    options = {"length": 9, "ahead": 3, "stop": (3,)}
    result = run(TARGET, DRAFT, tokens, start, keys(3), **options)
    alone = run(TARGET, DRAFT, tokens[2:], start[2:], keys(3)[2:], **options)
    np.testing.assert_array_equal(alone.tokens, result.tokens[2:])
    np.testing.assert_array_equal(alone.accepted, result.accepted[2:])


def test_prompts_of_one_token():
    texts = run(
        TARGET, DRAFT, np.array([[1], [3]], np.int32), None, keys(2), length=6, temperature=0.0
    ).tokens
    assert texts.tolist() == [TARGET.greedy([1], 6), TARGET.greedy([3], 6)]


@pytest.mark.parametrize("options", [{"length": 0}, {"ahead": 0}, {"top_p": 0}, {"pad": -1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        run(TARGET, DRAFT, *bucket(PROMPTS), keys(3), **{"length": 2, **options})
