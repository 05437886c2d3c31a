"""Devices: one mesh of two axes, one rule that shards a state, and batches laid over both."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rule = Callable[[tuple[int, ...], Mesh], P]


def make_mesh(devices: list[Any] | None = None, fsdp: int = 1) -> Mesh:
    """Arrange devices as (data, fsdp): batches are divided over both, parameters over `fsdp`.

    Args:
        devices: those to use; all of this job's by default.
        fsdp: over how many devices each parameter is divided; 1 replicates, -1 means all.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    fsdp = len(devices) if fsdp == -1 else fsdp
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"fsdp={fsdp} must divide the number of devices, {len(devices)}")
    return Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"))


def largest_axis(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Shard an array over `fsdp` along the largest of its axes that divides; else replicate it."""
    n = mesh.shape["fsdp"]
    axes = [i for i, length in enumerate(shape) if length >= n and length % n == 0]
    if n == 1 or not axes:
        return P()
    axis = max(axes, key=lambda i: shape[i])
    return P(*([None] * axis), "fsdp")


def shardings(tree: Any, mesh: Mesh, rule: Rule = largest_axis) -> Any:
    """Return the `NamedSharding` of each leaf of a state (or of its shapes) under a rule."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, rule(leaf.shape, mesh)), tree)


def put_state(state: Any, mesh: Mesh, rule: Rule = largest_axis) -> Any:
    """Lay a state out over a mesh. The values on every process must be the same."""
    return jax.device_put(state, shardings(state, mesh, rule))


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return how a batch whose examples lie along an axis is divided over every device."""
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def put_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Lay a batch over all devices of a mesh, from each process' own share of it.

    Args:
        batch: arrays of (b, ...); or of (k, b, ...), the batches of k steps, with `axis=1`.
        mesh: of axes `data` and `fsdp`.
        axis: that of the examples.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    sharding = batch_sharding(mesh, axis)
    local = len(sharding.addressable_devices)

    def put(x: Any) -> jax.Array:
        if x.shape[axis] % local:
            raise ValueError(
                f"a batch of {x.shape[axis]} does not divide over {local} devices; "
                f"use a multiple of {local}"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)
