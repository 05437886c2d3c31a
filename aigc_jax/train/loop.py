"""The loop: a task and its data in, a trained model out, and everything in between on disk."""

import contextlib
import functools
import json
import math
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

import aigc_jax
from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import make_mesh, put_batch, shardings
from aigc_jax.core.shapes import batch_size
from aigc_jax.core.types import Experiment, Model, State
from aigc_jax.train.checkpoint import Checkpoints
from aigc_jax.train.compile import AXIS, jit_init, jit_step, pmap_step
from aigc_jax.train.log import Log
from aigc_jax.train.model import Sampler, make_model, make_sampler
from aigc_jax.train.step import Metrics, Step, averaged

# Steps dispatched ahead of the last known to be finished: enough to hide the host.
IN_FLIGHT = 4


class Diverged(RuntimeError):
    """Updates were dropped because they were not finite, too many in a row."""


class Result(NamedTuple):
    """What a call of `fit` came to.

    Attributes:
        model: the trained model.
        state: the last state.
        step: how many steps it has taken in all.
        metrics: those of the evaluation at the end, if it was reached.
        signal: the number of the signal that stopped the training early, if one did.
    """

    model: Model
    state: State
    step: int
    metrics: dict[str, float]
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped the training early."""
        return self.signal is not None


def fit(
    experiment: Experiment,
    out: Path,
    *,
    identity: dict[str, Any],
    seed: int = 0,
    steps: int | None = None,
    fsdp: int = 1,
    compiler: Literal["jit", "pmap"] = "jit",
    accumulate: int = 1,
    log_every: int = 50,
    save_every: int = 500,
    keep: int = 3,
    evaluate_every: int = 0,
    picture_every: int = 0,
    patience: int = 20,
) -> Result:
    """Train an experiment, or go on with the training that `out` holds, exactly.

    `out` gets `experiment.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`,
    `samples/*.png` and, at the end, `evaluation.json`. Ctrl-C and SIGTERM finish the step, save,
    and return; a second Ctrl-C aborts.

    Args:
        experiment: what to train.
        out: the run's directory.
        identity: what the run is, as JSON: the experiment's name and its arguments.
        seed: addresses all randomness of the training: initial weights, order of data, noise.
        steps: train to this many steps in all; the experiment's own number by default.
        fsdp: over how many devices each parameter is divided; 1 replicates, -1 means all.
        compiler: what compiles the step.
        accumulate: microbatches a step; more need less memory.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints; evaluations and pictures save one besides.
        keep: how many of the latest checkpoints to keep; the best is kept besides.
        evaluate_every: steps between two evaluations; 0 evaluates at the end only.
        picture_every: steps between two sets of pictures; 0 draws them at the end only.
        patience: stop when so many updates in a row were not finite.

    Returns:
        The model, the state, and what the evaluation measured.

    Raises:
        ValueError: an argument is out of range, the batch does not divide, or `out` holds a run of
            another identity.
        Diverged: `patience` updates in a row were not finite. Earlier checkpoints are intact.
        OSError: a checkpoint could not be written, or none could be read.
    """
    total = experiment.steps if steps is None else steps
    at_least = {"steps": (total, 1), "accumulate": (accumulate, 1), "log_every": (log_every, 1)}
    at_least |= {"save_every": (save_every, 1), "keep": (keep, 1), "patience": (patience, 1)}
    at_least |= {"evaluate_every": (evaluate_every, 0), "picture_every": (picture_every, 0)}
    for name, (value, least) in at_least.items():
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if compiler not in ("jit", "pmap"):
        raise ValueError(f"compiler={compiler!r} must be 'jit' or 'pmap'")
    if compiler == "pmap" and (fsdp != 1 or jax.process_count() > 1):
        raise ValueError(
            f"compiler='pmap' replicates the parameters over one process' devices; "
            f"fsdp={fsdp} on {jax.process_count()} processes needs compiler='jit'"
        )
    mesh = make_mesh(fsdp=fsdp)
    _check_batch(experiment.batch, mesh.size, accumulate)

    task, console = experiment.task, Console(stderr=True)
    tell = functools.partial(_print, console) if jax.process_index() == 0 else lambda _: None
    # As JSON gives it back, so that a tuple and a list are one.
    identity = json.loads(json.dumps(identity | {"seed": seed}, default=str))
    with (
        _Signals() as signals,
        Checkpoints(out / "checkpoints", keep, experiment.best, report=tell) as checkpoints,
    ):
        record = out / "experiment.json"
        if saved := checkpoints.steps():
            held = _read_json(record) if record.exists() else checkpoints.identity(saved[-1])
            _refuse_changes(held, identity, out)
        identity["version"] = aigc_jax.__version__
        batches = experiment.data(seed)
        start, like = _initial(experiment, batches, seed, mesh)
        state, step = checkpoints.restore(like) if saved else (start(), 0)
        sampler = make_sampler(task, mesh)
        with Log(out, start=step, total=total, batch=experiment.batch, console=console) as log:
            run = _Run(experiment, out, identity, sampler, checkpoints, log, signals)
            if jax.process_index() == 0:
                _write_json(record, identity)
            if saved:
                log.say(f"{out} holds step {step} of {total}")
            try:
                if step < total:
                    meter = _Meter(mesh, log, log_every, patience, step, total)
                    with contextlib.closing(_stream(batches, step, total)) as source:
                        ahead = put_batch(next(source), mesh)
                        if compiler == "pmap":
                            advance = pmap_step(task, seed=seed, accumulate=accumulate)
                            state = jax.device_put(state, _replicas())
                        else:
                            advance = jit_step(task, mesh, seed=seed, accumulate=accumulate)
                            advance = _ahead(advance, state, ahead, log)
                        while step < total:
                            state, metrics = advance(state, ahead)
                            step += 1
                            if step < total:
                                ahead = put_batch(next(source), mesh)
                            meter.push(step, metrics, signals.number)
                            if number := meter.signal:
                                meter.drain()
                                raise _Stop(number)
                            evaluate = evaluate_every > 0 and step % evaluate_every == 0
                            picture = picture_every > 0 and step % picture_every == 0
                            if step < total and (evaluate or picture or step % save_every == 0):
                                with meter.pause():
                                    run.look(state, evaluate=evaluate, picture=picture)
                    meter.drain()
                    if meter.skipped:
                        log.say(f"{meter.skipped} updates were not finite and were dropped")
                scores = run.conclude(state)
            except _Stop as stop:
                run.save(state)
                checkpoints.wait()
                name = signal.Signals(stop.number).name
                log.say(f"{name}: saved step {step} of {total} in {out}; run it again to go on")
                return Result(run.model(state), state, step, {}, stop.number)
            checkpoints.wait()
    return Result(run.model(state), state, step, scores)


def load(
    experiment: Experiment,
    out: Path,
    *,
    seed: int = 0,
    fsdp: int = 1,
    which: Literal["latest", "best"] = "latest",
    report: Callable[[str], None] = warnings.warn,
) -> tuple[Model, int]:
    """Read the model of a run, which may be training still.

    Args:
        experiment: what was trained.
        out: the run's directory.
        seed: the one it was trained under.
        fsdp: over how many devices to divide each parameter.
        which: the latest checkpoint, or the one with the best metric.
        report: receives a line for each checkpoint found damaged.

    Returns:
        The model and its step.

    Raises:
        FileNotFoundError: there is no checkpoint.
        OSError: every checkpoint is damaged.
        ValueError: the checkpoint holds something else than the experiment trains.
    """
    mesh = make_mesh(fsdp=fsdp)
    _, like = _initial(experiment, experiment.data(seed), seed, mesh)
    directory = out / "checkpoints"
    with Checkpoints(directory, best=experiment.best, report=report, writable=False) as checkpoints:
        state, step = checkpoints.restore(like, which)
    return make_model(*averaged(state), make_sampler(experiment.task, mesh)), step


class _Stop(BaseException):
    """A signal asks for an end. Not an `Exception`, so that no evaluation swallows it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class _Signals:
    """Notes Ctrl-C and SIGTERM inside its context; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._urgent = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._urgent:
            raise _Stop(number)

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Let a signal raise `_Stop` at once, where the state is not being changed."""
        # One of several processes must not leave the others in the middle of a collective.
        self._urgent = jax.process_count() == 1
        try:
            if self._urgent and self.number:
                raise _Stop(self.number)
            yield
        finally:
            self._urgent = False


