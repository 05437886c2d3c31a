"""Drawings of images: their edges as thin black lines on white."""

from typing import Any

import numpy as np

from aigc_jax.data.sources import Examples


def edges(
    examples: Examples, address: Any = None, *, low: float = 8.0, high: float = 40.0
) -> Examples:
    """Add `source`, a drawing of each `image`: a transform for images still of uint8.

    A pixel's slope is that of its colour, by Sobel's operator: the root of the larger eigenvalue of
    Σ ∇x ∇xᵀ over channels, which finds an edge between colours of one brightness too. A pixel is on
    a line if it is the steepest across it, among its two neighbours; the line is the blacker the
    steeper it is.

    Args:
        examples: `image` (b, h, w, c) uint8.
        address: not read: nothing is random.
        low: slope, in levels a pixel, up to which there is nothing.
        high: slope from which a line is black.

    Returns:
        The examples, and `source` (b, h, w, 1) float32 in [−1, 1], 1 white.

    Raises:
        ValueError: the images are not uint8, or `low` is not in [0, high).

    Example:
        >>> step = np.zeros((1, 3, 6, 1), np.uint8)
        >>> step[:, :, 3:] = 255
        >>> edges({"image": step})["source"][0, :, :, 0].tolist()[1]
        [1.0, 1.0, -1.0, 1.0, 1.0, 1.0]

    Di Zenzo 1986, *A note on the gradient of a multi-image*; the thinning is of Canny 1986, *A
    computational approach to edge detection*, §VIII.
    """
    image = examples["image"]
    if image.dtype != np.uint8:
        raise ValueError(f"edges are of uint8 images, not {image.dtype}; normalise after it")
    if not 0 <= low < high:
        raise ValueError(f"low={low} and high={high} must be 0 <= low < high")
    xp: Any = image.__array_namespace__()
    # Whole numbers: where an edge lies between two pixels alike, both stay exactly alike.
    x = xp.moveaxis(image, -1, 0).astype(np.int32)  # (b, h, w, c) -> (c, b, h, w)
    x = xp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    tall = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]  # (c, b, h+2, w+2) -> (c, b, h, w+2)
    wide = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]  # -> (c, b, h+2, w)
    dx, dy = tall[..., 2:] - tall[..., :-2], wide[:, :, 2:] - wide[:, :, :-2]  # -> (c, b, h, w)
    xx, yy, xy = ((p * q).sum(0, dtype=np.int32) for p, q in ((dx, dx), (dy, dy), (dx, dy)))
    turn, lean = xx - yy, 2 * xy  # of the gradient's angle θ: ∝ cos 2θ and sin 2θ

    square = lambda a: xp.square(a.astype(np.float32))
    steep = (xx + yy).astype(np.float32) + xp.sqrt(square(turn) + square(lean))  # -> (b, h, w)
    around = xp.pad(steep, ((0, 0), (1, 1), (1, 1)))
    h, w = steep.shape[1:]
    at = lambda i, j: around[:, 1 + i : 1 + i + h, 1 + j : 1 + j + w]
    peak = lambda i, j: (steep > at(-i, -j)) & (steep >= at(i, j))
    across = xp.where(turn >= 0, peak(0, 1), peak(1, 0))
    along_diagonals = xp.where(lean > 0, peak(1, 1), peak(-1, 1))
    line = xp.where(xp.abs(lean) > xp.abs(turn), along_diagonals, across)

    slope = xp.sqrt(steep / 2) / 8  # Sobel's weights sum to 8
    ink = line * xp.clip((slope - np.float32(low)) / np.float32(high - low), 0, 1)
    return examples | {"source": (1 - 2 * ink)[..., None].astype(np.float32)}
