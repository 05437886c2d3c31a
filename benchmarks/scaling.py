"""Predict how training scales, from compiled programs: `python -m benchmarks.scaling`.

The DDPM CIFAR-10 training step is compiled, never run, for 1, 2, 4 and 8 simulated devices under
each layout: `data` replicates the state, `fsdp` divides it over all devices, `both` over pairs of
them. Read from each program are its collectives, how many and of how many bytes, and its memory on
a device. A model of published link bandwidths then predicts the step on 8, 64 and 256 chips. All
this takes about seven minutes on two quiet cores, nearly all of it in XLA; `--size half` and
`--size tiny` compile sooner.

What a CPU's program says of an accelerator's:

- How gradients and parameters are to be communicated is decided by the partitioner, which all
  platforms share; so bytes carry over.
- XLA's CPU compiler merges all-reduces, up to 256 arrays in one, and no other collective
  (`CpuAllReduceCombiner`, xla/service/cpu/cpu_compiler.cc). The GPU compiler merges all-reduces,
  all-gathers and reduce-scatters up to 30 MiB each (`--xla_gpu_all_reduce_combine_threshold_bytes`
  and its likes, xla/service/collective_utils.h). So numbers of collectives do not carry over: what
  tells whether each gradient is reduced once is the bytes. Under `fsdp` the CPU's merges are odd
  pairs, a gradient and a scalar of another's norm.
- The CPU compiler has no `ReduceScatterCreator`. Where the GPU compiler makes a reduce-scatter, an
  all-reduce remains here of which each device reads its slice alone; such bytes are reported as
  `sliced`, and the model counts them as reduce-scattered.

The model: a ring reduces and scatters, or gathers, V bytes over n chips in (n − 1)/n · V/w seconds,
w being the bytes/s a chip sends; an all-reduce is both, 2(n − 1)/n · V/w (NVIDIA/nccl-tests,
doc/PERFORMANCE.md). Over nodes it is nested: first within each group of 8 neighbours, then across
groups on the eighth part that each chip then holds. `both` is taken to divide the state over
8 neighbours. Computing takes FLOPs/(peak · utilisation). Efficiency is the share of the step spent
computing: at worst communication waits for all computing, T = compute + communication; at best all
of it is hidden, T = max(compute, communication). Latency, congestion, and the input pipeline are
not modelled: with small models on many chips they decide, and the truth is then below the range.
"""

