"""Measure training steps: `python -m benchmarks.step [EXPERIMENT ...]`.

An experiment is its name, or its name and some arguments: `ddpm_cifar10:dtype=bfloat16,batch=512`.
By default all those whose data are here.

Each row is one experiment and compiler: compile time, first call, step time, examples/s a device
(and tokens/s, where a batch holds tokens: those that another comes before), memory, operations as
XLA counts them and as `benchmarks.flops` does, bytes moved; and how these compare with a large
matrix product and a large copy, measured in the same run. The batch is a real one and stays on the
device; steps are dispatched as training does, without waiting for each.
"""

import argparse
import ast
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import experiments
from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.parallel import make_mesh, put_batch
from aigc_jax.core.types import Experiment, Mode, Phase, Task
from aigc_jax.train.compile import jit_init, jit_step, pmap_step
from benchmarks import record
from benchmarks.flops import count_flops

NAMES = sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))


def make(spec: str) -> Experiment:
    """Make the experiment that `name:argument=value,...` says."""
    name, _, arguments = spec.partition(":")
    if name not in NAMES:
        raise SystemExit(f"no experiment {name!r}; there are {', '.join(NAMES)}")
    given = dict(pair.split("=", 1) for pair in arguments.split(",") if pair)
    return getattr(importlib.import_module(f"experiments.{name}"), name)(
        **{key: _literal(value) for key, value in given.items()}
    )


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def measure(experiment: Experiment, compiler: str, seconds: float) -> dict[str, Any]:
    """Measure one row."""
    task, mesh = experiment.task, make_mesh()
    batch = experiment.data(0)[0]
    state = jit_init(task, mesh)(stream(0, "init"), batch)
    # Where a phase begins later, the steps once all have begun.
    state = state._replace(step=state.step + max(phase.start for phase in task.phases))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    model_flops = step_flops(task, state, batch)

    program = jit_step(task, mesh, seed=0)
    on_device = put_batch(batch, mesh)
    start = time.perf_counter()
    lowered = program.lower(state, on_device)
    step: Any = lowered.compile()
    compile_seconds = time.perf_counter() - start
    costs = step.cost_analysis() or {}
    memory = step.memory_analysis()
    if compiler == "pmap":
        step, on_device = pmap_step(task, seed=0), jax.tree.map(jnp.asarray, batch)
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, on_device))
    first_seconds = time.perf_counter() - start

    def run(n: int) -> float:
        nonlocal state, metrics
        start = time.perf_counter()
        for _ in range(n):
            state, metrics = step(state, on_device)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - start) / n

    once = min(run(1) for _ in range(3))
    several = max(1, round(seconds / 20 / once))  # dispatched without waiting, as in training
    times = sorted(run(several) for _ in range(20))
    median = statistics.median(times)
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    devices, flops = mesh.size, costs.get("flops")
    tokens = {}
    if "tokens" in batch:
        rate = batch["tokens"][:, 1:].size / median / devices
        tokens = {"tokens_per_second_per_device": round(rate, 1)}
    return {
        "compiler": compiler,
        "dtype": "bfloat16" if "xbf16>" in lowered.as_text() else "float32",
        "batch": experiment.batch,
        "parameters": parameters,
        "compile_seconds": round(compile_seconds, 2),
        "first_call_seconds": round(first_seconds, 3),
        "step_milliseconds": round(1e3 * median, 3),
        "step_milliseconds_p10": round(1e3 * times[2], 3),
        "step_milliseconds_p90": round(1e3 * times[-3], 3),
        "examples_per_second_per_device": round(experiment.batch / median / devices, 2),
        **tokens,
        "model_flops": model_flops,
        "xla_flops": flops,
        "model_flops_per_second_per_device": model_flops / median / devices,
        "bytes_accessed_per_second": costs.get("bytes accessed", float("nan")) / median,
        "program_memory_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "process_peak_memory_bytes": peak,  # of this process so far, where the device says
    }


def step_flops(task: Task, state: Any, batch: Any) -> int:
    """Count the operations of a step's descents, each as often as it is due.

    A descent is three of its loss, once forward and twice back (Chowdhery et al. 2022, appendix B);
    or its gradient as written, if that is less: where a GAN's loss reads a network that it does not
    train. So what is computed again on the way back never counts.
    """
    keys = example_keys(stream(0, "flops"), jnp.arange(len(next(iter(batch.values())))))
    return sum(_descent_flops(phase, state, batch, keys) // phase.every for phase in task.phases)


def _descent_flops(phase: Phase, state: Any, batch: Any, keys: Any) -> int:
    def loss(own: Any, params: Any, stats: Any, step: Any, batch: Any, keys: Any) -> Any:
        return phase.loss(params | own, stats, batch, keys, Mode(True, step=step)).loss.sum()

    own = {name: state.params[name] for name in phase.trains}
    given = (own, state.params, state.stats, state.step, batch, keys)
    return min(3 * count_flops(loss, *given), count_flops(jax.grad(loss), *given))


def matrix_product(dtype: str, n: int) -> float:
    """Measure the FLOP/s of an n×n matrix product in a type, as a training step computes it."""
    a, b = jax.random.normal(jax.random.key(0), (2, n, n)).astype(dtype)
    return 2 * n**3 / _seconds(jax.jit(jnp.dot), a, b)


def copy(n: int) -> float:
    """Measure the bytes/s that reading and writing an array of n floats moves."""
    return 2 * 4 * n / _seconds(jax.jit(lambda x: x + 1), jnp.zeros(n))


def _seconds(fn: Callable[..., Any], *args: Any, calls: int = 5) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        for _ in range(calls):  # dispatched without waiting, as steps are
            result = fn(*args)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training steps.")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--compiler", nargs="+", default=["jit"], choices=["jit", "pmap"])
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure a row for")
    parser.add_argument("--name", default="step", help="of the file in benchmarks/results")
    options = parser.parse_args()

    cpu = jax.default_backend() == "cpu"
    products = {t: matrix_product(t, 2048 if cpu else 8192) for t in ("float32", "bfloat16")}
    moved = copy(2**25 if cpu else 2**28)
    rows = []
    for spec in options.experiments or NAMES:
        try:
            experiment = make(spec)
            experiment.data(0)[0]
        except (FileNotFoundError, ImportError, TypeError) as error:
            # Its data or libraries are not here; or it wants a checkpoint that is not given.
            print(f"{spec}: left out: {str(error).splitlines()[0]}", flush=True)
            continue
        for compiler in options.compiler:
            row = {"experiment": spec, **measure(experiment, compiler, options.seconds)}
            peak = products[row["dtype"]]
            row["matrix_product_flops_per_second"] = peak
            row["model_flop_utilisation"] = row["model_flops_per_second_per_device"] / peak
            row["copy_bytes_per_second"] = moved
            rows.append(row)
            print(
                f"{spec:32} {compiler:4}  {row['examples_per_second_per_device']:10,.1f} "
                f"examples/s  {row['step_milliseconds']:9.2f} ms "
                f"({row['step_milliseconds_p10']:.2f} to {row['step_milliseconds_p90']:.2f})  "
                f"MFU {row['model_flop_utilisation']:6.1%}  "
                f"compiled in {row['compile_seconds']:.1f} s",
                flush=True,
            )
            path = record.write(options.name, rows)  # at once: a later row may run out of time
    print(f"written to {path}" if rows else "nothing was measured")


if __name__ == "__main__":
    main()