class _Run(NamedTuple):
    """What is done with a state besides training it."""

    experiment: Experiment
    out: Path
    identity: dict[str, Any]
    sampler: Sampler
    checkpoints: Checkpoints
    log: Log
    signals: _Signals

    def model(self, state: State) -> Model:
        return make_model(*averaged(state), self.sampler)

    def save(self, state: State, scores: dict[str, float] | None = None) -> None:
        self.checkpoints.save(state, self.identity, scores)

    def look(self, state: State, *, evaluate: bool, picture: bool) -> dict[str, float]:
        """Save, evaluate, picture; the state is saved even if an evaluation fails."""
        scores: dict[str, float] = {}
        # The best is chosen when a checkpoint is written: then its metrics must be known.
        if not evaluate or self.experiment.best is None:
            self.save(state)
        if evaluate:
            try:
                with self.signals.urgent():
                    scores = self._evaluate(state)
            finally:
                self.save(state, scores or None)
        if picture:
            with self.signals.urgent():
                self._picture(state)
        return scores

    def conclude(self, state: State) -> dict[str, float]:
        """Look a last time, unless that is what the run has come to already."""
        record, step = self.out / "evaluation.json", int(state.step)
        with contextlib.suppress(OSError, ValueError):  # absent or damaged: it is made anew
            if (held := _read_json(record)).pop("step", None) == step:
                return {name: math.nan if v is None else v for name, v in held.items()}
        scores = self.look(state, evaluate=True, picture=True)
        if jax.process_index() == 0:
            # JSON has no NaN.
            known = {name: None if math.isnan(v) else v for name, v in scores.items()}
            _write_json(record, {"step": step, **known})
        return scores

    def _evaluate(self, state: State) -> dict[str, float]:
        if self.experiment.evaluate is None:
            return {}
        scores = self.experiment.evaluate(self.model(state))
        scores = {name: float(value) for name, value in scores.items()}
        if self.experiment.best is not None and self.experiment.best[0] not in scores:
            raise ValueError(
                f"best={self.experiment.best}, but the evaluation measures {', '.join(scores)}"
            )
        step = int(state.step)
        self.log.write(step, {f"eval/{name}": value for name, value in scores.items()})
        some = "  ".join(f"{k} {v:.4g}" for k, v in list(scores.items())[:3])
        self.log.say(f"evaluated at step {step}: {some}" + "  …" * (len(scores) > 3))
        return scores

    def _picture(self, state: State) -> None:
        if self.experiment.picture is None:
            return
        step = int(state.step)
        for stem, image in self.experiment.picture(self.model(state)).items():
            if jax.process_index() == 0:
                path = self.out / "samples" / f"{stem}-{step:06}.png"
                _write_png(path, np.asarray(image))
                self.log.picture(step, stem, image)


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
    totals = jax.tree.map(lambda t, m: jnp.where(fresh, 0, t) + m, tally.totals, metrics)
    streak, longest = {}, {}
    for phase, so_far in tally.streak.items():
        skipped = metrics[f"{phase}/skipped"]
        now = jnp.where(skipped.total > 0, so_far + 1, 0)
        streak[phase] = jnp.where(skipped.weight > 0, now, so_far)
        longest[phase] = jnp.maximum(tally.longest[phase], streak[phase])
    return _Tally(totals, streak, longest, jnp.max(signals))


