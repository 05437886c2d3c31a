"""The game, mostly between lines: every loss, gradient and statistic then has a closed form."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, randint, stream, uniform
from aigc_jax.core.types import Mean, Mode, Out
from aigc_jax.functional.adversarial import (
    NON_SATURATING,
    RELATIVISTIC,
    WASSERSTEIN,
    gradient_penalty,
    r1,
    r2,
)
from aigc_jax.models import dcgan, mlp_gan
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.tasks.gan import Fake, Penalty, adversarial_phases, gan, half_life
from aigc_jax.train.step import init, make_step

B, LATENT = 4, 3
SEED = 7
KEYS = example_keys(stream(0, "test"), jnp.arange(B))
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.uniform(-1, 1, (B, 1, 1, LATENT)).astype(np.float32),
    "label": np.array([2, 0, 1, 2], np.int32),
}
W = np.array([0.5, -1.0, 2.0], np.float32)
TRAIN = Mode(train=True)


class Stretch(nn.Module):
    """Paint z, stretched; what has been seen goes into statistics."""

    classes: int = 0

    @nn.compact
    def __call__(self, z, label=None, *, train=False, axis=None):
        assert (label is not None) == (self.classes > 0)
        z = z * self.param("scale", lambda key: jnp.array([1.0, 2.0, 3.0]))
        z = z if label is None else z + 10.0 * label[:, None]
        remember(self, z, train)
        return z[:, None, None]  # (b, latent) -> (b, 1, 1, latent)


class Line(nn.Module):
    """Judge by a line."""

    classes: int = 0

    @nn.compact
    def __call__(self, x, label=None, *, train=False, axis=None):
        assert (label is not None) == (self.classes > 0)
        x = x[:, 0, 0]  # (b, 1, 1, c) -> (b, c)
        remember(self, x, train)
        value = x @ self.param("w", lambda key: jnp.asarray(W))
        return value if label is None else value * label


def remember(module, x, train):
    """Keep a running mean, in no collection of BatchNorm's, so that penalties are allowed."""
    mean = module.variable("seen", "mean", jnp.zeros, x.shape[-1])
    if train and not module.is_initializing():
        mean.value = 0.9 * mean.value + 0.1 * x.mean(0)


def make(losses=WASSERSTEIN, classes=0, lr=(0.1, 0.01), **options: Any) -> Any:
    txs = map(optax.sgd, lr)
    return gan(
        Stretch(classes), Line(classes), losses, *txs, latent=LATENT, classes=classes, **options
    )


def begin(task: Any, batch: Any = BATCH) -> Any:
    return init(task, stream(SEED, "init"), batch)


def evaluate(task: Any, name: str, mode: Mode = TRAIN) -> Out:
    params, stats = task.init(stream(0, "init"), BATCH)
    (phase,) = (phase for phase in task.phases if phase.name == name)
    return phase.loss(params, stats, BATCH, KEYS, mode)


def painted(keys: Any = KEYS) -> np.ndarray:
    """What the generator paints under the keys of a phase, (b, latent)."""
    return np.asarray(normal(fold(fold(keys, 0), 0), (LATENT,))) * [1, 2, 3]


REAL, FAKE = BATCH["image"][:, 0, 0], painted()


# Phases


def described(task: Any) -> list:
    return [(p.name, p.trains, p.every, p.start, p.optimiser) for p in task.phases]


def test_phases_are_the_two_sides_and_lazy_penalties():
    d, g = ("discriminator",), ("generator",)
    assert described(make()) == [
        ("discriminator", d, 1, 0, None),
        ("generator", g, 1, 0, None),
    ]
    penalties = Penalty(r1, 1.0, 16), Penalty(gradient_penalty, 10.0), Penalty(r2, 1.0, 4)
    assert described(make(n_critic=5, penalties=penalties)) == [
        ("discriminator", d, 1, 0, None),
        ("r1", d, 16, 0, "discriminator"),
        ("r2", d, 4, 0, "discriminator"),
        ("generator", g, 5, 0, None),
    ]
    assert described(make(generator_steps=3, n_critic=2)) == [
        ("discriminator", d, 1, 0, None),
        ("generator", g, 2, 0, None),
        ("generator_2", g, 2, 0, "generator"),
        ("generator_3", g, 2, 0, "generator"),
    ]
    assert described(make(simultaneous=True)) == [("game", d + g, 1, 0, None)]


