"""The Fréchet distance between Gaussians fitted to two sets of features.

It is called FID only with the Inception features of the original; with another network's, name it
after that network.
"""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.metrics.features import as_features


class Moments(NamedTuple):
    """What a Gaussian needs to know of a set of features, in float64.

    Attributes:
        mean: (d,).
        cov: (d, d) the unbiased covariance; zero for one sample.
        n: how many samples they are of.
    """

    mean: np.ndarray
    cov: np.ndarray
    n: int


def fit(features: Any, *, chunk: int = 8192) -> Moments:
    """Fit a Gaussian to features.

    Args:
        features: (n, d).
        chunk: rows taken to float64 at a time.

    Returns:
        Their moments. Sets too large for memory: fit the parts and `merge` them.

    Raises:
        ValueError: the features are not (n, d), or not finite.

    >>> fit([[0.0, 1.0], [2.0, 1.0]]).cov
    array([[2., 0.],
           [0., 0.]])
    """
    features = as_features(features, "features")

    def exact(rows: np.ndarray) -> Moments:
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        return Moments(mean, rows.T @ rows / max(len(rows) - 1, 1), len(rows))

    return reduce(merge, (exact(features[i : i + chunk]) for i in range(0, len(features), chunk)))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets together.

    With δ = μ_b - μ_a and S the scatters (n - 1)Σ:  S = S_a + S_b + δδᵀ n_a n_b / n.

    Args:
        a: moments of one set.
        b: moments of another, of the same features.

    Returns:
        Moments of their union.

    Reference: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", equation 2.1b.
    """
    n = a.n + b.n
    delta = b.mean - a.mean
    scatter = a.cov * (a.n - 1) + b.cov * (b.n - 1)
    scatter += np.outer(delta, delta) * (a.n * b.n / n)
    return Moments(a.mean + delta * (b.n / n), scatter / (n - 1), n)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance between two fitted Gaussians.

    d² = |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½)

    The matrix in the last root is symmetric, so its eigenvalues give the trace without a general
    matrix root. The estimate is biased upward, the more the smaller the sets: compare at equal n.

    Args:
        a: moments of one set of features, by `fit`.
        b: moments of the other.

    Returns:
        d² >= 0, in squared units of the features.

    Raises:
        ValueError: the widths differ, or a set has no more samples than features, which leaves its
            covariance singular and the distance meaningless.

    >>> import numpy as np
    >>> unit = Moments(np.zeros(2), np.eye(2), 9)
    >>> frechet_distance(unit, Moments(np.array([3.0, 0.0]), 4 * np.eye(2), 9))
    11.0

    Reference: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local
    Nash equilibrium", equation 6; Dowson & Landau 1982, equation 4.
    """
    d = len(a.mean)
    if len(b.mean) != d:
        raise ValueError(f"b has {len(b.mean)} features; it is compared with {d}")
    for name, moments in (("a", a), ("b", b)):
        if moments.n <= d:
            raise ValueError(
                f"{name} has {moments.n} samples of {d} features; a Fréchet distance needs more "
                "samples than features"
            )
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.cov @ root).clip(0)).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return float(max(squared, 0.0))
