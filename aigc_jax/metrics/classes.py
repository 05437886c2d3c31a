"""What a classifier says of samples: which classes, how evenly, and whether those asked for."""

from typing import Any

import numpy as np


def class_histogram(labels: Any, classes: int) -> np.ndarray:
    """Count how many labels name each class.

    Args:
        labels: (n,) integers in [0, classes).
        classes: how many classes there are.

    Returns:
        (classes,) counts. `np.count_nonzero` of it is the number of classes present.

    Raises:
        ValueError: the labels are not (n,) integers in [0, classes), or there are none.

    >>> class_histogram([0, 2, 2], 4)
    array([1, 0, 2, 0])
    """
    labels = _labels(labels, "labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; there are {classes} classes, from 0"
        )
    return np.bincount(labels, minlength=classes)


def class_entropy(histogram: Any) -> float:
    """Return the entropy of a class histogram, in nats.

    H = Σ_c p_c log(1 / p_c), p_c the share of class c

    Args:
        histogram: (classes,) counts or weights, not all 0.

    Returns:
        From 0, one class, to log(classes), all even.

    Raises:
        ValueError: a count is negative or not finite, or all are 0.

    >>> round(class_entropy([5, 5]), 4)
    0.6931
    """
    counts = np.asarray(histogram, np.float64)
    if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0):
        raise ValueError(f"histogram={counts.tolist()} must be counts >= 0, not all of them 0")
    p = counts[counts > 0] / counts.sum()
    return float(np.sum(p * np.log(1 / p)))


def agreement(asked: Any, judged: Any) -> float:
    """Return the share of samples judged to be of the class they were asked to be.

    It is bounded by the judge: state the judge's own accuracy beside it.

    Args:
        asked: (n,) integer labels that conditioned the samples.
        judged: (n,) integer labels a classifier gave them.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: they are not (n,) integers of one length, or there are none.

    >>> agreement([0, 1, 2, 3], [0, 1, 2, 2])
    0.75
    """
    asked, judged = _labels(asked, "asked"), _labels(judged, "judged")
    if len(asked) != len(judged):
        raise ValueError(f"asked has {len(asked)} labels; judged has {len(judged)}")
    return float(np.mean(asked == judged))


def _labels(x: Any, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 1 or not x.size or not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"{name} is {x.dtype} of shape {x.shape}; labels are (n,) integers, n > 0")
    return x
