"""The task, on networks whose verdicts and predictions have a closed form."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, randint, stream
from aigc_jax.core.types import Mode, Task
from aigc_jax.functional import diffusion as f
from aigc_jax.functional.adversarial import HINGE, r1
from aigc_jax.functional.schedules import cosine
from aigc_jax.nn.embed import sinusoidal
from aigc_jax.tasks.adversarial_diffusion import adversarial_diffusion
from aigc_jax.tasks.diffusion import diffusion
from aigc_jax.tasks.gan import Penalty
from aigc_jax.train.step import averaged, init, make_step

SHAPE = (2, 3, 1)
SCHEDULE = cosine(100)
TX, JUDGE_TX = optax.sgd(0.1), optax.sgd(0.01)
KEYS = example_keys(stream(0, "test"), jnp.arange(8))
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, *SHAPE)), jnp.float32),
    "label": jnp.arange(8) % 3,
}


class Constant(nn.Module):
    """Output a weight, 3 at first, at every pixel of so many channels."""

    channels: int = 1

    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        value = self.param("value", nn.initializers.constant(3.0), ())
        return jnp.broadcast_to(value, (*xt.shape[:-1], self.channels))


class Brightness(nn.Module):
    """Judge by the mean of the pixels times a weight, 2 at first."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, axis_name=axis)(x)
        return x.mean((1, 2, 3)) * self.param("slope", nn.initializers.constant(2.0), ())


class Perceptron(nn.Module):
    """A denoiser of pictures so small that they need no convolution."""

    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        label = jnp.full(len(xt), 3) if label is None else label
        flat = xt.reshape(len(xt), -1)
        x = jnp.concatenate([flat, sinusoidal(t, 16), jax.nn.one_hot(label, 4)], -1)
        for _ in range(2):
            x = nn.silu(nn.Dense(32)(x))
        return nn.Dense(flat.shape[-1])(x).reshape(xt.shape)


class Judge(nn.Module):
    """A discriminator of such pictures, that takes a label."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        x = jnp.concatenate([x.reshape(len(x), -1), jax.nn.one_hot(label, self.classes)], -1)
        return nn.Dense(1)(nn.silu(nn.Dense(16)(x)))[:, 0]


def make(denoiser: Any = None, discriminator: Any = None, **options: Any) -> Task:
    return adversarial_diffusion(
        denoiser or Constant(),
        discriminator or Brightness(),
        SCHEDULE,
        TX,
        JUDGE_TX,
        **{"shape": SHAPE, **options},
    )


def start(task: Task) -> Any:
    return jax.jit(lambda key: init(task, key, BATCH))(stream(0, "init"))


def run(task: Task, steps: int, state: Any = None) -> Any:
    step, state = jax.jit(make_step(task, seed=0)), state or start(task)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return state


def evaluate(task: Task, name: str) -> Any:
    """Return what a phase says of the first weights, and the gradient of the sum of its losses."""
    [phase] = [p for p in task.phases if p.name == name]

    def total(params, stats):
        out = phase.loss(params, stats, BATCH, KEYS, Mode(train=True))
        return out.loss.sum(), out

    params, stats = task.init(stream(0, "init"), BATCH)
    grads, out = jax.jit(jax.grad(total, has_aux=True))(params, stats)
    return out, grads


def noise_shares(keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (b,) α and σ at the times that the task draws from these keys."""
    t = randint(fold(keys, 0), 0, SCHEDULE.steps)
    return np.asarray(SCHEDULE.alpha(t)), np.asarray(SCHEDULE.sigma(t))


# Without weights


def test_without_weights_it_is_plain_diffusion():
    options = {"shape": SHAPE, "classes": 3, "kind": "v", "decay": 0.9}
    plain = run(diffusion(Perceptron(), SCHEDULE, TX, **options), 4)
    task = make(Perceptron(), Judge(), alpha=0.0, beta=0.0, **options)
    assert set(plain.params) == {"denoiser"}
    chex.assert_trees_all_equal(run(task, 4), plain)


def test_without_alpha_there_is_no_discriminator():
    task = make(alpha=0.0, beta=2.0)
    assert [(p.name, p.trains) for p in task.phases] == [("denoiser", ("denoiser",))]
    params, stats = task.init(stream(0, "init"), BATCH)
    assert set(params) == {"denoiser"} and stats == {}


def test_it_is_of_two_networks_and_the_denoisers_average():
    task = make(decay=0.5, start=7)
    assert [(p.name, p.trains, p.start) for p in task.phases] == [
        ("discriminator", ("discriminator",), 7),
        ("denoiser", ("denoiser",), 0),
    ]
    assert [p.tx for p in task.phases] == [JUDGE_TX, TX]
    assert task.average == {"denoiser": 0.5}
    plain = diffusion(Perceptron(), SCHEDULE, TX, shape=SHAPE)
    task = make(Perceptron(), Judge())
    chex.assert_trees_all_equal(start(task).params["denoiser"], start(plain).params["denoiser"])


