"""The loop: a task and its data in, a trained model out, and everything in between on disk."""

import contextlib
import functools
import json
import math
import re
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

import aigc_jax
from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import batch_shards, lay_out, make_mesh, put_batch, shardings
from aigc_jax.core.shapes import batch_size
from aigc_jax.core.types import Experiment, Feed, Model, State
from aigc_jax.files import read_png, write_gif, write_json, write_shown
from aigc_jax.train.checkpoint import Checkpoints
from aigc_jax.train.compile import jit_init, jit_step, pmap_step
from aigc_jax.train.log import Log
from aigc_jax.train.meter import Meter
from aigc_jax.train.model import Sampler, make_model, make_sampler
from aigc_jax.train.signals import Signals, Stop
from aigc_jax.train.step import averaged

# What `data.sources` keeps in memory by default: little beside the 16 GB and more of an
# accelerator, though each gets all of it.
RESIDENT_BYTES = 2 * 1024**3

# A film of more is long to watch and to make, and is in memory meanwhile.
FILM_FRAMES = 200


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
    tensor: int = 1,
    compiler: Literal["jit", "pmap"] = "jit",
    accumulate: int = 1,
    inner_steps: int = 1,
    log_every: int = 50,
    save_every: int = 500,
    keep: int = 3,
    evaluate_every: int = 0,
    picture_every: int = 0,
    patience: int = 20,
    resident: bool | None = None,
) -> Result:
    """Train an experiment, or go on with the training that `out` holds, exactly.

    `out` gets `experiment.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, pictures and
    films in `samples/` and, at the end, `evaluation.json` and a film of each picture throughout the
    training. Ctrl-C and SIGTERM finish the step, save, and return; a second Ctrl-C aborts.

    Args:
        experiment: what to train.
        out: the run's directory.
        identity: what the run is, as JSON: the experiment's name and its arguments.
        seed: addresses all randomness of the training: initial weights, order of data, noise.
        steps: train to this many steps in all; the experiment's own number by default.
        fsdp: over how many devices each parameter is divided; 1 replicates, -1 means all.
        tensor: over how many devices the heads and hidden units of a Transformer are divided, and
            so its work on an example.
        compiler: what compiles the step.
        accumulate: microbatches a step; more need less memory.
        inner_steps: steps in one dispatch to the devices; more hide the host behind short steps.
            Trains the same model, and stops for a signal only in between.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints; evaluations and pictures save one besides.
        keep: how many of the latest checkpoints to keep; the best is kept besides.
        evaluate_every: steps between two evaluations; 0 evaluates at the end only.
        picture_every: steps between two sets of pictures, which are frames of the film at the end;
            0 draws them at the end only.
        patience: stop when so many updates in a row were not finite.
        resident: hold the whole data set on each device, and gather batches from it within the
            step; trains the same model, to float rounding. By default where the devices are
            accelerators and the data is in memory and takes at most 2 GiB.

    Returns:
        The model, the state, and what the evaluation measured.

    Raises:
        ValueError: an argument is out of range, the batch does not divide, `out` holds a run of
            another identity, or the data cannot be `resident` and was to be.
        Diverged: `patience` updates in a row were not finite. Earlier checkpoints are intact.
        OSError: a checkpoint could not be written, or none could be read.
    """
    total = experiment.steps if steps is None else steps
    at_least = {"steps": (total, 1), "accumulate": (accumulate, 1), "log_every": (log_every, 1)}
    at_least |= {"save_every": (save_every, 1), "keep": (keep, 1), "patience": (patience, 1)}
    at_least |= {"evaluate_every": (evaluate_every, 0), "picture_every": (picture_every, 0)}
    at_least |= {"seed": (seed, 0), "inner_steps": (inner_steps, 1)}
    for name, (value, least) in at_least.items():
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if compiler not in ("jit", "pmap"):
        raise ValueError(f"compiler={compiler!r} must be 'jit' or 'pmap'")
    if compiler == "pmap" and (fsdp != 1 or tensor != 1 or jax.process_count() > 1):
        raise ValueError(
            f"fsdp={fsdp} and tensor={tensor} on {jax.process_count()} process(es) needs "
            f"compiler='jit': 'pmap' replicates the parameters over one process' devices"
        )
    periods = {"log_every": log_every, "save_every": save_every}
    periods |= {"evaluate_every": evaluate_every, "picture_every": picture_every}
    for name, value in periods.items():
        if value % inner_steps:
            raise ValueError(f"inner_steps={inner_steps} must divide {name}={value}")
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    if tensor > 1 and not experiment.task.tensor:
        raise ValueError(f"tensor={tensor}: this experiment has nothing that it divides")
    _check_batch(experiment.batch, batch_shards(mesh), accumulate)

    task, console = experiment.task, Console(stderr=True)
    options: Any = {"seed": seed, "accumulate": accumulate}
    program = functools.partial(jit_step, task, mesh, **options)
    if compiler == "pmap":
        program = functools.partial(pmap_step, task, **options)
    tell = functools.partial(_print, console) if jax.process_index() == 0 else lambda _: None
    # As JSON gives it back, so that a tuple and a list are one.
    identity = json.loads(json.dumps(identity | {"seed": seed}, default=str))
    with (
        Signals() as signals,
        Checkpoints(out / "checkpoints", keep, experiment.best, report=tell) as checkpoints,
    ):
        record = out / "experiment.json"
        if saved := checkpoints.steps():
            before = _read_json(record) if record.exists() else checkpoints.identity(saved[-1])
            _refuse_changes(before, identity, out)
        identity["version"] = aigc_jax.__version__
        batches = experiment.data(seed)
        start, like = _initial(experiment, batches, seed, mesh)
        state, step = checkpoints.restore(like) if saved else (start(), 0)
        feed = _feed(batches, resident) if step < total else None
        sampler = make_sampler(task, mesh)
        with Log(out, start=step, total=total, batch=experiment.batch, console=console) as log:
            run = _Run(experiment, out, identity, sampler, checkpoints, log, signals)
            if jax.process_index() == 0:
                write_json(record, identity)
            if saved:
                log.say(f"{out} holds step {step} of {total}")
            try:
                if feed is not None:
                    meter = Meter(mesh, log, log_every, patience, step, total)
                    programs: dict[int, Callable[..., Any]] = {}
                    columns = jax.device_put(feed.columns, NamedSharding(mesh, PartitionSpec()))
                    if held := sum(x.nbytes for x in jax.tree.leaves(columns)):
                        log.say(f"the data, {held / 1e6:,.1f} MB, is held on each device")
                    with contextlib.closing(feed.stream(step, total)) as source:
                        blocks = _blocks(source, step, total, inner_steps, mesh)
                        n, ahead = next(blocks)
                        while step < total:
                            if n not in programs:
                                with meter.pause():
                                    programs[n] = program(inner_steps=n, gather=feed.gather)
                                    if compiler == "jit":
                                        programs[n] = _ahead(
                                            programs[n], log, state, ahead, columns
                                        )
                            state, metrics = programs[n](state, ahead, columns)
                            step += n
                            if step < total:
                                n, ahead = next(blocks)
                            meter.push(step, metrics, signals.number)
                            if number := meter.signal:
                                meter.drain()
                                raise Stop(number)
                            evaluate = evaluate_every > 0 and step % evaluate_every == 0
                            picture = picture_every > 0 and step % picture_every == 0
                            if step < total and (evaluate or picture or step % save_every == 0):
                                with meter.pause():
                                    run.look(state, evaluate=evaluate, picture=picture)
                    meter.drain()
                    if meter.skipped:
                        log.say(f"{meter.skipped} updates were not finite and were dropped")
                scores = run.conclude(state)
            except Stop as stop:
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


