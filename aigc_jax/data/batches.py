"""Batches addressed by (seed, step): any step, in any order, on any number of processes."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.types import Feed
from aigc_jax.data.sources import Dataset, Examples, Kept, Memory, Source
from aigc_jax.data.transforms import Address, Addressed, Transform


@runtime_checkable
class Uncut(Protocol):
    """A source whose examples are parts of something that devices can hold instead of them all."""

    def whole(self) -> Examples:
        """Return name -> (n, ...), of which the examples are parts."""
        ...

    def cut(self, columns: Any, index: Any) -> Any:
        """Return the examples at (b,) int32 positions, of such columns, in JAX."""
        ...


class Addressable(Protocol):
    """What is addressed by step: any, in any order."""

    def __getitem__(self, step: int, /) -> Any:
        """Return what belongs to a step."""
        ...


@dataclass(frozen=True, eq=False)
class Batches:
    """An endless sequence of batches, `batches[step]`. Made by `batches`.

    Attributes:
        source: where the examples are read.
        batch: examples a step, over all processes.
        seed: of the order and of random transforms.
        transform: applied to each batch of raw examples, or None.
        process: which process this is, of how many.
        workers: processes that read ahead in training; 0 uses threads.
    """

    source: Source
    batch: int
    seed: int
    transform: Transform | None
    process: tuple[int, int]
    workers: int = 0

    def positions(self, step: int) -> np.ndarray:
        """Return the (b / processes,) int64 places in the stream of this process' share."""
        if step < 0:
            raise IndexError(f"step={step} must be at least 0")
        rank, count = self.process
        share = self.batch // count
        return int(step) * self.batch + rank * share + np.arange(share, dtype=np.int64)

    def index(self, step: int) -> np.ndarray:
        """Return which (b / processes,) examples of the source this process reads at a step."""
        n = len(self.source)
        positions = self.positions(step)
        start, stop = int(positions[0]), int(positions[-1]) + 1
        return np.concatenate(
            [
                _order(n, self.seed, epoch)[max(start - epoch * n, 0) : stop - epoch * n]
                for epoch in range(start // n, (stop - 1) // n + 1)
            ]
        ).astype(np.int64)

    def __getitem__(self, step: int) -> Examples:
        """Return this process' share of the batch of a step."""
        examples = self.source.read(self.index(step))
        if self.transform is None:
            return examples
        return self.transform(examples, Address(self.seed, self.positions(step)))

    def feed(self) -> Feed:
        """Send raw examples, for the step to transform: images as bytes and not as floats.

        The batches are those of indexing, to float rounding. What the transform draws at random is
        drawn on the host and travels along, so that it is the same. A transform that JAX cannot
        trace stays on the host.

        Example:
            >>> from aigc_jax.data.sources import digits
            >>> from aigc_jax.data.transforms import normalise
            >>> stream = batches(digits().train, 16, seed=0, transform=normalise, process=(0, 1))
            >>> feed = stream.feed()
            >>> sent = next(feed.stream(3, 4))
            >>> sent.rows["image"].dtype, np.allclose(
            ...     jax.jit(feed.gather)({}, sent)["image"], stream[3]["image"]
            ... )
            (dtype('uint8'), True)
        """
        share = self.batch // self.process[1]
        rows = {
            name: np.broadcast_to(column, (share, *column.shape[1:]))
            for name, column in self.source.read(np.zeros(1, np.int64)).items()
        }
        try:
            return self._traced({}, rows, lambda columns, rows: rows)
        except ValueError:
            return Feed({}, functools.partial(_stream, self, self.workers), lambda _, batch: batch)

    def resident(self, limit: int | None = None) -> Feed:
        """Read the whole source, for devices to hold it and to gather batches from it.

        The batches are as those of `feed`.

        Args:
            limit: how many bytes the raw examples may take; None is no limit.

        Raises:
            ValueError: it cannot be, and says why: the data is divided over processes, the source
                is decoded at every reading or takes more than `limit`, or JAX cannot trace the
                transform.

        Example:
            >>> from aigc_jax.data.sources import digits
            >>> from aigc_jax.data.transforms import normalise
            >>> stream = batches(digits().train, 16, seed=0, transform=normalise, process=(0, 1))
            >>> held = stream.resident()
            >>> sent = next(held.stream(3, 4))
            >>> held.columns["image"].shape, sent.rows.shape
            ((1437, 8, 8, 1), (16,))
            >>> batch = jax.jit(held.gather)(held.columns, sent)
            >>> np.allclose(batch["image"], stream[3]["image"])
            True
        """
        n, count = len(self.source), self.process[1]
        if count > 1:
            raise ValueError(f"the data is divided over {count} processes")
        if isinstance(self.source, Uncut):
            some, take, whole = self.source.whole(), self.source.cut, self.source.whole
            size = sum(column.nbytes for column in some.values())
        elif isinstance(self.source, Memory | Kept):
            some, take = self.source.read(np.zeros(1, np.int64)), _rows
            whole = functools.partial(self.source.read, np.arange(n))
            size = n * sum(column.nbytes for column in some.values())
        else:
            raise ValueError(f"a {type(self.source).__name__} is not held in memory")
        if limit is not None and size > limit:
            raise ValueError(f"the data takes {size:,} bytes, and the limit is {limit:,}")
        feed = self._traced(some, np.zeros(self.batch, np.int32), take)
        return feed._replace(columns=whole())

    def _traced(self, columns: Examples, rows: Any, take: Callable[[Any, Any], Any]) -> Feed:
        """Return a feed whose step transforms what it takes, having found what bits that draws.

        Args:
            columns: of the shapes and types, but for (n, ...), that devices are to hold.
            rows: of the shapes and types that the host is to send: examples, or positions.
            take: `(columns, rows) -> examples`, in JAX.

        Raises:
            ValueError: JAX cannot trace the transform.
        """
        transform = self.transform

        def gather(columns: Any, sent: Addressed) -> Any:
            examples = take(columns, sent.rows)
            return examples if transform is None else transform(examples, sent)

        names: list[str] = []

        def record(columns: Any, rows: Any) -> Any:
            bits = jnp.zeros(jax.tree.leaves(rows)[0].shape[0], jnp.uint32)
            drawn = defaultdict(lambda: bits)
            batch = gather(columns, Addressed(rows, drawn))
            names.extend(drawn)
            return batch

        try:
            jax.eval_shape(record, columns, rows)
        except Exception as error:  # what NumPy's or Pillow's code makes of a tracer may be any
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"JAX cannot trace the transform: {type(error).__name__}: {said}"
            ) from error
        raw = isinstance(rows, dict)
        sent = _Sent(self, tuple(names), raw)
        return Feed({}, functools.partial(_stream, sent, self.workers if raw else 0), gather)


