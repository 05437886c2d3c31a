import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, stream
from aigc_jax.core.types import Mode
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.tasks.vae import negative_elbo, vae
from aigc_jax.train.step import init, make_step

KEYS = example_keys(stream(0, "test"), jnp.arange(3))
IMAGE = np.array([-1.0, 0.0, 1.0], np.float32).reshape(3, 1, 1, 1)  # black, grey and white


class Copy(nn.Module):
    """Believe that the latent is the pixel, give or take e^-1."""

    @nn.compact
    def __call__(self, x):
        mu = x.reshape(-1, 1) + self.param("shift", nn.initializers.zeros, ())
        return mu, jnp.full_like(mu, -2.0)


class Paint(nn.Module):
    """Take the latent for the logit."""

    @nn.compact
    def __call__(self, z):
        return (z * self.param("scale", nn.initializers.ones, ())).reshape(-1, 1, 1, 1)


def evaluate(beta=1.0):
    task = vae(Copy(), Paint(), optax.sgd(0.1), latent=1, beta=beta)
    batch = {"image": jnp.asarray(IMAGE)}
    params, stats = task.init(stream(0, "init"), batch)
    return task, task.phases[0].loss(params, stats, batch, KEYS, Mode(train=True)), params


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


def test_beta_must_not_be_negative():
    with pytest.raises(ValueError, match=r"^beta=-0.5 must be at least 0$"):
        evaluate(-0.5)


def test_samples_are_the_decoders_means_of_latents_of_a_temperature():
    task, _, params = evaluate()
    z = np.asarray(normal(KEYS, (1,)))
    for temperature in (1.0, 0.5, 0.0):
        samples = task.sample(params, {}, KEYS, {}, temperature=temperature)
        expected = 2 / (1 + np.exp(-temperature * z)) - 1
        np.testing.assert_allclose(samples.reshape(3, 1), expected, atol=1e-6)


def test_it_bounds_the_likelihood_and_approaches_it():
    """The evidence of one pixel is known: p(x = 1) = ½ by symmetry, log 2 nats either way."""
    bound = negative_elbo(Copy(), Paint())
    _, _, params = evaluate()
    n = 20_000
    keys = example_keys(stream(1, "many"), jnp.arange(n))
    white = {"image": jnp.ones((n, 1, 1, 1))}
    total = lambda params: float(np.mean(sum(bound(params, {}, white, keys))))
    assert total(params) > np.log(2) + 0.05
    # The best Gaussian of mean 0.4 or so is nearer.
    shifted = {**params, "encoder": {"shift": jnp.float32(-0.6)}}
    assert np.log(2) < total(shifted) < total(params)


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
