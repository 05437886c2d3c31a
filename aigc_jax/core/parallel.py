"""Devices: one mesh of three axes, one rule that lays out a state, and batches over all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rule = Callable[[str, tuple[int, ...], Mesh], P]


def make_mesh(devices: list[Any] | None = None, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Arrange devices as (data, fsdp, tensor).

    Batches are divided over the first two, parameters over the last two: `fsdp` divides what is
    stored, and `tensor` also what is computed.

    Args:
        devices: those to use; all of this job's by default.
        fsdp: over how many devices each parameter is divided, and gathered where it is read; 1
            replicates, -1 means all that `tensor` leaves.
        tensor: over how many devices heads and hidden units are divided.

    Raises:
        ValueError: `fsdp` and `tensor` do not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if tensor < 1 or len(devices) % tensor:
        raise ValueError(f"tensor={tensor} must divide the number of devices, {len(devices)}")
    left = len(devices) // tensor
    fsdp = left if fsdp == -1 else fsdp
    if fsdp < 1 or left % fsdp:
        of = "" if tensor == 1 else f" / tensor={tensor}"
        raise ValueError(f"fsdp={fsdp} must divide the number of devices, {len(devices)}{of}")
    return Mesh(np.array(devices).reshape(-1, fsdp, tensor), ("data", "fsdp", "tensor"))


def lay_out(tensor: Mapping[str, int] | None = None) -> Rule:
    """Make the rule `(path, shape, mesh) -> PartitionSpec` of the leaves of a state.

    Over `tensor` a leaf is divided along the axis that is named for the end of its path, and over
    `fsdp` along the largest other that divides. What does not divide is replicated.

    Args:
        tensor: an end of a path, such as "qkv/kernel" -> an axis, counted from the last as -1: so
            that layers may be stacked before. Those of `Task.tensor`.

    Example:
        >>> rule = lay_out({"in/kernel": -1})
        >>> mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
        >>> tuple(rule("params/mlp/in/kernel", (3, 8, 16), mesh))
        (None, 'fsdp', 'tensor')
    """

    def rule(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
        axes: list[str | None] = [None] * len(shape)

        def divides(axis: int, over: str) -> bool:
            n = mesh.shape[over]
            return n > 1 and axes[axis] is None and shape[axis] >= n and shape[axis] % n == 0

        for end, axis in (tensor or {}).items():
            if f"/{path}".endswith(f"/{end}") and len(shape) >= -axis and divides(axis, "tensor"):
                axes[axis] = "tensor"
        if free := [axis for axis in range(len(shape)) if divides(axis, "fsdp")]:
            axes[max(free, key=lambda axis: shape[axis])] = "fsdp"
        while axes and axes[-1] is None:
            axes.pop()
        return P(*axes)

    return rule


def shardings(tree: Any, mesh: Mesh, rule: Rule | None = None) -> Any:
    """Return the `NamedSharding` of each leaf of a state (or of its shapes) under a rule."""
    rule = rule or lay_out()
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, rule(name(path), leaf.shape, mesh)), tree
    )


def put_state(state: Any, mesh: Mesh, rule: Rule | None = None) -> Any:
    """Lay a state out over a mesh. The values on every process must be the same."""
    return jax.device_put(state, shardings(state, mesh, rule))


def batch_shards(mesh: Mesh) -> int:
    """Return into how many parts a mesh divides a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return how a batch whose examples lie along an axis is divided over a mesh."""
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def put_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Lay a batch over a mesh, from each process' own share of it.

    Args:
        batch: arrays of (b, ...); or of (k, b, ...), the batches of k steps, with `axis=1`.
        mesh: see `make_mesh`.
        axis: that of the examples.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    sharding = batch_sharding(mesh, axis)
    # This process' part of all: it holds its examples once, on as many devices as `tensor` says.
    local = max(1, batch_shards(mesh) * len(sharding.addressable_devices) // mesh.size)

    def put(x: Any) -> jax.Array:
        if x.shape[axis] % local:
            raise ValueError(
                f"a batch of {x.shape[axis]} does not divide over {local} devices; "
                f"use a multiple of {local}"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)
