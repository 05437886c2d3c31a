"""What an autoencoder keeps of held-out images."""

from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.batches import whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.judge import Judge
from aigc_jax.metrics.pictures import image_grid, quantise
from aigc_jax.metrics.report import Reference
from aigc_jax.metrics.unconditional import judge_images


def psnr(x: Any, y: Any, *, peak: float = 2.0) -> np.ndarray:
    """Return the peak signal-to-noise ratio of images: 10 log₁₀(peak² / mean (x − y)²).

    Each image's own: the average of these is what papers state, and is more than the ratio of the
    average error.

    Args:
        x: (n, ...) images.
        y: (n, ...) what was made of them.
        peak: how far apart two values can be; 2 of [−1, 1].

    Returns:
        (n,) dB, infinite where two images are equal.

    Raises:
        ValueError: their shapes differ.

    Example:
        >>> psnr(np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 0.2)).round(6).tolist()
        [20.0]
    """
    x, y = _pair(x, y)
    error = np.square(x - y).mean(tuple(range(1, x.ndim)), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def ssim(x: Any, y: Any, *, peak: float = 2.0) -> np.ndarray:
    """Return the structural similarity of images.

    SSIM = (2 μx μy + C₁)(2 σxy + C₂) / ((μx² + μy² + C₁)(σx² + σy² + C₂)), eq. 13

    Means, variances and covariances are of windows of 11×11 pixels under a Gaussian of σ 1.5, as
    many as lie within the image; C₁ = (0.01 peak)², C₂ = (0.03 peak)². The average is over windows
    and over channels, each a grey image.

    Args:
        x: (n, h, w, c) images, of 11 pixels a side at least.
        y: (n, h, w, c) what was made of them.
        peak: how far apart two values can be; 2 of [−1, 1].

    Returns:
        (n,) at most 1, where two images are equal.

    Raises:
        ValueError: their shapes differ, or are not (n, h, w, c) of 11 pixels a side.

    Wang et al. 2004, *Image quality assessment: from error visibility to structural similarity*.
    """
    x, y = _pair(x, y)
    if x.ndim != 4 or min(x.shape[1:3]) < 11:
        raise ValueError(f"images have shape {x.shape}; SSIM is of (n, h, w, c), h and w >= 11")
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    rows, columns = (_windows(side) for side in x.shape[1:3])
    average = lambda image: rows @ image @ columns.T
    values = []
    for pair in zip(x, y, strict=True):
        a, b = (np.moveaxis(each.astype(np.float64), -1, 0) for each in pair)  # -> (c, h, w)
        ma, mb = average(a), average(b)
        variances = average(a * a) - ma * ma + average(b * b) - mb * mb
        covariance = average(a * b) - ma * mb
        of_means = (2 * ma * mb + c1) / (ma * ma + mb * mb + c1)
        values.append((of_means * (2 * covariance + c2) / (variances + c2)).mean())
    return np.array(values)


def reconstructions(
    model: Model, data: Dataset, n: int | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruct the first images of the test split.

    Args:
        model: whose `draw` reconstructs the `image` of its condition.
        data: the real images.
        n: how many; all by default.
        **options: of the task's sampler; by default `temperature=0.0`, of the posterior's mean.

    Returns:
        The originals and what became of them at the levels of 8 bits, each (n, h, w, c) float32 in
        [−1, 1]. Labels, if the data has any, are given with the images.
    """
    test = whole(data.test, normalise)
    n = min(n or len(data.test), len(data.test))
    cond = {name: test[name][:n] for name in ("image", "label") if name in test}
    drawn = model.draw(n, cond, **({"temperature": 0.0} | options))
    return cond["image"], quantise(drawn)


def evaluate_reconstructions(
    model: Model, data: Dataset, *, n: int | None = None, **options: Any
) -> dict[str, float]:
    """Measure how near reconstructions are to the first images of the test split.

    Args:
        model: whose `draw` reconstructs the `image` of its condition.
        data: the real images, of 11 pixels a side at least.
        n: how many; all by default.
        **options: as of `reconstructions`.

    Returns:
        `psnr/test-<n>` in dB and `ssim/test-<n>`, each the average over images.
    """
    original, drawn = reconstructions(model, data, n, **options)
    return {
        f"{name}/test-{len(original)}": float(of(original, drawn).mean())
        for name, of in (("psnr", psnr), ("ssim", ssim))
    }


def judge_reconstructions(
    model: Model, judge: Judge, real: Reference, *, data: Dataset, ema: bool, **options: Any
) -> dict[str, float]:
    """Report on reconstructions in a judge's features, as `unconditional.evaluator` asks.

    They are of the test split, and held against all of it: a perfect autoencoder scores below the
    floor, which is of training images.

    Args:
        model: whose `draw` reconstructs the `image` of its condition.
        judge: a classifier of the same images.
        real: the real ones in its features; as many are reconstructed as it is for.
        data: the real images.
        ema: whether the model's weights are averaged.
        **options: as of `reconstructions`.

    Returns:
        What `unconditional.judge_images` returns, `reconstruction_` before every name.

    Raises:
        ValueError: the reference is for more images than the test split has.
    """
    if real.n > len(data.test):
        raise ValueError(f"n={real.n} must be at most the {len(data.test)} images to reconstruct")
    _, drawn = reconstructions(model, data, real.n, **options)
    scores = judge_images(drawn, judge, real, ema=ema)
    return {f"reconstruction_{name}": value for name, value in scores.items()}


def picture_reconstructions(
    model: Model, data: Dataset, *, n: int = 40, columns: int = 10, scale: int = 1, **options: Any
) -> dict[str, np.ndarray]:
    """Picture rows of originals, each above a row of what became of them.

    Args:
        model: whose `draw` reconstructs the `image` of its condition.
        data: the real images, of whose test split the first are shown.
        n: how many; a last row that is not full is left out.
        columns: images a row.
        scale: each pixel becomes a square of this side.
        **options: as of `reconstructions`.

    Returns:
        `reconstructions`, (H, W, 3) uint8.
    """
    both = np.stack(reconstructions(model, data, n, **options))
    columns = min(columns, both.shape[1])
    rows = both.shape[1] // columns
    both = both[:, : rows * columns].reshape(2, rows, columns, *both.shape[2:])
    shown = both.swapaxes(0, 1).reshape(-1, *both.shape[3:])  # -> (rows * 2 * columns, h, w, c)
    return {"reconstructions": image_grid(shown, columns, scale=scale)}


def _pair(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(each, np.result_type(each, np.float32)) for each in (x, y))
    if x.shape != y.shape:
        raise ValueError(f"images of shape {x.shape} cannot be held against {y.shape}")
    return x, y


def _windows(side: int) -> np.ndarray:
    """Return the matrix that averages each 11 of a line's pixels: (side - 10, side)."""
    weights = np.exp(-0.5 * np.square(np.arange(-5, 6) / 1.5))
    weights /= weights.sum()
    return np.stack([np.pad(weights, (i, side - 11 - i)) for i in range(side - 10)])
