"""Latents to look at: the ways between them, and what an option of a sampler makes of them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.metrics.pictures import image_grid, side_by_side


def slerp(a: Any, b: Any, t: Any) -> np.ndarray:
    """Interpolate along the great circle through two vectors.

    slerp(a, b; t) = (sin((1 - t) θ) a + sin(t θ) b) / sin θ, where cos θ = a·b / (|a| |b|)

    A Gaussian of many dimensions lies close to a sphere, which a straight line leaves: halfway
    between two draws it is √½ as far from the origin as they are.

    Args:
        a: (..., d) vectors at t = 0.
        b: (..., d) vectors at t = 1.
        t: fractions of the way, of a shape that broadcasts against the leading axes of `a` and `b`.

    Returns:
        (..., d) float32; linear between parallel vectors, and between opposite ones, through which
        there is no one great circle.

    Reference: White 2016, "Sampling generative networks", section 2.1; the formula is of Shoemake
    1985, "Animating rotation with quaternion curves".

    >>> slerp([3.0, 0.0], [0.0, 3.0], [0.0, 1 / 3, 1.0]).round(3)
    array([[3.   , 0.   ],
           [2.598, 1.5  ],
           [0.   , 3.   ]], dtype=float32)
    """
    a, b, t = (np.asarray(x, np.float64) for x in (a, b, t))
    u, v = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30) for x in (a, b))
    # The arc cosine would lose half the digits of a small angle.
    apart, together = (np.linalg.norm(x, axis=-1) for x in (u - v, u + v))
    theta = 2 * np.arctan2(apart, together)
    theta = np.where(np.pi - theta < 1e-6, 0, theta)
    # sin(s θ) / sin θ = s sinc(s θ) / sinc θ, which is s where θ is 0.
    to_a, to_b = (s * np.sinc(s * theta / np.pi) / np.sinc(theta / np.pi) for s in (1 - t, t))
    return (to_a[..., None] * a + to_b[..., None] * b).astype(np.float32)


def interpolation_grid(
    decode: Callable[[np.ndarray], Any],
    a: Any,
    b: Any,
    steps: int = 10,
    *,
    pad: int = 2,
    scale: int = 1,
) -> np.ndarray:
    """Lay out a row of images for each pair of latents, on the way from one to the other.

    Args:
        decode: (m, d) latents -> (m, h, w, c) images in [-1, 1], called once with m = n * steps,
            row by row: of a GAN, `lambda z: model.draw(len(z), {"z": z})`.
        a: (n, d) latents at the left.
        b: (n, d) latents at the right.
        steps: images a row, both ends included; at least 2.
        pad: pixels between and around the images.
        scale: each pixel becomes a square of this side.

    Returns:
        (H, W, 3) uint8, n images high and `steps` wide.

    Raises:
        ValueError: the latents are not two times (n, d), `steps` is below 2, or as `image_grid`.

    >>> shade = lambda z: z[:, :1, None, None] * np.ones((8, 8, 1))
    >>> interpolation_grid(shade, np.eye(3), -np.eye(3)[::-1], 5).shape
    (32, 52, 3)
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; both must be (n, d)")
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2")
    # (n, 1, d), (steps,) -> (n, steps, d)
    path = slerp(a[:, None], b[:, None], np.linspace(0, 1, steps))
    images = decode(path.reshape(-1, a.shape[1]))  # (n, steps, d) -> (n*steps, h, w, c)
    return image_grid(images, steps, pad=pad, scale=scale)