class _Run(NamedTuple):
    """What is done with a state besides training it."""

    experiment: Experiment
    out: Path
    identity: dict[str, Any]
    sampler: Sampler
    checkpoints: Checkpoints
    log: Log
    signals: Signals

    def model(self, state: State) -> Model:
        return make_model(*averaged(state), self.sampler)

    def save(self, state: State, scores: dict[str, float] | None = None) -> None:
        self.checkpoints.save(state, self.identity, scores)

    def look(
        self, state: State, *, evaluate: bool, picture: bool, last: bool = False
    ) -> dict[str, float]:
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
                self._picture(state, last)
        return scores

    def conclude(self, state: State) -> dict[str, float]:
        """Look a last time, unless that is what the run has come to already."""
        record, step = self.out / "evaluation.json", int(state.step)
        with contextlib.suppress(OSError, ValueError):  # absent or damaged: it is made anew
            if (held := _read_json(record)).pop("step", None) == step:
                return {name: math.nan if v is None else v for name, v in held.items()}
        scores = self.look(state, evaluate=True, picture=True, last=True)
        if jax.process_index() == 0:
            # JSON has no NaN.
            known = {name: None if math.isnan(v) else v for name, v in scores.items()}
            write_json(record, {"step": step, **known})
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

    def _picture(self, state: State, last: bool) -> None:
        if self.experiment.picture is None:
            return
        step, samples = int(state.step), self.out / "samples"
        for name, shown in self.experiment.picture(self.model(state)).items():
            if jax.process_index() != 0:
                continue
            write_shown(samples, name, shown, f"-{step:06}")
            if isinstance(shown, str | bytes):
                continue
            self.log.picture(step, name, shown[0] if np.ndim(shown) == 4 else shown)
            if last and np.ndim(shown) < 4:
                self._film(samples / f"{name}.gif")

    def _film(self, film: Path) -> None:
        """Make a film of the pictures of one stem, those before a resumption among them."""
        name = re.compile(re.escape(film.stem) + r"-(\d{6,})\.png")
        steps = {int(m[1]): p for p in film.parent.iterdir() if (m := name.fullmatch(p.name))}
        paths = [steps[step] for step in sorted(steps)]
        some = np.linspace(0, len(paths) - 1, min(len(paths), FILM_FRAMES)).round().astype(int)
        frames = []
        for i in some:
            with contextlib.suppress(OSError):  # what a crash of the machine left
                frames.append(read_png(paths[i]))
        frames = [frame for frame in frames if frame.shape == frames[-1].shape]
        if len(frames) > 1:
            write_gif(film, frames, milliseconds=[150] * (len(frames) - 1) + [1500])


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
    make = functools.partial(
        jit_init(experiment.task, mesh), stream(seed, "init"), jax.tree.map(np.zeros_like, first)
    )
    start = lambda: make(experiment.weights() if experiment.weights else {})
    shapes = jax.eval_shape(make)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings(shapes, mesh, lay_out(experiment.task.tensor)),
    )
    return start, like


