"""Samples to look at: in grids, and beside their nearest training images."""

from typing import Any

import numpy as np


def to_uint8(images: Any) -> np.ndarray:
    """Return images as the 8-bit levels a file would hold.

    level = round(127.5 (x + 1)), clipped to [0, 255]

    Args:
        images: floats in [-1, 1], or uint8, which pass through.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: the images are of another type, or hold NaN or infinity.

    >>> to_uint8([-1.0, 0.0, 1.0, 1.3])
    array([  0, 128, 255, 255], dtype=uint8)
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "bius":
        raise ValueError(f"images are {images.dtype}; they must be uint8, or floats in [-1, 1]")
    images = images.astype(np.float32)
    if bad := np.count_nonzero(~np.isfinite(images)):
        raise ValueError(f"images hold NaN or infinity in {bad} of {images.size} values")
    return np.round((images + 1) * 127.5).clip(0, 255).astype(np.uint8)


def quantise(images: Any) -> np.ndarray:
    """Return images in [-1, 1] at the 8-bit levels of the real data they are compared with.

    A generator's floats between the levels, and beyond them, are none that a file could hold: judge
    samples after this.

    Args:
        images: floats in [-1, 1], or uint8.

    Returns:
        float32 in [-1, 1] of the same shape.

    Raises:
        ValueError: as `to_uint8`.

    Reference: Parmar et al. 2022, "On aliased resizing and surprising subtleties in GAN
    evaluation", section 3.
    """
    return to_uint8(images).astype(np.float32) / 127.5 - 1


def image_grid(
    images: Any, columns: int | None = None, *, pad: int = 2, scale: int = 1, background: int = 255
) -> np.ndarray:
    """Lay images out in a grid, row by row.

    Args:
        images: (n, h, w, c) uint8 or floats in [-1, 1]; c is 1 (grey) or 3 (colour).
        columns: images a row; by default about as many as rows.
        pad: pixels between and around the images.
        scale: each pixel becomes a square of this side.
        background: grey level of the padding and of empty places.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the images are not (n, h, w, 1 or 3), or an option is out of range.

    >>> image_grid(np.zeros((5, 8, 8, 1)), 3, pad=1, scale=2).shape
    (35, 52, 3)
    """
    images = to_uint8(images)
    if images.ndim != 4 or images.size == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images has shape {images.shape}; a grid is of (n, h, w, 1 or 3), n > 0")
    columns = int(np.ceil(np.sqrt(len(images)))) if columns is None else columns
    for name, value, low in (("columns", columns, 1), ("pad", pad, 0), ("scale", scale, 1)):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    cells = np.full((rows * columns, h + pad, w + pad, 3), background, np.uint8)
    cells[:n, pad:, pad:] = images  # one grey channel broadcasts to three
    grid = cells.reshape(rows, columns, h + pad, w + pad, 3).swapaxes(1, 2)
    grid = grid.reshape(rows * (h + pad), columns * (w + pad), 3)  # -> (H - pad, W - pad, 3)
    return np.pad(grid, ((0, pad), (0, pad), (0, 0)), constant_values=background)


def side_by_side(*images: Any) -> np.ndarray:
    """Return images of one thing after another: the first of each, then the second, and so on.

    Args:
        *images: k times (n, h, w, c), such as originals and their reconstructions; grey ones
            become coloured where others are.

    Returns:
        (n*k, h, w, c), for `image_grid` with a multiple of k columns.

    >>> side_by_side(np.zeros((3, 8, 8, 1)), np.ones((3, 8, 8, 1)))[:, 0, 0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    together = np.stack(np.broadcast_arrays(*map(np.asarray, images)), 1)  # -> (n, k, h, w, c)
    return together.reshape(-1, *together.shape[2:])


def neighbour_grid(
    samples: Any, references: Any, index: Any, *, pad: int = 2, scale: int = 1
) -> np.ndarray:
    """Lay each sample at the left of a row of its nearest training images, nearest first.

    Args:
        samples: (n, h, w, c) uint8 or floats in [-1, 1].
        references: (m, h, w, c) training images, likewise.
        index: (n, k) which of them, as `neighbours.nearest` finds; or (n,) for one each.
        pad: pixels between and around the images; twice as many after the samples.
        scale: each pixel becomes a square of this side.

    Returns:
        (H, W, 3) uint8, n images high and 1 + k wide.

    Raises:
        ValueError: `index` does not lead with n, or as `image_grid`.
    """
    index = np.asarray(index).reshape(len(index), -1)  # (n,) or (n, k) -> (n, k)
    samples, references = to_uint8(samples), to_uint8(references)
    if len(index) != len(samples):
        raise ValueError(f"index has {len(index)} rows; there are {len(samples)} samples")
    neighbours = references[index.ravel()]  # (n, k) -> (n * k, h, w, c)
    left = image_grid(samples, 1, pad=pad, scale=scale)
    right = image_grid(neighbours, index.shape[1], pad=pad, scale=scale)
    return np.concatenate([left, right], axis=1)
