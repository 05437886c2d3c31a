import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.music_vae import MusicDecoder, MusicEncoder

DECODER = MusicDecoder(parts=2, part=3, voices=3, vocabulary=5, embedding=4, hidden=8)
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
PITCHES = jnp.asarray(RNG.integers(0, 5, (2, 6, 3)), jnp.int32)


def weights(module, *inputs):
    """Draw weights here: the LSTMs' own take seconds to compile."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    draw = lambda x: jnp.asarray(RNG.normal(size=x.shape) * x.shape[0] ** -0.5, x.dtype)
    return jax.tree.map(draw, shapes)


@functools.cache
def variables():
    return weights(DECODER, Z, PITCHES)


apply = jax.jit(DECODER.apply)
PLACES = [(0, 0), (0, 2), (2, 1), (3, 0), (5, 2)]


@pytest.mark.parametrize(("time", "voice"), PLACES)
def test_a_notes_logits_depend_on_what_comes_before_it_alone(time, voice):
    """Before it are earlier frames, and higher voices of its own; after it, its own and the rest.

    Of earlier frames, those of its own part and the last of the part before.
    """
    changed = PITCHES.at[:, time, voice].set((PITCHES[:, time, voice] + 1) % 5)
    difference = jnp.abs(apply(variables(), Z, changed) - apply(variables(), Z, PITCHES)).max(-1)
    moved = np.asarray(difference.max(0)) > 0
    after = np.zeros((6, 3), bool)
    after[time, voice + 1 :] = True
    last = 3 if time < 2 else 6  # frame 2 is the last of part 0: part 1 reads it
    after[time + 1 : last] = True
    np.testing.assert_array_equal(moved, after)


def test_step_by_step_it_is_what_the_teacher_makes_of_it():
    step = jax.jit(functools.partial(DECODER.apply, method="step"))
    carry, token = DECODER.apply(variables(), Z, method="start")
    logits = []
    for i in range(DECODER.length):
        carry, now = step(variables(), carry, token)
        logits.append(now)
        token = PITCHES[:, i // 3, i % 3]
    found = jnp.stack(logits, 1).reshape(2, 6, 3, 5)
    np.testing.assert_allclose(found, apply(variables(), Z, PITCHES), atol=1e-6)


def test_hidden_notes_are_not_read_as_what_has_gone_before():
    hidden = jnp.zeros(PITCHES.shape, bool).at[:, 0, 1].set(True)
    changed = PITCHES.at[:, 0, 1].set((PITCHES[:, 0, 1] + 1) % 5)
    one, other = (apply(variables(), Z, x, hidden) for x in (PITCHES, changed))
    # Within its own frame it still is the note above.
    assert jnp.abs(one - other)[:, 0, 2].max() > 0
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])
    assert jnp.abs(one - apply(variables(), Z, PITCHES))[:, 1].max() > 0


def test_every_part_hears_the_latent():
    far = apply(variables(), Z.at[0].add(1), PITCHES) - apply(variables(), Z, PITCHES)
    assert (jnp.abs(far[0]).max((-1, -2)) > 1e-4).all()
    np.testing.assert_array_equal(far[1], 0)


def test_the_encoder_reads_its_states_after_each_part_or_at_the_ends():
    for part, reads in ((None, 1), (2, 3), (3, 2)):
        encoder = MusicEncoder(latent=4, vocabulary=5, embedding=4, hidden=8, part=part)
        kernel = weights(encoder, PITCHES)["params"]["Dense_0"]["kernel"]
        assert kernel.shape == (reads * 2 * 8, 2 * 4)


def test_the_encoder_hears_every_note_of_its_own_example():
    encoder = MusicEncoder(latent=4, vocabulary=5, embedding=4, hidden=8)
    run = jax.jit(functools.partial(encoder.apply, weights(encoder, PITCHES)))
    mu, logvar = run(PITCHES)
    assert mu.shape == logvar.shape == (2, 4) and mu.dtype == logvar.dtype == jnp.float32
    for time in range(6):
        changed = PITCHES.at[0, time, 1].set((PITCHES[0, time, 1] + 1) % 5)
        moved = jnp.abs(run(changed)[0] - mu).max(1)
        assert moved[0] > 0 == moved[1]


def test_half_precision_computes_in_it_and_answers_in_single():
    half = DECODER.clone(dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)(variables(), Z, PITCHES)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, apply(variables(), Z, PITCHES), atol=0.05)
