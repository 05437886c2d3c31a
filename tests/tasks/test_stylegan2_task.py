"""The task, on a network of one pixel, whose paths have a closed form, and on a real one."""

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
from aigc_jax.functional.adversarial import HINGE
from aigc_jax.models.stylegan2 import Discriminator, Generator
from aigc_jax.tasks.stylegan2 import lazy_adam, stylegan2
from aigc_jax.train.step import averaged, init, make_step

B, LATENT = 4, 5
KEYS = example_keys(stream(0, "test"), jnp.arange(B))
PIXELS = {"image": jnp.float32([-1, 0, 0.5, 1]).reshape(B, 1, 1, 1)}


class Line(nn.Module):
    """Paint a pixel: a weight w, −1.5 at first, times 3 and 4 of two layers' first numbers."""

    def setup(self):
        self.slope = self.param("slope", nn.initializers.constant(-1.5), ())
        self.average = self.variable("averages", "w", jnp.zeros, ())

    def __call__(self, z, label=None, *, train=False, axis=None, keys=None, mixing=0.0):
        ws = self.styles(z, label, keys=keys, mixing=mixing)
        if train and self.is_mutable_collection("averages") and not self.is_initializing():
            self.average.value += 0.5 * (z.mean() - self.average.value)
        return self.synthesise(ws, keys)

    def styles(self, z, label=None, *, keys=None, mixing=0.0):
        return jnp.stack([z, z + mixing], 1)  # (b, latent) -> (b, 2, latent)

    def synthesise(self, ws, keys=None):
        pixel = self.slope * (3 * ws[:, 0, 0] + 4 * ws[:, 1, 0])
        return pixel[:, None, None, None]  # (b,) -> (b, 1, 1, 1)


class Slope(nn.Module):
    """Judge by the pixel times a weight, 2 at first."""

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        return x[:, 0, 0, 0] * self.param("slope", nn.initializers.constant(2.0), ())


def line(**options: Any) -> Task:
    tx = optax.sgd(0.01)
    return stylegan2(Line(), Slope(), tx, tx, latent=LATENT, **options)


def evaluate(task: Task, name: str) -> Any:
    """Return what a phase says of the first weights, and the gradient of the sum of its losses."""
    [phase] = [p for p in task.phases if p.name == name]
    params, stats = task.init(stream(0, "init"), PIXELS)
    if "path" in stats["generator"]:
        stats["generator"]["path"]["length"] = jnp.float32(0.7)

    def total(params):
        out = phase.loss(params, stats, PIXELS, KEYS, Mode(train=True))
        return out.loss.sum(), out

    grads, out = jax.jit(jax.grad(total, has_aux=True))(params)
    return out, {name: float(of["slope"]) for name, of in grads.items()}


# Phases


def test_regularisers_are_lazy_phases_that_share_an_optimiser():
    txs = optax.sgd(0.1), optax.sgd(0.2)
    task = stylegan2(Generator(8), Discriminator(), *txs, latent=512, decay=0.9)
    assert [(p.name, p.trains, p.every, p.optimiser) for p in task.phases] == [
        ("discriminator", ("discriminator",), 1, None),
        ("r1", ("discriminator",), 16, "discriminator"),
        ("generator", ("generator",), 1, None),
        ("path_length", ("generator",), 4, "generator"),
    ]
    assert [p.tx for p in task.phases] == [txs[1], txs[1], txs[0], txs[0]]
    assert task.average == {"generator": 0.9}


def test_a_regulariser_of_no_weight_is_no_phase():
    task = line(r1=0.0, path_length=0.0)
    assert [p.name for p in task.phases] == ["discriminator", "generator"]
    assert set(task.init(stream(0, "init"), PIXELS)[1]["generator"]) == {"averages"}
    assert task.average == {}


@pytest.mark.parametrize("name", ["discriminator", "r1", "generator", "path_length"])
def test_a_phase_changes_its_own_network_alone(name):
    task = line(r1_every=2, path_every=2)
    [phase] = [p for p in task.phases if p.name == name]
    alone = task._replace(phases=(phase._replace(every=1, optimiser=None),))
    before = init(alone, stream(0, "init"), PIXELS)
    after, _ = jax.jit(make_step(alone, seed=0))(before, PIXELS)
    assert {n for n in before.params if after.params[n] != before.params[n]} == set(phase.trains)
    stats = [s.stats["generator"] for s in (before, after)]
    changed = {n for n in stats[0] if jax.tree.leaves(stats[0][n]) != jax.tree.leaves(stats[1][n])}
    assert changed == {"generator": {"averages"}, "path_length": {"path"}}.get(name, set())


# The losses


