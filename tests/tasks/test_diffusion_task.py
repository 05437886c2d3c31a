"""The task, on networks that know the answer: every loss and sampler then has a closed form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax.core.keys import example_keys, fold, normal, randint, stream
from aigc_jax.core.types import Mode
from aigc_jax.functional import diffusion as f
from aigc_jax.functional.schedules import Schedule, cosine, from_betas, karras, linear
from aigc_jax.nn.embed import sinusoidal
from aigc_jax.tasks.diffusion import SOLVERS, SPACINGS, bits_per_dim, diffusion, predictor
from aigc_jax.train.step import averaged, init, make_step

SHAPE = (2, 3, 1)
IMAGE = np.linspace(-0.9, 0.9, 6, dtype=np.float32).reshape(SHAPE)
# One picture a class; the last stands for no class.
IMAGES = np.stack([IMAGE, -IMAGE, np.abs(IMAGE), np.zeros_like(IMAGE)])
SCHEDULE = linear()
TX = optax.sgd(0.1)


class Network(nn.Module):
    """`(xt, t, label) -> output` as given, with a weight so that there is something to train."""

    output: Any

    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        return self.output(xt, t, label) + self.param("bias", nn.initializers.zeros, ())


PARAMS = {"denoiser": {"bias": jnp.zeros(())}}


def perfect(kind: f.Kind, schedule: Schedule = SCHEDULE, images: Any = IMAGES) -> Network:
    """Know the picture of each class, and output what is right of it."""

    def output(xt, t, label):
        x0 = jnp.asarray(images)[jnp.zeros(len(xt), int) if label is None else label]
        alpha, sigma = (a[:, None, None, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        return f.target(kind, x0, (xt - alpha * x0) / sigma, alpha[:, 0, 0, 0], sigma[:, 0, 0, 0])

    return Network(output)


def says(value: Any, channels: int = 1) -> Network:
    """Output `value(t, label)`, the same at all pixels."""

    def output(xt, t, label):
        constant = jnp.asarray(value(t, label), jnp.float32).reshape(-1, 1, 1, 1)
        return jnp.broadcast_to(constant, (*xt.shape[:-1], channels))

    return Network(output)


def keys_of(n: int) -> jax.Array:
    return example_keys(stream(0, "test"), jnp.arange(n))


def loss(task: Any, batch: Any, keys: jax.Array, params: Any = PARAMS) -> np.ndarray:
    run = jax.jit(lambda batch, keys: task.phases[0].loss(params, {}, batch, keys, Mode(True)))
    out = run(batch, keys)
    assert (np.asarray(out.weight) == 1).all() and out.loss.dtype == jnp.float32
    return np.asarray(out.loss)


def copies(n: int, image: Any = IMAGE) -> dict[str, Any]:
    return {"image": jnp.broadcast_to(jnp.asarray(image), (n, *SHAPE))}


def drawn(n: int, schedule: Schedule = SCHEDULE) -> tuple[jax.Array, jax.Array]:
    """Draw the times and the noise that the loss draws from the same keys."""
    keys = keys_of(n)
    return randint(fold(keys, 0), 0, schedule.steps), normal(fold(keys, 1), SHAPE)


# Losses


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_loss_of_a_perfect_denoiser_is_zero(kind):
    task = diffusion(perfect(kind), SCHEDULE, TX, shape=SHAPE, kind=kind)
    # At t = 0 the noise is found by dividing by 0.01.
    assert loss(task, copies(64), keys_of(64)).max() < 1e-6
    wrong = diffusion(perfect(kind, images=-IMAGES), SCHEDULE, TX, shape=SHAPE, kind=kind)
    assert loss(wrong, copies(64), keys_of(64)).min() > 1e-6


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_loss_is_the_weighted_square_error(kind, gamma):
    task = diffusion(says(lambda t, _: t / 1000), SCHEDULE, TX, shape=SHAPE, kind=kind, gamma=gamma)
    value = loss(task, copies(16), keys_of(16))
    t, eps = (np.asarray(a, np.float64) for a in drawn(16))
    betas = np.linspace(1e-4, 0.02, 1000)
    signal = np.cumprod(1 - betas)[t.astype(int)]
    a, s = (np.sqrt(x)[:, None, None, None] for x in (signal, 1 - signal))
    target = {"eps": eps, "x0": IMAGE, "v": a * eps - s * IMAGE}[kind]
    error = np.square(t[:, None, None, None] / 1000 - target).mean((1, 2, 3))
    snr = signal / (1 - signal)
    clipped = np.minimum(snr, 5.0)
    weight = {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[kind]
    expected = error if gamma is None else error * weight
    np.testing.assert_allclose(value, expected, rtol=2e-4)


def test_learned_variance_adds_the_bound():
    image = np.round((IMAGE + 1) * 127.5) / 127.5 - 1  # of 8 bits
    right = perfect("eps", images=image[None])

    def values(mix):
        output = lambda xt, t, label: jnp.concatenate(
            [right.output(xt, t, label), jnp.full_like(xt, mix)], -1
        )
        task = diffusion(Network(output), SCHEDULE, TX, shape=SHAPE, learned_variance=True)
        return loss(task, copies(64, image), keys_of(64))

    t = np.asarray(drawn(64)[0])
    assert (t > 0).all()
    # Where the network is right, with the posterior's variance every divergence is 0.
    np.testing.assert_allclose(values(-1.0), 0, atol=1e-5)
    # With the larger one each is (log r - 1 + 1/r)/2 nats, r = β/β̃; the loss has λ·T = 1 of it.
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    r = (1 - signal[t]) / (1 - signal[t - 1])
    expected = (np.log(r) - 1 + 1 / r) / 2 / np.log(2)
    np.testing.assert_allclose(values(1.0), expected, rtol=0.02, atol=1e-6)


def test_times_are_uniform():
    schedule = from_betas(np.linspace(0.1, 0.5, 4))
    task = diffusion(says(lambda t, _: t), schedule, TX, shape=SHAPE, kind="x0")
    n = 4096
    squares = loss(task, copies(n, np.zeros(SHAPE)), keys_of(n))
    times = np.round(np.sqrt(squares)).astype(int)
    np.testing.assert_allclose(squares, times**2, atol=1e-5)
    assert set(times) == {0, 1, 2, 3}
    # Four standard errors.
    assert np.abs(np.bincount(times) / n - 1 / 4).max() < 4 * (3 / 16 / n) ** 0.5


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_labels_are_dropped_as_often_as_asked(drop):
    network = says(lambda t, label: label)
    task = diffusion(network, SCHEDULE, TX, shape=SHAPE, classes=3, kind="x0", drop_label=drop)
    n = 4096
    label = np.arange(n) % 3
    batch = {**copies(n, np.zeros(SHAPE)), "label": jnp.asarray(label)}
    seen = np.round(np.sqrt(loss(task, batch, keys_of(n)))).astype(int)
    kept = seen != 3
    assert (seen[kept] == label[kept]).all()
    assert abs((~kept).mean() - drop) <= 4 * (drop * (1 - drop) / n) ** 0.5


def test_label_is_dropped_by_default():
    network = says(lambda t, label: label == 3)
    task = diffusion(network, SCHEDULE, TX, shape=SHAPE, classes=3, kind="x0")
    batch = {**copies(4096, np.zeros(SHAPE)), "label": jnp.zeros(4096, int)}
    assert 0.08 < loss(task, batch, keys_of(4096)).mean() < 0.12


def test_loss_of_an_example_depends_on_its_own_key_alone():
    task = diffusion(says(lambda t, _: t), SCHEDULE, TX, shape=SHAPE)
    order = np.array([3, 1, 0, 2, 2])
    keys = keys_of(5)
    whole = loss(task, copies(5), keys)
    assert (loss(task, copies(5), keys[order]) == whole[order]).all()


def test_dropout_is_live_in_training_alone():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, xt, t, label=None, *, train=False):
            bias = self.param("bias", nn.initializers.ones, ())
            return nn.Dropout(0.5)(jnp.full_like(xt, bias), deterministic=not train)

    task = diffusion(Dropping(), SCHEDULE, TX, shape=SHAPE, kind="x0")
    batch, params = copies(64, np.zeros(SHAPE)), {"denoiser": {"bias": jnp.ones(())}}
    run = lambda train: task.phases[0].loss(params, {}, batch, keys_of(64), Mode(train)).loss
    # A pixel is 0 or 2, so its square 0 or 4.
    trained = np.asarray(run(True)) * 6 / 4
    np.testing.assert_allclose(trained, np.round(trained), atol=1e-5)
    assert 0.4 < trained.mean() / 6 < 0.6
    np.testing.assert_allclose(run(False), 1.0)


def test_task_is_of_one_network():
    task = diffusion(perfect("eps"), SCHEDULE, TX, shape=SHAPE, classes=3, decay=0.5)
    batch = {**copies(2), "label": jnp.zeros(2, int)}
    params, stats = task.init(stream(0, "init"), batch)
    assert set(params) == {"denoiser"} and stats == {}
    assert [(p.name, p.trains, p.tx) for p in task.phases] == [("denoiser", ("denoiser",), TX)]
    assert task.average == {"denoiser": 0.5}


# Samples


def draw(task: Any, n: int = 3, label: Any = None, params: Any = PARAMS, **options: Any) -> Any:
    cond = {} if label is None else {"label": jnp.asarray(label)}
    run = jax.jit(functools.partial(task.sample, **options))
    return np.asarray(run(params, {}, keys_of(n), cond))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_only_picture_there_is(solver):
    task = diffusion(perfect("eps"), SCHEDULE, TX, shape=SHAPE)
    samples = draw(task, solver=solver, steps=5, clip=None)
    assert samples.shape == (3, *SHAPE)
    np.testing.assert_allclose(samples, np.broadcast_to(IMAGE, samples.shape), atol=2e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_will_do(spacing):
    task = diffusion(perfect("v"), SCHEDULE, TX, shape=SHAPE, kind="v")
    samples = draw(task, spacing=spacing, steps=4)
    np.testing.assert_allclose(samples, np.broadcast_to(IMAGE, samples.shape), atol=2e-3)


def test_variance_exploding_schedules_will_do():
    schedule = karras()
    knowing = perfect("eps", schedule).output
    # The network meets inputs of about unit variance, and here undoes that.
    whole = lambda xt, t: xt * jnp.sqrt(1 + schedule.sigma(t) ** 2)[:, None, None, None]
    network = Network(lambda xt, t, label: knowing(whole(xt, t), t, label))
    task = diffusion(network, schedule, TX, shape=SHAPE)
    assert loss(task, copies(16), keys_of(16)).max() < 1e-6
    samples = draw(task, solver="heun", spacing="karras", steps=4)
    np.testing.assert_allclose(samples, np.broadcast_to(IMAGE, samples.shape), atol=2e-3)


def test_inputs_are_of_unit_variance_under_any_schedule():
    for schedule in (linear(), karras()):
        seen = Network(lambda xt, t, label: xt)
        task = diffusion(seen, schedule, TX, shape=SHAPE)
        keys = keys_of(16384)
        values = loss(task, copies(16384), keys)
        t = randint(fold(keys, 0), 0, schedule.steps)
        noise = schedule.sigma(t) * schedule.unit(t)  # the share in what the network meets
        # E (√(1 - noise²)·x0 + noise·ε - ε)²
        expected = (1 - noise**2) * np.mean(IMAGE**2) + (1 - noise) ** 2
        assert values.mean() == pytest.approx(float(expected.mean()), rel=0.05)
    with pytest.raises(ValueError, match=r"^kind='v' grows with the noise"):
        diffusion(seen, karras(), TX, shape=SHAPE, kind="v")


def test_bits_per_dim_are_the_bound_of_the_labelled_prediction():
    batch = {"image": jnp.asarray(IMAGES[:2]), "label": jnp.array([0, 1])}
    keys, options = keys_of(2), {"classes": 3, "kind": "x0"}
    network = perfect("x0")
    run = jax.jit(bits_per_dim(network, SCHEDULE, terms=10, **options))
    predict = predictor(network, SCHEDULE, PARAMS, {"label": batch["label"]}, **options)
    expected = f.variational_bound(predict, SCHEDULE, batch["image"], keys, terms=10)
    bits = run(PARAMS, {}, batch, keys)["bits_per_dim"]
    np.testing.assert_allclose(bits, expected, rtol=1e-4)
    wrong = run(PARAMS, {}, batch | {"label": jnp.array([1, 0])}, keys)["bits_per_dim"]
    assert (wrong > 10 * expected).all()


def test_solvers_and_spacings_are_all_there():
    assert set(SOLVERS) == {"ddpm", "ddim", "euler", "heun", "dpmpp_2m"}
    assert set(SPACINGS) == {"uniform", "trailing", "linspace", "quadratic", "karras"}


def test_options_reach_the_solver():
    # Of a network that finds nothing in the noise, a sample tells how it was made.
    task = diffusion(Network(lambda xt, t, label: 0.3 * xt), SCHEDULE, TX, shape=SHAPE, kind="x0")
    make = functools.partial(draw, task, steps=3)
    different = [
        make(),
        make(steps=4),
        make(eta=1.0),
        make(clip=0.05),
        make(spacing="uniform"),
        make(solver="ddpm", variance="large"),
        make(solver="heun", churn=1.0),
    ]
    assert len(np.unique(np.stack(different).reshape(len(different), -1), axis=0)) == len(different)
    assert np.abs(different[3]).max() < np.abs(different[0]).max()


def test_samples_are_clipped_unless_told_otherwise():
    task = diffusion(perfect("x0", images=3 * IMAGES), SCHEDULE, TX, shape=SHAPE, kind="x0")
    np.testing.assert_allclose(draw(task, steps=2)[0], np.clip(3 * IMAGE, -1, 1), atol=1e-5)
    np.testing.assert_allclose(draw(task, steps=2, clip=None)[0], 3 * IMAGE, atol=1e-5)


def conditional(**options: Any) -> Any:
    return diffusion(perfect("x0"), SCHEDULE, TX, shape=SHAPE, classes=3, kind="x0", **options)


def test_samples_are_of_the_label_asked_for():
    label = np.array([2, 0, 1])
    np.testing.assert_allclose(draw(conditional(), label=label, steps=2), IMAGES[label], atol=1e-5)
    # Without a label they are of none.
    network = says(lambda t, label: jnp.full_like(t, label is None))
    task = diffusion(network, SCHEDULE, TX, shape=SHAPE, classes=3, kind="x0")
    np.testing.assert_allclose(draw(task, steps=2), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_goes_on_from_the_unconditional_through_the_conditional(scale):
    label = np.array([2, 0, 1])
    samples = draw(conditional(), label=label, steps=2, guidance=scale, clip=None)
    # The picture of no class is 0.
    np.testing.assert_allclose(samples, scale * IMAGES[label], atol=1e-4)


def test_rescaled_guidance_has_the_conditional_contrast():
    label = np.array([2, 0, 1])
    samples = draw(conditional(), label=label, steps=2, guidance=2.5, rescale=1.0, clip=None)
    np.testing.assert_allclose(samples, IMAGES[label], atol=1e-4)


def test_learned_variance_is_sampled_with():
    def make(mix, **options):
        def output(xt, t, label):
            return jnp.concatenate([0.3 * xt, jnp.full_like(xt, mix)], -1)

        task = diffusion(
            Network(output), SCHEDULE, TX, shape=SHAPE, kind="x0", learned_variance=True
        )
        return draw(task, solver="ddpm", steps=3, **options)

    small, large = (make(0.0, variance=variance) for variance in ("small", "large"))
    np.testing.assert_allclose(make(-1.0), small, atol=1e-5)
    np.testing.assert_allclose(make(1.0), large, atol=1e-5)
    assert np.abs(small - large).max() > 0.01
    assert (make(0.5) == make(0.5, variance="learned")).all()


def test_predictor_serves_what_needs_a_bound():
    predict = predictor(perfect("v"), SCHEDULE, PARAMS, {}, kind="v")
    t, eps = drawn(4)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    xt = f.diffuse(copies(4)["image"], eps, alpha, sigma)
    prediction = predict(xt, t.astype(jnp.float32))
    np.testing.assert_allclose(prediction.x0, copies(4)["image"], atol=1e-4)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-3)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "epsilon"}, "kind='epsilon' must be one of 'eps', 'x0', 'v'"),
        ({"drop_label": 1.5}, r"drop_label=1.5 must lie in \[0, 1\]"),
        ({"drop_label": -0.1}, r"drop_label=-0.1 must lie in \[0, 1\]"),
        ({"learned_variance": True, "gamma": 5.0}, "gamma=5.0 cannot weight"),
    ],
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        diffusion(perfect("eps"), SCHEDULE, TX, shape=SHAPE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"solver": "dpm"},
            "solver='dpm' must be one of 'ddpm', 'ddim', 'euler', 'heun', 'dpmpp_2m'",
        ),
        (
            {"spacing": "even"},
            "spacing='even' must be one of 'uniform', 'trailing', 'linspace', 'quadratic', 'kar",
        ),
        ({"solver": "heun", "eta": 0.5}, "eta is not an option of solver='heun'"),
        ({"variance": "small"}, "variance is not an option of solver='ddim'"),
        ({"solver": "ddpm", "churn": 1.0}, "churn is not an option of solver='ddpm'"),
        ({"solver": "ddpm", "variance": "medium"}, "variance='medium' must be one of"),
        ({"solver": "ddpm", "variance": "learned"}, "variance='learned' needs a network"),
        ({"steps": 0}, "n=0 must be at least 1"),
        ({"steps": 2000}, "n=2000 must be at least 1 and at most 1000"),
        ({"eta": 2.0}, r"eta=2.0 must lie in \[0, 1\]"),
        ({"clip": -1.0}, "clip=-1.0 must be positive"),
        ({"guidance": 2.0}, "guidance=2.0 needs a label"),
        (
            {"label": [0, 0, 0], "guidance": 2.0, "rescale": 2.0},
            r"rescale=2.0 must lie in \[0, 1\]",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(conditional(), **options)


def test_a_label_is_refused_by_an_unconditional_task():
    task = diffusion(perfect("eps"), SCHEDULE, TX, shape=SHAPE)
    with pytest.raises(ValueError, match="a label was given, but this model is unconditional"):
        draw(task, label=[0, 0, 0])


def test_images_of_another_shape_are_refused():
    task = diffusion(perfect("eps"), SCHEDULE, TX, shape=SHAPE)
    with pytest.raises(ValueError, match=r"images are \(3, 3, 1\); .* shape=\(2, 3, 1\)"):
        task.phases[0].loss(PARAMS, {}, {"image": jnp.zeros((2, 3, 3, 1))}, keys_of(2), Mode(True))


# Training


class Perceptron(nn.Module):
    """A denoiser of pictures so small that they need no convolution."""

    @nn.compact
    def __call__(self, xt, t, label=None, *, train=False):
        label = jnp.full(len(xt), 2) if label is None else label
        flat = xt.reshape(len(xt), -1)
        x = jnp.concatenate([flat, sinusoidal(t, 16), jax.nn.one_hot(label, 3)], -1)
        for _ in range(2):
            x = nn.silu(nn.Dense(64)(x))
        return nn.Dense(flat.shape[-1])(x).reshape(xt.shape)


def test_two_pictures_are_learned_by_heart():
    pictures = np.where(np.random.default_rng(0).random((2, 4, 4, 1)) < 0.5, -0.8, 0.8)
    label = jnp.arange(64) % 2
    batch = {"image": jnp.asarray(pictures, jnp.float32)[label], "label": label}
    tx, options = optax.adam(1e-2), {"kind": "x0", "decay": 0.95}
    task = diffusion(Perceptron(), cosine(), tx, shape=(4, 4, 1), classes=2, **options)
    step, state = jax.jit(make_step(task, seed=0)), init(task, stream(0, "init"), batch)
    losses = []
    for _ in range(200):
        state, metrics = step(state, batch)
        losses.append(float(metrics["denoiser/loss"].total) / 64)
    assert losses[0] > 0.5 and np.mean(losses[-10:]) < 0.03

    params, _ = averaged(state)
    label = np.array([0, 1] * 8)
    for guidance, error in [(1.0, 0.03), (2.0, 0.12)]:
        samples = draw(task, n=16, label=label, params=params, steps=10, guidance=guidance)
        assert np.abs(samples - pictures[label]).mean() < error
    # Without a label both are drawn, and nothing much between them.
    samples = draw(task, n=16, params=params, steps=20)
    distances = np.abs(samples[:, None] - pictures).mean((2, 3, 4))
    assert distances.min(1).mean() < 0.2 < 0.5 < np.abs(pictures[0] - pictures[1]).mean()
    assert set(distances.argmin(1)) == {0, 1}
