"""Adversarial losses and the penalties that keep a critic smooth, each example's own.

A loss takes the logits of real and of generated examples, (b, ...), one an example or one a patch,
and averages over patches. Losses that need only one of the two take both all the same, so that any
can stand in for any.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.nn import relu, softplus

from aigc_jax.core.keys import normal, uniform
from aigc_jax.core.shapes import expand, mean_flat, sum_flat

Critic = Callable[[Array], Array]


class Losses(NamedTuple):
    """What the two sides of a game descend.

    Attributes:
        discriminator: `(real, fake) -> (b,)` of logits (b, ...).
        generator: likewise.
    """

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array, Array], Array]


# Losses


def minimax_discriminator_loss(real: Array, fake: Array, *, smoothing: float = 0.0) -> Array:
    """Return −log D(x) − log(1 − D(G(z))), D = σ(logits).

    Args:
        real: (b, ...) logits of real examples.
        fake: (b, ...) logits of generated ones.
        smoothing: s of the one-sided smoothing of labels (Salimans et al. 2016, §3.4): a real
            example's target is 1 − s.

    Returns:
        (b,) nats.

    Raises:
        ValueError: `smoothing` is outside [0, 1).

    Example:
        >>> zero = jnp.zeros(1)
        >>> round(float(minimax_discriminator_loss(zero, zero)[0]), 4)  # 2 log 2: a coin's
        1.3863

    Goodfellow et al. 2014, *Generative adversarial networks*, eq. 1.
    """
    _check(real, fake, smoothing)
    # −(1 − s) log σ(l) − s log(1 − σ(l)) = softplus(−l) + s l
    return mean_flat(softplus(-real) + smoothing * real) + mean_flat(softplus(fake))


def minimax_generator_loss(real: Array, fake: Array) -> Array:
    """Return log(1 − D(G(z))), (b,) nats: the zero-sum game's, which saturates where D is sure.

    Goodfellow et al. 2014, eq. 1.
    """
    _check(real, fake)
    return mean_flat(-softplus(fake))


def non_saturating_generator_loss(real: Array, fake: Array) -> Array:
    """Return −log D(G(z)), (b,) nats (Goodfellow et al. 2014, §3)."""
    _check(real, fake)
    return mean_flat(softplus(-fake))


def least_squares_discriminator_loss(real: Array, fake: Array, *, smoothing: float = 0.0) -> Array:
    """Return ½ (D(x) − 1 + s)² + ½ D(G(z))², (b,), D the logits themselves.

    Args:
        real: (b, ...) logits of real examples.
        fake: (b, ...) logits of generated ones.
        smoothing: s of the one-sided smoothing of labels.

    Raises:
        ValueError: `smoothing` is outside [0, 1).

    Mao et al. 2017, *Least squares generative adversarial networks*, eq. 9.
    """
    _check(real, fake, smoothing)
    return 0.5 * (mean_flat((real - 1 + smoothing) ** 2) + mean_flat(fake**2))


def least_squares_generator_loss(real: Array, fake: Array) -> Array:
    """Return ½ (D(G(z)) − 1)², (b,) (Mao et al. 2017, eq. 9)."""
    _check(real, fake)
    return 0.5 * mean_flat((fake - 1) ** 2)


def wasserstein_discriminator_loss(real: Array, fake: Array) -> Array:
    """Return D(G(z)) − D(x), (b,); D must be kept Lipschitz, by `clip_weights` or a penalty.

    Arjovsky et al. 2017, *Wasserstein GAN*, eq. 3.
    """
    _check(real, fake)
    return mean_flat(fake) - mean_flat(real)


def wasserstein_generator_loss(real: Array, fake: Array) -> Array:
    """Return −D(G(z)), (b,) (Arjovsky et al. 2017, algorithm 1)."""
    _check(real, fake)
    return -mean_flat(fake)


def hinge_discriminator_loss(real: Array, fake: Array) -> Array:
    """Return max(0, 1 − D(x)) + max(0, 1 + D(G(z))), (b,).

    Miyato et al. 2018, *Spectral normalization for generative adversarial networks*, eq. 17.
    """
    _check(real, fake)
    return mean_flat(relu(1 - real)) + mean_flat(relu(1 + fake))


def relativistic_discriminator_loss(real: Array, fake: Array) -> Array:
    """Return softplus(D(G(z)) − D(x)), (b,) nats: real i is to outdo generated i.

    Jolicoeur-Martineau 2019, *The relativistic discriminator*, eq. 3; with both gradient penalties
    it converges locally (Huang et al. 2024, *The GAN is dead; long live the GAN!*, eq. 2).
    """
    _check(real, fake)
    return mean_flat(softplus(fake - real))


def relativistic_generator_loss(real: Array, fake: Array) -> Array:
    """Return softplus(D(x) − D(G(z))), (b,) nats (Jolicoeur-Martineau 2019, eq. 4)."""
    _check(real, fake)
    return mean_flat(softplus(real - fake))


MINIMAX = Losses(minimax_discriminator_loss, minimax_generator_loss)
NON_SATURATING = Losses(minimax_discriminator_loss, non_saturating_generator_loss)
LEAST_SQUARES = Losses(least_squares_discriminator_loss, least_squares_generator_loss)
WASSERSTEIN = Losses(wasserstein_discriminator_loss, wasserstein_generator_loss)
HINGE = Losses(hinge_discriminator_loss, wasserstein_generator_loss)
RELATIVISTIC = Losses(relativistic_discriminator_loss, relativistic_generator_loss)


# Penalties: `(critic, real, fake, keys) -> (b,)`


def gradient_penalty(critic: Critic, real: Array, fake: Array, keys: Array) -> Array:
    """Return (‖∇D(x̂)‖ − 1)² where x̂ = u x + (1 − u) G(z), u uniform.

    Args:
        critic: (b, ...) -> (b,), or (b, ...) patches: an example's logits must depend on it alone.
        real: (b, ...) examples.
        fake: (b, ...) generated ones.
        keys: (b,), of u.

    Returns:
        (b,). The paper's weight is 10.

    Example:
        >>> x = jnp.ones((2, 4, 4, 1))
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> gradient_penalty(lambda x: x.sum((1, 2, 3)), x, 0 * x, keys).tolist()  # (√16 − 1)²
        [9.0, 9.0]

    Gulrajani et al. 2017, *Improved training of Wasserstein GANs*, eq. 3.
    """
    chex.assert_equal_shape([real, fake])
    chex.assert_shape(keys, (real.shape[0],))
    u = expand(uniform(keys), real.ndim)
    return (_safe_sqrt(_squared_gradient(critic, u * real + (1 - u) * fake)) - 1) ** 2


def r1(critic: Critic, real: Array, fake: Array, keys: Array) -> Array:
    """Return ½ ‖∇D(x)‖² at the real examples, (b,).

    Mescheder et al. 2018, *Which training methods for GANs do actually converge?*, eq. 9; their
    weight γ is 10.
    """
    chex.assert_equal_shape([real, fake])
    return 0.5 * _squared_gradient(critic, real)


def r2(critic: Critic, real: Array, fake: Array, keys: Array) -> Array:
    """Return ½ ‖∇D(G(z))‖² at the generated examples, (b,) (Mescheder et al. 2018, eq. 10)."""
    chex.assert_equal_shape([real, fake])
    return 0.5 * _squared_gradient(critic, fake)


def path_lengths(synthesise: Callable[[Array], Array], w: Array, keys: Array) -> Array:
    """Return how far an image moves with its styles: ‖Jᵀ y‖ of random images y.

    y ~ N(0, 1/(h·w)), J = ∂synthesise(w)/∂w; the root of the mean over layers of squared norms.

    Args:
        synthesise: (b, layers, d) styles -> (b, h, w, c) images, each from its own.
        w: (b, layers, d).
        keys: (b,), of y.

    Returns:
        (b,). The regulariser is (‖Jᵀ y‖ − a)², a its running mean.

    Karras et al. 2020, *Analyzing and improving the image quality of StyleGAN*, eq. 4.
    """
    chex.assert_rank(w, 3)
    chex.assert_shape(keys, (w.shape[0],))

    def projection(w: Array) -> Array:
        image = synthesise(w)
        y = normal(keys, image.shape[1:]) / jnp.sqrt(image.shape[1] * image.shape[2])
        return jnp.sum(image * y)

    squared = jnp.sum(jax.grad(projection)(w) ** 2, axis=-1)  # (b, layers, d) -> (b, layers)
    return _safe_sqrt(squared.mean(-1))


def clip_weights(bound: float) -> optax.GradientTransformation:
    """Keep every weight in [−bound, bound]: last in an `optax.chain`.

    Args:
        bound: 0.01 in the paper.

    Raises:
        ValueError: `bound` is not above 0.

    Example:
        >>> tx = optax.chain(optax.sgd(1.0), clip_weights(0.5))
        >>> w = jnp.array([0.4])
        >>> updates, _ = tx.update(jnp.array([-3.0]), tx.init(w), w)
        >>> optax.apply_updates(w, updates).tolist()
        [0.5]

    Arjovsky et al. 2017, *Wasserstein GAN*, algorithm 1.
    """
    if not bound > 0:
        raise ValueError(f"bound={bound} must be above 0")

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -bound, bound) - p, updates, params)

    return optax.stateless(update)


def _check(real: Array, fake: Array, smoothing: float = 0.0) -> None:
    chex.assert_equal_shape([real, fake])
    chex.assert_axis_dimension_gteq(real, 0, 1)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must be in [0, 1)")


def _squared_gradient(critic: Critic, x: Array) -> Array:
    """Return ‖∇ critic(x_i)‖² of each example, (b,), a critic of patches taken for their mean."""
    return sum_flat(jax.grad(lambda x: mean_flat(critic(x)).sum())(x) ** 2)


def _safe_sqrt(x: Array) -> Array:
    """Take roots, with the gradient 0 at 0, where the root's own is infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