def interpolation_film(
    decode: Callable[[np.ndarray], Any],
    latents: Any,
    frames: int = 16,
    *,
    columns: int | None = None,
    pad: int = 2,
    scale: int = 1,
) -> np.ndarray:
    """Film the way from one latent to the next, and from the last back to the first.

    Args:
        decode: (m, d) latents -> (m, h, w, c) images in [-1, 1], called once with every latent of
            the film, frame by frame.
        latents: (n, d) stops of one image, or (n, k, d) stops of k images that move side by side.
        frames: from one stop to the next; each stop is itself a frame.
        columns: images a row; by default about as many as rows.
        pad: pixels between and around the images.
        scale: each pixel becomes a square of this side.

    Returns:
        (n * frames, H, W, 3) uint8, which loops.

    Raises:
        ValueError: the latents have another shape, `frames` is below 1, or as `image_grid`.

    >>> shade = lambda z: z[:, :1, None, None] * np.ones((8, 8, 1))
    >>> interpolation_film(shade, np.eye(3), 4, pad=0).shape
    (12, 8, 8, 3)
    """
    latents = np.asarray(latents)
    if latents.ndim not in (2, 3) or latents.size == 0:
        raise ValueError(f"latents has shape {latents.shape}; stops are (n, d) or (n, k, d)")
    if frames < 1:
        raise ValueError(f"frames={frames} must be at least 1")
    n, d = len(latents), latents.shape[-1]
    stops = latents.reshape(n, 1, -1, d)  # (n, d) or (n, k, d) -> (n, 1, k, d)
    t = np.arange(frames)[:, None] / frames
    path = slerp(stops, np.roll(stops, -1, axis=0), t)  # -> (n, frames, k, d)
    images = np.asarray(decode(path.reshape(-1, d)))  # -> (n*frames*k, h, w, c)
    images = images.reshape(n * frames, -1, *images.shape[1:])  # -> (n*frames, k, h, w, c)
    return np.stack([image_grid(each, columns, pad=pad, scale=scale) for each in images])


def sweep(
    draw: Callable[[Any], Any], values: Iterable[Any], *, pad: int = 2, scale: int = 1
) -> np.ndarray:
    """Lay out a row of images for each value of an option.

    Args:
        draw: value -> (n, h, w, c) images in [-1, 1], of the same noise for every value: of a
            truncation, `lambda value: model.draw(10, truncation=value)`.
        values: of the option, from the top row to the bottom one.
        pad: pixels between and around the images.
        scale: each pixel becomes a square of this side.

    Returns:
        (H, W, 3) uint8, as many images high as there are values and n wide.

    Raises:
        ValueError: there are no values, two draw different shapes, or as `image_grid`.

    >>> sweep(lambda level: np.full((3, 8, 8, 1), level), (0.3, 0.5, 0.7, 1.0), pad=0).shape
    (32, 24, 3)
    """
    rows = np.stack([draw(value) for value in values])
    # (values, n, h, w, c) -> (values*n, h, w, c)
    return image_grid(np.concatenate(rows), rows.shape[1], pad=pad, scale=scale)


def traverse(
    decode: Callable[[np.ndarray], Any],
    z: Any,
    dims: Iterable[int],
    values: Any = (-3, -2, -1, 0, 1, 2, 3),
    *,
    pad: int = 2,
    scale: int = 1,
) -> np.ndarray:
    """Lay out a row of images for each dimension of a latent, along which it alone changes.

    Args:
        decode: (m, d) latents -> (m, h, w, c) images in [-1, 1], called once with every latent of
            the grid, row by row.
        z: (d,) where all start from: the latent of an image, or 0, the prior's mean.
        dims: from the top row to the bottom one.
        values: what the dimension is set to, from left to right.
        pad: pixels between and around the images.
        scale: each pixel becomes a square of this side.

    Returns:
        (H, W, 3) uint8, as many images high as there are dimensions and wide as values.

    Raises:
        ValueError: the latent is not (d,), a dimension is none of it, or as `image_grid`.

    >>> shade = lambda z: z[:, :1, None, None] / 3 * np.ones((8, 8, 1))
    >>> traverse(shade, np.zeros(4), (0, 2), pad=0).shape
    (16, 56, 3)

    Reference: Higgins et al. 2017, "beta-VAE", figure 1.
    """
    z, dims, values = np.asarray(z, np.float32), list(dims), np.asarray(values, np.float32)
    if z.ndim != 1:
        raise ValueError(f"z has shape {z.shape}; it must be (d,)")
    if wrong := [dim for dim in dims if not 0 <= dim < len(z)]:
        raise ValueError(f"dims holds {wrong[0]}; those of z are 0 to {len(z) - 1}")
    path = np.tile(z, (len(dims), len(values), 1))
    for row, dim in zip(path, dims, strict=True):
        row[:, dim] = values
    images = decode(path.reshape(-1, len(z)))  # (dims, values, d) -> (dims*values, h, w, c)
    return image_grid(images, len(values), pad=pad, scale=scale)


