"""Measure the samplers: `python -m benchmarks.sample`.

For each solver and number of steps: compile time and images/s, on the network of `ddpm_digits`,
its weights random. Numbers of steps alternate in every repeat, and medians are reported. A scan
compiles its body once, so that compile time does not depend on the number of steps.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.functional.schedules import cosine
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import SOLVERS, diffusion
from benchmarks import record


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the samplers.")
    parser.add_argument("--solver", nargs="+", default=["ddim"], choices=list(SOLVERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    denoiser = UNet(64, (1,), 1, attention=(4,), dropout=0.0, classes=10, patch=2)
    shape, n = (8, 8, 1), options.batch
    task = diffusion(denoiser, cosine(), optax.sgd(0.1), shape=shape, classes=10)
    example = {"image": jnp.zeros((1, *shape)), "label": jnp.zeros(1, jnp.int32)}
    params, stats = jax.jit(task.init)(stream(0, "init"), example)
    keys = example_keys(stream(0, "sample"), jnp.arange(n))
    cond = {"label": jnp.arange(n) % 10}

    cases = [(solver, steps) for solver in options.solver for steps in options.steps]
    compiling: dict[Any, list[float]] = {case: [] for case in cases}
    sampling: dict[Any, list[float]] = {case: [] for case in cases}
    for _ in range(options.repeats):
        for solver, steps in cases:
            jax.clear_caches()
            lowered = jax.jit(
                lambda *args, solver=solver, steps=steps: task.sample(
                    *args, solver=solver, steps=steps
                )
            ).lower(params, stats, keys, cond)
            start = time.perf_counter()
            sample = lowered.compile()
            compiling[solver, steps].append(time.perf_counter() - start)
            start = time.perf_counter()
            sample(params, stats, keys, cond).block_until_ready()
            sampling[solver, steps].append(time.perf_counter() - start)

    rows = []
    for solver, steps in cases:
        against = zip(compiling[solver, steps], compiling[solver, options.steps[0]], strict=True)
        row = {
            "solver": solver,
            "steps": steps,
            "batch": n,
            "compile_seconds": statistics.median(compiling[solver, steps]),
            "compile_ratio": statistics.median(a / b for a, b in against),
            "images_per_second": n / statistics.median(sampling[solver, steps]),
        }
        rows.append(row)
        print(
            f"{solver:10} {steps:5} steps  compiled in {row['compile_seconds']:.2f} s "
            f"({row['compile_ratio']:.2f} of {options.steps[0]} steps')  "
            f"{row['images_per_second']:,.1f} images/s",
            flush=True,
        )
    print(f"written to {record.write('sample', rows)}")


if __name__ == "__main__":
    main()
