"""Sampling token by token, of chains whose distributions are known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from history import History
from history import keys as history_keys

from aigc_jax.data.tokens import bucket
from aigc_jax.samplers.autoregressive import Decoder, generate, sample_tokens

# p(next | last) of a chain over three tokens; 2 follows 2 alone.
CHAIN = jnp.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])


def follow(carry, token):
    """Read a token, counting those read."""
    return carry + 1, jnp.log(CHAIN[token])


def draw(n, length, **options):
    keys = jax.random.split(jax.random.key(0), n)
    start = jnp.zeros(n, jnp.int32)
    return np.asarray(
        sample_tokens(follow, jnp.zeros((), int), start, keys, length=length, **options)
    )


def test_tokens_have_the_distribution_of_the_chain():
    tokens = draw(4000, 3)
    assert tokens.shape == (4000, 3) and tokens.dtype == np.int32
    expected = np.array([1.0, 0.0, 0.0])
    for position in range(3):
        expected = expected @ np.asarray(CHAIN)
        seen = np.bincount(tokens[:, position], minlength=3) / 4000
        np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / 4000**0.5)


def test_a_temperature_raises_probabilities_to_a_power():
    powered = np.asarray(CHAIN[0]) ** 2
    seen = np.bincount(draw(4000, 1, temperature=0.5)[:, 0], minlength=3) / 4000
    np.testing.assert_allclose(seen, powered / powered.sum(), atol=4 * 0.5 / 4000**0.5)


def test_without_temperature_the_likeliest_is_taken():
    assert draw(2, 4, temperature=0.0).tolist() == [[1, 0, 1, 0]] * 2


def test_an_example_is_its_keys_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    some = lambda keys: sample_tokens(
        follow, jnp.zeros((), int), jnp.zeros(len(keys), jnp.int32), keys, length=5
    )
    np.testing.assert_array_equal(some(keys)[4:], some(keys[4:]))


def test_what_follows_the_stop_is_the_stop():
    # 1 may follow 0, and anything 1, but once it is drawn nothing else is.
    tokens = draw(200, 6, stop=1)
    stopped = np.maximum.accumulate(tokens == 1, axis=1)
    assert stopped.any() and (tokens[stopped] == 1).all()
    # A sequence may start from the token that ends it.
    keys = jax.random.split(jax.random.key(0), 50)
    begun = sample_tokens(follow, 0, jnp.ones(50, jnp.int32), keys, length=3, stop=1)
    assert (np.asarray(begun[:, 0]) != 1).any()


def test_several_tokens_a_position():
    step = lambda carry, tokens: (
        tokens,
        jax.nn.one_hot((tokens + 1) % 5, 5),
    )  # (b, 2) -> (b, 2, 5)
    start = jnp.array([[0, 1], [2, 3], [4, 0]])
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = sample_tokens(step, start, start, keys, length=4, temperature=0.0)
    np.testing.assert_array_equal(tokens, (start[:, None] + np.arange(1, 5)[:, None]) % 5)
    # Drawn independently: equal logits give unequal tokens.
    flat = lambda carry, tokens: (carry, jnp.zeros((*tokens.shape, 5)))
    drawn = sample_tokens(flat, None, start, keys, length=30)
    assert (drawn[..., 0] != drawn[..., 1]).mean() > 0.6


@pytest.mark.parametrize(
    ("options", "named"),
    [({"length": 0}, "length"), ({"length": 2, "temperature": -1.0}, "temperature")],
)
def test_numbers_out_of_range_are_refused(options, named):
    with pytest.raises(ValueError, match=f"^{named}="):
        draw(1, **options)


# Decoding by a cache

PROMPTS = [[1, 2, 3, 0, 4, 2], [3], [2, 2, 5, 1, 0, 0, 1, 4, 3]]


def continued(history, prompts, length, n=None, pad=0, **options):
    tokens, start = bucket(prompts, pad=6)
    n = list(range(len(prompts))) if n is None else n
    every = history_keys(8)[jnp.array(n)]
    run = jax.jit(
        lambda tokens, start, keys: generate(
            history.decoder, tokens, start, keys, length=length, pad=pad, **options
        )
    )
    return np.asarray(run(tokens, start, every))


def test_greedy_continuations_of_padded_prompts_are_those_of_each_alone():
    history = History(7)
    texts = continued(history, PROMPTS, 9, temperature=0.0)
    assert texts.dtype == np.int32
    assert texts.tolist() == [history.greedy(prompt, 9) for prompt in PROMPTS]
    assert len(np.unique(texts)) > 3
    # Without a bucket: all of a length, none padded, and a prompt of one token.
    run = lambda tokens: generate(
        history.decoder, jnp.array(tokens), None, history_keys(2), length=4, temperature=0.0
    )
    for prompts in ([[1, 2], [3, 3]], [[0], [5]]):
        assert run(prompts).tolist() == [history.greedy(prompt, 4) for prompt in prompts]


def test_a_text_hangs_on_its_own_key_and_prompt_alone():
    history = History(7)
    options = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.3}
    texts = continued(history, PROMPTS, 6, **options)
    np.testing.assert_array_equal(continued(history, PROMPTS[1:2], 6, n=[1], **options), texts[1:2])
    # In a larger bucket, beside a prompt of 20.
    beside = continued(history, [PROMPTS[2], [1] * 20], 6, n=[2, 0], **options)
    np.testing.assert_array_equal(beside[0], texts[2])


def test_texts_have_the_distribution_of_the_decoder():
    history, n = History(4, seed=1), 6000
    tokens = jnp.tile(jnp.array([[6, 6, 1, 2]]) % 4, (n, 1))
    texts = jax.jit(
        lambda keys: generate(
            history.decoder, tokens, jnp.full(n, 2), keys, length=2, temperature=0.8
        )
    )(history_keys(n))
    softmax = lambda l: np.exp(l / 0.8) / np.exp(l / 0.8).sum()
    first = softmax(history.logits_after([1, 2]))
    p = [first[x] * softmax(history.logits_after([1, 2, x])) for x in range(4)]
    seen = np.bincount(np.asarray(texts) @ [4, 1], minlength=16)
    expected = n * np.concatenate(p)
    # Of chi-square with 15 degrees of freedom 1 in 10,000 lies beyond 44.3.
    assert ((seen - expected) ** 2 / expected).sum() < 44.3


def test_repetition_is_penalised_of_prompt_and_text_but_not_of_padding():
    history, penalty = History(7, seed=2), 3.0
    expected = []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(8):
            logits = history.logits_after(text)
            seen = np.isin(np.arange(7), text)
            hit = np.where(logits > 0, logits / penalty, logits * penalty)
            text.append(int(np.where(seen, hit, logits).argmax()))
        expected.append(text[len(prompt) :])
    # Padding is of token 6, which the prompts do not hold.
    actual = continued(history, PROMPTS, 8, temperature=0.0, repetition_penalty=penalty)
    assert actual.tolist() == expected
    assert actual.tolist() != [history.greedy(prompt, 8) for prompt in PROMPTS]


def test_stop_tokens_end_rows_and_the_loop():
    history, steps = History(7), []
    texts = continued(history, PROMPTS, 12, temperature=0.0)
    stop = tuple({int(text[i]) for text, i in zip(texts, (3, 2, 4), strict=True)})
    seen = lambda tokens: steps.append(tokens.tolist())
    stopped = continued(history, PROMPTS, 12, temperature=0.0, stop=stop, pad=6, observe=seen)
    jax.effects_barrier()
    ends = [int(np.isin(text, stop).argmax()) for text in texts]
    assert 0 <= min(ends) < max(ends) < 11
    for text, whole, end in zip(stopped, texts, ends, strict=True):
        np.testing.assert_array_equal(text[: end + 1], whole[: end + 1])
        assert (text[end + 1 :] == 6).all()
    # Nothing is drawn once all have ended, and what is drawn is shown as it is.
    np.testing.assert_array_equal(np.array(steps).T, stopped[:, : max(ends) + 1])


def test_a_bucket_compiles_once_watched_or_not():
    history = History(7)

    def runner(**options):
        return jax.jit(
            lambda tokens, start, keys: generate(
                history.decoder, tokens, start, keys, length=3, **options
            )
        )

    seen = []
    plain, watched = runner(), runner(observe=lambda tokens: seen.append(tokens))
    for prompts in (PROMPTS, [[1], [2, 3], [4] * 16]):
        arguments = (*bucket(prompts), history_keys(3))
        np.testing.assert_array_equal(plain(*arguments), watched(*arguments))
    jax.effects_barrier()
    assert plain._cache_size() == watched._cache_size() == 1
    assert len(seen) == 6 and all(isinstance(tokens, np.ndarray) for tokens in seen)
    traced = [str(run.trace(*arguments).jaxpr) for run in (plain, watched)]
    assert ["callback" in text for text in traced] == [False, True]


def test_nothing_computes_logits_of_the_prompt():
    history = History(7)
    make_cache, extend = history.decoder
    head = jnp.zeros((7, 997))

    def widened(tokens, cache, slot, start):
        logits, cache = extend(tokens, cache, slot, start)
        return logits @ head, cache

    tokens, start = bucket(PROMPTS)
    run = jax.jit(lambda *a: generate(Decoder(make_cache, widened), *a, length=3))
    compiled = run.lower(tokens, start, history_keys(3)).compile().as_text()
    sizes = {eval(shape.replace(",", "*")) for shape in re.findall(r"\[([\d,]*997)\]", compiled)}
    assert max(sizes) == head.size


def test_prompts_are_padded_to_powers_of_two():
    for longest, t in ((1, 16), (16, 16), (17, 32), (32, 32), (33, 64)):
        tokens, start = bucket([[3] * longest, [5]], pad=9)
        assert tokens.shape == (2, t) and tokens.dtype == start.dtype == np.int32
        assert start.tolist() == [t - longest, t - 1]
        assert (tokens[0] == 3).sum() == longest and tokens[1].tolist() == [9] * (t - 1) + [5]


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_prompts_of_nothing_are_refused(prompts):
    with pytest.raises(ValueError, match=r"^prompts of lengths \["):
        bucket(prompts)


@pytest.mark.parametrize(
    "options",
    [{"length": 0}, {"temperature": -1.0}, {"top_p": 2.0}, {"stop": (3, -1)}, {"pad": -1}],
)
def test_a_continuation_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        generate(
            History(7).decoder,
            jnp.zeros((1, 2), jnp.int32),
            None,
            history_keys(1),
            **{"length": 2, **options},
        )