# The loss


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_beta_weighs_the_square_error_of_x0(kind):
    """An error of ε is σ/α times as large in x̂0, and one of v σ times."""
    out, _ = evaluate(make(alpha=0.0, beta=2.0, kind=kind), "denoiser")
    plain = diffusion(Constant(), SCHEDULE, TX, shape=SHAPE, kind=kind)
    expected = np.asarray(evaluate(plain, "denoiser")[0].loss)
    alpha, sigma = noise_shares(KEYS)
    error = expected * {"eps": sigma / alpha, "v": sigma}[kind] ** 2
    np.testing.assert_allclose(out.metrics["denoising"], expected, rtol=1e-6)
    np.testing.assert_allclose(out.metrics["reconstruction"], error, rtol=2e-4)
    np.testing.assert_allclose(out.loss, expected + 2 * error, rtol=2e-4)
    assert (out.weight == 1).all()


def test_loss_is_denoising_and_what_the_judge_and_x0_say():
    out, _ = evaluate(make(alpha=0.5, beta=2.0, kind="x0"), "denoiser")
    # It says 3 everywhere, of which the judge sees 1 and says 2.
    denoising = np.mean(np.square(3 - np.asarray(BATCH["image"])), (1, 2, 3))
    adversary = np.full(8, np.log1p(np.exp(-2)))
    np.testing.assert_allclose(out.metrics["adversary"], adversary, rtol=1e-5)
    np.testing.assert_allclose(out.loss, (1 + 2) * denoising + 0.5 * adversary, rtol=1e-5)


def test_judge_learns_to_tell_x0_from_the_data():
    out, _ = evaluate(make(alpha=0.5, kind="x0", losses=HINGE), "discriminator")
    real = 2 * np.asarray(BATCH["image"]).mean((1, 2, 3))
    np.testing.assert_allclose(out.metrics["real"], real, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["fake"], 2.0)
    np.testing.assert_allclose(out.loss, np.maximum(0, 1 - real) + 3, rtol=1e-5)


def test_judge_sees_the_prediction_of_the_denoiser():
    class Scale(nn.Module):
        @nn.compact
        def __call__(self, xt, t, label=None, *, train=False):
            return xt * self.param("value", nn.initializers.constant(0.3), ())

    out, _ = evaluate(make(Scale(), alpha=1.0, kind="x0"), "denoiser")
    keys = fold(KEYS, 0)  # A game gives the generator keys of its own.
    alpha, sigma = (jnp.asarray(x) for x in noise_shares(keys))
    xt = f.diffuse(BATCH["image"], normal(fold(keys, 1), SHAPE), alpha, sigma)
    seen = 2 * np.clip(0.3 * np.asarray(xt), -1, 1).mean((1, 2, 3))
    np.testing.assert_allclose(out.metrics["adversary"], np.log1p(np.exp(-seen)), rtol=1e-5)


def test_of_a_learned_variance_the_mean_is_judged():
    options = {"alpha": 1.0, "kind": "x0", "learned_variance": True}
    out, _ = evaluate(make(Constant(2), **options), "denoiser")
    error = np.mean(np.square(3 - np.asarray(BATCH["image"])), (1, 2, 3))
    np.testing.assert_allclose(out.metrics["reconstruction"], error, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["adversary"], np.log1p(np.exp(-2)), rtol=1e-5)


def test_judge_is_given_labels_if_it_has_classes():
    task = make(Perceptron(), Judge(), alpha=1.0)  # of a denoiser without
    run = jax.jit(lambda batch: task.phases[0].loss(*weights, batch, KEYS, Mode(True)).loss)
    weights = task.init(stream(0, "init"), BATCH)
    assert (run(BATCH) != run({**BATCH, "label": (BATCH["label"] + 1) % 3})).all()


# Who moves whom


class Shade(nn.Module):
    """Output a weight, ½ at first: within the range of images."""

    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        value = self.param("value", nn.initializers.constant(0.5), ())
        return jnp.broadcast_to(value, xt.shape)


def test_judge_moves_the_denoiser_and_not_the_reverse():
    # Σ of ∂/∂v [mean (v - x)² + α softplus(-2 v)] at ½, of 8 examples.
    plain = 2 * (8 * 0.5 - float(BATCH["image"].mean((1, 2, 3)).sum()))
    told = -2 * 8 / (1 + np.exp(1.0))
    task = make(Shade(), alpha=0.25, kind="x0")
    _, grads = evaluate(task, "denoiser")
    np.testing.assert_allclose(grads["denoiser"]["value"], plain + 0.25 * told, rtol=1e-4)
    # Out of the range that samplers clip to, only the other terms pull.
    _, outside = evaluate(make(alpha=0.25, kind="x0"), "denoiser")
    np.testing.assert_allclose(outside["denoiser"]["value"], plain + 2 * 8 * 2.5, rtol=1e-4)
    _, grads = evaluate(task, "discriminator")
    assert grads["denoiser"]["value"] == 0 != grads["discriminator"]["slope"]


