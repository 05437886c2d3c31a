"""The compilers of a step and of a sampler: `jit` over a mesh, and `pmap`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.parallel import Rule, batch_sharding, lay_out, shardings
from aigc_jax.core.types import Batch, State, Task
from aigc_jax.train.step import Metrics, Step, init, make_step

AXIS = "batch"

Gather = Callable[[Any, Any], Batch]  # (columns, addressed) -> batch
Program = Callable[..., tuple[State, Metrics]]  # a compiled `Step`, perhaps of columns besides


def jit_init(task: Task, mesh: Mesh, rule: Rule | None = None) -> Callable[..., State]:
    """Compile `(key, batch, weights={}) -> State`: each leaf is made where the rule puts it."""

    def start(key: jax.Array, batch: Batch, weights: Mapping[str, Any] = {}) -> State:
        state = init(task, key, batch, weights)
        where = shardings(state, mesh, rule or lay_out(task.tensor))
        return lax.with_sharding_constraint(state, where)

    return jax.jit(start)


def jit_step(
    task: Task,
    mesh: Mesh,
    rule: Rule | None = None,
    *,
    inner_steps: int = 1,
    gather: Gather | None = None,
    **options: Any,
) -> Program:
    """Compile a step over a mesh: batches divided, the state laid out as the rule says.

    Args:
        task: the task.
        mesh: see `core.parallel.make_mesh`.
        rule: where each leaf of the state lives; `lay_out(task.tensor)` by default.
        inner_steps: steps a call, as a `lax.scan`; see `Returns`.
        gather: `(columns, addressed) -> batch`, finds a batch in a data set that the devices hold;
            see `Returns`.
        **options: those of `make_step`, less `axis`.

    Returns:
        `(state, batch) -> (state, metrics)`; the state is donated. With `inner_steps=k` over 1,
        batches are (k, b, ...) and metrics (k,), those of each step. With `gather`, it is
        `(state, addressed, columns) -> (state, metrics)`: `addressed`, leaves of (b, ...), is laid
        out as a batch, and `columns` are expected on every device, for on the host they would
        travel at each call.
    """
    rule = rule or lay_out(task.tensor)
    step = make_step(_gathered(task, mesh, rule), **options)

    def sharded(state: State, batch: Batch) -> tuple[State, Metrics]:
        batch = lax.with_sharding_constraint(batch, batch_sharding(mesh))
        state, metrics = step(state, batch)
        return lax.with_sharding_constraint(state, shardings(state, mesh, rule)), metrics

    return jax.jit(_scanned(_fed(sharded, gather), inner_steps), donate_argnums=0)


def pmap_step(
    task: Task,
    devices: list[Any] | None = None,
    *,
    inner_steps: int = 1,
    gather: Gather | None = None,
    **options: Any,
) -> Program:
    """Compile a step with `pmap`: a replica of the state and a share of the batch on each device.

    The state it takes and returns is an ordinary one, with no device axis.

    Args:
        task: the task.
        devices: those to use; this process' by default.
        inner_steps: as of `jit_step`.
        gather: as of `jit_step`.
        **options: those of `make_step`, less `axis`.

    Returns:
        As `jit_step`.
    """
    devices = jax.local_devices() if devices is None else devices
    mapped = jax.pmap(
        _scanned(_fed(make_step(task, axis=AXIS, **options), gather), inner_steps),
        axis_name=AXIS,
        in_axes=(None, 0) if gather is None else (None, 0, None),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=devices,
        donate_argnums=0,
    )
    # Where `mapped` leaves the state: one that starts there does not compile a second time.
    where = NamedSharding(Mesh(np.array(devices), (AXIS,)), P())
    given: tuple[Any, ...] = ()  # the columns of the last call,
    placed: tuple[Any, ...] = ()  # and the same where `mapped` wants them

    def step(state: State, batch: Batch, *columns: Any) -> tuple[State, Metrics]:
        nonlocal given, placed
        if getattr(state.step, "sharding", None) != where:
            state = jax.device_put(state, where)
        if columns and (not given or columns[0] is not given[0]):
            given, placed = columns, jax.device_put(columns, where)
        return mapped(state, _per_device(batch, len(devices), axis=int(inner_steps > 1)), *placed)

    return step


def _fed(step: Step, gather: Gather | None) -> Program:
    """Let a step find its batch in columns that the devices hold."""
    if gather is None:
        return step
    return lambda state, addressed, columns: step(state, gather(columns, addressed))


def _scanned(step: Program, inner_steps: int) -> Program:
    if inner_steps < 1:
        raise ValueError(f"inner_steps={inner_steps} must be at least 1")
    if inner_steps == 1:
        return step
    # The columns are no part of what the scan carries or divides, so that it copies none.
    return lambda state, batch, *columns: lax.scan(
        lambda state, batch: step(state, batch, *columns), state, batch
    )


def jit_sample(task: Task, mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """Compile `(params, stats, keys, cond) -> samples` over a mesh, under a task's own options."""

    def sample(params: Any, stats: Any, keys: jax.Array, cond: Batch) -> Any:
        keys, cond = lax.with_sharding_constraint((keys, cond), batch_sharding(mesh))
        whole = _gathered(task, mesh, lay_out(task.tensor))
        return whole.sample(params, stats, keys, cond, **options)

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


def _gathered(task: Task, mesh: Mesh, rule: Rule) -> Task:
    """Let losses and the sampler see parameters that are whole but for `tensor`, however stored.

    Left to itself the compiler would divide activations as it finds the weights divided, and
    communicate activations in place of weights. The gradients come back divided, so that
    accumulating them takes no more memory than the parameters do.
    """

    def read(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
        return P(*(axis if axis == "tensor" else None for axis in rule(path, shape, mesh)))

    @jax.custom_vjp
    def whole(params: Any) -> Any:
        return lax.with_sharding_constraint(params, shardings(params, mesh, read))

    def backward(_: None, grads: Any) -> tuple[Any]:
        return (lax.with_sharding_constraint(grads, shardings(grads, mesh, rule)),)

    whole.defvjp(lambda params: (whole(params), None), backward)

    def gather(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *rest, **options: function(whole(params), *rest, **options)

    phases = tuple(phase._replace(loss=gather(phase.loss)) for phase in task.phases)
    return task._replace(phases=phases, sample=gather(task.sample))


def _per_device(batch: Any, n: int, axis: int = 0) -> Any:
    """Give each of n devices its share of the examples, which lie along an axis."""

    def split(x: Any) -> Any:
        b = x.shape[axis]
        if b % n:
            raise ValueError(f"a batch of {b} does not divide over {n} devices")
        # (b, ...) -> (n, b/n, ...), or (k, b, ...) -> (k, n, b/n, ...) -> (n, k, b/n, ...)
        return x.reshape(*x.shape[:axis], n, b // n, *x.shape[axis + 1 :]).swapaxes(0, axis)

    return jax.tree.map(split, batch)
