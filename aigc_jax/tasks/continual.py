"""Going on with another corpus without forgetting the first: elastic weight consolidation."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task


def consolidate(task: Task, network: str, strength: float) -> Task:
    """Hold a network's weights to those it had, the more the more they mattered (EWC).

    Each phase that trains the network gains λ/2 Σ_i F_i (θ_i − θ*_i)² (Kirkpatrick et al. 2017,
    eq. 3). θ* and F are the networks `anchor` and `fisher` of the parameters, which no phase
    trains: `weights` give them, or they are zeros. F is what `diagonal_fisher` measures.

    Args:
        task: any.
        network: which of its networks.
        strength: λ.

    Returns:
        The task, with two more networks, and a metric `elastic`, the penalty.

    Raises:
        ValueError: `strength` is negative, or no phase trains the network.
    """
    if strength < 0:
        raise ValueError(f"strength={strength} must be at least 0")
    if not any(network in phase.trains for phase in task.phases):
        trained = sorted({name for phase in task.phases for name in phase.trains})
        raise ValueError(f"no phase trains network={network!r}; they train {trained}")

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        params, stats = task.init(key, batch)
        nothing = jax.tree.map(jnp.zeros_like, params[network])
        return params | {"anchor": nothing, "fisher": nothing}, stats

    def held(phase: Phase) -> Phase:
        def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
            out = phase.loss(params, stats, batch, keys, mode)
            each = jax.tree.map(
                lambda f, now, then: jnp.sum(f * jnp.square(now - then)),
                *(params[name] for name in ("fisher", network, "anchor")),
            )
            penalty = 0.5 * strength * jax.tree.reduce(jnp.add, each)
            penalty = jnp.broadcast_to(penalty, out.loss.shape)
            return out._replace(loss=out.loss + penalty, metrics=out.metrics | {"elastic": penalty})

        return phase._replace(loss=loss) if network in phase.trains else phase

    return task._replace(init=init, phases=tuple(held(phase) for phase in task.phases))


def diagonal_fisher(
    task: Task, network: str, params: Any, stats: Any, batches: Iterable[Batch]
) -> Any:
    """Measure how much each weight matters: the mean of the squared gradients of examples.

    It is the diagonal of the empirical Fisher information of the first phase that trains the
    network, its loss times its weight being an example's −log p.

    Args:
        task: what was trained.
        network: which of its networks.
        params: weights by network.
        stats: non-gradient state by network.
        batches: examples to measure on, some hundreds in all.

    Returns:
        The network's parameters' shapes, per token or whatever the weights count: so that the
        penalty stands beside a mean loss.

    Raises:
        ValueError: no phase trains the network, or there is no batch.
    """
    phases = [phase for phase in task.phases if network in phase.trains]
    if not phases:
        raise ValueError(f"no phase trains network={network!r}")
    [phase, *_] = phases

    def nll(own: Any, example: Batch, key: Array) -> tuple[Array, Array]:
        one = jax.tree.map(lambda x: x[None], example)
        out = phase.loss({**params, network: own}, stats, one, key[None], Mode(train=False))
        return jnp.sum(out.loss * out.weight), jnp.sum(out.weight)

    @jax.jit
    def squares(own: Any, batch: Batch, keys: Array) -> tuple[Any, Array]:
        def add(total: Any, one: Any) -> tuple[Any, Array]:
            grads, weight = jax.grad(nll, has_aux=True)(own, *one)
            return jax.tree.map(lambda t, g: t + jnp.square(g), total, grads), weight

        zeros = jax.tree.map(jnp.zeros_like, own)
        # One by one: the gradients of a whole batch would take as many times the memory.
        total, weights = jax.lax.scan(add, zeros, (batch, keys))
        return total, weights.sum()

    total, weight, done = None, 0.0, 0
    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        b = len(jax.tree.leaves(batch)[0])
        keys = example_keys(stream(0, "fisher"), done + jnp.arange(b))
        some, of = squares(params[network], batch, keys)
        total = some if total is None else jax.tree.map(jnp.add, total, some)
        weight, done = weight + float(of), done + b
    if total is None:
        raise ValueError("batches is empty; there must be at least one")
    return jax.tree.map(lambda x: x / weight, total)
