"""A task that compiles in no time, for tests of what surrounds tasks; run by itself, it trains.

A line fitted to noisy points, the noise from each example's key, so that an order of data or a key
that went astray would show.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Before jax is imported, which reads it once.
    OPTIONS = json.loads(sys.argv[1])
    os.environ["JAX_PLATFORMS"] = "cpu"
    # The flags of the tests besides, for other code would round otherwise. The last one counts.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={OPTIONS['devices']}"
    )

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core.keys import normal
from aigc_jax.core.types import Experiment, Out, Phase, Task

IDENTITY = {"experiment": "regression", "arguments": {"lr": 0.05, "width": 8}}


class Points(NamedTuple):
    """Batches of points; `poison` steps hold a NaN, and at `signals` steps one is raised."""

    seed: int
    batch: int
    poison: range = range(0)
    signals: dict[int, int] = {}
    delay: float = 0.0

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        if step in self.signals:
            os.kill(os.getpid(), self.signals[step])
        time.sleep(self.delay)
        rng = np.random.default_rng([self.seed, step])
        x = rng.normal(size=(self.batch, 4)).astype(np.float32)
        if step in self.poison:
            x[0, 0] = np.nan
        share = self.batch // jax.process_count()
        return {"x": x[share * jax.process_index() :][:share]}


def make_task(lr: float = 0.05, width: int = 8) -> Task:
    def init(key: jax.Array, batch: Any) -> Any:
        return {"line": {"w": jax.random.normal(key, (4, width)), "b": jnp.zeros(width)}}, {}

    def loss(params: Any, stats: Any, batch: Any, keys: jax.Array, mode: Any) -> Out:
        x = batch["x"]
        y = x @ jnp.ones((4, width)) + 0.5 + 0.1 * normal(keys, (width,))
        error = jnp.square(x @ params["line"]["w"] + params["line"]["b"] - y).mean(-1)
        return Out(error, jnp.ones_like(error))

    def sample(params: Any, stats: Any, keys: jax.Array, cond: Any, *, scale: float = 1.0) -> Any:
        x = cond.get("x", normal(keys, (4,)))
        return (x @ params["line"]["w"] + params["line"]["b"]) * scale

    return Task(
        init, (Phase("fit", ("line",), loss, optax.adam(lr)),), sample, average={"line": 0.9}
    )


def make_experiment(
    steps: int = 20,
    batch: int = 8,
    poison: range = range(0),
    signals: Any = {},
    delay: float = 0.0,
    width: int = 8,
    **others: Any,
) -> Experiment:
    data = lambda seed: Points(seed, batch, poison, signals, delay)
    return Experiment(make_task(width=width), data, steps, batch, **others)


def saved(out: Path) -> list[int]:
    """Return the steps at which a run has whole checkpoints, in order."""
    return sorted(int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit())


def spawn(out: Path, environment: Any = {}, devices: int = 4, **options: Any) -> Any:
    """Train in another process; `options` are those of `main`."""
    options = {"out": str(out), "devices": devices, **options}
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(options)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main(
    out: str,
    devices: int,
    process: Any = None,
    signals: Any = {},
    delay: float = 0.0,
    width: int = 8,
    **options: Any,
) -> int:
    if process is not None:
        number, count, port = process
        jax.distributed.initialize(f"localhost:{port}", count, number)
    from aigc_jax.train.loop import fit

    signals = {int(step): number for step, number in signals.items()}
    experiment = make_experiment(signals=signals, delay=delay, width=width)
    result = fit(experiment, Path(out), identity=IDENTITY, **options)
    return 128 + result.signal if result.signal is not None else 0


if __name__ == "__main__":
    sys.exit(main(**OPTIONS))
