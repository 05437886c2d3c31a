"""What the steps say, read a few steps behind so that no step waits for the host."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.parallel import put_batch
from aigc_jax.train.log import Log
from aigc_jax.train.step import Metrics

# Calls dispatched ahead of the last known to be finished: enough to hide the host.
IN_FLIGHT = 4


class Diverged(RuntimeError):
    """Updates were dropped because they were not finite, too many in a row."""


class _Tally(NamedTuple):
    """What is counted on the devices, so that no step waits for the host.

    Attributes:
        totals: metrics summed since the last line of the log.
        streak: updates dropped in a row until now, by phase.
        longest: the longest such streak, by phase.
        signal: the number of a signal that any process has received, or 0.
    """

    totals: Metrics
    streak: dict[str, Array]
    longest: dict[str, Array]
    signal: Array


@jax.jit
def _count(tally: _Tally, metrics: Metrics, fresh: Array, signals: Array) -> _Tally:
    """Count one step's metrics, or those of (k,) steps."""

    def count(tally: _Tally, metrics: Metrics) -> tuple[_Tally, None]:
        streak, longest = {}, {}
        for phase, so_far in tally.streak.items():
            skipped = metrics[f"{phase}/skipped"]
            now = jnp.where(skipped.total > 0, so_far + 1, 0)
            streak[phase] = jnp.where(skipped.weight > 0, now, so_far)
            longest[phase] = jnp.maximum(tally.longest[phase], streak[phase])
        totals = jax.tree.map(jnp.add, tally.totals, metrics)
        return _Tally(totals, streak, longest, tally.signal), None

    tally = tally._replace(
        totals=jax.tree.map(lambda t: jnp.where(fresh, 0, t), tally.totals),
        signal=jnp.max(signals),
    )
    if jax.tree.leaves(metrics)[0].ndim == 0:
        return count(tally, metrics)[0]
    return lax.scan(count, tally, metrics)[0]


class Meter:
    """Follows the steps a few behind the one dispatched, and reads what they counted.

    Attributes:
        signal: the number of a signal that all processes have heard of, or 0.
        skipped: updates dropped until the last line of the log.
    """

    def __init__(self, mesh: Mesh, log: Log, log_every: int, patience: int, step: int, total: int):
        self.signal = self.skipped = 0
        self._mesh, self._log, self._total = mesh, log, total
        self._log_every, self._patience = log_every, patience
        self._tally: _Tally | None = None
        self._flight: deque[tuple[int, _Tally]] = deque()
        self._since, self._settled, self._mark = step, step, 0.0
        self._flags: dict[int, Array] = {}

    def push(self, step: int, metrics: Metrics, number: int) -> None:
        """Count what was dispatched until a step, and settle what was a few dispatches ago."""
        first = self._tally is None
        if self._tally is None:
            self._mark = time.perf_counter()
            self._tally = self._zeros(metrics)
        if number not in self._flags:
            local = len(self._mesh.local_devices)
            self._flags[number] = put_batch(np.full(local, number, np.int32), self._mesh)
        steps = max(jax.tree.leaves(metrics)[0].shape, default=1)
        fresh = np.bool_(first or (step - steps) % self._log_every == 0)
        tally = _count(self._tally, metrics, fresh, self._flags[number])
        self._tally = tally
        self._flight.append((step, tally))
        if jax.process_count() == 1:
            self.signal = number
        if len(self._flight) > IN_FLIGHT:
            self._settle()

    def drain(self) -> None:
        """Wait for every step that was dispatched."""
        while self._flight:
            self._settle()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Wait for every step, and stop the clock."""
        self.drain()
        began = time.perf_counter()
        yield
        self._mark += time.perf_counter() - began

    def _settle(self) -> None:
        step, tally = self._flight.popleft()
        jax.block_until_ready(tally)
        if jax.process_count() > 1:
            # Every process reads the same number off the same step, so they stop together.
            self.signal = self.signal or int(tally.signal)
        ends = step % self._log_every == 0 or step == self._total
        due = step // self._patience > self._settled // self._patience
        self._settled = step
        if ends or due:
            for phase, longest in jax.device_get(tally.longest).items():
                if longest >= self._patience:
                    raise Diverged(
                        f"{phase}: {longest} updates in a row, until step {step}, were not finite; "
                        "lower the learning rate, clip the gradients, or look for NaN in the data"
                    )
        if ends:
            now = time.perf_counter()
            values = means(jax.device_get(tally.totals))
            self.skipped += sum(int(n) for name, n in values.items() if name.endswith("/skipped"))
            self._log.window(step, values, seconds=now - self._mark, steps=step - self._since)
            self._since, self._mark = step, now

    def _zeros(self, metrics: Metrics) -> _Tally:
        phases = [name.removesuffix("/skipped") for name in metrics if name.endswith("/skipped")]
        totals = jax.tree.map(lambda m: np.zeros((), m.dtype), metrics)
        none = dict.fromkeys(phases, np.int32(0))
        return jax.device_put(
            _Tally(totals, none, none, np.int32(0)),  # pyright: ignore[reportArgumentType]
            NamedSharding(self._mesh, P()),
        )


def means(totals: Metrics) -> dict[str, float]:
    """Divide, once; `skipped` stays the count it is. What weighs nothing has no mean."""
    return {
        name: float(mean.total if name.endswith("/skipped") else mean.total / mean.weight)
        for name, mean in totals.items()
        if mean.weight > 0 or name.endswith("/skipped")
    }
