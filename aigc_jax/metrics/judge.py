"""The judge of samples: a trained classifier, as the metrics meet it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.classes import agreement
from aigc_jax.train.identity import digest, identify
from aigc_jax.train.loop import fit


class Judge(NamedTuple):
    """A classifier trained on real data, that lends its features and its opinion.

    Attributes:
        features: (n, h, w, c) float32 in [-1, 1] -> (n, d) float32.
        classes: (n, h, w, c) float32 in [-1, 1] -> (n,) integers.
        name: what the distances in its features are called after, e.g. "digits".
        accuracy: its share of right answers on held-out real data.
    """

    features: Callable[[np.ndarray], np.ndarray]
    classes: Callable[[np.ndarray], np.ndarray]
    name: str
    accuracy: float


def batched(fn: Callable[[Any], Any], images: Any, size: int = 500) -> np.ndarray:
    """Apply a function to many images, `size` at a time, so that it compiles once.

    Args:
        fn: (size, ...) -> (size, ...), each row from its own image alone.
        images: (n, ...).
        size: images a call; the last call's missing ones are copies, and their results dropped.

    Returns:
        (n, ...) results, on the host.

    Raises:
        ValueError: there are no images, `size` is below 1, or `fn` returns another leading length.

    >>> batched(lambda x: x.sum(axis=1), np.ones((5, 3)), size=2)
    array([3., 3., 3., 3., 3.])
    """
    images = np.asarray(images)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"images has shape {images.shape}; there must be at least one")
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    results = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        result = np.asarray(fn(filled))
        if result.shape[:1] != (size,):
            raise ValueError(f"fn returned shape {result.shape} for {size} images")
        results.append(result[: len(part)])
    return np.concatenate(results)


def accuracy(model: Model, data: Dataset) -> dict[str, float]:
    """Measure a classifier on the test split: `{"accuracy/test-<n>": share of right answers}`."""
    test = whole(data.test, normalise)
    n = len(test["label"])
    judged = model.draw(n, {"image": test["image"]})["label"]
    return {f"accuracy/test-{n}": agreement(test["label"], judged)}


def train_judge(
    make: Callable[..., Experiment],
    data: Dataset,
    *,
    name: str,
    directory: Path = Path("runs/judges"),
) -> Judge:
    """Train a classifier experiment to judge by, or read it back if that was done before.

    It is a run like any other, kept under the digest of what it is: another classifier is another
    run.

    Args:
        make: a function that makes the experiment, called with its defaults; or a
            `functools.partial` of one.
        data: whose test split to state its accuracy on.
        name: what distances in its features are called after.
        directory: where judges are kept.

    Raises:
        KeyboardInterrupt: its training was interrupted. It goes on where it was.
    """
    identity = identify(make)
    experiment = make()._replace(evaluate=None, picture=None)
    out = directory / f"{identity['experiment']}-{digest(identity)}"
    result = fit(experiment, out, identity=identity)
    if result.interrupted:
        raise KeyboardInterrupt
    draw = result.model.draw

    def classes(image: np.ndarray) -> np.ndarray:
        return draw(len(image), {"image": image})["label"]

    def features(image: np.ndarray) -> np.ndarray:
        return draw(len(image), {"image": image})["features"]

    [right] = accuracy(result.model, data).values()
    return Judge(features, classes, name, right)