class _Meter:
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
        self._since, self._mark = step, 0.0
        self._flags: dict[int, Array] = {}

    def push(self, step: int, metrics: Metrics, number: int) -> None:
        """Count a step that was dispatched, and settle one that was dispatched a few steps ago."""
        first = self._tally is None
        if self._tally is None:
            self._mark = time.perf_counter()
            self._tally = self._zeros(metrics)
        if number not in self._flags:
            local = len(self._mesh.local_devices)
            self._flags[number] = put_batch(np.full(local, number, np.int32), self._mesh)
        fresh = np.bool_(first or (step - 1) % self._log_every == 0)
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
        if ends or step % self._patience == 0:
            for phase, longest in jax.device_get(tally.longest).items():
                if longest >= self._patience:
                    raise Diverged(
                        f"{phase}: {longest} updates in a row, until step {step}, were not finite; "
                        "lower the learning rate, clip the gradients, or look for NaN in the data"
                    )
        if ends:
            now = time.perf_counter()
            means = _means(jax.device_get(tally.totals))
            self.skipped += sum(int(n) for name, n in means.items() if name.endswith("/skipped"))
            self._log.window(step, means, seconds=now - self._mark, steps=step - self._since)
            self._since, self._mark = step, now

    def _zeros(self, metrics: Metrics) -> _Tally:
        phases = [name.removesuffix("/skipped") for name in metrics if name.endswith("/skipped")]
        totals = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), metrics)
        none = dict.fromkeys(phases, np.int32(0))
        return jax.device_put(
            _Tally(totals, none, none, np.int32(0)),  # pyright: ignore[reportArgumentType]
            NamedSharding(self._mesh, P()),
        )