def _ahead(step: Any, log: Log, *given: Any) -> Callable[..., Any]:
    """Compile a step ahead of the first, so that a user knows what takes so long."""
    log.say("compiling the step")
    began = time.perf_counter()
    compiled = step.lower(*given).compile()
    log.say(f"compiled in {time.perf_counter() - began:.1f} s")
    return compiled


def _feed(batches: Any, resident: bool | None) -> Feed:
    """Choose how the step gets its batches: held by the devices where that is wanted and can be."""
    if resident or (resident is None and jax.default_backend() != "cpu"):
        try:
            if not hasattr(batches, "resident"):
                raise ValueError(f"a {type(batches).__name__} has no method `resident`")
            return batches.resident(None if resident else RESIDENT_BYTES)
        except ValueError as error:
            if resident:
                raise ValueError(f"resident=True: {error}") from error
    if hasattr(batches, "feed"):
        return batches.feed()
    return Feed({}, functools.partial(_read_ahead, batches), lambda _, batch: batch)


def _read_ahead(batches: Any, start: int, stop: int) -> Generator[Any, None, None]:
    """Yield the batches of steps `start` to `stop`, read ahead in another thread."""
    with ThreadPoolExecutor(1, "batches") as pool:
        ahead: deque[Any] = deque()
        for step in range(start, stop):
            ahead.append(pool.submit(batches.__getitem__, step))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _blocks(
    source: Iterator[Any], step: int, total: int, size: int, mesh: Mesh
) -> Iterator[tuple[int, Any]]:
    """Yield `(n, batch)` on the devices: n = `size` steps' batches where they fit, else one's."""
    while step < total:
        n = size if step % size == 0 and step + size <= total else 1
        if n == 1:
            yield 1, put_batch(next(source), mesh)
        else:
            some = [next(source) for _ in range(n)]
            yield n, put_batch(jax.tree.map(lambda *x: np.stack(x), *some), mesh, axis=1)
        step += n


def _check_batch(batch: int, devices: int, accumulate: int) -> None:
    multiple = devices * accumulate
    if batch % multiple:
        parts = f"{devices} device" + "s" * (devices > 1)
        parts += f" × accumulate={accumulate}" * (accumulate > 1)
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
