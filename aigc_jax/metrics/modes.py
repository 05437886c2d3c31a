"""Modes counted: Stacked-MNIST's protocol, in which every mode of the data is known.

An image stacks three grey digits as its colour channels, so there are 10³ modes, all as likely. A
classifier of grey digits names the mode of a sample.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched
from aigc_jax.data.sources import Dataset
from aigc_jax.metrics.classes import class_entropy, class_histogram
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import quantise
from aigc_jax.metrics.unconditional import View, unchanged


def count_modes(triples: Any, classes: int = 10) -> tuple[int, float]:
    """Count the modes that samples are of, and measure how unevenly they fall on all there are.

    KL(p ‖ u) = Σ_m p_m log(p_m / u_m) = log classes³ - H(p), p_m the share of mode m, u uniform

    Args:
        triples: (n, 3) integers in [0, classes), what the channels of each sample show.
        classes: of a channel.

    Returns:
        How many of the classes³ modes occur, and the divergence, in nats: from 0, all even, to
        log classes³, one mode. Even perfect samples score above 0; see `perfect_modes`.

    Raises:
        ValueError: the triples are not (n, 3) integers in [0, classes), or there are none.

    >>> modes, kl = count_modes([[0, 0, 0], [0, 0, 1]], classes=2)
    >>> modes, round(kl, 4)  # two of eight, evenly: log 4
    (2, 1.3863)

    Reference: Srivastava et al. 2017, "VEEGAN: reducing mode collapse in GANs using implicit
    variational learning", section 4.2; Lin et al. 2018, "PacGAN: the power of two samples in
    generative adversarial networks", section 4.2.
    """
    triples = np.asarray(triples)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ValueError(f"triples has shape {triples.shape}; they are (n, 3)")
    class_histogram(triples.ravel(), classes)  # refuses labels that are none
    mode = triples.astype(np.int64) @ (classes ** np.arange(2, -1, -1))  # (n, 3) -> (n,)
    counts = class_histogram(mode, classes**3)
    kl = 3 * np.log(classes) - class_entropy(counts)
    return int(np.count_nonzero(counts)), max(float(kl), 0.0)


def perfect_modes(n: int, classes: int = 10) -> tuple[float, float]:
    """Return what `count_modes` gives on average of n samples drawn evenly from all modes.

    With M = classes³ modes, each drawn c ~ Binomial(n, 1/M) times:
    E[modes] = M (1 - (1 - 1/M)ⁿ),  E[KL] = M E[c/n log(M c / n)] ≈ (M - 1) / 2n

    and the divergence scatters by about √(M / 2) / n: at n = 26,000 it is 0.0193 ± 0.0008.

    Args:
        n: samples.
        classes: of a channel, at least 2.

    Returns:
        The expected number of modes, and of the divergence in nats.

    Raises:
        ValueError: `n` or `classes` is out of range.

    >>> modes, kl = perfect_modes(26_000)
    >>> round(modes, 4), round(kl, 4)
    (1000.0, 0.0193)
    """
    for name, value, low in (("n", n, 1), ("classes", classes, 2)):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    total = classes**3
    none = n * np.log1p(-1 / total)  # log probability that a mode is not drawn
    c = np.arange(1, n + 1)
    # From one count to the next a binomial's probability changes by (n - c + 1) / c · p / (1 - p).
    p = np.exp(none + np.cumsum(np.log((n - c + 1) / c) - np.log(total - 1)))
    share = c / n
    return float(-total * np.expm1(none)), float(total * np.sum(p * share * np.log(total * share)))


def judge_triples(images: Any, judge: Judge) -> np.ndarray:
    """Classify the three channels of images, each as a grey image.

    Args:
        images: (n, h, w, 3) uint8, or floats in [-1, 1], which are quantised.
        judge: a classifier of grey images (h, w, 1).

    Returns:
        (n, 3) integers.

    Raises:
        ValueError: the images are not (n, h, w, 3), n > 0, or hold NaN or infinity.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images has shape {images.shape}; triples are (n, h, w, 3)")

    def classes(some: np.ndarray) -> np.ndarray:
        grey = np.moveaxis(quantise(some), -1, 1)  # (b, h, w, 3) -> (b, 3, h, w)
        # (b, 3, h, w) -> (b*3, h, w, 1) -> (b, 3)
        return judge.classes(grey.reshape(-1, *grey.shape[2:], 1)).reshape(-1, 3)

    return batched(classes, images)


def modes_floor(
    judge: Judge,
    data: Dataset | None = None,
    *,
    n: int = 26_000,
    classes: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Count the modes of real images, once for many evaluations.

    `modes_mnist_floor/test-26000` is of as many real test images, which the judge's errors and
    uneven classes move as they move the samples' score; without data,
    `modes_mnist_floor/uniform-26000` is what `perfect_modes` expects; likewise `kl_mnist_floor/…`.

    Args:
        judge: a classifier of grey images.
        data: real images of three stacked grey channels, such as `data.sources.stacked`, or None.
        n: images, as many as an evaluation draws; a test split of fewer gives all it has.
        classes: the judge's.
        seed: of the choice of images.
    """
    if data is None:
        (modes, kl), of = perfect_modes(n, classes), f"uniform-{n}"
    else:
        m = min(n, len(data.test))
        some = np.random.default_rng(seed).choice(len(data.test), m, replace=False)
        real = judge_triples(data.test.read(some)["image"], judge)
        (modes, kl), of = count_modes(real, classes), f"test-{m}"
    return {
        f"modes_{judge.name}_floor/{of}": float(modes),
        f"kl_{judge.name}_floor/{of}": float(kl),
    }


def evaluate_modes(
    model: Model,
    judge: Judge,
    floor: Mapping[str, float],
    *,
    n: int = 26_000,
    classes: int = 10,
    seed: int = 0,
    ema: bool = False,
    view: View = unchanged,
    **options: Any,
) -> dict[str, float]:
    """Draw images of three stacked grey channels, and count the modes a judge finds in them.

    Keys read as those of `report`: `modes_mnist/26000` and `kl_mnist/26000`, in nats, `-ema` after
    averaged weights; the floors stand beside them.

    Args:
        model: whose `draw` needs no condition and gives (n, h', w', 3).
        judge: a classifier of grey images.
        floor: what `modes_floor` measured of real images.
        n: images drawn; 26,000 in the literature, and only at equal n do values compare.
        classes: the judge's.
        seed: of the draws.
        ema: whether the model's weights are averaged.
        view: what of the images is judged, (n, h', w', 3) -> (n, h, w, 3) as large as the judge's.
        **options: of the task's sampler.

    Reference: as `count_modes`.
    """
    drawn = view(model.draw(n, seed=seed, **options))
    modes, kl = count_modes(judge_triples(drawn, judge), classes)
    tag = f"{n}-ema" if ema else f"{n}"
    return {f"modes_{judge.name}/{tag}": float(modes), f"kl_{judge.name}/{tag}": kl, **floor}