def drawn(keys: Any) -> np.ndarray:
    return np.asarray(normal(fold(keys, 0), (LATENT,)))[:, 0]


@pytest.mark.parametrize("mixing", [0.0, 0.25])
def test_the_game_is_of_mixed_styles_in_training(mixing):
    out, _ = evaluate(line(mixing=mixing), "generator")
    first = drawn(fold(KEYS, 0))  # A game gives the generator keys of its own.
    pixel = -1.5 * (3 * first + 4 * (first + mixing))
    np.testing.assert_allclose(out.loss, np.log1p(np.exp(-2 * pixel)), rtol=1e-4)
    hinged, _ = evaluate(line(mixing=mixing, losses=HINGE), "generator")
    np.testing.assert_allclose(hinged.loss, -2 * pixel, rtol=1e-5)


def test_the_judge_sees_augmented_images():
    out, _ = evaluate(line(augment=lambda x, keys: x + 10), "discriminator")
    expected = 2 * (np.asarray(PIXELS["image"]).reshape(B) + 10)
    np.testing.assert_allclose(out.metrics["real"], expected, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 16])
def test_r1_weighs_gamma(every):
    out, _ = evaluate(line(r1=3.0, r1_every=every), "r1" if every > 1 else "discriminator")
    np.testing.assert_allclose(out.metrics["r1"], 0.5 * 2**2)
    plain = 0 if every > 1 else evaluate(line(r1=0.0), "discriminator")[0].loss
    np.testing.assert_allclose(out.loss - plain, every * 3.0 * 2, rtol=1e-5)


@pytest.mark.parametrize(("weight", "every"), [(2.0, 4), (0.5, 1)])
def test_path_lengths_are_held_to_their_mean(weight, every):
    out, grads = evaluate(line(path_length=weight, path_every=every), "path_length")
    y = np.asarray(normal(fold(KEYS, 3), (1, 1, 1))).reshape(B)
    length = 1.5 * abs(y) * np.sqrt((3**2 + 4**2) / 2)  # a root of a mean over layers
    np.testing.assert_allclose(out.metrics["length"], length, rtol=1e-5)
    np.testing.assert_allclose(out.loss, every * weight * (length - 0.7) ** 2, rtol=1e-4)
    np.testing.assert_array_equal(out.weight, 1)
    # It is the mean from before the step, and no gradient passes to it.
    expected = every * weight * np.sum(2 * (length - 0.7) * length / -1.5)
    np.testing.assert_allclose(grads["generator"], expected, rtol=1e-4)
    assert grads["discriminator"] == 0
    kept = out.stats["generator"]
    np.testing.assert_allclose(kept["path"]["length"], 0.99 * 0.7 + 0.01 * length.mean(), rtol=1e-5)
    assert kept["averages"] == {"w": 0}


def test_six_steps():
    game, lazy = lazy_adam(0.01, 0.0, 0.99, 2), {"r1_every": 2, "path_every": 3}
    task = stylegan2(Line(), Slope(), game, game, latent=LATENT, **lazy, decay=0.9)
    state, step = init(task, stream(0, "init"), PIXELS), jax.jit(make_step(task, seed=0))
    mean = 0.0
    for i in range(6):
        state, metrics = step(state, PIXELS)
        length = metrics["path_length/length"]
        assert length.weight == (B if i % 3 == 2 else 0)
        if length.weight:
            mean += 0.01 * (float(length.total) / B - mean)
    # Beside the steps of the game, a regulariser's few are of its network's optimiser.
    counts = {name: int(optax.tree.get(opt, "count")) for name, opt in state.opt.items()}
    assert counts == {"generator": 6 + 2, "discriminator": 6 + 3}
    kept = state.stats["generator"]
    np.testing.assert_allclose(kept["path"]["length"], mean, rtol=1e-5)
    # What is kept beside the weights is averaged with them.
    stats = averaged(state)[1]["generator"]
    assert 0 < stats["path"]["length"] < mean
    assert 0 != stats["averages"]["w"] != kept["averages"]["w"] != 0


# A real pair


SMALL: Any = {"width": 32, "max_width": 6, "mapping_layers": 1, "classes": 3}
IMAGES = {
    "image": np.random.default_rng(0).uniform(-1, 1, (B, 8, 8, 3)).astype(np.float32),
    "label": np.int32([0, 2, 1, 2]),
}


def real(**options: Any) -> Task:
    return stylegan2(
        Generator(8, latent=LATENT, **SMALL),
        Discriminator(group=2, **SMALL),
        lazy_adam(0.002, 0.0, 0.99, 3),
        lazy_adam(0.002, 0.0, 0.99, 2),
        **{"latent": LATENT, "classes": 3, **options},
    )


