import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, stream, uniform
from aigc_jax.core.types import Mode
from aigc_jax.models.text_vae import TextDecoder, TextEncoder
from aigc_jax.tasks.text_vae import elbo_terms, text_vae
from aigc_jax.train.step import init, make_step

V, T = 8, 5  # tokens 0 pad, 1 start, 2 end, 3 unk, and four words
SPECIAL = {"length": T, "start": 1, "end": 2, "unk": 3}
LENGTHS = np.array([5, 3, 1, 4, 2, 5])
B = len(LENGTHS)
KEYS = example_keys(stream(0, "test"), jnp.arange(B))
TRAIN = Mode(train=True)


def sentences(pad=0, t=T):
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(4, V, (B, t)), np.arange(t) < LENGTHS[:, None]
    tokens[np.arange(B), LENGTHS - 1] = 2
    return {
        "tokens": jnp.asarray(np.where(mask, tokens, pad), jnp.int32),
        "mask": jnp.asarray(mask, jnp.float32),
    }


class Length(nn.Module):
    """Believe that the latent is how long the sentence is, give or take e^-1."""

    @nn.compact
    def __call__(self, tokens, mask, keys=None):
        mu = mask.sum(1, keepdims=True) + self.param("shift", nn.initializers.zeros, ())
        return mu, jnp.full_like(mu, -2.0)


class Repeat(nn.Module):
    """Say again what was read, by a logit of z; it keeps the number of tokens read."""

    @nn.compact
    def __call__(self, z, tokens, keys=None):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * z[:, :1, None] * jax.nn.one_hot(tokens, V)

    def begin(self, z):
        return jnp.zeros(z.shape[0])

    @nn.compact
    def step(self, carry, z, tokens):
        return carry + 1, self(z, tokens[:, None])[:, 0]


def stand_in(**options):
    task = text_vae(Length(), Repeat(), optax.sgd(0.1), latent=1, **SPECIAL, **options)
    params, _ = task.init(stream(0, "init"), sentences())
    return task, params, task.phases[0].loss


def expected_reconstruction(read, z):
    """-log softmax of a logit z at what was read, summed over the real tokens."""
    batch = jax.device_get(sentences())
    hit = read == batch["tokens"]
    normaliser = np.log(np.exp(z) + V - 1)[:, None]
    return ((normaliser - hit * z[:, None]) * batch["mask"]).sum(1)


def read_tokens(tokens):
    return np.concatenate([np.ones((B, 1), int), tokens[:, :-1]], 1)


Z = LENGTHS + np.exp(-1.0) * np.asarray(normal(fold(KEYS, 0), (1,)))[:, 0]
KL = 0.5 * (LENGTHS**2 + np.exp(-2.0) - 1 + 2.0)