import argparse
import functools
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import batch_sharding, make_mesh, shardings
from aigc_jax.core.types import Task
from aigc_jax.functional.schedules import linear
from aigc_jax.models.unet import UNet
from aigc_jax.tasks.diffusion import diffusion
from aigc_jax.train.compile import jit_step
from aigc_jax.train.step import init
from benchmarks import record
from benchmarks.step import step_flops

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "half": {"blocks": 1},
    "tiny": {"channels": 16, "multipliers": (1, 2), "blocks": 1},
}
NEIGHBOURS = 8  # a node of GPUs, a host of TPUs
SHAPE = (32, 32, 3)  # of an image
ONE = AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        arrays: how many it communicates at once.
        bytes: of the whole arrays: before they are scattered, after they are gathered.
        sliced: bytes of an all-reduce of which a device reads nothing but slices.
        group: the devices of one of its groups, which take part together.
        times: how often a run of the program executes it; None in a loop of unknown length. A
            branch counts as if it were taken.
    """

    kind: str
    arrays: int
    bytes: int
    sliced: int
    group: tuple[int, ...]
    times: int | None


class Instruction(NamedTuple):
    shape: str
    opcode: str
    operands: list[str]
    attributes: str


Computation = dict[str, Instruction]


def collectives(text: str) -> list[Collective]:
    """List the collectives of a compiled program, from its HLO text.

    Raises:
        ValueError: the text has no entry computation, or writes groups of devices in another way.
    """
    computations, entry = _parse(text)
    header = text[: text.find("\n")]
    everyone = math.prod(_integers(" ".join(re.findall(r"(?:count|partitions)=\d+", header))))

    users = functools.cache(lambda name: _users(computations[name]))

    def visit(name: str, times: int | None) -> Iterator[Collective]:
        for key, instruction in computations[name].items():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                # What a start returns depends on its kind; what its done returns is the result.
                if instruction.opcode != kind:
                    key = next(
                        k
                        for k, done in computations[name].items()
                        if done.opcode == f"{kind}-done" and key in done.operands
                    )
                sizes = _sizes(computations[name][key].shape)
                group = _group(instruction.attributes, everyone)
                whole = sum(sizes) * (len(group) if kind == "reduce-scatter" else 1)
                sliced = kind == "all-reduce" and _sliced(computations, users, name, key, sizes)
                yield Collective(kind, len(sizes), whole, int(sliced), group, times)
            inner = times
            if instruction.opcode == "while":
                trips = re.search(r"known_trip_count\W+n\W+(\d+)", instruction.attributes)
                inner = times * int(trips[1]) if trips and times is not None else None
            for called in _called(instruction):
                yield from visit(called, inner)

    return list(visit(entry, 1))


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations of a module by name, and the name of its entry."""
    computations: dict[str, Computation] = {}
    entry, current = None, {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY ") else entry
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            end = _closing(match[2]) if match[2].startswith("(") else match[2].index(" ")
            shape, rest = match[2][:end], match[2][end:].lstrip()
            opcode, rest = rest[: rest.index("(")], rest[rest.index("(") :]
            end = _closing(rest)
            inside = rest[1 : end - 1]
            # Before the name of an operand, some versions print its shape.
            operands = re.findall(r"%([\w.\-]+)", inside) or [
                part.split()[-1] for part in inside.split(",") if part.strip()
            ]
            current[match[1]] = Instruction(shape, opcode, operands, rest[end:])
    if entry is None:
        raise ValueError("the text has no ENTRY computation; is it a compiled program's?")
    return computations, entry


def _closing(text: str) -> int:
    """Return the position after the bracket that closes the one the text opens with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _called(instruction: Instruction) -> list[str]:
    if instruction.opcode in ("async-update", "async-done"):
        return []  # what their start has called already
    keys = "body|condition|calls|to_apply|(?:true|false|branch|called)_computations?"
    named = re.findall(rf"\b(?:{keys})=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.attributes)
    return [name for names in named for name in re.findall(r"[\w.\-]+", names)]


def _sizes(shape: str) -> list[int]:
    """Return the bytes of each array of a shape, `f32[8,4]{1,0}` or a tuple of such."""
    arrays = re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shape)
    bits = [8 if kind == "pred" else int(re.findall(r"\d+", kind)[0]) for kind, _ in arrays]
    lengths = [math.prod(int(n) for n in axes.split(",") if n) for _, axes in arrays]
    return [math.ceil(b * n / 8) for b, n in zip(bits, lengths, strict=True)]


def _group(attributes: str, everyone: int) -> tuple[int, ...]:
    """Return the first group of devices, in any of XLA's notations.

    They are `{{0,2},{1,3}}`, `[2,2]<=[2,2]T(1,0)`, `mesh['a'=2,'b'=2], device_ids=(…) {'a'}`, and
    `{}` for one group of everyone.
    """
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(_integers(match[1]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=(\S*\d[\])])", attributes):
        return tuple(_devices(match[2])[: int(match[1])].tolist())
    mesh = r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\S*)\))? \{(['\w, ]*)\}"
    if match := re.search(mesh, attributes):
        sizes = {name: int(size) for name, size in re.findall(r"(\w+)'?=(\d+)", match[1])}
        devices = _devices(match[2] or f"[{math.prod(sizes.values())}]").reshape(*sizes.values())
        chosen = re.findall(r"\w+", match[3])
        along = tuple(slice(None) if name in chosen else 0 for name in sizes)
        return tuple(devices[along].ravel().tolist())
    if "replica_groups=" in attributes and "replica_groups={}" not in attributes:
        raise ValueError(f"cannot read the replica_groups of {attributes[:120]!r}")
    return tuple(range(everyone))


def _devices(text: str) -> np.ndarray:
    """Return a list of devices, or the `[2,2]T(1,0)` for 0, 1, … reshaped and transposed."""
    if not text.startswith("["):
        return np.array(_integers(text))
    shape, _, order = text.partition("T")
    lengths = _integers(shape)
    order = _integers(order) or range(len(lengths))
    return np.arange(math.prod(lengths)).reshape(lengths).transpose(order).ravel()


def _integers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _users(computation: Computation) -> dict[str, list[tuple[str, int]]]:
    """Return who reads each value of a computation, as (user, position among its operands)."""
    found: dict[str, list[tuple[str, int]]] = {}
    for user, instruction in computation.items():
        for position, operand in enumerate(instruction.operands):
            found.setdefault(operand, []).append((user, position))
    return found


def _sliced(
    computations: dict[str, Computation],
    users: Callable[[str], dict[str, list[tuple[str, int]]]],
    name: str,
    key: str,
    sizes: list[int],
) -> int:
    """Sum the sizes of those arrays of a result that are only ever read through a dynamic slice."""

    def only_sliced(name: str, key: str) -> bool:
        uses = users(name).get(key, [])
        return bool(uses) and all(slices(name, user, position) for user, position in uses)

    def slices(name: str, user: str, position: int) -> bool:
        instruction = computations[name][user]
        if instruction.opcode == "dynamic-slice":
            return position == 0
        if instruction.opcode in ("bitcast", "copy", "reshape", "transpose"):
            return only_sliced(name, user)
        if instruction.opcode in ("fusion", "call"):
            (called,) = _called(instruction)
            parameters = (
                k
                for k, each in computations[called].items()
                if each.opcode == "parameter" and each.operands == [str(position)]
            )
            return all(only_sliced(called, k) for k in parameters)
        return False

    if not computations[name][key].shape.startswith("("):
        return sum(sizes) * only_sliced(name, key)
    total = 0
    for i, size in enumerate(sizes):
        elements = [
            user
            for user, _ in users(name).get(key, [])
            if re.search(rf"\bindex={i}\b", computations[name][user].attributes)
        ]
        total += size * (bool(elements) and all(only_sliced(name, each) for each in elements))
    return total


def ddpm(dtype: str, size: str) -> Task:
    """Make the task of `experiments/ddpm_cifar10.py`, or one with a smaller network."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))
    denoiser = UNet(dtype=jnp.dtype(dtype), **SIZES[size])
    return diffusion(denoiser, linear(), tx, shape=SHAPE)


def laid_out(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Say of each leaf of a state where the rule puts it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),  # pyright: ignore[reportArgumentType]
    )


