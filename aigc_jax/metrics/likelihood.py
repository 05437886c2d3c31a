"""Bounds on the likelihood of held-out data, and whatever else each example says of a model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
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
    examples = whole(data.test, transform)
    n = min(n or len(data.test), len(data.test))
    run = jax.jit(terms)
    totals: dict[str, float] = {}
    for start in range(0, n, batch):
        index = np.arange(start, start + batch)
        # The last example fills the last batch up, so that one program does for all.
        some = {key: x[np.minimum(index, n - 1)] for key, x in examples.items()}
        keys = example_keys(stream(seed, "bound"), jnp.asarray(index))
        for name, values in run(model.params, model.stats, some, keys).items():
            total = float(np.asarray(values, np.float64)[: n - start].sum())
            totals[name] = totals.get(name, 0.0) + total
    return {f"{name}/test-{n}": total / n for name, total in totals.items()}
