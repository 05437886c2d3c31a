import jax
import jax.numpy as jnp
import numpy as np
import pytest
from history import History

from aigc_jax.samplers.autoregressive import generate
from aigc_jax.samplers.window import generate_long

MODEL = History(5)
KEYS = jax.random.split(jax.random.key(0), 2)
TOKENS, START = np.array([[0, 0, 1, 4], [3, 2, 0, 1]], np.int32), np.array([2, 0], np.int32)


def test_within_the_context_it_is_generate():
    options = {"length": 6, "temperature": 0.8}
    expected = generate(MODEL.decoder, TOKENS, START, KEYS, **options)
    found = generate_long(MODEL.decoder, TOKENS, START, KEYS, context=9, **options)
    np.testing.assert_array_equal(found, expected)


def test_beyond_it_the_last_half_is_read_anew():
    """Greedy, against the same by hand: positions count from the window's own start."""
    context, length = 7, 17
    found = generate_long(
        MODEL.decoder, TOKENS, START, KEYS, context=context, length=length, temperature=0.0
    )
    for row, (tokens, start) in enumerate(zip(TOKENS, START, strict=True)):
        text, padding = list(tokens[start:]), int(start)
        written = len(text)
        window, filled = list(text), padding + len(text)
        while len(text) - written < length:
            if filled > context:  # one more than the context has been written
                kept = (context + 1) // 2
                padding = max(0, padding - (filled - kept))
                window, filled = window[-(kept - padding) :], kept
            window.append(int(MODEL.logits_after(window).argmax()))
            text.append(window[-1])
            filled += 1
        np.testing.assert_array_equal(found[row], text[written:])


def test_windows_draw_afresh():
    options = {"context": 6, "length": 400, "temperature": 1.0}
    drawn = np.asarray(generate_long(MODEL.decoder, TOKENS, START, KEYS, **options))
    rounds = [tuple(drawn[0, i : i + 4]) for i in range(4, 396, 4)]
    assert len(set(rounds)) > 0.5 * len(rounds)


def test_behind_a_stop_token_there_is_none_in_any_window():
    options = {"context": 6, "length": 40, "stop": (2,), "pad": 0}
    drawn = np.asarray(generate_long(MODEL.decoder, TOKENS, START, KEYS, **options))
    for row in drawn:
        first = row.tolist().index(2)
        assert not row[first + 1 :].any()


def test_prompts_longer_than_the_context_are_refused():
    with pytest.raises(ValueError, match="prompts of 4 tokens are longer than context=3"):
        generate_long(MODEL.decoder, jnp.asarray(TOKENS), None, KEYS, context=3, length=1)