def bytes_per_device(state: Any) -> int:
    """Sum the bytes one device holds of a state that is laid out."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def layouts(devices: int) -> dict[str, int]:
    """Name the layouts of so many devices, and over how many each divides the state."""
    every = {"data": 1, "fsdp": devices, "both": 2}
    # On one device all are one, and on two the last two.
    return {name: every[name] for name in tuple(every)[: min(devices, 3)]}


def compile_step(
    task: Task, shapes: Any, layout: str, devices: int, fsdp: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Compile one step from shapes alone, and read what it communicates and holds."""
    mesh = make_mesh(jax.devices()[:devices], fsdp)
    state = laid_out(shapes, mesh)
    image = jax.ShapeDtypeStruct(
        (options.batch * devices, *SHAPE), jnp.float32, sharding=batch_sharding(mesh)
    )
    start = time.perf_counter()
    step = jit_step(task, mesh, seed=0, accumulate=options.accumulate)
    program = step.lower(state, {"image": image}).compile(
        # The program is read, not run: its machine code need not be good, and is made sooner.
        compiler_options={
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        }
    )
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    found = collectives(program.as_text())
    return {
        "experiment": "ddpm_cifar10",
        "size": options.size,
        "layout": layout,
        "devices": devices,
        "fsdp": fsdp,
        "batch_per_device": options.batch,
        "accumulate": options.accumulate,
        "dtype": options.dtype,
        "compile_seconds": round(seconds, 1),
        "collectives": summary(found, devices),
        "in_loops_of_unknown_length": sum(c.times is None for c in found),
        "gradient_bytes": bytes_per_device(laid_out(shapes.params, ONE)),
        "state_bytes": bytes_per_device(laid_out(shapes, ONE)),
        "state_bytes_per_device": bytes_per_device(state),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def summary(found: list[Collective], devices: int) -> list[dict[str, Any]]:
    """Sum collectives of one kind over the same axes of the mesh; loops count as they repeat."""

    def over(group: tuple[int, ...]) -> str:
        if len(group) == devices:
            return "all"
        return "fsdp" if group[1] == group[0] + 1 else "data"  # which is the outer axis

    kinds = sorted({(c.kind, over(c.group)) for c in found})
    total = lambda key, what: sum(
        what(c) * (c.times or 1) for c in found if (c.kind, over(c.group)) == key
    )
    return [
        {
            "kind": key[0],
            "over": key[1],
            "operations": total(key, lambda c: 1),
            "arrays": total(key, lambda c: c.arrays),
            "bytes": total(key, lambda c: c.bytes),
            "sliced_bytes": total(key, lambda c: c.sliced),
        }
        for key in kinds
    ]


class Chip(NamedTuple):
    """What is published of a chip and its links.

    Attributes:
        name: of it.
        flops: peak FLOP/s, bfloat16, dense.
        near: bytes/s it sends to its 8 neighbours.
        far: bytes/s it sends beyond.
        closes: chips from which on the rings of its torus close; below, lines have half as much.
    """

    name: str
    flops: float
    near: float
    far: float
    closes: int = 1


CHIPS = (
    # 18 links of NVLink 4, "900GB/s", both ways together (mlcommons/inference_results_v4.1,
    # closed/NVIDIA, H200-SXM-141GBx8). 989 TFLOP/s without sparsity, and one 400 Gb/s link a GPU to
    # other nodes (jax-ml.github.io/scaling-book/gpus: 450 GB/s of egress a GPU, 400 a node).
    Chip("H200, NVLink, NDR", 989e12, 450e9, 50e9),
    # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 1,200 GB/s of links, both ways together. The
    # torus closes on axes that are multiples of 4 (jax-ml.github.io/scaling-book/tpus): from 4×4×4.
    Chip("TPU v5p", 459e12, 600e9, 600e9, closes=64),
    # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 400 GB/s of links, both ways together. The
    # torus closes on axes of 16 (jax-ml.github.io/scaling-book/tpus): at 16×16.
    Chip("TPU v5e", 197e12, 200e9, 200e9, closes=256),
)


def ring_seconds(size: float, levels: list[tuple[int, float]]) -> float:
    """Predict an all-gather, or a reduce-scatter, of `size` bytes over nested groups.

    Args:
        size: bytes of the whole arrays.
        levels: (chips, bytes/s each sends), from the innermost group outwards.
    """
    seconds = 0.0
    for chips, bandwidth in levels:
        seconds += (chips - 1) / chips * size / bandwidth
        size /= chips
    return seconds


def communication_seconds(program: dict[str, Any], chip: Chip, chips: int) -> float:
    """Predict the communication of one step on so many chips, from a program of the same layout."""
    near = min(chips, NEIGHBOURS)
    broken = 1 if chips >= chip.closes else 2
    levels = [(near, chip.near / broken), (chips // near, chip.far / broken)]
    seconds = 0.0
    for of in program["collectives"]:
        axis = {"all": levels, "fsdp": levels[:1], "data": levels[1:]}[of["over"]]
        size, sliced = of["bytes"], of["sliced_bytes"]
        if of["over"] == "data":
            # What is divided over `fsdp` is divided further than where it was compiled.
            size, sliced = size * program["fsdp"] / near, sliced * program["fsdp"] / near
        if of["kind"] == "all-reduce":
            seconds += ring_seconds(2 * size - sliced, axis)
        elif of["kind"] in ("all-gather", "reduce-scatter"):
            seconds += ring_seconds(size, axis)
        else:  # taken to cross the slowest link whole
            seconds += size / min(bandwidth for n, bandwidth in levels if n > 1)
    return seconds


def predict(
    program: dict[str, Any], chip: Chip, chips: int, batch: int, flops: float, utilisation: float
) -> dict[str, Any]:
    """Predict one step on so many chips, `batch` examples each of `flops` operations."""
    communication = communication_seconds(program, chip, chips)
    compute = batch * flops / (chip.flops * utilisation)
    return {
        "chip": chip.name,
        "layout": program["layout"],
        "chips": chips,
        "batch_per_chip": batch,
        "utilisation": utilisation,
        "compute_milliseconds": 1e3 * compute,
        "communication_milliseconds": 1e3 * communication,
        "efficiency_without_overlap": compute / (compute + communication),
        "efficiency_with_overlap": compute / max(compute, communication),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict how training scales.")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=16, help="on a device, where compiled")
    parser.add_argument("--accumulate", type=int, default=1, help="microbatches a step")
    parser.add_argument("--dtype", default="float32", help="of the computation, where compiled")
    parser.add_argument("--size", default="full", choices=list(SIZES), help="of the network")
    parser.add_argument(
        "--chips", type=int, nargs="+", default=[8, 64, 256], help="up to 8, or multiples"
    )
    parser.add_argument("--chip-batch", type=int, nargs="+", default=[16, 128], help="predicted")
    parser.add_argument("--utilisation", type=float, default=0.4, help="assumed, of the peak")
    parser.add_argument("--name", default="scaling", help="of the file in benchmarks/results")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    # At least two: a process of one CPU device has convolutions of its own (`nn.conv`).
    jax.config.update("jax_num_cpu_devices", max(2, *options.devices))

    task = ddpm(options.dtype, options.size)
    example = {"image": jnp.zeros((1, *SHAPE))}
    shapes = jax.eval_shape(functools.partial(init, task), stream(0, "init"), example)
    programs = []
    for devices in sorted(options.devices):
        for layout, fsdp in layouts(devices).items():
            programs.append(compile_step(task, shapes, layout, devices, fsdp, options))
            print(describe(programs[-1]), flush=True)
    for program in programs:
        for statement, holds in findings(program):
            print(f"{program['layout']} on {program['devices']}: {statement}: {holds}")
    for n in options.chips:
        held = bytes_per_device(
            laid_out(shapes, AbstractMesh((1, n, 1), ("data", "fsdp", "tensor")))
        )
        share = held * n / programs[0]["state_bytes"]
        print(f"fsdp on {n}: by the same rule {_mb(held)} a device, {share:.3f}/{n} of the state")

    flops = step_flops(task, shapes, example)
    predictions = [
        predict(program, chip, chips, batch, flops, options.utilisation)
        for chip in CHIPS
        for program in programs
        if program["devices"] == max(options.devices)
        for batch in options.chip_batch
        for chips in options.chips
    ]
    print(*lines(predictions), sep="\n")
    print(f"written to {record.write(options.name, [*programs, *predictions])}")


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def describe(program: dict[str, Any]) -> str:
    memory = ", ".join(
        f"{what} {_mb(program[what + '_bytes'])}" for what in ("argument", "temporary", "output")
    )
    text = [
        f"{program['layout']} on {program['devices']}, compiled in {program['compile_seconds']} s: "
        f"{_mb(program['state_bytes_per_device'])} of state a device; {memory}"
    ]
    for of in program["collectives"]:
        sliced = f", {_mb(of['sliced_bytes'])} only sliced" if of["sliced_bytes"] else ""
        text.append(
            f"  {of['operations']:4} {of['kind']} over {of['over']}: {of['arrays']} arrays, "
            f"{_mb(of['bytes'])}{sliced}"
        )
    if loops := program["in_loops_of_unknown_length"]:
        text.append(f"  {loops} of them in a loop of unknown length, counted once")
    return "\n".join(text)


def findings(program: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Say what a program must show, and whether it does."""
    n, gradients = program["devices"], program["gradient_bytes"]
    if n == 1:
        yield "nothing is communicated", not program["collectives"]
        return

    def total(kinds: tuple[str, ...], over: tuple[str, ...], what: str = "bytes") -> int:
        return sum(
            of[what] for of in program["collectives"] if of["kind"] in kinds and of["over"] in over
        )

    reductions = ("all-reduce", "reduce-scatter")
    # Beside the gradients there are scalars: the loss, the weight, two norms of each divided array.
    reduced = total(reductions, ("all", "fsdp")) / gradients
    once = 1 <= reduced / program["accumulate"] < 1.01
    yield f"{reduced:.4f} × the gradients are reduced, so each once a microbatch", once
    others = {of["kind"] for of in program["collectives"]} - {"all-gather", *reductions}
    yield "nothing is exchanged or permuted", not others
    gathered = total(("all-gather",), ("all", "fsdp", "data"))
    if program["layout"] == "data":
        yield "nothing is gathered", not gathered
        return
    divided = total(("all-reduce",), ("all", "fsdp"), "sliced_bytes")
    divided += total(("reduce-scatter",), ("all", "fsdp"))
    yield f"{gathered / gradients:.4f} × the parameters are gathered", gathered <= gradients
    as_many = divided == gathered * program["accumulate"]
    yield f"{divided / gradients:.4f} × the gradients are divided, those of gathered ones", as_many
    if program["layout"] == "fsdp":
        share = program["state_bytes_per_device"] * n / program["state_bytes"]
        yield f"{share:.4f}/{n} of the state is on a device, so 1/n to 1 %", share < 1.01


def lines(predictions: list[dict[str, Any]]) -> Iterator[str]:
    yield "Predicted communication, and efficiency without to with overlap:"
    by_case: dict[str, list[str]] = {}
    for p in predictions:
        case = (
            f"{p['chip']:18} {p['layout']:5} {p['batch_per_chip']:5} a chip, "
            f"{p['compute_milliseconds']:7.2f} ms computing"
        )
        by_case.setdefault(case, []).append(
            f"on {p['chips']:3} {p['communication_milliseconds']:5.2f} ms, "
            f"{p['efficiency_without_overlap']:.0%} to {p['efficiency_with_overlap']:.0%}"
        )
    for case, cells in by_case.items():
        yield "  ".join((case, *(f"{cell:28}" for cell in cells)))


if __name__ == "__main__":
    main()