def test_weights_are_averaged_if_asked():
    assert make().average == {}
    assert make(decay=0.5).average == {"generator": 0.5}


@pytest.mark.parametrize("losses", [NON_SATURATING, WASSERSTEIN, RELATIVISTIC])
def test_losses_are_of_the_logits_of_real_and_generated(losses):
    task = make(losses)
    real, fake = REAL @ W, FAKE @ W
    out = evaluate(task, "discriminator")
    np.testing.assert_allclose(out.loss, losses.discriminator(real, fake), rtol=1e-4, atol=1e-5)
    assert set(out.metrics) == {"real", "fake"}
    np.testing.assert_allclose(out.metrics["real"], real, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["fake"], fake, rtol=1e-4, atol=1e-5)
    out = evaluate(task, "generator")
    np.testing.assert_allclose(out.loss, losses.generator(real, fake), rtol=1e-4, atol=1e-5)
    assert out.metrics == {} and out.weight.tolist() == [1] * B


def test_logits_of_patches_are_averaged():
    task = gan(
        dcgan.Generator((4,), 1),
        PatchGAN((4,), norm="none"),
        NON_SATURATING,
        optax.sgd(0.1),
        optax.sgd(0.1),
        latent=LATENT,
    )
    batch = {"image": jnp.asarray(RNG.uniform(-1, 1, (B, 8, 8, 1)), jnp.float32)}
    params, stats = task.init(stream(0, "init"), batch)
    for phase in task.phases:
        out = jax.eval_shape(
            lambda *args, phase=phase: phase.loss(*args, TRAIN), params, stats, batch, KEYS
        )
        assert out.loss.shape == (B,) and {m.shape for m in out.metrics.values()} <= {(B,)}


def test_statistics_are_of_real_then_generated_examples():
    task = make()
    out = evaluate(task, "discriminator")
    assert set(out.stats) == {"discriminator"}
    expected = 0.9 * (0.1 * REAL.mean(0)) + 0.1 * FAKE.mean(0)
    np.testing.assert_allclose(out.stats["discriminator"]["seen"]["mean"], expected, rtol=1e-4)
    out = evaluate(task, "generator")
    assert set(out.stats) == {"generator"}
    np.testing.assert_allclose(
        out.stats["generator"]["seen"]["mean"], 0.1 * FAKE.mean(0), rtol=1e-4
    )
    out = evaluate(make(penalties=(Penalty(r1, 1.0, 2),)), "r1")
    assert out.stats == {}  # penalties leave none


BATCH_NORM = gan(
    dcgan.Generator((4,), 1),
    PatchGAN((4, 4)),
    NON_SATURATING,
    optax.sgd(0.1),
    optax.sgd(0.1),
    latent=LATENT,
    n_critic=2,
)
IMAGES = {"image": RNG.uniform(-1, 1, (B, 8, 8, 1)).astype(np.float32)}


def test_each_side_trains_itself_alone_and_the_generator_every_n_critic_steps():
    step, state = jax.jit(make_step(BATCH_NORM, seed=SEED)), begin(BATCH_NORM, IMAGES)
    for i in range(4):
        before, (state, metrics) = state, step(state, IMAGES)
        of = lambda state, n: jax.tree.leaves((state.params[n], state.stats[n]))
        moved = {
            n: [bool((a != b).any()) for a, b in zip(of(before, n), of(state, n), strict=True)]
            for n in state.params
        }
        assert all(moved["discriminator"])
        # It painted for the discriminator meanwhile, in training: that counts for nothing.
        assert all(moved["generator"]) if i % 2 else not any(moved["generator"])
        assert metrics["generator/loss"].weight == (B if i % 2 else 0)
        assert metrics["discriminator/loss"].weight == B


