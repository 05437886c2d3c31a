"""The compilers of a step and of a sampler: `jit` over a mesh, and `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.parallel import BATCH, Rule, largest_axis, shardings
from aigc_jax.core.types import Batch, State, Task
from aigc_jax.train.step import Metrics, Step, init, make_step

AXIS = "batch"


def jit_init(task: Task, mesh: Mesh, rule: Rule = largest_axis) -> Callable[..., State]:
    """Compile `(key, batch) -> State` so that each leaf is made where the rule puts it."""

    def start(key: jax.Array, batch: Batch) -> State:
        state = init(task, key, batch)
        return lax.with_sharding_constraint(state, shardings(state, mesh, rule))

    return jax.jit(start)


def jit_step(task: Task, mesh: Mesh, rule: Rule = largest_axis, **options: Any) -> Step:
    """Compile a step over a mesh: batches divided over both its axes, the state as the rule says.

    Args:
        task: the task.
        mesh: of axes `data` and `fsdp`; see `core.parallel.make_mesh`.
        rule: where each leaf of the state lives.
        **options: those of `make_step`, less `axis`.

    Returns:
        `(state, batch) -> (state, metrics)`; the state is donated.
    """
    step = make_step(_gathered(task, mesh), **options)

    def sharded(state: State, batch: Batch) -> tuple[State, Metrics]:
        state, metrics = step(state, batch)
        return lax.with_sharding_constraint(state, shardings(state, mesh, rule)), metrics

    return jax.jit(sharded, donate_argnums=0)


def pmap_step(task: Task, devices: list[Any] | None = None, **options: Any) -> Step:
    """Compile a step with `pmap`: a replica of the state and a share of the batch on each device.

    The state it takes and returns is an ordinary one, with no device axis.

    Args:
        task: the task.
        devices: those to use; this process' by default.
        **options: those of `make_step`, less `axis`.

    Returns:
        `(state, batch) -> (state, metrics)`; the state is donated.
    """
    devices = jax.local_devices() if devices is None else devices
    mapped = jax.pmap(
        make_step(task, axis=AXIS, **options),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=devices,
        donate_argnums=0,
    )
    return lambda state, batch: mapped(state, _per_device(batch, len(devices)))


def jit_sample(task: Task, mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """Compile `(params, stats, keys, cond) -> samples` over a mesh, under a task's own options."""

    def sample(params: Any, stats: Any, keys: jax.Array, cond: Batch) -> Any:
        keys, cond = lax.with_sharding_constraint((keys, cond), NamedSharding(mesh, BATCH))
        return _gathered(task, mesh).sample(params, stats, keys, cond, **options)

    return jax.jit(sample)


def pmap_sample(task: Task, devices: list[Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Compile `(params, stats, keys, cond) -> samples` with `pmap`, under a task's own options."""
    devices = jax.local_devices() if devices is None else devices
    mapped = jax.pmap(
        lambda *args: task.sample(*args, **options), in_axes=(None, None, 0, 0), devices=devices
    )

    def sample(params: Any, stats: Any, keys: jax.Array, cond: Batch) -> Any:
        samples = mapped(params, stats, *_per_device((keys, cond), len(devices)))
        return jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), samples
        )  # (n, b/n, ...) -> (b, ...)

    return sample


def _gathered(task: Task, mesh: Mesh) -> Task:
    """Let losses and the sampler see whole parameters, however they are stored.

    Left to itself the compiler would divide activations as it finds the weights divided, and
    communicate activations in place of weights.
    """
    whole = NamedSharding(mesh, P())

    def gather(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *rest, **options: function(
            lax.with_sharding_constraint(params, whole), *rest, **options
        )

    phases = tuple(phase._replace(loss=gather(phase.loss)) for phase in task.phases)
    return task._replace(phases=phases, sample=gather(task.sample))


def _per_device(batch: Any, n: int) -> Any:
    def split(x: Any) -> Any:
        if x.shape[0] % n:
            raise ValueError(f"a batch of {x.shape[0]} does not divide over {n} devices")
        return x.reshape(n, x.shape[0] // n, *x.shape[1:])  # (b, ...) -> (n, b/n, ...)

    return jax.tree.map(split, batch)
