"""A trained task as a value: its weights, and a sampler compiled once for each set of options."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.parallel import batch_shards
from aigc_jax.core.shapes import batch_size
from aigc_jax.core.types import Batch, Model, Task
from aigc_jax.train.compile import jit_sample

Sampler = Callable[..., Any]


def make_sampler(task: Task, mesh: Mesh, batch: int = 256) -> Sampler:
    """Make `(params, stats, n, cond={}, *, seed=0, **options) -> samples` over a mesh.

    Samples are drawn a fixed number at a time, so that few programs are compiled whatever `n` is.
    Sample i depends on the seed and i alone.

    Args:
        task: the task; `options` are its sampler's.
        mesh: samples are divided over all its devices.
        batch: how many are drawn at a time; fewer, a power of two per device, when fewer are asked.
    """
    devices = batch_shards(mesh)

    @functools.cache
    def compiled(**options: Any) -> Callable[..., Any]:
        draw = jit_sample(task, mesh, **options)

        @functools.partial(jax.jit, static_argnums=5)
        def chunk(params: Any, stats: Any, seed: Any, start: Any, cond: Batch, size: int) -> Any:
            key = jax.random.wrap_key_data(seed, impl="threefry2x32")
            keys = example_keys(key, start + jnp.arange(size))
            return draw(params, stats, keys, cond)

        return chunk

    def sample(
        params: Any, stats: Any, n: int, cond: Any = None, *, seed: int = 0, **options: Any
    ) -> Any:
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        cond = jax.tree.map(np.asarray, cond or {})
        if cond and batch_size(cond) != n:
            raise ValueError(f"cond holds {batch_size(cond)} examples; n={n} samples need as many")
        per_device = min(-(-batch // devices), 1 << (-(-n // devices) - 1).bit_length())
        size = per_device * devices
        chunk = compiled(**options)
        seed_bits = np.asarray(jax.random.key_data(stream(seed, "sample")))
        parts = []
        for start in range(0, n, size):
            # The last example fills the last chunk up; what it gives there is dropped.
            rows = np.minimum(np.arange(start, start + size), n - 1)
            part = jax.tree.map(lambda x, rows=rows: x[rows], cond)
            samples = chunk(params, stats, seed_bits, np.int32(start), part, size)
            parts.append(_to_host(samples))
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:n], *parts)

    return sample


def make_model(params: dict[str, Any], stats: dict[str, Any], sampler: Sampler) -> Model:
    """Bind weights to a sampler."""
    return Model(params, stats, functools.partial(sampler, params, stats))


def _to_host(tree: Any) -> Any:
    """Fetch a pytree to every process, whole."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