def test_a_second_step_of_the_generator_goes_on_with_the_moments_of_the_first():
    lr, beta = 0.1, 0.5
    task = gan(
        Stretch(),
        Line(),
        WASSERSTEIN,
        optax.sgd(lr, beta),
        optax.sgd(0.0),
        latent=LATENT,
        generator_steps=2,
    )
    step, state = jax.jit(make_step(task, seed=SEED)), begin(task)
    assert set(state.opt) == {"discriminator", "generator"}
    scale, momentum, seen = np.array([1.0, 2.0, 3.0]), 0, 0
    for i in range(2):
        state, _ = step(state, BATCH)
        for phase in ("generator", "generator_2"):
            keys = example_keys(jax.random.fold_in(stream(SEED, phase), i), jnp.arange(B))
            z = painted(keys).mean(0) / [1, 2, 3]
            seen = 0.9 * seen + 0.1 * z * scale
            momentum = beta * momentum - z * W
            scale = scale - lr * momentum
        np.testing.assert_allclose(state.params["generator"]["scale"], scale, rtol=1e-4)
        np.testing.assert_allclose(state.stats["generator"]["seen"]["mean"], seen, rtol=1e-4)


# Penalties


def test_penalties_are_added_by_their_weights():
    weights = {r1: 3.0, r2: 0.5, gradient_penalty: 10.0}
    task = make(penalties=tuple(Penalty(*p) for p in weights.items()))
    out = evaluate(task, "discriminator")
    square = np.square(W).sum()
    paid = {"r1": square / 2, "r2": square / 2, "gradient_penalty": (np.sqrt(square) - 1) ** 2}
    for name, value in paid.items():
        np.testing.assert_allclose(out.metrics[name], value, rtol=1e-5)
    plain = evaluate(make(), "discriminator").loss
    expected = plain + sum(weight * paid[p.__name__] for p, weight in weights.items())
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        evaluate(task, "generator").loss, evaluate(make(), "generator").loss, rtol=1e-6
    )


def test_a_lazy_penalty_weighs_its_interval_and_shares_the_moments():
    every, gamma, lr, beta = 3, 0.25, 0.1, 0.5
    txs = optax.sgd(0.0), optax.sgd(lr, beta)
    task = gan(
        Stretch(),
        Line(),
        WASSERSTEIN,
        *txs,
        latent=LATENT,
        penalties=(Penalty(r1, gamma, every),),
    )
    step, state = jax.jit(make_step(task, seed=SEED)), begin(task)
    assert set(state.opt) == {"discriminator", "generator"}
    w, momentum = np.float64(W), 0
    for i in range(2 * every):
        state, metrics = step(state, BATCH)
        keys = example_keys(jax.random.fold_in(stream(SEED, "discriminator"), i), jnp.arange(B))
        momentum = beta * momentum + painted(keys).mean(0) - REAL.mean(0)
        w = w - lr * momentum
        due = i % every == every - 1
        assert metrics["r1/loss"].weight == metrics["r1/r1"].weight == (B if due else 0)
        if due:
            square = np.square(w).sum()
            np.testing.assert_allclose(metrics["r1/r1"].total, B * square / 2, rtol=1e-4)
            np.testing.assert_allclose(
                metrics["r1/loss"].total, B * every * gamma * square / 2, rtol=1e-4
            )
            momentum = beta * momentum + every * gamma * w
            w = w - lr * momentum
        np.testing.assert_allclose(state.params["discriminator"]["w"], w, rtol=1e-4)


@pytest.mark.parametrize("penalty", [Penalty(r1, 1.0), Penalty(gradient_penalty, 10.0, 4)])
def test_the_gradients_of_a_critic_with_batch_normalisation_are_not_penalised(penalty):
    make = lambda critic: gan(
        dcgan.Generator((4, 4), 1),
        critic,
        WASSERSTEIN,
        optax.sgd(0.1),
        optax.sgd(0.1),
        latent=LATENT,
        penalties=(penalty,),
    )
    batch = {"image": jnp.zeros((B, 16, 16, 1))}
    name = penalty.function.__name__
    message = (
        f"^{name} penalises the gradient of each example's logit, and BatchNorm makes a logit "
        "depend on the whole batch; use a discriminator without it, norm='none'"
    )
    for critic in (dcgan.Discriminator((4, 4)), PatchGAN((4, 4))):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make(critic).init, KEYS[0], batch)
        jax.eval_shape(make(critic.clone(norm="none")).init, KEYS[0], batch)


