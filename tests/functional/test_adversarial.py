import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_expit

from aigc_jax.core.keys import example_keys, normal, uniform
from aigc_jax.functional import adversarial
from aigc_jax.functional.adversarial import (
    HINGE,
    LEAST_SQUARES,
    MINIMAX,
    NON_SATURATING,
    RELATIVISTIC,
    WASSERSTEIN,
    clip_weights,
    gradient_penalty,
    least_squares_discriminator_loss,
    minimax_discriminator_loss,
    path_lengths,
    r1,
    r2,
)

# Each game by the definitions, of one logit: D = σ(l), except where D = l.
GAMES = {
    MINIMAX: (lambda r, f: -log_expit(r) - log_expit(-f), lambda r, f: log_expit(-f)),
    NON_SATURATING: (lambda r, f: -log_expit(r) - log_expit(-f), lambda r, f: -log_expit(f)),
    LEAST_SQUARES: (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    WASSERSTEIN: (lambda r, f: f - r, lambda r, f: -f),
    HINGE: (lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f), lambda r, f: -f),
    RELATIVISTIC: (lambda r, f: -log_expit(r - f), lambda r, f: -log_expit(f - r)),
}
LOSSES = [
    pytest.param(loss, closed, id=loss.__name__)
    for loss, closed in {
        loss: closed
        for losses, forms in GAMES.items()
        for loss, closed in zip(losses, forms, strict=True)
    }.items()
]
DISCRIMINATORS = {losses.discriminator for losses in GAMES}


def logits(shape, low=-4.0, high=4.0):
    rng = np.random.default_rng(0)
    return (rng.uniform(low, high, shape).astype(np.float32) for _ in range(2))


# Losses


@pytest.mark.parametrize(("loss", "closed"), LOSSES)
@pytest.mark.parametrize("shape", [(5,), (5, 3, 2)], ids=["one", "patches"])
def test_loss_is_its_closed_form_and_averages_patches(loss, closed, shape):
    real, fake = logits(shape)
    expected = closed(np.float64(real), np.float64(fake))
    expected = np.broadcast_to(expected, shape).reshape(5, -1).mean(1)
    np.testing.assert_allclose(loss(real, fake), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "closed"), LOSSES)
def test_loss_is_finite_where_probabilities_are_not(loss, closed):
    real, fake = (np.array(x, np.float32) * 1e4 for x in ([1, 1, -1, -1, 0], [1, -1, 1, -1, 0]))
    value, pull = jax.vjp(loss, real, fake)
    np.testing.assert_allclose(value, closed(np.float64(real), np.float64(fake)), rtol=1e-6)
    chex.assert_tree_all_finite(pull(jnp.ones(5)))


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_each_side_pulls_its_own_way(loss, _):
    # Between the targets of the least squares and within the hinge's margins nobody is content.
    real, fake = logits((64,), 0.01, 0.99)
    of_real, of_fake = jax.grad(lambda r, f: loss(r, f).sum(), (0, 1))(real, fake)
    if loss in DISCRIMINATORS:
        assert (of_real < 0).all() and (of_fake > 0).all()
    else:
        assert (of_fake < 0).all()
        # Real examples are beyond a generator's reach, unless it is to outdo them.
        assert (of_real > 0).all() if loss is RELATIVISTIC.generator else (of_real == 0).all()


def test_the_generator_learns_from_a_sure_discriminator_unless_it_plays_minimax():
    sure = jnp.full(1, -30.0)
    slopes = [jax.grad(lambda f, g=g: g.generator(sure, f).sum())(sure) for g in GAMES]
    by_game = dict(zip(GAMES, np.concatenate(slopes), strict=True))
    assert abs(by_game[MINIMAX]) < 1e-12
    assert by_game[NON_SATURATING] == pytest.approx(-1)
    assert by_game[RELATIVISTIC] == pytest.approx(-0.5)  # nobody is sure of two alike
    assert by_game[LEAST_SQUARES] == pytest.approx(-31)
    assert by_game[WASSERSTEIN] == by_game[HINGE] == -1


def expectation(loss, logit):
    """The mean loss where real examples are places 0 to 4 in the proportions of p, fakes of q."""
    p, q = COUNTS
    return loss(jnp.repeat(logit, p), jnp.repeat(logit, q)).mean()


COUNTS = np.array([[4, 3, 2, 2, 1], [1, 1, 2, 3, 5]])
P, Q = COUNTS / 12


