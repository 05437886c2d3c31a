"""Measure how fast batches reach a training step: `python -m benchmarks.input`.

Every path is timed in each round, one after another, and medians are reported, so that a machine
which slows down for a while slows all of them. Where PyTorch is installed, a `DataLoader` over the
same memory or the same files takes its turn: the best of its variants (an example or a batch at a
time, in this process or in two workers), found in a first round. A ratio over 1 says that we are
faster. Workers run, and what is prepared ahead is used up, before the clock starts. Batches end on
the host, but for `device-resident`, which gathers them in a compiled program and sums each.

With `TFDS_DATA_DIR` set, MNIST and CIFAR-10 are read from there; without it, random images of their
shapes stand in, and are named so.
"""

import contextlib
import functools
import itertools
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, ImageOps

from aigc_jax.data import batches, sources, transforms
from benchmarks import record

BATCH = 128
AHEAD = 4  # batches of each worker that come before the clock starts

Stream = Generator[Any, None, None]
Begin = Callable[[], Stream]


class Case(NamedTuple):
    """One set of examples, and the ways in which its batches arrive.

    Attributes:
        source: what the examples are.
        paths: name -> what begins our batches, without end.
        peers: variant -> likewise those of a PyTorch `DataLoader`; empty where nothing compares.
    """

    source: str
    paths: Mapping[str, Begin]
    peers: Mapping[str, Begin]


def main(rounds: int = 5, seconds: float = 0.7, workers: tuple[int, ...] = (1, 2)) -> None:
    """Measure images/s of each way in, and write benchmarks/results/input.json.

    Args:
        rounds: measurements of each; the median counts.
        seconds: to measure each for, in each round.
        workers: numbers of worker processes to try where images are decoded as they are read.
    """
    most = max(2, *workers)  # PyTorch's are two
    versions: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        import torch

        versions = {"torch": str(torch.__version__)}
        torch.set_num_threads(1)  # as in its workers; more wait for each other, and are slower
    with tempfile.TemporaryDirectory() as root:
        rows = []
        for case in _cases(Path(root), workers):
            for row in measure(case, rounds, seconds, most):
                rows.append(row)
                beside = ""
                if "ratio" in row:
                    beside = (
                        f"{row['ratio']:.2f} × ({row['lowest']:.2f} to {row['highest']:.2f}) "
                        f"PyTorch's {row['peer_images_per_second']:,} ({row['peer']})"
                    )
                print(
                    f"{row['source']:26} {row['path']:26} {row['images_per_second']:9,} images/s  "
                    f"{beside}",
                    flush=True,
                )
    for line in record.regressions(record.read("input"), rows, ("source", "path"), "ratio"):
        print(f"slower than before: {line}")
    print(f"written to {record.write('input', rows, **versions)}")


def measure(case: Case, rounds: int, seconds: float, workers: int) -> list[dict[str, Any]]:
    """Measure a row for each path, beside the best variant of the peer."""
    found = {
        name: max(_rate(begin, seconds / 3, workers) for _ in range(3))
        for name, begin in case.peers.items()
    }
    best = max(found, key=found.__getitem__, default=None)
    taken = case.paths if best is None else {**case.paths, None: case.peers[best]}
    rates: dict[str | None, list[float]] = {name: [] for name in taken}
    for _ in range(rounds):
        for name, begin in taken.items():
            rates[name].append(_rate(begin, seconds, workers))
    theirs = rates.get(None)
    return [
        {"source": case.source, "path": path, "batch": BATCH, "rounds": rounds}
        | summary(rates[path], theirs)
        | ({"peer": best, "peer_variants": _rounded(found)} if theirs else {})
        for path in case.paths
    ]


def summary(ours: list[float], theirs: list[float] | None = None) -> dict[str, Any]:
    """Summarise images/s of each round, and the ratio to a peer's in the same round.

    >>> summary([90.0, 100.0, 110.0], [50.0, 40.0, 55.0])["ratio"]
    2.0
    """
    low, rate, high = np.percentile(ours, (25, 50, 75))
    said = {"images_per_second": rate, "images_per_second_p25": low, "images_per_second_p75": high}
    if not theirs:
        return _rounded(said)
    ratios = np.divide(ours, theirs)
    lowest, ratio, highest = (round(float(q), 3) for q in np.percentile(ratios, (25, 50, 75)))
    said["peer_images_per_second"] = np.median(theirs)
    return _rounded(said) | {"ratio": ratio, "lowest": lowest, "highest": highest}


def _rounded(rates: dict[str, Any]) -> dict[str, int]:
    return {name: round(rate) for name, rate in rates.items()}


def _rate(begin: Begin, seconds: float, workers: int) -> float:
    """Return images/s, once the workers run and what they have prepared ahead is used up.

    Each time anew: what waits would go on preparing batches beside what is measured next.
    """
    with contextlib.closing(begin()) as stream:
        for _ in range(AHEAD * workers):
            next(stream)
        count, start = 0, time.perf_counter()
        # Workers' batches come together, one of each: count whole turns.
        while (elapsed := time.perf_counter() - start) < seconds or count % workers:
            next(stream)
            count += 1
        return count * BATCH / elapsed