# Augmentation


def shift(x, keys):
    return x + uniform(keys)[:, None, None, None]


def test_the_discriminator_sees_everything_augmented_alike():
    task = make(augment=shift, penalties=(Penalty(squared_logit, 1.0),))
    by = np.asarray(uniform(fold(KEYS, 1)))[:, None] * W.sum()
    real, fake = (x @ W + by[:, 0] for x in (REAL, FAKE))
    out = evaluate(task, "discriminator")
    np.testing.assert_allclose(out.metrics["real"], real, rtol=1e-4)
    np.testing.assert_allclose(out.metrics["fake"], fake, rtol=1e-4)
    np.testing.assert_allclose(out.metrics["squared_logit"], real**2, rtol=1e-4)
    np.testing.assert_allclose(evaluate(task, "generator").loss, -fake, rtol=1e-4)


def squared_logit(critic, real, fake, keys):
    return critic(real) ** 2


def test_the_generator_learns_through_the_augmentation():
    def slope(**options):
        (_, phase), (params, stats) = make(**options).phases, make().init(KEYS[0], BATCH)

        def loss(generator):
            return phase.loss({**params, "generator": generator}, stats, BATCH, KEYS, TRAIN).loss

        return jax.jacobian(loss)(params["generator"])["scale"]

    z = FAKE / [1, 2, 3]
    np.testing.assert_allclose(slope(), -W * z, rtol=1e-4)
    np.testing.assert_allclose(slope(augment=lambda x, keys: 2 * x), -2 * W * z, rtol=1e-4)


# Both at once


def test_a_simultaneous_game_descends_from_one_pass():
    networks = dcgan.Generator((4,), 1), PatchGAN((4, 4))
    rates = {"generator": 0.3, "discriminator": 0.05}
    make = lambda **options: gan(
        *networks, NON_SATURATING, *map(optax.sgd, rates.values()), latent=LATENT, **options
    )
    game, apart = make(simultaneous=True), make()
    start = begin(game, IMAGES)
    state, metrics = jax.jit(make_step(game, seed=SEED))(start, IMAGES)
    keys = example_keys(jax.random.fold_in(stream(SEED, "game"), 0), jnp.arange(B))
    for phase in apart.phases:

        def descend(network, name=phase.name, phase=phase):
            def loss(network):
                params = {**start.params, name: network}
                out = phase.loss(params, start.stats, IMAGES, keys, TRAIN)
                return out.loss.mean(), out.stats[name]

            return jax.value_and_grad(loss, has_aux=True)(network)

        name = phase.name
        (value, stats), slope = jax.jit(descend)(start.params[name])
        expected = jax.tree.map(lambda p, g, n=name: p - rates[n] * g, start.params[name], slope)
        chex.assert_trees_all_close(state.params[name], expected, rtol=1e-4, atol=1e-6)
        chex.assert_trees_all_close(state.stats[name], stats, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics[f"game/{name}"].total / B, value, rtol=1e-5)
    total = metrics["game/generator"].total + metrics["game/discriminator"].total
    np.testing.assert_allclose(metrics["game/loss"].total, total, rtol=1e-5)
    assert {"game/real", "game/fake"} < set(metrics)


def test_a_simultaneous_game_pays_its_penalties():
    penalties = (Penalty(r1, 3.0),)
    apart, game = (make(penalties=penalties, simultaneous=s) for s in (False, True))
    out = evaluate(game, "game")
    expected = evaluate(apart, "discriminator").loss
    np.testing.assert_allclose(out.metrics["discriminator"], expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["r1"], np.square(W).sum() / 2, rtol=1e-5)


# What other families bring


