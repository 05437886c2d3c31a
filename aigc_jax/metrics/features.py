"""Sets of features: (n, d) arrays, checked once where they enter a metric."""

from typing import Any

import numpy as np


def as_features(x: Any, name: str, width: int | None = None) -> np.ndarray:
    """Return a set of features as a NumPy array, refusing one that no metric could judge.

    Args:
        x: (n, d) numbers, NumPy or JAX.
        name: what an error calls it.
        width: the d that the set it is compared with has, or None.

    Returns:
        (n, d), in the type it came in.

    Raises:
        ValueError: `x` is not (n, d), is empty, is not `width` wide, or holds NaN or infinity.
    """
    x = np.asarray(x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}; features are (n, d), neither of them 0")
    if width is not None and x.shape[1] != width:
        raise ValueError(f"{name} has {x.shape[1]} features a row; it is compared with {width}")
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name} holds NaN or infinity in {bad.sum()} of its {len(x)} rows, "
            f"first in row {bad.argmax()}"
        )
    return x