def test_a_step_of_a_real_pair_keeps_its_state_as_it_was():
    task = real(decay=0.9)
    state = jax.eval_shape(lambda key: init(task, key, IMAGES), stream(0, "init"))
    assert set(state.opt) == {"discriminator", "generator"}
    assert (
        set(state.stats["generator"])
        == {"averages", "path"}
        == set(state.ema["generator"]["stats"])
    )
    after, metrics = jax.eval_shape(make_step(task, seed=0), state, IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {"r1/r1", "path_length/length"} < set(metrics)


@functools.cache
def trained() -> Any:
    """As if it were trained: noise and biases, 0 at first, and w̄ are something."""
    params, stats = jax.jit(real().init)(stream(0, "init"), IMAGES)
    leaves, treedef = jax.tree.flatten((params, stats))
    rng = np.random.default_rng(1)
    shaken = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(treedef, shaken)


sample = jax.jit(real().sample, static_argnames="noise")
Z = np.random.default_rng(2).normal(size=(B, LATENT)).astype(np.float32)
ASKED = {"z": Z, "label": IMAGES["label"]}


def images(cond: Any, keys: Any = KEYS, **options: Any) -> np.ndarray:
    return np.asarray(sample(*trained(), keys, cond, **options))


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return abs(a - b).max((1, 2, 3)) > 1e-3


def test_without_noise_an_image_is_its_latents_and_labels():
    still = images(ASKED, noise=False)
    assert still.shape == (B, 8, 8, 3) and abs(still).max() == 1  # of what is unbounded
    np.testing.assert_array_equal(images(ASKED, KEYS[::-1], noise=False), still)
    label = np.int32([0, 0, 1, 0])
    other = images({"z": Z, "label": label}, noise=False)
    np.testing.assert_array_equal(apart(other, still), label != IMAGES["label"])
    z = np.where(np.arange(B)[:, None] == 1, -Z, Z)
    other = images({"z": z, "label": IMAGES["label"]}, noise=False)
    np.testing.assert_array_equal(apart(other, still), np.arange(B) == 1)


def test_noise_is_drawn_from_the_keys():
    noisy = images(ASKED)
    assert apart(noisy, images(ASKED, noise=False)).all()
    assert apart(noisy, images(ASKED, KEYS[::-1])).all()
    np.testing.assert_array_equal(images(ASKED), noisy)


def test_what_is_not_asked_for_is_drawn_from_the_keys():
    cond = {"z": normal(fold(KEYS, 0), (LATENT,)), "label": randint(fold(KEYS, 1), 0, 3)}
    np.testing.assert_allclose(images({}), images(cond), atol=1e-6)


def test_truncation_leads_to_the_average_image():
    average = images(ASKED, truncation=0.0, noise=False)
    assert not apart(average, average[:1]).any()
    far, near = (
        abs(images(ASKED, truncation=truncation, noise=False) - average).mean()
        for truncation in (1.0, 0.1)
    )
    assert 0 < near < 0.5 * far


def test_a_label_is_refused_without_classes():
    task = line()
    params, stats = task.init(stream(0, "init"), PIXELS)
    with pytest.raises(ValueError, match="this model is unconditional"):
        task.sample(params, stats, KEYS, {"label": IMAGES["label"]})


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r1": -1.0}, "r1=-1.0 must be at least 0"),
        ({"path_length": float("nan")}, "path_length=nan must be at least 0"),
        ({"r1_every": 0}, "r1_every=0 must be at least 1"),
        ({"path_every": 0}, "path_every=0 must be at least 1"),
        ({"mixing": 1.5}, r"mixing=1.5 must be in \[0, 1\]"),
    ],
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        line(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8, 3), "group=2 must divide the batch a discriminator sees, 3"),
        ((4, 16, 16, 3), r"makes images of \(8, 8, 3\); the data's are \(16, 16, 3\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(shape, message):
    batch = {"image": jnp.zeros(shape), "label": jnp.zeros(shape[0], jnp.int32)}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(real().init, stream(0, "init"), batch)


# The optimiser


def test_lazy_adam_goes_as_far_in_one_step_more():
    c = 4 / 5
    lr, b1, b2 = 0.1 * c, 0.5**c, 0.9**c
    tx = lazy_adam(0.1, 0.5, 0.9, 4)
    w, m, v = jnp.float32(1.0), 0.0, 0.0
    state = tx.init(w)
    for t, g in enumerate((3.0, -1.0, 0.5), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        expected = -lr * (m / (1 - b1**t)) / np.sqrt(v / (1 - b2**t))
        update, state = tx.update(jnp.float32(g), state, w)
        np.testing.assert_allclose(update, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        lazy_adam(0.1, 0.5, 0.9, 0)
