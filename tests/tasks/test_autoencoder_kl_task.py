"""The task, on networks whose latents, images and verdicts have a closed form."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, stream
from aigc_jax.core.types import Mode, Task
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.tasks.autoencoder_kl import autoencoder_kl, latent_scale, reconstruction_terms
from aigc_jax.train.step import averaged, init, make_step

SHAPE = (2, 3, 1)
TX, JUDGE_TX = optax.sgd(0.1), optax.sgd(0.01)
KEYS = example_keys(stream(0, "test"), jnp.arange(8))
IMAGE = np.random.default_rng(0).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
BATCH = {"image": jnp.asarray(IMAGE), "label": jnp.arange(8) % 3}
TERMS = ("l1", "kl")


class Copy(nn.Module):
    """Believe that the latent is the image, give or take e^-1."""

    @nn.compact
    def __call__(self, x):
        mu = x * self.param("gain", nn.initializers.ones, ())
        return mu, jnp.full_like(mu, -2.0)


class Shift(nn.Module):
    """Paint the latent, ¼ brighter at first."""

    @nn.compact
    def __call__(self, z):
        return z + self.param("shift", nn.initializers.constant(0.25), ())


class Brightness(nn.Module):
    """Judge by the mean of the pixels times a weight, 2 at first, and by the label if there are."""

    classes: int = 0

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        verdict = x.mean((1, 2, 3)) * self.param("slope", nn.initializers.constant(2.0), ())
        return verdict + label if self.classes else verdict


def make(encoder: Any = None, decoder: Any = None, judge: Any = None, **options: Any) -> Task:
    networks = encoder or Copy(), decoder or Shift(), judge or Brightness()
    return autoencoder_kl(*networks, TX, JUDGE_TX, **{"shape": SHAPE, **options})


def start(task: Task, batch: Any = BATCH) -> Any:
    return jax.jit(lambda key: init(task, key, batch))(stream(0, "init"))


def stepper(task: Task) -> Any:
    step = jax.jit(make_step(task, seed=0))

    def run(state: Any, steps: int) -> Any:
        for _ in range(steps):
            state, _ = step(state, BATCH)
        return state

    return run


def evaluator(task: Task, name: str = "autoencoder") -> Any:
    """Make what a phase says of the first weights, and the gradient of the sum of its losses."""
    [phase] = [p for p in task.phases if p.name == name]

    def total(params, stats, step):
        out = phase.loss(params, stats, BATCH, KEYS, Mode(train=True, step=step))
        return out.loss.sum(), out

    params, stats = task.init(stream(0, "init"), BATCH)
    run = jax.jit(jax.grad(total, has_aux=True))
    return lambda step=None: run(params, stats, step)[::-1]


def evaluate(task: Task, name: str = "autoencoder") -> Any:
    return evaluator(task, name)()


def expected_image(keys: Any) -> np.ndarray:
    """Return what is made of the images under the first weights, from the keys of a phase."""
    noise = normal(fold(fold(keys, 0), 0), SHAPE)  # A game gives the generator keys of its own.
    return IMAGE + np.exp(-1.0) * np.asarray(noise) + 0.25


def expected_terms() -> tuple[np.ndarray, np.ndarray]:
    l1 = np.abs(IMAGE - expected_image(KEYS)).mean((1, 2, 3))
    return l1, 0.5 * (IMAGE**2 + np.exp(-2.0) + 2.0 - 1.0).sum((1, 2, 3))


# The loss


def test_loss_is_the_published_one_a_pixel():
    l1, kl = expected_terms()
    out, _ = evaluate(make(weight=0.0, beta=3.0))
    np.testing.assert_allclose(out.metrics["l1"], l1, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(out.loss, (6 * l1 + 3.0 * kl) / 6, rtol=1e-5)
    assert set(out.metrics) == set(TERMS) and (out.weight == 1).all()


def test_beta_may_be_annealed():
    l1, kl = expected_terms()
    of_step = evaluator(make(weight=0.0, beta=optax.linear_schedule(0.0, 1.0, 10)))
    for step in (0, 4):
        out, _ = of_step(jnp.int32(step))
        np.testing.assert_allclose(out.loss, l1 + step / 10 * kl / 6, rtol=1e-5)


def test_the_judges_verdict_is_weighed():
    l1, kl = expected_terms()
    out, _ = evaluate(make(weight=0.5, beta=1.0))
    adversary = -2 * expected_image(KEYS).mean((1, 2, 3))  # of the hinge game
    np.testing.assert_allclose(out.metrics["adversary"], adversary, rtol=1e-5)
    np.testing.assert_allclose(out.loss, l1 + kl / 6 + 0.5 * adversary, rtol=1e-5)


def test_the_judge_learns_to_tell_what_is_made_from_the_data():
    out, grads = evaluate(make(), "discriminator")
    real, fake = (2 * x.mean((1, 2, 3)) for x in (IMAGE, expected_image(KEYS)))
    np.testing.assert_allclose(out.metrics["real"], real, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.metrics["fake"], fake, rtol=1e-5, atol=1e-6)
    loss = np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-5)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["autoencoder"]))


def test_a_judge_of_classes_is_given_labels():
    plain, told = (evaluate(make(judge=Brightness(c)), "discriminator")[0] for c in (0, 3))
    np.testing.assert_allclose(
        told.metrics["real"] - plain.metrics["real"], BATCH["label"], atol=1e-5
    )


def test_terms_are_those_of_the_loss():
    params, stats = make(weight=0.0).init(stream(0, "init"), BATCH)
    terms = reconstruction_terms(Copy(), Shift())(params, stats, BATCH, fold(KEYS, 0))
    assert set(terms) == set(TERMS)
    for name, value in zip(TERMS, expected_terms(), strict=True):
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)


# Who moves whom


def test_without_weight_there_is_no_discriminator():
    task = make(weight=0.0)
    assert [(p.name, p.trains) for p in task.phases] == [("autoencoder", ("autoencoder",))]
    params, stats = task.init(stream(0, "init"), BATCH)
    assert set(params) == {"autoencoder"} and stats == {}


def test_before_its_start_the_judge_neither_learns_nor_is_heard():
    plain, task = make(weight=0.0), make(weight=0.5, start=2)
    assert [(p.name, p.trains, p.start) for p in task.phases] == [
        ("discriminator", ("discriminator",), 2),
        ("autoencoder", ("autoencoder",), 0),
    ]
    run, run_alone = stepper(task), stepper(plain)
    two, alone = run(start(task), 2), run_alone(start(plain), 2)
    chex.assert_trees_all_equal(two.params["autoencoder"], alone.params["autoencoder"])
    assert two.params["discriminator"]["slope"] == 2  # as at first
    three, alone = run(two, 1), run_alone(alone, 1)
    assert three.params["discriminator"]["slope"] != 2
    moved = three.params["autoencoder"]["decoder"]["shift"]
    # What it says of the shift is -2 whatever the image, and its optimiser's rate is 0.1.
    slope = three.params["discriminator"]["slope"]
    told = moved - alone.params["autoencoder"]["decoder"]["shift"]
    np.testing.assert_allclose(told, 0.1 * 0.5 * slope, rtol=1e-4)
    assert abs(slope - 2) < 0.2


def test_its_gradient_passes_back_from_its_start_on():
    of_step, (_, alone) = evaluator(make(weight=0.5, start=3)), evaluate(make(weight=0.0))
    for step, share in ((jnp.int32(2), 0.0), (jnp.int32(3), 1.0), (None, 1.0)):
        _, grads = of_step(step)
        told = jax.tree.map(jnp.subtract, grads["autoencoder"], alone["autoencoder"])
        np.testing.assert_allclose(told["decoder"]["shift"], -0.5 * 2 * 8 * share, atol=1e-5)
        gain = -0.5 * 2 * IMAGE.mean((1, 2, 3)).sum() * share
        np.testing.assert_allclose(told["encoder"]["gain"], gain, atol=1e-5)


def test_the_autoencoders_weights_may_be_averaged():
    assert make(decay=0.5).average == make(decay=0.5, weight=0.0).average == {"autoencoder": 0.5}
    assert make().average == {}


# Samples


def test_it_decodes_reconstructs_and_draws():
    task = make()
    params, stats = task.init(stream(0, "init"), BATCH)
    draw = lambda cond, **how: task.sample(params, stats, KEYS, cond, **how)
    noise = np.asarray(normal(KEYS, SHAPE))
    clipped = lambda z: np.clip(z + 0.25, -1, 1)
    z = 0.1 * noise
    np.testing.assert_allclose(draw({"z": z, "image": IMAGE}), clipped(z), atol=1e-6)
    for temperature in (0.0, 0.5, 1.0):
        spread = temperature * noise
        again = draw({"image": IMAGE}, temperature=temperature)
        np.testing.assert_allclose(again, clipped(IMAGE + np.exp(-1) * spread), atol=1e-6)
        np.testing.assert_allclose(draw({}, temperature=temperature), clipped(spread), atol=1e-6)


def test_the_scale_of_latents_is_their_deviation():
    params, _ = make().init(stream(0, "init"), BATCH)
    z = IMAGE + np.exp(-1) * np.asarray(normal(KEYS, SHAPE))
    scale = latent_scale(Copy(), params, BATCH["image"], KEYS)
    np.testing.assert_allclose(scale, z.std(), rtol=1e-5)


# Training as a whole


def test_a_few_pictures_are_learned_by_heart_before_a_judge():
    x = np.random.default_rng(0).choice([-0.8, 0.8], (2, 3, 3, 1)).repeat(2, 1).repeat(2, 2)
    batch = {"image": jnp.asarray(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), jnp.float32)}
    task = autoencoder_kl(
        MLPEncoder(4, 32),
        MLPDecoder((8, 8, 1), 32),
        PatchGAN((4,), norm="none"),
        optax.adam(2e-2),
        optax.adam(1e-3),
        shape=(4,),
        weight=0.01,
        start=30,
        decay=0.9,
    )
    step, state = jax.jit(make_step(task, seed=0)), start(task, batch)
    losses = []
    for _ in range(80):
        state, metrics = step(state, batch)
        losses.append(float(metrics["autoencoder/l1"].total) / 2)
        assert all(np.isfinite(float(m.total)) for m in metrics.values())
    assert losses[0] > 0.35 and np.mean(losses[-10:]) < 0.1
    again = task.sample(*averaged(state), KEYS[:2], batch, temperature=0.0)
    assert np.abs(again - batch["image"]).mean() < 0.1


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, r"^beta=-0.1 must be at least 0$"),
        ({"weight": -1.0}, r"^weight=-1.0 must be at least 0$"),
        ({"weight": float("nan")}, r"^weight=nan must be at least 0$"),
    ],
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_networks_that_do_not_fit_are_refused():
    begin = lambda task: jax.eval_shape(task.init, stream(0, "init"), BATCH)
    with pytest.raises(ValueError, match=r"shape=\(4, 4, 1\) must be that of the latent, \(2, 3"):
        begin(make(shape=(4, 4, 1)))

    class Double(nn.Module):
        @nn.compact
        def __call__(self, z):
            return jnp.repeat(z, 2, 1)

    with pytest.raises(ValueError, match=r"makes images of \(4, 3, 1\); the data's are \(2, 3, 1"):
        begin(make(decoder=Double()))