@dataclass(frozen=True, eq=False)
class _Sent:
    """What the host sends at each step, by indexing: raw examples, or where devices find them."""

    batches: Batches
    names: tuple[str, ...]
    raw: bool

    def __getitem__(self, step: int) -> Addressed:
        address = Address(self.batches.seed, self.batches.positions(step))
        index = self.batches.index(step)
        rows = self.batches.source.read(index) if self.raw else index.astype(np.int32)
        return Addressed(rows, {name: address.bits(name) for name in self.names})


def _stream(sent: Any, workers: int, start: int, stop: int) -> Generator[Any, None, None]:
    """Iterate over what is sent at each step, prepared ahead."""
    with contextlib.closing(prefetch(sent, start, workers=workers)) as ahead:
        for _, each in itertools.islice(ahead, stop - start):
            yield each


def _rows(columns: Any, index: Any) -> Any:
    return {
        name: column.at[index].get(mode="promise_in_bounds") for name, column in columns.items()
    }


def batches(
    source: Source,
    batch: int,
    seed: int,
    *,
    transform: Transform | None = None,
    process: tuple[int, int] | None = None,
    workers: int = 0,
) -> Batches:
    """Divide a source into shuffled batches that are functions of (seed, step).

    The stream of a seed is one permutation of the source after another, a fresh one each epoch;
    step s reads its positions s · batch to (s + 1) · batch − 1. So a batch may straddle two epochs,
    every example is seen exactly once an epoch, and training resumes anywhere by naming the step.
    `batch` may exceed the source: then a step takes more than an epoch.

    Args:
        source: where examples are read.
        batch: examples a step, over all processes.
        seed: of the order and of random transforms, at least 0.
        transform: applied to each batch of raw examples.
        process: (index, count); this process reads the index-th of count equal blocks of each
            batch. By default as `jax.distributed` numbers it.
        workers: processes that prepare batches ahead in training, where they are decoded as they
            are read; 0 uses threads.

    Raises:
        ValueError: the source is empty, `batch` or `seed` is out of range, or `batch` does not
            divide over the processes.

    Example:
        >>> from aigc_jax.data.sources import arrays
        >>> images = {"image": np.zeros((10, 2, 2, 1), np.uint8), "label": np.arange(10)}
        >>> stream = batches(arrays(images, images).train, batch=5, seed=0, process=(0, 1))
        >>> sorted(int(i) for step in (0, 1) for i in stream[step]["label"])
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if process is None:
        process = (jax.process_index(), jax.process_count())
    rank, count = process
    if not 0 <= rank < count:
        raise ValueError(f"process={process} must be (index, count) with 0 <= index < count")
    if batch < 1 or batch % count:
        raise ValueError(f"batch={batch} must be a positive multiple of the {count} processes")
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    if not len(source):
        raise ValueError("source is empty; it must hold at least one example")
    return Batches(source, batch, seed, transform, process, workers)


_shuffling = threading.Lock()  # so that prefetching threads do not all shuffle the same epoch


def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    with _shuffling:
        return _permutation(n, seed, epoch)


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    places = np.arange(n, dtype=np.uint32 if n <= 2**32 else np.int64)
    np.random.default_rng([seed, epoch]).shuffle(places)
    return places


def prefetch(
    batches: Addressable, start: int = 0, *, workers: int = 0, depth: int = 4
) -> Generator[tuple[int, Any], None, None]:
    """Iterate over (step, batch) from a step on, preparing batches ahead of the consumer.

    They are the batches that indexing gives, in the same order, whoever prepares them. Threads
    suffice for sources in memory, and go far with large images, which Pillow decodes outside the
    interpreter's lock; worker processes use every core, and take some seconds to start. An error in
    preparing a batch is raised where that batch is awaited. Closing the iterator ends threads and
    workers. A script that uses workers must guard its entry by `if __name__ == "__main__"`.

    Args:
        batches: what to iterate over, by `batches[step]`; with workers, it is pickled.
        start: the first step.
        workers: processes that prepare batches, by grain; 0 uses threads of this one.
        depth: batches prepared ahead; with workers, by each, and grain holds some more besides.

    Raises:
        ValueError: `workers`, `depth` or `start` is out of range.
    """
    for name, value, least in (("start", start, 0), ("workers", workers, 0), ("depth", depth, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if workers:
        return _by_processes(batches, start, workers, depth)
    return _by_threads(batches, start, depth)


def _by_threads(
    batches: Addressable, start: int, depth: int
) -> Generator[tuple[int, Any], None, None]:
    pool = ThreadPoolExecutor(depth, "prefetch")
    try:
        ahead = deque(pool.submit(batches.__getitem__, start + i) for i in range(depth))
        for step in itertools.count(start):
            batch = ahead.popleft().result()
            ahead.append(pool.submit(batches.__getitem__, step + depth))
            yield step, batch
    finally:
        pool.shutdown(cancel_futures=True)


class _From:
    """The batches from a step on, as the finite sequence that grain asks for."""

    def __init__(self, batches: Addressable, start: int):
        self.batches = batches
        self.start = start

    def __len__(self) -> int:
        return sys.maxsize - self.start

    def __getitem__(self, index: int) -> Any:
        return self.batches[self.start + index]


def _by_processes(
    batches: Addressable, start: int, workers: int, depth: int
) -> Generator[tuple[int, Any], None, None]:
    import grain
    from absl import flags

    if (
        not flags.FLAGS.is_parsed()
    ):  # grain reads its options there, whatever parsed our command line
        flags.FLAGS.mark_as_parsed()
    iterator = iter(
        grain.MapDataset.source(_From(batches, start))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        .mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=depth), _settle_worker
        )
    )
    try:
        yield from zip(itertools.count(start), iterator)
    finally:
        iterator.close()


def _settle_worker(index: int, count: int) -> None:
    """Make a worker leave Ctrl-C to its parent, and end when its parent has, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow():
        if parent is not None:
            parent.join()
            os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def whole(source: Source, transform: Transform | None = None, n: int | None = None) -> Examples:
    """Read a source, all or its first n, in order, under a transform that draws nothing at random.

    Example:
        >>> from aigc_jax.data.sources import digits
        >>> from aigc_jax.data.transforms import normalise
        >>> whole(digits().test, normalise)["image"].shape[1:]
        (8, 8, 1)
    """
    places = np.arange(len(source) if n is None else min(n, len(source)))
    examples = source.read(places)
    return examples if transform is None else transform(examples, Address(0, places))


