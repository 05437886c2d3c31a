"""One training step of any task, as a pure function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.shapes import batch_size
from aigc_jax.core.types import Batch, Mean, Mode, Out, Phase, State, Task

Metrics = dict[str, Mean]
Step = Callable[[State, Batch], tuple[State, Metrics]]


def init(task: Task, key: Array, batch: Batch, weights: Mapping[str, Any] = {}) -> State:
    """Make the state of a task before its first step.

    Args:
        task: the task.
        key: one key, by custom `stream(seed, "init")`.
        batch: an example of the batches to come; only its shapes and types matter.
        weights: network -> parameters to begin from, in place of those that the task makes.

    Returns:
        The state. Its leaves are copies, so that no two share a buffer and all can be donated.

    Raises:
        ValueError: two phases share a name, a phase or an average names an unknown network, a
            phase shares the optimiser of one that trains others, or weights are of an unknown
            network or of other shapes.
    """
    params, stats = task.init(key, batch)
    params = params | {name: _fitting(name, new, params) for name, new in weights.items()}
    names = [phase.name for phase in task.phases]
    if len(set(names)) < len(names):
        raise ValueError(f"two phases share a name: {names}")
    wanted = {f"phase {p.name!r} trains": p.trains for p in task.phases} | {
        "average names": tuple(task.average)
    }
    for who, networks in wanted.items():
        if unknown := set(networks) - set(params):
            raise ValueError(f"{who} {sorted(unknown)}; the networks are {sorted(params)}")
    own = {p.name: p for p in task.phases if p.optimiser is None}
    for p in task.phases:
        if p.optimiser and (p.optimiser not in own or own[p.optimiser].trains != p.trains):
            like = [name for name, other in own.items() if other.trains == p.trains]
            raise ValueError(
                f"phase {p.name!r} shares optimiser={p.optimiser!r}; phases of their own optimiser "
                f"that train {p.trains} are {like}"
            )
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt={name: p.tx.init({n: params[n] for n in p.trains}) for name, p in own.items()},
        ema={n: {"params": params[n], "stats": stats.get(n, {})} for n in task.average},
    )
    return jax.tree.map(jnp.copy, state)


def _fitting(name: str, weights: Any, params: dict[str, Any]) -> Any:
    """Return weights, as JAX's arrays, if they can stand for those of a network."""
    if name not in params:
        raise ValueError(f"weights of {name!r} are given; the networks are {sorted(params)}")
    shapes = lambda tree: {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }
    given, wanted = shapes(weights), shapes(params[name])
    if different := sorted(p for p in given | wanted if given.get(p) != wanted.get(p)):
        p = different[0]
        raise ValueError(
            f"weights of {name!r} do not fit at {len(different)} paths, the first being {p}: "
            f"{given.get(p, 'nothing')} is given, and {wanted.get(p, 'nothing')} wanted"
        )
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), weights, params[name])


