"""Measure what the loop costs beside its step: `python -m benchmarks.loop`.

Trains a VAE of 28×28 images by `train.loop.fit`, which reads batches, logs, shows progress and
saves, and by nothing but its compiled step on a batch that stays on the device. The two alternate;
a share of 1 says that the loop costs nothing. Its rate is taken between its first and its last line
of the log, so that compiling is left out and saving is not.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import make_mesh, put_batch
from aigc_jax.core.types import Experiment
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import normalise
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.tasks.vae import vae
from aigc_jax.train.compile import jit_init, jit_step
from aigc_jax.train.loop import fit
from benchmarks import record


def make(batch: int, steps: int) -> Experiment:
    """Make the experiment: random images, held in memory as MNIST is."""
    image = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    data = arrays({"image": image}, {"image": image[:1]})
    return Experiment(
        task=vae(MLPEncoder(20, 400), MLPDecoder((28, 28, 1), 400), optax.adam(1e-3), latent=20),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=steps,
        batch=batch,
    )


def looped(experiment: Experiment, **options: Any) -> float:
    """Return steps/s of the loop, from the first line of its log to the last."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        terminal, sys.stderr = sys.stderr, io.StringIO()
        try:
            fit(experiment, out, identity={}, **options)
        finally:
            sys.stderr = terminal
        log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = log[0], log[-1]
    return (last["step"] - first["step"]) / (last["time"] - first["time"])


def bare(experiment: Experiment, steps: int, inner_steps: int) -> float:
    """Return steps/s of the compiled step alone."""
    mesh, axis = make_mesh(), int(inner_steps > 1)
    one = experiment.data(0)[0]
    batch = jax.tree.map(lambda x: np.stack([x] * inner_steps), one) if axis else one
    state = jit_init(experiment.task, mesh)(stream(0, "init"), one)
    step = jit_step(experiment.task, mesh, seed=0, inner_steps=inner_steps)
    data = put_batch(batch, mesh, axis)
    state, metrics = jax.block_until_ready(step(state, data))
    start = time.perf_counter()
    for _ in range(steps // inner_steps):
        state, metrics = step(state, data)
    jax.block_until_ready((state, metrics))
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the loop costs beside its step.")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for batch in options.batch:
        for inner in options.inner_steps:
            experiment, ours, alone = make(batch, options.steps), [], []
            for _ in range(options.rounds):
                every = {"log_every": 50, "save_every": 250}
                ours.append(looped(experiment, inner_steps=inner, **every))
                alone.append(bare(experiment, options.steps, inner))
            shares = sorted(a / b for a, b in zip(ours, alone, strict=True))
            row = {
                "batch": batch,
                "inner_steps": inner,
                "share": round(statistics.median(shares), 3),
                "lowest": round(shares[0], 3),
                "highest": round(shares[-1], 3),
                "step_milliseconds": round(1e3 / statistics.median(alone), 2),
            }
            rows.append(row)
            print(
                f"batch {batch:5}, {inner:3} steps a dispatch: {row['step_milliseconds']:7.2f} ms "
                f"a step; the loop does {row['share']:.1%} "
                f"({row['lowest']:.1%} to {row['highest']:.1%}) of the bare rate",
                flush=True,
            )
    print(f"written to {record.write('loop', rows)}")


if __name__ == "__main__":
    main()
