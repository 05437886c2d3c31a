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

    # One product for all three terms: threads that meet thrice as often wait thrice as long.
    both = np.concatenate([x, y])
    k = both @ both.T / x.shape[1] + 1
    k = k * k * k  # far quicker than k**3
    m, n = len(x), len(y)
    own = [(k[part, part].sum() - np.trace(k[part, part])) for part in (slice(m), slice(m, None))]
    return float(own[0] / (m * (m - 1)) + own[1] / (n * (n - 1)) - 2 * k[:m, m:].mean())


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

    def draw(rows: np.ndarray) -> np.ndarray:
        return rows[rng.choice(len(rows), size, replace=False)]

    values = [unbiased_mmd(draw(real), draw(fake)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))