def test_phases_of_another_generator():
    def generate(params, stats, batch, keys, mode):
        image = batch["image"] + params["painter"]
        return Fake(image, {}, jnp.full(B, 5.0), {"distance": jnp.full(B, 2.0)})

    def discriminate(params, stats, x, batch, mode):
        return x[:, 0, 0] @ params, {}

    options = {"generator": "painter", "weight": 0.1, "start": 3}
    phases = adversarial_phases(
        generate,
        discriminate,
        WASSERSTEIN,
        optax.sgd(1.0),
        optax.sgd(1.0),
        penalties=(Penalty(r1, 1.0, 2),),
        **options,
    )
    assert [(p.name, p.trains, p.start) for p in phases] == [
        ("discriminator", ("discriminator",), 3),
        ("r1", ("discriminator",), 3),
        ("painter", ("painter",), 0),
    ]
    params = {"painter": jnp.ones(LATENT), "discriminator": jnp.asarray(W)}
    out = phases[-1].loss(params, {"painter": {}, "discriminator": {}}, BATCH, KEYS, TRAIN)
    adversary = -(REAL + 1) @ W
    np.testing.assert_allclose(out.metrics["adversary"], adversary, rtol=1e-5)
    np.testing.assert_allclose(out.loss, 5 + 0.1 * adversary, rtol=1e-5)
    assert out.metrics["distance"].tolist() == [2.0] * B and set(out.stats) == {"painter"}


# Sampling


def drawn(task: Any, cond: Any = {}, keys: Any = KEYS, **options: Any) -> np.ndarray:
    params, stats = task.init(stream(0, "init"), BATCH)
    images = task.sample(params, stats, keys, cond, **options)
    assert images.shape == (len(keys), 1, 1, LATENT)
    return np.asarray(images)[:, 0, 0]


def test_samples_are_of_latents_by_key_or_chosen():
    task, z = make(), np.asarray(normal(fold(KEYS, 0), (LATENT,)))
    np.testing.assert_allclose(drawn(task), z * [1, 2, 3], rtol=1e-5)
    np.testing.assert_allclose(drawn(task, keys=KEYS[2:]), drawn(task)[2:], rtol=1e-5)
    np.testing.assert_allclose(drawn(task, {"z": REAL}), REAL * [1, 2, 3], rtol=1e-5)


def test_latents_are_of_the_prior():
    task = make(prior=uniform)
    z = np.asarray(uniform(fold(KEYS, 0), (LATENT,)))
    np.testing.assert_allclose(drawn(task), z * [1, 2, 3], rtol=1e-5)
    z = np.asarray(uniform(fold(fold(KEYS, 0), 0), (LATENT,)))
    out = evaluate(task, "generator")
    np.testing.assert_allclose(out.loss, -(z * [1, 2, 3]) @ W, rtol=1e-4, atol=1e-5)


def test_truncation_draws_towards_the_mean_latent():
    task = make()
    np.testing.assert_allclose(drawn(task, truncation=0.5), 0.5 * drawn(task), rtol=1e-5)
    chosen = drawn(task, {"z": REAL}, truncation=0.5)
    np.testing.assert_allclose(chosen, 0.5 * REAL * [1, 2, 3], rtol=1e-5)
    assert (drawn(task, truncation=0.0) == 0).all()  # the image of z = 0, for all


def test_samples_have_the_label_asked_for_or_any():
    task, label = make(classes=3), BATCH["label"]
    z = np.asarray(normal(fold(KEYS, 0), (LATENT,))) * [1, 2, 3]
    expected = z + 10 * label[:, None]
    np.testing.assert_allclose(drawn(task, {"label": label}), expected, rtol=1e-4)
    many = example_keys(stream(0, "many"), jnp.arange(300))
    found = np.round(drawn(task, keys=many, truncation=0.0)[:, 0] / 10).astype(int)
    np.testing.assert_array_equal(found, randint(fold(many, 1), 0, 3))
    assert np.bincount(found).min() > 60 and set(found) == {0, 1, 2}


def test_labels_reach_both_networks():
    out = evaluate(make(classes=3), "discriminator")
    label = BATCH["label"]
    np.testing.assert_allclose(out.metrics["real"], REAL @ W * label, rtol=1e-5, atol=1e-6)
    fake = (FAKE + 10 * label[:, None]) @ W * label
    np.testing.assert_allclose(out.metrics["fake"], fake, rtol=1e-4, atol=1e-5)