def test_the_best_discriminator_of_minimax_measures_the_jensen_shannon_divergence():
    best = jnp.asarray(np.log(P / Q), jnp.float32)  # D = p / (p + q)
    value, slope = jax.value_and_grad(functools.partial(expectation, MINIMAX.discriminator))(best)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    middle = (P + Q) / 2
    divergence = (P * np.log(P / middle) + Q * np.log(Q / middle)).sum() / 2
    np.testing.assert_allclose(value, np.log(4) - 2 * divergence, rtol=1e-6)
    # And where the two are one, it tosses a coin.
    coin = MINIMAX.discriminator(jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(coin, 2 * np.log(2), rtol=1e-6)


def test_the_best_discriminator_of_least_squares_is_the_posterior():
    best = jnp.asarray(P / (P + Q), jnp.float32)
    loss = functools.partial(expectation, LEAST_SQUARES.discriminator)
    value, slope = jax.value_and_grad(loss)(best)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(value, (P * Q / (P + Q)).sum() / 2, rtol=1e-6)


@pytest.mark.parametrize("s", [0.0, 0.1, 0.5])
def test_smoothing_moves_the_real_target_alone(s):
    real, fake = logits((6,))
    r, f = np.float64(real), np.float64(fake)
    cross_entropy = -(1 - s) * log_expit(r) - s * log_expit(-r) - log_expit(-f)
    value = minimax_discriminator_loss(real, fake, smoothing=s)
    np.testing.assert_allclose(value, cross_entropy, rtol=1e-5)
    value = least_squares_discriminator_loss(real, fake, smoothing=s)
    np.testing.assert_allclose(value, ((r - (1 - s)) ** 2 + f**2) / 2, rtol=1e-5)
    if s:
        # A discriminator is best where it says 1 − s of the real.
        for loss, best in (
            (minimax_discriminator_loss, np.log((1 - s) / s)),
            (least_squares_discriminator_loss, 1 - s),
        ):
            slope = jax.grad(lambda l, loss=loss: loss(l, l * 0, smoothing=s).sum())
            np.testing.assert_allclose(slope(jnp.full(1, best, jnp.float32)), 0, atol=1e-6)


@pytest.mark.parametrize("loss", [minimax_discriminator_loss, least_squares_discriminator_loss])
@pytest.mark.parametrize("s", [-0.1, 1.0, np.nan])
def test_smoothing_must_leave_something(loss, s):
    with pytest.raises(ValueError, match=rf"smoothing={s} must be in \[0, 1\)"):
        loss(jnp.zeros(1), jnp.zeros(1), smoothing=s)


@pytest.mark.parametrize(("loss", "_"), LOSSES)
def test_logits_come_in_pairs(loss, _):
    for real, fake in (((2,), (3,)), ((2,), (2, 1)), ((), ())):
        with pytest.raises(AssertionError):
            loss(jnp.zeros(real), jnp.zeros(fake))


# Penalties

SHAPE = (2, 3, 1)
N = 6  # numbers of an image
RNG = np.random.default_rng(1)
REAL, FAKE = RNG.normal(size=(2, 5, *SHAPE)).astype(np.float32)
KEYS = example_keys(jax.random.key(0), jnp.arange(5))
A = RNG.normal(size=(N, N)).astype(np.float32)
A += A.T
LINEAR = RNG.normal(size=N).astype(np.float32)
PENALTIES = [gradient_penalty, r1, r2]


def quadratic(x, a=A, b=LINEAR):
    """½ xᵀAx + bᵀx, whose gradient is Ax + b."""
    x = x.reshape(len(x), -1)
    return 0.5 * jnp.einsum("bi,ij,bj->b", x, a, x) + x @ b


def norms(x):
    return np.linalg.norm(np.float64(x).reshape(len(x), -1) @ A + LINEAR, axis=1)


@pytest.mark.parametrize(("penalty", "x"), [(r1, REAL), (r2, FAKE)])
def test_r1_and_r2_are_half_the_squared_gradient(penalty, x):
    np.testing.assert_allclose(penalty(quadratic, REAL, FAKE, KEYS), norms(x) ** 2 / 2, rtol=1e-5)
    # And of critics' parameters: ∂/∂b ½‖Ax + b‖² = Ax + b.
    slope = jax.jacobian(lambda b: penalty(lambda x: quadratic(x, A, b), REAL, FAKE, KEYS))(LINEAR)
    np.testing.assert_allclose(slope, x.reshape(5, N) @ A + LINEAR, rtol=1e-4, atol=1e-4)


def test_gradient_penalty_is_taken_at_random_between_the_two():
    u = np.asarray(uniform(KEYS))[:, None, None, None]
    assert np.unique(u).size == 5
    expected = (norms(u * REAL + (1 - u) * FAKE) - 1) ** 2
    value = gradient_penalty(quadratic, REAL, FAKE, KEYS)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("length", [0.0, 0.25, 1.0, 3.0])
def test_gradient_penalty_of_a_plane_is_that_of_its_slope(length):
    slope = jnp.asarray(length * LINEAR / np.linalg.norm(LINEAR))
    value = gradient_penalty(lambda x: quadratic(x, 0 * A, slope), REAL, FAKE, KEYS)
    np.testing.assert_allclose(value, (length - 1) ** 2, atol=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_are_finite_where_the_gradient_is_zero(penalty):
    def value(critic, real, fake):
        return penalty(lambda x: quadratic(x, *critic), real, fake, KEYS).sum()

    flat = jnp.zeros_like(A), jnp.zeros_like(LINEAR)
    result = jax.jit(jax.value_and_grad(value, (0, 1, 2)))(flat, REAL, FAKE)
    chex.assert_tree_all_finite(result)
    assert result[0] == (5 if penalty is gradient_penalty else 0)


def patches(x):
    return 10 * jnp.sin(x)[..., 0]


@pytest.mark.parametrize("critic", [quadratic, patches])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_are_each_examples_own(penalty, critic):
    whole = np.asarray(penalty(critic, REAL, FAKE, KEYS))
    some = np.array([3, 0])
    part = penalty(critic, REAL[some], FAKE[some], KEYS[some])
    assert whole.shape == (5,) and np.ptp(whole) > 0.1
    np.testing.assert_allclose(part, whole[some], rtol=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_critic_of_patches_is_their_mean(penalty):
    """As it is in the losses."""
    mean = lambda x: patches(x).mean((1, 2))
    expected = penalty(mean, REAL, FAKE, KEYS)
    np.testing.assert_allclose(penalty(patches, REAL, FAKE, KEYS), expected, rtol=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_compare_like_with_like(penalty):
    with pytest.raises(AssertionError):
        penalty(quadratic, REAL, FAKE[:, :1], KEYS)


# Path lengths

LAYERS, D = 3, 2
PAINT = RNG.normal(size=(4, 2, 3, LAYERS, D)).astype(np.float32)  # h, w, c, layers, d
W = RNG.normal(size=(5, LAYERS, D)).astype(np.float32)


def synthesise(w, paint=PAINT):
    return jnp.einsum("hwcld,bld->bhwc", paint, w)


def test_path_lengths_of_a_linear_synthesiser():
    y = np.asarray(normal(KEYS, (4, 2, 3))) / np.sqrt(4 * 2)
    projected = np.einsum("hwcld,bhwc->bld", PAINT, y)
    expected = np.sqrt((projected**2).sum(-1).mean(-1))
    np.testing.assert_allclose(path_lengths(synthesise, W, KEYS), expected, rtol=1e-5)
    some = np.array([4, 1])
    part = path_lengths(synthesise, W[some], KEYS[some])
    np.testing.assert_allclose(part, expected[some], rtol=1e-5)


def test_path_lengths_measure_the_jacobian():
    n = 4096
    many = example_keys(jax.random.key(1), jnp.arange(n))
    lengths = path_lengths(synthesise, jnp.zeros((n, LAYERS, D)), many)
    # E‖Jᵀy‖² = ‖J‖²/(hw), with the variance 2‖JJᵀ‖²/(hw)², both over the layers' mean.
    jacobian = np.float64(PAINT).reshape(-1, LAYERS * D)
    mean = np.square(jacobian).sum() / 8 / LAYERS
    error = np.sqrt(2 * np.square(jacobian @ jacobian.T).sum() / n) / 8 / LAYERS
    assert error < mean / 50
    assert abs(np.square(lengths).mean() - mean) < 5 * error


def test_path_lengths_are_finite_where_nothing_moves():
    total = lambda paint: path_lengths(lambda w: synthesise(w, paint), W, KEYS).sum()
    value, slope = jax.value_and_grad(total)(jnp.zeros_like(PAINT))
    assert value == 0 and jnp.isfinite(slope).all()


@pytest.mark.parametrize(("w", "keys"), [(W[:, 0], KEYS), (W, KEYS[:4])])
def test_path_lengths_take_styles_by_layer(w, keys):
    with pytest.raises(AssertionError):
        path_lengths(synthesise, w, keys)


# Clipping


def test_weights_are_clipped_after_the_step():
    tx = optax.chain(optax.sgd(1.0, momentum=0.9), clip_weights(0.01))
    w = {"a": jnp.array([0.005, -0.004, 0.0, 0.3]), "b": jnp.array([-0.01])}
    state = tx.init(w)
    g = {"a": jnp.array([0.001, 0.1, -0.1, 0.0]), "b": jnp.array([0.02])}
    updates, state = jax.jit(tx.update)(g, state, w)
    w = optax.apply_updates(w, updates)
    expected = {"a": np.array([0.004, -0.01, 0.01, 0.01]), "b": np.array([-0.01])}
    chex.assert_trees_all_close(w, expected, atol=1e-7)


@pytest.mark.parametrize("bound", [0.0, -0.01, np.nan])
def test_a_bound_must_leave_room(bound):
    with pytest.raises(ValueError, match=f"bound={bound} must be above 0"):
        clip_weights(bound)


def test_every_loss_is_tested():
    names = {name for name in vars(adversarial) if name.endswith("_loss")}
    assert names == {param.id for param in LOSSES}
