"""The judge of samples: a trained classifier, as the metrics meet it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    if not out.exists():
        said = f"training {experiment.steps} steps of a judge, {identity['experiment']}, once"
        print(f"{said}; it stays in {out}", file=sys.stderr, flush=True)
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
