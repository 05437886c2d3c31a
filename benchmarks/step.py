"""Measure the DDPM CIFAR-10 training step: `python -m benchmarks.step`.

Each row is one compiler, type and batch size: compile time, step time, images/s, peak memory, and
model FLOP utilisation: XLA's count of the step's operations over what a large matrix product
reaches in the same run and type. The batch is random and stays on the device.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import make_mesh, put_batch
from aigc_jax.core.types import Task
from aigc_jax.functional.schedules import linear
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import diffusion
from aigc_jax.train.compile import jit_init, jit_step, pmap_step
from benchmarks import record


def ddpm(dtype: str, tiny: bool) -> Task:
    """The network and optimiser of `experiments/ddpm_cifar10.py`, or a tiny one to try this out."""
    size: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1} if tiny else {}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))
    denoiser = UNet(dtype=jnp.dtype(dtype), **size)
    return diffusion(denoiser, linear(), tx, shape=(32, 32, 3))


def matrix_product(dtype: str, n: int) -> float:
    """Measure the FLOP/s of an n×n matrix product in a type, as the training step computes it."""
    a, b = jax.random.normal(jax.random.key(0), (2, n, n)).astype(dtype)
    multiply = jax.jit(jnp.dot)
    multiply(a, b).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        multiply(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds)


def measure(compiler: str, dtype: str, batch: int, steps: int, tiny: bool) -> dict[str, Any]:
    """Measure one row."""
    task, mesh = ddpm(dtype, tiny), make_mesh()
    image = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32)
    example = {"image": image[: len(jax.devices())]}
    state = jit_init(task, mesh)(stream(0, "init"), example)
    lowered = jit_step(task, mesh, seed=0).lower(state, put_batch({"image": image}, mesh))
    start = time.perf_counter()
    step = lowered.compile()
    compiling = time.perf_counter() - start
    flops = (step.cost_analysis() or {}).get("flops", float("nan"))
    data = put_batch({"image": image}, mesh)
    if compiler == "pmap":
        step, data = pmap_step(task, seed=0), {"image": jnp.asarray(image)}

    for _ in range(3):
        state, metrics = step(state, data)
    jax.block_until_ready(metrics)
    seconds = []
    for _ in range(5):  # several steps a measurement, so that dispatch overlaps as in training
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, data)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - start) / steps)
    median = statistics.median(seconds)
    # Over the process so far: rows run from the smallest batch to the largest.
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "experiment": "tiny" if tiny else "ddpm_cifar10",
        "compiler": compiler,
        "dtype": dtype,
        "batch": batch,
        "compile_seconds": round(compiling, 1),
        "step_milliseconds": round(1e3 * median, 3),
        "fastest": round(1e3 * min(seconds), 3),
        "slowest": round(1e3 * max(seconds), 3),
        "images_per_second": round(batch / median, 1),
        "peak_memory_bytes": memory,
        "step_flops": flops,
        "flops_per_second": flops / median,
        "loss": float(metrics["denoiser/loss"].total / metrics["denoiser/loss"].weight),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the DDPM CIFAR-10 training step.")
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compiler", nargs="+", default=["jit", "pmap"])
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try this out")
    parser.add_argument("--name", default="step", help="of the file in benchmarks/results")
    options = parser.parse_args()
    n = 1024 if jax.default_backend() == "cpu" else 8192
    peak = {dtype: matrix_product(dtype, n) for dtype in options.dtype}
    rows = []
    for batch, dtype, compiler in itertools.product(
        sorted(options.batch), options.dtype, options.compiler
    ):
        row = measure(compiler, dtype, batch, options.steps, options.tiny)
        row["matrix_product_flops_per_second"] = peak[dtype]
        row["model_flop_utilisation"] = row["flops_per_second"] / peak[dtype]
        rows.append(row)
        print(
            f"{dtype:9} {compiler:5} batch {batch:5}  {row['images_per_second']:10,.0f} images/s  "
            f"{row['step_milliseconds']:8.2f} ms  MFU {row['model_flop_utilisation']:6.1%}  "
            f"compiled in {row['compile_seconds']} s",
            flush=True,
        )
    print(f"written to {record.write(options.name, rows)}")


if __name__ == "__main__":
    main()
