"""Image generation without a condition, evaluated, pictured, and watched for mode collapse."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
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

ADVICE = (
    "try a lower learning rate of the discriminator, R1 and R2 or a gradient penalty, "
    "differentiable augmentation, or stopping at the best checkpoint"
)


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


def collapse(
    scores: Mapping[str, float], best: Mapping[str, float], *, classes: int = 0
) -> str | None:
    """Say in one line that samples have lost diversity, and what to try; or None if they have not.

    It reads the keys of `report` and `evaluate_modes`:

    | metric | against the best so far | against real data, at the first evaluation too |
    |---|---|---|
    | `recall` | less than ½ of it | less than ¼ of its floor |
    | `classes` | less by ⅕ or more | fewer than `classes` |
    | `modes` | less by ⅕ or more | less than its floor by ⅕ or more |
    | `entropy` | | less than ⅔ of log(`classes`) |

    Recall moves by some hundredths between evaluations of 1,000 samples, so half is no noise. A
    generator that is not trained yet shows the same signs as one that has collapsed.

    Args:
        scores: of one evaluation.
        best: the highest value of each key before it; empty at the first.
        classes: how many classes the data has; 0 leaves out what is held against that.

    >>> collapse({"classes_mnist/1000": 10.0}, {}, classes=10)
    >>> collapse({"classes_mnist/1000": 7.0}, {}, classes=10).partition(":")[0]
    'the samples lack diversity (classes_mnist/1000 is 7, the data has 10)'
    """
    floors = {
        key.partition("_floor/")[0]: value for key, value in scores.items() if "_floor/" in key
    }
    signs = []
    for key, value in scores.items():
        if "_floor/" in key:
            continue
        stem = key.partition("/")[0]
        before, floor = best.get(key, -math.inf), floors.get(stem, -math.inf)
        fell = f"{key} is {value:.4g}, at its best {before:.4g}"
        below = f"{key} is {value:.4g}, real data's {floor:.4g}"
        match stem.partition("_")[0]:
            case "recall" if value < before / 2:
                signs.append(fell)
            case "recall" if value < floor / 4:
                signs.append(below)
            case "classes" | "modes" if value <= 0.8 * before:
                signs.append(fell)
            case "modes" if value <= 0.8 * floor:
                signs.append(below)
            case "classes" if value < classes:
                signs.append(f"{key} is {value:.4g}, the data has {classes}")
            case "entropy" if classes and value < 2 / 3 * math.log(classes):
                signs.append(f"{key} is {value:.4g} of log {classes} = {math.log(classes):.4g}")
    return f"the samples lack diversity ({'; '.join(signs)}): {ADVICE}" if signs else None


def watch_collapse(
    evaluate: Callable[[Model], dict[str, float]], *, classes: int = 0
) -> Callable[[Model], dict[str, float]]:
    """Make an evaluation warn of a collapse as it happens; its scores stay what they are.

    It remembers the best of each score from evaluation to evaluation, of this process: a resumed
    run is at first held against real data alone.

    Args:
        evaluate: `(model) -> scores`, such as `evaluator` makes.
        classes: how many classes the data has; 0 if that is not known.

    Returns:
        `(model) -> scores`, which warns where `collapse` has something to say.

    >>> watched = watch_collapse(lambda model: {"classes_mnist/1000": 10.0}, classes=10)
    >>> watched(Model({}, {}, None))
    {'classes_mnist/1000': 10.0}
    """
    best: dict[str, float] = {}

    def watched(model: Model) -> dict[str, float]:
        scores = evaluate(model)
        if sign := collapse(scores, best, classes=classes):
            warnings.warn(sign, stacklevel=2)
        for key, value in scores.items():
            best[key] = max(value, best.get(key, value))
        return scores

    return watched