def _means(totals: Metrics) -> dict[str, float]:
    """Divide, once; `skipped` stays the count it is. What weighs nothing has no mean."""
    return {
        name: float(mean.total if name.endswith("/skipped") else mean.total / mean.weight)
        for name, mean in totals.items()
        if mean.weight > 0 or name.endswith("/skipped")
    }


def _initial(
    experiment: Experiment, batches: Any, seed: int, mesh: Mesh
) -> tuple[Callable[[], State], State]:
    """Return what makes the first state, and its shapes where they belong."""
    first = batches[0]
    share, processes = batch_size(first), jax.process_count()
    if share * processes != experiment.batch:
        raise ValueError(
            f"batch={experiment.batch}, but the data gives {share} examples a step "
            f"to each of {processes} processes"
        )
    # Every process must start from the same values, and their shares of the data differ.
    start = functools.partial(
        jit_init(experiment.task, mesh), stream(seed, "init"), jax.tree.map(np.zeros_like, first)
    )
    shapes = jax.eval_shape(start)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings(shapes, mesh),
    )
    return start, like


def _replicas() -> NamedSharding:
    """Return where `pmap` puts the state: starting there, it does not compile a second time."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), P())


def _ahead(step: Any, state: State, batch: Any, log: Log) -> Step:
    """Compile a step ahead of the first, so that a user knows what takes so long."""
    log.say("compiling the step")
    began = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    log.say(f"compiled in {time.perf_counter() - began:.1f} s")
    return compiled


def _stream(batches: Any, start: int, total: int) -> Generator[Any, None, None]:
    """Yield the batches of steps `start` to `total`, read ahead in another thread."""
    if hasattr(batches, "stream"):
        yield from batches.stream(start)
        return
    with ThreadPoolExecutor(1, "batches") as pool:
        ahead: deque[Any] = deque()
        for step in range(start, total):
            ahead.append(pool.submit(batches.__getitem__, step))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _check_batch(batch: int, devices: int, accumulate: int) -> None:
    multiple = devices * accumulate
    if batch % multiple:
        parts = f"{devices} devices" + (f" × accumulate={accumulate}" * (accumulate > 1))
        raise ValueError(
            f"batch={batch} does not divide over {parts}; use a multiple of {multiple}"
        )


def _refuse_changes(run: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Hold that two identities are one, whatever version wrote them and wherever their file is."""
    run, asked = _flat(run), _flat(asked)
    changes = [
        f"{name}: run has {run.get(name, 'nothing')}, asked {asked.get(name, 'nothing')}"
        for name in [*run, *(asked.keys() - run.keys())]
        # By their text, in which NaN is itself.
        if name not in ("version", "file") and repr(run.get(name)) != repr(asked.get(name))
    ]
    if changes:
        raise ValueError(
            f"{out} holds a run with other arguments: {'; '.join(changes)}; "
            "give the run's own, or another directory"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Name the leaves of nested dicts by their paths; experiment arguments by themselves."""
    if not isinstance(tree, dict):
        return {prefix.removeprefix("arguments."): tree}
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n"))


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    # PIL knows one channel only as (h, w).
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    _write(path, lambda partial: picture.save(partial, "PNG"))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    write(partial)
    os.replace(partial, path)
