"""Transforms of a batch of raw examples: on the host in NumPy, or in JAX within a training step.

A transform is `(examples, address) -> examples`. Those that draw at random draw from the address
alone, by `address.bits(name)`, so that an example is treated alike however the batch it sits in is
divided and wherever that is done. One that cannot be traced by JAX, as Pillow's `resize`, runs on
the host only.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.data.sources import Examples


class Address(NamedTuple):
    """Where examples stand in the endless stream of a seed.

    Attributes:
        seed: of the stream.
        position: (b,) int64, step · batch + place in the whole batch.
    """

    seed: int
    position: np.ndarray

    def bits(self, name: str) -> np.ndarray:
        """Return (b,) uint32 random bits, each from the seed, the name and its own position."""
        return (random_bits(self, name) >> np.uint64(32)).astype(np.uint32)


class Addressed(NamedTuple):
    """What the host sends to devices, which have no 64-bit integers to draw from an address.

    Attributes:
        rows: the raw examples, name -> (b, ...); or (b,) int32, which of those that devices hold.
        drawn: name -> (b,) uint32, their bits under that name, drawn on the host.
    """

    rows: Any
    drawn: Mapping[str, Any]

    def bits(self, name: str) -> Any:
        """Return (b,) uint32 random bits, as `Address.bits` does."""
        return self.drawn[name]


Transform = Callable[[Examples, Any], Examples]  # of an `Address`, or of what is `Addressed`


def chain(*transforms: Transform) -> Transform:
    """Apply transforms from left to right."""

    def apply(examples: Examples, address: Any) -> Examples:
        for transform in transforms:
            examples = transform(examples, address)
        return examples

    return apply


def normalise(examples: Examples, address: Any = None) -> Examples:
    """Take `image` from uint8 to float32 in [−1, 1]: x / 127.5 − 1.

    Example:
        >>> normalise({"image": np.array([[[[0], [255]]]], np.uint8)})["image"].ravel().tolist()
        [-1.0, 1.0]
    """
    image = examples["image"].astype(np.float32)
    image /= np.float32(127.5)
    image -= 1
    return examples | {"image": image}


def pad(size: int, value: int = 0) -> Transform:
    """Centre images in a square of `size` pixels a side, with a border of `value`.

    Raises:
        ValueError: an image is larger than `size`.
    """

    def apply(examples: Examples, address: Any = None) -> Examples:
        image = examples["image"]
        h, w = image.shape[1:3]
        if max(h, w) > size:
            raise ValueError(f"pad size={size} must be at least the image's side, {max(h, w)}")
        top, left = (size - h) // 2, (size - w) // 2
        border = ((0, 0), (top, size - h - top), (left, size - w - left), (0, 0))
        # (b, h, w, c) -> (b, size, size, c)
        image = image.__array_namespace__().pad(image, border, constant_values=value)
        return examples | {"image": image}

    return apply


def resize(size: int) -> Transform:
    """Scale uint8 images to `size` pixels a side (Lanczos), centre-cropping what is not square."""

    def apply(examples: Examples, address: Any = None) -> Examples:
        from PIL import Image, ImageOps

        image = examples["image"]
        b, h, w, c = image.shape
        if (h, w) == (size, size):
            return examples
        resized = [
            np.asarray(
                ImageOps.fit(
                    Image.fromarray(each[..., 0] if c == 1 else each),  # Pillow's grey is (h, w)
                    (size, size),
                    Image.Resampling.LANCZOS,
                )
            )
            for each in image
        ]
        return examples | {"image": np.stack(resized).reshape(b, size, size, c)}

    return apply


def over_white(examples: Examples, address: Any = None) -> Examples:
    """Lay RGBA images over white: round(α rgb + (1 − α) 255), (b, h, w, 4) -> (b, h, w, 3).

    Images without an alpha channel pass unchanged.
    """
    image = examples["image"]
    if image.shape[-1] != 4:
        return examples
    alpha = image[..., 3:].astype(np.uint16)
    rgb = (image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return examples | {"image": rgb.astype(np.uint8)}


def flip(examples: Examples, address: Address | Addressed) -> Examples:
    """Mirror each image left to right with probability ½, by its address alone."""
    image = examples["image"]
    xp = image.__array_namespace__()
    mirrored = address.bits("flip") >> np.uint32(31) == 1
    if xp is np:  # a select takes eight times as long, and reversing a view twice as long
        image, (w, c) = image.copy(), image.shape[2:]
        backwards = np.arange(w * c).reshape(w, c)[::-1].ravel()
        rows = image[mirrored].reshape(-1, w * c)  # (b, h, w, c) -> (b*h, w*c)
        image[mirrored] = rows.take(backwards, -1).reshape(-1, *image.shape[1:])
    else:
        image = xp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    return examples | {"image": image}


def binarise(examples: Examples, address: Address | Addressed) -> Examples:
    """Make uint8 images black and white: each value 1 with probability v/255, and else −1.

    It is drawn afresh whenever an example is met, from the address alone. `whole` draws a test
    split once and for all.

    Returns:
        The examples, `image` float32 in {−1, 1}.

    Reference: Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief
    networks", section 5.1; those who draw anew call it dynamic.
    """
    image = examples["image"]
    xp, shape = image.__array_namespace__(), image.shape[1:]
    place = _mix(np.arange(math.prod(shape), dtype=np.uint32)).reshape(shape)
    bits = _mix(address.bits("binarise")[:, None, None, None] ^ place)  # -> (b, h, w, c)
    # An integer in [0, 255), even to 2⁻²⁴: a level of 0 is never reached, and 255 always.
    threshold = (bits >> np.uint32(8)) * np.uint32(255) >> np.uint32(24)
    white = threshold < image
    return examples | {"image": white.astype(xp.float32) * np.float32(2) - np.float32(1)}


def random_bits(address: Address, name: str) -> np.ndarray:
    """Return (b,) uint64 random bits, each from the seed, the name and its own position alone.

    The counter-based generator SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", 2014, figure 16), started at a hash of the seed and the name.
    """
    seed = np.array([address.seed], np.uint64)
    start = _splitmix64(_splitmix64(seed) ^ np.uint64(zlib.crc32(name.encode())))
    return _splitmix64(start + address.position.astype(np.uint64))


def _mix(x: Any) -> Any:
    """Scramble uint32 numbers, one to one: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _splitmix64(count: np.ndarray) -> np.ndarray:
    z = count * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
