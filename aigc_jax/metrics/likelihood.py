"""Bounds on the likelihood of held-out data, and whatever else each example says of a model."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched, whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import Transform, normalise


def evaluate_terms(
    model: Model,
    terms: Callable[..., dict[str, Array]],
    data: Dataset,
    *,
    transform: Transform | None = normalise,
    n: int | None = None,
    batch: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """Average the terms of a loss over the first examples of the test split.

    Args:
        model: what is measured.
        terms: `(params, stats, batch, keys) -> {name: (b,)}`, such as
            `tasks.diffusion.bits_per_dim` makes.
        data: the real examples.
        transform: of them.
        n: examples to average over; all by default.
        batch: examples at a time.
        seed: of the noise.

    Returns:
        `{"<name>/test-<n>": average}`, in the unit of the term.
    """
    n = min(n or len(data.test), len(data.test))
    examples = whole(data.test, transform, n)

    @jax.jit
    def run(params: Any, stats: Any, examples: Any, index: Array) -> dict[str, Array]:
        return terms(params, stats, examples, example_keys(stream(seed, "bound"), index))

    each = batched(
        lambda part: run(model.params, model.stats, *part), (examples, np.arange(n)), batch
    )
    return {f"{name}/test-{n}": float(x.mean(dtype=np.float64)) for name, x in each.items()}