def picture_encodings(
    model: Model,
    posterior: Callable[..., tuple[Any, Any]],
    originals: Callable[[int], dict[str, Any]],
    *,
    scale: int = 1,
) -> dict[str, np.ndarray]:
    """Picture what an autoencoder makes of held-out images, and what lies about their latents.

    Args:
        model: whose `draw` takes `image`, or `z` (n, d), in its condition, `label` if there are
            classes, and an option `temperature`.
        posterior: `(params, batch) -> (mu, logvar)`, each (n, d), such as
            `tasks.vae.posterior` makes.
        originals: `(n) -> cond` of n held-out images; an experiment's.
        scale: each pixel becomes a square of this side.

    Returns:
        `reconstructions`, each at the right of its original; `interpolation`, eight rows from one
        image's latent to another's, under the left one's label; `traverse`, a row for each of at
        most ten dimensions, those of the largest divergence from the prior first, about the first
        image. Images are (H, W, 3) uint8.
    """
    cond = originals(50)
    mu, logvar = (np.asarray(x) for x in posterior(model.params, cond))
    divergence = (mu**2 + np.expm1(logvar) - logvar).mean(axis=0)

    def decode(z: np.ndarray, first: int) -> Any:
        """Decode rows of latents, under the labels of the `first` images."""
        label = {k: np.repeat(x[:first], len(z) // first) for k, x in cond.items() if k == "label"}
        return model.draw(len(z), {"z": z, **label})

    drawn = model.draw(50, cond, temperature=0.0)
    return {
        "reconstructions": image_grid(side_by_side(cond["image"], drawn), 10, scale=scale),
        "interpolation": interpolation_grid(
            lambda z: decode(z, 8), mu[:8], mu[8:16], 10, scale=scale
        ),
        "traverse": traverse(
            lambda z: decode(z, 1), mu[0], np.argsort(-divergence)[:10], scale=scale
        ),
    }


def picture_latents(
    model: Model, latent: int, *, classes: int = 0, scale: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Picture what lies between the latents of a model, and what truncation makes of them.

    Args:
        model: whose `draw` takes `z` (n, latent) in its condition, `label` if there are classes,
            and an option `truncation`.
        latent: dimensions of z ~ N(0, 1).
        classes: number of labels; the rows are of one each.
        scale: each pixel becomes a square of this side.
        seed: of the latents.

    Returns:
        `interpolation`, a grid of eight rows; `walk`, a film of 16 images on a round trip of four
        legs; `truncation`, a row for each of 0.3, 0.5, 0.7 and 1. Images are uint8.
    """
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(*shape, latent)).astype(np.float32)
    labels = lambda n: {"label": np.arange(n, dtype=np.int32) % classes} if classes else {}

    def draw(z: np.ndarray, cond: dict[str, np.ndarray], repeats: int, **options: Any) -> Any:
        # (n,) labels for latents image by image, repeats times over
        cond = {name: np.repeat(x, repeats) for name, x in cond.items()}
        cond = {name: np.resize(x, len(z)) for name, x in cond.items()}
        return model.draw(len(z), {"z": z, **cond}, **options)

    z, steps = normal(10), 10
    return {
        "interpolation": interpolation_grid(
            lambda z: draw(z, labels(8), steps), normal(8), normal(8), steps, scale=scale
        ),
        "walk": interpolation_film(
            lambda z: draw(z, labels(16), 1), normal(4, 16), 12, scale=scale
        ),
        "truncation": sweep(
            lambda value: draw(z, labels(10), 1, truncation=value),
            (0.3, 0.5, 0.7, 1.0),
            scale=scale,
        ),
    }
