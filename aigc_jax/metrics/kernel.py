"""The kernel distance: an unbiased estimate, so few samples neither flatter nor slander a model."""

from typing import Any

import numpy as np

from aigc_jax.metrics.features import as_features


def unbiased_mmd(x: Any, y: Any) -> float:
    """Estimate the squared maximum mean discrepancy of two sets of features, without bias.

    MMD² = Σ_{i≠j} k(x_i, x_j) / m(m-1) + Σ_{i≠j} k(y_i, y_j) / n(n-1) - 2 Σ_{ij} k(x_i, y_j) / mn,
    k(x, y) = (x·y / d + 1)³

    Args:
        x: (m, d) features, m >= 2.
        y: (n, d) features, n >= 2.

    Returns:
        MMD², 0 on average over sets of one distribution, and so often negative.

    Raises:
        ValueError: a set has fewer than two rows, is not finite, or is not as wide as the other.

    Reference: Gretton et al. 2012, "A kernel two-sample test", equation 3, under the kernel of
    Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    x = as_features(x, "x").astype(np.float64)
    y = as_features(y, "y", x.shape[1]).astype(np.float64)
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise ValueError(f"{name} has 1 row; an unbiased estimate needs at least 2")

    every = (np.arange(len(x))[None], np.arange(len(y))[None])
    return float(_unbiased(x, y, *every)[0])


def kernel_distance(
    real: Any, fake: Any, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the mean and the standard deviation of `unbiased_mmd` over random subsets.

    This is KID with Inception features. The subsets bound the cost and show the spread.

    Args:
        real: (n, d) features.
        fake: (m, d) features.
        subsets: how many pairs of subsets.
        size: rows in each, drawn without replacement. Near n the subsets are all but one and the
            same, and their spread says nothing.
        seed: of the drawing.

    Returns:
        The mean and the standard deviation over subsets (that of one subset, not of the mean).

    Raises:
        ValueError: `size` is below 2 or above n or m, `subsets` is below 1, or the features are not
            finite or not equally wide.

    Reference: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    real = as_features(real, "real")
    fake = as_features(fake, "fake", real.shape[1])
    if not 2 <= size <= min(len(real), len(fake)):
        raise ValueError(
            f"size={size} must be from 2 to the smaller set's {min(len(real), len(fake))} rows"
        )
    if subsets < 1:
        raise ValueError(f"subsets={subsets} must be at least 1")
    rng = np.random.default_rng(seed)
    drawn = [
        [rng.choice(len(rows), size, replace=False) for rows in (real, fake)]
        for _ in range(subsets)
    ]
    of_real, of_fake = np.stack(drawn, axis=1)  # (subsets, size) each
    values = _unbiased(real.astype(np.float64), fake.astype(np.float64), of_real, of_fake)
    return float(np.mean(values)), float(np.std(values))


def _unbiased(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Estimate MMD² of each pair of subsets x[i[s]], y[j[s]]."""

    def own(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
        size = index.shape[1]
        itself = (np.sum(rows * rows, axis=1) / rows.shape[1] + 1) ** 3
        return (_sums(rows, rows, index, index) - itself[index].sum(axis=1)) / (size * (size - 1))

    return own(x, i) + own(y, j) - 2 * _sums(x, y, i, j) / (i.shape[1] * j.shape[1])


def _sums(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Sum the kernel over all pairs of each pair of subsets: (s, a), (s, b) places -> (s,)."""
    y = y / x.shape[1]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        k = a @ b.T
        k += 1
        return k * k * k  # far quicker than k**3

    if i.size * j.shape[1] <= len(x) * len(y):
        return np.array([kernel(x[a], y[b]).sum() for a, b in zip(i, j, strict=True)])
    # Subsets that share most of their pairs: each pair once, and a product with who drew it.
    drew_x, drew_y = np.zeros((len(i), len(x))), np.zeros((len(j), len(y)))
    np.put_along_axis(drew_x, i, 1, axis=1)
    np.put_along_axis(drew_y, j, 1, axis=1)
    total = np.zeros(len(i))
    for start in range(0, len(x), 1024):
        rows = slice(start, start + 1024)
        total += np.sum(drew_x[:, rows].T * (kernel(x[rows], y) @ drew_y.T), axis=0)
    return total
