"""Fidelity and diversity apart: precision and recall, density and coverage.

Each set of features is taken for the union of balls about its members, as far as their kth
neighbour. Even two halves of one real set score below 1, the lower the smaller they are: read each
number beside that of real data against real data.
"""

from typing import Any

import numpy as np

from aigc_jax.metrics.features import as_features
from aigc_jax.metrics.neighbours import nearest, within


def radii(x: Any, *, k: int, name: str = "x", chunk: int = 2048) -> np.ndarray:
    """Return how far each of a set is from its kth neighbour: the radii of the balls about them.

    Args:
        x: (n, d) features.
        k: the neighbour that bounds a ball.
        name: what an error calls the set.
        chunk: rows that meet at a time, which bounds memory.

    Returns:
        (n,) distances.

    Raises:
        ValueError: k is not in [1, n), or the features are not finite.

    >>> radii([[0.0], [1.0], [3.0]], k=1).tolist()
    [1.0, 1.0, 2.0]
    """
    x = as_features(x, name)
    if not 1 <= k < len(x):
        raise ValueError(f"k={k} must be at least 1 and below the {len(x)} rows of {name}")
    # Each is its own nearest, at 0, or ties with its duplicates: either way the kth other is at k.
    return nearest(x, x, k=k + 1, chunk=chunk).distance[:, k]


def precision_recall(
    real: Any,
    fake: Any,
    *,
    k: int = 3,
    real_radii: np.ndarray | None = None,
    chunk: int = 2048,
) -> tuple[float, float]:
    """Return improved precision and recall: the share of each set that is on the other's manifold.

    f(x, Φ) = 1 if |x - φ| <= |φ - NN_k(φ, Φ)| for some φ in Φ, else 0
    precision = mean of f(fake, real),  recall = mean of f(real, fake)

    Args:
        real: (n, d) features.
        fake: (m, d) features; the same m as n keeps the two comparable.
        k: the neighbour that bounds a ball; 3 in the paper.
        real_radii: (n,) what `radii` gives of the real set at this k, where that is known already.
        chunk: rows that meet at a time, which bounds memory.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: k is not in [1, n) and [1, m), or the features are not finite or not equally
            wide.

    Reference: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing
    generative models", equations 1 and 2.
    """
    real, fake = _pair(real, fake)
    bounds = _bounds(real, real_radii, k, chunk)
    precision = within(fake, real, bounds, chunk=chunk)[0] > 0
    recall = within(real, fake, radii(fake, k=k, name="fake", chunk=chunk), chunk=chunk)[0] > 0
    return float(precision.mean()), float(recall.mean())


def density_coverage(
    real: Any,
    fake: Any,
    *,
    k: int = 5,
    real_radii: np.ndarray | None = None,
    chunk: int = 2048,
) -> tuple[float, float]:
    """Return density and coverage: how many real balls hold a sample, how many of them hold any.

    density = Σ_j Σ_i 1[y_j in B(x_i)] / (k m),  coverage = Σ_i 1[some y_j in B(x_i)] / n
    for real x_i, fake y_j and balls B(x_i) as far as the kth neighbour of x_i among the real.

    Only real balls count, so stray samples cannot inflate the manifold as they do that of recall.
    For two sets of one distribution density is 1 on average and coverage
    1 - (n-1)...(n-k) / (m+n-1)...(m+n-k), which is 0.97 at k = 5 and large n = m.

    Args:
        real: (n, d) features.
        fake: (m, d) features.
        k: the neighbour that bounds a ball; 5 in the paper.
        real_radii: (n,) what `radii` gives of the real set at this k, where that is known already.
        chunk: rows that meet at a time, which bounds memory.

    Returns:
        Density, from 0 and not bounded by 1, and coverage, in [0, 1].

    Raises:
        ValueError: k is not in [1, n), or the features are not finite or not equally wide.

    Reference: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models",
    section 3.
    """
    real, fake = _pair(real, fake)
    holders, held = within(fake, real, _bounds(real, real_radii, k, chunk), chunk=chunk)
    return float(holders.mean() / k), float(np.mean(held > 0))


def _pair(real: Any, fake: Any) -> tuple[np.ndarray, np.ndarray]:
    real = as_features(real, "real")
    return real, as_features(fake, "fake", real.shape[1])


def _bounds(real: np.ndarray, known: np.ndarray | None, k: int, chunk: int) -> np.ndarray:
    if known is None:
        return radii(real, k=k, name="real", chunk=chunk)
    if known.shape != (len(real),):
        raise ValueError(f"real_radii has shape {known.shape}; real has {len(real)} rows")
    return known