def averaged(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `(params, stats)` with each averaged network's average in place of its last value."""
    params = {**state.params, **{n: ema["params"] for n, ema in state.ema.items()}}
    stats = {**state.stats, **{n: ema["stats"] for n, ema in state.ema.items() if ema["stats"]}}
    return params, stats


def make_step(task: Task, *, seed: int, axis: str | None = None, accumulate: int = 1) -> Step:
    """Make the pure training step of a task: `(state, batch) -> (state, metrics)`.

    The same seed trains the same model, to float rounding, however the batch is split: over
    devices by `jit` (`axis=None`) or `pmap` (`axis` its name), or over `accumulate` microbatches
    in sequence; unless dropout is live, whose masks a module draws for the share it sees.

    A phase whose loss or gradient is not finite leaves its networks, their stats and its optimiser
    as they were and counts in its `skipped`.

    Args:
        task: the task.
        seed: addresses all randomness of the training.
        axis: the mapped axis' name, or None.
        accumulate: microbatches a step; must divide the (local) batch. Batch statistics are then
            those of microbatches, inherently.

    Returns:
        The step. Its metrics are `{"phase/name": Mean}`: the loss, the phase's own, `grad_norm` and
        `skipped` (1 on a step whose update was dropped); all weigh 0 on a step a phase sits out.

    Raises:
        ValueError: a number of the task or `accumulate` makes no sense; or, when the step is
            traced, `accumulate` does not divide the batch, or a phase's metric has a name of the
            step's own.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate} must be at least 1")
    for phase in task.phases:
        if phase.every < 1:
            raise ValueError(f"phase {phase.name!r}: every={phase.every} must be at least 1")
        if phase.start < 0:
            raise ValueError(f"phase {phase.name!r}: start={phase.start} must not be negative")
    for name, decay in task.average.items():
        if not 0 <= decay <= 1:
            raise ValueError(f"average[{name!r}]={decay} must lie in [0, 1]")

    def descend(phase: Phase, state: State, batch: Batch, index: Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(stream(seed, phase.name), state.step)
        trained = {n: state.params[n] for n in phase.trains}
        moments = phase.optimiser or phase.name
        mode = Mode(train=True, axis=axis, step=state.step)

        def sums(trained: dict[str, Any], batch: Batch, index: Array) -> tuple[Array, Any]:
            keys = example_keys(key, index)
            out = phase.loss({**state.params, **trained}, state.stats, batch, keys, mode)
            _check(phase, out, index.shape)
            weight = lax.stop_gradient(out.weight)
            total = jnp.sum(out.loss * weight)
            metrics = {name: jnp.sum(m * weight) for name, m in out.metrics.items()}
            stats = {n: s for n, s in out.stats.items() if n in phase.trains}
            return total, (jnp.sum(weight), metrics, stats)

        gradient = jax.value_and_grad(sums, has_aux=True)
        (total, (weight, metrics, stats)), grads = _over_microbatches(
            gradient, trained, batch, index, accumulate
        )
        stats = jax.tree.map(lambda x: x / accumulate, stats)
        if axis is not None:
            total, weight, metrics, grads = lax.psum((total, weight, metrics, grads), axis)
            stats = lax.pmean(stats, axis)

        grads = jax.tree.map(lambda g: g / weight, grads)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        updates, opt = phase.tx.update(grads, state.opt[moments], trained)
        old = (trained, {n: state.stats[n] for n in stats}, state.opt[moments])
        new = (optax.apply_updates(trained, updates), stats, opt)
        # A select, not a branch: a branch would make a GPU wait for the host.
        trained, stats, opt = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        state = state._replace(
            params={**state.params, **trained},
            stats={**state.stats, **stats},
            opt={**state.opt, moments: opt},
        )
        one = jnp.ones(())
        # A dropped step weighs nothing in the means, so that a log shows what was learned from.
        means = {n: _mean(m, weight, finite) for n, m in {"loss": total, **metrics}.items()}
        means["grad_norm"] = _mean(norm, one, finite)
        means["skipped"] = Mean(1.0 - finite, one)
        return state, {f"{phase.name}/{name}": mean for name, mean in means.items()}

    def scheduled(phase: Phase, state: State, batch: Batch, index: Array) -> tuple[State, Metrics]:
        run = lambda state: descend(phase, state, batch, index)
        if phase.every == 1 and phase.start == 0:
            return run(state)
        shapes = jax.eval_shape(run, state)[1]
        rest = lambda state: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        due = (state.step >= phase.start) & (state.step % phase.every == phase.every - 1)
        return lax.cond(due, run, rest, state)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        b = batch_size(batch)
        if b % accumulate:
            raise ValueError(f"accumulate={accumulate} must divide the batch on a device, {b}")
        index = jnp.arange(b)
        if axis is not None:
            index = index + lax.axis_index(axis) * b
        metrics: Metrics = {}
        for phase in task.phases:
            state, of_phase = scheduled(phase, state, batch, index)
            metrics |= of_phase
        return _average(task, state)._replace(step=state.step + 1), metrics

    return step


def _over_microbatches(
    gradient: Callable[..., Any], trained: Any, batch: Batch, index: Array, accumulate: int
) -> Any:
    """Sum what `gradient` returns over microbatches."""
    if accumulate == 1:
        return gradient(trained, batch, index)

    def split(x: Array) -> Array:
        # (b, ...) -> (b/k, k, ...) -> (k, b/k, ...): each device keeps its own examples. The other
        # order, (k, b/k), would gather a sharded batch.
        return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

    micro = jax.tree.map(split, (batch, index))
    shapes = jax.eval_shape(gradient, trained, *jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda total, x: (jax.tree.map(jnp.add, total, gradient(trained, *x)), None)
    return lax.scan(add, zeros, micro)[0]


def _average(task: Task, state: State) -> State:
    """Move each exponential moving average toward its network.

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that a short run's average is not its
    start. What is not a number with a fraction is taken as it is now.
    """

    def move(a: Array, x: Array, d: Array) -> Array:
        return d * a + (1 - d) * x if jnp.issubdtype(x.dtype, jnp.inexact) else x

    t = state.step.astype(jnp.float32)
    ema = {}
    for name, decay in task.average.items():
        d = jnp.minimum(decay, (1 + t) / (10 + t))
        now = {"params": state.params[name], "stats": state.stats.get(name, {})}
        ema[name] = jax.tree.map(functools.partial(move, d=d), state.ema[name], now)
    return state._replace(ema=ema)


def _mean(total: Array, weight: Array, finite: Array) -> Mean:
    return Mean(jnp.where(finite, total, 0.0), jnp.where(finite, weight, 0.0))


def _check(phase: Phase, out: Out, shape: tuple[int, ...]) -> None:
    """Hold law 2: values and weights are (b,), the loss in float32."""
    if taken := {"loss", "grad_norm", "skipped"} & set(out.metrics):
        raise ValueError(f"phase {phase.name!r} calls a metric {min(taken)!r}, as the step does")
    chex.assert_shape([out.loss, out.weight, *out.metrics.values()], shape)
    chex.assert_type(out.loss, jnp.float32)
