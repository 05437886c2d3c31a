"""Files written whole or not at all: whoever reads one while it is written finds the one before."""

import json
import os
from collections.abc import Callable, Sequence
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


def write_gif(path: Path, frames: Any, *, milliseconds: int | Sequence[int] = 80) -> None:
    """Write a film, which starts again at its end.

    A file holds 256 colours a frame: greys come back exactly, colours nearly. It may hold fewer
    frames, for frames that are equal and follow one another become a longer one.

    Args:
        path: of the file; one already there is replaced.
        frames: (t, h, w, 1) grey or (t, h, w, 3) colour; uint8.
        milliseconds: how long to show each frame, or all, in tens.

    Raises:
        ValueError: the frames have another shape or type, or are not as many as `milliseconds`.
        OSError: the file cannot be written; the one already there stays.
    """
    from PIL import Image

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3):
        raise ValueError(
            f"frames are {frames.dtype} of {frames.shape}; a GIF is uint8 of (t, h, w, 1 or 3)"
        )
    if frames.size == 0:
        raise ValueError(f"frames are of {frames.shape}; a GIF has at least one")
    durations = np.broadcast_to(milliseconds, len(frames)).tolist()
    if frames.shape[-1] == 1:
        frames = frames[..., 0]  # (t, h, w, 1) -> (t, h, w)
    first, *rest = map(Image.fromarray, frames)
    options: Any = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    write_whole(path, lambda partial: first.save(partial, format="GIF", **options))


def write_shown(folder: Path, name: str, what: Any, tag: str = "") -> Path:
    """Write what there is to see, to read or to hear, in the format that its type has.

    Args:
        folder: of the file.
        name: its stem; of bytes the whole name, such as `song.mid`.
        what: an (h, w, c) image or a (t, h, w, c) film, uint8; text; or bytes.
        tag: goes between the stem and the suffix.

    Returns:
        The path of the file.

    Raises:
        ValueError: as `write_png` and `write_gif`.
        OSError: the file cannot be written; the one already there stays.
    """
    if isinstance(what, bytes):
        whole = folder / name
        path = whole.with_name(f"{whole.stem}{tag}{whole.suffix}")
        write_whole(path, lambda partial: partial.write_bytes(what))
    elif isinstance(what, str):
        path = folder / f"{name}{tag}.txt"
        write_text(path, what.rstrip("\n") + "\n")
    elif np.ndim(what) == 4:
        path = folder / f"{name}{tag}.gif"
        write_gif(path, what)
    else:
        path = folder / f"{name}{tag}.png"
        write_png(path, what)
    return path


def read_png(path: Path) -> np.ndarray:
    """Read a picture as (h, w, 3) uint8, without its transparency if it has one.

    Raises:
        OSError: the file cannot be read, or is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (SyntaxError, ValueError) as error:  # what Pillow finds wrong within a file
        raise OSError(f"{path} is damaged: {error}") from error
