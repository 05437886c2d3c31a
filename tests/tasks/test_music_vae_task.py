import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import example_keys, fold, normal, stream
from aigc_jax.core.types import Mode
from aigc_jax.models.music_vae import MusicDecoder, MusicEncoder
from aigc_jax.tasks.music_vae import elbo_terms, music_vae, posterior
from aigc_jax.train.step import init, make_step

ENCODER = MusicEncoder(latent=4, vocabulary=6, embedding=4, hidden=8, part=2)
DECODER = MusicDecoder(parts=2, part=2, voices=2, vocabulary=6, embedding=4, hidden=16)
BATCH = {"pitches": jnp.asarray(np.random.default_rng(0).integers(0, 6, (3, 4, 2)), jnp.int32)}
KEYS = example_keys(stream(0, "test"), jnp.arange(3))
GREEDY = {"note_temperature": 0.0}


def task(**options):
    return music_vae(ENCODER, DECODER, optax.adam(2e-2), latent=4, **options)


@functools.cache
def draw():
    return jax.jit(task().sample, static_argnames="note_temperature")


TRAINED = task(free_bits=8.0, dropout=0.5)


@functools.cache
def start():
    """Weights drawn here: the LSTMs' own take four seconds to compile."""
    shapes, _ = jax.eval_shape(TRAINED.init, stream(0, "init"), BATCH)
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * x.shape[0] ** -0.5, x.dtype)
    weights = jax.tree.map(draw, shapes)
    given = TRAINED._replace(init=lambda key, batch: (weights, {}))
    return jax.jit(lambda key: init(given, key, BATCH))(stream(0, "init"))


@functools.cache
def by_hand():
    """−log p(x|z) and KL(q(z|x) ‖ p(z)), of the draw that the keys make."""

    @jax.jit
    def outputs(params):
        mu, logvar = ENCODER.apply({"params": params["encoder"]}, BATCH["pitches"])
        z = mu + jnp.exp(logvar / 2) * normal(fold(KEYS, 0), (4,))
        return mu, logvar, DECODER.apply({"params": params["decoder"]}, z, BATCH["pitches"])

    mu, logvar, logits = (np.asarray(x, np.float64) for x in outputs(start().params))
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).reshape(3, 8, 6)
    chosen = np.take_along_axis(p, np.asarray(BATCH["pitches"]).reshape(3, 8, 1), 2)
    kl = (mu**2 + np.exp(logvar) - 1 - logvar).sum(1) / 2
    return -np.log(chosen).sum((1, 2)), kl


@pytest.mark.parametrize(
    ("beta", "weight", "free_bits"), [(0.2, 0.2, 48.0), (lambda step: 0.5 * step, 1.5, 1e-3)]
)
def test_loss_is_reconstruction_and_the_divergence_beyond_what_is_free(beta, weight, free_bits):
    reconstruction, kl = by_hand()
    assert kl.min() > 1e-3 and kl.max() < 48
    loss, weights = task(beta=beta, free_bits=free_bits).phases[0].loss, start().params
    run = jax.jit(lambda step: loss(weights, {}, BATCH, KEYS, Mode(True, None, step)))
    out = run(jnp.int32(3))
    expected = reconstruction + weight * np.maximum(kl - free_bits, 0)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["kl"], kl, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "^beta=-1.0 must be at least 0$"),
        ({"free_bits": -1.0}, "^free_bits=-1.0 must be at least 0$"),
        ({"dropout": 1.0}, r"^dropout=1.0 must lie in \[0, 1\)$"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_a_latent_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"^cond\['z'\] has shape \(3, 5\); this model's lat"):
        task().sample(start().params, {}, KEYS, {"z": jnp.zeros((3, 5))})


@functools.cache
def learnt():
    """Networks that have three segments by heart, with half the notes hidden from the decoder."""
    state, step, losses = start(), jax.jit(make_step(TRAINED, seed=0)), []
    for _ in range(300):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["music_vae/reconstruction"].total) / 3)
    return state.params, losses


def test_it_learns_segments_by_heart():
    _, losses = learnt()
    assert np.mean(losses[:5]) > 12  # 8 log 6 = 14.3 at the start
    assert np.mean(losses[-20:]) < 2


def test_terms_are_of_the_bound_and_of_what_comes_back():
    terms = jax.jit(elbo_terms(ENCODER, DECODER))
    found = terms(start().params, {}, BATCH, KEYS)
    reconstruction, kl = by_hand()
    np.testing.assert_allclose(found["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(found["negative_elbo"], reconstruction + kl, rtol=1e-5)
    np.testing.assert_allclose(found["frame_nll"], (reconstruction + kl) / 4, rtol=1e-5)
    back = draw()(start().params, {}, KEYS, BATCH, temperature=0.0, **GREEDY)
    right = np.asarray(back) == np.asarray(BATCH["pitches"])
    np.testing.assert_allclose(found["accuracy"], right.mean((1, 2)), rtol=1e-6)
    assert found["accuracy"].max() < 1  # untaught
    after = terms(learnt()[0], {}, BATCH, KEYS)
    np.testing.assert_array_equal(after["accuracy"], 1)
    # What never changes has its onsets in the first frame, and they are half of two frames' notes.
    still = {"pitches": jnp.broadcast_to(BATCH["pitches"][:, :1], (3, 4, 2))}
    some = terms(learnt()[0], {}, still, KEYS)
    heard = draw()(learnt()[0], {}, KEYS, still, temperature=0.0, **GREEDY)
    first = np.asarray(heard[:, 0] == still["pitches"][:, 0])
    np.testing.assert_allclose(some["onset_accuracy"], first.mean(1))


def test_samples_are_of_given_latents_of_posteriors_or_of_the_prior():
    weights, _ = learnt()
    mu, logvar = posterior(ENCODER)(weights, BATCH)
    noise = normal(fold(KEYS, 0), (4,))
    same = np.testing.assert_array_equal
    decode = lambda z: draw()(weights, {}, KEYS, {"z": z}, **GREEDY)
    same(decode(mu), BATCH["pitches"])
    same(draw()(weights, {}, KEYS, BATCH, temperature=0.0, **GREEDY), decode(mu))
    z = mu + 3.0 * jnp.exp(logvar / 2) * noise
    same(draw()(weights, {}, KEYS, BATCH, temperature=3.0, **GREEDY), decode(z))
    same(draw()(weights, {}, KEYS, {}, temperature=0.5, **GREEDY), decode(0.5 * noise))


def test_notes_are_drawn_from_each_examples_own_key():
    untaught = lambda keys: draw()(start().params, {}, keys, {"z": jnp.zeros((3, 4))})
    one, other = untaught(KEYS), untaught(KEYS.at[2].set(KEYS[0]))
    assert one.dtype == jnp.int32 and one.shape == (3, 4, 2)
    np.testing.assert_array_equal(one[:2], other[:2])
    np.testing.assert_array_equal(other[2], other[0])
    assert (one[2] != other[2]).any() and (one[1] != one[0]).any()