def _cases(root: Path, workers: tuple[int, ...]) -> Generator[Case, None, None]:
    flipped = transforms.chain(transforms.flip, transforms.normalise)
    for name, source, flip in (
        ("digits 8×8×1", sources.digits().train, False),
        (*_mnist(), False),
        (*_cifar10(), True),
    ):
        columns = source.read(np.arange(len(source)))  # decoded, so that what is timed is memory
        transform = flipped if flip else transforms.normalise
        stream = batches.batches(source, BATCH, seed=0, transform=transform)
        suffix = ", flip" if flip else ""
        paths = {
            f"memory, indexed{suffix}": functools.partial(_indexed, stream),
            f"memory, prefetched{suffix}": functools.partial(_prefetched, stream),
            f"device-resident{suffix}": functools.partial(_resident, stream),
        }
        yield Case(name, paths, _torch_memory(columns, flip))

    if "TFDS_DATA_DIR" in os.environ:
        encoded = sources.tfds("mnist", memory_limit=0).train
        stream = batches.batches(encoded, BATCH, seed=0, transform=transforms.normalise)
        yield Case("MNIST 28×28×1", {"decoded as read": functools.partial(_indexed, stream)}, {})

    for side, size in ((64, 64), (256, 64)):
        folder = root / str(side)
        _write_photographs(folder, side)
        photographs = sources.folder(folder, size=size, test_fraction=0, memory_limit=0)
        stream = batches.batches(photographs.train, BATCH, seed=0, transform=transforms.normalise)
        paths = {"folder, threads": functools.partial(_prefetched, stream)}
        for count in workers:
            plural = "es" if count > 1 else ""
            paths[f"folder, {count} worker process{plural}"] = functools.partial(
                _prefetched, stream, count
            )
        scaled = "" if side == size else f" to {size}×{size}×3"
        yield Case(f"JPEG {side}×{side}×3{scaled}", paths, _torch_files(folder, size))


def _mnist() -> tuple[str, sources.Source]:
    if "TFDS_DATA_DIR" in os.environ:
        return "MNIST 28×28×1", sources.tfds("mnist").train
    return "random 28×28×1 (no TFDS_DATA_DIR)", _random(60_000, (28, 28, 1))


def _cifar10() -> tuple[str, sources.Source]:
    if "TFDS_DATA_DIR" in os.environ:
        for name in ("cifar10", "cifar10_jpeg"):
            with contextlib.suppress(FileNotFoundError):
                return f"{name} 32×32×3", sources.tfds(name).train
    return "random 32×32×3", _random(50_000, (32, 32, 3))


def _random(n: int, shape: tuple[int, int, int]) -> sources.Source:
    image = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    return sources.arrays({"image": image}, {"image": image[:1]}).train


def _write_photographs(folder: Path, side: int, n: int = 1000) -> None:
    """Write JPEG files as costly to decode as photographs: smooth shapes under a little noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg")


def _indexed(stream: batches.Batches) -> Stream:
    return (stream[step] for step in itertools.count())


def _prefetched(stream: batches.Batches, workers: int = 0) -> Stream:
    return batches.prefetch(stream, workers=workers)


def _resident(stream: batches.Batches) -> Stream:
    """Gather batches in a program that holds the data, as a training step does, and sum each."""
    held = stream.resident()
    columns = jax.device_put(held.columns)
    consume = jax.jit(lambda *args: jax.tree.map(jnp.sum, held.gather(*args)))
    ahead = deque()
    for sent in held.stream(0, sys.maxsize):
        ahead.append(consume(columns, sent))
        if len(ahead) > 2:  # as many as keep the device busy
            yield jax.block_until_ready(ahead.popleft())


# The peer


def _torch_memory(columns: sources.Examples, flip: bool) -> Mapping[str, Begin]:
    """Read arrays through PyTorch, to float32 in [−1, 1]."""
    try:
        import torch
    except ImportError:
        return {}

    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}

    class Items:
        """What a user writes first: an example at a time."""

        def __len__(self) -> int:
            return len(tensors["image"])

        def __getitem__(self, i: int) -> Any:
            item = {name: tensor[i] for name, tensor in tensors.items()}
            image = item["image"]
            if flip and torch.rand(()) < 0.5:
                image = image.flip(1)
            return item | {"image": image.float() / 127.5 - 1}

    class Gathered(Items):
        """What a careful user writes: a batch at a time."""

        def __getitems__(self, index: list[int]) -> Any:
            places = torch.tensor(index)
            items = {name: tensor.index_select(0, places) for name, tensor in tensors.items()}
            image = items["image"]
            if flip:
                mirrored = torch.rand(len(index)) < 0.5
                image[mirrored] = image[mirrored].flip(2)
            return items | {"image": image.float().div_(127.5).sub_(1)}

    return {
        **_loaders("items", Items()),
        **_loaders("batches", Gathered(), collate_fn=lambda x: x),
    }


def _torch_files(folder: Path, size: int) -> Mapping[str, Begin]:
    """Decode files in PyTorch's workers as we do, to float32 in [−1, 1]."""
    try:
        import torch
    except ImportError:
        return {}

    files = sorted(folder.iterdir())

    class Files:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> np.ndarray:
            with Image.open(files[i]) as image:
                image.draft(None, (2 * size, 2 * size))
                image = image.convert("RGB")
                if image.size != (size, size):
                    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
                return np.asarray(image)

    def collate(pixels: list[np.ndarray]) -> Any:
        # Once a batch, which takes less than once an image.
        return torch.from_numpy(np.stack(pixels)).float().div_(127.5).sub_(1)

    return _loaders("files", Files(), collate_fn=collate)


def _loaders(name: str, dataset: Any, **options: Any) -> Mapping[str, Begin]:
    """Shuffle a data set without end, in this process and in two workers."""
    from torch.utils.data import DataLoader, RandomSampler

    def endless(workers: int) -> Stream:
        # One epoch after another, as ours: a loader that is begun anew each epoch idles in between.
        order = RandomSampler(dataset, num_samples=1_000_000 * len(dataset))
        yield from DataLoader(dataset, BATCH, sampler=order, num_workers=workers, **options)

    return {name: lambda: endless(0), f"{name}, 2 workers": lambda: endless(2)}


if __name__ == "__main__":
    tyro.cli(main)
