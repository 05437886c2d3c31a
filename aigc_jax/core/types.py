"""The one abstraction: a task is its initialiser, an ordered tuple of descents, and a sampler."""

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax import Array

Batch = dict[str, Array]


class Mode(NamedTuple):
    """How a loss is being evaluated.

    Attributes:
        train: whether dropout and batch statistics are live; static.
        axis: the mapped axis' name under `pmap`, None under `jit`; static.
        step: () int32, of the training, which a weight may be annealed by; None outside of it.
    """

    train: bool
    axis: str | None = None
    step: Array | None = None


class Out(NamedTuple):
    """One evaluation of a loss, per example: only the step ever divides.

    Attributes:
        loss: (b,) float32.
        weight: (b,) what an example counts for: 1, or its number of real tokens or frames.
        stats: proposed non-gradient state by network, each a linear average over the batch.
        metrics: name -> (b,), averaged under the same weight.
    """

    loss: Array
    weight: Array
    stats: dict[str, Any] = {}
    metrics: dict[str, Array] = {}


class Mean(NamedTuple):
    """A metric before its division, so that steps, shards and microbatches can be summed."""

    total: Array
    weight: Array


class Phase(NamedTuple):
    """One descent of a training step.

    Attributes:
        name: unique within its task; addresses the phase's randomness and its optimiser state.
        trains: the networks this phase may change. It changes no other.
        loss: `(params, stats, batch, keys, mode) -> Out`; `keys` is (b,), one per example.
        tx: the optimiser, over `{name: params[name] for name in trains}`.
        every: run on the last of every so many steps (a generator's `n_critic`, a lazy penalty's
            16).
        start: the first step, counted from 0, on which the phase may run.
        optimiser: the phase whose optimiser state it shares, if not its own: a lazy penalty goes on
            with its network's moments, for alone Adam would undo the penalty's weight.
    """

    name: str
    trains: tuple[str, ...]
    loss: Callable[..., Out]
    tx: optax.GradientTransformation
    every: int = 1
    start: int = 0
    optimiser: str | None = None


class Task(NamedTuple):
    """A generative model, as the loop, the checkpoint, the compilers and the command line know it.

    Attributes:
        init: `(key, batch) -> (params, stats)`, both dicts by network name.
        phases: the descents of one step, in order; each sees what those before it changed.
        sample: `(params, stats, keys, cond, *, its own options) -> samples`, a pytree whose leaves
            lead with (b,). `keys` is (b,); `cond` a dict of (b, ...) arrays, or empty.
        average: network -> decay of the exponential moving average of its weights, if it has one.
        tensor: which axis of a parameter a mesh's `tensor` axis divides, by the end of its path;
            see `core.parallel.lay_out`.
    """

    init: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    phases: tuple[Phase, ...]
    sample: Callable[..., Any]
    average: Mapping[str, float] = {}
    tensor: Mapping[str, int] = {}


class State(NamedTuple):
    """Exactly what a checkpoint holds. It has no device axis and no random key."""

    step: Array
    params: dict[str, Any]
    stats: dict[str, Any]
    opt: dict[str, Any]
    ema: dict[str, Any]


class Model(NamedTuple):
    """A trained task, as an evaluation or a picture meets it.

    Attributes:
        params: weights by network, averaged where the task averages.
        stats: non-gradient state by network, averaged likewise.
        draw: `(n, cond={}, *, seed=0, **options) -> samples` as NumPy arrays with leading (n,);
            sample i depends on the seed and i alone. `options` are those of `Task.sample`.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    draw: Callable[..., Any]


class Feed(NamedTuple):
    """How a training step gets its batches.

    Attributes:
        columns: what every device holds throughout: name -> (n, ...), a data set whole; or nothing.
        stream: `(start, stop) -> generator` of what the host sends at each step from `start` until
            before `stop`, trees of (b / processes, ...) arrays.
        gather: `(columns, sent) -> batch`, pure, to be traced within the step.
    """

    columns: dict[str, Any]
    stream: Callable[[int, int], Generator[Any, None, None]]
    gather: Callable[[Any, Any], Batch]


class Experiment(NamedTuple):
    """What surrounds a task: data, length, and how it is evaluated and pictured.

    Attributes:
        task: the model.
        data: `(seed) -> batches`, where `batches[step]` is this process' share of that step's
            batch, a dict of NumPy arrays, for any step in any order. A training takes them by their
            `feed()` or `resident(limit)`, if they have those: each returns a `Feed`.
        steps: how long to train, unless the command line says otherwise.
        batch: examples a step, over all processes.
        evaluate: `(model) -> {metric: value}`.
        picture: `(model) -> {file stem: what is shown}`: an (h, w, c) uint8 image, a (t, h, w, c)
            film, or text; or bytes under the whole name of their file, such as `song.mid`.
        best: the evaluation metric whose best checkpoint is kept, and whether "max" or "min" is
            best.
        classes: the names of labels 0, 1, …; empty for an unconditional task.
        cond: `(n) -> cond` of n samples where a task needs more than labels, such as held-out
            images to translate.
        originals: `(n) -> cond` of n held-out examples, what they are first of its columns; the
            task's sampler, given them, draws from their posteriors, and so reconstructs them.
        show: `(samples) -> {file stem: what is shown}`, as of `picture`, where samples are not
            images.
        prompt: `(texts) -> cond` of as many samples, where a model goes on from texts.
        weights: `() -> {network: parameters}` to begin from, in place of those that the task makes;
            called once, when a training begins.
        export: `(model, directory) -> what was written`, in a format of other libraries; raises a
            ValueError if the model has none there.
    """

    task: Task
    data: Callable[[int], Any]
    steps: int
    batch: int
    evaluate: Callable[[Model], dict[str, float]] | None = None
    picture: Callable[[Model], dict[str, Any]] | None = None
    best: tuple[str, str] | None = None
    classes: tuple[str, ...] = ()
    cond: Callable[[int], dict[str, Any]] | None = None
    originals: Callable[[int], dict[str, Any]] | None = None
    show: Callable[[Any], dict[str, Any]] | None = None
    prompt: Callable[[Sequence[str]], dict[str, Any]] | None = None
    weights: Callable[[], dict[str, Any]] | None = None
    export: Callable[[Model, Path], str] | None = None
