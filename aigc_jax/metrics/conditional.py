"""Class-conditional image generation, evaluated and pictured: the same for every family."""

from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.sources import Dataset
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import quantise
from aigc_jax.metrics.report import Reference
from aigc_jax.metrics.unconditional import View, judge_images, picture_images, unchanged


def evaluate_classes(
    model: Model,
    judge: Judge,
    real: Reference,
    *,
    classes: int,
    seed: int = 0,
    ema: bool = True,
    view: View = unchanged,
    **options: Any,
) -> dict[str, float]:
    """Draw images of every class alike, and report on them in a judge's features.

    Args:
        model: whose `draw` takes a `label`.
        judge: a classifier of the same images.
        real: the real ones in its features; as many are drawn as it is for, of each class as many
            as of any other, or one less.
        classes: how many the data has.
        seed: of the draws.
        ema: whether the model's weights are averaged.
        view: what of the images is judged, as large as the data's; see `evaluate_samples`.
        **options: of the task's sampler.

    Returns:
        What `report` returns, and `judge_accuracy_<name>`, the judge's own on the test split.
    """
    asked = (np.arange(real.n) * classes // real.n).astype(np.int32)
    drawn = quantise(view(model.draw(real.n, {"label": asked}, seed=seed, **options)))
    return judge_images(drawn, judge, real, ema=ema, asked=asked)


def picture_classes(
    model: Model,
    data: Dataset,
    *,
    columns: int = 10,
    scale: int = 1,
    view: View = unchanged,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Picture a row of samples of every class, and a few beside their nearest training images.

    Args:
        model: whose `draw` takes a `label`.
        data: the real images and their classes.
        columns: samples a row.
        scale: each pixel becomes a square of this side.
        view: what of the images is shown, as large as the data's; see `evaluate_samples`.
        **options: of the task's sampler.

    Returns:
        `samples` and `neighbours`, (H, W, 3) uint8.
    """
    label = np.repeat(np.arange(len(data.classes), dtype=np.int32), columns)
    drawn = quantise(view(model.draw(len(label), {"label": label}, **options)))
    return picture_images(drawn, data, columns=columns, scale=scale)
