"""How much of a codebook is used."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched, whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import Transform, normalise
from aigc_jax.functional.quantize import perplexity


def evaluate_codebook(
    model: Model,
    encode: Callable[[Any, Any, Any], Array],
    codes: int,
    data: Dataset,
    *,
    transform: Transform | None = normalise,
    n: int | None = None,
    batch: int = 32,
) -> dict[str, float]:
    """Count what codes the first examples of the test split are made of.

    | metric | what |
    |---|---|
    | `codes` | how many occur |
    | `perplexity` | exp of the entropy of their frequencies, over all examples |
    | `perplexity_of_<batch>` | the same of a batch, averaged over them, as is published |

    Args:
        model: what is measured.
        encode: `(params, stats, batch) -> (b, ...)` integers in 0..codes-1.
        codes: how many there are.
        data: the real examples.
        transform: of them.
        n: examples to encode; all by default.
        batch: examples at a time; the published recipe's 32. What does not fill one is left out.

    Returns:
        `{"<name>/test-<n>": value}`.

    Raises:
        ValueError: there are fewer examples than a batch.
    """
    n = min(n or len(data.test), len(data.test)) // batch * batch
    if not n:
        raise ValueError(f"batch={batch} must be at most the number of examples")
    examples = whole(data.test, transform, n)
    run = jax.jit(encode)
    index = batched(lambda some: run(model.params, model.stats, some), examples, batch)
    of_batches = index.reshape(n // batch, -1)  # (n, ...) -> (batches, ...)
    counts = np.stack([np.bincount(each, minlength=codes) for each in of_batches])
    total = counts.sum(0)
    return {
        f"codes/test-{n}": float(np.count_nonzero(total)),
        f"perplexity/test-{n}": float(perplexity(jnp.asarray(total))),
        f"perplexity_of_{batch}/test-{n}": float(jnp.mean(perplexity(jnp.asarray(counts)))),
    }
