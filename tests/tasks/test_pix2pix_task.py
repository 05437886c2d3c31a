import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, stream, uniform
from aigc_jax.core.types import Mode
from aigc_jax.functional.adversarial import LEAST_SQUARES, NON_SATURATING
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.models.pix2pix import UNetGenerator
from aigc_jax.tasks.pix2pix import halved, pix2pix
from aigc_jax.train.step import init, make_step

KEYS = example_keys(stream(0, "test"), jnp.arange(4))
RNG = np.random.default_rng(0)
SOURCE = RNG.uniform(-1, 1, (4, 2, 2, 1)).astype(np.float32)
IMAGE = RNG.uniform(-1, 1, (4, 2, 2, 1)).astype(np.float32)
BATCH = {"source": SOURCE, "image": IMAGE}
SGD = optax.sgd(0.1)


class Scale(nn.Module):
    """Take 0.5 of the source; with keys, and a tenth of a number drawn from each."""

    @nn.compact
    def __call__(self, x, *, train=False, axis=None, keys=None):
        noise = 0.0 if keys is None else 0.1 * uniform(keys)[:, None, None, None]
        return x * self.param("scale", nn.initializers.constant(0.5), ()) + noise


class Weigh(nn.Module):
    """Give each row 3 times its mean in the source, less twice that in the image."""

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        assert label is None
        weight = self.param("weight", lambda key: jnp.array([3.0, -2.0]))
        return (x * weight).sum(-1).mean(-1)  # (b, h, w, 2) -> (b, h), a logit a row


def small(**options):
    task = pix2pix(Scale(), Weigh(), SGD, SGD, **options)
    return task, *task.init(stream(0, "init"), BATCH)


def softplus(x):
    return np.log1p(np.exp(x))


def by_hand(image):
    """The logits of pairs, (b, 2), and both losses of the paper, (b,)."""
    logits = 3 * SOURCE.mean((2, 3)) - 2 * image.mean((2, 3))
    return logits, softplus(-logits).mean(1), softplus(logits).mean(1)


class Quiet(Scale):
    """Draw nothing from the keys, which are there in training."""

    def __call__(self, x, *, train=False, axis=None, keys=None):
        assert (keys is not None) == train
        return super().__call__(x)


@pytest.mark.parametrize("l1", [100.0, 0.0])
def test_the_losses_are_the_papers(l1):
    task = pix2pix(Quiet(), Weigh(), SGD, SGD, l1=l1)
    of = task.init(stream(0, "init"), BATCH)
    discriminator, generator = task.phases
    assert (discriminator.trains, generator.trains) == (("discriminator",), ("generator",))
    fake, fooled, caught = by_hand(0.5 * SOURCE)
    real, believed, _ = by_hand(IMAGE)

    out = discriminator.loss(*of, BATCH, KEYS, Mode(train=True))
    np.testing.assert_allclose(out.loss, 0.5 * (believed + caught), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["real"], real.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.metrics["fake"], fake.mean(1), rtol=1e-4, atol=1e-6)

    out = generator.loss(*of, BATCH, KEYS, Mode(train=True))
    error = np.abs(IMAGE - 0.5 * SOURCE).mean((1, 2, 3))
    np.testing.assert_allclose(out.loss, fooled + l1 * error, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["l1"], error, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["adversary"], fooled, rtol=1e-5)
    np.testing.assert_array_equal(out.weight, np.ones(4))


def test_the_error_counts_for_nothing_or_more():
    with pytest.raises(ValueError, match=r"^l1=-1 must be at least 0$"):
        small(l1=-1)


@pytest.mark.parametrize("losses", [NON_SATURATING, LEAST_SQUARES])
def test_only_the_discriminators_loss_is_halved(losses):
    real, fake = RNG.normal(size=(2, 4, 3, 3))
    half = halved(losses)
    np.testing.assert_allclose(half.discriminator(real, fake), losses.discriminator(real, fake) / 2)
    np.testing.assert_array_equal(half.generator(real, fake), losses.generator(real, fake))


def test_samples_translate_the_source_with_noise_and_without():
    task, params, stats = small()
    draw = lambda i, **options: np.asarray(
        task.sample(params, stats, KEYS[i], {"source": SOURCE[i]}, **options)
    )
    every, some = np.arange(4), np.array([3, 1])
    noise = 0.1 * np.asarray(uniform(KEYS))[:, None, None, None]
    np.testing.assert_allclose(draw(every, noise=False), 0.5 * SOURCE, rtol=1e-6)
    np.testing.assert_allclose(draw(every), 0.5 * SOURCE + noise, rtol=1e-6)
    np.testing.assert_array_equal(draw(some), draw(every)[some])
    with pytest.raises(ValueError, match=r"^there is no image to translate, 'source', among \[\]$"):
        task.sample(params, stats, KEYS, {})


def test_batches_that_do_not_fit_are_refused_when_the_task_is_initialised():
    task, _, _ = small()
    make = lambda **batch: jax.eval_shape(task.init, stream(0, "init"), batch)
    with pytest.raises(ValueError, match=r"'source', among \['image'\]"):
        make(image=IMAGE)
    large = np.zeros((4, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match=r"^source \(4, 2, 2, 1\) and image \(4, 4, 4, 1\) must"):
        make(source=SOURCE, image=large)
    with pytest.raises(ValueError, match=r"images of \(2, 2, 1\); the data's are \(2, 2, 3\)"):
        make(source=SOURCE, image=IMAGE.repeat(3, -1))


def test_the_generators_weights_are_averaged_where_asked():
    assert small()[0].average == {}
    assert small(decay=0.5)[0].average == {"generator": 0.5}


def test_one_pass_of_the_generator_can_serve_both():
    task, *of = small(simultaneous=True)
    [game] = task.phases
    assert game.trains == ("discriminator", "generator")
    out = game.loss(*of, BATCH, KEYS, Mode(train=True))
    total = out.metrics["discriminator"] + out.metrics["adversary"] + 100 * out.metrics["l1"]
    np.testing.assert_allclose(out.loss, total, rtol=1e-5)


def test_it_learns_a_few_pairs_by_heart():
    image = RNG.choice([-0.9, 0.9], (4, 8, 8, 1)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "source": jnp.asarray(-image)}
    adam = optax.adam(1e-2, b1=0.5)
    task = pix2pix(UNetGenerator((8, 8), 1), PatchGAN((2, 4)), adam, adam)
    state = jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))
    step = jax.jit(make_step(task, seed=0))
    errors = []
    for _ in range(40):
        state, metrics = step(state, batch)
        errors.append(float(metrics["generator/l1"].total) / 4)
    assert errors[0] > 0.8 and np.mean(errors[-5:]) < 0.2
    drawn = jax.jit(task.sample)(state.params, state.stats, KEYS, batch)
    assert float(jnp.abs(drawn - image).mean()) < 0.3
