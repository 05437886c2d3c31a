"""Class-conditional image generation, evaluated and pictured: the same for every family."""

from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.pictures import image_grid, neighbour_grid, quantise
from aigc_jax.metrics.report import report


def evaluate_classes(
    model: Model,
    judge: Judge,
    data: Dataset,
    *,
    per_class: int = 100,
    seed: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Draw as many images of every class, and report on them in a judge's features.

    Args:
        model: whose `draw` takes a `label`.
        judge: a classifier of the same images.
        data: the real images, of both splits, and their classes.
        per_class: images drawn of each.
        seed: of the draws.
        **options: of the task's sampler.

    Returns:
        What `report` returns, and `judge_accuracy_<name>`, the judge's own on the test split.
    """
    train, test = (whole(split, normalise)["image"] for split in (data.train, data.test))
    asked = np.repeat(np.arange(len(data.classes), dtype=np.int32), per_class)
    drawn = quantise(model.draw(len(asked), {"label": asked}, seed=seed, **options))
    scores = report(
        judge.features(drawn),
        judge.features(train),
        judge.features(test),
        name=judge.name,
        fake_classes=judge.classes(drawn),
        asked=asked,
        ema=True,
    )
    return scores | {f"judge_accuracy_{judge.name}/test-{len(test)}": judge.accuracy}


def picture_classes(
    model: Model,
    data: Dataset,
    *,
    columns: int = 10,
    scale: int = 1,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Picture a row of samples of every class, and a few beside their nearest training images.

    Args:
        model: whose `draw` takes a `label`.
        data: the real images and their classes.
        columns: samples a row.
        scale: each pixel becomes a square of this side.
        **options: of the task's sampler.

    Returns:
        `samples` and `neighbours`, (H, W, 3) uint8.
    """
    train = whole(data.train, normalise)["image"]
    label = np.repeat(np.arange(len(data.classes), dtype=np.int32), columns)
    drawn = quantise(model.draw(len(label), {"label": label}, **options))
    some = drawn[::columns]
    return {
        "samples": image_grid(drawn, columns, scale=scale),
        "neighbours": neighbour_grid(some, train, nearest(some, train, k=7).index, scale=scale),
    }
