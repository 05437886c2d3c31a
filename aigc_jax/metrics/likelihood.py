"""Bounds on the likelihood of held-out data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import normalise


def evaluate_bound(
    model: Model,
    bound: Callable[..., Array],
    data: Dataset,
    *,
    name: str = "bits_per_dim",
    n: int | None = None,
    batch: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """Average a bound over the first images of the test split.

    Args:
        model: what is measured.
        bound: `(params, stats, batch, keys) -> (b,)`, such as `tasks.diffusion.bits_per_dim` makes.
        data: the real images.
        name: of the metric.
        n: images to average over; all by default.
        batch: images at a time.
        seed: of the noise.

    Returns:
        `{"<name>/test-<n>": average}`, in the unit of `bound`.
    """
    examples = whole(data.test, normalise)
    n = min(n or len(data.test), len(data.test))
    run = jax.jit(bound)
    total = 0.0
    for start in range(0, n, batch):
        index = np.arange(start, start + batch)
        # The last example fills the last batch up, so that one program does for all.
        some = {key: x[np.minimum(index, n - 1)] for key, x in examples.items()}
        keys = example_keys(stream(seed, "bound"), jnp.asarray(index))
        total += float(np.asarray(run(model.params, model.stats, some, keys))[: n - start].sum())
    return {f"{name}/test-{n}": total / n}
