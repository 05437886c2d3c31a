import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, randint, stream
from aigc_jax.core.types import Mode
from aigc_jax.functional.likelihood import DISCRETISED_LOGISTIC
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.tasks.vae import elbo_terms, importance_weighted_nll, posterior, vae
from aigc_jax.train.step import init, make_step

KEYS = example_keys(stream(0, "test"), jnp.arange(3))
IMAGE = np.array([-1.0, 0.0, 1.0], np.float32).reshape(3, 1, 1, 1)  # black, grey and white


class Copy(nn.Module):
    """Believe that the latent is the pixel, give or take e^-1."""

    logvar: float = -2.0

    @nn.compact
    def __call__(self, x):
        mu = x.reshape(-1, 1) + self.param("shift", nn.initializers.zeros, ())
        return mu, jnp.full_like(mu, self.logvar)


class Paint(nn.Module):
    """Take the latent for the logit."""

    @nn.compact
    def __call__(self, z):
        return (z * self.param("scale", nn.initializers.ones, ())).reshape(-1, 1, 1, 1)


def evaluate(beta=1.0, step=None, **options):
    task = vae(Copy(), Paint(), optax.sgd(0.1), latent=1, beta=beta, **options)
    batch = {"image": jnp.asarray(IMAGE)}
    params, stats = task.init(stream(0, "init"), batch)
    mode = Mode(train=True, step=step)
    return task, task.phases[0].loss(params, stats, batch, KEYS, mode), params


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_loss_is_reconstruction_and_beta_times_divergence(beta):
    _, out, _ = evaluate(beta)
    mu = IMAGE.reshape(3)
    z = mu + np.exp(-1.0) * np.asarray(normal(fold(KEYS, 0), (1,))).reshape(3)
    reconstruction = np.log1p(np.exp(z)) - (mu + 1) / 2 * z
    kl = 0.5 * (mu**2 + np.exp(-2.0) - 1 + 2.0)
    np.testing.assert_allclose(out.metrics["reconstruction"], reconstruction, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(out.loss, reconstruction + beta * kl, rtol=1e-5)


def test_beta_may_be_annealed_by_the_step():
    _, out, _ = evaluate(lambda step: step / 10, step=jnp.int32(4))
    parts = out.metrics
    np.testing.assert_allclose(out.loss, parts["reconstruction"] + 0.4 * parts["kl"], rtol=1e-5)


def test_free_bits_and_a_capacity_take_the_place_of_the_divergence():
    _, out, _ = evaluate(0.5, free_bits=0.8)
    parts = out.metrics
    assert (parts["kl"] < 0.8).any() and (parts["kl"] > 0.8).any()
    expected = parts["reconstruction"] + 0.5 * np.maximum(parts["kl"], 0.8)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    _, out, _ = evaluate(capacity=lambda step: 0.1 * step, gamma=5.0, step=jnp.int32(7))
    expected = parts["reconstruction"] + 5 * np.abs(parts["kl"] - 0.7)
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)


def test_what_is_out_of_range_is_refused():
    for name in ("beta", "free_bits", "capacity", "gamma"):
        with pytest.raises(ValueError, match=rf"^{name}=-0.5 must be at least 0$"):
            evaluate(**{name: -0.5})
    with pytest.raises(ValueError, match=r"^capacity=3.0 goes with neither beta nor free_bits$"):
        evaluate(2.0, capacity=3.0)


def test_samples_are_the_decoders_means_of_latents_of_a_temperature():
    task, _, params = evaluate()
    z = np.asarray(normal(KEYS, (1,)))
    for temperature in (1.0, 0.5, 0.0):
        samples = task.sample(params, {}, KEYS, {}, temperature=temperature)
        expected = 2 / (1 + np.exp(-temperature * z)) - 1
        np.testing.assert_allclose(samples.reshape(3, 1), expected, atol=1e-6)


def test_a_latent_that_is_given_is_decoded_and_an_image_reconstructed():
    task, _, params = evaluate()
    z = np.array([[0.3], [-1.0], [2.0]], np.float32)
    drawn = task.sample(params, {}, KEYS, {"z": z}, temperature=0.0)
    np.testing.assert_allclose(drawn.reshape(3, 1), 2 / (1 + np.exp(-z)) - 1, atol=1e-6)
    noise = np.exp(-1.0) * np.asarray(normal(KEYS, (1,)))
    for temperature in (1.0, 0.0):
        drawn = task.sample(params, {}, KEYS, {"image": IMAGE}, temperature=temperature)
        z = IMAGE.reshape(3, 1) + temperature * noise
        np.testing.assert_allclose(drawn.reshape(3, 1), 2 / (1 + np.exp(-z)) - 1, atol=1e-6)