@pytest.mark.parametrize("beta", [0.0, 0.5, optax.linear_schedule(0.0, 1.0, 10)])
def test_loss_is_the_reconstruction_of_real_tokens_and_the_weighted_divergence(beta):
    _, params, loss = stand_in(beta=beta)
    out = loss(params, {}, sentences(), KEYS, TRAIN._replace(step=jnp.int32(4)))
    reconstruction = expected_reconstruction(read_tokens(np.asarray(sentences()["tokens"])), Z)
    np.testing.assert_allclose(out.metrics["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["kl"], KL, rtol=1e-5)
    np.testing.assert_array_equal(out.metrics["tokens"], LENGTHS)
    weight = 0.4 if callable(beta) else beta
    np.testing.assert_allclose(out.loss, reconstruction + weight * KL, rtol=1e-5)
    np.testing.assert_array_equal(out.weight, np.ones(B))


def test_below_the_free_bits_the_divergence_costs_no_more():
    _, params, loss = stand_in(beta=0.5, free_bits=6.0)
    out = loss(params, {}, sentences(), KEYS, TRAIN)
    cost = 0.5 * np.maximum(KL, 6.0)
    np.testing.assert_allclose(out.loss, out.metrics["reconstruction"] + cost, rtol=1e-5)
    assert (KL < 6).any() and (KL > 6).any()


def test_words_are_dropped_in_training_by_each_examples_own_key():
    _, params, loss = stand_in(word_dropout=0.5)
    tokens = np.asarray(sentences()["tokens"])
    unread = np.asarray(uniform(fold(KEYS, 1), (T,))) < 0.5
    read = read_tokens(np.where(unread, 3, tokens))
    trained = loss(params, {}, sentences(), KEYS, TRAIN).metrics["reconstruction"]
    np.testing.assert_allclose(trained, expected_reconstruction(read, Z), rtol=1e-5)
    tested = loss(params, {}, sentences(), KEYS, Mode(train=False)).metrics["reconstruction"]
    np.testing.assert_allclose(tested, expected_reconstruction(read_tokens(tokens), Z), rtol=1e-5)
    assert (trained != tested).any()


def test_terms_are_the_bound_and_drop_nothing():
    _, params, _ = stand_in()
    terms = elbo_terms(Length(), Repeat(), start=1)(params, {}, sentences(), KEYS)
    reconstruction = expected_reconstruction(read_tokens(np.asarray(sentences()["tokens"])), Z)
    np.testing.assert_allclose(terms["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], KL, rtol=1e-5)
    np.testing.assert_allclose(terms["negative_elbo"], reconstruction + KL, rtol=1e-5)
    np.testing.assert_array_equal(terms["tokens"], LENGTHS)


@functools.cache
def real():
    """A task of real networks, all its remedies on, and its loss and gradient compiled."""
    networks = TextEncoder(V, 4, 8, 8, dropout=0.3), TextDecoder(V, 8, 8, dropout=0.3)
    task = text_vae(*networks, optax.sgd(0.1), latent=4, free_bits=0.1, word_dropout=0.3, **SPECIAL)
    params, _ = jax.jit(task.init)(stream(0, "init"), sentences())

    @jax.jit
    def evaluate(batch):
        total = lambda params: (
            (out := task.phases[0].loss(params, {}, batch, KEYS, TRAIN)).loss.sum(),
            out.loss,
        )
        return jax.grad(total, has_aux=True)(params)

    return task, params, evaluate


def test_padding_influences_neither_loss_nor_gradient():
    evaluate = real()[2]
    expected = evaluate(sentences())
    jax.tree.map(np.testing.assert_array_equal, evaluate(sentences(pad=6)), expected)
    assert jnp.isfinite(expected[1]).all()


def test_sentences_end_once_and_are_their_keys_alone():
    task, params, _ = real()
    draw = jax.jit(task.sample)
    tokens = np.asarray(draw(params, {}, KEYS, {}))
    assert tokens.shape == (B, T) and tokens.dtype == np.int32
    ended = np.cumsum(tokens == 2, 1) > 0
    assert ended.any() and (tokens[ended] == 2).all()
    np.testing.assert_array_equal(draw(params, {}, KEYS[2:], {}), tokens[2:])


def test_the_sampler_decodes_z_or_reconstructs_or_draws_at_its_temperatures():
    """Of a mean of 0 the likeliest token repeats the start if z > 0, and is none before it else."""
    task, params, _ = stand_in()
    prior = np.asarray(normal(fold(KEYS, 0), (1,)))[:, 0]
    drawn = np.asarray(task.sample(params, {}, KEYS, {}, token_temperature=0.0))
    np.testing.assert_array_equal(drawn[:, 0], np.where(prior > 0, 1, 0))
    given = {"mask": jnp.zeros((B, T)), "tokens": sentences()["tokens"]}
    for temperature in (1.0, 0.0):
        drawn = task.sample(params, {}, KEYS, given, temperature=temperature, token_temperature=0.0)
        z = temperature * np.exp(-1.0) * prior
        np.testing.assert_array_equal(np.asarray(drawn)[:, 0], np.where(z > 0, 1, 0))
    longest = task.sample(params, {}, KEYS, sentences(), temperature=0.0, token_temperature=0.0)
    assert (np.asarray(longest) == 1).all()  # of means that are lengths
    sure = {"z": jnp.full((B, 1), 50.0)}
    assert (np.asarray(task.sample(params, {}, KEYS, sure)) == 1).all()


def test_without_a_latent_it_is_a_language_model():
    decoder = TextDecoder(V, 8, 8)
    task = text_vae(None, decoder, optax.sgd(0.1), latent=0, **SPECIAL)
    params, _ = jax.jit(task.init)(stream(0, "init"), sentences())
    assert set(params) == {"decoder"} and task.phases[0].trains == ("decoder",)
    out = task.phases[0].loss(params, {}, sentences(), KEYS, TRAIN)
    np.testing.assert_array_equal(out.loss, out.metrics["reconstruction"])
    np.testing.assert_array_equal(out.metrics["kl"], np.zeros(B))
    assert task.sample(params, {}, KEYS, {}).shape == (B, T)
    for cond in (sentences(), {"z": jnp.zeros((B, 4))}):
        with pytest.raises(ValueError, match="this model has latent=0"):
            task.sample(params, {}, KEYS, cond)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, r"^latent=0 must be 0 without an encoder, and at least 1 with one$"),
        ({"encoder": None}, r"^latent=1 must be 0 without an encoder"),
        ({"length": 0}, r"^length=0 must be at least 1$"),
        ({"beta": -1.0}, r"^beta=-1.0 must be at least 0$"),
        ({"free_bits": -1.0}, r"^free_bits=-1.0 must be at least 0$"),
        ({"word_dropout": 1.1}, r"^word_dropout=1.1 must lie in \[0, 1\]$"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    arguments = {"encoder": Length(), "decoder": Repeat(), "tx": optax.sgd(0.1), "latent": 1}
    with pytest.raises(ValueError, match=message):
        text_vae(**(arguments | SPECIAL | options))


def test_conditions_that_make_no_sense_are_refused():
    task, params, _ = stand_in()
    with pytest.raises(ValueError, match="tokens without their mask"):
        task.sample(params, {}, KEYS, {"tokens": sentences()["tokens"]})
    with pytest.raises(
        ValueError, match=r"cond\['z'\] has shape \(6, 3\); this model's latents are"
    ):
        task.sample(params, {}, KEYS, {"z": jnp.zeros((B, 3))})


def test_it_learns_sentences_by_heart_and_tells_them_from_their_latents():
    networks = TextEncoder(V, 4, 16, 8), TextDecoder(V, 16, 8)
    task = text_vae(*networks, optax.adam(1e-2), latent=4, beta=0.1, **SPECIAL)
    batch = sentences()
    state = jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))
    step = jax.jit(make_step(task, seed=0))
    losses = []
    for _ in range(300):
        state, metrics = step(state, batch)
        losses.append(float(metrics["text_vae/reconstruction"].total) / B)
    assert losses[0] > 6 and np.mean(losses[-50:]) < 0.5
    sample = functools.partial(task.sample, temperature=0.0, token_temperature=0.0)
    rebuilt = jax.jit(sample)(state.params, {}, KEYS, batch)
    np.testing.assert_array_equal(rebuilt, jnp.where(batch["mask"] > 0, batch["tokens"], 2))
