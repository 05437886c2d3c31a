"""Measure the samplers: `python -m benchmarks.sample [EXPERIMENT ...]`.

An experiment is given as to `benchmarks.step`; by default the demo, `ddpm_digits`. Its weights are
random, which costs as much as trained ones do.

Each row is one solver and number of steps. Cold is what the first call in a process pays: to trace
and lower the sampler, to compile it (without the cache of an earlier process), and to run it; here
JAX's caches are cleared before each instead of starting a process. Warm is every call after it:
samples/s of a batch, and the latency of one sample. Rows alternate in every repeat, and medians are
reported. `compile_ratio` compares with the first number of steps: a sampler is a scan, whose body
is compiled once, so that the ratio stays near 1.
"""

import argparse
import inspect
import time
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Experiment
from benchmarks import record
from benchmarks.step import make

Program = Callable[[], Any]


def measure(
    experiment: Experiment, cases: list[dict[str, Any]], batch: int, cold: int, repeats: int
) -> list[dict[str, Any]]:
    """Measure a row for each case, a dict of options of the task's sampler."""
    task = experiment.task
    example = jax.tree.map(lambda x: x[:1], experiment.data(0)[0])
    params, stats = jax.jit(task.init)(stream(0, "init"), example)

    def start(case: dict[str, Any], n: int) -> tuple[tuple[float, float, float], Program]:
        """Sample n for the first time: the seconds to trace, compile and run, and the program."""
        keys = example_keys(stream(0, "sample"), jnp.arange(n))
        cond = {"label": jnp.arange(n) % len(experiment.classes)} if experiment.classes else {}
        args = params, stats, keys, cond
        jax.clear_caches()
        begun = time.perf_counter()
        lowered = jax.jit(lambda *args: task.sample(*args, **case)).lower(*args)
        traced = time.perf_counter()
        program = lowered.compile()
        compiled = time.perf_counter()
        run = lambda: jax.block_until_ready(program(*args))
        run()
        return (traced - begun, compiled - traced, time.perf_counter() - compiled), run

    rows = range(len(cases))
    seconds, programs = np.empty((cold, len(cases), 3)), [lambda: None] * len(cases)
    for repeat in range(cold):
        for row in rows:
            seconds[repeat, row], programs[row] = start(cases[row], batch)
    single = [start(case, 1)[1] for case in cases]
    times = np.array(
        [[(_timed(programs[row]), _timed(single[row])) for row in rows] for _ in range(repeats)]
    )
    solvers = [case.get("solver") for case in cases]
    return [
        cases[row]
        | summary(seconds[:, row], seconds[:, solvers.index(solvers[row])], times[:, row], batch)
        for row in rows
    ]


def _timed(program: Program) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def summary(
    cold: np.ndarray, reference: np.ndarray, warm: np.ndarray, batch: int
) -> dict[str, float]:
    """Summarise the times of one row, in seconds.

    Args:
        cold: (k, 3) to trace, to compile, and to run for the first time.
        reference: (k, 3) likewise, of the row whose time to compile is compared with.
        warm: (n, 2) of a batch, and of one sample.
        batch: samples in a batch.
    """
    trace, compile, first = np.median(cold, 0)
    slow, rate, fast = np.percentile(batch / warm[:, 0], (10, 50, 90))
    low, latency, high = 1e3 * np.percentile(warm[:, 1], (10, 50, 90))
    return {
        "batch": batch,
        "cold_seconds": round(float(np.median(cold.sum(1))), 3),
        "trace_seconds": round(float(trace), 3),
        "compile_seconds": round(float(compile), 3),
        "first_run_seconds": round(float(first), 3),
        "compile_ratio": round(float(np.median(cold[:, 1] / reference[:, 1])), 3),
        "samples_per_second": round(float(rate), 2),
        "samples_per_second_p10": round(float(slow), 2),
        "samples_per_second_p90": round(float(fast), 2),
        "latency_milliseconds": round(float(latency), 3),
        "latency_milliseconds_p10": round(float(low), 3),
        "latency_milliseconds_p90": round(float(high), 3),
    }


def choices(experiment: Experiment, solvers: list[str], steps: list[int]) -> list[dict[str, Any]]:
    """List each solver, all by default, at each number of steps; one row if there is no choice."""
    allowed = inspect.signature(experiment.task.sample).parameters
    if "solver" not in allowed:
        return [{}]
    return [
        {"solver": solver, "steps": n}
        for solver in solvers or get_args(allowed["solver"].annotation)
        for n in steps
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the samplers.")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", default=["ddpm_digits"])
    parser.add_argument("--solver", nargs="+", default=[], help="all by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cold", type=int, default=2, help="times to compile each")
    parser.add_argument("--repeats", type=int, default=10, help="times to run each, compiled")
    parser.add_argument("--name", default="sample", help="of the file in benchmarks/results")
    options = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for spec in options.experiments:
        experiment = make(spec)
        cases = choices(experiment, options.solver, options.steps)
        for row in measure(experiment, cases, options.batch, options.cold, options.repeats):
            rows.append({"experiment": spec} | row)
            what = " ".join(f"{key} {value}" for key, value in row.items() if key in cases[0])
            low, high = row["latency_milliseconds_p10"], row["latency_milliseconds_p90"]
            print(
                f"{spec} {what:25} {row['samples_per_second']:10,.1f} samples/s  "
                f"{row['latency_milliseconds']:8.1f} ms for one ({low:.1f} to {high:.1f})  "
                f"cold {row['cold_seconds']:.1f} s: traced in {row['trace_seconds']:.1f}, compiled "
                f"in {row['compile_seconds']:.1f} (× {row['compile_ratio']:.2f}), "
                f"run in {row['first_run_seconds']:.1f}",
                flush=True,
            )
    print(f"written to {record.write(options.name, rows)}")


if __name__ == "__main__":
    main()