@pytest.mark.parametrize("name", ["denoiser", "discriminator"])
def test_a_phase_changes_its_own_network_alone(name):
    task = make(Shade(), alpha=0.25, kind="x0")
    before = start(task)
    after = run(task._replace(phases=tuple(p for p in task.phases if p.name == name)), 1, before)
    changed = {n for n in before.params if after.params[n] != before.params[n]}
    assert changed == {name}


def test_before_its_start_the_judge_neither_learns_nor_is_heard():
    tasks = [make(Shade(), alpha=alpha, kind="x0", start=2) for alpha in (0.5, 4.0)]
    two = [run(task, 2) for task in tasks]
    assert two[0].params["discriminator"] == start(tasks[0]).params["discriminator"]
    assert two[0].params["denoiser"] == two[1].params["denoiser"]
    three = [run(task, 1, state) for task, state in zip(tasks, two, strict=True)]
    assert three[0].params["discriminator"] != two[0].params["discriminator"]
    assert three[0].params["denoiser"] != three[1].params["denoiser"]


def test_penalties_are_the_discriminators():
    task = make(Shade(), alpha=0.5, kind="x0", penalties=(Penalty(r1, 3.0),))
    out, _ = evaluate(task, "discriminator")
    np.testing.assert_allclose(out.metrics["r1"], 0.5 * 4 / 6, rtol=1e-5)  # ½ Σ (2/6)² of 6 pixels
    lazy = make(Shade(), alpha=0.5, kind="x0", penalties=(Penalty(r1, 3.0, every=2),), start=2)
    assert [(p.name, p.every, p.start) for p in lazy.phases[:2]] == [
        ("discriminator", 1, 2),
        ("r1", 2, 2),
    ]


# Samples, and training as a whole


def test_it_samples_as_plain_diffusion():
    options = {"shape": SHAPE, "classes": 3, "kind": "v"}
    task = make(Perceptron(), Judge(), alpha=0.5, **options)
    plain = diffusion(Perceptron(), SCHEDULE, TX, **options)
    params, stats = averaged(start(task))
    cond = {"label": BATCH["label"]}
    how = {"solver": "ddim", "steps": 3, "guidance": 2.0}
    ours, theirs = (
        jax.jit(functools.partial(t.sample, **how))(params, stats, KEYS, cond)
        for t in (task, plain)
    )
    assert ours.shape == (8, *SHAPE)
    assert (ours == theirs).all()


def test_pictures_are_learned_by_heart_before_a_judge():
    pictures = np.where(np.random.default_rng(0).random((3, *SHAPE)) < 0.5, -0.8, 0.8)
    label = jnp.arange(63) % 3
    batch = {"image": jnp.asarray(pictures, jnp.float32)[label], "label": label}
    task = adversarial_diffusion(
        Perceptron(),
        Judge(),
        SCHEDULE,
        optax.adam(1e-2),
        optax.adam(1e-3),
        alpha=0.02,
        beta=0.5,
        penalties=(Penalty(r1, 0.1),),
        start=20,
        shape=SHAPE,
        classes=3,
        kind="x0",
        decay=0.95,
    )
    step, state = jax.jit(make_step(task, seed=0)), init(task, stream(0, "init"), batch)
    losses = []
    for _ in range(200):
        state, metrics = step(state, batch)
        losses.append(float(metrics["denoiser/denoising"].total) / 63)
        assert all(np.isfinite(float(m.total)) for m in metrics.values())
    assert losses[0] > 0.5 and np.mean(losses[-10:]) < 0.06
    samples = task.sample(averaged(state)[0], {}, KEYS, {"label": BATCH["label"]}, steps=5)
    assert np.abs(samples - pictures[BATCH["label"]]).mean() < 0.06


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha=-0.1 must be at least 0"),
        ({"beta": -1.0}, "beta=-1.0 must be at least 0"),
        ({"alpha": float("nan")}, "alpha=nan must be at least 0"),
        ({"kind": "epsilon"}, "kind='epsilon' must be one of"),
        ({"penalties": (Penalty(r1, -1.0),)}, "must be at least 0"),
    ],
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="gama"):
        make(gama=5.0)


def test_a_penalty_on_a_batch_norms_gradients_is_refused():
    judge = Brightness(norm=True)
    run(make(Shade(), judge, kind="x0"), 1)  # BatchNorm itself will do.
    with pytest.raises(ValueError, match="r1 penalises the gradient of each example's logit"):
        start(make(Shade(), judge, kind="x0", penalties=(Penalty(r1, 1.0),)))
