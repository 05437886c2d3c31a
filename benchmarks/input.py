"""Measure how fast batches reach a training step: `python -m benchmarks.input`.

Every path is timed in each repeat, one after another, and the median of the repeats is reported, so
that a machine which slows down for a while slows all of them. With `TFDS_DATA_DIR` set, MNIST and
CIFAR-10 are read from there; without it, random images of their shapes stand in, and are named so.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from aigc_jax.data import batches, sources, transforms
from benchmarks import record

BATCH = 128


def main(repeats: int = 5, workers: tuple[int, ...] = (1, 2)) -> None:
    """Measure images/s of each way in, print a table, and write benchmarks/results/input.json.

    Args:
        repeats: measurements of each; the median counts.
        workers: numbers of worker processes to try where images are decoded as they are read.
    """
    with tempfile.TemporaryDirectory() as root:
        cases = list(_cases(Path(root), workers))
        rates: list[list[float]] = [[] for _ in cases]
        for _ in range(repeats):
            for (_, _, measure), measured in zip(cases, rates, strict=True):
                measured.append(measure())

    rows = [
        {
            "source": source,
            "path": path,
            "images_per_second": round(statistics.median(measured)),
            "lowest": round(min(measured)),
            "highest": round(max(measured)),
            "batch": BATCH,
            "repeats": repeats,
        }
        for (source, path, _), measured in zip(cases, rates, strict=True)
    ]
    table = Table("source", "path", "images/s", "lowest to highest")
    for row in rows:
        spread = f"{row['lowest']:,} to {row['highest']:,}"
        table.add_row(row["source"], row["path"], f"{row['images_per_second']:,}", spread)
    console = Console()
    console.print(table)
    console.print(f"written to {record.write('input', rows)}")


def _cases(root: Path, workers: tuple[int, ...]):
    """Yield (source, path, measure); a measure returns images/s."""
    flipped = transforms.chain(transforms.flip, transforms.normalise)
    for name, source, transform in (
        ("digits 8×8×1", sources.digits().train, transforms.normalise),
        (*_mnist(), transforms.normalise),
        (*_cifar10(), flipped),
    ):
        source.read(np.arange(len(source)))  # decode it all, so that what is timed is memory
        stream = batches.batches(source, BATCH, seed=0, transform=transform)
        flip = "" if transform is transforms.normalise else ", flip"
        yield name, f"memory, indexed{flip}", _indexed(stream, 1000)
        yield name, f"memory, prefetched{flip}", _prefetched(stream, 1000, 0)

    if "TFDS_DATA_DIR" in os.environ:
        encoded = sources.tfds("mnist", memory_limit=0).train
        yield (
            "MNIST 28×28×1",
            "decoded as read",
            _indexed(batches.batches(encoded, BATCH, seed=0, transform=transforms.normalise), 40),
        )

    _write_photographs(root)
    photographs = sources.folder(root, size=64, test_fraction=0, memory_limit=0)
    stream = batches.batches(photographs.train, BATCH, seed=0, transform=flipped)
    yield "JPEG 256×256 to 64×64×3", "decoded, threads", _prefetched(stream, 20, 0)
    for count in workers:
        path = f"decoded, {count} worker process" + "es" * (count > 1)
        yield "JPEG 256×256 to 64×64×3", path, _prefetched(stream, 20, count)


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


def _write_photographs(root: Path, n: int = 1000) -> None:
    """Write JPEG files as costly to decode as photographs: smooth shapes under a little noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / f"{i:04}.jpg")


def _indexed(stream: batches.Batches, steps: int) -> Callable[[], float]:
    def measure() -> float:
        stream[0]
        start = time.perf_counter()
        for step in range(steps):
            stream[step]
        return steps * BATCH / (time.perf_counter() - start)

    return measure


def _prefetched(stream: batches.Batches, steps: int, workers: int) -> Callable[[], float]:
    def measure() -> float:
        with contextlib.closing(batches.prefetch(stream, workers=workers)) as ready:
            # The clock starts when the workers have started and what was prepared ahead is used up.
            for _ in range(4 * max(workers, 1)):
                next(ready)
            start = time.perf_counter()
            for _ in range(steps):
                next(ready)
            return steps * BATCH / (time.perf_counter() - start)

    return measure


if __name__ == "__main__":
    tyro.cli(main)
