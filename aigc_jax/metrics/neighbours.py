"""Nearest neighbours, exactly, in blocks of bounded memory."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.metrics.features import as_features


class Neighbours(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
        index: (n, k) which reference.
        distance: (n, k) how far, Euclidean, float64.
    """

    index: np.ndarray
    distance: np.ndarray


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return all squared Euclidean distances: (n, d), (m, d) -> (n, m) float64.

    |x - y|² = |x|² + |y|² - 2 x·y, in float64, because the subtraction cancels what float32 holds
    of the distances inside a tight class far from the others.

    >>> squared_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 1.0]]))
    array([[25.,  1.]])
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    # The norms are two more columns of one product: added to it, they would cost more than it does.
    left = np.column_stack([x, np.sum(x * x, axis=1), np.ones(len(x))])
    right = np.column_stack([-2 * y, np.ones(len(y)), np.sum(y * y, axis=1)])
    squared = left @ right.T
    return np.maximum(squared, 0, out=squared)


def nearest(queries: Any, references: Any, *, k: int = 1, chunk: int = 2048) -> Neighbours:
    """Find the k nearest references of each query, by pixels or by features.

    Args:
        queries: (n, ...) samples; what follows the first axis is flattened.
        references: (m, ...) training examples, of the same shape and scale.
        k: how many, at most m.
        chunk: rows of either that meet at a time; blocks of `8 * chunk * (chunk + d)` bytes.

    Returns:
        (n, k) indices and distances. Exact copies are at distance 0; equal ones in order of index.

    Raises:
        ValueError: k is not in [1, m], or the arrays are empty, of unlike sizes, or not finite.

    >>> nearest([[0.0], [9.0]], [[1.0], [8.0], [3.0]], k=2).index.tolist()
    [[0, 2], [1, 2]]
    """
    queries = _flat(queries, "queries")
    references = _flat(references, "references", queries.shape[1])
    if not 1 <= k <= len(references):
        raise ValueError(f"k={k} must be from 1 to the {len(references)} references")
    found = [_nearest(rows, references, k, chunk) for _, rows in _blocks(queries, chunk)]
    return Neighbours(*(np.concatenate(part) for part in zip(*found, strict=True)))


def within(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, *, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Count which balls hold which points; a point on a boundary is inside.

    Args:
        points: (n, d).
        centres: (m, d) of the balls.
        radii: (m,) of the balls.
        chunk: rows of either that meet at a time.

    Returns:
        (n,) how many balls hold each point, and (m,) how many points each ball holds.
    """
    # A squared distance is rounded to a share of the squares it is the difference of, kept small
    # by centring. That share is allowed for: else a copy of the neighbour that bounds a ball would
    # fall on either side by chance.
    middle = centres.mean(axis=0, dtype=np.float64)
    points, centres = points - middle, centres - middle
    slack = 1e-12 * np.sum(points**2, axis=1)
    reach = radii**2 + 1e-12 * np.sum(centres**2, axis=1)
    holders, held = np.zeros(len(points), int), np.zeros(len(centres), int)
    for i, some in _blocks(points, chunk):
        for j, balls in _blocks(centres, chunk):
            bound = slack[i : i + chunk, None] + reach[j : j + chunk]
            inside = squared_distances(some, balls) <= bound
            holders[i : i + chunk] += np.count_nonzero(inside, axis=1)
            held[j : j + chunk] += np.count_nonzero(inside, axis=0)
    return holders, held


def _nearest(queries: np.ndarray, references: np.ndarray, k: int, chunk: int) -> Neighbours:
    candidates = []
    row = np.arange(len(queries))
    for start, block in _blocks(references, chunk):
        squared = squared_distances(queries, block)
        # A pass of argmin is 50 times faster than argpartition, and takes the first of equals.
        for _ in range(min(k, len(block))):
            best = squared.argmin(axis=1)
            squared[row, best] = np.inf
            candidates.append(start + best)
    index = np.stack(candidates, axis=1)  # (n,) each -> (n, k * blocks)
    # Again by subtraction, so that an exact copy is at 0 and not at the rounding of its norm.
    distance = np.stack(
        [np.linalg.norm(np.subtract(queries, references[c], dtype=float), axis=1) for c in index.T],
        axis=1,
    )
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return Neighbours(*(np.take_along_axis(part, order, axis=1) for part in (index, distance)))


def _blocks(rows: np.ndarray, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
    return ((start, rows[start : start + chunk]) for start in range(0, len(rows), chunk))


def _flat(x: Any, name: str, width: int | None = None) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim > 2:
        x = x.reshape(len(x), math.prod(x.shape[1:]))  # (n, ...) -> (n, d)
    return as_features(x, name, width)