def test_a_label_is_refused_where_there_are_no_classes():
    with pytest.raises(ValueError, match="a label was given, but this model is unconditional"):
        drawn(make(), {"label": BATCH["label"]})


def test_samples_use_the_statistics_and_leave_them():
    params, stats = BATCH_NORM.init(stream(0, "init"), IMAGES)
    of = {"params": params["generator"], **stats["generator"]}
    z = np.asarray(normal(fold(KEYS, 0), (LATENT,)))
    expected = dcgan.Generator((4,), 1).apply(of, z)
    images = BATCH_NORM.sample(params, stats, KEYS, {})
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_critic": 0}, "^n_critic=0 must be at least 1$"),
        ({"generator_steps": 0}, "^generator_steps=0 must be at least 1$"),
        ({"simultaneous": True, "generator_steps": 2}, "^simultaneous=True needs .*steps=1"),
        ({"penalties": (Penalty(r1, -1.0),)}, "weight=-1.0.* must be at least 0"),
        ({"penalties": (Penalty(r1, 1.0, 0),)}, "every=0 must be at least 1"),
        ({"simultaneous": True, "n_critic": 2}, "^simultaneous=True needs n_critic=1"),
        ({"simultaneous": True, "penalties": (Penalty(r1, 1.0, 2),)}, "penalties of every=1$"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_generator_must_paint_the_datas_shape():
    task = gan(
        dcgan.Generator((4,), 3),
        dcgan.Discriminator((4,)),
        WASSERSTEIN,
        optax.sgd(0.1),
        optax.sgd(0.1),
        latent=LATENT,
    )
    message = r"^the generator makes images of \(8, 8, 3\); the data's are \(8, 8, 1\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(task.init, KEYS[0], IMAGES)


# Half-lives


@pytest.mark.parametrize(("images", "batch"), [(500, 50), (10_000, 64), (32, 64)])
def test_after_a_half_life_of_images_half_is_left(images, batch):
    assert half_life(images, batch) ** (images / batch) == pytest.approx(0.5)


@pytest.mark.parametrize(("images", "batch"), [(0, 64), (-1, 64), (1000, 0)])
def test_a_half_life_is_of_some_images(images, batch):
    with pytest.raises(ValueError, match=f"images={images} and batch={batch} must be above 0"):
        half_life(images, batch)


# Learning


def test_two_patterns_are_learned_by_heart():
    cross = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32) * 1.6 - 0.8
    patterns = np.stack([cross, -cross])[..., None]  # (2, 3, 3, 1)
    b = 16
    batch = {"image": jnp.asarray(patterns[np.arange(b) % 2])}
    task = gan(
        mlp_gan.Generator((3, 3, 1), (32,)),
        mlp_gan.Discriminator((32,)),
        RELATIVISTIC,
        optax.adam(3e-3, 0.5),
        optax.adam(1e-2, 0.5),
        latent=LATENT,
        penalties=(Penalty(r1, 1.0), Penalty(r2, 1.0)),
        decay=0.9,
    )
    state = jax.jit(lambda key: init(task, key, batch))(stream(SEED, "init"))
    step = jax.jit(make_step(task, seed=SEED))

    def look(state):
        """How far samples are from the nearest pattern, and how many are nearest to the first."""
        keys = example_keys(stream(1, "sample"), jnp.arange(64))
        params = {"generator": state.ema["generator"]["params"]}
        images = np.asarray(task.sample(params, state.stats, keys, {}))
        apart = np.sqrt(np.square(images[:, None] - patterns).mean((2, 3, 4)))
        return apart.min(1), (apart.argmin(1) == 0).mean()

    far = look(state)[0].mean()
    for _ in range(300):
        state, metrics = step(state, batch)
    near, share = look(state)

    assert metrics["discriminator/skipped"] == Mean(0, 1)
    # Some lie between: a continuous generator passes from one pattern to the other.
    assert near.mean() < 0.35 < 0.7 < far and np.median(near) < 0.2
    assert 0.2 < share < 0.8