def test_it_bounds_the_likelihood_and_importance_weights_reach_it():
    """The evidence of one pixel is known: p(x = 1) = ½ by symmetry, log 2 nats either way."""
    _, _, params = evaluate()
    n = 5_000
    keys = example_keys(stream(1, "many"), jnp.arange(n))
    white = {"image": jnp.ones((n, 1, 1, 1))}
    pair = Copy(0.0), Paint()  # as wide as the prior: a narrow proposal's weights have long tails
    terms = {k: importance_weighted_nll(*pair, k=k, chunk=32) for k in (1, 64)}
    terms["elbo"] = elbo_terms(*pair)
    run = jax.jit(lambda params: [f(params, {}, white, keys) for f in terms.values()])
    one, many, bound = run(params)
    elbo = bound["negative_elbo"]
    np.testing.assert_allclose(elbo, bound["reconstruction"] + bound["kl"], rtol=1e-6)
    assert "bits_per_dim" not in bound
    assert abs(float(np.mean(one["iw1_nll"] - elbo))) < 0.05  # of noise: their draws differ
    assert np.mean(elbo) > np.log(2) + 0.05 > np.mean(many["iw64_nll"]) > np.log(2) - 0.01
    # One about 0.4 is nearer to the posterior.
    shifted = run({**params, "encoder": {"shift": jnp.float32(-0.6)}})[2]["negative_elbo"]
    assert np.log(2) < np.mean(shifted) < np.mean(elbo)


def test_eight_bit_likelihoods_are_told_in_bits_and_read_their_outputs():
    networks = MLPEncoder(2, 4), MLPDecoder((2, 2, 3), 4, DISCRETISED_LOGISTIC.outputs)
    task = vae(*networks, optax.sgd(0.1), latent=2, likelihood=DISCRETISED_LOGISTIC)
    batch = {"image": jnp.zeros((3, 2, 2, 3)) + 1 / 255}
    params, stats = task.init(stream(0, "init"), batch)
    terms = elbo_terms(*networks, DISCRETISED_LOGISTIC)

    @jax.jit
    def run(params):
        out = task.phases[0].loss(params, stats, batch, KEYS, Mode(train=True))
        return terms(params, stats, batch, KEYS), out.loss, task.sample(params, stats, KEYS, {})

    found, loss, drawn = run(params)
    bits = found["negative_elbo"] / 12 / np.log(2)
    np.testing.assert_allclose(found["bits_per_dim"], bits, rtol=1e-6)
    np.testing.assert_allclose(loss, found["negative_elbo"], rtol=1e-6)
    assert drawn.shape == (3, 2, 2, 3)


def test_labels_are_a_condition_of_both_networks():
    networks = MLPEncoder(2, 4, classes=3), MLPDecoder((2, 2, 1), 4, classes=3)
    task = vae(*networks, optax.sgd(0.1), latent=2, classes=3)
    batch = {"image": jnp.zeros((3, 2, 2, 1)), "label": jnp.array([0, 1, 2])}
    params, stats = task.init(stream(0, "init"), batch)
    mu, _ = posterior(networks[0], classes=3)(params, batch)
    assert len(np.unique(mu[:, 0])) == 3  # of one image
    same = {"z": jnp.zeros((3, 2)), "label": batch["label"]}
    assert len(np.unique(task.sample(params, stats, KEYS, same)[:, 0, 0, 0])) == 3
    drawn = task.sample(params, stats, KEYS, {})
    assert drawn.shape == (3, 2, 2, 1)
    label = randint(fold(KEYS, 1), 0, 3)
    np.testing.assert_array_equal(drawn, task.sample(params, stats, KEYS, {"label": label}))
    with pytest.raises(ValueError, match=r"^cond holds image and no label"):
        task.sample(params, stats, KEYS, {"image": batch["image"]})
    with pytest.raises(ValueError, match="unconditional"):
        evaluate()[0].sample({}, {}, KEYS, {"label": label})


def test_the_textbooks_network_learns_a_few_images_by_heart():
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.choice([-1.0, 1.0], (8, 4, 4, 1)), jnp.float32)}
    task = vae(MLPEncoder(4, 32), MLPDecoder((4, 4, 1), 32), optax.adam(1e-2), latent=4)
    state = jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))
    step = jax.jit(make_step(task, seed=0))
    losses = []
    for _ in range(300):
        state, metrics = step(state, batch)
        losses.append(float(metrics["vae/loss"].total) / 8)
    assert np.mean(losses[:5]) > 10 > 7 > np.mean(losses[-20:])  # 16 log 2 = 11.1 at the start


def test_the_textbooks_network_has_its_size():
    task = vae(MLPEncoder(20, 400), MLPDecoder((28, 28, 1), 400), optax.sgd(0.1), latent=20)
    shapes = jax.eval_shape(task.init, stream(0, "init"), {"image": jnp.zeros((1, 28, 28, 1))})
    sizes = sum(x.size for x in jax.tree.leaves(shapes))
    assert sizes == (784 * 400 + 400) + (400 * 40 + 40) + (20 * 400 + 400) + (400 * 784 + 784)