def held_out(
    data: Dataset, transform: Transform | None = None, columns: tuple[str, ...] = ("image",)
) -> Callable[[int], Examples]:
    """Make `(n) -> examples`: the first n of the test split, from the start again behind its last.

    Args:
        data: of which the test split is read.
        transform: of it.
        columns: those to give, in this order.

    Example:
        >>> from aigc_jax.data.sources import digits
        >>> held_out(digits(), columns=("label",))(4)["label"].shape
        (4,)
    """

    def first(n: int) -> Examples:
        test = whole(data.test, transform)
        return {name: test[name][np.arange(n) % len(data.test)] for name in columns}

    return first


def batched(fn: Callable[[Any], Any], examples: Any, size: int = 500) -> Any:
    """Apply a function to many examples, `size` at a time, so that it compiles once.

    Args:
        fn: (size, ...) -> (size, ...) arrays or trees of them, each row from its own example alone.
        examples: (n, ...), or a tree of such.
        size: examples a call; the last call's missing ones are copies, and their results dropped.

    Returns:
        (n, ...) results, on the host.

    Raises:
        ValueError: there are no examples, `size` is below 1, or `fn` returns another leading
            length.

    >>> batched(lambda x: x.sum(axis=1), np.ones((5, 3)), size=2)
    array([3., 3., 3., 3., 3.])
    """
    examples = jax.tree.map(np.asarray, examples)
    shapes = [x.shape for x in jax.tree.leaves(examples)]
    if not shapes or not all(shape and shape[0] for shape in shapes):
        raise ValueError(f"examples have shapes {shapes}; there must be at least one")
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    n, results = shapes[0][0], []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        some = jax.tree.map(lambda x, rows=rows: x[rows], examples)
        results.append(jax.tree.map(np.asarray, fn(some)))
        for result in jax.tree.leaves(results[-1]):
            if result.shape[:1] != (size,):
                raise ValueError(f"fn returned shape {result.shape} for {size} examples")
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *results)
