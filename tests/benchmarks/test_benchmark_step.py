import functools

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core.types import Out, Phase, Task
from aigc_jax.train.step import init
from benchmarks.step import step_flops

B, K, M, N = 5, 3, 7, 2
FIRST, SECOND = 2 * B * K * M, 2 * B * M * N  # of the two products of a loss


def task(*, every: int = 1, remat: bool = False) -> Task:
    """Two networks: one phase trains the second, on what the first makes; the other trains both."""

    def start(key, batch):
        return {"first": jnp.ones((K, M)), "second": jnp.ones((M, N))}, {}

    def loss(params, stats, batch, keys, mode):
        run = lambda x: jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"])
        y = (jax.checkpoint(run) if remat else run)(batch["x"])
        return Out(y.sum(1), jnp.ones(B))

    tx = optax.sgd(0.1)
    phases = Phase("one", ("second",), loss, tx), Phase("all", ("first", "second"), loss, tx, every)
    return Task(start, phases, lambda *_: None)


def count(**options) -> int:
    batch = {"x": jnp.ones((B, K))}
    made = task(**options)
    state = jax.eval_shape(functools.partial(init, made), jax.random.key(0), batch)
    return step_flops(made, state, batch)


def test_a_step_counts_what_its_descents_need():
    # Forward; the gradient of the second; and for both, of what the second reads, and of the first.
    one = FIRST + SECOND + SECOND
    both = FIRST + SECOND + 2 * SECOND + FIRST
    assert count() == one + both
    assert count(every=3) == one + both // 3


def test_what_is_computed_again_does_not_count_beyond_three_losses():
    assert count() < count(remat=True) <= 2 * 3 * (FIRST + SECOND)
