"""Measure what the loop costs beside its step: `python -m benchmarks.loop`.

Trains a VAE of 28×28 images by `train.loop.fit`, which reads batches, logs, shows progress and
saves; and, after each stretch of it, by nothing but its compiled step: on batches read as the loop
reads them, which tells what the loop itself costs, and on one that stays on the device, which tells
what reading costs besides. A share of 1 says that it costs nothing. A stretch of the loop holds
what it does every so many steps: lines of the log, a wait for the steps dispatched, a save. What a
save writes behind the steps is waited for in between, and does not count.
"""

import argparse
import io
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import make_mesh, put_batch
from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import arrays
from aigc_jax.data.transforms import normalise
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.tasks.vae import vae
from aigc_jax.train.compile import jit_init, jit_step
from aigc_jax.train.loop import fit
from aigc_jax.train.meter import IN_FLIGHT
from benchmarks import record
from benchmarks.step import make


def images(batch: int) -> Experiment:
    """Make the VAE: of random images, held in memory as MNIST is."""
    image = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    data = arrays({"image": image}, {"image": image[:1]})
    return Experiment(
        task=vae(MLPEncoder(20, 400), MLPDecoder((28, 28, 1), 400), optax.adam(1e-3), latent=20),
        data=lambda seed: batches(data.train, batch, seed, transform=normalise),
        steps=1,
        batch=batch,
    )


def bare(
    experiment: Experiment, stretch: int, inner_steps: int, resident: bool
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return what takes a stretch of steps, on batches it reads or on one, and returns seconds."""
    mesh, axis, batches = make_mesh(), int(inner_steps > 1), experiment.data(0)
    feed = batches.resident() if resident else batches.feed()
    columns = jax.device_put(feed.columns, NamedSharding(mesh, PartitionSpec()))
    state = jit_init(experiment.task, mesh)(stream(0, "init"), batches[0])
    step = jit_step(experiment.task, mesh, seed=0, inner_steps=inner_steps, gather=feed.gather)
    sent = feed.stream(0, sys.maxsize)

    def read() -> Any:
        if not axis:
            return put_batch(next(sent), mesh)
        some = [next(sent) for _ in range(inner_steps)]
        return put_batch(jax.tree.map(lambda *x: np.stack(x), *some), mesh, axis)

    held = read()

    def run(take: Callable[[], Any]) -> float:
        nonlocal state
        start = time.perf_counter()
        flight: deque[Any] = deque()
        for _ in range(stretch // inner_steps):
            state, metrics = step(state, take(), columns)
            flight.append(metrics)
            if len(flight) > IN_FLIGHT:
                jax.block_until_ready(flight.popleft())
        jax.block_until_ready((state, flight))
        return time.perf_counter() - start

    fed, alone = (lambda: run(read)), (lambda: run(lambda: held))
    alone()  # compiles
    return fed, alone


def measure(
    experiment: Experiment,
    *,
    inner_steps: int,
    stretch: int,
    rounds: int,
    log_every: int,
    resident: bool,
) -> dict[str, Any]:
    """Measure a row: stretches of the loop, each followed by two of its bare step."""
    times: list[tuple[float, float, float]] = []
    began = 0.0

    def evaluate(_: Model) -> dict[str, float]:
        nonlocal began
        loop = time.perf_counter() - began
        time.sleep(0.3)  # until what has been saved is written
        times.append((loop, fed(), alone()))
        began = time.perf_counter()
        return {}

    experiment = experiment._replace(evaluate=evaluate, picture=None, best=None)
    fed, alone = bare(experiment, stretch, inner_steps, resident)
    with tempfile.TemporaryDirectory() as folder:
        terminal, sys.stderr = sys.stderr, io.StringIO()
        try:
            fit(
                experiment,
                Path(folder),
                identity={},
                steps=(rounds + 1) * stretch,
                inner_steps=inner_steps,
                log_every=log_every,
                save_every=stretch,
                evaluate_every=stretch,
                resident=resident,
            )
        finally:
            sys.stderr = terminal
    loop, read, step = np.array(times[1:]).T  # the first stretch of the loop compiled
    lowest, share, highest = np.percentile(read / loop, (25, 50, 75))
    return {
        "batch": experiment.batch,
        "inner_steps": inner_steps,
        "resident": resident,
        "share": round(float(share), 3),
        "lowest": round(float(lowest), 3),  # the quartiles
        "highest": round(float(highest), 3),
        "share_with_reading": round(float(np.median(step / loop)), 3),
        "rounds": rounds,
        "step_milliseconds": round(1e3 * float(np.median(step)) / stretch, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the loop costs beside its step.")
    parser.add_argument(
        "--experiment",
        help="in place of the VAE, as `benchmarks.step` takes it: ddpm_cifar10:batch=256",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="of the VAE")
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--stretch", type=int, default=100, help="steps between two saves")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--resident", action="store_true", help="the devices hold the data set")
    parser.add_argument("--name", default="loop", help="of the file in benchmarks/results")
    options = parser.parse_args()
    rows = []
    spec = options.experiment
    for experiment in [make(spec)] if spec else map(images, options.batch):
        for inner in options.inner_steps:
            row = measure(
                experiment,
                inner_steps=inner,
                stretch=options.stretch,
                rounds=options.rounds,
                log_every=options.log_every,
                resident=options.resident,
            )
            rows.append({"experiment": spec or "VAE", **row})
            print(
                f"batch {row['batch']:5}, {inner:3} steps a dispatch: "
                f"{row['step_milliseconds']:7.2f} ms a step; the loop does {row['share']:.1%} "
                f"({row['lowest']:.1%} to {row['highest']:.1%}) of its rate on the same batches, "
                f"{row['share_with_reading']:.1%} of that without reading any",
                flush=True,
            )
    print(f"written to {record.write(options.name, rows)}")


if __name__ == "__main__":
    main()
