"""Image generation without a condition, evaluated and pictured."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.judge import Judge, train_judge
from aigc_jax.metrics.neighbours import nearest
from aigc_jax.metrics.pictures import image_grid, neighbour_grid, quantise
from aigc_jax.metrics.report import Reference, reference, report

View = Callable[[np.ndarray], np.ndarray]


def unchanged(images: np.ndarray) -> np.ndarray:
    """Return images as they are: the view of a model that draws them as large as the data's."""
    return images


def evaluate_samples(
    model: Model,
    judge: Judge,
    real: Reference,
    *,
    ema: bool,
    seed: int = 0,
    view: View = unchanged,
    **options: Any,
) -> dict[str, float]:
    """Draw images without a condition, and report on them in a judge's features.

    Args:
        model: whose `draw` needs no condition.
        judge: a classifier of the same images.
        real: the real ones in its features; as many are drawn as it is for.
        ema: whether the model's weights are averaged.
        seed: of the draws.
        view: what of the images is judged, (n, h', w', c) -> (n, h, w, c) as large as the data's:
            `lambda x: x[:, 2:30, 2:30]` for 28×28 images that were padded to 32×32.
        **options: of the task's sampler.

    Returns:
        What `report` returns, and `judge_accuracy_<name>`, the judge's own on the test split.
    """
    drawn = quantise(view(model.draw(real.n, seed=seed, **options)))
    return judge_images(drawn, judge, real, ema=ema)


def judge_images(
    images: np.ndarray, judge: Judge, real: Reference, *, ema: bool, asked: Any = None
) -> dict[str, float]:
    """Report on images in a judge's features, beside the real ones of a data set.

    Args:
        images: (n, h, w, c) float32 in [-1, 1], quantised.
        judge: a classifier of them.
        real: the real ones in its features.
        ema: whether they are of averaged weights.
        asked: (n,) integers, the classes they were to be of, or None.

    Returns:
        What `report` returns, and `judge_accuracy_<name>`, the judge's own on the test split.
    """
    judged = judge.classes(images)
    scores = report(judge.features(images), real, fake_classes=judged, asked=asked, ema=ema)
    return scores | {f"judge_accuracy_{judge.name}/test-{len(real.test)}": judge.accuracy}


def judge_data(judge: Judge, data: Dataset, *, n: int = 1000) -> Reference:
    """Measure a data set's images in a judge's features, once for many evaluations.

    Args:
        judge: a classifier of them.
        data: the real images, of both splits.
        n: images drawn at each evaluation.
    """
    train, test = (whole(split, normalise)["image"] for split in (data.train, data.test))
    return reference(judge.features(train), judge.features(test), name=judge.name, n=n)


def evaluator(
    make: Callable[..., Experiment],
    data: Dataset,
    *,
    name: str,
    n: int = 1000,
    evaluate: Callable[..., dict[str, float]] = evaluate_samples,
    **options: Any,
) -> Callable[[Model], dict[str, float]]:
    """Make what evaluates a model by a judge, as often as it is asked to.

    The first evaluation trains the judge, or reads it back, and measures the real data, which takes
    a while; later ones measure the samples alone.

    Args:
        make: the classifier experiment that `judge.train_judge` trains.
        data: the real images, of both splits.
        name: what distances in the judge's features are called after.
        n: images drawn at each evaluation.
        evaluate: `(model, judge, reference, **options) -> scores`: `evaluate_samples`, or
            `conditional.evaluate_classes`.
        **options: of `evaluate`, and of the task's sampler.

    Returns:
        `(model) -> scores`, an experiment's `evaluate`.
    """

    @functools.cache
    def real() -> tuple[Judge, Reference]:
        judge = train_judge(make, data, name=name)
        return judge, judge_data(judge, data, n=n)

    return lambda model: evaluate(model, *real(), **options)


def picture_samples(
    model: Model,
    data: Dataset,
    *,
    n: int = 100,
    columns: int = 10,
    scale: int = 1,
    view: View = unchanged,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Picture samples in a grid, and the first of each row beside its nearest training images.

    Args:
        model: whose `draw` needs no condition.
        data: the real images.
        n: images drawn.
        columns: samples a row.
        scale: each pixel becomes a square of this side.
        view: what of the images is shown, as large as the data's.
        **options: of the task's sampler, and its `seed`.

    Returns:
        `samples` and `neighbours`, (H, W, 3) uint8.
    """
    drawn = quantise(view(model.draw(n, **options)))
    return picture_images(drawn, data, columns=columns, scale=scale)


def picture_images(
    images: np.ndarray, data: Dataset, *, columns: int, scale: int = 1
) -> dict[str, np.ndarray]:
    """Lay images out in a grid, and the first of each row beside its nearest training images.

    Args:
        images: (n, h, w, c) float32 in [-1, 1], quantised.
        data: the real images, of the same size.
        columns: images a row.
        scale: each pixel becomes a square of this side.

    Returns:
        `samples` and `neighbours`, (H, W, 3) uint8.
    """
    train = whole(data.train, normalise)["image"]
    some = images[::columns]
    return {
        "samples": image_grid(images, columns, scale=scale),
        "neighbours": neighbour_grid(some, train, nearest(some, train, k=7).index, scale=scale),
    }
