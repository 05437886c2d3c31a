"""Schedules by which the weight of a divergence is annealed: `step -> weight`, as optax has them.

A linear warm-up is `optax.linear_schedule(0.0, 1.0, steps)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

Weight = float | optax.Schedule


def check_weights(**weights: Weight | None) -> None:
    """Refuse a weight below 0, naming it; what a schedule will say is not known yet.

    Raises:
        ValueError: as said.
    """
    for name, weight in weights.items():
        if weight is not None and not callable(weight) and not weight >= 0:
            raise ValueError(f"{name}={weight} must be at least 0")


def at_step(weight: Weight, step: Array | None) -> Any:
    """Return a constant weight, or what a schedule says of a step.

    Example:
        >>> at_step(0.5, None), float(at_step(optax.linear_schedule(0.0, 1.0, 4), jnp.int32(1)))
        (0.5, 0.25)
    """
    return weight(step) if callable(weight) else weight  # pyright: ignore[reportArgumentType]


def cyclical_schedule(period: int, ramp: float = 0.5) -> optax.Schedule:
    """Make a weight that rises from 0 to 1 again and again: min(1, τ/R), τ = (step mod P)/P.

    Args:
        period: P, in steps.
        ramp: R, the share of a period in which it rises.

    Returns:
        `step -> weight`, () in [0, 1].

    Raises:
        ValueError: `period` is less than 1, or `ramp` does not lie in (0, 1].

    Example:
        >>> schedule = cyclical_schedule(100)
        >>> [float(schedule(step)) for step in (0, 25, 50, 99, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.0]

    Fu et al. 2019, *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing*, eq.
    6 and 7.
    """
    if period < 1:
        raise ValueError(f"period={period} must be at least 1")
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp={ramp} must lie in (0, 1]")

    def schedule(step: ArrayLike) -> Array:
        return jnp.minimum(1.0, jnp.asarray(step) % period / (ramp * period))

    return schedule


def logistic_schedule(rate: float, midpoint: float) -> optax.Schedule:
    """Make a weight that rises along a sigmoid: 1 / (1 + exp(−k·(step − x0))).

    Args:
        rate: k, by step; 0.0025 is customary for text.
        midpoint: x0, the step at which the weight is ½; 2,500 is customary.

    Returns:
        `step -> weight`, () in (0, 1).

    Raises:
        ValueError: `rate` is not positive.

    Example:
        >>> float(logistic_schedule(0.0025, 2500)(2500))
        0.5

    Bowman et al. 2016, *Generating Sentences from a Continuous Space*, section 3.1.
    """
    if not rate > 0:
        raise ValueError(f"rate={rate} must be positive")

    def schedule(step: ArrayLike) -> Array:
        return jax.nn.sigmoid(rate * (jnp.asarray(step, jnp.float32) - midpoint))

    return schedule
