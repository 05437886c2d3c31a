"""Files written whole or not at all: whoever reads one while it is written finds the one before."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by `write(partial)`, making its folder, and put it in place when it is whole.

    Raises:
        OSError: the file cannot be written; the one already there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text, in UTF-8."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays to an .npz file."""

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, save)


def write_png(path: Path, image: Any) -> None:
    """Write a picture.

    Args:
        path: of the file; one already there is replaced.
        image: (h, w) or (h, w, 1) grey, (h, w, 3) colour or (h, w, 4) with transparency; uint8.

    Raises:
        ValueError: the image has another shape or type.
        OSError: the file cannot be written; the one already there stays.
    """
    from PIL import Image

    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]  # (h, w, 1) -> (h, w)
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] in ((3,), (4,))):
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}; a PNG is uint8 of (h, w[, 1, 3 or 4])"
        )
    write_whole(path, lambda partial: Image.fromarray(image).save(partial, format="PNG"))
